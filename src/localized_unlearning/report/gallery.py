"""The gallery: a finished run's tables and figures as pages of the docs, with the CSV that each was made from."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Iterator, Set
from pathlib import Path

from localized_unlearning.config.reading import load
from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError
from localized_unlearning.files import write_text
from localized_unlearning.reporting import pages
from localized_unlearning.workflow.layout import Layout


def files(config: Config) -> Iterator[tuple[Path, str]]:
    """What the gallery takes of a run, and what it is called there."""
    layout = Layout(config.run)
    results, figures = Path(layout.results), Path(layout.figures)
    for suffix in ("md", "csv"):
        yield from ((path, path.name) for path in sorted(results.glob(f"tables/*.{suffix}")))
    for place in ("studies", "faithfulness"):
        for suffix in ("md", "csv", "png"):
            yield from ((path, path.name) for path in sorted(results.glob(f"{place}/*.{suffix}")))
    for path in sorted(results.glob("statistics/*/*.md")) + sorted(results.glob("statistics/*/*.csv")):
        if path.stem != "null" or config.null_draws:  # without draws it only says that there are none
            yield path, f"{path.stem}_{path.parent.name.removeprefix('table_')}{path.suffix}"
    yield from ((path, path.name) for path in sorted(figures.glob("figure_*.png")))
    yield from ((path, path.name) for path in sorted(figures.glob("figure_*.csv")))
    yield from ((path, f"{path.stem}.caption.md") for path in sorted(figures.glob("figure_*.md")))
    yield from ((path, path.name) for path in sorted(results.glob("claims.*")) if "record" not in path.name)
    for suffix in ("md", "csv", "png"):
        for stem in ("attacks", "localizers", "overlap", "places", "question"):
            yield from ((path, path.name) for path in sorted(results.glob(f"{stem}.{suffix}")))
        for path in sorted(results.glob(f"*/localizers.{suffix}")):
            yield path, f"localizers_{path.parent.name}.{suffix}"
    cards = sorted(results.glob("**/model_card.md"))
    for path in cards:
        base = path.parent.name if len(cards) > 1 and path.parent.name.startswith("base") else ""
        yield path, f"model_card{f'_{base}' if base else ''}.md"


def linked(claims: str, there: Set[str]) -> str:
    """A page of claims whose table leads to the tables and figures that stand beside it, and to no other."""

    def link(found: re.Match[str]) -> str:
        kind, number = found[1].lower(), found[2]
        name = f"{kind}_{number}.{'md' if kind == 'table' else 'png'}"
        return f"[{found[0]}]({name})" if name in there else found[0]

    return re.sub(
        r"^\|.*\|$", lambda row: re.sub(r"\b(Table|Figure) (\d+)\b(?!\])", link, row[0]), claims, flags=re.M
    )


def collect(config: Config, folder: Path) -> list[Path]:
    """Copy a run's tables, figures, statistics and claims into a folder of the gallery; its README stays.

    Raises:
        UserError: when the run has no table.
    """
    found = list(files(config))
    if not any(
        name.startswith(("table_", "question.")) or path.parent.name == "studies" for path, name in found
    ):
        raise UserError(f"the run {config.run} has no table, study or question yet: run snakemake all first")
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for path, name in found:
        target = folder / name
        if name == "claims.md":
            write_text(target, linked(path.read_text("utf-8"), {other for _, other in found}))
        else:
            shutil.copyfile(path, target)
        made.append(target)
    return made


def run(arguments: argparse.Namespace) -> int:
    """Command: fill a folder of the gallery from a run and say whose its numbers are."""
    config = load(arguments.config)
    made = collect(config, arguments.to)
    if not (arguments.to / "README.md").is_file():
        write_text(arguments.to / "README.md", f"# {config.run}\n")
    pages.stamp(Path(), arguments.to.as_posix(), arguments.made_by)
    for path, text in pages.generated(Path()).items():
        write_text(path, text)
    print(f"{arguments.to}: {len(made)} files; its README's sentences are yours to check against them")
    return 0
