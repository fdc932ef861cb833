"""The records under some paths: which file each speaks of, where things lie now, and what is out of place."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from localized_unlearning.audit.runs import Configs, Run, run_of
from localized_unlearning.audit.words import plain, shown
from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError
from localized_unlearning.provenance import records
from localized_unlearning.provenance.records import Input, Record
from localized_unlearning.workflow import layout


@dataclass(frozen=True)
class Entry:
    """A record and the file it lies in (absolute path)."""

    place: Path
    record: Record

    @property
    def folder(self) -> Path:
        """The folder of the outputs."""
        return self.place.parent

    @property
    def outputs(self) -> list[Path]:
        """The outputs' paths."""
        return [self.folder / output.path for output in self.record.outputs]

    @property
    def run(self) -> str:
        """The name of its run, as the record gives it; empty where it gives none."""
        return layout.run_of(self.record.folder or "") or ""


class Index:
    """The records under some paths.

    Attributes:
        paths: files and folders that are asked about, absolute.
        root: the workflow's folder, absolute.
        configs: the configs of the runs.
    """

    def __init__(self, paths: Sequence[Path], root: Path, configs: Configs) -> None:
        self.paths, self.root, self.configs = paths, root, configs
        self.damaged: dict[Path, str] = {}
        self.entries = self._read()
        self._elsewhere: dict[Path, Entry | None] = {}
        self._runs: dict[Path, Run | None] = {}
        self._journals: dict[Path, dict[str, set[str]]] = {}
        for path in self.paths:
            if not os.path.lexists(path) and path not in self.by_output:
                raise UserError(
                    f"{shown(path)} does not exist and no record beside it names it: check the path"
                )

    def _read(self) -> dict[Path, Entry]:
        """The records under the audited paths and their runs, by the file they lie in."""
        found = {}
        for place in sorted({place for path in self.paths for place in self._around(path)}):
            if place.name.endswith(records.SUFFIX):
                try:
                    found[place] = Entry(place, records.read(place))
                except FileNotFoundError:
                    continue  # a job is replacing it now
                except UserError as error:
                    self.damaged[place] = str(error.__cause__ or error)
        return found

    def _around(self, path: Path) -> Iterable[Path]:
        """The files that may speak of ``path``: its run's, else a folder's; beside a lone file, its folder's own.

        A stray file may lie in a home folder, which is not to be searched.
        """
        run = run_of(path, self.root)
        if run is not None:
            return walk(next((f for f in run.folders if path.is_relative_to(f)), path))
        return walk(path) if path.is_dir() else path.parent.glob(f"*{records.SUFFIX}")

    @cached_property
    def claims(self) -> dict[Path, list[Entry]]:
        """The records that speak for each output: a person's adoption goes before a job's record."""
        found: dict[Path, list[Entry]] = {}
        for entry in sorted(self.entries.values(), key=lambda entry: entry.record.adopted is None):
            for path in entry.outputs:
                found.setdefault(path, []).append(entry)
        return found

    @cached_property
    def by_output(self) -> dict[Path, Entry]:
        """The record that counts for each output."""
        return {path: entries[0] for path, entries in self.claims.items()}

    def rivals(self, entry: Entry) -> list[Entry]:
        """Other records of the same kind, a job's or an adoption, that claim an output of this one."""
        return [
            other
            for path in entry.outputs
            for other in self.claims.get(path, ())
            if other is not entry and (other.record.adopted is None) == (entry.record.adopted is None)
        ]

    def producer(self, path: Path) -> Entry | None:
        """The record of the job that made a file, or the folder that holds it."""
        for candidate in (path, *path.parents):
            if candidate in self.by_output:
                return self.by_output[candidate]
        if path not in self._elsewhere:
            place = records.find(path)
            self._elsewhere[path] = Entry(place, records.read(place)) if place else None
        return self._elsewhere[path]

    def in_scope(self, path: Path) -> bool:
        """Whether a path was asked for."""
        return any(path == p or p in path.parents or path in p.parents for p in self.paths)

    # --- where things lie now

    @cached_property
    def moves(self) -> list[tuple[str, Path, float]]:
        """Where recorded folders lie now: (recorded prefix, folder, votes), most votes first.

        The audited files may be a copy. Each record says in which folder, seen from the workflow's, it
        was written; what differs from where it lies now tells where the copy is.
        """
        votes = Counter(move for entry in self.entries.values() if (move := _move(entry)))
        found = {**votes, ("", self.root): votes[("", self.root)] + 0.5}
        return [(*move, count) for move, count in sorted(found.items(), key=lambda item: -item[1])]

    def resolve(self, recorded: str) -> Path:
        """Where a file recorded as ``recorded``, relative to the workflow's folder, lies here."""
        places = [placed(prefix, folder, recorded) for prefix, folder, _ in self.moves]
        known = [place for place in places if place is not None]
        return next((place for place in known if os.path.lexists(place)), known[0])

    def recorded_folder(self, folder: Path) -> str | None:
        """What a record calls a folder that lies here; None for one outside the workflow's."""
        for prefix, place, _ in self.moves:
            if folder.is_relative_to(place):
                inner = folder.relative_to(place).as_posix()
                return "/".join(part for part in (prefix, inner) if part not in ("", ".")) or "."
        return None

    def run_of(self, entry: Entry) -> Run | None:
        """The run that an entry belongs to by its place."""
        if entry.folder not in self._runs:
            self._runs[entry.folder] = run_of(entry.place, self.root)
        return self._runs[entry.folder]

    def config_of(self, entry: Entry) -> Config | None:
        """The current config of an entry's run."""
        run = self.run_of(entry)
        return self.configs.of(entry.run or (run.name if run else ""), run)

    def locate(self, entry: Entry, given: Input) -> Path | None:
        """Where an input of a job lies here.

        One from outside the workflow's folder is recorded by its base name alone; the config says where it is, and
        a file of that name anywhere else is another. None when the config names no such file.
        """
        if given.outside:
            return self.configs.outside(given.path, self.config_of(entry))
        return self.resolve(given.path)

    def inputs(self, entry: Entry) -> list[tuple[Input, Path | None]]:
        """An entry's inputs and where they lie here."""
        return [(given, self.locate(entry, given)) for given in entry.record.inputs]

    def producers(self, entry: Entry) -> list[Entry]:
        """The records behind an entry's inputs, each once."""
        found = (self.producer(path) for _, path in self.inputs(entry) if path is not None)
        return list({producer.place: producer for producer in found if producer}.values())

    # --- what is out of place

    def misplaced(self, entry: Entry) -> str | None:
        """Why an entry is not where its job left it: by its file's name, its run's folder, and where the others are."""
        adopted = entry.record.adopted is not None
        own_place = (records.adoption_path if adopted else records.path_for)(entry.outputs[0])
        if own_place != entry.place:
            return f"its record was written as {own_place.name}"
        own, recorded = _move(entry), entry.record.folder
        if own is None or recorded is None:
            lies_in = self.run_of(entry)
            return (
                f"its record does not say that it was made in run {lies_in.name}, where it lies"
                if lies_in
                else None
            )
        own_votes = next((count for *move, count in self.moves if tuple(move) == own), 0.0)
        for prefix, folder, count in self.moves:
            place = placed(prefix, folder, recorded)
            if count > own_votes and place is not None and place != entry.folder:
                return f"it was made in {recorded} and has been moved or swapped"
        return self._in_another_run(entry) or _of_another_job(entry)

    def _in_another_run(self, entry: Entry) -> str | None:
        """Why a record of one run lies in another's folder, judged by the other records there."""
        run = self.run_of(entry)
        if run is None:
            return None
        names = self._names.get(run.results, Counter())
        commonest, count = names.most_common(1)[0] if names else (entry.run, 0)
        if entry.run != commonest and names[entry.run] < count:
            return f"its record says that it was made in {entry.record.folder}, not in run {commonest}"
        return None

    @cached_property
    def _names(self) -> dict[Path, Counter[str]]:
        """What the records in each run's folders call their run."""
        found: dict[Path, Counter[str]] = {}
        for entry in self.entries.values():
            if (run := self.run_of(entry)) is not None:
                found.setdefault(run.results, Counter())[entry.run] += 1
        return found

    def journal_of(self, entry: Entry) -> Path | None:
        """Where copies of the records that jobs wrote in an entry's run are kept, if they are here."""
        run = self.run_of(entry)
        folder = (
            None if run is None else next((f for f in run.folders if entry.place.is_relative_to(f)), None)
        )
        return records.journal(folder) if folder is not None and records.journal(folder).is_dir() else None

    def is_written_here(self, entry: Entry) -> bool:
        """Whether a job of the run is known to have written this very record."""
        return any(str(entry.record.id) in written for written in self._journal(entry).values())

    def is_planted(self, entry: Entry) -> bool:
        """Whether jobs of the run are known to have written records to an entry's place, but not this one."""
        place = records.mark(f"{entry.record.folder}/{entry.place.name}")
        written = self._journal(entry).get(place, set())
        return bool(written) and entry.record.adopted is None and entry.record.id not in written

    def _journal(self, entry: Entry) -> dict[str, set[str]]:
        journal = self.journal_of(entry)
        if journal is None:
            return {}
        if journal not in self._journals:
            self._journals[journal] = records.all_remembered(journal)
        return self._journals[journal]

    def files(self, run: Run) -> Iterator[Path]:
        """The record files of a run by their place, whatever they say."""
        for folder in run.folders:
            yield from (path for path in walk(folder) if path.name.endswith(records.SUFFIX))


def walk(folder: Path) -> Iterator[Path]:
    """Files under a folder, and links to folders, which are not followed.

    Hidden folders hold no artefacts, but a killed job's leftovers count as one.
    """
    for here, folders, files in os.walk(folder):
        yield from (Path(here, name) for name in folders if name.startswith(".tmp-"))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in folders if Path(here, name).is_symlink())
        yield from (Path(here, name) for name in sorted(files))


def _of_another_job(entry: Entry) -> str | None:
    """How the wildcards of a record differ from those in its outputs' place, as the layout reads them."""
    for output in entry.record.outputs:
        job = layout.Layout(entry.run).job(f"{entry.record.folder}/{output.path}")
        for name, value in job.named.items() if job else ():
            said = entry.record.wildcards.get(name, value)
            if said != value:
                return f"its record says {name} {plain(said)}, its place {name} {plain(value)}"
    return None


def _move(entry: Entry) -> tuple[str, Path] | None:
    """What an entry says about where things are: (recorded prefix, folder it became)."""
    if entry.record.folder is None:
        return None
    recorded, now = Path(entry.record.folder).parts, entry.folder.parts
    pairs = zip(reversed(recorded), reversed(now), strict=False)
    same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    return "/".join(recorded[: len(recorded) - same]), Path(*now[: len(now) - same])


def placed(prefix: str, folder: Path, recorded: str) -> Path | None:
    """``recorded`` under a move; None when the move does not speak of it."""
    if not prefix:
        return folder / recorded
    if recorded == prefix or recorded.startswith(prefix + "/"):
        return folder / recorded[len(prefix) + 1 :]
    return None
