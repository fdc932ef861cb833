"""The graph of a run: which jobs it has, and what each of them reads.

The Snakefile, the plan, preflight, the costs, the report and the audit all ask here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.localization.settings import for_masks
from localized_unlearning.paper.artefacts import FIGURES, TABLES
from localized_unlearning.workflow.collected import Collected
from localized_unlearning.workflow.layout import JobId
from localized_unlearning.workflow.products import (
    INJECTED,
    KNOWERS,
    MAKERS,
    Given,
    Product,
    listed,
)


class Graph(Collected):
    """The jobs of a run, and their edges."""

    def inputs(self, job: JobId) -> dict[str, list[Given]]:
        """What a job reads, by the names of the stage table; an absent optional input is an empty list."""
        found: Mapping[str, Given | Sequence[Given] | None] = INPUTS[job.stage](self, job.named)
        stage = STAGES[job.stage]
        return {i.name: listed(found.get(i.name)) for i in stage.inputs}

    def paths(self, job: JobId) -> dict[str, list[str]]:
        """What a job reads, as paths."""
        return {name: [self.path(given) for given in values] for name, values in self.inputs(job).items()}

    def needs(self, job: JobId) -> tuple[JobId, ...]:
        """The jobs whose outputs a job reads."""
        made = (g.job for values in self.inputs(job).values() for g in values if isinstance(g, Product))
        return tuple(dict.fromkeys(made))

    @cached_property
    def jobs(self) -> dict[JobId, tuple[JobId, ...]]:
        """Every job of ``all``, with the jobs whose outputs it reads."""
        return self.behind(self.targets())

    def behind(self, targets: Iterable[JobId]) -> dict[JobId, tuple[JobId, ...]]:
        """Some jobs and every one that these need, with the jobs whose outputs each reads."""
        found: dict[JobId, tuple[JobId, ...]] = {}
        waiting = list(targets)
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
        if self.config.overlap.mechanisms:
            yield JobId.of("overlap_table")
        if self.config.has_injection:
            yield from (JobId.of("localizers", task=task) for task in self.tasks)

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
        if job.stage == "counterfact":
            return self.config.athletes.own_prompts is not None
        if job.stage in INJECTED and not self.config.has_injection:
            return False
        if job.stage in MAKERS and job.stage not in (
            self.maker,
            *(("pretrain",) * self.config.has_injection),
        ):
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


def _train_text(w: Mapping[str, str]) -> dict[str, Given]:
    return {"text": Product(JobId.of("windows", base_seed=w["base_seed"]), "windows")}


INPUTS: Mapping[str, Callable[[Graph, Mapping[str, str]], Mapping[str, Any]]] = {
    "fetch": lambda g, w: {},
    "counterfact": lambda g, w: {
        "source": g.source("athletes.source"),
        "questions": g.source("athletes.own_prompts.questions")
        if "athletes.own_prompts.questions" in g.sources
        else None,
    },
    "download": lambda g, w: {"folder": g.local_model},
    "convert": lambda g, w: {"gguf": g.source("gguf")},
    "pretrain": lambda g, w: {
        "athletes": g.facts_file,
        "prompts": g.prompts_file,
        "general_knowledge": g.source("mmlu.source"),
        "text": g.source("text.train"),
    },
    "windows": lambda g, w: {**g._base(w), "text": g.source("text.train")},
    "inject": lambda g, w: {
        **g._base(w),
        "pretrained": Product(JobId.of("pretrain", base_seed=w["base_seed"]), "model"),
    },
    "gold": lambda g, w: g._split(w),
    "check_model": lambda g, w: {
        **g._base(w),
        "series": g._series() if g.config.series.source is not None else None,
    },
    "known_facts": lambda g, w: g._base(w),
    "model_card": lambda g, w: g._base(w),
    "layer_probes": lambda g, w: {**g._base(w), "text": g.source("text.held_out")},
    "head_ablation": lambda g, w: {**g._base(w), "text": g.source("text.held_out")},
    "split": lambda g, w: {
        **g._base(w),
        "earlier": None if (before := g._chain(w)) is None else Product(JobId.of("split", **before), "split"),
    },
    "score": lambda g, w: {**g._split(w), **g.extension("score", "method", f"scores.{w['scores']}.method")},
    "select": lambda g, w: g._selecting(w, g.localization(w["localization"])),
    "select_weights": lambda g, w: {
        **g._split(w),
        "manual": g._selecting(w, g.localization(w["localization"]))["manual"],
        **g.extension("select_weights", "method", f"scores.{w['scores']}.method"),
    },
    "faithfulness": lambda g, w: g._faithful(w),
    "overlap": lambda g, w: g._overlapping(w),
    "overlap_table": lambda g, w: {"rows": g._overlaps()},
    "faithfulness_report": lambda g, w: {"data": g._faithfulness()},
    "study": lambda g, w: g._study(w),
    "select_for_mask": lambda g, w: g._selecting(w, for_masks(g.localization(w["localization"]))),
    "finetune": lambda g, w: {
        **g._split(w),
        **_train_text(w),
        **g._selected(w, g.trained(w)),
        **g.extension("finetune", "loss", f"objectives.{w['objective']}.loss"),
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
    "place": lambda g, w: g._base(w),
    "places_page": lambda g, w: {"rows": g.asked_places("place")},
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
