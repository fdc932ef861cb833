"""Runs one job: checks its inputs, calls the stage, publishes outputs and record.

Outputs are written under temporary names in their own folder and renamed when the stage has
finished, so that an interrupted job leaves nothing half-written. The record comes last: outputs
without one are not to be trusted. A lock file beside the outputs keeps two live jobs from writing
the same ones.

What the record will say was run and read is looked at again before anything is published: a job whose
code or inputs changed meanwhile publishes nothing.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localized_unlearning import computing, extensions, files
from localized_unlearning import memory as memory_module
from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.job import Job, Kept, Stage, restrict, settings_of
from localized_unlearning.models import room, sharding
from localized_unlearning.provenance import cache, code, digests, environment, hashing, locks, records
from localized_unlearning.workflow import signals
from localized_unlearning.workflow.layout import Layout, run_of

Paths = Mapping[str, Any]

COMMENT = {".md": "\n<!-- key: {} -->\n", ".svg": "<!-- key: {} -->\n", ".tex": "% key: {}\n"}
"""How a text that people copy away carries its job's key; figures carry it in their metadata, and what has no room
for it, such as a CSV, is known by its bytes."""


@dataclass(frozen=True)
class _Seen:
    """An input as it was when its digest was taken."""

    path: Path
    state: dict[str, list[int]]
    tree: dict[str, hashing.FileDigest]


@dataclass(frozen=True)
class _Basis:
    """What a job's key is made of, taken before the job starts."""

    settings: dict[str, Any]
    modules: dict[str, str]
    sources: dict[str, code.State]
    seen: tuple[_Seen, ...]
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
    kept: Kept | None = None,
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
        kept: what this process has imported, and kept of the jobs it ran before.

    Raises:
        UserError: for a missing input, an input that is not what its record says or that changed while the job
            ran, an output another live job is writing, a disk that is full or may not be written, or a fault that
            the stage reports.
    """
    held = kept or Kept()
    if held.resident is None:
        held.resident = memory_module.resident()
    else:
        memory_module.forget_peaks()
    begun = datetime.now(UTC), computing.cpu_seconds()
    flat = [(name, path) for name, value in inputs.items() for path in _as_list(value)]
    for name, path in flat:
        if not path.exists():
            raise UserError(f"input {name} of stage {stage.name} does not exist: {path}; make it first")
    first = next(iter(outputs.values()))
    if any(path.parent != first.parent for path in outputs.values()):
        raise UserError(f"the outputs of stage {stage.name} must lie in one folder, beside their record")
    try:
        first.parent.mkdir(parents=True, exist_ok=True)
        with locks.held(first), signals.seen_by(signals.stop), computing.noting():
            return _locked(stage, config, wildcards, flat, inputs, outputs, root, compute, held, begun)
    except Exception as error:
        if sentence := room.exhausted(error, stage.name):
            raise UserError(sentence) from error
        if _disk_is_full(error):
            free = shutil.disk_usage(_existing(first.parent)).free / 1e9
            raise UserError(
                f"the disk is full while writing {first}: free more than {free:.1f} GB and rerun"
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(
                f"stage {stage.name} may not read or write {error.filename or first.parent} ({error.strerror}): "
                "correct its permissions, or work in a copy"
            ) from error
        raise


def _locked(
    stage: Stage,
    config: Config,
    wildcards: Mapping[str, str],
    flat: list[tuple[str, Path]],
    inputs: Paths,
    outputs: Mapping[str, Path],
    root: Path,
    compute: bool,
    held: Kept,
    begun: tuple[datetime, float],
) -> records.Record | None:
    """The job itself, while it holds the lock of its outputs."""
    first = next(iter(outputs.values()))
    temporary = {name: files.temporary(path) for name, path in outputs.items()}
    layout = Layout(config.run)
    is_figure = (_relative(first, root) or "").startswith(f"{layout.figures}/")
    run = root / (layout.figures if is_figure else layout.results)
    try:
        for path in (*outputs.values(), records.path_for(first)):
            _sweep(path)
        basis = _basis(stage, config, wildcards, flat, root)
        now = {name: basis.sources.get(name) for name in basis.modules if name in held.imported}
        if changed := next((name for name, state in now.items() if state != held.imported[name]), None):
            raise UserError(_changed(stage, f"{changed.replace('.', '/')}.py"))
        seen = restrict(config, stage, wildcards)
        job = Job(stage, seen, wildcards, inputs, temporary, basis.key, basis.files, kept=held)
        store = cache.of(config) if stage.cached else None
        kept = store.restore(basis.key, temporary) if store else None
        if kept is None and not compute:
            return None
        _keep_sources(basis.modules, root / layout.sources)
        memory = None if kept else _compute(job, basis)
        _refuse_changes(stage, basis)
        record = _record(job, basis, outputs, root, run, begun, memory, kept)
        if not locks.still_mine(first):
            raise UserError(
                f"another job took over {first} while this one stood still: nothing was published"
            )
        with signals.seen_by(signals.ignore):  # renaming takes a moment and is not to be cut in two
            _publish(record, temporary, outputs, root, run)
        if store is not None and kept is None:
            store.keep(record, outputs)
        return record
    finally:
        for path in temporary.values():
            cache.remove(path)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def _compute(job: Job, basis: _Basis) -> dict[str, float] | None:
    """Call the stage, in several processes where its model is sharded, and check that it has written every output.

    Returns its memory.
    """
    function = getattr(importlib.import_module(job.stage.module), job.stage.function)
    loaded = frozenset(sys.modules)
    if code.state(basis.modules) != basis.sources:  # an edit undone by now may be what was imported
        raise UserError(_changed(job.stage, _first_change(basis.sources, code.state(basis.modules))))
    shards = job.config.compute.shards if job.stage.gpu else 1
    if shards > 1:
        memory = sharding.run(job, function, shards)
    else:
        function(job)
        memory = memory_module.peak_memory(job.kept.resident)
    extensions.refuse_strangers(loaded, extensions.files_of(job.inputs))
    if str(job.facts.get("device", "")).startswith("cuda"):
        job.facts["precision"] = job.config.compute.precision
    for name, path in job.outputs.items():
        _remove_empty_folders(path)
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            raise RuntimeError(f"stage {job.stage.name} did not write its output '{name}'")
        if path.suffix in COMMENT:
            with path.open("a", encoding="utf-8") as stream:
                stream.write(COMMENT[path.suffix].format(job.key))
    return memory


def _remove_empty_folders(path: Path) -> None:
    """Remove the empty folders inside an output: no digest speaks of them."""
    for here, folders, _ in os.walk(path, topdown=False):
        for name in folders:
            with suppress(OSError):
                Path(here, name).rmdir()


def _refuse_changes(stage: Stage, basis: _Basis) -> None:
    """Look again at what the record will say was run and read.

    Raises:
        UserError: naming the first file that is not as it was.
    """
    now = code.closure(stage.module)
    if now != basis.modules:
        raise UserError(_changed(stage, _first_change(basis.modules, now)))
    for seen in basis.seen:
        if (name := _changed_input(seen)) is not None:
            raise UserError(_changed(stage, str(seen.path / name if name else seen.path)))


def _changed_input(seen: _Seen) -> str | None:
    """The first file of an input that is not as it was, by relative name: large ones by size, times and inode."""
    try:
        now = digests.state(seen.path)
        if now.keys() != seen.state.keys():
            return next(iter(now.keys() ^ seen.state.keys()))
        for name, (size, mtime, ctime, inode) in seen.state.items():
            file = seen.path / name if name else seen.path
            if [size, mtime, inode] != [now[name][0], now[name][1], now[name][3]]:
                return name
            if (size < digests.LARGE or ctime != now[name][2]) and hashing.digest(file) != seen.tree[name]:
                return name
    except OSError:
        return ""
    return None


def _first_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first module that is not as it was, as a file's name."""
    name = next(n for n in sorted(before.keys() | now.keys()) if before.get(n) != now.get(n))
    return f"{name.replace('.', '/')}.py"


def _changed(stage: Stage, what: str) -> str:
    return (
        f"{what} changed while stage {stage.name} ran, so that no record could say what it was made from: "
        "nothing was published; rerun"
    )


def _as_list(value: Any) -> list[Path]:
    if value is None:
        return []
    return [value] if isinstance(value, Path) else list(value)


def _basis(
    stage: Stage, config: Config, wildcards: Mapping[str, str], flat: list[tuple[str, Path]], root: Path
) -> _Basis:
    settings = settings_of(config, stage, wildcards)
    modules = code.closure(stage.module)
    sources = code.state(modules)
    if code.closure(stage.module) != modules:
        raise UserError(_changed(stage, _first_change(modules, code.closure(stage.module))))
    lock_name = environment.lock_name(root)
    lock = environment.lock_digest(root, lock_name) if lock_name else None
    versions = environment.versions()
    deviations = environment.deviations(
        versions, environment.lock_lines(root, lock_name) if lock_name else None
    )
    looked = [_input(name, path, root) for name, path in flat]
    inputs = tuple(found for found, _ in looked)
    seen = tuple(seen for _, seen in looked)
    key = records.key_of(
        stage.name, _function(stage), settings, wildcards, code.code_digest(modules), lock, deviations,
        [(i.name, i.sha256) for i in inputs],
    )  # fmt: skip
    files = {
        name: {file: d.sha256 for file, d in seen_as.tree.items()}
        for (name, _), seen_as in zip(flat, seen, strict=True)
    }
    return _Basis(
        settings, modules, sources, seen, lock_name, lock, versions, deviations, inputs, files, key
    )  # fmt: skip


def _function(stage: Stage) -> str:
    return f"{stage.module}:{stage.function}"


def _input(name: str, path: Path, root: Path) -> tuple[records.Input, _Seen]:
    """An input's digest and the record that made it, and what it looked like.

    Raises:
        UserError: when the file is no longer what that record says, or lies among the results without one.
    """
    state = digests.state(path)
    tree = digests.digest_tree(path)
    sha256 = hashing.combined(tree)
    place, relative = records.find(path), _relative(path, root)
    made_by = None
    if place is not None:
        record = records.read(place)
        if records.digest_in(record, place.parent, path) != sha256:
            raise UserError(
                f"input {path} was changed after stage {record.stage} made it, as its record {place.name} "
                "tells: delete it and rerun, or take it in with 'localized-unlearning audit adopt'"
            )
        made_by = records.record_id(record)
    elif relative is not None and run_of(relative) is not None:
        raise UserError(
            f"input {path} lies among the results but no record says what made it: delete it and rerun what makes "
            "it, or take it in with 'localized-unlearning audit adopt'"
        )
    size = sum(file.size for file in tree.values())
    found = records.Input(
        name=name,
        path=relative or path.name,
        outside=None if relative else True,
        size=size,
        sha256=sha256,
        record=made_by,
    )
    return found, _Seen(path, state, tree)


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
    run: Path,
    begun: tuple[datetime, float],
    memory: dict[str, float] | None,
    kept: records.Record | None,
) -> records.Record:
    started, ended = begun[0], datetime.now(UTC)
    compute = computing.compute(job.config.compute.model_dump()) | job.facts.pop("compute", {})
    if packages := environment.packages_of(code.installed_by(extensions.files_of(job.inputs))):
        compute["packages"] = packages
    commit, why = environment.commit_or_reason()
    if why:
        print(f"the record names no commit of this project's code: {why}", file=sys.stderr)
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
        commit=commit,
        host=environment.host(),
        compute=compute,
        started=started.isoformat(timespec="milliseconds"),
        ended=ended.isoformat(timespec="milliseconds"),
        seconds=round((ended - started).total_seconds(), 3),
        cpu_seconds=round(computing.cpu_seconds() - begun[1], 3),
        memory=memory,
        attempt=int(os.environ.get("LOCALIZED_UNLEARNING_ATTEMPT", "1")),
        restored=_restored(kept) if kept else None,
        replaces=tuple(_replaced(outputs, root, run)),
    )
    return record.model_copy(update={"id": records.record_id(record)})


def _place(outputs: Mapping[str, Path], root: Path) -> str:
    """The place of a job's record, relative to the workflow's folder."""
    place = records.path_for(next(iter(outputs.values())))
    return _relative(place, root) or place.name


def _replaced(outputs: Mapping[str, Path], root: Path, run: Path) -> dict[str, None]:
    """The ids of the records that a job replaces, and of those that these replaced, also of deleted ones."""
    found = dict.fromkeys(records.remembered(_place(outputs, root), records.journal(run)))
    for target in outputs.values():
        for place in records.all_beside(target):
            old = records.read(place)
            found |= dict.fromkeys((records.record_id(old), *old.replaces))
    return found


def _restored(kept: records.Record) -> records.Restored:
    return records.Restored(
        record=records.record_id(kept),
        commit=kept.commit,
        host=kept.host,
        compute=kept.compute,
        versions=kept.versions,
        started=kept.started,
        ended=kept.ended,
        seconds=kept.seconds,
    )


def _relative(path: Path, root: Path) -> str | None:
    """``path`` seen from ``root``; None when it lies outside, since nothing absolute is recorded."""
    relative = os.path.relpath(path, root)
    return None if relative.startswith("..") else Path(relative).as_posix()


def _publish(
    record: records.Record, temporary: Mapping[str, Path], outputs: Mapping[str, Path], root: Path, run: Path
) -> None:
    """Rename the outputs into place and write their record, after removing what spoke of the old ones."""
    records.remember(record, _place(outputs, root), records.journal(run))
    for target in outputs.values():
        for old in records.all_beside(target):
            old.unlink()
    for name, target in outputs.items():
        _permit(temporary[name])
        if target.is_symlink() or target.is_dir():
            cache.remove(target)
        os.replace(temporary[name], target)
    records.write(record, records.path_for(next(iter(outputs.values()))))


def _permit(output: Path) -> None:
    """Give an output the mode that the umask asks for, whatever its writer gave it (safetensors: 0600)."""
    umask = os.umask(0o077)
    os.umask(umask)
    inner = (Path(here, name) for here, folders, files in os.walk(output) for name in (*folders, *files))
    for path in (output, *inner):
        wanted = 0o777 if path.is_dir() else 0o666
        path.chmod(path.stat().st_mode & stat.S_ISGID | wanted & ~umask)


def _keep_sources(modules: Mapping[str, str], store: Path) -> None:
    """Keep each source file once, by its code's digest, so that an audit can show a change as lines.

    A store that cannot be written is said, and no fault of the job.
    """
    try:
        store.mkdir(parents=True, exist_ok=True)
        for module, digest in modules.items():
            target = store / f"{digest}.py"
            if not target.exists() and (text := code.source_of(module)) is not None:
                part = files.temporary(target)
                part.write_bytes(text)
                os.replace(part, target)
    except OSError as error:
        print(f"the sources behind this job are not kept in {store}: {error}", file=sys.stderr)


def _sweep(path: Path) -> None:
    """Remove what killed jobs left of an output; the lock is held, so none of them is alive."""
    for left in path.parent.glob(".tmp-*"):
        if locks.is_temporary_of(left.name, path):
            cache.remove(left)


def _disk_is_full(error: Exception) -> bool:
    """Whether a writer failed because no space is left; writers in C++ or Rust say so in words only."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return os.strerror(errno.ENOSPC) in str(error)
