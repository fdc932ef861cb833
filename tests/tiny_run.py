"""A tiny organism's run in a folder of its own, as a user would start it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
TINY: dict[str, Any] = {
    "run": "tiny",
    "base_seeds": [0],
    "organism": {
        "layers": 2, "heads": 2, "hidden": 16, "mlp": 32, "steps": 2, "warmup": 1,
        "facts_in": {"layers": [0], "steps": 2, "warmup": 1, "prompts_per_step": 6},
        "requirements": dict.fromkeys(
            ("training", "question", "multiple_choice_unseen", "general_knowledge", "teachers", "gold"), 1e-6
        ),
    },
    "attacks": {"run": ["few_shot"], "asked": {"retained": 4, "orders": 1}},
    "localizations": {
        "manual": {"layers": [0]},
        **dict.fromkeys(("causal_tracing", "all_mlps", "nonlocalized")),
    },
    "scores": {"attribution_patching": {"prompts": 8}, "causal_tracing": {"prompts": 4}},
    "finetune": {"steps": 2, "batch_size": 4},
    "mmlu": {"questions": 12},
    "text": {"windows": 4},
    "statistics": {"bootstrap": 50},
    "interpretability": {"lookup_end": 1},
    "series": {"retain": 4, "questions": 4},
    "relearning": {"iterations": 2, "rank": 2},
    "masking": {"steps": 2, "batch_size": 4, "text_batch": 2, "edit_sizes": [0, 10]},
}  # fmt: skip


def environment(folder: Path) -> dict[str, str]:
    """The environment in which ``localized-unlearning`` is this checkout's."""
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PATH": path}


def snakemake(folder: Path, *words: str, seconds: float = 600) -> subprocess.CompletedProcess[str]:
    """``snakemake`` on the tiny run, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "2", *words, "--configfile", "tiny.yaml"],
        cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=seconds,
    )  # fmt: skip


def workplace(folder: Path, config: Mapping[str, Any] = TINY) -> Path:
    """``folder`` made to look like a checkout, with ``config`` as its overlay."""
    for name in ("Snakefile", "workflow", "config.yaml", "envs"):
        (folder / name).symlink_to(ROOT / name)
    command = folder / "bin" / "localized-unlearning"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m localized_unlearning.cli.main "$@"\n')
    command.chmod(0o755)
    configure(folder, config)
    return folder


def configure(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the overlay."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(dict(config)))
