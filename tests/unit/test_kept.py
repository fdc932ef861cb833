"""A model that one job leaves to the next of the same checkpoint: the same bytes as from fresh processes, or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
import torch

from localized_unlearning.config.run import Config
from localized_unlearning.evaluation import facts
from localized_unlearning.jobs.job import Kept
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.models import checkpoint, deltas, loading
from tiny_run import ROOT

pytestmark = pytest.mark.slow  # all of its tests together

if TYPE_CHECKING:
    from tiny_base import TinyBase

SHARING = [name for name, stage in STAGES.items() if stage.shares]
WHERE = {"task": "basketball", "objective": "erase", "localization": "all_mlps", "seed": "0"}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders from which a model was loaded, in order."""
    found: list[Path] = []
    load: Callable[..., Any] = loading.load

    def counted(folder: Path, dtype: str, device: str) -> Any:
        found.append(folder)
        return load(folder, dtype, device)

    monkeypatch.setattr(loading, "load", counted)
    return found


@pytest.fixture
def inputs(tiny_base: TinyBase, tmp_path: Path) -> dict[str, Path | None]:
    return {
        "split": tiny_base.write(tmp_path / "split.parquet", tiny_base.split.assign(teacher=True)),
        "delta": save(tiny_base, tmp_path / "delta.safetensors", 0.5),
        "mmlu": ROOT / "workflow/resources/general_knowledge.csv",
    }


def save(base: TinyBase, path: Path, by: float) -> Path:
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(base.layers)]
    deltas.save_delta(path, {name: base.model.get_parameter(name) + by for name in names}, base.digest)
    return path


def test_jobs_that_follow_one_another_write_what_jobs_of_their_own_do(
    tiny_base: TinyBase, inputs: dict[str, Path | None], tmp_path: Path, loads: list[Path]
) -> None:
    """Text first, as the rules ask; every output equal, byte for byte, and one load in place of six."""
    order = sorted(SHARING, key=lambda stage: stage != "text")
    assert len(order) >= 6
    alone, together, kept = tmp_path / "alone", tmp_path / "together", Kept()
    for folder in (alone, together):
        folder.mkdir()
    for stage in order:
        tiny_base.run(stage, Config(), alone, inputs, WHERE)
    assert len(loads) == len(order)
    loads.clear()
    for stage in order:
        tiny_base.run(stage, Config(), together, inputs, WHERE, kept)
    assert len(loads) == 1
    for file in sorted(alone.iterdir()):
        assert file.read_bytes() == (together / file.name).read_bytes(), file.name


def test_a_kept_model_is_its_own_checkpoints_alone(
    tiny_base: TinyBase, inputs: dict[str, Path | None], tmp_path: Path, loads: list[Path]
) -> None:
    """Another delta in the same file, no delta, another number type, the base before the delta: each is loaded."""
    kept, assert_loads = Kept(), iter(range(1, 100))

    def ask(config: Config, **changed: Path | None) -> pd.DataFrame:
        found = tiny_base.run("facts", config, tmp_path, {**inputs, **changed}, WHERE, kept)["facts"]
        assert len(loads) == next(assert_loads)
        return found

    first = ask(Config())
    assert inputs["delta"]
    save(tiny_base, inputs["delta"], 1.0)
    second = ask(Config())
    base = ask(Config(), delta=None)
    assert not first.equals(second) and not second.equals(base)
    ask(Config.model_validate({"model": {"dtype": "bfloat16"}}))
    ask(Config())
    tiny_base.run("text", Config(), tmp_path, inputs, WHERE, kept)
    assert len(loads) == next(assert_loads)
    tiny_base.run("facts", Config(), tmp_path, inputs, WHERE, kept)
    assert len(loads) == 6  # what text left is the checkpoint


CHANGES: dict[str, Callable[[Any], Any]] = {
    "weight": lambda m: m.get_parameter("model.norm.weight").add_(1e-6),
    "view": lambda m: m.get_parameter("model.norm.weight")[:1].mul_(2),
    "replaced": lambda m: setattr(
        m.model.norm, "weight", torch.nn.Parameter(m.model.norm.weight + 1, requires_grad=False)
    ),
    "mode": lambda m: m.train(),
    "gradients": lambda m: m.requires_grad_(True),
    "hook": lambda m: m.model.norm.register_forward_hook(lambda *_: None),
    "forward": lambda m: setattr(m.model.norm, "forward", m.model.norm.forward),
    "buffer": lambda m: next(m.buffers()).mul_(2),
    "config": lambda m: setattr(m.config, "use_cache", False),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_change_to_a_model_escapes(tiny_base: TinyBase, change: str, mode: Callable[[], Any]) -> None:
    """Catches a model that a job has changed and the next takes over, also where gradients are off."""
    model = tiny_base.fresh()
    before = checkpoint.marks(model)
    with torch.inference_mode():
        model(input_ids=torch.tensor([[1, 2, 3]]))
    assert checkpoint.marks(model) == before
    with mode():
        CHANGES[change](model)
    assert checkpoint.marks(model) != before


def test_a_job_that_fails_leaves_no_model(
    tiny_base: TinyBase,
    inputs: dict[str, Path | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = Kept()
    tiny_base.run("facts", Config(), tmp_path, inputs, WHERE, kept)
    assert kept.model is not None
    with pytest.raises(RuntimeError), monkeypatch.context() as broken:
        broken.setattr(facts, "ask_facts", lambda *_: torch.zeros(2) @ torch.zeros(3))
        tiny_base.run("facts", Config(), tmp_path, inputs, WHERE, kept)
    assert kept.model is None
