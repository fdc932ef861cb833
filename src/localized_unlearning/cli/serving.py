"""The server of warm starts: it imports the stages and what they need, forks a child for each job, and keeps some waiting.

It remembers the stages' source files as they were before: once one has changed it forks no more, and a child compares
them with what its record says was run. A child whose job left a loaded model (:class:`localized_unlearning.jobs.job.Kept`)
does not end with the job: it waits for the next job of the same checkpoint. What waits is freed by three rules:

- on a GPU, before a job starts anywhere else, since that job may want all of the device's memory;
- on a CPU, the one that has waited longest, as soon as more than :data:`WAITING` wait or they hold more than
  :data:`SHARE` of the machine's memory;
- with the server, :data:`IDLE` seconds after the last job.

A job that fails takes its process along, whatever it kept: nothing follows it there.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localized_unlearning.cli.warm import STARTED, VARIABLE, sources

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Kept

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

OWN = {VARIABLE, "LOCALIZED_UNLEARNING_ATTEMPT", "PWD", "OLDPWD", "SHLVL", "_"}
"""Variables that differ between jobs and matter to none of what a process keeps; Slurm's and PMI's are others."""

WAITING = 4
"""Most children that wait with a loaded model."""

SHARE = 1 / 8
"""Most that they hold together, as a share of the machine's memory."""

COMMANDS = "localized_unlearning.cli.commands"
"""The module that runs commands; it imports :mod:`localized_unlearning.cli.warm`."""

Sources = Mapping[str, tuple[int, int, int]]

REPORT = struct.Struct("!IQ?")
"""What a child says after a job and before it waits: exit status, bytes of the model it keeps, whether on a GPU."""


@dataclass
class Child:
    """A forked process.

    Attributes:
        pid: its process id.
        channel: the server's end of a socket to it.
        client: who waits for its job; None while it waits for one itself.
        model: which jobs may follow in it; None if it ends with its job.
        held: bytes of the model that it keeps.
        gpu: whether they are a GPU's.
        since: when its last job ended.
        doomed: when it is killed if it has not ended by then.
    """

    pid: int
    channel: socket.socket
    client: socket.socket | None
    model: str | None
    held: int = 0
    gpu: bool = False
    since: float = 0.0
    doomed: float | None = None

    @property
    def waits(self) -> bool:
        """Whether it waits for a job."""
        return self.client is None

    def answer(self, code: int) -> None:
        """Tell the client, if one waits, how its job ended."""
        client, self.client = self.client, None
        if client is not None:
            with client, contextlib.suppress(OSError):
                client.sendall(code.to_bytes(4, "big"))

    def kill(self, number: int) -> None:
        """Send a signal to it and to what it started."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def end(self) -> None:
        """End it while it waits; its memory is free when this returns."""
        self.kill(signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.channel.close()


def serve(
    path: Path, modules: Sequence[str] = PRELOADED, idle: float = IDLE, owner: int | None = None
) -> None:
    """Import ``modules``, then run every request on the socket ``path``, until nobody asks any more.

    No thread of ours runs here before a fork (pyarrow's allocator has one of its own, and handles forks). When a client
    goes away its child is told to stop, and killed if it has not after ten seconds.

    Args:
        path: the socket.
        modules: what is imported; a module that is not installed is left to the job that needs it.
        idle: seconds without a job after which the server leaves.
        owner: a process with which the server leaves.
    """
    listener = socket.socket(socket.AF_UNIX)
    waiting_room = path.with_name(f"{path.name}.{os.getpid()}")
    old = os.umask(0o177)
    listener.bind(str(waiting_room))  # before anything is imported: should it fail, it fails at once
    os.umask(old)
    for name in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    imported = sources()
    importlib.import_module(COMMANDS).preload()
    gc.freeze()  # a child that collects garbage would else copy all of it
    os.replace(waiting_room, path)
    listener.listen(64)
    inode = path.stat().st_ino
    children: list[Child] = []
    last = time.monotonic()
    while not all(child.waits for child in children) or time.monotonic() - last < idle:
        said = [child.channel for child in children]
        clients = [child.client for child in children if child.client and child.doomed is None]
        busy = any(not child.waits for child in children)
        readable, _, _ = select.select([listener, *said, *clients], [], [], 0.02 if busy else 1.0)
        if not path.exists() or path.stat().st_ino != inode:
            idle = 0.0  # another server took the place, or the folder was cleared: finish what runs
        if owner is not None and not Path(f"/proc/{owner}").exists():
            idle = 0.0
        for child in list(children):
            _listen(child, readable)
            ended, status = os.waitpid(child.pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                child.answer(code if code >= 0 else 128 - code)
                child.channel.close()
                children.remove(child)
            if ended or child.channel in readable:
                last = time.monotonic()
        if listener in readable and not _accept(listener, children, imported):
            idle = 0.0
        _free(children)
    for child in children:
        child.end()
    if path.exists() and path.stat().st_ino == inode:
        path.unlink()


def _listen(child: Child, readable: Sequence[Any]) -> None:
    """Hear what a child reports and whether its client is still there; see to it that a doomed one ends."""
    if child.channel in readable:
        with contextlib.suppress(OSError):
            report = child.channel.recv(REPORT.size, socket.MSG_WAITALL)
            if len(report) == REPORT.size:  # else it ends
                code, child.held, child.gpu = REPORT.unpack(report)
                child.since = time.monotonic()
                child.answer(code)
    if child.client is not None and child.client in readable and child.doomed is None:
        child.kill(signal.SIGTERM)  # a client says nothing while it waits: this is its end
        child.doomed = time.monotonic() + 10
    if child.doomed is not None and time.monotonic() > child.doomed:
        child.kill(signal.SIGKILL)


def _free(children: list[Child]) -> None:
    """End those that have waited longest, until the rest are few and hold little."""
    most = SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    while waiting := [child for child in children if child.waits and child.doomed is None]:
        if len(waiting) <= WAITING and sum(child.held for child in waiting if not child.gpu) <= most:
            return
        oldest = min(waiting, key=lambda child: child.since)
        oldest.end()
        children.remove(oldest)


def _accept(listener: socket.socket, children: list[Child], imported: Sources) -> bool:
    """Have a request run by a child that waits for such a job, or by a new one.

    Returns:
        False once the code is no longer what was imported; the client then runs its job itself.
    """
    client, _ = listener.accept()
    try:
        message, streams = _receive(client)
        request = json.loads(message)
    except (OSError, ValueError):
        client.close()
        return True
    is_current = sources() == imported
    try:
        if not is_current or not sys.modules[COMMANDS].can_be_warm(request["arguments"]):
            raise OSError("the client runs its job itself")
        model = _common(request)
        waiting = [c for c in children if c.waits and c.doomed is None]
        fit = [c for c in waiting if model is not None and c.model == model]
        chosen = max(fit, key=lambda child: child.since, default=None)
        for child in [c for c in waiting if c.gpu and c is not chosen]:
            child.end()
            children.remove(child)
        if chosen is not None:
            _send(chosen.channel, message, streams)
            chosen.client = client
        else:
            children.append(_fork(listener, children, client, message, streams, model, imported))
    except OSError:  # or the child ended a moment ago, or no process could be had
        client.close()
        return is_current
    finally:
        for stream in streams:
            os.close(stream)
    with contextlib.suppress(OSError):  # a client that is gone is seen in the next round
        client.sendall(STARTED)
    return is_current


def _common(request: Mapping[str, Any]) -> str | None:
    """What two jobs must have in common so that one may take over the other's process, as a digest; None if none may.

    What the command says (:func:`localized_unlearning.cli.commands.shared`), the folder, the CPU set, and the environment
    apart from :data:`OWN`.
    """
    try:
        found = sys.modules[COMMANDS].shared(request["arguments"])
    except SystemExit:  # wrong usage: the child says so
        return None
    if found is None:
        return None
    environment = {
        name: value
        for name, value in request["environment"].items()
        if name not in OWN and not name.startswith(("SLURM_", "PMI"))
    }
    parts = [found, request["folder"], request["cpus"], environment]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """A request, as its client sent it, and the client's three streams.

    Raises:
        OSError: when the other side went away.
    """
    header, streams, _, _ = socket.recv_fds(connection, 8, 3)
    message, size = b"", int.from_bytes(header, "big")
    while len(message) < size or not header:
        part = connection.recv(min(1 << 20, size - len(message))) if header else b""
        if not part:
            for stream in streams:
                os.close(stream)
            raise OSError("the other side went away")
        message += part
    return message, list(streams)


def _send(connection: socket.socket, message: bytes, streams: Sequence[int]) -> None:
    socket.send_fds(connection, [len(message).to_bytes(8, "big")], list(streams))
    connection.sendall(message)


def _fork(
    listener: socket.socket,
    children: Sequence[Child],
    client: socket.socket,
    message: bytes,
    streams: Sequence[int],
    model: str | None,
    imported: Sources,
) -> Child:
    """A child that runs the request and, if ``model`` is given, waits for more of the kind."""
    server, (ours, its) = os.getpid(), socket.socketpair()
    try:
        pid = os.fork()
    except OSError:
        ours.close()
        its.close()
        raise
    if pid == 0:
        for other in (listener, client, ours):
            other.close()
        for child in children:
            child.channel.close()
            if child.client is not None:
                child.client.close()
        _work(its, message, list(streams), server, model is not None, imported)
    its.close()
    return Child(pid, ours, client, model)


# ---- in the child


def _end_with(server: int) -> None:
    """End this process, politely, once its server is gone: nobody would hear of its end."""

    def watch() -> None:
        while os.getppid() == server:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _work(
    channel: socket.socket, message: bytes, streams: list[int], server: int, waits: bool, imported: Sources
) -> None:
    """The child: become the client, run its command, wait for the next if it may; never return."""
    code = 1
    try:
        os.setpgid(0, 0)
        _end_with(server)
        _take(streams)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        kept: Kept = sys.modules["localized_unlearning.jobs.job"].Kept(imported=imported)
        while True:
            code = _job(json.loads(message), kept)
            sys.stdout.flush()
            sys.stderr.flush()
            if code != 0 or not waits or kept.model is None:
                break
            model = kept.model
            report = REPORT.pack(code, model.size, model.model.device.type != "cpu")
            del model
            nothing = os.open(os.devnull, os.O_RDWR)
            _take(
                [nothing, os.dup(nothing), os.dup(nothing)]
            )  # so that a reader of the client's streams sees their end
            channel.sendall(report)
            message, streams = _receive(channel)
            _take(streams)
    except OSError:
        code = code or 1  # the server is gone while this waited, or the client's folder is
    finally:
        os._exit(code)


def _take(streams: Sequence[int]) -> None:
    """Make these this process's standard streams."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)


def _job(request: Mapping[str, Any], kept: Kept) -> int:
    """Run one command as its client would; its exit status. What is kept for the next is put into ``kept``."""
    code = 1
    try:
        os.umask(int(request["umask"]))
        if cpus := request["cpus"]:
            os.sched_setaffinity(0, cpus)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(str(request["folder"]))
        arguments = [str(a) for a in request["arguments"]]
        sys.argv = ["localized-unlearning", *arguments]

        code = sys.modules[COMMANDS].main(arguments, kept)
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    return code


if __name__ == "__main__":
    serve(Path(sys.argv[1]), owner=int(sys.argv[2]) if len(sys.argv) > 2 else None)
