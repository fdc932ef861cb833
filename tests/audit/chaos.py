"""Kills jobs, warm starts and Snakemake at random moments of the tiny run, and compares what is left with an
uninterrupted one: nothing wrong, nothing lost.

Not part of the tests, since it takes a quarter of an hour: ``python tests/audit/chaos.py FOLDER --kills 300``.
A result is *wrong* when the audit calls it intact although its bytes are not those of the uninterrupted run, or calls
an intact one modified; it is *lost* when it is not there at the end. Snakemake is started again, with
``--rerun-incomplete``, whenever it has ended.
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
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from localized_unlearning.audit.findings import Audit
from localized_unlearning.provenance import records
from tiny_run import TINY, environment, workplace

MARK = "LOCALIZED_UNLEARNING_CHAOS"
TOPS = ("results", "figures")


class Chaos:
    """One folder's run, its kills and what came of them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.draw, self.token = folder, random.Random(seed), uuid.uuid4().hex
        self.kills: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.starts = self.unrecorded = self.swept = 0
        self.environment = environment(folder) | {
            MARK: self.token,
            "XDG_RUNTIME_DIR": tempfile.mkdtemp(prefix="c"),
        }

    def start(self) -> subprocess.Popen[bytes]:
        """Snakemake in a session of its own."""
        words = ["-m", "snakemake", "all", "--cores", "2", "--retries", "50", "--keep-going", "--rerun-incomplete",
                 "--configfile", "tiny.yaml", "--quiet", "all"]  # fmt: skip
        self.starts += 1
        with (self.folder / "snakemake.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *words], cwd=self.folder, env=self.environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def unlock(self) -> None:
        """Take the lock of a killed Snakemake away."""
        words = [sys.executable, "-m", "snakemake", "--unlock", "--configfile", "tiny.yaml"]
        subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, check=False)

    def victims(self) -> Iterator[tuple[int, str]]:
        """Processes of this run's jobs and warm starts; no other process carries its token."""
        for entry in Path("/proc").iterdir():
            try:
                if not entry.name.isdigit() or self.token not in (entry / "environ").read_text(
                    errors="replace"
                ):
                    continue
                words = (entry / "cmdline").read_text().split("\0")
            except OSError:
                continue
            if "localized_unlearning.cli.main" in words:
                yield int(entry.name), "job"
            elif "localized_unlearning.cli.warm" in words:
                yield int(entry.name), "warm start"

    def strike(self, run: subprocess.Popen[bytes]) -> None:
        """Kill one process, or Snakemake and all that it started."""
        number = self.draw.choice([signal.SIGKILL] * 3 + [signal.SIGTERM])
        if self.draw.random() < 0.05:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            self.kills["snakemake"] += 1
            return
        found = sorted(self.victims())
        if found:
            pid, what = self.draw.choice(found)
            try:
                os.kill(pid, number)
                self.kills[what] += 1
            except ProcessLookupError:
                pass

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
    """Run to the number of kills, or to the end of the time; 0 when nothing was wrong or lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="a new folder, or one whose uninterrupted run is there from before"
    )
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=30, help="stop killing after this time")
    parser.add_argument("--pace", type=float, default=1.0, help="about the seconds between two kills")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    reference = folder / "uninterrupted"
    chaos = Chaos(folder, arguments.seed)
    begun = time.monotonic()
    if not reference.is_dir():
        folder.mkdir()
        workplace(folder, TINY)
        if chaos.start().wait():
            print((folder / "snakemake.log").read_text()[-2000:])
            return 2
        reference.mkdir()
        for top in TOPS:
            shutil.copytree(folder / top, reference / top)
    rounds = lost = 0
    deadline = time.monotonic() + 60 * arguments.minutes
    while chaos.kills.total() < arguments.kills and time.monotonic() < deadline:
        rounds += 1
        for top in TOPS:
            shutil.rmtree(folder / top, ignore_errors=True)
        while True:
            run = chaos.start()
            while run.poll() is None:
                time.sleep(chaos.draw.choice((0.2, 1, 3)) * chaos.draw.expovariate(1 / arguments.pace))
                if (
                    run.poll() is None
                    and chaos.kills.total() < arguments.kills
                    and time.monotonic() < deadline
                ):
                    chaos.strike(run)
            chaos.look(reference)
            if run.returncode == 0:
                break
            chaos.unlock()
        lost += len(files(reference).keys() - files(folder).keys())
        left = [
            p for top in TOPS for p in (folder / top).rglob(".*") if ".tmp-" in p.name or p.suffix == ".lock"
        ]
        print(f"round {rounds}: {chaos.kills.total()} kills, {len(left)} temporaries left", flush=True)
    kinds = ", ".join(f"{count} of {what}" for what, count in chaos.kills.most_common())
    print(
        f"{chaos.kills.total()} kills ({kinds}) in {rounds} rounds and {chaos.starts} starts of Snakemake, "
        f"{(time.monotonic() - begun) / 60:.0f} minutes; on the way "
        f"{chaos.swept} temporaries and {chaos.unrecorded} outputs without a record, all made again; "
        f"{len(chaos.wrong)} wrong, {lost} lost"
    )
    print(*chaos.wrong[:20], sep="\n")
    return int(bool(chaos.wrong or lost))


if __name__ == "__main__":
    sys.exit(main())
