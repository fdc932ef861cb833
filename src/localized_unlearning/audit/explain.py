"""Why an artefact is not ok, and what is behind it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from localized_unlearning.audit.index import Audit, Cause, Entry, Finding, short, shown
from localized_unlearning.errors import UserError
from localized_unlearning.paper import terms
from localized_unlearning.progress import clock
from localized_unlearning.provenance import code, records
from localized_unlearning.workflow.layout import Layout

LINES = 20  # lines of a code change that are shown

LARGEST_WITH_KEY = 1 << 26  # bytes; larger files are no figures or tables, and carry no key


# --- explain


@dataclass(frozen=True)
class Chain:
    """From a first cause up to an artefact: the entries between, the one with the cause first."""

    cause: Cause
    entries: tuple[Entry, ...]


def first_causes(audit: Audit, entry: Entry) -> list[Chain]:
    """The causes of an entry's staleness that do not follow from others, farthest up first."""
    found: dict[tuple[Path, str, str], Chain] = {}
    _collect(audit, entry, (entry,), found)
    return sorted(found.values(), key=lambda chain: -len(chain.entries))


def _collect(
    audit: Audit, entry: Entry, path: tuple[Entry, ...], found: dict[tuple[Path, str, str], Chain]
) -> None:
    for cause in audit.currency(entry).causes:
        producer = audit.producer(cause.path) if cause.kind == "upstream" and cause.path else None
        if producer is not None:
            if producer not in path:
                _collect(audit, producer, (producer, *path), found)
        else:
            found.setdefault((entry.place, cause.kind, cause.name), Chain(cause, path))


def to_rerun(audit: Audit, entry: Entry) -> list[Entry]:
    """The jobs that would run again to bring an entry up to date and its bytes back, itself last."""
    found: dict[Path, Entry] = {}

    def visit(node: Entry) -> None:
        sound = audit.currency(node).status in ("ok", "unknown") and _is_whole(audit, node)
        if node.place in found or sound or node.record.adopted:
            return
        for producer in audit.producers(node):
            visit(producer)
        found[node.place] = node

    visit(entry)
    return list(found.values())


def _is_whole(audit: Audit, entry: Entry) -> bool:
    return all(audit.integrity(entry, output)[0] in ("ok", "incomplete") for output in entry.record.outputs)


def explain(audit: Audit, finding: Finding) -> list[str]:
    """What there is to say about one artefact, as lines for people."""
    name, entry = shown(finding.path), finding.entry
    if entry is None:
        return [
            f"{name} is {finding.integrity}: {'; '.join(finding.reasons)}.",
            "Delete it and rerun what makes it, or take it in with 'localized-unlearning audit adopt'.",
        ]
    record = entry.record
    lines = []
    if finding.integrity != "ok":
        lines += [
            f"{name} is {finding.integrity}:",
            *(f"  {reason}" for reason in audit_faults(audit, finding)),
        ]
        lines += [f"  (recorded by stage {record.stage}, {record.ended})"]
    if finding.currency in ("stale", "orphan"):
        lines += [f"{name} is {finding.currency}.", "", *_causes(audit, entry)]
    if finding.currency == "orphan":
        lines += ["", "Nothing would make it now: put back what asked for it, or delete it."]
    elif finding.currency == "stale" or finding.integrity in ("modified", "missing"):
        lines += ["", *_rerun(audit, entry)]
    elif not lines:
        sure = "as its record says, and would be made the same way now"
        if finding.currency == "unknown":
            sure = f"as its record says; whether it is current cannot be told here ({'; '.join(finding.reasons)})"
        lines += [
            f"{name} is {sure}.",
            f"  made by stage {record.stage}, {record.computed.ended}, key {short(record.key)}",
        ]
    if record.restored:
        lines.append(
            f"  restored {record.ended} from a cache, where record {short(record.restored.record)} was kept"
        )
    for path in finding.rests_on:
        adopted = audit.producer(path)
        reason = adopted.record.adopted.reason if adopted and adopted.record.adopted else ""
        lines.append(f"It rests on {shown(path)}, which a person adopted: {reason}")
    return lines


def audit_faults(audit: Audit, finding: Finding) -> list[str]:
    """A finding's faults of integrity alone."""
    assert finding.entry is not None
    output = next(o for o in finding.entry.record.outputs if finding.entry.folder / o.path == finding.path)
    return audit.integrity(finding.entry, output)[1]


def _causes(audit: Audit, entry: Entry) -> Iterator[str]:
    chains = first_causes(audit, entry)
    different = {chain.cause.text: chain for chain in reversed(chains)}  # one change may reach many jobs
    for number, chain in enumerate(reversed(different.values())):
        source = chain.entries[0]
        yield f"{'Cause' if number == 0 else 'And  '}  {chain.cause.text}{_line_count(audit, source, chain.cause)}"
        if chain.cause.kind == "code":
            yield from (f"       {line}" for line in code_diff(audit, source, chain.cause)[:LINES])
    yield ""
    yield f"Chain  {chains[0].cause.name}"
    for depth, link in enumerate(chains[0].entries):
        yield f"       {'   ' * depth}└─ {shown(link.outputs[0])} ({job_name(link)})"


def _rerun(audit: Audit, entry: Entry) -> Iterator[str]:
    jobs = to_rerun(audit, entry)
    seconds = sum(job.record.computed.seconds for job in jobs)
    stages = dict.fromkeys(job.record.stage for job in jobs)
    counted = ", ".join(f"{sum(j.record.stage == s for j in jobs)} x {s}" for s in stages)
    yield f"Rerun  {counted}; about {clock(seconds)} of job time, as recorded"


def job_name(entry: Entry) -> str:
    """A job's stage and wildcards."""
    return ", ".join([entry.record.stage, *(f"{k} {v}" for k, v in entry.record.wildcards.items())])


def code_diff(audit: Audit, entry: Entry, cause: Cause) -> list[str]:
    """The lines of a module that changed, where its old source was kept."""
    run = (entry.record.folder or "/").split("/")
    kept = audit.resolve(f"{Layout(run[1] if len(run) > 1 else '').sources}/{cause.before}.py")
    now = code.source_of(cause.name)
    if cause.before is None or now is None or not kept.is_file():
        return []
    before, after = kept.read_text(encoding="utf-8").splitlines(), now.decode("utf-8").splitlines()
    lines = list(difflib.unified_diff(before, after, "recorded", "now", lineterm="", n=0))
    return [line for line in lines[2:] if not line.startswith("@@")]


def _line_count(audit: Audit, entry: Entry, cause: Cause) -> str:
    lines = len(code_diff(audit, entry, cause)) if cause.kind == "code" else 0
    return f" ({lines} lines)" if lines > 1 else " (1 line)" if lines else ""


# --- trace


@dataclass(frozen=True)
class Origin:
    """What a stray file is: the recorded output, and whether it was told by its bytes or by its key alone."""

    path: Path
    same_bytes: bool


def keys_in(path: Path) -> set[str]:
    """What may be a job's key in a file: PDF and PNG carry it among their keywords, .md and .tex in a comment."""
    if path.stat().st_size > LARGEST_WITH_KEY:
        return set()
    return {m.decode() for m in re.findall(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])", path.read_bytes())}


def find_by_content(audit: Audit, path: Path) -> Origin | None:
    """The recorded output that a stray file is: by its bytes, else by the key that it carries."""
    sha256, keys = audit.digest(path).sha256, keys_in(path)
    by_key = None
    for entry in audit.entries.values():
        for output in entry.record.outputs:
            if output.sha256 == sha256:
                return Origin(entry.folder / output.path, True)
            if entry.record.key in keys and output.path.endswith(path.suffix):
                by_key = Origin(entry.folder / output.path, False)
    return by_key


def tree(audit: Audit, path: Path, only: Collection[int] | None = None) -> dict[str, Any]:
    """Everything behind a file, as nested mappings down to the data.

    A job is described where it first appears; later mentions carry ``"above": true``.

    Args:
        audit: the records.
        path: the file.
        only: which of the inputs of its own job are followed, by number; None follows all.
    """
    return _node(audit, path, None, set(), only)


def _node(
    audit: Audit,
    path: Path,
    given: records.Input | None,
    seen: set[Path],
    only: Collection[int] | None = None,
) -> dict[str, Any]:
    entry = audit.producer(path)
    node: dict[str, Any] = {"path": shown(path)}
    if given is not None:
        node |= {"input": given.name, "sha256": given.sha256}
    if entry is None:
        return node
    record = entry.record
    node |= {
        "sha256": node.get("sha256") or records.digest_in(record, entry.folder, path),
        "stage": record.stage,
        "wildcards": record.wildcards,
        "key": record.key,
        "record": record.id,
        "currency": audit.currency(entry).status,
    }
    if record.adopted:
        node["adopted"] = record.adopted.reason
    if record.restored:
        node["restored"] = record.restored.record
    if entry.place in seen:
        return node | ({"above": True} if record.inputs else {})
    seen.add(entry.place)
    followed = [i for number, i in enumerate(record.inputs) if only is None or number in only]
    node["inputs"] = [_node(audit, audit.resolve(i.path), i, seen) for i in followed]
    return node


class Cell(NamedTuple):
    """A part of a table or figure: its rows in the tidy CSV, and which inputs of its job they rest on."""

    rows: list[dict[str, str]]
    inputs: list[int]


def cell(audit: Audit, path: Path, words: Sequence[str]) -> Cell:
    """The rows of a table's or figure's CSV that hold all of ``words``, and the inputs they rest on.

    An input counts when it is about the same model or point (equal values in the columns that both have) and,
    where the CSV names a measure or panel, holds the rows that it is taken from.

    Raises:
        UserError: when there is no CSV or no such row.
    """
    import pandas as pd

    entry = audit.producer(path)
    table = next(iter(_csv_of(entry)), None) if entry else None
    if entry is None or table is None:
        raise UserError(
            f"{shown(path)} has no CSV of its numbers beside it: --cell is for tables and figures"
        )
    data = pd.read_csv(table, dtype=str, keep_default_na=False)
    rows = [
        row
        for values in data.itertuples(index=False)
        if set(words)
        <= set((row := dict(zip(map(str, data.columns), map(str, values), strict=True))).values())
    ]
    if not rows:
        named = data[[c for c in data.columns if data[c].nunique() <= 40 and not _is_number(data[c].iloc[0])]]
        values = "; ".join(f"{c}: {', '.join(named[c].unique())}" for c in named.columns)
        raise UserError(f"no row of {shown(table)} holds {' and '.join(words)}; there are {values}")
    sources = {source for row in rows if (source := _source_of(row))}
    inputs = [
        number
        for number, i in enumerate(entry.record.inputs)
        if (not sources or _stem(i) not in ROWS or _stem(i) in sources)
        and any(_is_about(audit.resolve(i.path), row) for row in rows)
    ]
    return Cell(rows, inputs)


ROWS = ("facts", "multiple_choice", "mmlu", "text")  # files of per-item rows, by the measure they are for


def _csv_of(entry: Entry) -> Iterator[Path]:
    for output in entry.record.outputs:
        found = entry.folder / output.path
        if found.suffix == ".csv" and found.is_file():
            yield found


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?[\d.]+(e[-+]?\d+)?|", text) is not None


def _stem(given: records.Input) -> str:
    return Path(given.path).stem


def _source_of(row: Mapping[str, str]) -> str | None:
    """Which rows the measure of a table, or the panel of a figure, is taken from."""
    name = row.get("column") or row.get("panel") or ""
    try:
        return (terms.BY_NAME.get(name) or terms.panel(name, "training")).source
    except KeyError:
        return None


def _is_about(path: Path, row: Mapping[str, str]) -> bool:
    """Whether an input is about what a row is about, as far as both say."""
    import pandas as pd

    shared = {name: row[name] for name in ("task", "objective", "localization", "seed") if row.get(name)}
    if shared.get("task") == "all":
        del shared["task"]  # a mean over forget sets
    if path.suffix == ".json":
        found = json.loads(path.read_text(encoding="utf-8"))
        return all(str(found[name]) == value for name, value in shared.items() if name in found)
    if path.suffix != ".parquet":
        return True
    frame = pd.read_parquet(path)
    frame = frame[[name for name in shared if name in frame]].drop_duplicates().astype(str)
    asked = tuple(shared[name] for name in frame.columns)
    return not asked or asked in set(frame.itertuples(index=False, name=None))


def tree_lines(node: Mapping[str, Any], indent: str = "", link: str = "") -> Iterator[str]:
    """A :func:`tree` as text."""
    job = (
        ", ".join([node["stage"], *(f"{k} {v}" for k, v in node["wildcards"].items())])
        if "stage" in node
        else "data"
    )
    marks = [job, short(node["sha256"])] if node.get("sha256") else [job]
    if node.get("currency") in ("stale", "orphan"):
        marks.append(node["currency"])
    if "adopted" in node:
        marks.append(f"adopted: {node['adopted']}")
    if "restored" in node:
        marks.append(f"restored from record {short(node['restored'])}")
    yield f"{indent}{link}{node['path']}  [{'; '.join(marks)}]{'  (see above)' if 'above' in node else ''}"
    below = indent + {"": "", "├─ ": "│  ", "└─ ": "   "}[link]
    inputs = node.get("inputs", [])
    for number, inner in enumerate(inputs):
        yield from tree_lines(inner, below, "└─ " if number == len(inputs) - 1 else "├─ ")


def mermaid(node: Mapping[str, Any]) -> str:
    """A :func:`tree` as a Mermaid flow chart, each file once."""
    names: dict[str, str] = {}
    lines: dict[str, None] = {}

    def visit(inner: Mapping[str, Any]) -> str:
        path = inner["path"]
        if path not in names:
            names[path] = f"n{len(names)}"
            label = f"{path}<br/>{inner.get('stage', 'data')}".replace('"', "'")
            shape = f'["{label}"]' if "stage" in inner else f'[("{label}")]'
            lines[f"  {names[path]}{shape}{':::adopted' if 'adopted' in inner else ''}"] = None
        for source in inner.get("inputs", []):
            lines[f"  {visit(source)} --> {names[path]}"] = None
        return names[path]

    visit(node)
    return "\n".join(["flowchart LR", *lines, "  classDef adopted stroke-dasharray: 5"]) + "\n"
