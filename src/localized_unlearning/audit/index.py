"""The audit: are the files what their records say, and would they be made the same way now?

Two questions, answered apart. *Integrity*: the bytes match the record (ok, modified, missing,
unrecorded, incomplete). *Currency*: the record matches what would be done now, its key recomputed
from the current config, code, lock and inputs (ok, stale, orphan, unknown). An orphan is a file
that the current config no longer asks for; unknown means that something needed for the answer is
not here, as in a results folder copied away from its workflow.

Nothing but the files is needed: no ``.snakemake``, no model, no torch.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from localized_unlearning.config import reading
from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.job import Stage, settings_of
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.provenance import code, digests, environment, hashing, locks, records
from localized_unlearning.provenance.records import Record
from localized_unlearning.workflow.graph import Graph
from localized_unlearning.workflow.layout import JobId, Layout

ADOPTED_STAGE = "adopted"

SIGNED = "signed.json"

BESIDE = frozenset({"config.yaml", "README.md", "report.html", SIGNED, f"{SIGNED}.sig"})
"""Files of a run that no stage makes."""

OF_CONFIG = {"task": "tasks", "objective": "objectives", "localization": "localizations", "scores": "scores"}

UNTRAINED = frozenset({"base", "none"})  # wildcard values that stand for the base model


@dataclass(frozen=True)
class Cause:
    """One reason why a job would be done differently now.

    Attributes:
        kind: setting, code, environment, input, stage, upstream or orphan.
        name: what changed, e.g. a dotted setting, a module or an input.
        text: one clause for people, e.g. "finetune.lambda_retain was 1.0, now 0.2".
        before: recorded value or digest.
        after: value or digest now; None when it is gone.
        path: the input's path, for kinds input and upstream.
    """

    kind: str
    name: str
    text: str
    before: Any = None
    after: Any = None
    path: Path | None = None


@dataclass(frozen=True)
class Currency:
    """Whether a job would be done the same way now: ok, stale, orphan or unknown, and why."""

    status: str
    causes: tuple[Cause, ...] = ()
    unknown: tuple[str, ...] = ()


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


@dataclass(frozen=True)
class Finding:
    """What is known about one artefact.

    Attributes:
        path: the file or folder, absolute.
        integrity: ok, modified, missing, unrecorded or incomplete.
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


@dataclass
class Audit:
    """The records under some paths and what can be said about them.

    Attributes:
        paths: files and folders to judge, absolute.
        root: the workflow's folder: config.yaml, envs/ and the inputs are looked for here.
        stages: the stage table.
        configs: config files to judge by instead of each run's own.
        quick: trust digests taken before of files that have not changed since.
        progress: show progress while hashing.
    """

    paths: Sequence[Path]
    root: Path
    stages: Mapping[str, Stage] = field(default_factory=lambda: STAGES)
    configs: Sequence[Path] = ()
    quick: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        self.root = absolute(self.root)
        self.paths = [absolute(path) for path in self.paths]
        for path in self.paths:
            if not os.path.lexists(path) and not any(
                path in entry.outputs for entry in self.entries.values()
            ):
                raise UserError(
                    f"{shown(path)} does not exist and no record beside it names it: check the path"
                )

    # --- the records

    @cached_property
    def notes(self) -> list[str]:
        """What people should know about how the judgement was made."""
        return []

    @cached_property
    def damaged(self) -> dict[Path, str]:
        """Record files that cannot be read, and why."""
        return {}

    @cached_property
    def entries(self) -> dict[Path, Entry]:
        """The records under the audited paths and their runs, by the file they lie in."""
        found = {}
        for place in sorted({place for path in self.paths for place in _around(path)}):
            if place.name.endswith(records.SUFFIX):
                try:
                    found[place] = Entry(place, records.read(place))
                except FileNotFoundError:
                    continue  # a job is replacing it now
                except UserError:
                    self.damaged[place] = "its record cannot be read"
        return found

    @cached_property
    def by_output(self) -> dict[Path, Entry]:
        """The record that speaks for each output: a person's adoption goes before a job's record."""
        ordered = sorted(self.entries.values(), key=lambda entry: entry.record.adopted is not None)
        return {path: entry for entry in ordered for path in entry.outputs}

    @cached_property
    def _elsewhere(self) -> dict[Path, Entry | None]:
        return {}

    def producer(self, path: Path) -> Entry | None:
        """The record of the job that made a file, or the folder that holds it."""
        for candidate in (path, *path.parents):
            if candidate in self.by_output:
                return self.by_output[candidate]
        if path not in self._elsewhere:
            place = records.find(path)
            self._elsewhere[path] = Entry(place, records.read(place)) if place else None
        return self._elsewhere[path]

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
        places = [_placed(prefix, folder, recorded) for prefix, folder, _ in self.moves]
        known = [place for place in places if place is not None]
        return next((place for place in known if os.path.lexists(place)), known[0])

    def recorded_folder(self, folder: Path) -> str | None:
        """What a record calls a folder that lies here; None for one outside the workflow's."""
        for prefix, place, _ in self.moves:
            if folder.is_relative_to(place):
                inner = folder.relative_to(place).as_posix()
                return "/".join(part for part in (prefix, inner) if part not in ("", ".")) or "."
        return None

    def is_misplaced(self, entry: Entry) -> str | None:
        """Why an entry is not where its job left it, judged by where the others are."""
        if records.path_for(entry.outputs[0]) != entry.place and entry.record.adopted is None:
            return f"its record was written as {records.path_for(entry.outputs[0]).name}"
        own, recorded = _move(entry), entry.record.folder
        if own is None or recorded is None:
            return None
        own_votes = next((count for *move, count in self.moves if tuple(move) == own), 0.0)
        for prefix, folder, count in self.moves:
            place = _placed(prefix, folder, recorded)
            if count > own_votes and place is not None and place != entry.folder:
                return f"it was made in {recorded} and has been moved or swapped"
        return None

    # --- digests

    @cached_property
    def _known(self) -> digests.Known:
        return digests.load(digests.cache_file())

    @cached_property
    def _taken(self) -> dict[Path, hashing.FileDigest]:
        return {}

    def digest(self, path: Path, advance: Callable[[int], object] | None = None) -> hashing.FileDigest:
        """The digest of one file, read at most once; ``advance`` is told how many bytes each part has."""
        if path not in self._taken:
            kept = digests.recall(self._known, path) if self.quick else None
            self._taken[path] = kept or hashing.digest(path, advance)
            if kept is None:
                digests.remember(self._known, path, self._taken[path])
        return self._taken[path]

    def tree(self, path: Path) -> dict[str, hashing.FileDigest]:
        """The digests of a file or a folder's files; empty when it does not exist."""
        return {name: self.digest(file) for name, file in hashing.files_of(path).items()}

    def hash_all(self, entries: Iterable[Entry]) -> None:
        """Read every file that ``entries`` speak of, in parallel, and keep the digests for later.

        A bar shows the bytes on a terminal when it takes longer than a second.
        """
        from tqdm import tqdm

        paths = {path for entry in entries for path in entry.outputs}
        paths |= {self.resolve(i.path) for entry in entries for i in entry.record.inputs}
        files = sorted(
            {file for path in paths for file in hashing.files_of(path).values()} - set(self._taken)
        )
        unread = [f for f in files if not (self.quick and digests.recall(self._known, f))]
        total = sum(file.stat().st_size for file in unread)
        with (
            tqdm(
                desc="hashing",
                total=total,
                unit="B",
                unit_scale=True,
                delay=1,
                leave=False,
                disable=not self.progress,
            ) as bar,
            ThreadPoolExecutor(hashing.THREADS) as pool,
        ):
            for future in [pool.submit(self.digest, file, bar.update) for file in files]:
                future.result()
        digests.save(digests.cache_file(), self._known)

    # --- integrity

    @cached_property
    def replaced(self) -> dict[Path, str]:
        """Records that others, made from the same file later, do not point to: they were exchanged."""
        found = {}
        for entry in self.entries.values():
            for i in entry.record.inputs:
                producer = self.producer(self.resolve(i.path))
                if producer is None or i.record is None or i.record == producer.record.id:
                    continue
                if (
                    producer.record.ended <= entry.record.started
                    and _digest_in(producer, self.resolve(i.path)) == i.sha256
                ):
                    found[producer.place] = (
                        f"its record is another one than {shown(entry.outputs[0])} was made from, though not newer"
                    )
        return found

    def record_faults(self, entry: Entry) -> list[str]:
        """What is wrong with a record itself."""
        faults = []
        if entry.record.id != records.record_id(entry.record) or entry.record.key != records.key_in(
            entry.record
        ):
            faults.append("its record was edited by hand: the record's id or key does not match its contents")
        elif misplaced := self.is_misplaced(entry):
            faults.append(misplaced)
        elif entry.place in self.replaced:
            faults.append(self.replaced[entry.place])
        return faults

    def integrity(self, entry: Entry, output: records.Output) -> tuple[str, list[str]]:
        """Whether an output's bytes match its record, and what differs."""
        path = entry.folder / output.path
        if locks.is_held(entry.outputs[0]):
            return "incomplete", ["a job is writing it now"]
        if not os.path.lexists(path):
            return "missing", ["its record names it, but it does not exist"]
        if path.is_symlink():
            return "modified", ["it is a symbolic link now, not the file that was made"]
        found, recorded = self.tree(path), {file.name: file.sha256 for file in output.files}
        faults = [
            f"{name or 'bytes'}: recorded {short(sha256)}, found {short(found[name].sha256) if name in found else 'none'}"
            for name, sha256 in recorded.items()
            if name not in found or found[name].sha256 != sha256
        ]
        faults += [f"{name or 'a file'} was added" for name in found if name not in recorded]
        faults += [
            f"{name} is a symbolic link now, not the file that was made"
            for name, file in hashing.files_of(path).items()
            if file.is_symlink()
        ]
        faults += self.record_faults(entry)
        return ("modified" if faults else "ok"), faults

    # --- currency

    @cached_property
    def _judged(self) -> dict[Path, Currency]:
        return {}

    def currency(self, entry: Entry) -> Currency:
        """Whether the job would be done the same way now."""
        if entry.place not in self._judged:
            self._judged[entry.place] = Currency("unknown", (), ("its records go in a circle",))
            self._judged[entry.place] = self._judge(entry)
        return self._judged[entry.place]

    def _judge(self, entry: Entry) -> Currency:
        if entry.record.adopted is not None:
            return Currency("ok")
        stage = self.stages.get(entry.record.stage)
        if stage is None:
            return Currency(
                "orphan",
                (Cause("orphan", entry.record.stage, f"there is no stage {entry.record.stage} now"),),
            )
        unknown: list[str] = []
        if (other := _other_wildcards(stage, entry.record)) is not None:
            return Currency("stale", (other,))
        config = self.config_of(entry)
        if config is None:
            unknown.append("the run's config is not here")
        else:
            orphan = _orphan(config, stage, entry.record.wildcards)
            if orphan:
                return Currency("orphan", (orphan,))
        causes = [
            *(_setting_causes(config, stage, entry.record) if config else ()),
            *_code_causes(stage, entry.record, self.closure(stage)),
            *self._environment_causes(entry.record, unknown),
            *self._input_causes(entry, unknown),
        ]
        status = "stale" if causes else "unknown" if unknown else "ok"
        return Currency(status, tuple(causes), tuple(unknown))

    @cached_property
    def _configs(self) -> dict[str, Config | None]:
        return {}

    def config_of(self, entry: Entry) -> Config | None:
        """The current config of an entry's run.

        It is what the workflow resolved last, beside the results; the workflow's ``config.yaml`` goes on
        top when it is of the same run, so that an edit counts before the workflow has seen it.
        """
        parts = (entry.record.folder or "").split("/")
        run = parts[1] if len(parts) > 1 else ""
        if run not in self._configs:
            self._configs[run] = self._load_config(run)
        return self._configs[run]

    def _load_config(self, run: str) -> Config | None:
        if self.configs:
            return reading.load(self.configs)
        default = self.root / "config.yaml"
        layers = [self.resolve(Layout(run).resolved)] if run else []
        if default.is_file() and reading.read_yaml(default).get("run", Config().run) == run:
            layers.append(default)
        layers = [path for path in layers if path.is_file()]
        loaded = reading.load(layers) if layers else None
        if len(layers) > 1 and loaded != reading.load(layers[:1]):
            self.notes.append(
                f"config.yaml differs from {shown(layers[0])}, by which run {run} was last made: judged by config.yaml; "
                f"--config {shown(layers[0])} judges by the other"
            )
        return loaded

    @cached_property
    def _closures(self) -> dict[str, dict[str, str]]:
        return {}

    def closure(self, stage: Stage) -> dict[str, str]:
        """The code of a stage as it is now."""
        if stage.module not in self._closures:
            self._closures[stage.module] = code.closure(stage.module)
        return self._closures[stage.module]

    @cached_property
    def _installed(self) -> dict[str, str]:
        return environment.versions()

    @cached_property
    def _fitting_lock(self) -> str | None:
        return environment.lock_name(self.root)

    @cached_property
    def _locks(self) -> dict[str | None, tuple[str | None, list[str] | None]]:
        return {None: (None, None)}

    def lock(self, name: str | None) -> tuple[str | None, list[str] | None]:
        """Digest and lines of a lock in ``envs``; nothing for one that does not exist."""
        if name is not None and name not in self._locks:
            lines = environment.lock_lines(self.root, name)
            self._locks[name] = environment.lock_digest(self.root, name), lines
        return self._locks[name]

    def _environment_causes(self, record: Record, unknown: list[str]) -> Iterator[Cause]:
        fits = self._fitting_lock
        if record.lock is not None and not (self.root / "envs").is_dir():
            unknown.append("the environment's lock is not here")
            return
        name = record.lock_name or fits
        lock, lines = self.lock(name)
        if record.lock != lock:
            what = "changed" if record.lock and lock else "is new" if lock else "is gone"
            text = f"the environment's lock envs/{name} {what}"
            yield Cause("environment", f"envs/{name}", text, record.lock, lock)
        installed = self._installed if fits == record.lock_name else {}
        versions = {package: installed.get(package, version) for package, version in record.versions.items()}
        now = environment.deviations(versions, lines)
        for package in sorted(record.deviations.keys() | now.keys()):
            if record.deviations.get(package) == now.get(package):
                continue
            before, after = record.versions.get(package), versions.get(package)
            text = f"{package} was {before}, now {after}"
            if before == after:
                text = f"{package} {after} is not what the lock states"
            yield Cause("environment", package, text, before, after)

    def _input_causes(self, entry: Entry, unknown: list[str]) -> Iterator[Cause]:
        for i in entry.record.inputs:
            path = self.resolve(i.path)
            producer = self.producer(path)
            found = hashing.combined(self.tree(path)) if path.exists() else None
            if found is None and producer is not None:
                found = _digest_in(producer, path)  # an intermediate that was removed
            if found is None and not self._should_be_here(i.path):
                unknown.append(f"input {i.path} is not here")
            elif found is None:
                yield Cause("input", i.name, f"input {i.path} is missing", i.sha256, None, path)
            elif found != i.sha256:
                text = f"input {i.path}: recorded {short(i.sha256)}, found {short(found)}"
                yield Cause("input", i.name, text, i.sha256, found, path)
            elif producer is not None:
                above = self.currency(producer)
                if above.status in ("stale", "orphan"):
                    yield Cause("upstream", i.name, f"its input {i.path} is {above.status}", path=path)
                unknown += [reason for reason in above.unknown if reason not in unknown]

    def _should_be_here(self, recorded: str) -> bool:
        """Whether a missing input's absence means something: the folder it belongs to is here."""
        parts = Path(recorded).parts
        return any(
            place is not None and len(parts) > 1 and (place.parent.is_dir() or (folder / parts[0]).is_dir())
            for prefix, folder, _ in self.moves
            for place in (_placed(prefix, folder, recorded),)
        )

    # --- all together

    @cached_property
    def _rests(self) -> dict[Path, tuple[Path, ...]]:
        return {}

    def rests_on(self, entry: Entry) -> tuple[Path, ...]:
        """The adopted files that an entry was made from, itself included."""
        if entry.place not in self._rests:
            self._rests[entry.place] = ()
            found = dict.fromkeys(entry.outputs if entry.record.adopted else ())
            for producer in self.producers(entry):
                found |= dict.fromkeys(self.rests_on(producer))
            self._rests[entry.place] = tuple(found)
        return self._rests[entry.place]

    def producers(self, entry: Entry) -> list[Entry]:
        """The records behind an entry's inputs, each once."""
        found = (self.producer(self.resolve(i.path)) for i in entry.record.inputs)
        return list({producer.place: producer for producer in found if producer}.values())

    def in_scope(self, path: Path) -> bool:
        """Whether a path was asked for."""
        return any(path == p or p in path.parents or path in p.parents for p in self.paths)

    def findings(self) -> list[Finding]:
        """What is known about every artefact asked for, by path."""
        scope = [e for e in self.entries.values() if any(map(self.in_scope, (*e.outputs, e.place)))]
        self.hash_all(scope)
        found = [
            self.judge(entry, output)
            for entry in scope
            for output in entry.record.outputs
            if self.by_output[entry.folder / output.path] is entry
            and self.in_scope(entry.folder / output.path)
        ]
        return sorted([*found, *self._without_record()], key=lambda finding: finding.path)

    def judge(self, entry: Entry, output: records.Output) -> Finding:
        """What is known about one output."""
        integrity, reasons = self.integrity(entry, output)
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
        covered = set(self.by_output)
        candidates = {file for path in self.paths for file in (_walk(path) if path.is_dir() else [path])}
        for path in sorted(candidates):
            if path.name.startswith(".tmp-"):
                why = "a job is writing it now" if _is_written(path.parent) else "a killed job left it"
                yield Finding(path, "incomplete", "-", (why,))
            elif path in self.damaged:
                yield Finding(path, "modified", "-", ("the record cannot be read",))
            elif (
                os.path.lexists(path)
                and not path.name.startswith(".")
                and not path.name.endswith(records.SUFFIX)
                and path.name not in BESIDE
                and covered.isdisjoint((path, *path.parents))
            ):
                writing = _is_written(path.parent)
                reason = (
                    "a job is writing here now" if writing else "no record names it: it is of unknown origin"
                )
                yield Finding(path, "incomplete" if writing else "unrecorded", "-", (reason,))


# --- helpers


def absolute(path: Path) -> Path:
    """``path`` made absolute, links kept."""
    return Path(os.path.abspath(path))


def shown(path: Path) -> str:
    """``path`` as people read it: relative to the current folder where that is shorter."""
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else str(path)


def short(sha256: str) -> str:
    """The first digits of a digest."""
    return f"{sha256[:8]}.."


def _walk(folder: Path) -> Iterator[Path]:
    """Files under a folder; hidden folders hold no artefacts, but a killed job's leftovers count as one."""
    for here, folders, files in os.walk(folder):
        yield from (Path(here, name) for name in folders if name.startswith(".tmp-"))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in sorted(files))


def _around(path: Path) -> Iterable[Path]:
    """The files that may speak of ``path``: those of its run, else of a folder; beside a lone file, its folder's own.

    A stray file may lie in a home folder, which is not to be searched.
    """
    folder = path if path.is_dir() else path.parent
    run = _run_folder(folder)
    if path.is_dir() or (run / ".sources").is_dir():
        return _walk(run)
    return folder.glob(f"*{records.SUFFIX}")


def _is_written(folder: Path) -> bool:
    """Whether a live job is writing into a folder."""
    return any(locks.is_held(folder / lock.name[1:-5]) for lock in folder.glob(".*.lock"))


def _run_folder(folder: Path) -> Path:
    """The run's folder around an audited one; it keeps the sources. Else the folder itself."""
    return next((f for f in (folder, *folder.parents) if (f / ".sources").is_dir()), folder)


def _move(entry: Entry) -> tuple[str, Path] | None:
    """What an entry says about where things are: (recorded prefix, folder it became)."""
    if entry.record.folder is None:
        return None
    recorded, now = Path(entry.record.folder).parts, entry.folder.parts
    pairs = zip(reversed(recorded), reversed(now), strict=False)
    same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    return "/".join(recorded[: len(recorded) - same]), Path(*now[: len(now) - same])


def _placed(prefix: str, folder: Path, recorded: str) -> Path | None:
    """``recorded`` under a move; None when the move does not speak of it."""
    if not prefix:
        return folder / recorded
    if recorded == prefix or recorded.startswith(prefix + "/"):
        return folder / recorded[len(prefix) + 1 :]
    return None


def _digest_in(entry: Entry, path: Path) -> str | None:
    return records.digest_in(entry.record, entry.folder, path)


def _other_wildcards(stage: Stage, record: Record) -> Cause | None:
    """Whether the stage takes other wildcards now, so that this very job cannot be run any more."""
    before, now = sorted(record.wildcards), sorted(stage.wildcards)
    if before == now:
        return None
    text = f"stage {stage.name} took the wildcards {say(before)}, now {say(now)}"
    return Cause("stage", stage.name, text, before, now)


def _orphan(config: Config, stage: Stage, wildcards: Mapping[str, str]) -> Cause | None:
    """Why the config no longer asks for a job, if it does not."""
    for name, value in wildcards.items():
        section = OF_CONFIG.get(name)
        if section and value not in UNTRAINED and value not in getattr(config, section):
            return Cause("orphan", name, f"the config has no {section}.{value} now", value)
    if not Graph(config).has(JobId(stage.name, tuple(sorted(wildcards.items())))):
        seeds = {name: wildcards[name] for name in ("base_seed", "seed") if name in wildcards}
        said = " and ".join(f"{name} {value}" for name, value in seeds.items())
        return Cause(
            "orphan",
            "seed",
            f"the config asks for no {stage.name} with {said or 'these wildcards'} now",
            said,
        )
    try:
        settings_of(config, stage, wildcards)
    except UserError as error:
        return Cause("orphan", stage.name, str(error))
    return None


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping by dotted path."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    return {
        path: leaf
        for name, inner in value.items()
        for path, leaf in flat(inner, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Names whose values differ: (name, before, after), None where it is absent."""
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in before or name not in after or not _same(before[name], after[name]):
            yield name, before.get(name), after.get(name)


def _same(one: Any, other: Any) -> bool:
    return records.canonical(one) == records.canonical(other)


def _setting_causes(config: Config, stage: Stage, record: Record) -> Iterator[Cause]:
    before, after = flat(record.settings), flat(settings_of(config, stage, record.wildcards))
    for name, old, new in changes(before, after):
        if name not in before:
            text = f"{name} is new, {say(new)}"
        elif name not in after:
            text = f"{name} was {say(old)}, now it is not there"
        else:
            text = f"{name} was {say(old)}, now {say(new)}"
        yield Cause("setting", name, text, old, new)


def say(value: Any) -> str:
    """A setting's value in words of YAML."""
    return records.canonical(value) if not isinstance(value, str) else value


def _code_causes(stage: Stage, record: Record, modules: Mapping[str, str]) -> Iterator[Cause]:
    function = f"{stage.module}:{stage.function}"
    if record.function is not None and record.function != function:
        yield Cause(
            "stage",
            stage.name,
            f"stage {stage.name} was {record.function}, now {function}",
            record.function,
            function,
        )
    for module, old, new in changes(record.code, modules):
        what = "is used now" if old is None else "is not used any more" if new is None else "changed"
        yield Cause("code", module, f"{module.partition('.')[2] or module}.py {what}", old, new)
