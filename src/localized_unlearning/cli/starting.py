"""Warm starts for the members of a Slurm group: a server that outlives their steps.

Each member of a group is a step of its own, and Slurm ends a step with all that was started in it. The group's Snakemake
runs outside of the steps, in the batch script, as long as the allocation lasts. It starts a *starter* there, which waits
for the first member that wants a server, and starts it with that member's environment. The starter leaves with its
Snakemake, and the server with the starter. Where anything of this fails, each member runs cold, as outside of a group.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from localized_unlearning.cli import warm
from localized_unlearning.jobs.stages import STAGES

EXECUTOR = "slurm-jobstep"
"""Snakemake's executor inside an allocation."""

MOST = 1 << 20  # bytes of a request


def begin(words: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """Start a starter, if this is the Snakemake of a Slurm group whose members can share a loaded model.

    Args:
        words: Snakemake's command line.
        environment: its environment.

    Returns:
        The starter's socket, for :data:`localized_unlearning.cli.warm.STARTER` in the members' environment.
    """
    sharing = [rule for rule in members(words) if rule in STAGES and STAGES[rule].shares]
    inside = EXECUTOR in words and "SLURM_JOB_ID" in environment and warm.STARTER not in environment
    if not inside or len(sharing) < 2 or not warm.possible():
        return None
    folder = tempfile.mkdtemp(prefix="warm-")
    path = Path(folder) / "starter"
    if len(os.fsencode(path)) > warm.LONGEST:
        os.rmdir(folder)
        return None
    subprocess.Popen(
        [sys.executable, "-m", "localized_unlearning.cli.starting", str(path)],
        start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return str(path)


def members(words: Sequence[str]) -> list[str]:
    """The rules of the jobs that a submitted Snakemake is to run.

    >>> members(["snakemake", "--target-jobs", "facts:task=sports,seed=0", "text:seed=0", "--cores", "all"])
    ['facts', 'text']
    """
    found: list[str] = []
    if "--target-jobs" in words:
        for word in words[words.index("--target-jobs") + 1 :]:
            if word.startswith("-"):
                break
            found.append(word.partition(":")[0])
    return found


def serve(path: Path) -> None:
    """Start the servers that clients ask for on the socket ``path``, until the parent process is gone."""
    parent = os.getppid()
    listener = socket.socket(socket.AF_UNIX)
    old = os.umask(0o177)
    listener.bind(str(path))
    os.umask(old)
    listener.listen(8)
    listener.settimeout(0.5)
    servers: list[subprocess.Popen[bytes]] = []
    try:
        while os.getppid() == parent:
            with contextlib.suppress(OSError, ValueError):  # nobody asks, or the one who asked is gone
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(10.0)
                    server = _start(json.loads(_read(connection)))
                    if server is not None:
                        servers.append(server)
                        connection.sendall(warm.STARTED)
            servers = [server for server in servers if server.poll() is None]
    finally:
        shutil.rmtree(path.parent, ignore_errors=True)


def _read(connection: socket.socket) -> bytes:
    """All that a client says before it stops."""
    said = b""
    while len(said) < MOST and (part := connection.recv(1 << 16)):
        said += part
    return said


def _start(request: Mapping[str, object]) -> subprocess.Popen[bytes] | None:
    """A server as the client would have started it; none where it would have other limits than the client's."""
    if request["inherited"] != json.loads(json.dumps(warm.inherited())):
        return None
    path, environment = Path(str(request["path"])), request["environment"]
    if not isinstance(environment, dict):
        return None
    server = warm.launch(path, [str(os.getpid())], environment)
    return server if warm.listens(path, server) else None


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
