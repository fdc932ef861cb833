"""What to type so that Snakemake makes right what the audit found, or takes over what the audit found right."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from localized_unlearning.audit.explain import is_whole, to_rerun
from localized_unlearning.audit.findings import Audit, Finding
from localized_unlearning.audit.index import Entry
from localized_unlearning.audit.words import shown
from localized_unlearning.errors import UserError
from localized_unlearning.provenance import pages
from localized_unlearning.workflow.layout import RESOLVED, RULES

FEW = 6  # files that a line names one by one; of more it names the rules


def lines(audit: Audit, findings: Iterable[Finding]) -> list[str]:
    """The Snakemake line for each run that makes again whatever is not as it should be; none where nothing would.

    Snakemake sees changed settings, code and environments itself; an edited or foreign file only the audit knows,
    so the line names the jobs that have to run whatever Snakemake thinks of them.
    """
    runs: dict[str, dict[Path, Entry]] = {}
    for finding in findings:
        entry = finding.entry
        if (
            finding.clean
            or entry is None
            or finding.currency == "orphan"
            or finding.integrity == "incomplete"
        ):
            continue
        if entry.record.stage not in pages.STAGES:
            runs.setdefault(entry.run, {}).update({job.place: job for job in to_rerun(audit, entry)})
    return [_line(audit, jobs) for run, jobs in runs.items() if run and jobs]


def _line(audit: Audit, jobs: dict[Path, Entry]) -> str:
    first = [job for job in jobs.values() if not is_whole(audit, job) or _has_own_cause(audit, job, jobs)]
    read = {producer.place for job in jobs.values() for producer in audit.index.producers(job)}
    last = [job for place, job in jobs.items() if place not in read]
    words = ["snakemake", "--cores", "1", *_names(audit, last, rules=False), *_configfile(audit, last[0])]
    return shlex.join([*words, "--forcerun", *_names(audit, first, rules=True)])


def _has_own_cause(audit: Audit, job: Entry, jobs: dict[Path, Entry]) -> bool:
    """Whether a job has a reason to run besides inputs that others of these jobs make again."""
    return any(
        cause.kind != "upstream" and not (cause.path and _maker(audit, cause.path) in jobs)
        for cause in audit.currency(job).causes
    )


def _maker(audit: Audit, path: Path) -> Path | None:
    producer = audit.index.producer(path)
    return producer.place if producer else None


def _names(audit: Audit, jobs: Sequence[Entry], rules: bool) -> list[str]:
    """Jobs by their first outputs; many of them by their rules, or as targets by ``all``."""
    if len(jobs) <= FEW:
        return [shown(job.outputs[0]) for job in jobs]
    if not rules:
        return ["all"]
    fetched = [shown(job.outputs[0]) for job in jobs if job.record.stage == "fetch"]  # by one of two rules
    stages = dict.fromkeys(job.record.stage for job in jobs if job.record.stage != "fetch")
    return [*(RULES.get(stage, stage) for stage in stages), *fetched]


def _configfile(audit: Audit, entry: Entry) -> list[str]:
    """``--configfile`` with a run's resolved config; nothing where it is the run of ``config.yaml``."""
    run = audit.index.run_of(entry)
    if run is None or audit.configs.is_default(entry.run):
        return []
    return ["--configfile", shown(run.results / RESOLVED)]


def take_over(audit: Audit) -> list[str]:
    """Tell Snakemake that results carried here are current, so that it does not make them again; returns their runs.

    Snakemake goes by times of files, which a copy jumbles, and by its own notes of each job's settings, code and
    environment, which a copy lacks; ``snakemake --touch`` makes both. It is asked to only where every file is what its
    record says and would be made the same way now.

    Raises:
        UserError: when that is not so, or Snakemake refuses.
    """
    findings = audit.findings()
    faults = [f for f in findings if not f.clean or f.currency == "unknown"]
    if faults:
        raise UserError(
            f"{shown(faults[0].path)} is {faults[0].integrity}, {faults[0].currency} "
            f"({(faults[0].reasons or ('',))[0]}): only what is intact and current is taken over; see "
            "'localized-unlearning audit verify'"
        )
    runs: dict[str, list[Entry]] = {}
    for finding in findings:
        if (
            finding.entry
            and finding.entry.record.adopted is None
            and finding.entry.record.stage not in pages.STAGES
        ):
            runs.setdefault(finding.entry.run, []).append(finding.entry)
    for entries in runs.values():
        outputs = dict.fromkeys(shown(path) for entry in entries for path in entry.outputs)
        # of jobs that it would not run Snakemake keeps no params, and then sees no change of them later
        words = ["-m", "snakemake", "--touch", "--forceall", "--cores", "1"]
        words += [*outputs, *_configfile(audit, entries[0])]
        done = subprocess.run(
            [sys.executable, *words], cwd=audit.root, capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
            raise UserError(f"snakemake --touch ended with status {done.returncode}: {said[-1]}")
    return sorted(runs)
