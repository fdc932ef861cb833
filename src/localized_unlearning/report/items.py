"""What the report shows: the paper's tables and figures and the pages beside them, with what stands behind each."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localized_unlearning.audit import picture
from localized_unlearning.audit.findings import Audit
from localized_unlearning.audit.words import absolute
from localized_unlearning.config.run import Config
from localized_unlearning.paper.artefacts import FIGURES, TABLES, lacking
from localized_unlearning.provenance import records
from localized_unlearning.report.grids import blocks
from localized_unlearning.workflow.layout import Layout

STATISTICS = {
    "comparisons.md": "Paired comparisons",
    "null.md": "Rank among random localizations",
    "supplement.md": "Every prompt, all three accuracies, and the letters of multiple choice",
}
"""Files beside a table, and what the page calls them."""


QUESTIONS = {
    "forgotten": ("Is it forgotten, and at what price?", "Forgotten?", "table"),
    "attacked": ("Is it robust? Attacks and relearning", "Robust?", "relearning attacks"),
    "hidden": ("Is it still inside? Probes", "Inside?", "probes"),
    "masks": ("At what price? Masks of ever more weights", "Price?", "edits price"),
    "lookup": (
        "Where was it? The base model and the localizers",
        "Where?",
        "heads layers localizers faithfulness question",
    ),
}
"""The parts of the page, in order: what each asks, its name in the contents, and the kinds of items that answer."""


@dataclass(frozen=True)
class Item:
    """A table or figure of the paper, as the page shows it.

    Attributes:
        name: its target, such as ``figure_9``.
        caption: what it shows and does not show.
        path: its file, Markdown or PNG.
        kind: what it is: ``table``, the kind of a figure, or ``attacks`` and other pages beside the paper's.
        lack: what the config lacks to make it, if anything.
        record: the record of the job that made it, if there is one.
        behind: a picture of the stages behind it, as SVG; empty without a record.
        page: the folder that the page lies in.
        fault: why the file is not to be trusted, if its record says so or there is none.
    """

    name: str
    caption: str
    path: Path
    kind: str
    lack: str | None
    record: records.Record | None
    page: Path
    behind: str = ""
    fault: str = ""

    @property
    def title(self) -> str:
        """``Figure 9``."""
        return self.name.replace("localizers_", "localizers, ").replace("_", " ").capitalize()

    @property
    def is_grid(self) -> bool:
        """Whether its numbers stand in a table, with a picture beside it or without."""
        return self.path.suffix == ".md"

    @property
    def made(self) -> bool:
        """Whether its file is there."""
        return self.path.is_file()

    @property
    def question(self) -> str:
        """The part of the page that it belongs to."""
        return next(
            (name for name, (_, _, kinds) in QUESTIONS.items() if self.kind in kinds.split()), "masks"
        )

    @property
    def links(self) -> list[dict[str, str]]:
        """The files beside it, as seen from the page: ``title`` and ``path``."""
        files = [(suffix.upper(), self.path.with_suffix(f".{suffix}")) for suffix in LINKED]
        if self.record and (place := records.find(self.path)):
            files.append(("record", place))
        return [{"title": title, "path": self._seen(path)} for title, path in files if path.is_file()]

    @property
    def rows(self) -> list[dict[str, str]]:
        """The rows it was made from: ``title`` and ``path``."""
        read = [given.path for given in self.record.inputs] if self.record else []
        return [
            {"title": path, "path": self._seen(Path(path))}
            for path in read
            if path.endswith(".parquet") and Path(path).is_file()
        ]

    def _seen(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.page)).as_posix()

    @property
    def commit(self) -> str:
        """The commit that made it."""
        return commit_of(self.record.computed.commit) if self.record else ""

    @property
    def blocks(self) -> list[dict[str, Any]]:
        """A table's tables and notes; its own title is left to the page."""
        return list(blocks(self.path.read_text(encoding="utf-8").partition("\n")[2]))

    @property
    def further(self) -> list[dict[str, Any]]:
        """What statistics there are of a table: a ``title`` and its ``blocks``."""
        folder = self.path.parents[1] / "statistics" / self.name
        return [
            {"title": title, "blocks": list(blocks(path.read_text(encoding="utf-8").partition("\n\n")[2]))}
            for file, title in STATISTICS.items()
            if (path := folder / file).is_file()
        ]

    @property
    def vector(self) -> str:
        """Its picture as SVG, for the page; empty when there is none."""
        path = self.path.with_suffix(".svg")
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        return re.sub(
            r'^<svg [^>]*(viewBox="[\d. ]+")[^>]*>', rf'<svg \1 role="img" aria-label="{self.title}">', text
        )

    @property
    def image(self) -> str:
        """Its picture, base64; empty when there is none."""
        path = self.path.with_suffix(".png")
        return base64.b64encode(path.read_bytes()).decode("ascii") if path.is_file() else ""


LINKED = ("pdf", "svg", "csv", "tex", "md")
"""The files of an item that the page links to."""


def commit_of(commit: Mapping[str, Any]) -> str:
    """A commit in short, marked when files differed from it."""
    name = str(commit.get("commit") or "")[:10]
    return f"{name} with changes" if name and commit.get("dirty") else name


BESIDE = {
    "attacks": ("attacks.md", "What each attack brings back of what each localization unlearned."),
    "localizers": (
        "*/localizers.md",
        "How well each localization finds the matrices that hold the injected facts.",
    ),
    "faithfulness": (
        "faithfulness/faithfulness.md",
        "What is left of the answer with, and without, what each selects.",
    ),
    "overlap": (
        "overlap.md",
        "How many weights localizations share with one another, and with mechanisms.",
    ),
    "question": ("question.md", "Whether a localizer that finds the truth better unlearns more robustly."),
}
"""Pages of a run beside the paper's tables and figures: where they lie below its results, and what they show."""


def items(config: Config, captions: Mapping[str, str]) -> list[Item]:
    """Every table and figure of the paper, made or not, and the pages beside them that are made."""
    results, figures = Path(Layout(config.run).results), Path(Layout(config.run).figures)
    audit = Audit([folder for folder in (results, figures) if folder.is_dir()], Path())

    def item(name: str, caption: str, path: Path, kind: str, lack: str | None = None) -> Item:
        place = records.find(path) if path.is_file() else None
        record = records.read(place) if place else None
        graph = picture.graph(audit, absolute(path)) if record else None
        fault = _fault(audit, absolute(path)) if path.is_file() else ""
        behind = picture.svg(graph) if graph else ""
        return Item(name, caption, path, kind, lack, record, results, behind, fault)

    found = [
        item(name, captions[name], results / "tables" / f"{name}.md", "table", lacking(config, name))
        for name in TABLES
    ]
    found += [
        item(name, captions[name], figures / f"{name}.png", figure.kind, lacking(config, name))
        for name, figure in FIGURES.items()
    ]
    for kind, (pattern, caption) in BESIDE.items():
        for path in sorted(results.glob(pattern)):
            folder = path.parent.name if "*" in pattern else ""
            found.append(item(f"{kind}_{folder}".rstrip("_"), caption, path, kind))
    return found


def papers(found: Iterable[Item]) -> list[Item]:
    """Those of the items that the paper has."""
    return [item for item in found if item.name in TABLES or item.name in FIGURES]


def _fault(audit: Audit, path: Path) -> str:
    """Why a file is not what a job made, in words; empty when it is."""
    entry = audit.index.by_output.get(path)
    if entry is None:
        return ""  # the page says that there is no record
    output = next(o for o in entry.record.outputs if entry.folder / o.path == path)
    integrity, reasons = audit.integrity.of(entry, output)
    return "" if integrity == "ok" else f"it is {integrity}: {reasons[0]}"
