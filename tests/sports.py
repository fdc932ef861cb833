"""The paper's answers, which the product itself does not know."""

SPORTS = ("football", "baseball", "basketball")
CHOICES = (*SPORTS, "golf")
