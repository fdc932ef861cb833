"""Models spread over devices, and batch sizes from free memory: both change where and when, not what.

There is no second device here: accelerate's hooks, which move tensors between devices, run with the CPU as each of
them, and with the later layers on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from test_finetune import some_data

from localized_unlearning import components as comp
from localized_unlearning import finetune, models, packing
from localized_unlearning.components import Component
from localized_unlearning.config import Compute, Finetune
from localized_unlearning.errors import UserError
from tiny_models import ARCHITECTURES

PROMPTS = [[2, 7, 3, *range(10, 10 + n)] for n in (1, 4, 2, 6, 3, 5)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_weight_has_its_device(architecture: str, tiny: Callable[[str], Any]) -> None:
    """Catches a parameter without a device, a layer cut in two, and an output layer apart from the embedding."""
    model = tiny(architecture)
    found = models.spread(model, ["cuda:0", "cuda:1"])
    path = comp.adapter_of(model.config).layers
    count = len(comp.layers_of(model))
    assert [found[f"{path}.{i}"] for i in range(count)] == sorted(found[f"{path}.{i}"] for i in range(count))
    assert {found[f"{path}.0"], found[f"{path}.{count - 1}"]} == {"cuda:0", "cuda:1"}
    for name in [n for n, _ in (*model.named_parameters(), *model.named_buffers())]:
        assert sum(name == key or name.startswith(f"{key}.") for key in found) == 1, name
    assert all(device == "cuda:0" for key, device in found.items() if not key.startswith(f"{path}."))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_dispatched_model_answers_and_learns_as_the_whole(
    architecture: str, tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    """Catches calls that go round accelerate's hooks, gradients that stop at them, and answers that differ."""
    whole, parts, on_disk = (tiny(architecture).float() for _ in range(3))
    dispatch_model(parts, models.spread(parts, ["cpu", "cpu"]), force_hooks=True)
    dispatch_model(on_disk, models.spread(on_disk, ["cpu", "disk"]), main_device="cpu", offload_dir=tmp_path)
    wanted = packing.next_token(whole, PROMPTS, [3, 9], 64)
    for model in (parts, on_disk):
        found = packing.next_token(model, PROMPTS, [3, 9], 64)
        assert torch.equal(found.candidates, wanted.candidates)
        assert torch.equal(found.argmax, wanted.argmax)
    for model in (whole, parts):
        trainable = comp.trainable(model, [Component(0, "up"), Component(1, "o")])
        settings = Finetune(steps=3, batch_size=4, learning_rate=0.01)
        finetune.train(model, some_data(), trainable, settings, finetune.Weights(1, 1, 1), "erase", 0)
    assert all(torch.equal(p, whole.get_parameter(n)) for n, p in parts.named_parameters())


def test_more_gpus_than_there_are() -> None:
    """Catches a model that is quietly put on fewer devices than it was planned for."""
    if torch.cuda.device_count() >= 64:
        pytest.skip("this machine has 64 GPUs")
    with pytest.raises(UserError, match=r"compute\.gpus is 64"):
        models.setup(Compute(gpus=64))


def test_batches_from_free_memory(tiny: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a batch larger than memory, one that ignores the config, and one that follows every free megabyte."""
    model = tiny("gemma")
    assert models.batch_tokens(Compute(batch_tokens=77), model) == 77
    assert models.batch_tokens(Compute(batch_tokens="auto"), model) == 4096

    gpu = torch.device("cuda:0")
    config = SimpleNamespace(hidden_size=3072, intermediate_size=24576, get_text_config=lambda: config)
    large: Any = SimpleNamespace(
        device=gpu, config=config, parameters=lambda: iter([SimpleNamespace(device=gpu)])
    )
    auto = Compute(batch_tokens="auto")

    def chosen(free: float, kept: int = 1) -> int:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), int(80e9)))
        return models.batch_tokens(auto, large, kept)

    sizes = [chosen(free) for free in (1e6, 2e9, 10e9, 60e9)]
    assert sizes == sorted(sizes) and sizes[0] == models.LEAST_TOKENS and sizes[-1] == models.MOST_TOKENS
    assert chosen(10e9) == chosen(10.1e9)
    assert chosen(60e9, kept=28) < chosen(60e9)
    assert chosen(60e9, kept=28) * 28 * (10 * 3072 + 4 * 24576) * 4 <= 30e9


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_do_not_depend_on_the_batch(
    architecture: str, tiny: Callable[[str], Any], float64: None
) -> None:
    """Catches padding or a neighbour that leaks into an answer."""
    model = tiny(architecture)
    one, many = (packing.next_token(model, PROMPTS, [3, 9], tokens) for tokens in (8, 4096))
    torch.testing.assert_close(one.candidates, many.candidates, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.log_normalizer, many.log_normalizer, rtol=1e-5, atol=1e-6)
    assert torch.equal(one.argmax, many.argmax)
