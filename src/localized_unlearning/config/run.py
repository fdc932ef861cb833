"""The configuration: one typed source for the YAML, the JSON schema and the reference page.

Every setting of the workflow is a field here, with its unit, its default and where the paper
states it. Unknown keys are refused with the nearest valid one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from localized_unlearning.config.attacks import Attacks
from localized_unlearning.config.base import Cache, Compute, Section
from localized_unlearning.config.data import Athletes, Mmlu, Prompts, Split, Task, Text, _default_tasks
from localized_unlearning.config.evaluation import (
    Claims,
    Evaluation,
    Figures,
    Interpretability,
    Measures,
    Probing,
    Relearning,
    Series,
    Statistics,
    Study,
)
from localized_unlearning.config.localization import (
    Components,
    Faithfulness,
    Localization,
    NullDistribution,
    Overlap,
    Score,
    _default_localizations,
    _default_scores,
)
from localized_unlearning.config.model import Model, Organism
from localized_unlearning.config.question import Question
from localized_unlearning.config.source import Source
from localized_unlearning.config.unlearning import Finetune, Masking, Objective, _default_objectives

RESERVED = {
    "tasks": ("interpretability",),
    "objectives": ("none", "mask", "scores", "selections"),
    "scores": (),
    "localizations": ("base", "gold"),
}
"""Names that would name two things in the results folder."""

TRUTH = Localization(label="Truth", kind="truth")
"""The matrices that hold an organism's injected facts; a localization of every run that injects some."""


def prompts_of(kind: str) -> str:
    """The prompts file that ``auto`` stands for, by the base model's kind."""
    return f"workflow/resources/prompts{'_organism' if kind == 'organism' else ''}.yaml"


class Config(Section):
    """One run of the workflow."""

    extends: str | None = Field(
        None, description="In a preset: the preset that it is laid over, a file beside it (gemma-7b.yaml)."
    )
    run: str = Field(
        "organism", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the results folder."
    )
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="Seeds of unlearning; one model per seed.")
    base_seeds: tuple[int, ...] = Field(
        (0, 1, 3),
        min_length=1,
        description="Seeds of pretraining, a base model each (model kind organism); not 2, which meets its bed's requirements by a hair.",
    )
    figure_base_seeds: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description="Base models behind the figures of relearning and weight masks (1, 2, 5 to 13), the dearest part of a run; "
        "null: all of base_seeds, as every table and the other figures have (a single head's, Figure 15, are the first one's).",
    )
    mask_seeds: tuple[int, ...] | None = Field(
        None, description="Seeds of weight masks; null: those of unlearning; empty: no masks."
    )
    compute: Compute = Compute()
    cache: Cache = Cache()
    model: Model = Model()
    organism: Organism = Organism()
    gguf: Source | None = Field(None, description="The GGUF file, for model kind gguf.")
    athletes: Athletes = Athletes()
    prompts: Prompts = Prompts()
    split: Split = Split()
    tasks: dict[str, Task | None] = Field(default_factory=_default_tasks)
    objectives: dict[str, Objective | None] = Field(default_factory=_default_objectives)
    text: Text = Text()
    mmlu: Mmlu = Mmlu()
    components: Components = Components()
    scores: dict[str, Score | None] = Field(default_factory=_default_scores)
    localizations: dict[str, Localization | None] = Field(default_factory=_default_localizations)
    faithfulness: Faithfulness = Faithfulness()
    overlap: Overlap = Overlap()
    null_distribution: NullDistribution = NullDistribution()
    finetune: Finetune = Finetune()
    evaluation: Evaluation = Evaluation()
    series: Series = Series()
    relearning: Relearning = Relearning()
    attacks: Attacks = Attacks()
    question: Question = Question()
    probing: Probing = Probing()
    masking: Masking = Masking()
    interpretability: Interpretability = Interpretability()
    statistics: Statistics = Statistics()
    measures: Measures = Measures()
    studies: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Study | None] = Field(
        default_factory=dict,
        description="Tables of one's own by name; `snakemake NAME` makes one, `snakemake studies` all.",
    )
    claims: Claims = Claims()
    figures: Figures = Figures()

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        """A task, score or localization set to null in an overlay is removed."""
        if isinstance(data, Mapping):
            data = dict(data)
            for name in ("tasks", "objectives", "scores", "localizations", "studies"):
                if isinstance(data.get(name), Mapping):
                    data[name] = {k: v for k, v in data[name].items() if v is not None}
            question = data.get("question")
            if isinstance(question, Mapping):
                data["question"] = {
                    name: {k: v for k, v in value.items() if v is not None}
                    if name in ("places", "attacks") and isinstance(value, Mapping)
                    else value
                    for name, value in question.items()
                }
        return data

    @model_validator(mode="after")
    def _names(self) -> Config:
        """Names become folders and wildcards of the workflow."""
        for section, reserved in RESERVED.items():
            for name in getattr(self, section):
                if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
                    raise ValueError(
                        f"{section} has the name '{name}': a name is a letter, then letters, digits and underscores"
                    )
                if name in reserved:
                    raise ValueError(
                        f"{section} has the name '{name}', which the workflow uses itself: choose another"
                    )
        return self

    @model_validator(mode="after")
    def _truth(self) -> Config:
        """Where facts are injected, the matrices that hold them are a localization; the prompts are the model's kind's."""
        if self.has_injection:
            self.localizations.setdefault("truth", TRUTH)
        for name, localization in self.localizations.items():
            if localization and localization.kind in ("truth", "matched_draw") and not self.has_injection:
                raise ValueError(
                    f"localizations.{name} needs an organism with injected facts (model.kind organism, "
                    "organism.facts_in): set it to null"
                )
        if self.athletes.own_prompts is not None and (
            self.model.kind == "organism" or self.athletes.relation
        ):
            raise ValueError(
                "athletes.own_prompts asks every fact of CounterFact by its own prompt: it is for a model that was not pretrained "
                "here (model.kind), and without athletes.relation"
            )
        if self.prompts.file == "auto":
            prompts = self.prompts.model_copy(update={"file": prompts_of(self.model.kind)})
            object.__setattr__(self, "prompts", prompts)
        return self

    @model_validator(mode="after")
    def _references(self) -> Config:
        for name, localization in self.localizations.items():
            assert localization is not None
            if localization.kind == "manual" and not localization.layers:
                raise ValueError(f"localizations.{name} is manual and needs 'layers'")
            masked = localization.mask.model_dump(exclude_none=True) if localization.mask else {}
            for found in (localization, localization.model_copy(update=masked)):
                self._fits(name, found)
            if localization.rise != (0.2, 0.9) and "auto" not in (localization.layers, masked.get("layers")):
                raise ValueError(f"localizations.{name}.rise is for layers auto: leave it out")
            if localization.budget != "fraction" and "manual" not in self.localizations:
                raise ValueError(f"localizations.{name} matches the parameters of 'manual', which is absent")
        if self.model.dtype == "float32" and self.finetune.precision != "fp32_master":
            raise ValueError(
                f"finetune.precision is {self.finetune.precision}, but model.dtype is float32: "
                "set model.dtype to bfloat16, or the precision to fp32_master"
            )
        for name, seeds in (
            ("seeds", self.seeds),
            ("base_seeds", self.base_seeds),
            ("figure_base_seeds", self.figure_base_seeds or ()),
            ("mask_seeds", self.mask_seeds or ()),
            ("null_distribution.seeds", self.null_distribution.seeds),
            *((f"tasks.{task}.seeds", t.seeds) for task, t in self.tasks.items() if t),
        ):
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"{name} names a seed twice")
        for name, task in self.tasks.items():
            if task and task.of is not None and (task.of not in self.tasks or name in ("sports", "athletes")):
                raise ValueError(
                    f"tasks.{name} is another forget set of '{task.of}', so that task must be in the config "
                    "and not be this one"
                )
        for name, study in self.studies.items():
            for what, wanted, known in (
                ("tasks", study.tasks if study else (), self.tasks),
                ("objectives", study.objectives if study else (), self.objectives),
                ("localizations", study.localizations if study else (), self.localizations),
            ):
                if unknown := sorted(set(wanted) - set(known)):
                    raise ValueError(f"studies.{name}.{what} names {unknown[0]}, which is not under '{what}'")
        for name, task in self.tasks.items():
            chain = [name]
            while task and task.after is not None:
                if task.after in chain or task.after not in self.tasks:
                    what = "itself" if task.after in chain else "a task that the config lacks"
                    raise ValueError(f"tasks.{name}.after: '{chain[-1]}' comes after '{task.after}', {what}")
                chain.append(task.after)
                task = self.tasks[task.after]
        if self.model.revision is not None and self.model.kind != "huggingface":
            raise ValueError(f"model.revision is for kind huggingface, not {self.model.kind}: leave it out")
        if self.model.kind == "gguf" and self.gguf is None:
            raise ValueError("model.kind is gguf, so 'gguf' must name its source")
        for name, objective in self.objectives.items():
            assert objective is not None
            if unknown := sorted(set(objective.exceptions) - set(self.localizations)):
                raise ValueError(f"objectives.{name}.exceptions names {unknown[0]}, which is no localization")
        masking = self.masking
        if masking.parameterization == "mask" and (masking.weight_decay or masking.clip_norm):
            raise ValueError(
                "masking.weight_decay and masking.clip_norm are for masking.parameterization weights"
            )
        return self

    def _fits(self, name: str, localization: Localization) -> None:
        for key, kinds, given in (
            ("scores", ("scores", "weights"), localization.scores is not None),
            ("layers", ("manual",), localization.layers != ()),
            ("layers_of", ("manual",), localization.layers_of != {}),
            ("unit", ("scores", "random"), localization.unit != "component"),
            ("budget", ("scores", "weights", "random"), localization.budget != "fraction"),
            ("fraction", ("scores", "weights", "random"), localization.fraction != 0.05),
            ("seed", ("random", "matched_draw"), localization.seed != 0),
            ("disjoint", ("matched_draw",), localization.disjoint),
            ("rise", ("manual",), localization.rise != (0.2, 0.9)),
        ):
            if given and localization.kind not in kinds:
                raise ValueError(
                    f"localizations.{name}.{key} is for kind {' and '.join(kinds)}, not {localization.kind}: leave it out"
                )
        if unknown := sorted(set(localization.layers_of) - set(self.tasks)):
            raise ValueError(f"localizations.{name}.layers_of names {unknown[0]}, which is not under 'tasks'")
        if localization.kind in ("scores", "weights"):
            scores = self.scores.get(localization.scores or "")
            if scores is None:
                raise ValueError(
                    f"localizations.{name}.scores is {localization.scores!r}, which is not under 'scores' "
                    f"({', '.join(self.scores)})"
                )
            own = self.components.granularity
            if (localization.granularity or own) != (scores.granularity or own):
                raise ValueError(
                    f"localizations.{name} and scores.{localization.scores} differ in granularity: give both the same"
                )
        if localization.selection == "signed_percentile" and localization.kind != "scores":
            raise ValueError(f"localizations.{name}.selection is signed_percentile, which needs kind scores")
        if localization.selection == "independent" and localization.kind != "random":
            raise ValueError(f"localizations.{name}.selection is independent, which needs kind random")

    @model_validator(mode="after")
    def _draws(self) -> Config:
        """Attacks have what they attack; every draw of the null distribution is a localization, like any other."""
        masks, ranked = self.mask_seeds != (), max(self.masking.edit_sizes)
        why = self.attacks.impossible(self.has_injection)
        if why := why or self.overlap.impossible(self.tasks, ranked, masks):
            raise ValueError(why)
        if self.null_distribution.draws and "manual" not in self.localizations:
            raise ValueError("null_distribution ranks 'manual' among random draws, but it is absent")
        self.localizations.update(self.null_draws)
        return self

    @property
    def has_injection(self) -> bool:
        """Whether facts are injected into an organism, so that there is a truth and a model that never knew them."""
        return self.model.kind == "organism" and self.organism.facts_in is not None

    @property
    def null_draws(self) -> dict[str, Localization]:
        """The random localizations of the null distribution, by name."""
        return self.null_distribution.expanded()

    def unresolved(self) -> Config:
        """The config as a user writes it: without the localizations, and the prompts file, that follow from the rest."""
        derived = set(self.null_draws) | ({"truth"} if self.localizations.get("truth") == TRUTH else set())
        kept = {name: found for name, found in self.localizations.items() if name not in derived}
        auto = self.prompts.file == prompts_of(self.model.kind)
        prompts = self.prompts.model_copy(update={"file": "auto"}) if auto else self.prompts
        return self.model_copy(update={"localizations": kept, "prompts": prompts})

    def as_written(self) -> dict[str, Any]:
        """Plain values of :meth:`unresolved`."""
        return self.unresolved().model_dump(mode="json")
