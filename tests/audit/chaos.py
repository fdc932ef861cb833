"""Kills jobs, warm starts and Snakemake at random moments of the tiny run, and compares what is left with an
uninterrupted one: nothing wrong, nothing lost.

Not part of the tests, since it takes a quarter of an hour: ``python tests/audit/chaos.py FOLDER --kills 300``.
A result is *wrong* when the audit calls it intact although its bytes are not those of the uninterrupted run, or calls
an intact one modified; it is *lost* when it is not there at the end. Snakemake is started again, with
``--rerun-incomplete``, whenever it has ended.

Each start of a command is doomed or spared when it is first seen, and a doomed one is struck at a random share of the time
that its stage took before, so that a slow machine is struck as a fast one is. No command is struck more than
:data:`MOST` times between two removals of the results, so that the run gets on however often it is struck. A run that is
complete before the kills are used up begins anew.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from localized_unlearning.audit.findings import Audit
from localized_unlearning.provenance import records
from tiny_run import TINY, environment, workplace

MARK = "LOCALIZED_UNLEARNING_CHAOS"
TOPS = ("results", "figures")
DOOMED = 0.75
"""The share of the starts of commands that are struck."""
MOST = 6
"""Most strikes at one command."""
FIRST = 3.0
"""Seconds that a command is taken to last before one of its stage was seen to its end."""


@dataclass(frozen=True)
class Process:
    """A process of this run's: ``what`` is a command as the shell started it, the warm server, or its forked child."""

    pid: int
    what: str
    words: tuple[str, ...]
    errors: str
    """Where its standard error goes: a command and the child that works for it share a log."""


@dataclass
class Fate:
    """What shall become of a command that runs."""

    words: tuple[str, ...]
    share: float | None
    """The share of its stage's usual time after which it is struck; None if it is spared."""
    begun: float = field(default_factory=time.monotonic)


class Chaos:
    """One folder's run, its kills and what came of them."""

    def __init__(self, folder: Path, seed: int, most: int, seconds: float) -> None:
        self.folder, self.draw, self.token = folder, random.Random(seed), uuid.uuid4().hex
        self.most, self.deadline = most, time.monotonic() + seconds
        self.kills: Counter[str] = Counter()
        self.struck: Counter[tuple[str, ...]] = Counter()
        self.stages: Counter[str] = Counter()
        self.lasting: dict[str, float] = {}
        self.wrong: list[str] = []
        self.starts = self.unrecorded = self.swept = 0
        self.environment = environment(folder) | {
            MARK: self.token,
            "XDG_RUNTIME_DIR": tempfile.mkdtemp(prefix="c"),
        }

    @property
    def over(self) -> bool:
        """Whether no more is killed."""
        return self.kills.total() >= self.most or time.monotonic() > self.deadline

    def run(self, spared: bool = False) -> int:
        """Start Snakemake, strike while it runs, and return its exit status."""
        words = ["-m", "snakemake", "all", "--cores", "2", "--retries", "50", "--keep-going", "--rerun-incomplete",
                 "--configfile", "tiny.yaml", "--quiet", "all"]  # fmt: skip
        self.starts += 1
        with (self.folder / "snakemake.log").open("ab") as log:
            run = subprocess.Popen(
                [sys.executable, *words], cwd=self.folder, env=self.environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        fates: dict[int, Fate] = {}
        while run.poll() is None:
            time.sleep(0.2)
            found = self.processes()
            commands = {process.pid: process for process in found if process.what == "command"}
            for pid in fates.keys() - commands.keys():
                self.learn(fates.pop(pid))
            for pid, command in commands.items():
                fate = fates.setdefault(pid, self.fate(command, spared))
                if fate.share is not None and self.due(fate) and not self.over:
                    fate.share = None
                    fate.begun = float("inf")  # its end says nothing of its stage's time
                    self.strike(run, command, found)
        return run.returncode

    def fate(self, command: Process, spared: bool) -> Fate:
        """Draw what shall become of a command."""
        spared = spared or command.words[0] == "audit" or self.struck[command.words] >= MOST
        doomed = not spared and self.draw.random() < DOOMED
        return Fate(command.words, self.draw.random() if doomed else None)

    def due(self, fate: Fate) -> bool:
        """Whether a doomed command's moment has come."""
        lasting = self.lasting.get(fate.words[0], FIRST)
        return fate.share is not None and time.monotonic() - fate.begun >= fate.share * lasting

    def learn(self, fate: Fate) -> None:
        """How long the commands of a stage last, by one that was not struck."""
        lasted = time.monotonic() - fate.begun
        if lasted > 0:
            self.lasting[fate.words[0]] = (self.lasting.get(fate.words[0], lasted) + lasted) / 2

    def unlock(self) -> None:
        """Take the lock of a killed Snakemake away."""
        words = [sys.executable, "-m", "snakemake", "--unlock", "--configfile", "tiny.yaml"]
        subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, check=False)

    def processes(self) -> list[Process]:
        """This run's commands and warm starts; no other process carries its token."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if not entry.name.isdigit() or self.token not in (entry / "environ").read_text(
                    errors="replace"
                ):
                    continue
                words = tuple((entry / "cmdline").read_text().rstrip("\0").split("\0"))
                errors = os.readlink(entry / "fd/2")
                parent = Path(f"/proc/{(entry / 'stat').read_text().rpartition(')')[2].split()[1]}")
                above = (parent / "cmdline").read_text()
            except OSError:
                continue
            if "localized_unlearning.cli.main" in words:
                words = words[words.index("localized_unlearning.cli.main") + 1 :]
                found.append(Process(int(entry.name), "command", words, errors))
            elif "localized_unlearning.cli.serving" in words:
                what = "forked child" if "localized_unlearning.cli.serving" in above else "warm server"
                found.append(Process(int(entry.name), what, words, errors))  # the last word is the socket
        return found

    def strike(self, run: subprocess.Popen[bytes], command: Process, found: list[Process]) -> None:
        """Kill a command, the child that works for it, the server of warm starts, or Snakemake with its commands.

        A server that does not listen yet is spared: one that died while it started is not tried again for an hour.
        """
        number = self.draw.choice([signal.SIGKILL] * 3 + [signal.SIGTERM])
        lot = self.draw.random()
        children = [p for p in found if p.what == "forked child" and p.errors == command.errors]
        servers = [p for p in found if p.what == "warm server" and Path(p.words[-1]).exists()]
        victim = command
        if lot < 0.04:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            self.kills["Snakemake"] += 1
        else:
            if lot < 0.09 and servers:
                victim = servers[0]
            elif lot < 0.55 and children:
                victim = children[0]
            try:
                os.kill(victim.pid, number)
            except ProcessLookupError:
                return
            self.kills[f"{victim.what} ({signal.Signals(number).name})"] += 1
        self.struck[command.words] += 1
        self.stages[command.words[0]] += 1

    def look(self, reference: Path) -> None:
        """Compare what the audit says now with the uninterrupted run."""
        audit = Audit([self.folder / top for top in TOPS if (self.folder / top).is_dir()], self.folder)
        for finding in audit.findings():
            name = finding.path.relative_to(self.folder)
            same = _same(finding.path, reference / name)
            if finding.integrity == "modified" or (finding.integrity == "ok" and not same):
                self.wrong.append(
                    f"{name}: {finding.integrity}, {'same' if same else 'other'} bytes: {finding.reasons}"
                )
            elif finding.integrity == "ok" and finding.currency != "ok":
                self.wrong.append(f"{name}: {finding.currency}: {finding.reasons}")
            self.unrecorded += finding.integrity == "unrecorded"
            self.swept += finding.integrity == "incomplete"


def files(folder: Path) -> dict[str, Path]:
    """The artefacts below ``results`` and ``figures``."""
    found = [p for top in TOPS for p in (folder / top).rglob("*") if p.is_file()]
    return {
        str(p.relative_to(folder)): p
        for p in found
        if not p.name.endswith(records.SUFFIX)
        and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    }


def _same(one: Path, other: Path) -> bool:
    if one.is_dir():
        names = [n for n in files_in(one)]
        return names == files_in(other) and all(_same(one / n, other / n) for n in names)
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def files_in(folder: Path) -> list[str]:
    """A folder's files by relative name, Snakemake's mark aside."""
    return sorted(
        str(p.relative_to(folder))
        for p in folder.rglob("*")
        if p.is_file() and not p.name.startswith(".snakemake")
    )


def main() -> int:
    """Run to the number of kills; 0 when all were made and nothing was wrong or lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="a new folder, or one whose uninterrupted run is there from before"
    )
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=60, help="kill no more after this time")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    reference = folder / "uninterrupted"
    chaos = Chaos(folder, arguments.seed, arguments.kills, 60 * arguments.minutes)
    begun = time.monotonic()
    if not reference.is_dir():
        folder.mkdir()
        workplace(folder, TINY)
        if chaos.run(spared=True):
            print((folder / "snakemake.log").read_text()[-2000:])
            return 2
        unfinished = folder / "uninterrupted.unfinished"
        unfinished.mkdir()
        for top in TOPS:
            shutil.copytree(folder / top, unfinished / top)
        unfinished.rename(reference)
    wanted = files(reference).keys()
    print(f"{len(wanted)} files of the uninterrupted run", flush=True)
    rounds = lost = 0
    while not chaos.over:
        rounds += 1
        chaos.struck.clear()
        for top in TOPS:
            shutil.rmtree(folder / top, ignore_errors=True)
        while True:
            before = chaos.kills.total()
            status = chaos.run()
            chaos.look(reference)
            print(f"{chaos.kills.total()} kills, {len(files(folder))} files", flush=True)
            if status == 0:
                break
            if chaos.kills.total() == before:
                print(f"Snakemake ended with {status} although nothing was killed", flush=True)
                return 1
            chaos.unlock()
        lost += len(wanted - files(folder).keys())
        left = [
            p for top in TOPS for p in (folder / top).rglob(".*") if ".tmp-" in p.name or p.suffix == ".lock"
        ]
        print(f"round {rounds} complete: {len(left)} temporaries left", flush=True)
    kinds = ", ".join(f"{count} of {what}" for what, count in chaos.kills.most_common())
    print(
        f"{chaos.kills.total()} kills ({kinds}) in commands of {len(chaos.stages)} stages, {rounds} rounds and "
        f"{chaos.starts} starts of Snakemake, {(time.monotonic() - begun) / 60:.0f} minutes; on the way "
        f"{chaos.swept} temporaries and {chaos.unrecorded} outputs without a record, all made again; "
        f"{len(chaos.wrong)} wrong, {lost} lost"
    )
    print(*(f"{count} {stage}" for stage, count in chaos.stages.most_common()), sep=", ")
    print(*chaos.wrong[:20], sep="\n")
    return int(bool(chaos.wrong or lost or chaos.kills.total() < arguments.kills))


if __name__ == "__main__":
    sys.exit(main())
