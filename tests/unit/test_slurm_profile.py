"""What of Slurm can be tested without one: the profile, its installation, and locks between machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from localized_unlearning import files
from localized_unlearning.cli import main
from localized_unlearning.config import reading
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.provenance import locks
from localized_unlearning.workflow import runner
from localized_unlearning.workflow.snakefile import _attempt
from tiny_run import ROOT, environment, workplace

PROFILE: dict[str, Any] = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())


def test_every_stage_that_loads_a_model_asks_for_a_gpu_and_no_other() -> None:
    """Catches a new rule that trains on a CPU node, and one that holds a GPU to draw a figure."""
    loads = {name for name, stage in STAGES.items() if "base_model" in [i.name for i in stage.inputs]} - {
        "select",
        "windows",
        "select_for_mask",
        "overlap",  # its shapes alone
    } | {"pretrain"}
    asks = {rule: "gres" in found or "gpu" in found for rule, found in PROFILE["set-resources"].items()}
    assert {rule for rule, gpu in asks.items() if gpu} == loads
    assert not any({"gres", "gpu"} <= set(found) for found in PROFILE["set-resources"].values())


def test_the_members_of_a_group_take_turns() -> None:
    """Catches a group whose members load their models at the same time on one GPU, or ask for a core each."""
    assert all(PROFILE["set-resources"][rule]["in_turn"] == 1 for rule in PROFILE["groups"])


def test_only_stages_that_fetch_may_go_online() -> None:
    assert {name for name, stage in STAGES.items() if stage.online} == {"fetch", "download"}


@pytest.mark.slow
def test_the_profile_is_found_by_name_after_one_command(tmp_path: Path) -> None:
    """Catches a profile where Snakemake does not look, and a site's edits overwritten by the second installation."""
    folder = workplace(tmp_path)
    (folder / "profiles").symlink_to(ROOT / "profiles")
    home = {**environment(folder), "XDG_CONFIG_HOME": str(tmp_path / "home")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, cwd=folder, env=home, capture_output=True, text=True, timeout=60)

    line = (sys.executable, "-m", "snakemake", "--profile", "slurm", "-n", "all")
    assert run(*line).returncode != 0
    assert run("localized-unlearning", "install-profile").returncode == 0
    done = run(*line)
    assert done.returncode == 0 and "finetune" in done.stdout, done.stderr
    profile = tmp_path / "home/snakemake/slurm/config.yaml"
    profile.write_text(profile.read_text().replace("slurm_partition: gpu", "slurm_partition: a100"))
    edited = profile.read_text()
    assert (
        "is kept" in run("localized-unlearning", "install-profile").stdout and profile.read_text() == edited
    )
    assert run("localized-unlearning", "install-profile", "--replace").returncode == 0
    assert yaml.safe_load(profile.read_text()) == PROFILE


LOCAL = """
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, OutputSettings, Quietness, ResourceSettings
with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
    flow = api.workflow(
        resource_settings=ResourceSettings(cores=1), snakefile=Path("Snakefile"),
        config_settings=ConfigSettings(configfiles=[Path("workflow/presets/gemma-7b.yaml")]),
    )._workflow
    print(*sorted(rule.name for rule in flow.rules if rule.output and rule.name in flow._localrules))
"""


def test_what_comes_from_outside_comes_to_the_login_node() -> None:
    """Catches a download that is submitted to a node without internet, and work that stays on the login node."""
    done = subprocess.run([sys.executable, "-c", LOCAL], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["download", "fetch", "fetch_folder"], done.stderr


# Locks between machines.


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output that Slurm job 7 is writing on another machine; Slurm cannot be asked."""
    output = tmp_path / "out"
    with monkeypatch.context() as there:
        there.setattr(files, "host", lambda: "another")
        there.setattr(locks, "_asked_restart", lambda job: "0")
        there.setenv("SLURM_JOB_ID", "7")
        there.setenv("SLURMD_NODENAME", "gpu3")
        with locks.held(output):
            content = locks.path_for(output).read_text()
    locks.path_for(output).write_text(content)
    monkeypatch.setattr(locks, "_slurm_lists", lambda job: None)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return output


def refused(output: Path) -> str:
    with pytest.raises(UserError) as told, locks.held(output):
        pass
    return str(told.value)


def test_a_job_of_another_node_is_named(foreign: Path) -> None:
    text = refused(foreign)
    assert "Slurm job 7 on node gpu3" in text and "scancel 7" in text and str(locks.path_for(foreign)) in text


@pytest.mark.parametrize("listed", [True, False])
def test_slurm_knows_whether_a_job_of_another_node_lives(
    foreign: Path, listed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a job taken for dead for its silence while Slurm has it, and one that blocks though Slurm has not."""
    monkeypatch.setattr(locks, "_slurm_lists", lambda job: listed)
    old = time.time() - 2 * locks.SILENT
    os.utime(locks.path_for(foreign), (old, old))
    if listed:
        assert "is writing" in refused(foreign)
    else:
        with locks.held(foreign):
            assert locks.still_mine(foreign)


def test_where_slurm_cannot_be_asked_a_long_silence_is_death(foreign: Path) -> None:
    lock = locks.path_for(foreign)
    assert "is writing" in refused(foreign)
    old = time.time() - 2 * locks.SILENT
    os.utime(lock, (old, old))
    with locks.held(foreign):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_a_holder_is_heard_while_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a heart that does not beat: another node would take the lock of a long job."""
    monkeypatch.setattr(locks, "BEAT", 0.05)
    lock = locks.path_for(tmp_path / "out")
    with locks.held(tmp_path / "out"):
        os.utime(lock, (1, 1))
        deadline = time.monotonic() + 10
        while lock.stat().st_mtime < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize("how", ["environment", "asked"])
def test_a_requeued_job_takes_its_own_lock_over(
    foreign: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snakemake's executor takes SLURM_RESTART_COUNT away; then Slurm is asked how often it started the job."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(locks, "_asked_restart", lambda job: "0")
    assert "is writing" in refused(foreign)  # one start of one job, over two nodes
    if how == "environment":
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    else:
        monkeypatch.setattr(locks, "_asked_restart", lambda job: "1")
    with locks.held(foreign):
        assert locks.still_mine(foreign)


def test_an_earlier_start_that_says_nothing_is_gone_when_it_is_silent(
    foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(locks, "_asked_restart", lambda job: None)
    assert "is writing" in refused(foreign)
    old = time.time() - 2 * locks.SILENT
    os.utime(locks.path_for(foreign), (old, old))
    with locks.held(foreign):
        assert locks.still_mine(foreign)


def test_a_holder_that_was_taken_for_dead_keeps_off(tmp_path: Path) -> None:
    """Catches a job that wakes up, finds its lock another's, and removes it."""
    output = tmp_path / "out"
    with locks.held(output):
        locks.path_for(output).write_text('{"host": "another", "pid": 1}')
        assert not locks.still_mine(output)
    assert locks.path_for(output).exists()


@pytest.mark.parametrize("stage", ["split", "fetch"])
def test_a_job_is_offline_unless_it_fetches(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a GPU job that asks the hub, and a download that may not."""

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("LOCALIZED_UNLEARNING_WARM", raising=False)
    monkeypatch.setattr(reading, "load", lambda paths: None)
    seen = []
    monkeypatch.setattr(runner, "execute", lambda *a, **k: seen.append(os.environ["HF_HUB_OFFLINE"]))
    words = {
        "split": ["--base-seed", "0", "--task", "sports", "--known", "k", "--out-split", "s"],
        "fetch": ["--source", "gguf", "--out-file", "f"],
    }[stage]
    assert main.main([stage, "--config", "c", *words]) == 0
    assert seen == [{"split": "1", "fetch": "0"}[stage]]


def test_a_job_knows_its_attempt() -> None:
    """Catches the attempt of a retried job recorded as 1: Snakemake tells it on the job's command line alone."""

    assert _attempt(["snakemake", "--cores", "all", "--attempt", "3", "--mode", "remote"]) == 3
    assert _attempt(["snakemake", "--profile", "slurm", "all"]) == 1
