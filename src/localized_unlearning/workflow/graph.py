"""The graph of a run: which jobs it has, and what each of them reads.

The Snakefile, the plan, preflight, the costs, the report and the audit all ask here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from localized_unlearning.config.localization import Localization
from localized_unlearning.config.run import Config
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.localization.settings import for_masks
from localized_unlearning.paper.artefacts import FIGURES, TABLES, lacking
from localized_unlearning.workflow.layout import JobId, Layout
from localized_unlearning.workflow.wanted import Wanted

EVALUATIONS = ("facts", "multiple_choice", "mmlu", "text")
"""The evaluations of each model, in the order of their table columns."""

SHORT_EXAM = ("facts", "multiple_choice", "mmlu")
"""What is asked at each point of a series."""

EVIDENCE = (*SHORT_EXAM, "probes", "layer_probes", "head_ablation")
"""Stems of the files that hold per-item rows of a model."""

MAKERS = ("pretrain", "inject", "convert", "download")
"""The stages that make base models."""

KNOWERS = ("base", "gold")
"""The models that were not unlearned: the base model, and one that never learned the forget set."""

INJECTED = ("inject", "gold", "teachers", "localizers", "question", "question_page")
"""Stages of an organism with injected facts alone."""


@dataclass(frozen=True)
class Product:
    """An output of a job, by its name in the stage table."""

    job: JobId
    output: str


Given = Product | str
"""What a job reads: another job's product, or a file from outside."""


class Graph(Wanted):
    """The jobs of a run, and their edges.

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

    def source(self, dotted: str) -> Given:
        """The file of a config source: itself if local, else what ``fetch`` brings."""
        node = self.sources[dotted]
        if node.kind == "path":
            assert node.path is not None
            return os.path.expandvars(os.path.expanduser(node.path))
        return Product(JobId.of("fetch", source=dotted), "file")

    @property
    def local_model(self) -> str | None:
        """The folder on this machine that the base model is brought from; None for one of the hub."""
        path = os.path.expandvars(os.path.expanduser(self.config.model.name))
        return path if self.config.model.kind == "huggingface" and Path(path).is_dir() else None

    # -- the models of a run

    def models(
        self, task: str, objective: str, base: bool = True, bases: Sequence[int] | None = None
    ) -> list[dict[str, str]]:
        """Wildcards of a task's models, base by base: the base model if wanted, then each localization's, seed by seed."""
        seeds = self.seeds(task, objective)
        found = []
        for start in self.bases if bases is None else bases:
            if base:
                found.append(_model(start, task, "none", "base", 0))
            found += [_model(start, task, objective, name, seed) for name in self.compared for seed in seeds]
        return found

    @property
    def known(self) -> tuple[str, ...]:
        """The models of a task that were not unlearned: the base model, and gold where facts were injected."""
        return KNOWERS if self.config.injected else KNOWERS[:1]

    def gold(self, task: str) -> list[dict[str, str]]:
        """Wildcards of a task's models that never learned its forget set; none without injected facts."""
        return [_model(start, task, "none", "gold", 0) for start in self.bases if self.config.injected]

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
            if objective in self.config.objectives and task in self.tasks
            for model in [*self.models(task, objective), *self.gold(task)]
            for attack in names
            if attack != "soft_prompt" or self.config.injected
        ]

    def asked_places(self) -> list[Given]:
        """The rows of the question: every place in every base model."""
        return [
            Product(JobId.of("question", base_seed=start, place=place), "rows")
            for place in self.config.question.places
            for start in self.bases
        ]

    def null_models(self, task: str, objective: str) -> list[dict[str, str]]:
        """Wildcards of the models of the null distribution."""
        seeds = self.config.null_distribution.seeds or self.config.seeds[:1]
        return [
            _model(start, task, objective, name, seed)
            for start in self.bases
            for name in self.config.null_draws
            for seed in seeds
        ]

    # -- what a job reads

    def inputs(self, job: JobId) -> dict[str, list[Given]]:
        """What a job reads, by the names of the stage table; an absent optional input is an empty list."""
        found: Mapping[str, Given | Sequence[Given] | None] = INPUTS[job.stage](self, job.named)
        stage = STAGES[job.stage]
        return {i.name: _listed(found.get(i.name)) for i in stage.inputs}

    def paths(self, job: JobId) -> dict[str, list[str]]:
        """What a job reads, as paths."""
        return {name: [self.path(given) for given in values] for name, values in self.inputs(job).items()}

    def path(self, given: Given) -> str:
        """Where a file lies."""
        return given if isinstance(given, str) else self.layout.outputs(given.job)[given.output]

    def needs(self, job: JobId) -> tuple[JobId, ...]:
        """The jobs whose outputs a job reads."""
        made = (g.job for values in self.inputs(job).values() for g in values if isinstance(g, Product))
        return tuple(dict.fromkeys(made))

    @cached_property
    def jobs(self) -> dict[JobId, tuple[JobId, ...]]:
        """Every job of ``all``, with the jobs whose outputs it reads."""
        found: dict[JobId, tuple[JobId, ...]] = {}
        waiting = list(self.targets())
        while waiting:
            job = waiting.pop()
            if job not in found:
                found[job] = self.needs(job)
                waiting += found[job]
        return found

    def targets(self) -> Iterator[JobId]:
        """The jobs whose outputs people ask for."""
        yield JobId.of("claims")
        yield from (JobId.of("model_card", base_seed=start) for start in self.bases)
        for table in self.possible(TABLES):
            yield from (JobId.of(stage, table=table) for stage in ("supplement", "comparisons", "table"))
        yield from (JobId.of("figure", figure=figure) for figure in self.possible(FIGURES))
        yield from (JobId.of("study", study=study) for study in self.config.studies)
        if self.attacked():
            yield JobId.of("attack_table")
        if self.config.injected:
            yield from (JobId.of("localizers", task=task) for task in self.tasks)

    def possible(self, names: Iterable[str]) -> list[str]:
        """Those of the tables or figures that this config can make: it may lack a task or an objective."""
        return [name for name in names if not lacking(self.config, name)]

    def owner(self, path: str) -> JobId | None:
        """The job of this config that makes a file, whether or not ``all`` asks for it; None when none does."""
        job = self.layout.job(path)
        if job is None:
            return None
        if job.stage in MAKERS and job.stage != "pretrain" and self.maker != "pretrain":
            job = JobId(self.maker, job.wildcards)
        return job if self.has(job) else None

    def has(self, job: JobId) -> bool:
        """Whether the config has a job with these wildcards, whether or not ``all`` asks for it."""
        w = job.named
        if "base_seed" in w and int(w["base_seed"]) not in self.bases:
            return False
        known = {
            "source": self.fetched(),
            "task": self.tasks,
            "scores": self.config.scores,
            "localization": [*self.known, *self.localizations],
            "objective": ["none", *self.config.objectives],
            "study": self.config.studies,
            "place": self.config.question.places,
            "attack": ["asked", *self.config.attacks.run],
        }
        if job.stage in INJECTED and not self.config.injected:
            return False
        if job.stage in MAKERS and job.stage not in (self.maker, *(("pretrain",) * self.config.injected)):
            return False
        if any(name in w and w[name] not in values for name, values in known.items()):
            return False
        if job.stage in ("select", "select_weights", "faithfulness"):
            chosen = self.config.localizations.get(w["localization"])
            scores = chosen.scores if chosen is not None and chosen.kind == "weights" else None
            if w.get("scores") != scores:  # of weights, one of components has no scores in its place
                return False
        if "seed" not in w or w.get("localization") in KNOWERS:
            return int(w.get("seed", 0)) == 0 if w.get("localization") in KNOWERS else True
        null = self.config.null_distribution.seeds or self.config.seeds[:1]
        drawn = null if w.get("localization") in self.config.null_draws else ()
        masked = "localization" in w and "objective" not in w
        return int(w["seed"]) in (*self.seeds(w["task"], "mask" if masked else ""), *drawn)

    # -- parts that several stages read

    def _base(self, w: Mapping[str, str]) -> dict[str, Given | None]:
        pretrained = Product(JobId.of("pretrain", base_seed=w["base_seed"]), "model")
        return {
            "base_model": Product(JobId.of(self.maker, base_seed=w["base_seed"]), "model"),
            "pretrained": pretrained if self.config.injected else None,
            "athletes": self.source("athletes.source"),
            "general_knowledge": self.source("mmlu.source"),
            "card": Product(JobId.of("model_card", base_seed=w["base_seed"]), "json"),
            "known": Product(JobId.of("known_facts", base_seed=w["base_seed"]), "known"),
            "prompts": self.config.prompts.file,
            "mmlu": self.source("mmlu.source"),
        }

    def _split(self, w: Mapping[str, str]) -> dict[str, Given | None]:
        return {
            **self._base(w),
            "split": Product(JobId.of("split", **_only(w, "base_seed", "task")), "split"),
        }

    def _checkpoint(self, w: Mapping[str, str]) -> dict[str, Given | None]:
        delta = Product(JobId.of("finetune", **w), "delta") if w["localization"] not in KNOWERS else None
        if w["localization"] == "gold":
            delta = Product(JobId.of("gold", **_only(w, "base_seed", "task")), "delta")
        return {**self._split(w), "delta": delta, "text": self.source("text.held_out")}

    def _series(self) -> Given:
        return self.source("series.source" if self.config.series.source is not None else "mmlu.source")

    def _selecting(self, w: Mapping[str, str], chosen: Localization) -> dict[str, Given | None]:
        here = _only(w, "base_seed", "task")
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

    def _table(self, w: Mapping[str, str]) -> dict[str, list[Given]]:
        """A table's rows, forget set by forget set, and its selections."""
        task, objective = TABLES[w["table"]]
        bases = self._bases_of(objective)
        models = [m for s in self.forget_sets(task) for m in self.models(s, objective, bases=bases)]
        return {**self._rows(models, EVALUATIONS), "selections": self._selections(task, self.compared, bases)}

    def _bases_of(self, objective: str) -> tuple[int, ...]:
        """Seeds of the base models behind a table: Tables 1 and 2, which erase, have all."""
        return self.bases if objective == "erase" else self.shown

    def _table_and_gold(self, w: Mapping[str, str]) -> dict[str, list[Given]]:
        """What :meth:`_table` gives, with the rows of gold and of everyone's teachers where facts were injected."""
        task, objective = TABLES[w["table"]]
        sets = self.forget_sets(task)
        bases = self._bases_of(objective)
        gold = [m for s in sets for m in self.gold(s) if int(m["base_seed"]) in bases]
        models = [m for s in sets for m in self.models(s, objective, bases=bases)] + gold
        found, more = self._table(w), self._rows(gold, EVALUATIONS)
        teachers = self._rows(models, ("teachers",)) if self.config.injected else {}
        return {**{name: rows + more.get(name, []) for name, rows in found.items()}, **teachers}

    def _compared(self, w: Mapping[str, str]) -> dict[str, list[Given]]:
        """A table's rows and selections, and those of its null distribution."""
        task, objective = TABLES[w["table"]]
        bases = self._bases_of(objective)
        null = self._rows(
            (m for m in self.null_models(task, objective) if int(m["base_seed"]) in bases), EVALUATIONS
        )
        found = {name: rows + null.get(name, []) for name, rows in self._table(w).items()}
        return {**found, "selections": self._selections(task, self.localizations, bases)}

    def _localizers(self, w: Mapping[str, str]) -> dict[str, list[Given]]:
        """All scores of a task and all selections but the null distribution's."""
        scores = sorted(
            {f.scores for f in self.config.localizations.values() if f and f.kind == "scores" and f.scores}
        )
        return {
            "scores": [
                Product(JobId.of("score", base_seed=start, task=w["task"], scores=name), "scores")
                for start in self.bases
                for name in scores
            ],
            "selections": self._selections(w["task"], self.compared, self.bases),
        }

    def _selections(self, task: str, names: Iterable[str], bases: Sequence[int]) -> list[Given]:
        names = list(names)
        return [
            self.trained({"base_seed": str(start), "task": task, "localization": name})
            for start in bases
            for name in names
        ]

    def _study(self, w: Mapping[str, str]) -> dict[str, Given | list[Given] | None]:
        """A study's rows, set by set, its selections and splits, and the published means if any."""
        study = self.config.studies[w["study"]]
        assert study is not None
        models = [
            model
            for task in study.tasks
            for place, objective in enumerate(study.objectives)
            for model in self.models(task, objective, base=place == 0)
        ]
        splits = [
            JobId.of("split", base_seed=start, task=task) for start in self.bases for task in study.tasks
        ]
        return {
            **self._rows(models, EVALUATIONS),
            "selections": self._selections(study.tasks[0], self.compared, self.bases),
            "splits": [Product(job, "split") for job in splits],
            "published": None
            if study.published is None
            else os.path.expandvars(os.path.expanduser(study.published.file)),
        }

    def _faithful(self, w: Mapping[str, str]) -> dict[str, Given | None]:
        """What the faithfulness of a localization is measured on."""
        chosen = self.localization(w["localization"])
        scores = self._selecting(w, chosen)["scores"] if chosen.kind == "scores" else None
        return {**self._split(w), "selection": self.trained(w), "scores": scores}

    def _faithfulness(self) -> list[Given]:
        """The rows of every localization of components, task by task."""
        return [
            Product(JobId.of("faithfulness", base_seed=start, task=task, localization=name), "faithfulness")
            for task in self.tasks
            for start in self.bases
            for name in self.compared
            if self.localization(name).kind != "weights"
        ]

    def _figure(self, w: Mapping[str, str]) -> dict[str, Given | list[Given] | None]:
        overlay = self.config.figures.overlay.get(w["figure"])
        return {
            "data": self.data(w["figure"]),
            "captions": "workflow/report/captions.yaml",
            "overlay": None if overlay is None else os.path.expandvars(os.path.expanduser(overlay)),
        }

    def data(self, name: str) -> list[Given]:
        """The rows a figure is drawn from."""
        figure = FIGURES[name]
        if figure.kind in ("heads", "layers"):
            stage, output = {"heads": ("head_ablation", "ablation"), "layers": ("layer_probes", "probes")}[
                figure.kind
            ]
            bases = self.bases[:1] if figure.kind == "heads" else self.shown  # a head is one base model's
            return [Product(JobId.of(stage, base_seed=start), output) for start in bases]
        everything = self.config.figures.forget_sets == "all"
        models = [
            model
            for task in (self.forget_sets(figure.task) if everything else [figure.task])
            for model in self.models(task, figure.objective, base=figure.kind == "probes", bases=self.shown)
        ]
        if figure.kind == "probes":
            return [Product(JobId.of("probe", **model), "probes") for model in models]
        stage = "relearn" if figure.kind == "relearning" else "sweep"
        found: list[Given] = [
            Product(JobId.of(stage, **model), rows) for model in models for rows in SHORT_EXAM
        ]
        if (
            stage == "relearn"
        ):  # the level that relearning may climb back to; in a sweep it is the edit of size 0
            starts = [_model(int(m["base_seed"]), m["task"], "none", "base", 0) for m in models]
            found += [Product(JobId.of(kind, **start), kind) for start in starts for kind in SHORT_EXAM]
        return list(dict.fromkeys(found))

    def _claims(self, _w: Mapping[str, str]) -> dict[str, Given | list[Given] | None]:
        return {
            "claims": self.config.claims.file,
            "rows": self.claim_rows(),
            "selection": self.lookup_selection(),
        }

    def claim_rows(self) -> list[Given]:
        """The rows that claims are judged on: those behind every table and figure, or what lies there."""
        if self.config.claims.rows == "present":
            there = sorted(Path(self.layout.results).rglob("*.parquet"))
            return [path.as_posix() for path in there if path.stem in EVIDENCE]
        tables = (rows for name in self.possible(TABLES) for rows in self._claimed(name))
        figures = (rows for name in self.possible(FIGURES) for rows in self.data(name))
        return list(dict.fromkeys([*tables, *figures]))

    def _claimed(self, table: str) -> Iterator[Given]:
        rows = self._table({"table": table})
        for kind in SHORT_EXAM:
            yield from rows[kind]

    def lookup_selection(self) -> Given | None:
        """The manual selection, whose layers are the fact-lookup layers; none without it."""
        if "manual" not in self.localizations or not self.tasks:
            return None
        first = JobId.of("select", base_seed=self.bases[0], task=self.tasks[0], localization="manual")
        found = Product(first, "selection")
        return found if self.config.claims.rows == "planned" or Path(self.path(found)).is_file() else None


def _model(base: int, task: str, objective: str, localization: str, seed: int) -> dict[str, str]:
    return {
        "base_seed": str(base), "task": task, "objective": objective,
        "localization": localization, "seed": str(seed),
    }  # fmt: skip


def _only(w: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: w[name] for name in names}


def _listed(found: Given | Sequence[Given] | None) -> list[Given]:
    if found is None:
        return []
    return [found] if isinstance(found, str | Product) else list(found)


def _train_text(w: Mapping[str, str]) -> dict[str, Given]:
    return {"text": Product(JobId.of("windows", base_seed=w["base_seed"]), "windows")}


INPUTS: Mapping[str, Callable[[Graph, Mapping[str, str]], Mapping[str, Any]]] = {
    "fetch": lambda g, w: {},
    "download": lambda g, w: {"folder": g.local_model},
    "convert": lambda g, w: {"gguf": g.source("gguf")},
    "pretrain": lambda g, w: {
        "athletes": g.source("athletes.source"),
        "prompts": g.config.prompts.file,
        "general_knowledge": g.source("mmlu.source"),
        "text": g.source("text.train"),
    },
    "windows": lambda g, w: {**g._base(w), "text": g.source("text.train")},
    "inject": lambda g, w: {
        **g._base(w),
        "pretrained": Product(JobId.of("pretrain", base_seed=w["base_seed"]), "model"),
    },
    "gold": lambda g, w: g._split(w),
    "known_facts": lambda g, w: g._base(w),
    "model_card": lambda g, w: g._base(w),
    "layer_probes": lambda g, w: {**g._base(w), "text": g.source("text.held_out")},
    "head_ablation": lambda g, w: {**g._base(w), "text": g.source("text.held_out")},
    "split": lambda g, w: {
        **g._base(w),
        "earlier": None if (before := g._chain(w)) is None else Product(JobId.of("split", **before), "split"),
    },
    "score": lambda g, w: {**g._split(w), "method": g.extensions.get(f"scores.{w['scores']}.method")},
    "select": lambda g, w: g._selecting(w, g.localization(w["localization"])),
    "select_weights": lambda g, w: {
        **g._split(w),
        "manual": g._selecting(w, g.localization(w["localization"]))["manual"],
        "method": g.extensions.get(f"scores.{w['scores']}.method"),
    },
    "faithfulness": lambda g, w: g._faithful(w),
    "faithfulness_report": lambda g, w: {"data": g._faithfulness()},
    "study": lambda g, w: g._study(w),
    "select_for_mask": lambda g, w: g._selecting(w, for_masks(g.localization(w["localization"]))),
    "finetune": lambda g, w: {
        **g._split(w),
        **_train_text(w),
        **g._selected(w, g.trained(w)),
        "loss": g.extensions.get(f"objectives.{w['objective']}.loss"),
        "previous": None
        if (before := g._chain(w)) is None
        else Product(JobId.of("finetune", **before), "delta"),
    },
    "mask": lambda g, w: {**g._split(w), **_train_text(w), **g._selected(w, g.masked(w))},
    "facts": lambda g, w: g._checkpoint(w),
    "multiple_choice": lambda g, w: g._checkpoint(w),
    "mmlu": lambda g, w: g._checkpoint(w),
    "text": lambda g, w: g._checkpoint(w),
    "teachers": lambda g, w: g._checkpoint(w),
    "attack": lambda g, w: {**g._checkpoint(w), **_train_text(w)},
    "attack_table": lambda g, w: {"rows": [Product(JobId.of("attack", **m), "rows") for m in g.attacked()]},
    "localizers": lambda g, w: g._localizers(w),
    "question": lambda g, w: {**g._base(w), "text": g.source("text.train")},
    "question_page": lambda g, w: {"rows": g.asked_places()},
    "probe": lambda g, w: g._checkpoint(w),
    "relearn": lambda g, w: {**g._checkpoint(w), **_train_text(w), "mmlu": g._series()},
    "sweep": lambda g, w: {
        **g._split(w),
        "mask": Product(JobId.of("mask", **w), "mask"),
        "mmlu": g._series(),
    },
    "supplement": lambda g, w: g._table(w),
    "comparisons": lambda g, w: g._compared(w),
    "claims": lambda g, w: g._claims(w),
    "table": lambda g, w: g._table_and_gold(w),
    "figure": lambda g, w: g._figure(w),
}
"""What each stage reads, from the graph and a job's wildcards; names that a stage does not read are left out."""
