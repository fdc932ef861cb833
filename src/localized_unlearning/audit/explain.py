"""Why an artefact is not ok, from the first cause on, and what would mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from localized_unlearning.audit.currency import Cause
from localized_unlearning.audit.findings import Audit, Finding
from localized_unlearning.audit.index import Entry
from localized_unlearning.audit.words import short, shown
from localized_unlearning.progress import clock
from localized_unlearning.provenance import code
from localized_unlearning.workflow.layout import SOURCES

LINES = 20  # lines of a code change that are shown


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
        producer = audit.index.producer(cause.path) if cause.kind == "upstream" and cause.path else None
        if producer is not None:
            if producer not in path:
                _collect(audit, producer, (producer, *path), found)
        else:
            found.setdefault((entry.place, cause.kind, cause.name), Chain(cause, path))


def to_rerun(audit: Audit, entry: Entry) -> list[Entry]:
    """The jobs that would run again to bring an entry up to date and its bytes back, itself last."""
    found: dict[Path, Entry] = {}

    def visit(node: Entry) -> None:
        sound = audit.currency(node).status in ("ok", "unknown") and is_whole(audit, node)
        if node.place in found or sound or node.record.adopted:
            return
        for producer in audit.index.producers(node):
            visit(producer)
        found[node.place] = node

    visit(entry)
    return list(found.values())


def is_whole(audit: Audit, entry: Entry) -> bool:
    """Whether every output of a job is what its record says."""
    return all(
        audit.integrity.of(entry, output)[0] in ("ok", "incomplete") for output in entry.record.outputs
    )


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
        adopted = audit.index.producer(path)
        reason = adopted.record.adopted.reason if adopted and adopted.record.adopted else ""
        lines.append(f"It rests on {shown(path)}, which a person adopted: {reason}")
    return lines


def audit_faults(audit: Audit, finding: Finding) -> list[str]:
    """A finding's faults of integrity alone."""
    assert finding.entry is not None
    output = next(o for o in finding.entry.record.outputs if finding.entry.folder / o.path == finding.path)
    return audit.integrity.of(finding.entry, output)[1]


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
    run, now = audit.index.run_of(entry), code.source_of(cause.name)
    kept = None if run is None else run.results / SOURCES / f"{cause.before}.py"
    if cause.before is None or now is None or kept is None or not kept.is_file():
        return []
    before, after = (
        kept.read_text(encoding="utf-8", errors="replace").splitlines(),
        now.decode("utf-8").splitlines(),
    )
    lines = list(difflib.unified_diff(before, after, "recorded", "now", lineterm="", n=0))
    return [line for line in lines[2:] if not line.startswith("@@")]


def _line_count(audit: Audit, entry: Entry, cause: Cause) -> str:
    lines = len(code_diff(audit, entry, cause)) if cause.kind == "code" else 0
    return f" ({lines} lines)" if lines > 1 else " (1 line)" if lines else ""
