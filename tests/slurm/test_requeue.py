"""Locks that a job of another machine left, through a real sbatch: the simulated nodes are one machine, so that what
another node's job wrote is planted under another machine's mark."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from checkout import PATIENCE, Checkout, holder, scontrol, set_up, wait_for
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
    wait_for(lambda: not subprocess.check_output(["squeue", "--noheader"]), "an empty queue")


@contextmanager
def running(checkout: Checkout) -> Iterator[subprocess.Popen[bytes]]:
    """Snakemake, at work on the pretrained model; killed where the test ends before it does."""
    process = checkout.start(f"snakemake --profile slurm --retries 0 {PRETRAINED}")
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def closed() -> Iterator[None]:
    """No job starts on a GPU meanwhile: what is planted is there before its job is, however slow the machine."""
    scontrol("update", "partitionname=gpu", "state=down")
    try:
        yield
    finally:
        scontrol("update", "partitionname=gpu", "state=up")


def pending() -> list[str]:
    """The jobs that wait for a GPU."""
    words = ["squeue", "--noheader", "--partition=gpu", "--states=PENDING", "--format=%i"]
    return subprocess.check_output(words, text=True, timeout=60).split()


def lock_of(checkout: Checkout) -> Path:
    path: Path = checkout.folder / PRETRAINED
    return path.with_name(f".{path.name}.lock")


def plant(lock: Path, **who: Any) -> None:
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text(json.dumps(ELSEWHERE | who))


def took_over(checkout: Checkout) -> bool:
    said = "".join(path.read_text() for path in checkout.folder.glob("logs/**/*pretrain*.log"))
    return "took over the lock of a job that is gone" in said


def test_a_requeued_job_takes_over_the_lock_of_its_first_start(
    cluster: Cluster, preemptible: Checkout
) -> None:
    """Its first start was on a node that is gone; the executor takes SLURM_RESTART_COUNT from the second's environment."""
    lock = lock_of(preemptible)
    with running(preemptible) as process:
        held = holder(preemptible, PRETRAINED)
        job = held["slurm_job"]
        with closed():
            scontrol("requeue", job)
            wait_for(lambda: not Path(f"/proc/{held['pid']}").exists(), "the end of the first start")
            wait_for(lambda: job in pending(), "the job's place in the queue")
            plant(lock, slurm_job=job, slurm_restart=held["slurm_restart"])
            scontrol("update", f"jobid={job}", "starttime=now")  # else a requeued job waits for two minutes
        assert process.wait(PATIENCE) == 0, preemptible.said()
    host = preemptible.record(PRETRAINED)["host"]
    assert (host["slurm_job"], host["slurm_restart"]) == (job, "1") and not lock.exists()
    assert took_over(preemptible)


def test_a_silent_lock_that_names_the_job_itself_is_taken_over(
    cluster: Cluster, preemptible: Checkout
) -> None:
    """A lock of another machine under the job's own number, untouched for an hour and without a count of starts."""
    lock = lock_of(preemptible)
    with closed(), running(preemptible) as process:
        [job] = wait_for(pending, "a job in the queue")
        plant(lock, slurm_job=job)
        old = time.time() - 3600
        os.utime(lock, (old, old))
        scontrol("update", "partitionname=gpu", "state=up")
        assert process.wait(PATIENCE) == 0, preemptible.said()
    assert preemptible.record(PRETRAINED)["host"]["slurm_job"] == job and not lock.exists()
    assert took_over(preemptible)
