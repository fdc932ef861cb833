"""The audit: are the files what their records say, and would they be made the same way now?

Two questions, answered apart. *Integrity*: the bytes match the record (ok, modified, missing,
unreadable, unrecorded, incomplete). *Currency*: the record matches what would be done now, its key recomputed
from the current config, code, lock and inputs (ok, stale, orphan, unknown). An orphan is a file
that the current config no longer asks for; unknown means that something needed for the answer is
not here, as in a results folder copied away from its workflow.

Nothing but the files is needed: no ``.snakemake``, no model, no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from localized_unlearning.audit.currency import Cause, Currency, Judge
from localized_unlearning.audit.index import Entry, Index, walk
from localized_unlearning.audit.integrity import Digests, Integrity
from localized_unlearning.audit.runs import SIGNED, TOPS, Configs, run_of
from localized_unlearning.audit.words import absolute
from localized_unlearning.jobs.job import Stage
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.provenance import locks, records

SIGNATURE = (SIGNED, f"{SIGNED}.sig")
"""Files of a run that no job makes and that speak for themselves."""


@dataclass(frozen=True)
class Finding:
    """What is known about one artefact.

    Attributes:
        path: the file or folder, absolute.
        integrity: ok, modified, missing, unreadable, unrecorded or incomplete.
        currency: ok, stale, orphan, unknown, or "-" where there is no record to judge.
        reasons: why it is not ok.
        entry: its record, where there is one.
        rests_on: adopted files that it was made from, itself included.
        causes: why it is not current.
    """

    path: Path
    integrity: str
    currency: str
    reasons: tuple[str, ...] = ()
    entry: Entry | None = None
    rests_on: tuple[Path, ...] = ()
    causes: tuple[Cause, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether there is nothing to look into."""
        return self.integrity == "ok" and self.currency in ("ok", "unknown")


class Audit:
    """The records under some paths and what can be said about them.

    Attributes:
        index: the records, and where things lie.
        integrity: whether bytes and records are what jobs made.
        judge: whether they would be made the same way now.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        root: Path,
        stages: Mapping[str, Stage] | None = None,
        configs: Sequence[Path] = (),
        quick: bool = False,
        progress: bool = False,
    ) -> None:
        """Read the records.

        Args:
            paths: files and folders to judge.
            root: the workflow's folder: config.yaml, envs/ and the inputs are looked for here.
            stages: the stage table; by default this project's.
            configs: config files to judge by instead of each run's own.
            quick: trust digests taken before of files that have not changed since.
            progress: show progress while hashing.
        """
        self.root, self.progress = absolute(root), progress
        self.configs = Configs(self.root, configs)
        self.digests = Digests(quick)
        self.index = Index([absolute(path) for path in paths], self.root, self.configs)
        self.integrity = Integrity(self.index, self.digests)
        self.judge = Judge(self.index, self.digests, STAGES if stages is None else stages)
        self._rests: dict[Path, tuple[Path, ...]] = {}

    @property
    def notes(self) -> list[str]:
        """What people should know about how the judgement was made."""
        return self.configs.notes

    def currency(self, entry: Entry) -> Currency:
        """Whether a job would be done the same way now."""
        return self.judge.of(entry)

    def take_digests(self, entries: Iterable[Entry]) -> None:
        """Read every file that ``entries`` speak of, in parallel."""
        paths = {path for entry in entries for path in entry.outputs}
        paths |= {path for entry in entries for _, path in self.index.inputs(entry) if path is not None}
        self.digests.take_all(paths, self.progress)

    def rests_on(self, entry: Entry) -> tuple[Path, ...]:
        """The adopted files that an entry was made from, itself included."""
        if entry.place not in self._rests:
            self._rests[entry.place] = ()
            found = dict.fromkeys(entry.outputs if entry.record.adopted else ())
            for producer in self.index.producers(entry):
                found |= dict.fromkeys(self.rests_on(producer))
            self._rests[entry.place] = tuple(found)
        return self._rests[entry.place]

    def findings(self) -> list[Finding]:
        """What is known about every artefact asked for, by path."""
        index = self.index
        scope = [e for e in index.entries.values() if any(map(index.in_scope, (*e.outputs, e.place)))]
        self.take_digests(scope)
        found = [
            self.finding(entry, output)
            for entry in scope
            for output in entry.record.outputs
            if index.by_output[entry.folder / output.path] is entry
            and index.in_scope(entry.folder / output.path)
        ]
        return sorted([*found, *self._without_record()], key=lambda finding: finding.path)

    def finding(self, entry: Entry, output: records.Output) -> Finding:
        """What is known about one output."""
        integrity, reasons = self.integrity.of(entry, output)
        currency = self.currency(entry)
        return Finding(
            entry.folder / output.path,
            integrity,
            currency.status,
            (*reasons, *(cause.text for cause in currency.causes), *currency.unknown),
            entry,
            self.rests_on(entry),
            currency.causes,
        )

    def _without_record(self) -> Iterator[Finding]:
        covered = set(self.index.by_output)
        paths = self.index.paths
        candidates = {file for path in paths for file in (walk(path) if path.is_dir() else [path])}
        for path in sorted(candidates):
            if path.name.startswith(".tmp-"):
                why = "a job is writing it now" if _is_written(path.parent) else "a killed job left it"
                yield Finding(path, "incomplete", "-", (why,))
            elif path in self.index.damaged:
                why = f"the record cannot be read: {self.index.damaged[path]}".splitlines()[0]
                yield Finding(path, "modified", "-", (why,))
            elif (
                os.path.lexists(path)
                and not path.name.startswith(".")
                and not (path.name.endswith(records.SUFFIX) and path in self.index.entries)
                and not self._is_allowed(path)
                and covered.isdisjoint((path, *path.parents))
            ):
                writing = _is_written(path.parent)
                reason = (
                    "a job is writing here now" if writing else "no record names it: it is of unknown origin"
                )
                yield Finding(path, "incomplete" if writing else "unrecorded", "-", (reason,))

    def _is_allowed(self, path: Path) -> bool:
        """Whether a file belongs where it lies although no job made it: a run's signature, the checkout's own README."""
        run = run_of(path, self.root)
        if run is not None and path.parent == run.results and path.name in SIGNATURE:
            return True
        return path.name == "README.md" and path.parent in [self.root / top for top in TOPS]


def _is_written(folder: Path) -> bool:
    """Whether a live job is writing into a folder."""
    return any(locks.is_held(folder / lock.name[1:-5]) for lock in folder.glob(".*.lock"))
