"""The workflow through a real Slurm: the promised line, then what goes wrong on clusters.

The run is tests/tiny_run.py's, its budgets tiny: every rule, with a model of two layers and a few steps. What
is shown is that jobs reach Slurm, survive its faults and leave right records; not numbers.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from checkout import PATIENCE, Checkout, holder, scontrol, set_up, wait_for
from cluster import Cluster

from localized_unlearning.config import reading
from localized_unlearning.workflow.graph import Graph
from odd_folder import ODD, bring
from tiny_run import ROOT

MODELS = ("sports/erase", "sports/inject", "athletes/erase", "athletes/inject")
DELTAS = tuple(f"results/tiny/base0/{model}/attribution_patching/seed0/delta.safetensors" for model in MODELS)
MASK = "results/tiny/base0/sports/mask/attribution_patching/seed0/mask.safetensors"
PROBES = "results/tiny/base0/sports/none/base/seed0/probes.parquet"


def audit(checkout: Checkout) -> None:
    done = checkout.run("snakemake -c1 audit")
    assert done.returncode == 0 and " ok" in done.stdout, done.stdout + done.stderr


def ended(cluster: Cluster, job: str) -> str | None:
    """How a Slurm job ended, if it has."""
    return next((found["JobState"] for found in cluster.jobs() if found["JobId"] == job), None)


def test_the_promised_line_goes_through_sbatch(cluster: Cluster, finished: Checkout) -> None:
    """Catches a profile that is not found, a rule that runs on the login node or in the wrong partition."""
    jobs = {job["JobId"]: job for job in cluster.jobs()}
    records = finished.records()
    planned = Graph(reading.load([finished.folder / "config.yaml"])).jobs
    assert {record["stage"] for record in records} == {job.stage for job in planned}
    profile = yaml.safe_load(finished.profile.read_text())
    for record in records:
        host = record["host"]
        job = jobs[host["slurm_job"]]
        assert job["JobState"] == "COMPLETED" and job["NodeList"] == host["slurm_node"], (
            record["stage"],
            job,
        )
        assert host["slurm_partition"] == job["Partition"]
        asked = profile["set-resources"].get(record["stage"], profile["default-resources"])
        assert job["Partition"] == asked.get("slurm_partition", "cpu"), record["stage"]
    assert len(jobs) < len(records)  # short jobs share an allocation
    for number in range(1, 17):
        assert (finished.folder / f"figures/tiny/figure_{number}.png").stat().st_size > 0
    audit(finished)


def test_a_second_run_has_nothing_to_do(cluster: Cluster, finished: Checkout) -> None:
    before = len(cluster.jobs())
    done = finished.run("snakemake --profile slurm all")
    assert done.returncode == 0 and "Nothing to be done" in done.stdout + done.stderr
    assert len(cluster.jobs()) == before


@pytest.fixture
def started(
    cluster: Cluster, finished: Checkout, tmp_path: Path
) -> Iterator[tuple[Checkout, list[subprocess.Popen[bytes]]]]:
    """A fresh copy of it, and the list of its running Snakemakes; these and their jobs are ended afterwards."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        yield finished.copy(tmp_path / "one"), processes
    finally:  # a failed test leaves stopped jobs, for which Snakemake would wait
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for node, state in cluster.nodes().items():
            cluster.start(node)
            if state.startswith(("down", "drain")):
                scontrol("update", f"nodename={node}", "state=resume")
        subprocess.run(["scancel", "--user", str(os.getuid())], timeout=30)
        wait_for(lambda: not subprocess.check_output(["squeue", "--noheader"]), "an empty queue")


def test_faults_of_a_cluster_cost_a_retry_each(
    cluster: Cluster, started: tuple[Checkout, list[subprocess.Popen[bytes]]]
) -> None:
    """A job cancelled, a node drained, a node lost, the controller restarted, a job over its time, one over its
    memory, all in one run. Catches a fault that ends or hangs the run, a retry with the same limits, a record
    with the wrong attempt, and a job that is run again though it was not hit."""
    checkout, processes = started
    checkout.forget(*DELTAS, MASK, PROBES)
    checkout.edit_profile(
        finetune={"slurm_extra": "'--nodelist=gpu1' if attempt == 1 else '--nodelist=gpu2'"},
        mask={"runtime": "10 ** (attempt - 1)", "slurm_extra": "--nodelist=gpu2"},
        probe={"mem_mb": "450 * attempt", "slurm_extra": "--nodelist=gpu2"},
    )
    processes.append(checkout.start(f"snakemake --profile slurm {' '.join((*DELTAS, MASK, PROBES))}"))
    held = {
        output: holder(checkout, output) for output in (*DELTAS, MASK)
    }  # stopped, so that each can be hit
    cancelled = DELTAS[0]
    subprocess.run(["scancel", held[cancelled]["slurm_job"]], check=True, timeout=30)
    kept, *victims = DELTAS[1:]
    assert {held[output]["slurm_node"] for output in DELTAS} == {"gpu1"}
    scontrol("update", "nodename=gpu1", "state=drain", "reason=test")
    os.kill(held[kept]["pid"], signal.SIGCONT)  # a drained node's jobs go on to their end
    wait_for(lambda: ended(cluster, held[kept]["slurm_job"]) == "COMPLETED", "the job on the drained node")
    cluster.stop("slurmctld")
    cluster.start("slurmctld")
    wait_for(cluster.nodes, "the controller")
    cluster.stop("gpu1", signal.SIGKILL)
    scontrol("update", "nodename=gpu1", "state=down", "reason=test")
    for output in victims:
        os.killpg(os.getpgid(held[output]["pid"]), signal.SIGKILL)

    assert processes[0].wait(PATIENCE) == 0, checkout.said()
    cluster.start("gpu1")
    scontrol("update", "nodename=gpu1", "state=resume")
    hit = {cancelled: "CANCELLED", MASK: "TIMEOUT", **dict.fromkeys(victims, "NODE_FAIL")}
    for output in (*DELTAS, MASK):
        record = checkout.record(output)
        job = record["host"]["slurm_job"]
        assert ended(cluster, job) == "COMPLETED"
        if output in hit:
            assert (
                ended(cluster, held[output]["slurm_job"]) == hit[output] and job != held[output]["slurm_job"]
            )
        else:
            assert job == held[output]["slurm_job"]
        assert output not in hit or record["attempt"] > 1, output
    said = [path.read_text() for path in checkout.folder.glob("logs/slurm/group_evaluations_*_probe/*.log")]
    assert any("exceeded memory limit" in text for text in said)
    assert checkout.record(PROBES)["attempt"] > 1
    audit(checkout)


def test_a_killed_snakemake_is_recovered_from(
    cluster: Cluster, started: tuple[Checkout, list[subprocess.Popen[bytes]]]
) -> None:
    """As the docs say: cancel this checkout's jobs, unlock, rerun. Catches a second writer of a live job's output,
    and a job that had finished and is run again."""
    checkout, processes = started
    checkout.forget(*DELTAS[:3])
    line = "snakemake --profile slurm " + " ".join(DELTAS[:3])
    processes.append(checkout.start(line))
    held = {output: holder(checkout, output) for output in DELTAS[:3]}
    os.killpg(processes[0].pid, signal.SIGKILL)
    processes[0].wait()
    done, *live = DELTAS[:3]
    os.kill(held[done]["pid"], signal.SIGCONT)  # this one ends well, with nobody watching
    wait_for(lambda: ended(cluster, held[done]["slurm_job"]) == "COMPLETED", "its end")
    before = checkout.record(done)

    refused = checkout.run(line)
    assert refused.returncode != 0 and "--unlock" in refused.stdout + refused.stderr
    for other in ("", 'unshare --uts bash -c \'hostname elsewhere; exec "$0" "$@"\' '):
        second = checkout.run(other + finetune(checkout, live[0]))
        job, node = held[live[0]]["slurm_job"], held[live[0]]["slurm_node"]
        assert second.returncode == 1 and f"Slurm job {job} on node {node}" in second.stderr, second.stderr
        assert f"is writing {live[0]}" in second.stderr and f"scancel {job}" in second.stderr

    assert checkout.run("make --no-print-directory slurm-cancel").returncode == 0
    wait_for(lambda: not subprocess.check_output(["squeue", "--noheader"]), "an empty queue")
    assert checkout.run(f"{line} --unlock").returncode == 0
    again = checkout.run(line)
    assert again.returncode == 0, again.stdout + again.stderr
    assert checkout.record(done) == before
    for output in live:
        assert checkout.record(output)["host"]["slurm_job"] != held[output]["slurm_job"]
    audit(checkout)


def test_two_checkouts_share_a_cache(
    started: tuple[Checkout, list[subprocess.Popen[bytes]]], tmp_path: Path
) -> None:
    """Two people's checkouts on one file system run the same job at the same time, then one of them once more.
    Catches a cache entry that two writers have mixed, and a finished job that is computed again."""
    one, processes = started
    one.forget(DELTAS[0])
    two = one.copy(tmp_path / "other")
    delta = DELTAS[0]
    for checkout in (one, two):
        checkout.configure({"cache": {"dir": str(tmp_path / "cache")}})
        processes.append(checkout.start(f"snakemake --profile slurm {delta}"))
    for checkout, process in zip((one, two), processes, strict=True):
        assert process.wait(PATIENCE) == 0, checkout.said()
    made = [checkout.record(delta) for checkout in (one, two)]
    assert made[0]["key"] == made[1]["key"]
    assert (one.folder / delta).read_bytes() == (two.folder / delta).read_bytes()
    two.forget(delta)
    again = two.run(f"snakemake --profile slurm {delta}")
    assert again.returncode == 0, again.stdout + again.stderr
    record = two.record(delta)
    assert record["restored"]["record"] in {r["id"] for r in made}
    assert (one.folder / delta).read_bytes() == (two.folder / delta).read_bytes()
    for checkout in (one, two):
        audit(checkout)


def test_a_model_in_two_processes(started: tuple[Checkout, list[subprocess.Popen[bytes]]]) -> None:
    """Catches processes that do not find each other inside an allocation, and another job's results taken for stale."""
    checkout, _ = started
    before = checkout.record(DELTAS[0])
    checkout.forget(DELTAS[0])
    checkout.configure({"compute": {"device": "cpu", "shards": 2}})
    done = checkout.run(f"snakemake --profile slurm {DELTAS[0]}")
    assert done.returncode == 0 and "1 of 1 steps" in done.stdout + done.stderr, done.stdout + done.stderr
    record = checkout.record(DELTAS[0])
    assert record["facts"]["device"] == "cpu*2" and record["host"]["slurm_partition"] == "gpu"
    assert record["key"] == before["key"]  # the same job, up to rounding


def test_files_in_a_folder_that_a_shell_would_take_apart(cluster: Cluster, tmp_path: Path) -> None:
    """Catches a path that is quoted here, but not in the line that a Slurm job runs, a checkpoint's evaluations that
    have an allocation each, and members of one allocation that load the model each."""
    checkout = set_up(tmp_path)
    (checkout.folder / "config.yaml").write_bytes((ROOT / "config.yaml").read_bytes())
    overlay = checkout.folder / ODD / "my overlay.yaml"
    config = bring(checkout.folder)
    overlay.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    model = "results/tiny/base0/sports/erase/manual/seed0"
    done = checkout.run(
        f'snakemake --profile slurm {model}/{{mmlu,text,facts}}.parquet --configfile "{ODD}/my overlay.yaml"'
    )
    assert done.returncode == 0, done.stdout + done.stderr
    asked = [checkout.record(f"{model}/{name}.parquet") for name in ("mmlu", "text", "facts")]
    assert len({record["host"]["slurm_job"] for record in asked}) == 1
    assert checkout.record(f"{model}/delta.safetensors")["host"]["slurm_partition"] == "gpu"
    assert sum("model" in record["compute"] for record in asked) == 2  # found it loaded


def finetune(checkout: Checkout, delta: str) -> str:
    """The command of the rule that makes a delta, from the stage table as the rule's own is."""
    graph = Graph(reading.load([checkout.folder / "config.yaml"]))
    job = graph.layout.job(delta)
    assert job is not None
    words = ["localized-unlearning", job.stage, "--config", graph.layout.resolved]
    options: dict[str, list[str]] = {name: [value] for name, value in job.named.items()}
    options |= {name: paths for name, paths in graph.paths(job).items() if paths}
    options |= {f"out_{name}": [path] for name, path in graph.layout.outputs(job).items()}
    for name, values in options.items():
        words += ["--" + name.replace("_", "-"), *values]
    return shlex.join(words)
