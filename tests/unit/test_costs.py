"""The cost model against the arithmetic of the paper's size, and against what tiny models really hold and do."""

from __future__ import annotations

from pathlib import Path

from localized_unlearning import config as configuration
from localized_unlearning import costs

ROOT = Path(__file__).resolve().parents[2]


def model(*presets: str, **changes: object) -> costs.Model:
    """The cost model of a preset, of which nothing is on disk."""
    paths = [ROOT / "config.yaml", *(ROOT / "workflow/presets" / f"{name}.yaml" for name in presets)]
    return costs.Model.of(configuration.load(paths, changes), Path("nowhere"))


JOB = {"task": "sports", "objective": "erase", "localization": "nonlocalized", "seed": "0"}


def test_asking_grows_with_every_attempt() -> None:
    """Catches a retry that asks for what it had."""
    organism = model()
    memory = [costs.memory_mb(organism, "finetune", JOB, attempt) for attempt in (1, 2, 3)]
    time = [costs.minutes(organism, "finetune", JOB, 2, attempt) for attempt in (1, 2, 3)]
    assert memory == sorted(set(memory)) and time == sorted(set(time))
    assert 1000 < memory[0] < 4000 and 10 <= time[0] < 30
