"""Components, their scores, and the localizations made from them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field, model_validator

from localized_unlearning.config.base import (
    Count,
    Fraction,
    Granularity,
    Kind,
    Label,
    MethodName,
    Positive,
    Section,
    Selection,
)


class Components(Section):
    """What counts as a component (section 2.3)."""

    granularity: Granularity = Field(
        "matrix", description="matrix: whole q, k, v, o; head: one component per head (1848 on Gemma-7B)."
    )
    include_gate: bool = Field(False, description="Count the MLP's gate projection as a component.")


BOTH = "attribution_patching and causal_tracing"


class Score(Section):
    """One way to score components."""

    method: MethodName = Field(
        description="Of components: attribution_patching, causal_tracing, integrated_gradients, activation_patching; of "
        "single weights: gradient_magnitude, weight_gradient, gradient_agreement; FILE.py:FUNCTION, your own."
    )
    parameters: dict[str, float | int | str | bool] = Field(
        default_factory=dict,
        description="Settings of the method, by name; those not given keep their defaults.",
    )
    athletes: Literal["train", "forget", "all"] = Field(
        "train",
        description="Whose prompts: the training part's, its forget set's only, or everyone's (as the released code's, "
        "test part included).",
    )
    prompts: int | None = Field(None, ge=1, description="How many of these subjects; null takes all.")
    seed: int = Field(0, description="Seed of prompts, made-up names and noise.")
    granularity: Granularity | None = Field(None, description="If other than components.granularity.")
    noise: Positive = Field(3.0, description="Causal tracing: noise in standard deviations of the embedding.")
    sites: Literal["units", "blocks", "matrices"] = Field(
        "units",
        description="Causal tracing, what is restored at a time. units: one head's attention output or one MLP, heads summed "
        "over a layer (the released code); blocks: all heads' output of a layer at once, or one MLP; matrices: one matrix.",
    )
    ratio_over: int | None = Field(
        None,
        ge=1,
        description="Over how many prompts effects and differences (clean minus corrupt) are summed before they are "
        "divided. null: all, a ratio of sums; 1: each prompt by itself, a mean of ratios, which a difference near 0 "
        "decides; the released code divided batch by batch.",
    )
    aggregate: Literal["signed", "absolute"] = Field(
        "signed",
        description="signed: effects of opposite sign cancel, as in the released code; absolute: each prompt's effect "
        "counts by its size.",
    )
    replace_guessed: bool = Field(
        True,
        description="Attribution patching: draw another made-up name where the model's guess about it is the "
        "subject's own answer.",
    )
    mlp_input: Literal["matrix", "residual"] = Field(
        "matrix",
        description="Where the MLP's input matrices are scored. matrix: at their own output; residual: at the residual "
        "stream that enters the MLP's norm, gate path included (the released code). Causal tracing's units and blocks have no such site.",
    )

    @model_validator(mode="after")
    def _sites(self) -> Score:
        traced, patched = (self.method == name for name in ("causal_tracing", "attribution_patching"))
        for key, given, used, by in (
            ("noise", self.noise != 3.0, traced, "causal_tracing"),
            ("sites", self.sites != "units", traced, "causal_tracing"),
            ("replace_guessed", not self.replace_guessed, not traced, "all methods but causal_tracing"),
            ("mlp_input", self.mlp_input != "matrix", traced or patched, BOTH),
            ("ratio_over", self.ratio_over is not None, traced or patched, BOTH),
            ("aggregate", self.aggregate != "signed", traced or patched, BOTH),
            ("parameters", bool(self.parameters), not (traced or patched), "the other methods"),
        ):
            if given and not used:
                raise ValueError(f"{key} is for {by}, not {self.method}: leave it out")
        if self.mlp_input == "residual" and self.method == "causal_tracing" and self.sites != "matrices":
            raise ValueError("mlp_input residual is a site of single matrices: set sites to matrices")
        return self


class MaskLocalization(Section):
    """What differs of a localization when weights are masked instead of trained; null: nothing."""

    scores: str | None = Field(None, description="Another name under 'scores'.")
    granularity: Granularity | None = Field(None, description="See the localization.")
    selection: Selection | None = Field(None, description="See the localization.")
    layers: tuple[int, ...] | None = Field(None, description="See the localization.")


class Localization(Section):
    """One localization: which components are trained."""

    label: Label = Field(description="Name in tables and figures, in one line.")
    kind: Literal["scores", "weights", "manual", "random", "all_mlps", "all", "truth", "matched_draw"] = (
        Field(
            description="scores: the components that score highest; weights: the single weights that do; manual: all of the "
            "layers named; random: drawn; all_mlps, all."
        )
    )
    scores: str | None = Field(None, description="For kinds scores and weights: a name under 'scores'.")
    unit: Literal["component", "block"] = Field(
        "component",
        description="For kinds scores and random, what is taken as a whole: a component, or a layer's attention or MLP, "
        "whose score is the signed sum of its components' (the journal version).",
    )
    budget: Literal["fraction", "parameters", "parameters_reached"] = Field(
        "fraction",
        description="fraction: a share of the components (of the weights, for kind weights); parameters: at most as many "
        "parameters as 'manual'; parameters_reached: until at least as many (the journal version).",
    )
    fraction: Fraction = Field(
        0.05,
        description="Share of the components before 'kinds', rounded up (section 2.3: 5 %; the organism has only 36, so its default is 10 %).",
    )
    granularity: Granularity | None = Field(
        None, description="If other than components.granularity; for kind scores, the scores' own."
    )
    selection: Selection = Field(
        "absolute",
        description="absolute: the largest absolute scores, or a random draw of as many; signed_percentile: absolute "
        "scores at least as large as the percentile of the signed ones, many more than 'fraction' (the released code's "
        "masks); independent: for kind random, each component with probability 'fraction' (likewise).",
    )
    layers: tuple[int, ...] | Literal["auto"] = Field(
        (),
        description="For kind manual: the fact-lookup layers; auto: those over which the base model's probes at the "
        "name's last token rise.",
    )
    layers_of: dict[str, tuple[int, ...]] = Field(
        default_factory=dict,
        description="For kind manual: other layers for some tasks, by name, where facts of a forget set are looked up elsewhere.",
    )
    rise: tuple[Fraction, Fraction] = Field(
        (0.2, 0.9),
        description="For layers auto: from the first layer at which the probe at the name's last token (Figure 16) has "
        "made the first share of its rise from the embeddings, to the first at which it has made the other.",
    )
    kinds: tuple[Kind, ...] | None = Field(
        None,
        min_length=1,
        description="Only these matrices, whatever the kind; null: up and down for kind manual, all for the others.",
    )
    seed: int = Field(0, description="For kinds random and matched_draw: the draw.")
    disjoint: bool = Field(
        False, description="For kind matched_draw: from layers without injected facts alone."
    )
    mask: MaskLocalization | None = Field(
        None, description="What differs when weights are masked (the released code masked other components)."
    )


class Faithfulness(Section):
    """Keeping or ablating what a localization ranks first, and reading what is left of the answer (MIB's CPR and CMD)."""

    shares: tuple[Fraction, ...] = Field(
        (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
        min_length=1,
        description="Shares of the scored units, rounded down (MIB: these, and 1, where nothing is replaced).",
    )
    athletes: Literal["test", "forget"] = Field(
        "test", description="Whose prompts: the test part's, or its forget set's."
    )
    prompts: int | None = Field(100, ge=1, description="How many of these subjects; null takes all.")
    seed: int = Field(0, description="Seed of prompts and made-up names.")


class Mechanism(Section):
    """Components that are said to do one thing: attention heads and MLPs, by layer."""

    label: Label = Field(description="Name in tables, in one line.")
    heads: dict[Annotated[int, Field(ge=0)], tuple[Annotated[int, Field(ge=0)], ...]] = Field(
        default_factory=dict, description="Attention heads, by layer: {37: [12], 39: [7, 13]}."
    )
    mlps: tuple[Annotated[int, Field(ge=0)], ...] = Field((), description="Layers whose MLPs are of it.")

    @model_validator(mode="after")
    def _some(self) -> Mechanism:
        if not any(self.heads.values()) and not self.mlps:
            raise ValueError("a mechanism needs heads or mlps: name some")
        return self


class Overlap(Section):
    """How much localizations share with one another and with mechanisms that are named (`snakemake overlap_table`)."""

    mechanisms: dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")], Mechanism] = Field(
        default_factory=dict,
        description="Sets of components by name, of which the table gives the share that each localization holds.",
    )
    tasks: tuple[str, ...] = Field((), description="Of which tasks; none: of all.")
    masked: Count | None = Field(
        None,
        description="Also train masks, and count among the mechanisms the weights that each removes first, this many; null: no.",
    )

    def impossible(self, tasks: Collection[str], ranked: int, seeds: bool) -> str | None:
        """Why the table cannot be made, with the remedy; None when it can.

        Args:
            tasks: the run's tasks.
            ranked: how many weights a mask ranks.
            seeds: whether the run has masks.
        """
        if unknown := sorted(set(self.tasks) - set(tasks)):
            return f"overlap.tasks names {unknown[0]}, which is not under 'tasks'"
        if self.masked is not None and not seeds:
            return "overlap.masked needs masks, and mask_seeds is empty: name a seed there, or set overlap.masked to null"
        if self.masked is not None and self.masked > ranked:
            return f"overlap.masked is {self.masked:,}, and masks rank {ranked:,} weights: raise masking.edit_sizes"
        return None


class NullDistribution(Section):
    """Random localizations, against which the others are ranked; each is a localization of its own."""

    draws: Annotated[int, Field(ge=0)] = Field(
        0, description="How many; named random_draw_1 and so on. 0: none."
    )
    budget: Literal["fraction", "parameters", "truth"] = Field(
        "parameters",
        description="As for a localization; parameters: as many as 'manual'; truth: as many matrices of each kind as hold "
        "an organism's injected facts.",
    )
    fraction: Fraction = Field(0.05, description="Share of the components, for budget fraction.")
    disjoint: Annotated[int, Field(ge=0)] = Field(
        0, description="For budget truth, as many draws besides that share no layer with the truth."
    )
    first_seed: int = Field(1000, description="Seed of the first draw; the next ones count up.")
    seeds: tuple[int, ...] = Field((), description="Seeds of unlearning; none: the run's first.")

    def expanded(self) -> dict[str, Localization]:
        """The draws, by name."""
        return {
            f"random_draw_{i + 1}": Localization(
                label=f"Random draw {i + 1}",
                kind="matched_draw" if self.budget == "truth" else "random",
                budget="fraction" if self.budget == "truth" else self.budget,
                fraction=self.fraction,
                seed=self.first_seed + i,
            )
            for i in range(self.draws)
        } | {
            f"disjoint_draw_{i + 1}": Localization(
                label=f"Disjoint draw {i + 1}", kind="matched_draw", seed=self.first_seed + i, disjoint=True
            )
            for i in range(self.disjoint)
        }


def _default_scores() -> dict[str, Score | None]:
    return {
        "attribution_patching": Score(method="attribution_patching"),
        "causal_tracing": Score(method="causal_tracing"),
    }


def _default_localizations() -> dict[str, Localization | None]:
    return {
        "attribution_patching": Localization(
            label="Attrib. Patching", kind="scores", scores="attribution_patching", fraction=0.1
        ),
        "causal_tracing": Localization(
            label="Causal Tracing", kind="scores", scores="causal_tracing", fraction=0.1
        ),
        "manual": Localization(label="Manual", kind="manual", layers="auto"),
        "random": Localization(label="Random", kind="random", fraction=0.1),
        "all_mlps": Localization(label="All MLPs", kind="all_mlps"),
        "nonlocalized": Localization(label="Nonlocalized", kind="all"),
    }
