"""Runs one job: checks its inputs, calls the stage, publishes outputs and record.

Outputs are written under temporary names in their own folder and renamed when the stage has
finished, so that an interrupted job leaves nothing half-written. A lock file beside the outputs
keeps two live jobs from writing the same ones.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import platform
import hashlib
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localized_unlearning.config import Config
from localized_unlearning.errors import UserError
from localized_unlearning.provenance import code, environment, hashing, records
from localized_unlearning.stages import Job, Stage, restrict, settings_of

Paths = Mapping[str, Any]


def execute(
    stage: Stage, config: Config, wildcards: Mapping[str, str], inputs: Paths, outputs: Mapping[str, Path], root: Path
) -> records.Record:
    """Run one job and return its record.

    Args:
        stage: what to run.
        config: the whole config; the stage sees its part.
        wildcards: wildcard values.
        inputs: path or list of paths by name; None for an absent optional input.
        outputs: path by name, all in one folder.
        root: folder that recorded input paths are relative to.

    Raises:
        UserError: for a missing input, an output another live job is writing, a full disk, or a fault
            that the stage reports.
    """
    started = datetime.now(UTC)
    flat = [(name, path) for name, value in inputs.items() for path in _as_list(value)]
    for name, path in flat:
        if not path.exists():
            raise UserError(f"input {name} of stage {stage.name} does not exist: {path}; run the rule that makes it")
    first = next(iter(outputs.values()))
    first.parent.mkdir(parents=True, exist_ok=True)
    with _locked(first), _terminable():
        _sweep(first.parent, [p.name for p in outputs.values()])
        temporary = {name: _temporary(path) for name, path in outputs.items()}
        try:
            read = [(name, path, hashing.combined(hashing.digest_tree(path))) for name, path in flat]
            modules = code.closure(stage.module)
            job = Job(stage, restrict(config, stage, wildcards), wildcards, inputs, temporary)
            getattr(importlib.import_module(stage.module), stage.function)(job)
            for name, path in temporary.items():
                if not path.exists():
                    raise RuntimeError(f"stage {stage.name} did not write its output '{name}'")
            record = _record(stage, config, job, read, modules, outputs, root, started)
            path = records.path_for(first)
            path.unlink(missing_ok=True)
            for name, target in outputs.items():
                _publish(temporary[name], target)
            records.write(record, path)
            _keep_sources(stage, first)
            return record
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(f"the disk is full while writing {first}: free some space and rerun") from error
            raise
        finally:
            for path in temporary.values():
                _remove(path)


def _as_list(value: Any) -> list[Path]:
    if value is None:
        return []
    return [value] if isinstance(value, Path) else list(value)


def _record(
    stage: Stage,
    config: Config,
    job: Job,
    read: list[tuple[str, Path, str]],
    modules: dict[str, str],
    outputs: Mapping[str, Path],
    root: Path,
    started: datetime,
) -> records.Record:
    settings = settings_of(config, stage, job.wildcards)
    lock = environment.lock_digest(root)
    digest = code.code_digest(modules)
    ended = datetime.now(UTC)
    written = []
    for name, target in outputs.items():
        tree = hashing.digest_tree(job.outputs[name])
        files = tuple(records.File(name=n, size=d.size, sha256=d.sha256) for n, d in tree.items())
        written.append(records.Output(name=name, path=target.name, sha256=hashing.combined(tree), files=files))
    return records.Record(
        stage=stage.name,
        key=records.key_of(stage.name, settings, job.wildcards, digest, lock, [(n, d) for n, _, d in read]),
        wildcards=dict(job.wildcards),
        settings=settings,
        code=modules,
        code_digest=digest,
        lock=lock,
        versions=environment.versions(),
        inputs=tuple(
            records.Input(name=n, path=_relative(p, root), sha256=d, record=_record_of(p)) for n, p, d in read
        ),
        outputs=tuple(written),
        facts=json.loads(json.dumps(job.facts)),
        commit=environment.commit(),
        host=environment.host(),
        started=started.isoformat(timespec="seconds"),
        ended=ended.isoformat(timespec="seconds"),
        seconds=round((ended - started).total_seconds(), 3),
        attempt=int(os.environ.get("LOCALIZED_UNLEARNING_ATTEMPT", "1")),
    )


def _relative(path: Path, root: Path) -> str:
    try:
        return path.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return path.name


def _record_of(path: Path) -> str | None:
    found = records.find(path)
    return records.record_id(records.read(found)) if found else None


def _keep_sources(stage: Stage, output: Path) -> None:
    """Keep each source file once, by content, so that an audit can show a change as lines."""
    folder = next((p for p in output.resolve().parents if p.parent.name in ("results", "figures")), output.parent)
    store = folder.parent.parent / "results" / folder.name / ".sources"
    if not (folder.parent.parent / "results" / folder.name).is_dir():
        return
    store.mkdir(parents=True, exist_ok=True)
    for text in code.sources(stage.module).values():
        target = store / f"{code.digest_of_source(text)}.py"
        if not target.exists():
            part = _temporary(target)
            part.write_text(text, encoding="utf-8")
            os.replace(part, target)


def _temporary(path: Path) -> Path:
    """A name in the same folder that keeps the suffix, since writers choose their format by it."""
    return path.with_name(f".tmp-{os.getpid()}-{path.name}")


def _publish(temporary: Path, target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    os.replace(temporary, target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sweep(folder: Path, names: list[str]) -> None:
    """Remove what killed jobs left of these outputs; the lock is held, so none of them is alive."""
    for name in names:
        for left in folder.glob(f".tmp-*-{name}"):
            _remove(left)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _host_mark() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:16]


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Hold the lock of a job's outputs.

    A lock left by a killed process of this machine is taken over. One of another machine cannot be
    checked, so it is refused with how to remove it.
    """
    lock = output.with_name(f".{output.name}.lock")
    mine = json.dumps({"host": _host_mark(), "pid": os.getpid(), "slurm_job": os.environ.get("SLURM_JOB_ID")})
    while True:
        try:
            with open(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY), "w", encoding="utf-8") as stream:
                stream.write(mine)
            break
        except FileExistsError:
            try:
                holder = json.loads(lock.read_text(encoding="utf-8") or "{}")
            except (OSError, json.JSONDecodeError):
                holder = {}
            here = holder.get("host") == _host_mark()
            if here and not _alive(int(holder["pid"])):
                print(f"taking over the lock of a job that was killed: {lock.name}", file=sys.stderr)
                lock.unlink(missing_ok=True)
                continue
            who = f"process {holder.get('pid')}" + (
                f" of Slurm job {holder['slurm_job']}" if holder.get("slurm_job") else ""
            )
            raise UserError(
                f"{who} is writing {output}: wait for it or cancel it; if it is gone, delete {lock}"
            ) from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM, which schedulers send, into an exception, so that clean-up runs."""

    def stop(_signal: int, _frame: Any) -> None:
        raise SystemExit(143)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread, as in a test
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
