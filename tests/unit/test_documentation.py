"""The pages: every link leads somewhere, every page can be found, code blocks are what a reader can run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from localized_unlearning.cli import preset_costs, presets
from localized_unlearning.workflow.layout import Layout

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "docs/*.ipynb", "*/README.md", ".github/*.md")
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\(\s*([^)\s]+)[^)]*\)")


def text_of(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The places of a page, as code hosts and the site name them: heading in small letters, words joined by hyphens."""
    headings = re.findall(r"^#+\s+(.*)$", text_of(page), re.M)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)|`", r"\1", heading).strip().lower() for heading in headings)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading)) for heading in plain}


def dead(page: Path) -> Iterator[str]:
    for target in LINK.findall(text_of(page)):
        parts = urlsplit(target)
        if parts.scheme or target.startswith("../../actions/"):
            continue
        path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if not path.exists():
            yield f"{target}: not there"
        elif parts.fragment and path.suffix == ".md" and unquote(parts.fragment) not in anchors(path):
            yield f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert not list(dead(page))


def test_every_page_is_in_the_sites_contents() -> None:
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r": (\S+\.(?:md|ipynb))$", contents, re.M))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in PAGES if ROOT / "docs" in path.parents}
    assert named <= pages
    assert not {page for page in pages - named if not page.startswith("results/")}


def test_the_readme_is_one_screen() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 110, "the rest belongs in docs/"
    for word in ("make all", "load_run", "bibtex", "report.html", "docs/tutorial.ipynb"):
        assert word in text


def test_the_page_of_presets_is_in_step_and_every_preset_fits(checkout: Path) -> None:
    """Catches costs on the page that the cost model does not say, and a preset that no A100 of 80 GB holds."""
    page = preset_costs.costs()
    assert page == (ROOT / "docs/presets.md").read_text(encoding="utf-8"), (
        "in a fresh clone, run: localized-unlearning presets --costs > docs/presets.md"
    )
    rows = [
        [cell.strip() for cell in line.split("|")] for line in page.splitlines() if line.startswith("| `")
    ]
    assert len(rows) == len(list(presets.FOLDER.glob("*.yaml")))
    assert [row[1] for row in rows if "A100" in row[6] and float(row[7]) > 80] == []


def test_files_of_a_run_that_are_named_are_made_by_a_job() -> None:
    """Catches a path of before the last move of the layout, as `make bench` had one: no rule made its model."""
    own = re.compile(r"(?<![\w/(])results/(organism|gemma[\w.-]*|icml[\w.-]*)/([\w./-]+)")
    beside = ("report.html", "config.yaml")
    named = [
        (path, found[1], found[0])
        for path in [*PAGES, ROOT / "Makefile", *ROOT.glob("benchmarks/*.py"), ROOT / "docs/pages.yaml"]
        for found in own.finditer(path.read_text(encoding="utf-8"))
        if not (path.parent / found[0]).exists() and not found[2].startswith(beside)
    ]
    assert len(named) > 5
    assert [(path, name) for path, run, name in named if not Layout(run).job(name.rstrip("."))] == []


def test_presets_in_the_pages_exist() -> None:
    said = {
        name for page in PAGES for name in re.findall(r"workflow/presets/([\w.-]+)\.yaml", page.read_text())
    }
    assert said - {"NAME", "X"} <= {path.stem for path in (ROOT / "workflow/presets").glob("*.yaml")}


def test_files_in_the_pages_exist() -> None:
    """Catches a page that names a module or a test that has moved."""
    path = re.compile(r"(?<![\w/<>.])(?:src|tests|tools|benchmarks|examples)/[\w./-]+\.(?:py|sh|yaml|md)")
    named = {name for page in PAGES for name in path.findall(page.read_text(encoding="utf-8"))}
    assert named and not {name for name in named if not (ROOT / name).is_file()}


def test_examples_of_settings_are_yaml() -> None:
    for page in PAGES:
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            assert isinstance(yaml.safe_load(block), dict), page
