"""Where the base model keeps its facts (A.2): probes across layers, without late attention, without single heads.

An ablated activation is replaced, at every position, by its mean over text windows and positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from localized_unlearning import components as comp
from localized_unlearning import losses, models
from localized_unlearning.config import SPORTS, Interpretability
from localized_unlearning.documents import read_documents
from localized_unlearning.errors import UserError
from localized_unlearning.probing import Fit, predictions, residuals
from localized_unlearning.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.prompts import PromptBook
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


@dataclass(frozen=True)
class Subject:
    """The base model and the athletes that it is probed for.

    Attributes:
        model, tokenizer: the base model.
        athletes: names of the known athletes, in file order.
        sports: index into SPORTS ``[athlete]``.
        test: which of them test the probes ``[athlete]``.
        book: the prompts.
        windows: the text windows that means are taken over ``[window, token]``.
        device: where the model is.
    """

    model: Any
    tokenizer: Any
    athletes: pd.Series
    sports: np.ndarray
    test: np.ndarray
    book: PromptBook
    windows: Tensor
    device: str

    def encode(self, prompt: str) -> list[list[int]]:
        """Token ids of a prompt about every athlete."""
        return models.encode(self.tokenizer, [self.book[prompt].render(a) for a in self.athletes])

    def fit(self, activations: np.ndarray, labels: np.ndarray) -> Fit:
        """The probes of activations ``[athlete, hidden]`` for labels ``[target, athlete]``."""
        return Fit(activations[~self.test], labels[:, ~self.test], activations[self.test])


def load_subject(job: Job) -> Subject:
    """What a stage of this module reads.

    Raises:
        UserError: when ``lookup_end`` is no layer of the model, so that no attention would be ablated.
    """
    from localized_unlearning.prompts import load_prompts

    config, settings = job.config, job.config.interpretability
    device = models.setup(config.compute)
    model, tokenizer = models.load(job.inputs["base_model"], config.model.dtype, device)
    layers = comp.geometry_of(model.config).layers
    if settings.lookup_end >= layers:
        raise UserError(
            f"interpretability.lookup_end is {settings.lookup_end}, but the model's layers are 0 to {layers - 1}: "
            "name the first layer past fact lookup"
        )
    known = pd.read_parquet(job.inputs["known"])
    known = known[known["known"]].reset_index(drop=True)
    text = read_documents(job.inputs["text"], config.text.documents)
    return Subject(
        model,
        tokenizer,
        known["athlete"],
        np.array([SPORTS.index(s) for s in known["sport"]]),
        test_rows(list(known["sport"]), settings),
        load_prompts(job.inputs["prompts"]),
        losses.text_windows(tokenizer, text, config.text.tokens, settings.mean_windows),
        device,
    )


def layer_probes(job: Job) -> None:
    """Stage: probe accuracy per layer on the prompt and on the athlete's name alone (Figure 16).

    One row per series, layer and test athlete: ``series`` (prompt, athlete), ``ablated`` (attention past
    the lookup layers mean-ablated), ``layer``, ``athlete``, ``right``; and a control with shuffled labels.
    """
    config, settings = job.config, job.config.interpretability
    subject = load_subject(job)
    sports, test = subject.sports, subject.test
    means = mean_attention_outputs(subject.model, subject.windows, settings.lookup_end)
    shuffled = np.random.default_rng(settings.seed).permutation(sports)
    rows = []
    series = [("prompt", config.prompts.training), ("athlete", "athlete")]
    runs = [(name, prompt, ablated) for name, prompt in series for ablated in (False, True)]
    for name, prompt, ablated in Progress("probing layers", "run").over(runs):
        with attention_replaced(subject.model, means) if ablated else nullcontext():
            activations = residuals(
                subject.model, subject.encode(prompt), models.batch_tokens(config.compute, subject.model)
            )
        targets = {"sport": sports} if ablated else {"sport": sports, "shuffled labels": shuffled}
        fits = [subject.fit(values, np.stack([*targets.values()])) for values in activations]
        found = predictions(fits, settings, models.threads(config.compute))
        rows += [
            pd.DataFrame(
                {
                    "series": name,
                    "ablated": ablated,
                    "labels": labels,
                    "layer": layer,
                    "athlete": subject.athletes[test],
                    "right": said[i] == target[test],
                }
            )
            for i, (labels, target) in enumerate(targets.items())
            for layer, said in enumerate(found)
        ]
    majority = float(np.bincount(sports[test]).max() / test.sum())
    job.facts.update(seeds={"probe": settings.seed}, device=subject.device, majority=majority)
    pd.concat(rows, ignore_index=True).assign(majority=majority).to_parquet(
        job.outputs["probes"], index=False
    )


def head_ablation(job: Job) -> None:
    """Stage: final-layer probe accuracy when one head of the lookup layers is mean-ablated (Figure 15).

    All attention past the lookup layers is mean-ablated as well. As in the released code, each run's probe
    is fitted on that run's own activations, so that a drop says the sport is gone from the last layer, not
    that it has moved; means are those of the model without ablation. One row per head and test athlete:
    ``layer``, ``head`` (query heads; both -1: no single head ablated), ``athlete`` and ``right``.
    """
    config, settings = job.config, job.config.interpretability
    subject = load_subject(job)
    sports, test = subject.sports, subject.test
    geometry = comp.geometry_of(subject.model.config)
    encoded = subject.encode(config.prompts.training)
    early = range(settings.lookup_end)
    means = mean_head_outputs(subject.model, subject.windows, early)
    heads = [(layer, head) for layer in early for head in range(geometry.heads)]
    late = mean_attention_outputs(subject.model, subject.windows, settings.lookup_end)
    rows = []
    with attention_replaced(subject.model, late):
        for layer, head in Progress("ablating heads", "run").over([(-1, -1), *heads]):
            with nullcontext() if head < 0 else head_replaced(subject.model, layer, head, means[layer]):
                last = residuals(
                    subject.model,
                    encoded,
                    models.batch_tokens(config.compute, subject.model),
                    [geometry.layers - 1],
                )
            ((said,),) = predictions([subject.fit(last[0], sports[None])], settings)
            rows.append(
                pd.DataFrame(
                    {
                        "layer": layer,
                        "head": head,
                        "athlete": subject.athletes[test],
                        "right": said == sports[test],
                    }
                )
            )
    job.facts.update(seeds={"probe": settings.seed}, device=subject.device)
    pd.concat(rows, ignore_index=True).to_parquet(job.outputs["ablation"], index=False)
