#!/usr/bin/env python3
"""What the profile's groups are worth: the tests' run with and without them, as a table in docs/running-on-slurm.md.

python tests/slurm/groups.py        # about ten minutes; starts and stops the simulated cluster
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from checkout import ROOT, set_up
from cluster import CPUS, NODES, Cluster

PAGE = ROOT / "docs/running-on-slurm.md"
START, END = "<!-- groups: tests/slurm/groups.py -->\n", "<!-- end -->\n"


def measure(cluster: Cluster, grouped: bool) -> tuple[int, int, float, float]:
    """Recorded jobs, Slurm jobs, hours of allocations and wall seconds of the promised line."""
    with tempfile.TemporaryDirectory() as folder:
        checkout = set_up(Path(folder))
        if not grouped:
            profile = yaml.safe_load(checkout.profile.read_text())
            del profile["groups"], profile["group-components"]
            checkout.profile.write_text(yaml.safe_dump(profile))
        before, began = len(cluster.jobs()), time.monotonic()
        done = checkout.run("snakemake --profile slurm all", timeout=3000)
        assert done.returncode == 0, done.stdout + done.stderr
        wall = time.monotonic() - began
        jobs = cluster.jobs()[before:]
        times = [datetime.fromisoformat(j["EndTime"]) - datetime.fromisoformat(j["StartTime"]) for j in jobs]
        return len(checkout.records()), len(jobs), sum(t.total_seconds() for t in times), wall


def main() -> None:
    cluster = Cluster()
    cluster.down()
    cluster.up()
    try:
        rows = {name: measure(cluster, name == "with groups") for name in ("with groups", "without")}
    finally:
        cluster.down()
    commit = subprocess.check_output(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], text=True
    ).strip()
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    lines = ["| | jobs | Slurm jobs | seconds of allocations | wall seconds |", "|---|---|---|---|---|"]
    lines += [f"| {name} | {r[0]} | {r[1]} | {r[2]:.0f} | {r[3]:.0f} |" for name, r in rows.items()]
    lines += [
        "",
        f"`python tests/slurm/groups.py` at {commit}, {len(NODES)} nodes that claim {CPUS} cores each on one machine's "
        f"{os.cpu_count()} ({model[1] if model else platform.machine()}); no waiting in the queue, so that the saved queueing "
        "of a busy cluster is not in it.",
    ]
    head, rest = PAGE.read_text().split(START)
    PAGE.write_text(head + START + "\n".join(lines) + "\n" + END + rest.split(END)[1])
    print("\n".join(lines))


if __name__ == "__main__":
    main()
