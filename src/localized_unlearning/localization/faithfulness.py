"""Does a selection hold what it is said to hold? Keep it or ablate it, and see what is left of the answer.

The faithfulness of Mueller et al. 2025 (MIB, arXiv 2504.13151, section 3.1): all components but the best k % have their
activations replaced by the corrupt run's (keep), or those alone (ablate), and the metric is read between the corrupt run's 0
and the clean run's 1. CPR is the area under the curve over k, CMD the area between it and 1 (``reporting/faithfulness``); definitions, shares and
rounding as in MIB-circuit-track at 8284199, MIB_circuit_track/evaluation.py (evaluate_area_under_curve, linear scale, absolute scores).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from localized_unlearning.data.answers import candidates
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.data.splits import read_split
from localized_unlearning.localization.pairs import (
    Pairs,
    _answers,
    _metric_of,
    batches,
    corrupted,
    make_pairs,
    read_names,
)
from localized_unlearning.localization.selection import read_selection
from localized_unlearning.localization.units import counted, ranked_units
from localized_unlearning.models import components, loading
from localized_unlearning.models import device as device_module
from localized_unlearning.models.activations import recorded
from localized_unlearning.models.components import Component

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.jobs.job import Job

Place = tuple[int, str]
"""A layer and a kind."""


def places_of(model: Any, chosen: Sequence[Component]) -> dict[Place, list[int] | None]:
    """Where the activations of ``chosen`` stand: by layer and kind, their columns; None for all."""
    found: dict[Place, list[int] | None] = {}
    for component in chosen:
        columns = components.activation_columns(component, model.config)
        place = (component.layer, str(component.kind))
        if columns is None:
            found[place] = None
        elif found.get(place, []) is not None:
            found[place] = [*(found.get(place) or []), *columns]
    return found


@contextmanager
def replaced(
    model: Any, places: Mapping[Place, list[int] | None], values: Mapping[Place, Tensor]
) -> Iterator[None]:
    """Put ``values`` in the place of the model's own activations at ``places`` while it runs."""

    def patch(current: Tensor, place: Place) -> Tensor:
        columns = places[place]
        if columns is None:
            return values[place]
        patched = current.clone()
        patched[..., columns] = values[place][..., columns]
        return patched

    with ExitStack() as stack:
        for place in places:
            module = components.module_of(model, place[0], place[1])
            if components.reads_input(place[1]):

                def before(_module: Any, args: Any, place: Place = place) -> Any:
                    return (patch(args[0], place), *args[1:])

                stack.callback(module.register_forward_pre_hook(before).remove)
            else:

                def after(_module: Any, _args: Any, output: Tensor, place: Place = place) -> Tensor:
                    return patch(output, place)

                stack.callback(module.register_forward_hook(after).remove)
        yield


def left_over(
    model: Any, pairs: Pairs, sets: Sequence[Sequence[Component]], kinds: Sequence[str], batch_tokens: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The metric of each clean prompt with each set's activations replaced by the corrupt run's ``[set, prompt]``.

    Args:
        model: the model.
        pairs: clean and corrupt prompts.
        sets: sets of components.
        kinds: the kinds that occur in them.
        batch_tokens: tokens of one forward pass.

    Returns:
        That, and the metric of the clean and of the corrupt run ``[prompt]``, in logits.
    """
    import torch

    found = np.zeros((len(sets), len(pairs.clean)))
    clean, corrupt = np.zeros(len(pairs.clean)), np.zeros(len(pairs.clean))
    embedding = model.get_input_embeddings()
    with torch.inference_mode():
        for batch in batches(pairs, model, batch_tokens):
            answer, prompts = _answers(pairs, batch).to(model.device), batch.prompts.numpy()

            def measured(inputs: Tensor, batch: Any = batch, answer: Tensor = answer) -> np.ndarray:
                value = _metric_of(model, batch, inputs, answer, pairs.choices)
                return value.double().cpu().numpy()

            with recorded(model, kinds) as values:
                corrupt[prompts] = measured(embedding(corrupted(pairs, batch)))
            inputs = embedding(batch.inputs["input_ids"])
            clean[prompts] = measured(inputs)
            for place, chosen in enumerate(sets):
                with replaced(model, places_of(model, chosen), values):
                    found[place, prompts] = measured(inputs)
    return found, clean, corrupt


def top_sets(ranked: Sequence[Sequence[Component]], shares: Sequence[float]) -> list[list[Component]]:
    """The components of the first ``shares`` of the units ``ranked``, rounded down as in MIB."""
    return [[c for unit in ranked[: int(share * len(ranked) + 1e-9)] for c in unit] for share in shares]


def rows(
    athletes: Sequence[str],
    cases: Sequence[tuple[str, float, int]],
    found: np.ndarray,
    clean: np.ndarray,
    corrupt: np.ndarray,
) -> pd.DataFrame:
    """One row per prompt and case: ``subject``, ``mode`` (keep, ablate), ``share``, ``components``, ``metric``, ``clean``, ``corrupt``."""
    parts = [
        pd.DataFrame(
            {
                "subject": list(athletes),
                "mode": mode,
                "share": share,
                "components": count,
                "metric": found[place],
                "clean": clean,
                "corrupt": corrupt,
            }
        )
        for place, (mode, share, count) in enumerate(cases)
    ]
    return pd.concat(parts, ignore_index=True)


def measure(job: Job) -> None:
    """Stage: what is left of the answer when a selection, or the best of what its scores rank, is kept or ablated.

    Localizations by scores have a curve over ``faithfulness.shares``; every localization has its own selection, whose
    ``share`` is its share of the components (``own`` is true).
    """
    config, name = job.config, job.wildcards["localization"]
    settings, localization = config.faithfulness, config.localizations[name]
    assert localization is not None
    device = device_module.setup(config.compute)
    model, tokenizer = loading.load(job.inputs["base_model"], config.model.dtype, device)
    split = read_split(job.inputs["split"])
    asked = split[split[settings.athletes if settings.athletes == "forget" else "test"]]
    athletes = list(zip(asked["subject"], asked["answer"], strict=True))
    if settings.prompts is not None and settings.prompts < len(athletes):
        athletes = random.Random(settings.seed).sample(athletes, settings.prompts)
    book = load_prompts(job.inputs["prompts"])
    prompt, answers = book[config.prompts.training], candidates(book, split)
    pairs = make_pairs(
        athletes, prompt, answers, tokenizer, settings.seed, made_up=read_names(job.inputs.get("names"))
    )
    every = components.list_components(model.config, counted(config.components, localization.granularity))
    cases = [(0.0, read_selection(job.inputs["selection"]))]
    if job.inputs.get("scores"):
        table = pd.read_parquet(job.inputs["scores"])
        units = table.groupby("unit", sort=False)["component"].agg(list)
        ranked = [[components.parse(c) for c in units[unit]] for unit in ranked_units(table)]
        cases += list(zip(settings.shares, top_sets(ranked, settings.shares), strict=True))
    sets, about = [], []
    for share, best in cases:
        inside = set(best)
        rest = [c for c in every if c not in inside]
        for mode, replaced_ones in (("keep", rest), ("ablate", best)):
            sets.append(replaced_ones)
            about.append((mode, share or len(best) / len(every), len(best)))
    tokens = device_module.batch_tokens(
        config.compute, model, kept=components.geometry_of(model.config).layers
    )
    kinds = sorted(
        {str(c.kind) for some in (every, *sets) for c in some}
    )  # the truth may hold one that is not counted
    left, clean, corrupt = left_over(model, pairs, sets, kinds, tokens)
    table = rows(pairs.names, about, left, clean, corrupt)
    own = len(pairs.clean) * 2  # the first two cases are the selection's own
    table = table.assign(
        own=[i < own for i in range(len(table))], task=job.wildcards["task"], localization=name
    )
    job.facts.update(seeds={"faithfulness": settings.seed}, prompts=len(pairs.clean), device=device)
    table.to_parquet(job.outputs["faithfulness"], index=False)
