"""Warm starts: jobs are forked from a process that has imported torch and transformers already.

A stage that loads a model spends five seconds on imports, and a run has hundreds of such jobs. With
``compute.warm_start`` the command hands its arguments, folder, environment and streams to a server on the same
machine, which forks; the child does the work and its exit status becomes the command's. The server imports the stages
too and remembers their source files as they were before: once one has changed it forks no more, and a child compares
them with what its record says was run. It is private to one user, one Python, one set of installed packages, one
state of this package's files, one thread count, one nice value and one set of limits, starts with
the first job and leaves after a minute without one; the child takes the client's umask, CPU set, folder and
environment. Whatever goes wrong before the child has started, the job runs cold, as it does
inside a Slurm allocation and where the operating system cannot fork or pass streams; a server that could not start
is said once and not tried again for an hour. A child ends with its server, and its client says so.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import hashlib
import importlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
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

VARIABLE = "LOCALIZED_UNLEARNING_WARM"
"""In the environment: ``1`` for a warm start, ``cache`` for one after a look into the cache of finished jobs."""

LONGEST = (
    90  # bytes of a socket's address; the kernel takes 108 (macOS: 104), and it is bound under a longer name
)

FAILED_FOR = 3600.0  # seconds for which a server that could not start is not tried again


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
    """Whether this machine and place can do it: Unix streams over sockets, and not inside a Slurm allocation."""
    return hasattr(socket, "send_fds") and hasattr(os, "fork") and "SLURM_JOB_ID" not in os.environ


def address() -> Path:
    """The socket of the server for this user, Python, installed packages, source files and thread count.

    Raises:
        OSError: when no folder private to this user can be had, or its name is too long for a socket.
    """
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
        [os.environ.get(name) for name in THREADS],
        [str(Path(__file__).parents[1]), sources()],
        os.nice(0),
        [resource.getrlimit(limit) for limit in _limits()],
    ]
    found = folder / (hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16] + ".sock")
    if len(os.fsencode(found)) > LONGEST:
        raise OSError(errno.ENAMETOOLONG, "the folder for temporary files has too long a name for a socket")
    return found


def _limits() -> list[int]:
    """The limits that a process hands down to its children."""
    return [value for name, value in sorted(vars(resource).items()) if name.startswith("RLIMIT_")]


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
        failed.touch()
        print("warm starts failed and are off for an hour: the jobs run without them", file=sys.stderr)
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


def serve(path: Path, modules: Sequence[str] = PRELOADED, idle: float = IDLE) -> None:
    """Import ``modules``, then fork a child for every request on the socket ``path``, until nobody asks any more.

    No thread of ours runs here before a fork (pyarrow's allocator has one of its own, and handles forks). When a client goes away its child is told to stop, and killed
    if it has not after ten seconds.
    """
    listener = socket.socket(socket.AF_UNIX)
    waiting_room = path.with_name(f"{path.name}.{os.getpid()}")
    old = os.umask(0o177)
    listener.bind(str(waiting_room))  # before anything is imported: should it fail, it fails at once
    os.umask(old)
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    imported = sources()
    commands = importlib.import_module("localized_unlearning.cli.commands")  # which imports this module
    commands.preload()
    gc.freeze()  # a child that collects garbage would else copy all of it
    os.replace(waiting_room, path)
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
                idle = idle if _accept(listener, children, imported) else 0.0
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


def _accept(
    listener: socket.socket,
    children: dict[int, socket.socket],
    imported: Mapping[str, tuple[int, int, int]],
) -> bool:
    """Fork a child for the request that waits; False once the code is no longer what was imported."""
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
        return True
    commands = sys.modules["localized_unlearning.cli.commands"]
    is_current = sources() == imported
    if is_current and commands.can_be_warm(request["arguments"]):
        children[_fork(request, list(streams), connection, [listener, *children.values()], imported)] = (
            connection
        )
    else:  # the client runs its job itself
        connection.close()
    for stream in streams:
        os.close(stream)
    return is_current


def _fork(
    request: dict[str, object],
    streams: list[int],
    connection: socket.socket,
    others: Sequence[socket.socket],
    imported: Mapping[str, tuple[int, int, int]],
) -> int:
    """Start the child of a request; returns its process's number."""
    server = os.getpid()
    pid = os.fork()
    if pid == 0:
        for other in others:
            other.close()
        connection.sendall(STARTED)
        connection.close()
        _work(request, streams, server, imported)
    return pid


def _end_with(server: int) -> None:
    """End this process, politely, once its server is gone: nobody would hear of its end."""

    def watch() -> None:
        while os.getppid() == server:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _work(
    request: dict[str, object],
    streams: list[int],
    server: int,
    imported: Mapping[str, tuple[int, int, int]],
) -> None:
    """The child: become the client, run its command, and never return."""
    code = 1
    try:
        os.setpgid(0, 0)
        _end_with(server)
        os.umask(int(str(request["umask"])))
        if cpus := request["cpus"]:
            os.sched_setaffinity(0, cpus)  # type: ignore[arg-type]
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        os.environ.clear()
        os.environ.update(request["environment"])  # type: ignore[call-overload]
        os.chdir(str(request["folder"]))
        arguments = [str(a) for a in request["arguments"]]  # type: ignore[attr-defined]
        sys.argv = ["localized-unlearning", *arguments]

        code = sys.modules["localized_unlearning.cli.commands"].main(arguments, imported)
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
