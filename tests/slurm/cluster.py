#!/usr/bin/env python3
"""A real Slurm on this machine, to run jobs through: loopback only, simulated nodes that claim A100s.

    python tests/slurm/cluster.py up        # installs slurm-wlm and munge where absent (Debian, as root)
    python tests/slurm/cluster.py down      # stops what `up` started, and forgets it

The daemons are Debian's own, in the foreground of sessions of their own, without systemd or cgroups. Two CPU
nodes and two GPU nodes share this machine's cores; what they claim is only what the scheduler believes. There
is no accounting database (finished jobs stand in ``jobs.txt``, one line each), as on the simplest real sites.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGES = {"slurmctld": "slurm-wlm", "munged": "munge"}
NODES = ("cpu1", "cpu2", "gpu1", "gpu2")
PORT = 17210
CPUS, MEMORY, GPUS = 4, 200_000, 4
"""What a node claims: cores, MB of memory, A100s of a GPU node."""


class Unavailable(Exception):
    """Slurm cannot be had here; the message says why."""


@dataclass(frozen=True)
class Cluster:
    """The cluster whose state, logs and process numbers lie in ``folder``."""

    folder: Path = Path(os.environ.get("SLURM_CLUSTER", f"{tempfile.gettempdir()}/simulated-slurm"))

    @property
    def finished(self) -> Path:
        """Slurm's own list of finished jobs."""
        return self.folder / "jobs.txt"

    # ---- up and down

    def up(self) -> None:
        """Start every daemon that is not running, and wait until all nodes can take jobs.

        Raises:
            Unavailable: when the packages cannot be installed, or another Slurm is configured here.
            RuntimeError: when a daemon does not come up; with the end of its log.
        """
        install()
        for name in ("run", "log", "state", "dev"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # the daemon of munge is another user
        self._munge()
        self._configure()
        self.start("slurmctld")
        self._wait("the controller", lambda: _quiet("scontrol", "ping"), "slurmctld")
        for node in NODES:
            self.start(node)
        self._wait("the nodes", lambda: set(self.nodes().values()) == {"idle"}, *NODES)

    def down(self) -> None:
        """Cancel all jobs, stop what was started here, and remove its files."""
        if self._pid("slurmctld"):
            _quiet("scancel", "--user", str(os.getuid()))
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline and _output("squeue", "--noheader"):
                time.sleep(0.2)
        for name in (*NODES, "slurmctld", "munged"):
            self.stop(name)
        for path in (Path("/etc/slurm") / name for name in ("slurm.conf", "gres.conf")):
            if path.is_symlink() and path.readlink().parent == self.folder:
                path.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, name: str) -> None:
        """Start one daemon: ``munged``, ``slurmctld`` or a node."""
        if self._pid(name):
            return
        command = {
            "munged": [
                "runuser", "-u", "munge", "--", "munged", "--foreground", "--force", f"--key-file={self.folder}/munge/key",
                f"--socket={self.folder}/munge/socket", f"--pid-file={self.folder}/munge/pid",
                f"--seed-file={self.folder}/munge/seed", f"--log-file={self.folder}/munge/log",
            ],
            "slurmctld": ["slurmctld", "-D"],
        }.get(name, ["slurmd", "-D", "-N", name])  # fmt: skip
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        (self.folder / "run" / name).write_text(f"{process.pid}\n")

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        """End one daemon and wait for its end; killed after ten seconds."""
        pid = self._pid(name)
        deadline = time.monotonic() + 10
        while pid and _alive(pid):
            os.kill(pid, number if time.monotonic() < deadline else signal.SIGKILL)
            time.sleep(0.2)
        (self.folder / "run" / name).unlink(missing_ok=True)

    # ---- what it says

    def nodes(self) -> dict[str, str]:
        """State of each node."""
        return dict(line.split() for line in _output("sinfo", "-h", "-N", "-o", "%N %T").splitlines())

    def jobs(self) -> list[dict[str, str]]:
        """The finished jobs in the order of their ends: JobId, JobState, Partition, NodeList and so on."""
        if not self.finished.is_file():
            return []
        lines = self.finished.read_text().splitlines()
        return [dict(part.split("=", 1) for part in line.split(" ") if "=" in part) for line in lines]

    # ---- how

    def _pid(self, name: str) -> int | None:
        try:
            pid = int((self.folder / "run" / name).read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if _alive(pid) else None

    def _munge(self) -> None:
        folder = self.folder / "munge"
        folder.mkdir(exist_ok=True)
        key = folder / "key"
        if not key.exists():
            key.write_bytes(os.urandom(128))
            key.chmod(0o400)
            for path in (key, folder):
                shutil.chown(path, "munge", "munge")
        self.start("munged")
        self._wait("munge", lambda: _quiet("munge", "-n", "-S", str(folder / "socket")), "munged")

    def _configure(self) -> None:
        host = socket.gethostname().split(".")[0]
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={PORT + 1 + n} CPUs={CPUS} "
            f"RealMemory={MEMORY}" + (f" Gres=gpu:a100:{GPUS} Feature=a100_80gb" if "gpu" in name else "")
            for n, name in enumerate(NODES)
        )
        (self.folder / "slurm.conf").write_text(
            SLURM_CONF.format(folder=self.folder, host=host, port=PORT, nodes=nodes)
        )
        for number in range(GPUS):  # device files, so that Slurm sets CUDA_VISIBLE_DEVICES as on a real node
            device = self.folder / "dev" / f"nvidia{number}"
            if not device.exists():
                os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # /dev/null's
        (self.folder / "gres.conf").write_text(
            f"NodeName=gpu[1-2] Name=gpu Type=a100 File={self.folder}/dev/nvidia[0-{GPUS - 1}]\n"
        )
        # The executor's job step drops SLURM_CONF before it calls srun: the default path must work.
        Path("/etc/slurm").mkdir(exist_ok=True)
        for name in ("slurm.conf", "gres.conf"):
            path = Path("/etc/slurm") / name
            if path.is_symlink() and not path.exists():
                path.unlink()
            if not path.is_symlink() and not path.exists():
                path.symlink_to(self.folder / name)
            if not path.is_symlink() or path.readlink() != self.folder / name:
                raise Unavailable(f"another Slurm is configured here: {path}")

    def _wait(self, what: str, ready: Callable[[], bool], *logs: str) -> None:
        deadline = time.monotonic() + 30
        while not ready():
            if time.monotonic() > deadline:
                paths = [path for name in logs for path in sorted((self.folder / "log").glob(f"{name}.*"))]
                said = "\n".join(f"{p.name}: {p.read_text(errors='replace')[-1500:]}" for p in paths)
                raise RuntimeError(f"{what} did not come up\n{said}")
            time.sleep(0.2)


SLURM_CONF = """\
ClusterName=simulated
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
# no systemd, no cgroups
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
# a job over its memory is killed, as a real site does; looked at every second
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
# what the nodes claim goes before what the machine has
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
# quick turns
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=1,bf_interval=2
PriorityType=priority/basic
SlurmctldTimeout=30
SlurmdTimeout=20
OverTimeLimit=0
KillWait=2
# Debian's default; the executor needs three times its first pause, or it falls back to sacct
MinJobAge=300
ReturnToService=2
PropagateResourceLimits=NONE
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.txt
StateSaveLocation={folder}/state/controller
SlurmctldPidFile={folder}/run/slurmctld.own
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdSpoolDir={folder}/state/%n
SlurmdPidFile={folder}/run/%n.own
SlurmdLogFile={folder}/log/%n.log
{nodes}
PartitionName=cpu Nodes=cpu[1-2] Default=YES MaxTime=1-00:00:00 DefaultTime=60 DefMemPerCPU=1000 State=UP
PartitionName=gpu Nodes=gpu[1-2] Default=NO MaxTime=2-00:00:00 DefaultTime=60 DefMemPerCPU=1000 State=UP
"""


def install() -> None:
    """Install Slurm and munge where they are absent.

    Raises:
        Unavailable: where that cannot be done.
    """
    missing = [package for command, package in PACKAGES.items() if not shutil.which(command)]
    if os.geteuid() != 0:
        raise Unavailable("a Slurm cluster of our own takes root (daemons, /etc/slurm)")
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise Unavailable(f"{' and '.join(missing)} not installed, and no apt-get to install with")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
        done = subprocess.run(["apt-get", "-qq", *words], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"apt-get {' '.join(words)} failed: {done.stderr.strip()[-300:]}")


def _alive(pid: int) -> bool:
    try:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
    except ChildProcessError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _quiet(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except subprocess.TimeoutExpired:
        return ""


def main(words: Sequence[str]) -> int:
    """``up`` or ``down``."""
    if list(words) not in (["up"], ["down"]):
        print(__doc__, file=sys.stderr)
        return 2
    cluster = Cluster()
    try:
        getattr(cluster, words[0])()
    except Unavailable as error:
        print(error, file=sys.stderr)
        return 1
    if words[0] == "up":
        print(_output("sinfo", "-o", "%P %D nodes: %N, %c cores, %m MB, %G"), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
