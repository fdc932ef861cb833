"""A lock file beside the outputs of a job, so that two live jobs never write the same ones.

It works across the nodes of a shared file system without a lock daemon: the file appears with its content in one
step, says who holds it, and is touched every :data:`BEAT` seconds while the holder lives. A lock whose holder is
gone is taken over: a dead process of this machine; an earlier start of this Slurm job, which was requeued; a Slurm
job that ``squeue`` no longer lists; any other whose lock has not been touched for :data:`SILENT` seconds, by the
file system's own clock. Should a holder have been taken for dead while it was only stopped, it finds its lock gone
when it comes to publish (:func:`still_mine`) and publishes nothing.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from localized_unlearning import files
from localized_unlearning.errors import UserError
from localized_unlearning.provenance import hashing

BEAT = 20.0
"""Seconds between two touches of a held lock."""

SILENT = 300.0
"""Seconds without a touch after which a holder that cannot be asked counts as gone (caches of NFS: 60 s)."""

UNREADABLE_FOR = 60.0
"""Seconds after which a lock without content counts as left behind."""


LARGEST = 1 << 16  # bytes of a lock that are read


def path_for(output: Path) -> Path:
    """Where the lock of a job lies whose first output is ``output``."""
    return output.with_name(f".{output.name}.lock")


def is_temporary_of(name: str, path: Path) -> bool:
    """Whether ``name`` is what :func:`temporary` calls ``path`` in this or another process."""
    return re.fullmatch(rf"\.tmp-[0-9a-f]{{16}}-\d+-{re.escape(path.name)}", name) is not None


def is_abandoned(name: str) -> bool:
    """Whether a :func:`temporary` file is of a process of this machine that has ended."""
    found = re.match(r"\.tmp-([0-9a-f]{16})-(\d+)-", name)
    return found is not None and found[1] == files.host() and not _alive(int(found[2]), None)


@contextmanager
def held(output: Path) -> Iterator[None]:
    """Hold the lock of a job's outputs.

    Raises:
        UserError: when another live job holds it.
    """
    lock = path_for(output)
    while not _create(lock):
        holder = _holder(lock)
        if not is_gone(holder, lock):
            raise UserError(
                f"{_name(holder)} is writing {output}: wait for it or {_cancel(holder)}, then rerun; "
                f"if it is gone, delete {lock}"
            )
        _take_over(lock, holder)
    done = threading.Event()
    heart = threading.Thread(target=_beat, args=(lock, done), daemon=True)
    heart.start()
    try:
        yield
    finally:
        done.set()
        heart.join()
        if still_mine(output):
            lock.unlink(missing_ok=True)


def still_mine(output: Path) -> bool:
    """Whether this process still holds the lock of ``output``; not so once another took it for dead."""
    return _holder(path_for(output)) == _myself()


def is_held(output: Path) -> bool:
    """Whether a live job, or one whose life cannot be checked, is writing ``output``."""
    lock = path_for(output)
    return lock.exists() and not is_gone(_holder(lock), lock)


def _beat(lock: Path, done: threading.Event) -> None:
    while not done.wait(BEAT):
        with suppress(OSError):
            os.utime(lock)


def _silence(lock: Path) -> float:
    """Seconds since a lock was touched, by the clock that stamps files there: nodes' clocks differ."""
    probe = lock.with_name(f"{lock.name}.now-{files.host()}-{os.getpid()}")
    try:
        probe.touch()
        return probe.stat().st_mtime - lock.stat().st_mtime
    except OSError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)


def _create(lock: Path) -> bool:
    """Make the lock with its content in one step; False when another holds it."""
    text = json.dumps(_myself())
    part = files.temporary(lock)
    try:
        part.write_text(text, encoding="utf-8")
        try:
            os.link(part, lock)
        except FileExistsError:
            return part.stat().st_nlink == 2  # NFS may have made the link and lost its answer
        except OSError:  # a file system without links
            return _create_exclusively(lock, text)
    finally:
        part.unlink(missing_ok=True)
    return True


def _create_exclusively(lock: Path, text: str) -> bool:
    try:
        descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with open(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    return True


def _myself() -> dict[str, Any]:
    mine = {
        "host": files.host(),
        "pid": os.getpid(),
        "begun": _begun(os.getpid()),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "slurm_node": os.environ.get("SLURMD_NODENAME"),
        "slurm_restart": slurm_restart(),
    }
    return {name: value for name, value in mine.items() if value is not None}


def slurm_restart() -> str | None:
    """How often this Slurm job was requeued; None outside of one, or where Slurm cannot be asked.

    Snakemake's executor takes ``SLURM_RESTART_COUNT`` out of a job's environment, so Slurm itself is asked.
    """
    job = os.environ.get("SLURM_JOB_ID")
    return None if job is None else os.environ.get("SLURM_RESTART_COUNT") or _asked_restart(job)


@functools.cache
def _asked_restart(job: str) -> str | None:
    if shutil.which("scontrol") is None:
        return None
    try:
        answer = subprocess.run(
            ["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\bRestarts=(\d+)", answer.stdout)
    return found[1] if found else None


def _begun(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; tells a process from a later one with its number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _holder(lock: Path) -> dict[str, Any] | None:
    """Who holds a lock: empty when the lock has just gone, None when it says nobody yet."""
    try:
        with open(hashing.open_plain(lock), "rb") as stream:
            holder = json.loads(stream.read(LARGEST))
        pid = holder["pid"]
        if isinstance(pid, int) and 0 < pid < 1 << 31:
            return dict(holder)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        pass
    try:  # no lock of a job's, or one that has no content yet
        return {} if time.time() - lock.lstat().st_mtime > UNREADABLE_FOR else None
    except FileNotFoundError:
        return {}


def is_gone(holder: Mapping[str, Any] | None, lock: Path) -> bool:
    """Whether the holder of a lock is known, or by its long silence taken, to be gone."""
    if holder is None:
        return False
    if "pid" not in holder:
        return True
    if holder.get("host") == files.host():
        return not _alive(int(holder["pid"]), holder.get("begun"))
    job = holder.get("slurm_job")
    if job is not None and job == os.environ.get("SLURM_JOB_ID"):
        theirs, mine = holder.get("slurm_restart"), slurm_restart()
        if theirs is not None and mine is not None and theirs != mine:
            return True
        return (
            _silence(lock) > SILENT
        )  # one job over two nodes, or an earlier start that says nothing of itself
    listed = None if job is None else _slurm_lists(str(job))
    return _silence(lock) > SILENT if listed is None else not listed


def _alive(pid: int, begun: str | None) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    now = _begun(pid)
    return begun is None or now is None or begun == now


def _slurm_lists(job: str) -> bool | None:
    """Whether Slurm has a job waiting, running or ending; None when it cannot be asked."""
    if shutil.which("squeue") is None:
        return None
    try:
        answer = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format=%T"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    if answer.returncode:
        return False if "Invalid job id" in answer.stderr else None
    return bool(answer.stdout.strip())


def _take_over(lock: Path, holder: Mapping[str, Any] | None) -> None:
    """Move a dead job's lock away; should it meanwhile have become another job's, put that back."""
    aside = lock.with_name(f"{lock.name}.gone-{files.host()}-{os.getpid()}")
    try:
        os.replace(lock, aside)
    except FileNotFoundError:
        return
    try:
        if _holder(aside) != holder:
            with suppress(
                FileExistsError
            ):  # and should that fail, its holder will find it is no longer its own
                os.link(aside, lock)
            return
        print(f"took over the lock of a job that is gone: {lock.name}", file=sys.stderr)
    finally:
        aside.unlink(missing_ok=True)


def _name(holder: Mapping[str, Any] | None) -> str:
    if not holder:
        return "another process"
    if "slurm_job" in holder:
        node = f" on node {holder['slurm_node']}" if "slurm_node" in holder else ""
        return f"Slurm job {holder['slurm_job']}{node} (process {holder['pid']})"
    return f"process {holder['pid']}" + ("" if holder.get("host") == files.host() else " on another machine")


def _cancel(holder: Mapping[str, Any] | None) -> str:
    return f"cancel it (scancel {holder['slurm_job']})" if holder and "slurm_job" in holder else "end it"
