"""Locks that a job of another machine left, through a real sbatch: the simulated nodes are one machine, so that what
another node's job wrote is planted under another machine's mark."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkout import Checkout, holder, scontrol, set_up, wait_for
from cluster import Cluster

PRETRAINED = "results/tiny/base0/pretrained"
ELSEWHERE = {"host": "0123456789abcdef", "pid": 4242, "begun": "1", "slurm_node": "gpu9"}


@pytest.fixture
def preemptible(cluster: Cluster, tmp_path: Path) -> Iterator[Checkout]:
    """A checkout whose profile lets Slurm requeue jobs; nothing of its run is there."""
    checkout = set_up(tmp_path)
    profile = checkout.profile.read_text()
    assert "slurm-no-requeue: true" in profile
    checkout.profile.write_text(profile.replace("slurm-no-requeue: true", "slurm-requeue: true"))
    yield checkout
    subprocess.run(["scancel", "--user", str(os.getuid())], timeout=30)


def plant(lock: Path, **who: Any) -> None:
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text(json.dumps(ELSEWHERE | who))


def hurried(job: str) -> bool:
    """Whether a job no longer waits; Slurm lets a requeued one wait for two minutes, unless told otherwise."""
    subprocess.run(["scontrol", "update", f"jobid={job}", "starttime=now"], capture_output=True, timeout=30)
    waiting = ["squeue", "--noheader", "--states", "PENDING", "--format", "%i"]
    return job not in subprocess.check_output(waiting, text=True).split()


def test_a_requeued_job_takes_over_the_lock_of_its_first_start(
    cluster: Cluster, preemptible: Checkout
) -> None:
    """Its first start was on a node that is gone; the executor takes SLURM_RESTART_COUNT from the second's environment."""
    lock = preemptible.folder / PRETRAINED.replace("pretrained", ".pretrained.lock")
    process = preemptible.start(f"snakemake --profile slurm --retries 0 {PRETRAINED}")
    try:
        held = holder(preemptible, PRETRAINED)
        job = held["slurm_job"]
        scontrol("requeue", job)
        wait_for(lambda: not Path(f"/proc/{held['pid']}").exists(), "the end of the first start")
        plant(lock, slurm_job=job, slurm_restart=held.get("slurm_restart", "0"))
        wait_for(lambda: hurried(job), "the second start")
        assert process.wait(240) == 0, preemptible.said()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    host = preemptible.record(PRETRAINED)["host"]
    assert (host["slurm_job"], host["slurm_restart"]) == (job, "1") and not lock.exists()
    said = "".join(path.read_text() for path in preemptible.folder.glob("logs/**/*pretrain*.log"))
    assert "took over the lock of a job that is gone" in said


def test_a_silent_lock_that_names_the_job_itself_is_taken_over(
    cluster: Cluster, preemptible: Checkout
) -> None:
    """A lock of another machine under the number that the next job gets, and without a count of starts."""
    lock = preemptible.folder / PRETRAINED.replace("pretrained", ".pretrained.lock")
    known = [int(found["JobId"]) for found in cluster.jobs()]
    plant(lock, slurm_job=str(max(known, default=0) + 1))
    old = time.time() - 3600
    os.utime(lock, (old, old))
    done = preemptible.run(f"snakemake --profile slurm --retries 0 {PRETRAINED}", timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert preemptible.record(PRETRAINED)["host"]["slurm_job"] == str(max(known, default=0) + 1)
