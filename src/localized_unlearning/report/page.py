"""The report: one HTML page with every table and figure of a run that there is, and what is missing.

It shows what lies on disk and starts nothing; images and style are inside the page.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from localized_unlearning.config.reading import load
from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError
from localized_unlearning.paper import terms
from localized_unlearning.progress import clock
from localized_unlearning.provenance import pages, records
from localized_unlearning.report.grids import blocks, headline
from localized_unlearning.report.items import QUESTIONS, Item, commit_of, items, papers
from localized_unlearning.reporting import claim_pages
from localized_unlearning.reporting.captions import CAPTIONS, read_captions
from localized_unlearning.workflow.graph import Graph
from localized_unlearning.workflow.layout import JobId, Layout

TEMPLATE = "report.html.jinja"


def first_grid(shown: Iterable[Item]) -> dict[str, Any] | None:
    """The main columns of the first table that is made, and which it is."""
    first = next((item for item in shown if item.kind == "table" and item.made), None)
    grid = next((block for block in first.blocks if "rows" in block), None) if first else None
    return None if grid is None else {"item": first, **headline(grid)}


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


def records_in(folders: list[Path]) -> list[records.Record]:
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
    found = records_in([results, figures])
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
        papers=papers(shown),
        gold=config.has_injection,
        questions=QUESTIONS,
        headline=first_grid(shown),
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
        hosts=sorted({_host(record.computed.host) for record in found} - {""}),
        commits=sorted({commit_of(record.computed.commit) for record in found} - {""}),
    )


def _host(host: Mapping[str, Any]) -> str:
    parts = [str(host[name]) for name in ("processor", "gpu", "system") if host.get(name)]
    return ", ".join([*parts, f"{host['cores']} cores"] if host.get("cores") else parts)


def add_command(commands: Any) -> None:
    """Add ``report`` to the parser's subcommands."""
    parser = commands.add_parser(
        "report", help="write one HTML page of a run, from what lies on disk", settings=True
    )
    parser.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> int:
    """Write a run's report from what there is."""
    config, templates = load(arguments.config), Path("workflow/report")
    if not templates.is_dir():
        raise UserError(f"there is no folder {templates} here")
    out = Path(Layout(config.run).report)
    text = page(config, templates)
    shown = [item.path for item in items(config, read_captions(CAPTIONS, config))]
    pages.publish(out, text, pages.REPORT, Path(), {}, [path for path in shown if path.is_file()])
    print(f"{out} ({out.stat().st_size / 1e6:.1f} MB)")
    return 0
