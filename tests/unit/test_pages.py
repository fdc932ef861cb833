"""Pages say where their numbers are from, and by themselves when the code behind them has changed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from localized_unlearning.errors import UserError
from localized_unlearning.provenance import code
from localized_unlearning.reporting import pages

ROOT = Path(__file__).resolve().parents[2]


def test_every_page_that_quotes_numbers_says_whose_they_are() -> None:
    found = pages.unaccounted(ROOT, [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))])
    assert not found, f"add them to {pages.LEDGER}"


@pytest.mark.parametrize("name", sorted(pages.read(ROOT)[0]))
def test_a_page_says_by_itself_when_it_is_older_than_the_code(name: str) -> None:
    """Repair with: localized-unlearning pages."""
    origin, now = pages.read(ROOT)[0][name], pages.digest(pages.read(ROOT)[0][name].stages)
    for path in pages.covered(ROOT, name):
        text = (ROOT / path).read_text(encoding="utf-8")
        assert f"Numbers of commit `{origin.commit}`, by `{origin.command}`" in text
        assert ("Older than the code" in text) == (origin.code != now)


def test_every_page_of_a_gallery_says_so_itself(tmp_path: Path) -> None:
    """A reader may open a table alone; pages without numbers need no line."""
    folder = tmp_path / "docs/results/mine"
    folder.mkdir(parents=True)
    for name, text in (
        ("README.md", "# Mine\n"),
        ("table_1.md", "**Table 1.** .25\n"),
        ("note.md", "No number.\n"),
    ):
        (folder / name).write_text(text, encoding="utf-8")
    data = {
        "pages": {"docs/results/mine": {"commit": "abc", "command": "x", "stages": ["mmlu"]}},
        "without": {},
    }
    (tmp_path / pages.LEDGER).write_text(yaml.safe_dump(data), encoding="utf-8")
    found = {path.name: text for path, text in pages.generated(tmp_path).items()}
    assert set(found) == {"README.md", "table_1.md"}
    assert all("Numbers of commit `abc`, by `x`. **Older than the code**" in text for text in found.values())


def test_a_change_of_the_code_behind_a_page_ages_it_and_another_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = pages.digest(["mmlu"])
    origin = pages.Origin(commit="abc", command="make bench", stages=("mmlu",), code=now)
    assert "present one" in pages.line(origin, now)

    def changed(module: str) -> dict[str, str]:
        return {
            name: "0" if name.endswith("relearning") else value
            for name, value in code.closure(module).items()
        }

    monkeypatch.setattr(pages, "closure", changed)
    assert "present one" in pages.line(origin, pages.digest(["mmlu"]))
    assert "Older than the code" in pages.line(origin, pages.digest(["mmlu", "relearn"]))


def test_a_line_is_written_once() -> None:
    origin = pages.Origin(commit="abc", command="x", stages=())
    once = pages.stamped("# Title\n\nText .25\n", origin, "now")
    assert once.startswith("# Title\n\n" + pages.BEGIN) and once.endswith("Text .25\n")
    assert pages.stamped(once, origin, "now") == once


def test_numbers_are_told_from_versions_and_code() -> None:
    assert pages.quoting("forgets .25 of it and 95 % of that") == [".25", "95 %"]
    assert pages.quoting("torch 2.13.0, section 3.1, `0.25`, and\n\n    0.25 in code\n") == []


def test_stamping_says_commit_command_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / pages.LEDGER, tmp_path / pages.LEDGER)
    (tmp_path / "docs/evidence.md").write_text("# Evidence\n\n.25\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"docs/none\.md does not exist"):
        pages.stamp(tmp_path, "docs/none.md", "x")
    monkeypatch.setenv("GIT_DIR", str(ROOT / ".git"))
    origin = pages.stamp(tmp_path, "docs/evidence.md", "make bench")
    assert re.fullmatch("[0-9a-f]{12}", origin.commit) and origin.code == pages.digest(origin.stages)
    again, without = pages.read(tmp_path)
    assert again["docs/evidence.md"] == origin and without == pages.read(ROOT)[1]
