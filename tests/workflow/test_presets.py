"""Every preset resolves and plans on a fresh clone, without weights or data; Gemma-7B's plan is the paper's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from localized_unlearning.config import reading
from localized_unlearning.workflow import plan
from localized_unlearning.workflow.layout import RULES
from localized_unlearning.workflow.snakefile import Rules
from tiny_run import ROOT, environment, workplace

PRESETS = sorted((ROOT / "workflow/presets").glob("*.yaml"))

GEMMA_7B = {
    "attack": 35, "windows": 1, "fetch": 3, "download": 1, "finetune": 24, "select": 12, "split": 2,
    "check_model": 1, "known_facts": 1, "model_card": 1, "score": 4, "figure": 16, "layer_probes": 1, "head_ablation": 1, "probe":
    20, "mmlu": 26, "multiple_choice": 26, "facts": 26, "relearn": 18, "sweep": 12, "mask": 12, "table": 4,
    "text": 26, "comparisons": 4, "supplement": 4, "claims": 1, "fetch_folder": 2, "write_attacks": 1, "all": 1,
}  # fmt: skip
"""Two tasks, two objectives, six localizations: 24 fine-tuned and 12 masked models for each seed."""


def planned(folder: Path, *words: str) -> dict[str, int]:
    """Jobs by rule of a dry run in a checkout that holds nothing else."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", *words],
        cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE)}
    assert jobs.pop("total") == sum(jobs.values())
    return jobs


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_plan(preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = workplace(tmp_path)
    found = reading.load([ROOT / "config.yaml", preset])
    assert found.run == preset.stem
    jobs = planned(folder, "--configfile", f"workflow/presets/{preset.name}")
    monkeypatch.chdir(folder)  # the same jobs as in the plan of costs
    layers = reading.overlays([Path("config.yaml"), Path("workflow/presets") / preset.name])
    del jobs["all"]
    if "fetch_folder" in jobs:
        jobs["fetch"] = jobs.get("fetch", 0) + jobs.pop("fetch_folder")
    for stage, rule in RULES.items():
        if rule in jobs:  # the stage's name is a target's, so its rule has another
            jobs[stage] = jobs.pop(rule)
    assert plan.counts(plan.Plan(Rules(layers))) == jobs


def test_gemma_7b_plans_the_paper(tmp_path: Path) -> None:
    folder = workplace(tmp_path)
    assert planned(folder, "all", "--configfile", "workflow/presets/gemma-7b.yaml") == GEMMA_7B


def test_words_on_the_command_line_go_over_a_preset(tmp_path: Path) -> None:
    folder = workplace(tmp_path)
    words = ["--configfile", "workflow/presets/gemma-7b.yaml", "--config", "run=mine"]
    assert planned(folder, "results/mine/base0/known.parquet", *words) == {
        "download": 1,
        "fetch": 1,
        "fetch_folder": 2,
        "check_model": 1,
        "known_facts": 1,
    }


def test_preflight_is_a_target(tmp_path: Path) -> None:
    """Catches a rule that does not run, or loses the page: nothing is missing in a fresh clone."""
    folder = workplace(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-c1", "preflight"],
        cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing is missing." in done.stdout
    assert "Nothing is missing." in (folder / "logs/organism/preflight.log").read_text()
