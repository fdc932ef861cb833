"""The whole path on a tiny random model: localize, fine-tune, mask, sweep, evaluate, relearn, probe, ablate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import in_process
from architectures import CONFIGS, WINDOW, written
from tiny_run import ROOT

WHOLE = {
    "check_model", "known_facts", "model_card", "split", "score", "select", "finetune", "mask", "sweep", "facts",
    "multiple_choice", "mmlu", "text", "relearn", "probe", "layer_probes", "head_ablation", "attack",
}  # fmt: skip


def athletes(folder: Path, each: int = 6) -> Path:
    """A few athletes of each sport."""
    table = pd.read_csv(ROOT / "workflow/resources/athletes.csv")
    path = folder / "athletes.csv"
    table.groupby("answer").head(each).to_csv(path, index=False)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_runs_the_whole_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an architecture that one stage cannot use, after hours of the others; its model changes where chosen."""
    monkeypatch.chdir(tmp_path)
    source = {"athletes": {"source": {"kind": "path", "path": str(athletes(tmp_path))}}}
    config = in_process.configured(tmp_path, written(name, tmp_path), source)
    done = in_process.run(config)
    assert {job.stage for job in done} >= WHOLE
    check = json.loads(Path("results/tiny/base0/model_check.json").read_text())
    assert check["packing_difference"] < 1e-5 and check["context_length"] == 512
    assert (check["sliding_window"] or WINDOW) == WINDOW
    facts = {
        job.named["localization"]: pd.read_parquet(out["facts"])
        for job, out in done.items()
        if job.stage == "facts"
    }
    numbers = [c for c in facts["base"].columns if c.startswith("log")]
    for localization in ("manual", "attribution_patching"):
        moved = facts[localization][numbers] - facts["base"][numbers]
        assert np.isfinite(moved.to_numpy()).all() and moved.abs().to_numpy().max() > 1e-6
