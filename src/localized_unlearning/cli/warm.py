"""Warm starts: jobs run in processes that have imported torch and transformers already.

A stage that loads a model spends five seconds on imports, and a run has hundreds of such jobs. With
``compute.warm_start`` the command hands its arguments, folder, environment and streams to a server on the same
machine (:mod:`localized_unlearning.cli.serving`), which forks; the child does the work and its exit status becomes the
command's. The server is private to one user, one Python, one set of installed packages, one state of this package's
files, one set of the variables that packages read once, one nice value, one set of limits and one step of a Slurm job. It
starts with the first job and leaves after a minute without one, in a Slurm job with the Snakemake that it works for (the
members of a group have a step each, and one server: :mod:`localized_unlearning.cli.starting`); the child takes the client's umask, CPU set, folder and environment. Whatever goes wrong before the child has started, the job runs cold, as it does where the
operating system cannot fork or pass streams; a server that could not start is said once and not tried again for an hour.
A child ends with its server, and its client says so.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

STARTING = (
    600.0  # seconds that a client waits for a server it started and that lives: imports, on a busy machine
)

READ_ONCE = (
    "ATEN_", "BLIS_", "CUBLAS_", "CUDA_", "CUDNN_", "DNNL_", "HF_", "KMP_", "LANG", "LC_", "LD_", "MATPLOTLIBRC",
    "MKL_", "MPL", "NCCL_", "NVIDIA_", "OMP_", "ONEDNN_", "OPENBLAS_", "PYTHON", "PYTORCH_", "TORCH", "TRANSFORMERS_",
)  # fmt: skip
"""How the variables begin that Python and the imported packages read once: each set of values has its own server."""

SLURM = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURMD_NODENAME")
"""Variables that name a step of a Slurm job: a server ends with it, and serves no other."""

STARTED = b"+"

VARIABLE = "LOCALIZED_UNLEARNING_WARM"
"""In the environment: ``1`` for a warm start, ``cache`` for one after a look into the cache of finished jobs; then a colon
and the process id of the Snakemake that set it."""

STARTER = "LOCALIZED_UNLEARNING_STARTER"
"""In the environment of a Slurm group's members: the socket of what starts a server for all of them
(:mod:`localized_unlearning.cli.starting`)."""

LONGEST = (
    90  # bytes of a socket's address; the kernel takes 108 (macOS: 104), and it is bound under a longer name
)

FAILED_FOR = 3600.0  # seconds for which a server that could not start is not tried again


def asked() -> str:
    """Whether the environment asks for a warm start, and how; empty if not."""
    return os.environ.get(VARIABLE, "").partition(":")[0]


def owner() -> list[str]:
    """The process that a server leaves with, inside a Slurm allocation: the Snakemake that runs there."""
    said = os.environ.get(VARIABLE, "").partition(":")[2]
    return [said] if "SLURM_JOB_ID" in os.environ and said.isdigit() else []


def starts(arguments: Sequence[str]) -> bool:
    """Whether a job is worth a server of its own: one that loads or makes a model."""
    return arguments[0] in ("pretrain", "inject") or "--base-model" in arguments


def sources() -> dict[str, tuple[int, int, int]]:
    """Size, modification time (ns) and inode of each source file of this package, by module."""
    package = Path(__file__).parents[1]
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        status = file.stat()
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = (status.st_size, status.st_mtime_ns, status.st_ino)
    return found


def possible() -> bool:
    """Whether this machine can do it: Unix streams over sockets, and forks."""
    return hasattr(socket, "send_fds") and hasattr(os, "fork")


def address() -> Path:
    """The socket of the server for this user, Python, installed packages, source files and variables read once.

    Raises:
        OSError: when no folder private to this user can be had, or its name is too long for a socket.
    """
    if starter := os.environ.get(STARTER):
        folder = Path(starter).parent
    else:
        folder = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"warm-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
        raise PermissionError(f"{folder} is not private to this user")
    packages = [
        (p, os.stat(p).st_mtime_ns) for p in sys.path if p.endswith("site-packages") and os.path.isdir(p)
    ]
    identity = [
        sys.executable,
        packages,
        sorted((name, value) for name, value in os.environ.items() if name.startswith(READ_ONCE)),
        [str(Path(__file__).parents[1]), sources()],
        inherited(),
        [os.environ.get(name) for name in SLURM if name != "SLURM_STEP_ID" or not starter],
    ]
    found = folder / (hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16] + ".sock")
    if len(os.fsencode(found)) > LONGEST:
        raise OSError(errno.ENAMETOOLONG, "the folder for temporary files has too long a name for a socket")
    return found


def inherited() -> list[object]:
    """What a process hands down to its children and they cannot take from a client: its nice value and its limits."""
    limits = [value for name, value in sorted(vars(resource).items()) if name.startswith("RLIMIT_")]
    return [os.nice(0), [resource.getrlimit(limit) for limit in limits]]


def run(arguments: Sequence[str], start: bool) -> int | None:
    """Run ``localized-unlearning ARGUMENTS`` in a forked child and return its exit status.

    Args:
        arguments: the command line.
        start: whether to start a server when none is there; else only a running one is used.

    Returns:
        The status, 128 + N for a child that signal N ended; None when the job has to be run cold.
    """
    status = b""
    started = False
    try:
        try:
            path = address()
        except OSError as error:
            _say_once(
                f"warm starts are off: {error.strerror or error}; compute.warm_start: false, or a shorter TMPDIR"
            )
            return None
        connection = _connect(path, start)
        if connection is None:
            return None
        with connection:
            umask = os.umask(0o077)
            os.umask(umask)
            request = {
                "arguments": list(arguments), "folder": os.getcwd(), "environment": dict(os.environ),
                "umask": umask, "cpus": _cpus(),
            }  # fmt: skip
            message = json.dumps(request).encode()
            socket.send_fds(connection, [len(message).to_bytes(8, "big")], [0, 1, 2])
            connection.sendall(message)
            if connection.recv(1) != STARTED:
                return None
            started = True
            sys.stdout.flush()
            status = connection.recv(4)
    except OSError:
        if not started:
            return None
    if len(status) == 4:
        return int.from_bytes(status, "big")
    print(
        "error: the process that warm starts are forked from has ended, and this job with it; if the machine ran "
        "out of memory, run fewer jobs at a time; else run again, or set compute.warm_start to false",
        file=sys.stderr,
    )
    return 1


def _cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _say_once(text: str) -> None:
    """Say a sentence, once for all jobs that one process starts (Snakemake, a shell)."""
    mark = Path(tempfile.gettempdir()) / f"warm-{os.getuid()}-{os.getppid()}.said"
    with contextlib.suppress(OSError):
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        print(text, file=sys.stderr)


def _connect(path: Path, start: bool) -> socket.socket | None:
    found = _try(path)
    if found is not None or not start:
        return found
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of several first clients starts it
        found = _try(path)
        failed = path.with_suffix(".failed")
        if found is not None or _is_fresh(failed):
            return found
        if starter := os.environ.get(STARTER):
            if found := _have_started(Path(starter), path):
                return found
        elif listens(path, launch(path, owner(), os.environ)):
            return _try(path)
        failed.touch()
        print("warm starts failed and are off for an hour: the jobs run without them", file=sys.stderr)
    return None


def launch(path: Path, owned_by: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a server on the socket ``path``, that leaves with the process ``owned_by``, if any."""
    return subprocess.Popen(
        [sys.executable, "-m", "localized_unlearning.cli.serving", str(path), *owned_by], env=environment,
        start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def listens(path: Path, server: subprocess.Popen[bytes]) -> bool:
    """Wait for a server that was launched; whether it came up."""
    deadline = time.monotonic() + STARTING
    while time.monotonic() < deadline and server.poll() is None:
        if connection := _try(path):
            connection.close()
            return True
        time.sleep(0.05)
    return False


def _have_started(starter: Path, path: Path) -> socket.socket | None:
    """A connection to the server that the starter of this Slurm group starts on ``path``; None where it does not."""
    connection = _try(starter)
    if connection is None:
        return None
    with connection, contextlib.suppress(OSError):
        connection.settimeout(STARTING + 60.0)
        request = {"path": str(path), "inherited": inherited(), "environment": dict(os.environ)}
        connection.sendall(json.dumps(request).encode())
        connection.shutdown(socket.SHUT_WR)
        if connection.recv(1) == STARTED:
            return _try(path)
    return None


def _is_fresh(mark: Path) -> bool:
    try:
        return time.time() - mark.stat().st_mtime < FAILED_FOR
    except OSError:
        return False


def _try(path: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
        return connection
    except OSError:
        connection.close()
        return None
