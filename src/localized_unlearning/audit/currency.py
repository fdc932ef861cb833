"""Currency: would a job be done the same way now, by the current config, code, environment and inputs?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from localized_unlearning.audit.index import Entry, Index, placed
from localized_unlearning.audit.integrity import Digests
from localized_unlearning.audit.words import changes, flat, say, short
from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.job import Stage, settings_of
from localized_unlearning.provenance import code, environment, hashing, pages, records
from localized_unlearning.provenance.records import Record
from localized_unlearning.workflow.graph import Graph
from localized_unlearning.workflow.layout import JobId


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


class Judge:
    """Judges jobs, each once, with all that they were made from.

    Attributes:
        index: the records.
        digests: of the inputs as they are now.
        stages: the stage table.
    """

    def __init__(self, index: Index, taken: Digests, stages: Mapping[str, Stage]) -> None:
        self.index, self.digests, self.stages = index, taken, stages
        self._judged: dict[Path, Currency] = {}
        self._closures: dict[str, dict[str, str]] = {}
        self._locks: dict[str | None, tuple[str | None, list[str] | None]] = {None: (None, None)}

    def of(self, entry: Entry) -> Currency:
        """Whether the job would be done the same way now."""
        if entry.place not in self._judged:
            self._judged[entry.place] = Currency("unknown", (), ("its records go in a circle",))
            self._judged[entry.place] = self._judge(entry)
        return self._judged[entry.place]

    def _judge(self, entry: Entry) -> Currency:
        if entry.record.adopted is not None:
            return Currency("ok")
        unknown: list[str] = []
        if entry.record.stage in pages.STAGES:
            causes = tuple(self._input_causes(entry, unknown))
            return Currency("stale" if causes else "unknown" if unknown else "ok", causes, tuple(unknown))
        stage = self.stages.get(entry.record.stage)
        if stage is None:
            text = f"there is no stage {entry.record.stage} now"
            return Currency("orphan", (Cause("orphan", entry.record.stage, text),))
        if (other := _other_wildcards(stage, entry.record)) is not None:
            return Currency("stale", (other,))
        config = self.index.config_of(entry)
        if config is None:
            unknown.append("the run's config is not here")
        elif orphan := _orphan(config, stage, entry.record.wildcards):
            return Currency("orphan", (orphan,))
        found = [
            *(_setting_causes(config, stage, entry.record) if config else ()),
            *_code_causes(stage, entry.record, self.closure(stage)),
            *self._environment_causes(entry.record, unknown),
            *self._input_causes(entry, unknown),
        ]
        status = "stale" if found else "unknown" if unknown else "ok"
        return Currency(status, tuple(found), tuple(unknown))

    def closure(self, stage: Stage) -> dict[str, str]:
        """The code of a stage as it is now."""
        if stage.module not in self._closures:
            self._closures[stage.module] = code.closure(stage.module)
        return self._closures[stage.module]

    # --- environment

    @cached_property
    def _installed(self) -> dict[str, str]:
        return environment.versions()

    @cached_property
    def _fitting_lock(self) -> str | None:
        return environment.lock_name(self.index.root)

    def lock(self, name: str | None) -> tuple[str | None, list[str] | None]:
        """Digest and lines of a lock in ``envs``; nothing for one that does not exist."""
        if name is not None and name not in self._locks:
            lines = environment.lock_lines(self.index.root, name)
            self._locks[name] = environment.lock_digest(self.index.root, name), lines
        return self._locks[name]

    def _environment_causes(self, record: Record, unknown: list[str]) -> Iterator[Cause]:
        fits = self._fitting_lock
        if record.lock is not None and not (self.index.root / "envs").is_dir():
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

    # --- inputs

    def _input_causes(self, entry: Entry, unknown: list[str]) -> Iterator[Cause]:
        for given, path in self.index.inputs(entry):
            if path is None:
                unknown.append(
                    f"input {given.path} lies outside this folder, and the config names no such file"
                )
                continue
            producer = self.index.producer(path)
            try:
                found = hashing.combined(self.digests.tree(path)) if path.exists() else None
            except OSError as error:
                unknown.append(f"input {given.path} cannot be read ({error.strerror or error})")
                continue
            if found is None and producer is not None:  # an intermediate that was removed
                found = records.digest_in(producer.record, producer.folder, path)
            if found is None and not self._should_be_here(given):
                unknown.append(f"input {given.path} is not here")
            elif found is None:
                text = f"input {given.path} is missing"
                yield Cause("input", given.name, text, given.sha256, None, path)
            elif found != given.sha256:
                text = f"input {given.path}: recorded {short(given.sha256)}, found {short(found)}"
                yield Cause("input", given.name, text, given.sha256, found, path)
            elif producer is not None:
                above = self.of(producer)
                if above.status in ("stale", "orphan"):
                    text = f"its input {given.path} is {above.status}"
                    yield Cause("upstream", given.name, text, path=path)
                unknown += [reason for reason in above.unknown if reason not in unknown]

    def _should_be_here(self, given: records.Input) -> bool:
        """Whether a missing input's absence means something: the folder it belongs to is here."""
        parts = Path(given.path).parts
        return not given.outside and any(
            place is not None and len(parts) > 1 and (place.parent.is_dir() or (folder / parts[0]).is_dir())
            for prefix, folder, _ in self.index.moves
            for place in (placed(prefix, folder, given.path),)
        )


OF_CONFIG = {"task": "tasks", "objective": "objectives", "localization": "localizations", "scores": "scores"}
UNTRAINED = frozenset(
    {"base", "gold", "none"}
)  # wildcard values that stand for models that nothing was unlearned from


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
        text = f"the config asks for no {stage.name} with {said or 'these wildcards'} now"
        return Cause("orphan", "seed", text, said)
    try:
        settings_of(config, stage, wildcards)
    except UserError as error:
        return Cause("orphan", stage.name, str(error))
    return None


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


def _code_causes(stage: Stage, record: Record, modules: Mapping[str, str]) -> Iterator[Cause]:
    function = f"{stage.module}:{stage.function}"
    if record.function is not None and record.function != function:
        text = f"stage {stage.name} was {record.function}, now {function}"
        yield Cause("stage", stage.name, text, record.function, function)
    for module, old, new in changes(record.code, modules):
        what = "is used now" if old is None else "is not used any more" if new is None else "changed"
        yield Cause("code", module, f"{module.partition('.')[2] or module}.py {what}", old, new)
