"""Warm starts: jobs are forked from a process that has imported torch and transformers already.

A stage that loads a model spends five seconds on imports, and a run has over a hundred such jobs. With
``compute.warm_start`` the command hands its arguments, folder, environment and streams to a server on the same
machine, which forks; the child does the work and its exit status becomes the command's. The server imports
third-party packages only, so that the project's own code is read afresh by every job. It is private to one
user, one Python, one set of installed packages and one thread count, starts with the first job and leaves
after a minute without one. Whatever goes wrong before the child has started, the job runs cold, as it does
inside a Slurm allocation and where the operating system cannot fork or pass streams.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

PRELOADED = (
    "torch", "torch._dynamo", "numpy", "pandas", "pyarrow.parquet", "safetensors.torch", "scipy.stats",
    "sklearn.linear_model", "sklearn.pipeline", "sklearn.preprocessing", "sklearn.model_selection",
    "transformers.modeling_utils", "transformers.models.auto.modeling_auto",
    "transformers.models.gemma.modeling_gemma", "transformers.models.gemma3.modeling_gemma3",
    "transformers.models.auto.tokenization_auto", "peft", "pydantic", "yaml", "matplotlib.figure",
    "matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf",
)  # fmt: skip
"""What the server imports. A module that is not installed is left to the job that needs it."""

IDLE = 60.0  # seconds without a job after which the server leaves

STARTING = 60.0  # seconds that a client waits for a server it started

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTHONPATH")
"""Variables that the imported packages read once: each value has its own server."""

STARTED = b"+"


def possible() -> bool:
    """Whether this machine and place can do it: Unix streams over sockets, and not inside a Slurm allocation."""
    return hasattr(socket, "send_fds") and hasattr(os, "fork") and "SLURM_JOB_ID" not in os.environ


def address() -> Path:
    """The socket of the server for this user, Python, installed packages and thread count.

    Raises:
        OSError: when no folder private to this user can be had.
    """
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"warm-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or folder.is_symlink():
        raise PermissionError(f"{folder} is not private to this user")
    packages = [
        (p, os.stat(p).st_mtime_ns) for p in sys.path if p.endswith("site-packages") and os.path.isdir(p)
    ]
    own = Path(__file__).read_bytes()
    identity = [
        sys.executable,
        packages,
        [os.environ.get(name) for name in THREADS],
        hashlib.sha256(own).hexdigest(),
    ]
    return folder / (hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16] + ".sock")


def run(arguments: Sequence[str], start: bool) -> int | None:
    """Run ``localized-unlearning ARGUMENTS`` in a forked child and return its exit status.

    Args:
        arguments: the command line.
        start: whether to start a server when none is there; else only a running one is used.

    Returns:
        The status, 128 + N for a child that signal N ended; None when the job has to be run cold.
    """
    try:
        connection = _connect(address(), start)
        if connection is None:
            return None
        with connection:
            request = {"arguments": list(arguments), "folder": os.getcwd(), "environment": dict(os.environ)}
            message = json.dumps(request).encode()
            socket.send_fds(connection, [len(message).to_bytes(8, "big")], [0, 1, 2])
            connection.sendall(message)
            if connection.recv(1) != STARTED:
                return None
            sys.stdout.flush()
            status = connection.recv(4)
    except OSError:
        return None
    return int.from_bytes(status, "big") if len(status) == 4 else 1


def _connect(path: Path, start: bool) -> socket.socket | None:
    found = _try(path)
    if found is not None or not start:
        return found
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of several first clients starts it
        found = _try(path)
        if found is not None:
            return found
        process = subprocess.Popen(
            [sys.executable, "-m", "localized_unlearning.cli.warm", str(path)],
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, pass_fds=(), close_fds=True,
        )  # fmt: skip
        deadline = time.monotonic() + STARTING
        while time.monotonic() < deadline and process.poll() is None:
            found = _try(path)
            if found is not None:
                return found
            time.sleep(0.05)
    return None


def _try(path: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
        return connection
    except OSError:
        connection.close()
        return None


def serve(path: Path, modules: Sequence[str] = PRELOADED, idle: float = IDLE) -> None:
    """Import ``modules``, then fork a child for every request on the socket ``path``, until nobody asks any more.

    No thread of ours runs here before a fork (pyarrow's allocator has one of its own, and handles forks). When a client goes away its child is told to stop, and killed
    if it has not after ten seconds.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    listener = socket.socket(socket.AF_UNIX)
    path.unlink(missing_ok=True)
    old = os.umask(0o177)
    listener.bind(str(path))
    os.umask(old)
    listener.listen(64)
    inode = path.stat().st_ino
    children: dict[int, socket.socket] = {}
    doomed: dict[int, float] = {}
    last = time.monotonic()
    while children or time.monotonic() - last < idle:
        waiting = [c for pid, c in children.items() if pid not in doomed]
        readable, _, _ = select.select([listener, *waiting], [], [], 0.02 if children else 1.0)
        if not path.exists() or path.stat().st_ino != inode:
            idle = 0.0  # another server took the place, or the folder was cleared: finish what runs
        for ready in readable:
            if ready is listener:
                _accept(listener, children)
            else:  # a client says nothing while it waits: this is its end
                pid = next(p for p, c in children.items() if c is ready)
                _kill(pid, signal.SIGTERM)
                doomed[pid] = time.monotonic() + 10
        for pid, when in doomed.items():
            if time.monotonic() > when:
                _kill(pid, signal.SIGKILL)
        for pid in list(children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                _reply(children.pop(pid), code if code >= 0 else 128 - code)
                doomed.pop(pid, None)
                last = time.monotonic()
    if path.exists() and path.stat().st_ino == inode:
        path.unlink()


def _kill(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        os.kill(pid, number)


def _reply(connection: socket.socket, code: int) -> None:
    with connection, contextlib.suppress(OSError):
        connection.sendall(code.to_bytes(4, "big"))


def _accept(listener: socket.socket, children: dict[int, socket.socket]) -> None:
    connection, _ = listener.accept()
    try:
        header, streams, _, _ = socket.recv_fds(connection, 8, 3)
        message = b""
        while len(message) < int.from_bytes(header, "big"):
            part = connection.recv(1 << 20)
            if not part:
                raise OSError("the client went away")
            message += part
        request = json.loads(message)
    except (OSError, ValueError):
        connection.close()
        return
    pid = os.fork()
    if pid == 0:
        listener.close()
        for other in children.values():
            other.close()
        connection.sendall(STARTED)
        connection.close()
        _work(request, list(streams))
    for stream in streams:
        os.close(stream)
    children[pid] = connection


def _work(request: dict[str, object], streams: list[int]) -> None:
    """The child: become the client, run its command, and never return."""
    code = 1
    try:
        os.setpgid(0, 0)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        os.environ.clear()
        os.environ.update(request["environment"])  # type: ignore[call-overload]
        os.chdir(str(request["folder"]))
        arguments = [str(a) for a in request["arguments"]]  # type: ignore[attr-defined]
        sys.argv = ["localized-unlearning", *arguments]

        from localized_unlearning.cli.main import main  # which imports this module

        code = main(arguments, warm_start=False)
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
