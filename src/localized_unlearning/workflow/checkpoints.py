"""The models of a run, and the parts of the graph that several stages read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from localized_unlearning.config.localization import Localization
from localized_unlearning.config.run import Config
from localized_unlearning.paper.artefacts import lacking
from localized_unlearning.workflow.layout import JobId, Layout
from localized_unlearning.workflow.products import (
    KNOWERS,
    Given,
    Product,
    model,
    only,
)
from localized_unlearning.workflow.wanted import Wanted


class Checkpoints(Wanted):
    """The models of a run and what is read beside them.

    Attributes:
        config: the resolved config.
        layout: where files lie.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.layout = Layout(config.run)

    def _chain(self, w: Mapping[str, str]) -> dict[str, str] | None:
        """Wildcards of the task before, in sequential unlearning; None where there is none."""
        task = self.config.tasks[w["task"]]
        return None if task is None or task.after is None else {**w, "task": task.after}

    def chain(self, task: str) -> tuple[str, ...]:
        """The tasks that are unlearned one after another up to this one, the first of them first."""
        before = self._chain({"task": task})
        return (*(self.chain(before["task"]) if before else ()), task)

    def source(self, dotted: str) -> Given:
        """The file of a config source: itself if local, else what ``fetch`` brings."""
        node = self.sources[dotted]
        if node.kind == "path":
            assert node.path is not None
            return os.path.expandvars(os.path.expanduser(node.path))
        return Product(JobId.of("fetch", source=dotted), "file")

    @property
    def facts_file(self) -> Given:
        """The facts: their source, or where every fact has its own prompt what is made of it."""
        own = self.config.athletes.own_prompts is not None
        return Product(JobId.of("counterfact"), "facts") if own else self.source("athletes.source")

    @property
    def prompts_file(self) -> Given:
        """The prompts: the config's file, or where every fact has its own what is made of the source."""
        own = self.config.athletes.own_prompts is not None
        return Product(JobId.of("counterfact"), "prompts") if own else self.config.prompts.file

    @property
    def local_model(self) -> str | None:
        """The folder on this machine that the base model is brought from; None for one of the hub."""
        path = os.path.expandvars(os.path.expanduser(self.config.model.name))
        return path if self.config.model.kind == "huggingface" and Path(path).is_dir() else None

    def models(
        self, task: str, objective: str, base: bool = True, bases: Sequence[int] | None = None
    ) -> list[dict[str, str]]:
        """Wildcards of a task's models, base by base: the base model if wanted, then each localization's, seed by seed."""
        seeds = self.seeds(task, objective)
        found = []
        for start in self.bases if bases is None else bases:
            if base:
                found.append(model(start, task, "none", "base", 0))
            found += [model(start, task, objective, name, seed) for name in self.compared for seed in seeds]
        return found

    @property
    def known(self) -> tuple[str, ...]:
        """The models of a task that were not unlearned: the base model, and gold where facts were injected."""
        return KNOWERS if self.config.has_injection else KNOWERS[:1]

    def gold(self, task: str) -> list[dict[str, str]]:
        """Wildcards of a task's models that never learned its forget set; none without injected facts."""
        return [model(start, task, "none", "gold", 0) for start in self.bases if self.config.has_injection]

    def attacked(self) -> list[dict[str, str]]:
        """Wildcards of the attack jobs: every attacked model with every attack, and with none."""
        attacks = self.config.attacks
        if not attacks.run:
            return []
        names = ("asked", *attacks.run)
        return [
            {**model, "attack": attack}
            for task in (attacks.tasks or self.tasks)
            for objective in attacks.objectives
            if objective in self.config.objectives and task in self.tasks and self._studied(task, objective)
            for model in [*self.models(task, objective), *self.gold(task)]
            for attack in names
        ]

    def _studied(self, task: str, objective: str) -> bool:
        """Whether a pair is one of a study, or no study has the forget set: attacks ask for no models beside the tables'."""
        studies = [study for study in self.config.studies.values() if study and task in study.tasks]
        return not studies or any(objective in study.objectives for study in studies)

    def null_models(self, task: str, objective: str) -> list[dict[str, str]]:
        """Wildcards of the models of the null distribution."""
        seeds = self.config.null_distribution.seeds or self.config.seeds[:1]
        return [
            model(start, task, objective, name, seed)
            for start in self.bases
            for name in self.config.null_draws
            for seed in seeds
        ]

    def path(self, given: Given) -> str:
        """Where a file lies."""
        return given if isinstance(given, str) else self.layout.outputs(given.job)[given.output]

    def possible(self, names: Iterable[str]) -> list[str]:
        """Those of the tables or figures that this config can make: it may lack a task or an objective."""
        return [name for name in names if not lacking(self.config, name)]

    def _base(self, w: Mapping[str, str]) -> dict[str, Given | None]:
        pretrained = Product(JobId.of("pretrain", base_seed=w["base_seed"]), "model")
        return {
            "base_model": Product(JobId.of(self.maker, base_seed=w["base_seed"]), "model"),
            "pretrained": pretrained if self.config.has_injection else None,
            "athletes": self.facts_file,
            "general_knowledge": self.source("mmlu.source"),
            "check": Product(JobId.of("check_model", base_seed=w["base_seed"]), "check"),
            "card": Product(JobId.of("model_card", base_seed=w["base_seed"]), "json"),
            "known": Product(JobId.of("known_facts", base_seed=w["base_seed"]), "known"),
            "prompts": self.prompts_file,
            "names": self.config.athletes.made_up_names,
            "mmlu": self.source("mmlu.source"),
        }

    def _split(self, w: Mapping[str, str]) -> dict[str, Given | None]:
        return {
            **self._base(w),
            "split": Product(JobId.of("split", **only(w, "base_seed", "task")), "split"),
        }

    def _checkpoint(self, w: Mapping[str, str]) -> dict[str, Given | None]:
        delta = Product(JobId.of("finetune", **w), "delta") if w["localization"] not in KNOWERS else None
        if w["localization"] == "gold":
            delta = Product(JobId.of("gold", **only(w, "base_seed", "task")), "delta")
        return {**self._split(w), "delta": delta, "text": self.source("text.held_out")}

    def _series(self) -> Given:
        return self.source("series.source" if self.config.series.source is not None else "mmlu.source")

    def _selecting(self, w: Mapping[str, str], chosen: Localization) -> dict[str, Given | None]:
        here = only(w, "base_seed", "task")
        scores = chosen.kind == "scores"
        matched = chosen.budget != "fraction" and chosen.kind != "manual"
        return {
            **self._base(w),
            "scores": Product(JobId.of("score", scores=str(chosen.scores), **here), "scores")
            if scores
            else None,
            "manual": Product(JobId.of("select", localization="manual", **here), "selection")
            if matched
            else None,
            "probes": (
                Product(JobId.of("layer_probes", base_seed=w["base_seed"]), "probes")
                if self.localization(w["localization"]).layers == "auto"
                else None
            ),
        }

    def trained(self, w: Mapping[str, str]) -> Product:
        """The selection of what is trained."""
        chosen = self.localization(w["localization"])
        if chosen.kind != "weights":
            return Product(JobId.of("select", **w), "selection")
        return Product(JobId.of("select_weights", **{**w, "scores": str(chosen.scores)}), "selection")

    def _selected(self, w: Mapping[str, str], selection: Product) -> dict[str, Given | None]:
        """A selection, and the single weights that it has where it is of weights."""
        single = selection.job.stage == "select_weights"
        return {"selection": selection, "weights": Product(selection.job, "weights") if single else None}

    def masked(self, w: Mapping[str, str]) -> Product:
        """The components that a mask covers: those that are trained, unless the config says otherwise."""
        other = self.localization(w["localization"]).mask is not None
        return Product(JobId.of("select_for_mask", **w), "selection") if other else self.trained(w)

    def _rows(self, models: Iterable[Mapping[str, str]], names: Iterable[str]) -> dict[str, list[Given]]:
        models = list(models)
        return {name: [Product(JobId.of(name, **m), name) for m in models] for name in names}

    def _selections(self, task: str, names: Iterable[str]) -> list[Given]:
        names = list(names)
        return [
            self.trained({"base_seed": str(start), "task": task, "localization": name})
            for start in self.bases
            for name in names
        ]
