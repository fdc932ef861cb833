"""One self-contained page of a run: tables, figures, model card, settings, runtimes, and what is missing.

It is made of what lies on disk, computes nothing, and works on a partial run.
"""

from __future__ import annotations

import argparse
import base64
import json
from collections import defaultdict
from html import escape
from pathlib import Path
from typing import Any

import yaml

from localized_unlearning import config as configuration
from localized_unlearning.config import Config
from localized_unlearning.progress import clock
from localized_unlearning.provenance import records
from localized_unlearning.published import FIGURES, TABLES

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #8886; }
figure { margin: 2rem 0; } figure img { max-width: 100%; background: white; padding: .4rem; box-sizing: border-box; }
figcaption, .note { font-size: .9rem; opacity: .85; } .from { font: .75rem ui-monospace, monospace; opacity: .65; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .82rem; margin: 1rem 0; white-space: nowrap; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; } .missing { border-left: 3px solid #c60; padding-left: .8rem; }
pre { overflow-x: auto; font-size: .8rem; } nav a { margin-right: .8rem; }
@media print { body { max-width: none; font-size: 11px; } figure, table { break-inside: avoid; } details { display: none; } }
"""


def add_command(commands: Any) -> None:
    """Add ``report`` to the parser's subcommands."""
    parser = commands.add_parser("report", help="one HTML page of a run, from what lies on disk")
    parser.add_argument("--config", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path, help="default: results/<run>/report.html")
    parser.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the page of the config's run, atomically."""
    config = configuration.load(arguments.config)
    out = arguments.out or Path("results", config.run, "report.html")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    part.write_text(page(config, Path()), encoding="utf-8")
    part.replace(out)
    print(f"report: {out}")
    return 0


def page(config: Config, root: Path) -> str:
    """The whole page.

    Args:
        config: the run's config.
        root: the folder that holds ``results`` and ``figures``.
    """
    results, figures = root / "results" / config.run, root / "figures" / config.run
    has_task = {"", *config.tasks}
    tables = [
        name
        for name, (task, objective) in TABLES.items()
        if task in has_task and objective in config.objectives
    ]
    drawn = [
        name
        for name, f in FIGURES.items()
        if f.task in has_task and f.objective in ("", "mask", *config.objectives)
    ]
    missing = [name for name in tables if not (results / "tables" / f"{name}.md").is_file()]
    missing += [name for name in drawn if not (figures / f"{name}.png").is_file()]
    parts = [
        f"<h1>{escape(config.run)}: localized unlearning</h1>",
        "<p class=note>Tables and figures of &ldquo;Robust Knowledge Unlearning via Mechanistic Localizations&rdquo; "
        f"(Guo et al. 2024), made for the model {escape(model_name(config))}. Numbers are about this model and these "
        "settings, not about the paper's.</p>",
        "<nav><a href=#card>Model</a><a href=#tables>Tables</a><a href=#figures>Figures</a>"
        "<a href=#settings>Settings</a><a href=#times>Times</a></nav>",
        absent(missing),
        "<h2 id=card>The base model</h2>",
        markdown_part(results / "model_card.md", "model card"),
        "<h2 id=tables>Tables</h2>",
        *(table_part(results, name) for name in tables if name not in missing),
        "<h2 id=figures>Figures</h2>",
        *(figure_part(figures, name) for name in drawn if name not in missing),
        "<h2 id=settings>Settings</h2>",
        settings_part(config),
        "<h2 id=times>Job times</h2>",
        times_part([results, figures]),
    ]
    title = f"<title>{escape(config.run)}: localized unlearning</title>"
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'>{title}"
    return (
        f"<!doctype html>\n<html lang=en><head>{head}<style>{STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def model_name(config: Config) -> str:
    """The base model in words."""
    return "organism (pretrained by this workflow)" if config.model.kind == "organism" else config.model.name


def absent(names: list[str]) -> str:
    """What the run could have and does not, and how to make it."""
    if not names:
        return ""
    listed = ", ".join(f"<code>snakemake {name}</code>" for name in names)
    return f"<p class=missing>Not made yet ({len(names)}): {listed}</p>"


def provenance(path: Path) -> str:
    """Which job made a file, in one line: its key and commit."""
    place = records.find(path)
    if place is None:
        return "<p class=from>no record beside this file</p>"
    record = records.read(place)
    commit = str(record.commit.get("commit", "unknown"))[:12]
    return f"<p class=from>{escape(path.name)} &middot; key {record.key[:16]} &middot; commit {escape(commit)}</p>"


def table_part(results: Path, name: str) -> str:
    """A table with its title and footnotes."""
    path = results / "tables" / f"{name}.md"
    return f"<section id={name}>{markdown_part(path, name)}{provenance(path)}</section>"


def figure_part(figures: Path, name: str) -> str:
    """A figure as an inline picture, with its caption."""
    path = figures / f"{name}.png"
    data = base64.b64encode(path.read_bytes()).decode()
    number, caption = name.split("_")[1], FIGURES[name].caption
    return (
        f"<figure id={name}><img alt='Figure {number}' src='data:image/png;base64,{data}'>"
        f"<figcaption><b>Figure {number}.</b> {escape(caption)}</figcaption>{provenance(path)}</figure>"
    )


def markdown_part(path: Path, what: str) -> str:
    """A Markdown file of ours as HTML: headings, bold titles, paragraphs and pipe tables are all it holds."""
    if not path.is_file():
        return f"<p class=missing>The {escape(what)} is not made yet.</p>"
    html: list[str] = []
    rows: list[str] = []
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("|"):
            rows.append(line)
            continue
        if rows:
            html.append(pipe_table(rows))
            rows = []
        text = escape(line.strip())
        if text.startswith("# "):
            html.append(f"<h3>{text[2:]}</h3>")
        elif text.startswith("**") and text.endswith("**"):
            html.append(f"<p><b>{text[2:-2]}</b></p>")
        elif text:
            html.append(f"<p class=note>{text.replace('`', '')}</p>")
    return "\n".join(html)


def pipe_table(rows: list[str]) -> str:
    """A Markdown pipe table, with its rule in the second row, as HTML."""
    cells = [[escape(c.strip()) for c in row.strip("|").split("|")] for row in rows]
    head = "".join(f"<th>{c}</th>" for c in cells[0])
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in cells[2:])
    return f"<div class=wide><table><tr>{head}</tr>{body}</table></div>"


def settings_part(config: Config) -> str:
    """What differs from the default run, then everything."""
    own, default = config.model_dump(mode="json"), Config().model_dump(mode="json")
    changed = sorted(flat(own).items() - flat(default).items())
    lines = "".join(f"<tr><td>{escape(key)}</td><td>{escape(value)}</td></tr>" for key, value in changed)
    first = (
        f"<div class=wide><table><tr><th>setting</th><th>value</th></tr>{lines}</table></div>"
        if changed
        else "<p>The default run, unchanged.</p>"
    )
    whole = escape(yaml.safe_dump(own, sort_keys=False, allow_unicode=True))
    return f"{first}<details><summary>All settings</summary><pre>{whole}</pre></details>"


def flat(node: Any, prefix: str = "") -> dict[str, str]:
    """Leaves of nested settings by dotted path, as JSON."""
    if isinstance(node, dict) and node:
        leaves: dict[str, str] = {}
        for key, value in node.items():
            leaves |= flat(value, f"{prefix}.{key}" if prefix else key)
        return leaves
    return {prefix: json.dumps(node, ensure_ascii=False)}


def times_part(folders: list[Path]) -> str:
    """Jobs and job time by stage, from the records."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for folder in folders:
        for path in folder.rglob("*.record.json"):
            record = json.loads(path.read_text(encoding="utf-8"))
            seconds[record["stage"]].append(record["seconds"])
    if not seconds:
        return "<p>No recorded job yet.</p>"
    rows = ["| stage | jobs | total | longest |", "|---|---|---|---|"]
    rows += [
        f"| {stage} | {len(found)} | {clock(sum(found))} | {clock(max(found))} |"
        for stage, found in sorted(seconds.items(), key=lambda item: -sum(item[1]))
    ]
    return pipe_table(rows)
