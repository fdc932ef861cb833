"""What tables, figures, studies and claims are made of: the rows and selections of many models."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from localized_unlearning.errors import UserError
from localized_unlearning.paper.artefacts import FIGURES, TABLES, bases_of
from localized_unlearning.workflow.checkpoints import Checkpoints
from localized_unlearning.workflow.layout import JobId
from localized_unlearning.workflow.products import (
    EVALUATIONS,
    EVIDENCE,
    SHORT_EXAM,
    Given,
    Product,
    model,
    only,
)


class Collected(Checkpoints):
    """What the collecting stages read."""

    def asked_places(self, stage: str = "question") -> list[Given]:
        """The rows of the question, or of the localizers' grades: every place in every base model.

        Raises:
            UserError: for a place that the organism lacks.
        """
        for name, where in self.config.question.places.items():
            if max(where.layers) >= self.config.organism.layers:
                raise UserError(
                    f"question.places.{name} names layer {max(where.layers)}, but the organism has layers 0 to "
                    f"{self.config.organism.layers - 1}"
                )
        return [
            Product(JobId.of(stage, base_seed=start, place=place), "rows")
            for place in self.config.question.places
            for start in self.bases
        ]

    def _table(self, w: Mapping[str, str]) -> dict[str, list[Given]]:
        """A table's rows, forget set by forget set, and its selections."""
        task, objective = TABLES[w["table"]]
        models = [m for s in self.forget_sets(task) for m in self.models(s, objective)]
        return {**self._rows(models, EVALUATIONS), "selections": self._selections(task, self.compared)}

    def _table_and_gold(self, w: Mapping[str, str]) -> dict[str, list[Given]]:
        """What :meth:`_table` gives, with the rows of gold and of everyone's teachers where facts were injected."""
        task, objective = TABLES[w["table"]]
        sets = self.forget_sets(task)
        gold = [m for s in sets for m in self.gold(s)]
        models = [m for s in sets for m in self.models(s, objective)] + gold
        found, more = self._table(w), self._rows(gold, EVALUATIONS)
        teachers = self._rows(models, ("teachers",)) if self.config.has_injection else {}
        return {**{name: rows + more.get(name, []) for name, rows in found.items()}, **teachers}

    def _compared(self, w: Mapping[str, str]) -> dict[str, list[Given]]:
        """A table's rows and selections, and those of its null distribution."""
        task, objective = TABLES[w["table"]]
        null = self._rows(self.null_models(task, objective), EVALUATIONS)
        gold = self._rows([m for s in self.forget_sets(task) for m in self.gold(s)], EVALUATIONS)
        more = {name: rows + gold[name] for name, rows in null.items()}
        found = {name: rows + more.get(name, []) for name, rows in self._table(w).items()}
        return {**found, "selections": self._selections(task, self.localizations)}

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
            "selections": self._selections(w["task"], self.compared),
        }

    def _study(self, w: Mapping[str, str]) -> dict[str, Given | list[Given] | None]:
        """A study's rows, set by set, its selections and splits, and the published means if any."""
        study = self.config.studies[w["study"]]
        assert study is not None
        models = [
            model
            for task in study.tasks
            for place, objective in enumerate(study.objectives)
            for model in self.models(task, objective, base=place == 0)
            if not study.localizations or model["localization"] in ("base", *study.localizations)
        ]
        splits = [
            JobId.of("split", base_seed=start, task=task) for start in self.bases for task in study.tasks
        ]
        return {
            **self._rows(models, EVALUATIONS),
            "selections": self._selections(study.tasks[0], study.localizations or self.compared),
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

    def _overlapping(self, w: Mapping[str, str]) -> dict[str, Given | list[Given] | None]:
        """The selections of a task, with the single weights that some are of, and the masks if they are wanted."""
        here = only(w, "base_seed", "task")
        chosen = [self.trained({**here, "localization": name}) for name in self.compared]
        seeds = self.seeds(w["task"], "mask") if self.config.overlap.masked is not None else ()
        return {
            **self._base(w),
            "selections": list(chosen),
            "weights": [Product(c.job, "weights") for c in chosen if c.job.stage == "select_weights"],
            "masks": [
                Product(JobId.of("mask", **here, localization=name, seed=seed), "mask")
                for name in self.compared
                for seed in seeds
            ],
        }

    def _overlaps(self) -> list[Given]:
        """The overlap of the localizations, task by task.

        Raises:
            UserError: when there is nothing to compare.
        """
        if len(self.compared) < 2 and not self.config.overlap.mechanisms:
            raise UserError(
                "overlap_table compares localizations, and this run has one alone: add another, or name mechanisms under "
                "overlap.mechanisms"
            )
        return [
            Product(JobId.of("overlap", base_seed=start, task=task), "overlap")
            for task in self.config.overlap.tasks or self.tasks
            for start in self.bases
        ]

    def _figure(self, w: Mapping[str, str]) -> dict[str, Given | list[Given] | None]:
        overlay = self.config.figures.overlay.get(w["figure"])
        return {
            "data": list(dict.fromkeys([*self.data(w["figure"]), *self._gold_of(w["figure"])])),
            "captions": "workflow/report/captions.yaml",
            "overlay": None if overlay is None else os.path.expandvars(os.path.expanduser(overlay)),
        }

    def _gold_of(self, name: str) -> list[Given]:
        """Gold's rows for a figure about trained models: probes of it, or what it answers, unattacked."""
        figure = FIGURES[name]
        stages = () if not figure.task else ("probe",) if figure.kind == "probes" else SHORT_EXAM
        sets = self.forget_sets(figure.task) if self.config.figures.forget_sets == "all" else [figure.task]
        bases = bases_of(self.config, name)
        models = [m for s in sets if s for m in self.gold(s) if int(m["base_seed"]) in bases]
        return [
            Product(JobId.of(stage, **m), "probes" if stage == "probe" else stage)
            for m in models
            for stage in stages
        ]

    def data(self, name: str) -> list[Given]:
        """The rows a figure is drawn from."""
        figure, bases = FIGURES[name], bases_of(self.config, name)
        if figure.kind in ("heads", "layers"):
            stage, output = {"heads": ("head_ablation", "ablation"), "layers": ("layer_probes", "probes")}[
                figure.kind
            ]
            return [Product(JobId.of(stage, base_seed=start), output) for start in bases]
        everything = self.config.figures.forget_sets == "all"
        models = [
            model
            for task in (self.forget_sets(figure.task) if everything else [figure.task])
            for model in self.models(task, figure.objective, base=figure.kind == "probes", bases=bases)
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
            starts = [model(int(m["base_seed"]), m["task"], "none", "base", 0) for m in models]
            found += [Product(JobId.of(kind, **start), kind) for start in starts for kind in SHORT_EXAM]
        return list(dict.fromkeys(found))

    def _claims(self, _w: Mapping[str, str]) -> dict[str, Given | list[Given] | None]:
        return {
            "claims": self.config.claims.file,
            "rows": self.claim_rows(),
            "selection": self.lookup_selection(),
            "selections": self.claim_selections(),
        }

    def claim_rows(self) -> list[Given]:
        """The rows that claims are judged on: those behind every table and figure, or what lies there."""
        if self.config.claims.rows == "present":
            there = sorted(Path(self.layout.results).rglob("*.parquet"))
            return [path.as_posix() for path in there if path.stem in EVIDENCE]
        tables = (rows for name in self.possible(TABLES) for rows in self._claimed(name))
        figures = (rows for name in self.possible(FIGURES) for rows in self.data(name))
        return list(dict.fromkeys([*tables, *figures]))

    def claim_selections(self) -> list[Given]:
        """The chosen components of every localization and forget set, or of those that lie there: claims are about them too."""
        planned = [given for task in self.tasks for given in self._selections(task, self.compared)]
        if self.config.claims.rows == "planned":
            return planned
        return [given for given in planned if Path(self.path(given)).is_file()]

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
