"""Does a selection hold what it is said to hold? Keep it or ablate it, and see what is left of the answer.

The faithfulness of Mueller et al. 2025 (MIB, arXiv 2504.13151, section 3.1): all components but the best k % have their
activations replaced by the corrupt run's (keep), or those alone (ablate), and the metric is read between the corrupt run's 0
and the clean run's 1. CPR is the area under the curve over k, CMD the area between it and 1; definitions, shares and
rounding as in MIB-circuit-track at 8284199, MIB_circuit_track/evaluation.py (evaluate_area_under_curve, linear scale, absolute scores).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from localized_unlearning.localization.pairs import Pairs, _answers, _metric_of, batches, corrupted
from localized_unlearning.models import components
from localized_unlearning.models.activations import recorded
from localized_unlearning.models.components import Component

if TYPE_CHECKING:
    from torch import Tensor

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
            module = components.module_of(model, place[0], place[1])  # type: ignore[arg-type]
            if components.reads_input(place[1]):  # type: ignore[arg-type]

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
                return value.double().cpu().numpy()  # type: ignore[no-any-return]

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


def areas(shares: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """CPR and CMD: the area under a keep curve, and that between it and 1, by trapezoids over linear shares.

    Where everything is kept nothing is replaced, so that the curve ends at (1, 1).
    """
    x, y = np.array([*shares, 1.0]), np.array([*values, 1.0])
    return float(np.trapezoid(y, x)), float(np.trapezoid(np.abs(1 - y), x))


def ratio(values: np.ndarray, clean: np.ndarray, corrupt: np.ndarray) -> float:
    """What is left between the corrupt run's 0 and the clean run's 1: a ratio of sums over prompts, as in MIB."""
    return float((values - corrupt).sum() / (clean - corrupt).sum())


def rows(
    athletes: Sequence[str],
    cases: Sequence[tuple[str, float, int]],
    found: np.ndarray,
    clean: np.ndarray,
    corrupt: np.ndarray,
) -> pd.DataFrame:
    """One row per prompt and case: ``athlete``, ``mode`` (keep, ablate), ``share``, ``components``, ``metric``, ``clean``, ``corrupt``."""
    parts = [
        pd.DataFrame(
            {
                "athlete": list(athletes),
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
