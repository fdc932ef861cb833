"""One vocabulary of measures: its table is sound, and no other spelling stands anywhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from localized_unlearning.paper import terms

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [p for p in sorted((ROOT / "src").rglob("*.py")) if p.name != "terms.py"]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "workflow/report").iterdir()),
    *sorted((ROOT / "workflow/resources").glob("*.yaml")),
]
OTHER = re.compile(
    r"MMLU format|MMLU accuracy ↑|MMLU ↑|general knowledge, MMLU|MMLU column|fixed-order multiple choice|guessing rate", re.IGNORECASE
)  # fmt: skip
"""Spellings that once stood in one place and not in another."""


def plain(text: str) -> str:
    """A name without its case, spaces, hyphens and arrows: what another spelling of it shares."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


NAMES = {name for m in terms.MEASURES for name in (m.short, m.heading, m.long)}
PLAIN = {plain(name) for name in NAMES}


def misspelled(text: str) -> bool:
    """Whether ``text`` is a measure's name in another spelling; a word of a sentence or a name in code is none."""
    return (
        plain(text) in PLAIN - {"forget", "retain"}
        and text not in NAMES
        and re.fullmatch(r"`?[a-z0-9_.]*`?", text) is None
    )


def test_another_spelling_is_found() -> None:
    assert misspelled("MMLU Format") and misspelled("Question Forget ↓") and misspelled("MMLU format")
    assert not misspelled(terms.MEASURES[0].heading) and not misspelled("forget_question")


def test_every_measure_has_names_of_its_own_and_belongs_to_a_group() -> None:
    for names in (
        [m.name for m in terms.MEASURES],
        [m.short for m in terms.MEASURES],
        [m.long for m in terms.MEASURES],
    ):
        assert len(set(names)) == len(names)
    assert {m.group for m in terms.MEASURES} <= set(terms.GROUPS)
    assert set(terms.MAIN) <= set(terms.BY_NAME)
    assert all(m.prompt is None or m.prompt in m.long for m in terms.MEASURES)


def test_forget_means_the_training_prompt_alone() -> None:
    assert terms.of_prompt("forget", "training").heading == "Forget ↓"
    assert terms.panel("forget_others", "question").heading == "Question forget ↓"
    assert terms.panel("mmlu", "training").short == "MMLU-format"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_code_takes_its_headings_from_the_table(path: Path) -> None:
    """A heading, or a name in a heading's form, that is written out anywhere else would drift."""
    headings = {m.heading for m in terms.MEASURES} | {m.short for m in terms.MEASURES if " " in m.short}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert not [text for text in texts if text in headings or OTHER.search(text) or misspelled(text)]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_pages_have_no_other_spelling(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    cells = [cell.strip() for line in text.splitlines() if line.startswith("|") for cell in line.split("|")]
    found = [*OTHER.findall(text), *filter(misspelled, cells)]
    assert not found, f"say it as paper/terms.py does: {found}"
