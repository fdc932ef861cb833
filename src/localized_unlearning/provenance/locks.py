"""A lock file beside the outputs of a job, so that two live jobs never write the same ones.

It works on shared file systems without their lock daemons: the file is created exclusively and
says who holds it. A lock whose holder is gone is taken over: a dead process of this machine, a
Slurm job that was requeued (this is the same job again), or one that ``squeue`` no longer lists.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from localized_unlearning.errors import UserError

UNREADABLE_FOR = 60.0  # seconds after which a lock without content counts as left behind


def path_for(output: Path) -> Path:
    """Where the lock of a job lies whose first output is ``output``."""
    return output.with_name(f".{output.name}.lock")


@contextmanager
def held(output: Path) -> Iterator[None]:
    """Hold the lock of a job's outputs.

    Raises:
        UserError: when another live job holds it, or one whose life cannot be checked.
    """
    lock = path_for(output)
    while not _create(lock):
        holder = _holder(lock)
        if not is_gone(holder):
            raise UserError(
                f"{_name(holder)} is writing {output}: wait for it or cancel it; if it is gone, delete {lock}"
            )
        _take_over(lock, holder)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def is_held(output: Path) -> bool:
    """Whether a live job, or one whose life cannot be checked, is writing ``output``."""
    lock = path_for(output)
    return lock.exists() and not is_gone(_holder(lock))


def _create(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with open(descriptor, "w", encoding="utf-8") as stream:
        json.dump(_myself(), stream)
    return True


def _myself() -> dict[str, Any]:
    mine = {
        "host": _host(),
        "pid": os.getpid(),
        "begun": _begun(os.getpid()),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "slurm_restart": os.environ.get("SLURM_RESTART_COUNT"),
    }
    return {name: value for name, value in mine.items() if value is not None}


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:16]


def _begun(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; tells a process from a later one with its number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _holder(lock: Path) -> dict[str, Any] | None:
    """Who holds a lock: empty when the lock has just gone, None when it says nobody yet."""
    try:
        holder = json.loads(lock.read_text(encoding="utf-8"))
        return holder if isinstance(holder, dict) else None
    except FileNotFoundError:
        return {}
    except ValueError:
        try:
            return {} if time.time() - lock.stat().st_mtime > UNREADABLE_FOR else None
        except FileNotFoundError:
            return {}


def is_gone(holder: Mapping[str, Any] | None) -> bool:
    """Whether the holder of a lock is known to be gone."""
    if holder is None:
        return False
    if "pid" not in holder:
        return True
    if holder.get("host") == _host():
        return not _alive(int(holder["pid"]), holder.get("begun"))
    job = holder.get("slurm_job")
    if job is None:
        return False
    if job == os.environ.get("SLURM_JOB_ID"):
        return holder.get("slurm_restart") != os.environ.get("SLURM_RESTART_COUNT")
    return _slurm_job_is_gone(str(job))


def _alive(pid: int, begun: str | None) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    now = _begun(pid)
    return begun is None or now is None or begun == now


def _slurm_job_is_gone(job: str) -> bool:
    if shutil.which("squeue") is None:
        return False
    try:
        answer = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format=%T"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return False
    if answer.returncode:
        return "Invalid job id" in answer.stderr
    return not answer.stdout.strip()


def _take_over(lock: Path, holder: Mapping[str, Any] | None) -> None:
    """Move a dead job's lock away; should it meanwhile have become another job's, put that back."""
    aside = lock.with_name(f"{lock.name}.gone-{os.getpid()}")
    try:
        os.replace(lock, aside)
    except FileNotFoundError:
        return
    try:
        if _holder(aside) != holder:
            os.link(aside, lock)
            return
        print(f"took over the lock of a job that is gone: {lock.name}", file=sys.stderr)
    finally:
        aside.unlink(missing_ok=True)


def _name(holder: Mapping[str, Any] | None) -> str:
    if not holder:
        return "another process"
    job = f" of Slurm job {holder['slurm_job']}" if "slurm_job" in holder else ""
    place = "" if holder.get("host") == _host() else " on another machine"
    return f"process {holder['pid']}{job}{place}"
