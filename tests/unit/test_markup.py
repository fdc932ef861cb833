"""Labels that a user writes, in Markdown and LaTeX: each letter stays that letter, and a cell stays one cell."""

from __future__ import annotations

import re
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localized_unlearning.config.reading import resolve
from localized_unlearning.errors import UserError
from localized_unlearning.reporting import markup

HOSTILE = [
    "A | B", "a & b", "c_d _e_", "5 %", "$x$ and $", "# one", "<script>alert(1)</script>", "a\nb", "**", "*it*", "`code`", "back\\slash",
    "\\|", "~~gone~~", "x^2", "{braces}", "[link](http://x.y)", "![i](j)", "&lt;", "&amp;amp;", '"quoted"', "a \\", "-", "0.5 [.1, .9]",
]  # fmt: skip
letters = st.text(alphabet=st.sampled_from("ab 0.|\\&_%$#<>~^{}[]()!`*;\"'\nltgamp"), min_size=1, max_size=20)


def kept(text: str) -> str:
    return " ".join(text.split())


@given(st.lists(letters, min_size=1, max_size=4))
def test_a_row_is_read_back_as_it_was_written(texts: list[str]) -> None:
    """The report reads what the tables write: the same cells, of the same letters."""
    line = markup.row([markup.escaped(text) for text in texts])
    assert "\n" not in line and markup.cells(line) == [kept(text) for text in texts]


@pytest.mark.parametrize("label", HOSTILE)
def test_a_reader_of_markdown_sees_the_label(label: str) -> None:
    """CommonMark's own rendering of the table: one row, two cells, the label's letters, no tag of its own."""
    markdown_it = pytest.importorskip("markdown_it")
    text = markup.markdown("T", [markup.Panel("", ["Localization", "Forget"], [[label, "0.5"]])], [])
    html = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    found = re.findall(r"<td[^>]*>(.*?)</td>", html, re.S)
    assert [unescape(cell) for cell in found] == [kept(label), "0.5"]


@given(letters)
def test_latex_holds_no_letter_that_acts(text: str) -> None:
    """What is left without the macros that stand for letters has none of TeX's special ones, and no line break."""
    made = markup.clean(text)
    rest = re.sub(r"\\(text[a-z]+\{\}|[{}%&_#$])", "", made)
    assert not re.search(r"[\\{}%&_#$~^<>|\"\n]", rest)


@pytest.mark.parametrize("label", ["", "  ", "a\x00b", "\x1b[31m"])
def test_a_label_that_cannot_be_read_is_refused(label: str) -> None:
    with pytest.raises(UserError, match=r"localizations.random.label.*name of at least one letter"):
        resolve([("mine.yaml", {"localizations": {"random": {"label": label}}})])


def test_a_zero_has_no_sign() -> None:
    assert (markup.number(-0.0001), markup.number(-0.0006)) == ("0.000", "-0.001")
