"""The report: one HTML page with every table and figure of a run that there is, and what is missing.

It shows what lies on disk and starts nothing; images and style are inside the page.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from localized_unlearning.audit import picture
from localized_unlearning.audit.findings import Audit
from localized_unlearning.audit.words import absolute
from localized_unlearning.config.reading import load
from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError
from localized_unlearning.paper import terms
from localized_unlearning.paper.artefacts import FIGURES, TABLES, lacking
from localized_unlearning.progress import clock
from localized_unlearning.provenance import pages, records
from localized_unlearning.reporting import claim_pages
from localized_unlearning.reporting.captions import CAPTIONS, read_captions
from localized_unlearning.workflow.graph import Graph
from localized_unlearning.workflow.layout import JobId, Layout

TEMPLATE = "report.html.jinja"

STATISTICS = {
    "comparisons.md": "Paired comparisons",
    "null.md": "Rank among random localizations",
    "supplement.md": "Every prompt, all three accuracies, and the letters of multiple choice",
}
"""Files beside a table, and what the page calls them."""


QUESTIONS = {
    "forgotten": ("Is it forgotten, and at what price?", "Forgotten?", "table"),
    "relearned": ("Can it be brought back? Relearning", "Relearning", "relearning"),
    "hidden": ("Is it still inside? Probes", "Probes", "probes"),
    "masks": ("How few weights are enough? Masks", "Masks", "edits price"),
    "lookup": ("Where was it? The base model", "Base model", "heads layers"),
}
"""The parts of the page, in order: what each asks, its name in the contents, and the kinds of items that answer."""


@dataclass(frozen=True)
class Item:
    """A table or figure of the paper, as the page shows it.

    Attributes:
        name: its target, such as ``figure_9``.
        caption: what it shows and does not show.
        path: its file, Markdown or PNG.
        lack: what the config lacks to make it, if anything.
        record: the record of the job that made it, if there is one.
        behind: a picture of the stages behind it, as SVG; empty without a record.
        fault: why the file is not to be trusted, if its record says so or there is none.
    """

    name: str
    caption: str
    path: Path
    lack: str | None
    record: records.Record | None
    behind: str = ""
    fault: str = ""

    @property
    def title(self) -> str:
        """``Figure 9``."""
        return self.name.replace("_", " ").capitalize()

    @property
    def is_table(self) -> bool:
        """Whether it is a table."""
        return self.name in TABLES

    @property
    def made(self) -> bool:
        """Whether its file is there."""
        return self.path.is_file()

    @property
    def question(self) -> str:
        """The part of the page that it belongs to."""
        kind = "table" if self.is_table else FIGURES[self.name].kind
        return next((name for name, (_, _, kinds) in QUESTIONS.items() if kind in kinds.split()), "masks")

    @property
    def links(self) -> list[dict[str, str]]:
        """The files beside it, as seen from the page: ``title`` and ``path``."""
        start = self.path.parents[1] if self.is_table else Path(Layout(self.path.parent.name).results)
        files = [
            (suffix.upper(), self.path.with_suffix(f".{suffix}")) for suffix in ("pdf", "csv", "tex", "md")
        ]
        if self.record and (place := records.find(self.path)):
            files.append(("record", place))
        return [
            {"title": title, "path": Path(os.path.relpath(path, start)).as_posix()}
            for title, path in files
            if path.is_file()
        ]

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
    def image(self) -> str:
        """A figure's picture, base64."""
        return base64.b64encode(self.path.read_bytes()).decode("ascii")


def blocks(markdown: str) -> Iterator[dict[str, Any]]:
    """The tables (``head``, ``rows``) and paragraphs (``text``) of the Markdown that stages write."""
    for part in re.split(r"\n\s*\n|  \n", markdown):
        lines = part.strip().splitlines()
        if not lines or lines[0].startswith(("# ", "<!--")):
            continue
        if lines[0].startswith("|"):
            head, _, *rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
            yield {"head": head, "rows": marked(head, [[cell(c) for c in row] for row in rows])}
        else:
            yield {"text": " ".join(lines)}


def cell(text: str) -> dict[str, Any]:
    """A cell's number and, apart from it, what stands in brackets behind it."""
    found = re.fullmatch(r"([\d.,+-]+) ([\[(].*)", text)
    shown = {"text": found[1], "interval": found[2]} if found else {"text": text, "interval": ""}
    return {**shown, "best": "", "title": ""}


def marked(head: Sequence[str], rows: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """Rows in which each number says how far it is from the base model's, and which are best.

    ``best`` is ``best`` for the best trained model of a column with an arrow, and ``near`` for those whose interval holds
    that value. A column in which the base model is at chance or below (†, ‡), or in which all are equal, has no best.
    """
    base = next((row for row in rows if row[0]["text"].startswith("Base model")), None)
    trained = [row for row in rows if row is not base]
    for column, title in enumerate(head):
        if not re.search("[↓↑]", title):
            continue
        numbers = {id(row): value for row in trained if (value := _number(row, column)) is not None}
        start = _number(base, column) if base else None
        best = (min if "↓" in title else max)(numbers.values(), default=0.0)
        ranked = not re.search("[†‡]", title) and len(set(numbers.values())) > 1
        for row in trained:
            value = numbers.get(id(row))
            if value is None:
                continue
            if start is not None:
                row[column]["title"] = f"{value - start:+.3f} against the base model"
            low, high = _ends(row[column]["interval"])
            if ranked:
                row[column]["best"] = "best" if value == best else "near" if low <= best <= high else ""
    return rows


def _number(row: Sequence[Mapping[str, Any]], column: int) -> float | None:
    text = row[column]["text"] if column < len(row) else ""
    return float(text) if re.fullmatch(r"[+-]?\d*\.\d+|\d+", text) else None


def _ends(interval: str) -> tuple[float, float]:
    """The ends of ``[.061, .257] ...``; of nothing, an interval that holds nothing."""
    found = re.match(r"\[([-+.\d]+), ([-+.\d]+)\]", interval)
    return (float(found[1]), float(found[2])) if found else (math.inf, -math.inf)


HEADLINE = re.compile("^(Localization|Question forget|Question retain|MCQ forget|MMLU)")
"""The columns that the page begins with: what fits a phone."""


def headline(shown: Iterable[Item]) -> dict[str, Any] | None:
    """The main columns of the first table that is made, as one of :func:`blocks`, without intervals."""
    first = next((item for item in shown if item.is_table and item.made), None)
    grid = next((block for block in first.blocks if "rows" in block), None) if first else None
    if first is None or grid is None:
        return None
    kept = [index for index, title in enumerate(grid["head"]) if HEADLINE.match(title)]
    rows = [[{**row[index], "interval": ""} for index in kept] for row in grid["rows"]]
    return {"item": first, "head": [grid["head"][index] for index in kept], "rows": rows}


def judged(path: Path, prompt: terms.Prompt) -> list[dict[str, Any]]:
    """The claims of a run as ``claims.json`` holds them, measures and margins as words; none when it is not made."""
    if not path.is_file():
        return []
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    for claim in found:
        for test in claim["tests"]:
            test["shown_measure"] = claim_pages.words_of(test["measure"], prompt)
        for item in (claim, *claim["tests"]):
            ends = item["interval"]
            item["shown_margin"] = "" if ends is None else f"{item['margin']:+.3f}"
            item["shown_interval"] = "" if ends is None else f"[{ends[0]:+.3f}, {ends[1]:+.3f}]"
    return found


def commit_of(commit: Mapping[str, Any]) -> str:
    """A commit in short, marked when files differed from it."""
    name = str(commit.get("commit") or "")[:10]
    return f"{name} with changes" if name and commit.get("dirty") else name


def changes(config: Config) -> list[dict[str, str]]:
    """Settings that differ from the defaults: dotted ``name``, ``value`` and ``default``, as JSON."""
    here, default = (dict(_flat(_shown(c))) for c in (config, Config()))
    names = [*here, *(name for name in default if name not in here)]
    shown = {
        name: [json.dumps(side[name]) if name in side else "" for side in (here, default)] for name in names
    }
    return [{"name": n, "value": v, "default": d} for n, (v, d) in shown.items() if v != d]


def _shown(config: Config) -> dict[str, Any]:
    """The settings that results rest on; where finished jobs are cached is not among them."""
    return {name: value for name, value in config.as_written().items() if name != "cache"}


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for name, value in node.items():
            yield from _flat(value, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, node


def recorded(folders: list[Path]) -> list[records.Record]:
    """The readable records of the jobs that wrote into ``folders``."""
    found = []
    for path in sorted(path for folder in folders for path in folder.rglob(f"*{records.SUFFIX}")):
        try:
            found.append(records.read(path))
        except UserError:
            continue
    return [record for record in found if record.adopted is None]


def runtimes(found: list[records.Record]) -> list[dict[str, Any]]:
    """Time of each stage's jobs, the longest stage first."""
    stages: dict[str, list[float]] = {}
    for record in found:
        stages.setdefault(record.stage, []).append(record.computed.seconds)
    return [
        {
            "stage": stage, "jobs": len(seconds), "total": clock(sum(seconds)),
            "median": f"{statistics.median(seconds):.1f} s", "longest": f"{max(seconds):.1f} s",
        }
        for stage, seconds in sorted(stages.items(), key=lambda pair: -sum(pair[1]))
    ]  # fmt: skip


def items(config: Config, captions: Mapping[str, str]) -> list[Item]:
    """Every table and figure of the paper, made or not."""
    tables, figures = Path(Layout(config.run).results, "tables"), Path(Layout(config.run).figures)
    paths = {
        **{name: tables / f"{name}.md" for name in TABLES},
        **{name: figures / f"{name}.png" for name in FIGURES},
    }
    found = []
    audit = Audit([folder for folder in (tables.parent, figures) if folder.is_dir()], Path())
    for name, path in paths.items():
        place = records.find(path) if path.is_file() else None
        record = records.read(place) if place else None
        graph = picture.graph(audit, absolute(path)) if record else None
        behind = picture.svg(graph) if graph else ""
        fault = _fault(audit, absolute(path)) if path.is_file() else ""
        found.append(Item(name, captions[name], path, lacking(config, name), record, behind, fault))
    return found


def _fault(audit: Audit, path: Path) -> str:
    """Why a file is not what a job made, in words; empty when it is."""
    entry = audit.index.by_output.get(path)
    if entry is None:
        return ""  # the page says that there is no record
    output = next(o for o in entry.record.outputs if entry.folder / o.path == path)
    integrity, reasons = audit.integrity.of(entry, output)
    return "" if integrity == "ok" else f"it is {integrity}: {reasons[0]}"


def page(config: Config, templates: Path) -> str:
    """The report of a run as HTML, from what lies under ``results/`` and ``figures/``.

    Args:
        config: the run's resolved config.
        templates: the folder of the template and the captions.

    Raises:
        UserError: when the captions are missing.
    """
    import jinja2

    results, figures = Path(Layout(config.run).results), Path(Layout(config.run).figures)
    found = recorded([results, figures])
    captions = read_captions(templates / CAPTIONS.name, config)
    shown = items(config, captions)
    first = JobId.of("model_card", base_seed=Graph(config).bases[0])
    card = Path(Layout(config.run).outputs(first)["markdown"])
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return jinja.get_template(TEMPLATE).render(
        run=config.run,
        items=shown,
        questions=QUESTIONS,
        headline=headline(shown),
        reading=captions["reading"],
        about_tables=captions["tables"],
        claims=judged(results / "claims.json", config.measures.prompts[0]),
        about_claims=captions["claims"],
        changed=changes(config),
        settings=yaml.safe_dump(_shown(config), sort_keys=False, allow_unicode=True),
        card=list(blocks(card.read_text(encoding="utf-8"))) if card.is_file() else [],
        card_path=card,
        runtimes=runtimes(found),
        total=clock(sum(record.computed.seconds for record in found)),
        jobs=len(found),
        ended=max((record.computed.ended[:16].replace("T", " ") for record in found), default=""),
        hosts=sorted({_host(record.computed.host) for record in found}),
        commits=sorted({commit_of(record.computed.commit) for record in found} - {""}),
    )


def _host(host: Mapping[str, Any]) -> str:
    parts = [str(host[name]) for name in ("processor", "gpu", "system") if host.get(name)]
    return ", ".join([*parts, f"{host['cores']} cores"] if host.get("cores") else parts)


def add_command(commands: Any) -> None:
    """Add ``report`` to the parser's subcommands."""
    parser = commands.add_parser("report", help="write one HTML page of a run, from what lies on disk")
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        required=True,
        help="a YAML file of settings; repeat to overlay",
    )
    parser.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> int:
    """Write a run's report from what there is."""
    config = load(arguments.config)
    out = Path(Layout(config.run).report)
    text = page(config, Path("workflow/report"))
    shown = [item.path for item in items(config, read_captions(CAPTIONS, config))]
    pages.publish(out, text, pages.REPORT, Path(), {}, [path for path in shown if path.is_file()])
    print(f"{out} ({out.stat().st_size / 1e6:.1f} MB)")
    return 0
