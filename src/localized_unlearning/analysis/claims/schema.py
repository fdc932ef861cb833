"""What a claim is: a typed reading of ``workflow/resources/claims.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from localized_unlearning.config.base import Section
from localized_unlearning.errors import UserError

HALFWAY = 0.5
"""Accuracy that parts forgotten from known, answering from not, and probes that find an answer from those that do not."""

ROUNDING = 1e-9
"""Differences below this are none: shares are multiples of 1 / (n + 2), never closer to one another."""

LOCALIZATIONS = ("attribution_patching", "causal_tracing", "manual", "random", "all_mlps", "nonlocalized")
"""The paper's localizations, in its order."""

Name = Literal["attribution_patching", "causal_tracing", "manual", "random", "all_mlps", "nonlocalized"]

Measure = Literal[
    "forget", "retain", "mcq_forget", "mcq_retain", "mmlu",
    "relearned", "relearned_all", "probe",
    "sweep_forget", "sweep_mcq_forget", "sweep_retain_minus_forget", "sweep_mmlu_minus_forget",
    "sweep_mmlu_minus_mcq_forget", "sweep_mmlu_change_minus_forget",
    "layers_prompt", "layers_athlete", "late_attention_prompt", "late_attention_athlete", "head_ablation",
    "selection_depth", "selection_attention",
]  # fmt: skip
"""What is measured; each is defined in :mod:`localized_unlearning.analysis.claims.evidence`."""

At = Literal["last", "mean", "min", "max"]
"""Which number stands for a series: its last point, its mean, or its least or greatest."""


class Compared(Section):
    """What all predicates share."""

    tasks: tuple[Literal["sports", "athletes", "base"], ...] = Field(
        description="Unlearning tasks; base: the base model."
    )
    objective: Literal["erase", "inject", "mask"] = Field("erase", description="How it was unlearned.")
    measure: Measure
    at: At = Field("last", description="Which number stands for a series.")
    localizations: tuple[Name, ...] = Field((), description="Whose number; none for the base model.")
    forgotten: bool = Field(
        False, description="Count only models whose forget accuracy had certainly fallen below 0.5."
    )
    answering: bool = Field(
        False,
        description="Count only models that still answer multiple choice on the retain set, certainly above 0.5.",
    )


class Ordering(Compared):
    """One localization's number lies below or above another's."""

    predicate: Literal["ordering"]
    side: Literal["below", "above"]
    than: tuple[Name, ...] | Literal["others"]
    tolerance: float = Field(0.0, ge=0, description="By how much the other may be better.")
    by: float = Field(0.0, ge=0, description="By how much it must be better at least.")

    def others(self, name: str) -> tuple[str, ...]:
        """Whom a localization is compared with."""
        than = LOCALIZATIONS if self.than == "others" else self.than
        return tuple(other for other in than if other != name)


class Band(Compared):
    """A number lies within bounds."""

    predicate: Literal["band"]
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Band:
        if self.low is None and self.high is None:
            raise ValueError("a band needs 'low' or 'high'")
        return self


class Trend(Compared):
    """A series rises by at least so much."""

    predicate: Literal["trend"]
    over: Literal["all", "lookup"] = Field(
        "all",
        description="all: from the first point to the last; lookup: over the manual localization's layers.",
    )
    until: float | None = Field(None, description="The last point that counts; null: that of the series.")
    rise: float = Field(0.0, description="The least rise.")
    share: float = Field(0.0, ge=0, le=1, description="The least share of the rise over all points.")


class Smaller(Compared):
    """Along a sweep of edits, halfway is passed at a smaller edit than by another localization."""

    predicate: Literal["smaller"]
    than: tuple[Name, ...]
    ratio: float = Field(ge=1, description="How many times smaller at least.")

    def others(self, name: str) -> tuple[str, ...]:
        """Whom a localization is compared with."""
        return tuple(other for other in self.than if other != name)


Test = Annotated[Ordering | Band | Trend | Smaller, Field(discriminator="predicate")]


class Claim(Section):
    """One sentence of the paper and the comparisons that must all hold for it."""

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    section: str = Field(description="Where it stands in the paper.")
    shown_in: tuple[Annotated[str, Field(pattern=r"^(table_[1-4]|figure_([1-9]|1[0-6]))$")], ...] = Field(
        min_length=1
    )
    says: str = Field(description="The sentence in our words.")
    why: str = Field(description="Why these bounds and this tolerance.")
    caveat: str | None = Field(None, description="What the comparison cannot say.")
    circular: str | None = Field(
        None, description="Why the claim holds by construction, if it does; its verdict is then told apart."
    )
    tests: tuple[Test, ...] = Field(min_length=1)


def read(path: Path) -> tuple[Claim, ...]:
    """The claims in a file.

    Raises:
        UserError: naming the claim and the key at fault.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        claims = TypeAdapter(tuple[Claim, ...]).validate_python(data)
    except FileNotFoundError:
        raise UserError(f"claims file {path} does not exist: check claims.file") from None
    except yaml.YAMLError as error:
        raise UserError(f"claims file {path} is not valid YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = first["loc"]
        number = place[0] if place and isinstance(place[0], int) else None
        item = data[number] if number is not None else None
        name = item.get("id", number) if isinstance(item, Mapping) else "the file"
        key = ".".join(str(part) for part in place[1:])
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: claim {name}, {key}: {message}") from None
    names = [claim.id for claim in claims]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}: claim {twice} stands twice: give each its own id")
    return claims
