"""Where the base model keeps its facts (A.2): probes across layers, with and without late attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from localized_unlearning import components as comp
from localized_unlearning import losses, models
from localized_unlearning.config import SPORTS, Interpretability
from localized_unlearning.probing import predictions, residuals
from localized_unlearning.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.stages import Job


def mean_attention_outputs(model: Any, windows: Tensor, from_layer: int) -> dict[int, Tensor]:
    """Mean attention output of each layer from ``from_layer`` on, over text windows and positions ``[hidden]``."""
    import torch

    means: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(_module: Any, _args: Any, output: Tensor) -> None:
            means[layer] = output.float().mean((0, 1))

        return hook

    with torch.inference_mode(), ExitStack() as stack:
        for layer in range(from_layer, comp.geometry_of(model.config).layers):
            stack.callback(comp.module_of(model, layer, "o").register_forward_hook(keep(layer)).remove)
        model.base_model(input_ids=windows.to(model.device), use_cache=False)
    return means


@contextmanager
def attention_replaced(model: Any, values: dict[int, Tensor]) -> Iterator[None]:
    """Replace the attention output of the layers in ``values``, at every position."""

    def replace(value: Tensor) -> Any:
        return lambda _module, _args, output: value.to(output).expand_as(output)

    with ExitStack() as stack:
        for layer, value in values.items():
            stack.callback(comp.module_of(model, layer, "o").register_forward_hook(replace(value)).remove)
        yield


def test_rows(sports: Sequence[str], settings: Interpretability) -> np.ndarray:
    """Which athletes test the probe ``[athlete]``: seeded and stratified by sport."""
    from sklearn.model_selection import train_test_split

    index = np.arange(len(sports))
    _, test = train_test_split(
        index, test_size=settings.test_fraction, random_state=settings.seed, stratify=list(sports)
    )
    return np.isin(index, test)


def layer_probes(job: Job) -> None:
    """Stage: probe accuracy per layer on the prompt and on the athlete's name alone (Figure 16).

    One row per series, layer and test athlete: ``series`` (prompt, athlete), ``ablated`` (attention past
    the lookup layers mean-ablated), ``layer``, ``athlete``, ``right``; and a control with shuffled labels.
    """
    from localized_unlearning.prompts import load_prompts

    config = job.config
    settings = config.interpretability
    device = models.setup(config.compute)
    model, tokenizer = models.load(job.inputs["base_model"], config.model.dtype, device)
    known = pd.read_parquet(job.inputs["known"])
    athletes = known[known["known"]].reset_index(drop=True)
    book = load_prompts(job.inputs["prompts"])
    sports = np.array([SPORTS.index(s) for s in athletes["sport"]])
    test = test_rows(list(athletes["sport"]), settings)
    text = Path(job.inputs["text"]).read_text(encoding="utf-8")
    windows = losses.text_windows(tokenizer, text, config.text.tokens)[: settings.mean_windows]
    means = mean_attention_outputs(model, windows, settings.lookup_end)
    shuffled = np.random.default_rng(settings.seed).permutation(sports)
    rows = []
    series = [("prompt", config.prompts.training), ("athlete", "athlete")]
    runs = [(name, prompt, ablated) for name, prompt in series for ablated in (False, True)]
    for name, prompt, ablated in Progress("probing layers", "run").over(runs):
        encoded = models.encode(tokenizer, [book[prompt].render(a) for a in athletes["athlete"]])
        with attention_replaced(model, means) if ablated else nullcontext():
            activations = residuals(model, encoded, config.compute.batch_tokens)
        for layer, values in enumerate(activations):
            kinds = [("sport", sports)] + ([] if ablated else [("shuffled labels", shuffled)])
            for label, target in kinds:
                said = predictions(values[~test], target[~test], values[test], settings.regularization)
                rows.append(
                    pd.DataFrame(
                        {
                            "series": name,
                            "ablated": ablated,
                            "labels": label,
                            "layer": layer,
                            "athlete": athletes.loc[test, "athlete"].to_numpy(),
                            "right": said == target[test],
                        }
                    )
                )
    majority = float(np.bincount(sports[test]).max() / test.sum())
    job.facts.update(seeds={"probe": settings.seed}, device=device, majority=majority)
    pd.concat(rows, ignore_index=True).assign(majority=majority).to_parquet(
        job.outputs["probes"], index=False
    )


def mean_head_outputs(model: Any, windows: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
    """Mean output of the heads of ``layers`` before W_O, over text windows and positions ``[heads * head_dim]``."""
    import torch

    means: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(_module: Any, args: tuple[Tensor, ...]) -> None:
            means[layer] = args[0].float().mean((0, 1))

        return hook

    with torch.inference_mode(), ExitStack() as stack:
        for layer in layers:
            stack.callback(comp.module_of(model, layer, "o").register_forward_pre_hook(keep(layer)).remove)
        model.base_model(input_ids=windows.to(model.device), use_cache=False)
    return means


@contextmanager
def head_replaced(model: Any, layer: int, head: int, value: Tensor) -> Iterator[None]:
    """Replace one head's output before W_O, at every position, by its part of ``value`` ``[heads * head_dim]``."""
    columns = list(comp.weight_of(comp.Component(layer, "o", head), model.config).index or ())

    def replace(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        patched = args[0].clone()
        patched[..., columns] = value[columns].to(patched)
        return (patched, *args[1:])

    handle = comp.module_of(model, layer, "o").register_forward_pre_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def head_ablation(job: Job) -> None:
    """Stage: final-layer probe accuracy when one head of the lookup layers is mean-ablated (Figure 15).

    All attention past the lookup layers is mean-ablated as well; the probe is fitted anew on each run's
    activations (A.2). One row per head and test athlete: ``layer``, ``head`` (both -1: no single head
    ablated), ``athlete`` and ``right``.
    """
    from localized_unlearning.prompts import load_prompts

    config = job.config
    settings = config.interpretability
    device = models.setup(config.compute)
    model, tokenizer = models.load(job.inputs["base_model"], config.model.dtype, device)
    known = pd.read_parquet(job.inputs["known"])
    athletes = known[known["known"]].reset_index(drop=True)
    sports = np.array([SPORTS.index(s) for s in athletes["sport"]])
    test = test_rows(list(athletes["sport"]), settings)
    prompt = load_prompts(job.inputs["prompts"])[config.prompts.training]
    encoded = models.encode(tokenizer, [prompt.render(a) for a in athletes["athlete"]])
    text = Path(job.inputs["text"]).read_text(encoding="utf-8")
    windows = losses.text_windows(tokenizer, text, config.text.tokens)[: settings.mean_windows]
    early = range(settings.lookup_end)
    means = mean_head_outputs(model, windows, early)
    heads = [(layer, head) for layer in early for head in range(comp.geometry_of(model.config).heads)]
    rows = []
    with attention_replaced(model, mean_attention_outputs(model, windows, settings.lookup_end)):
        for layer, head in Progress("ablating heads", "run").over([(-1, -1), *heads]):
            with nullcontext() if head < 0 else head_replaced(model, layer, head, means[layer]):
                last = residuals(model, encoded, config.compute.batch_tokens)[-1]
            said = predictions(last[~test], sports[~test], last[test], settings.regularization)
            rows.append(
                athletes.loc[test, ["athlete"]].assign(layer=layer, head=head, right=said == sports[test])
            )
    job.facts.update(seeds={"probe": settings.seed}, device=device)
    pd.concat(rows, ignore_index=True).to_parquet(job.outputs["ablation"], index=False)
