"""Runs one job: checks its inputs, calls the stage, publishes outputs and record.

Outputs are written under temporary names in their own folder and renamed when the stage has
finished, so that an interrupted job leaves nothing half-written. The record comes last: outputs
without one are not to be trusted. A lock file beside the outputs keeps two live jobs from writing
the same ones.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localized_unlearning import memory as memory_module
from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError
from localized_unlearning.jobs import room
from localized_unlearning.jobs.job import Job, Stage, restrict, settings_of
from localized_unlearning.models import sharding
from localized_unlearning.provenance import cache, code, digests, environment, hashing, locks, records
from localized_unlearning.workflow.layout import Layout

Paths = Mapping[str, Any]

COMMENT = {".md": "\n<!-- key: {} -->\n", ".tex": "% key: {}\n"}
"""How a text that people copy away carries its job's key; figures carry it in their metadata, and what has no room
for it, such as a CSV, is known by its bytes."""


@dataclass(frozen=True)
class _Basis:
    """What a job's key is made of, taken before the job starts."""

    settings: dict[str, Any]
    modules: dict[str, str]
    lock_name: str | None
    lock: str | None
    versions: dict[str, str]
    deviations: dict[str, str]
    inputs: tuple[records.Input, ...]
    files: dict[str, dict[str, str]]
    key: str


def execute(
    stage: Stage,
    config: Config,
    wildcards: Mapping[str, str],
    inputs: Paths,
    outputs: Mapping[str, Path],
    root: Path,
    compute: bool = True,
) -> records.Record | None:
    """Run one job, or restore it from the cache that the config names, and return its record.

    Args:
        stage: what to run.
        config: the whole config; the stage sees its part.
        wildcards: wildcard values.
        inputs: path or list of paths by name; None for an absent optional input.
        outputs: path by name, all in one folder.
        root: folder that recorded input paths are relative to.
        compute: whether to run the stage when the cache has no such job; if not, None is returned.

    Raises:
        UserError: for a missing input, an input that is not what its record says, an output another
            live job is writing, a full disk, or a fault that the stage reports.
    """
    started, before = datetime.now(UTC), memory_module.resident()
    flat = [(name, path) for name, value in inputs.items() for path in _as_list(value)]
    for name, path in flat:
        if not path.exists():
            raise UserError(f"input {name} of stage {stage.name} does not exist: {path}; make it first")
    first = next(iter(outputs.values()))
    if any(path.parent != first.parent for path in outputs.values()):
        raise UserError(f"the outputs of stage {stage.name} must lie in one folder, beside their record")
    first.parent.mkdir(parents=True, exist_ok=True)
    with locks.held(first), _signals(_stop):
        temporary = {name: _temporary(path) for name, path in outputs.items()}
        try:
            for path in outputs.values():
                _sweep(path)
            basis = _basis(stage, config, wildcards, flat, root)
            job = Job(
                stage,
                restrict(config, stage, wildcards),
                wildcards,
                inputs,
                temporary,
                basis.key,
                basis.files,
            )
            store = cache.of(config) if stage.cached else None
            kept = store.restore(basis.key, temporary) if store else None
            if kept is None and not compute:
                return None
            memory = None if kept else _compute(job, before)
            _keep_sources(basis.modules, root / Layout(config.run).sources)
            record = _record(job, basis, outputs, root, started, memory, kept)
            if not locks.still_mine(first):
                raise UserError(
                    f"another job took over {first} while this one stood still: nothing was published"
                )
            with _signals(_ignore):  # renaming takes a moment and is not to be cut in two
                _publish(record, temporary, outputs)
            if store is not None and kept is None:
                store.keep(record, outputs)
            return record
        except Exception as error:
            if sentence := room.exhausted(error, stage.name):
                raise UserError(sentence) from error
            if _disk_is_full(error):
                free = shutil.disk_usage(first.parent).free / 1e9
                raise UserError(
                    f"the disk is full while writing {first}: free more than {free:.1f} GB and rerun"
                ) from error
            raise
        finally:
            for path in temporary.values():
                cache.remove(path)


def _compute(job: Job, before: float | None) -> dict[str, float] | None:
    """Call the stage, in several processes where its model is sharded, and check that it has written every output.

    Returns its memory; ``before`` is what this process held at the start.
    """
    function = getattr(importlib.import_module(job.stage.module), job.stage.function)
    shards = job.config.compute.shards if job.stage.gpu else 1
    if shards > 1:
        memory = sharding.run(job, function, shards)
    else:
        function(job)
        memory = memory_module.peak_memory(before)
    if str(job.facts.get("device", "")).startswith("cuda"):
        job.facts["precision"] = job.config.compute.precision
    for name, path in job.outputs.items():
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            raise RuntimeError(f"stage {job.stage.name} did not write its output '{name}'")
        if path.suffix in COMMENT:
            with path.open("a", encoding="utf-8") as stream:
                stream.write(COMMENT[path.suffix].format(job.key))
    return memory


def _as_list(value: Any) -> list[Path]:
    if value is None:
        return []
    return [value] if isinstance(value, Path) else list(value)


def _basis(
    stage: Stage, config: Config, wildcards: Mapping[str, str], flat: list[tuple[str, Path]], root: Path
) -> _Basis:
    settings = settings_of(config, stage, wildcards)
    modules = code.closure(stage.module)
    lock_name = environment.lock_name(root)
    lock = environment.lock_digest(root, lock_name) if lock_name else None
    versions = environment.versions()
    deviations = environment.deviations(
        versions, environment.lock_lines(root, lock_name) if lock_name else None
    )
    trees = [digests.digest_tree(path) for _, path in flat]
    inputs = tuple(_input(name, path, tree, root) for (name, path), tree in zip(flat, trees, strict=True))
    files = {
        name: {file: d.sha256 for file, d in tree.items()}
        for (name, _), tree in zip(flat, trees, strict=True)
    }
    key = records.key_of(
        stage.name, _function(stage), settings, wildcards, code.code_digest(modules), lock, deviations,
        [(i.name, i.sha256) for i in inputs],
    )  # fmt: skip
    return _Basis(settings, modules, lock_name, lock, versions, deviations, inputs, files, key)


def _function(stage: Stage) -> str:
    return f"{stage.module}:{stage.function}"


def _input(name: str, path: Path, tree: dict[str, hashing.FileDigest], root: Path) -> records.Input:
    """An input's digest, by those of its files, and the record that made it.

    Raises:
        UserError: when the file is no longer what that record says.
    """
    sha256 = hashing.combined(tree)
    place = records.find(path)
    made_by = None
    if place is not None:
        record = records.read(place)
        if records.digest_in(record, place.parent, path) != sha256:
            raise UserError(
                f"input {path} was changed after stage {record.stage} made it, as its record {place.name} "
                "tells: delete it and rerun, or take it in with 'localized-unlearning audit adopt'"
            )
        made_by = records.record_id(record)
    size = sum(file.size for file in tree.values())
    return records.Input(
        name=name, path=_relative(path, root) or path.name, size=size, sha256=sha256, record=made_by
    )


def _tree(job: Job, name: str) -> dict[str, hashing.FileDigest]:
    """The digests of an output's files; one that was taken while the file was written is not taken again."""
    path = job.outputs[name]
    if name in job.written and path.suffix not in COMMENT:
        return {"": hashing.FileDigest(path.stat().st_size, job.written[name])}
    return hashing.digest_tree(path)


def _record(
    job: Job,
    basis: _Basis,
    outputs: Mapping[str, Path],
    root: Path,
    started: datetime,
    memory: dict[str, float] | None,
    kept: records.Record | None,
) -> records.Record:
    ended = datetime.now(UTC)
    written = []
    for name, target in outputs.items():
        tree = _tree(job, name)
        files = tuple(records.File(name=n, size=d.size, sha256=d.sha256) for n, d in tree.items())
        written.append(
            records.Output(name=name, path=target.name, sha256=hashing.combined(tree), files=files)
        )
    record = records.Record(
        stage=job.stage.name,
        function=_function(job.stage),
        key=basis.key,
        folder=_relative(next(iter(outputs.values())).parent, root),
        wildcards=dict(job.wildcards),
        settings=basis.settings,
        code=basis.modules,
        code_digest=code.code_digest(basis.modules),
        lock=basis.lock,
        lock_name=basis.lock_name,
        deviations=basis.deviations,
        versions=basis.versions,
        inputs=basis.inputs,
        outputs=tuple(written),
        facts=kept.facts if kept else json.loads(json.dumps(job.facts)),
        commit=environment.commit(),
        host=environment.host(),
        started=started.isoformat(timespec="milliseconds"),
        ended=ended.isoformat(timespec="milliseconds"),
        seconds=round((ended - started).total_seconds(), 3),
        memory=memory,
        attempt=int(os.environ.get("LOCALIZED_UNLEARNING_ATTEMPT", "1")),
        restored=_restored(kept) if kept else None,
    )
    return record.model_copy(update={"id": records.record_id(record)})


def _restored(kept: records.Record) -> records.Restored:
    return records.Restored(
        record=records.record_id(kept),
        commit=kept.commit,
        host=kept.host,
        versions=kept.versions,
        started=kept.started,
        ended=kept.ended,
        seconds=kept.seconds,
    )


def _relative(path: Path, root: Path) -> str | None:
    """``path`` seen from ``root``; None when it lies outside, since nothing absolute is recorded."""
    relative = os.path.relpath(path, root)
    return None if relative.startswith("..") else Path(relative).as_posix()


def _publish(record: records.Record, temporary: Mapping[str, Path], outputs: Mapping[str, Path]) -> None:
    """Rename the outputs into place and write their record, after removing what spoke of the old ones."""
    for target in outputs.values():
        while (old := records.beside(target)) is not None:
            old.unlink()
    for name, target in outputs.items():
        if target.is_symlink() or target.is_dir():
            cache.remove(target)
        os.replace(temporary[name], target)
    records.write(record, records.path_for(next(iter(outputs.values()))))


def _keep_sources(modules: Mapping[str, str], store: Path) -> None:
    """Keep each source file once, by its code's digest, so that an audit can show a change as lines."""
    store.mkdir(parents=True, exist_ok=True)
    for module, digest in modules.items():
        target = store / f"{digest}.py"
        if not target.exists() and (text := code.source_of(module)) is not None:
            part = _temporary(target)
            part.write_bytes(text)
            os.replace(part, target)


def _temporary(path: Path) -> Path:
    """A name in the same folder that keeps the suffix, since writers choose their format by it."""
    return path.with_name(f".tmp-{os.getpid()}-{path.name}")


def _sweep(path: Path) -> None:
    """Remove what killed jobs left of an output; the lock is held, so none of them is alive."""
    for left in path.parent.glob(f".tmp-*-{path.name}"):
        if left.name.removeprefix(".tmp-").removesuffix(f"-{path.name}").isdigit():
            cache.remove(left)


def _disk_is_full(error: Exception) -> bool:
    """Whether a writer failed for want of space; writers in C++ or Rust say so in words only."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return os.strerror(errno.ENOSPC) in str(error)


def _stop(number: int, _frame: Any) -> None:
    """Turn a scheduler's or a person's signal into an exception, so that clean-up runs."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _ignore(_number: int, _frame: Any) -> None:
    pass


@contextmanager
def _signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Let ``handler`` see SIGTERM and SIGINT for a while."""
    try:
        before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread, as in a test
        yield
        return
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
