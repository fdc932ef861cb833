"""Units: what counts as one component, and how scored ones are taken, best first, until a budget is full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from localized_unlearning.config.base import Granularity
from localized_unlearning.config.localization import Components, Localization
from localized_unlearning.models import components as components_module
from localized_unlearning.models.components import ATTENTION_KINDS

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


def counted(components: Components, granularity: Granularity | None) -> Components:
    """What counts as a component where ``granularity``, if given, replaces the run's."""
    return components if granularity is None else components.model_copy(update={"granularity": granularity})


def signed_percentile(table: pd.DataFrame, fraction: float) -> list[str]:
    """Components whose absolute score reaches the percentile of the *signed* scores that leaves ``fraction`` above it.

    The rule of the released code's masks. Large negative scores come on top of the fraction: 14 % of Gemma-7B's
    heads and matrices pass the attribution patching threshold of 5 %.
    """
    units = table.drop_duplicates("unit")
    threshold = float(np.percentile(units["score"], 100 * (1 - fraction)))
    return list(table.loc[table["score"].abs() >= threshold, "component"])


def ranked_units(table: pd.DataFrame) -> list[str]:
    """The units, the one with the largest absolute score first."""
    units = table.drop_duplicates("unit").copy()
    units["size"] = units["score"].abs()
    return list(units.sort_values(["size", "unit"], ascending=[False, True], kind="stable")["unit"])


def top_units(table: pd.DataFrame, fraction: float, of: int | None = None) -> list[str]:
    """Components of the units with the largest absolute score; ``fraction`` of the units, rounded up.

    5 % of 168 matrices are 9; 5 % of 56 units are 3, which stand for 10 matrices (4 + 4 + 2).

    Args:
        table: scores by component, with the unit of each.
        fraction: the share.
        of: of how many units it is the share, if not of those in the table.
    """
    units = ranked_units(table)
    chosen = set(units[: components_module.budget(of or len(units), fraction)])
    return list(table.loc[table["unit"].isin(chosen), "component"])


def matched_units(
    table: pd.DataFrame, sizes: dict[str, int], parameters: int, reached: bool = False
) -> list[str]:
    """Components of the best units, taken in order while their parameters stay within ``parameters``.

    With ``reached``, instead until they are at least as many: the journal version's rule, which overshoots.
    """
    chosen: list[str] = []
    total = 0
    for unit in ranked_units(table):
        if reached and total >= parameters:
            break
        members = list(table.loc[table["unit"] == unit, "component"])
        cost = sum(sizes[m] for m in members)
        if reached or total + cost <= parameters:
            chosen += members
            total += cost
    return chosen


def in_blocks(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a layer's attention or MLP as the unit, scored by the signed sum of what was scored in it."""
    places = table["kind"].isin(ATTENTION_KINDS).map({True: "attn", False: "mlp"})
    blocks = table["layer"].astype(str) + "." + places
    once = table.assign(block=blocks).drop_duplicates(["block", "unit"])
    sums = once.groupby("block")["score"].sum()
    return table.assign(unit=blocks, score=blocks.map(sums))


def described(
    job: Job, localization: Localization, chosen: Sequence[object], of: int, parameters: int, model: Any
) -> dict[str, Any]:
    """What a selection file says: whose it is, the chosen components, their parameters, and their share of the model."""
    return {
        "base_seed": int(job.wildcards["base_seed"]),
        "task": job.wildcards["task"],
        "localization": job.wildcards["localization"],
        "label": localization.label,
        "components": [str(component) for component in chosen],
        "parameters": parameters,
        "share_of_components": len(chosen) / of,
        "share_of_parameters": parameters / sum(p.numel() for p in model.parameters()),
    }
