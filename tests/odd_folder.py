"""A run whose every file from outside lies in a folder with a quote, a space and an umlaut in its name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from localized_unlearning.config.reading import merge
from tiny_run import ROOT, TINY

ODD = "o'brien dir/ä ü"
"""A name that a shell line must quote."""


def bring(folder: Path) -> dict[str, Any]:
    """Copy athletes, prompts, claims, a loss and general knowledge as an MMLU folder into ``folder``'s :data:`ODD`.

    Returns:
        The overlay of a run that reads them: one localization, one objective with the loss of one's own.
    """
    place = folder / ODD
    (place / "MMLU data").mkdir(parents=True)
    resources = ROOT / "workflow/resources"
    shutil.copy(resources / "athletes.csv", place / "athletes.csv")
    shutil.copy(resources / "prompts.yaml", place / "prompts.yaml")
    shutil.copy(resources / "claims.yaml", place / "claims.yaml")
    shutil.copy(ROOT / "examples/gradient_ascent.py", place / "loss.py")
    questions = pd.read_csv(resources / "general_knowledge.csv")
    for part in ("dev", "test"):
        found = questions[questions["split"] == part]
        (place / "MMLU data" / part).mkdir()
        for subject, rows in found.groupby("subject"):
            rows.drop(columns=["subject", "split"]).to_csv(
                place / "MMLU data" / part / f"{subject}_{part}.csv", index=False
            )
    own = {
        "athletes": {"source": {"kind": "path", "path": f"{ODD}/athletes.csv"}},
        "prompts": {"file": f"{ODD}/prompts.yaml"},
        "claims": {"file": f"{ODD}/claims.yaml"},
        "mmlu": {"source": {"kind": "path", "path": f"{ODD}/MMLU data"}},
        "objectives": {"erase": {"loss": f"{ODD}/loss.py:ascend"}, "inject": None},
        "localizations": {"random": None, "attribution_patching": None},
        "tasks": {"athletes": None},
        "mask_seeds": [],
    }
    return merge(TINY, own)
