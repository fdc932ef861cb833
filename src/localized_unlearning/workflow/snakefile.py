"""What the Snakefile needs from the package: paths, wildcards and the two provenance params.

Light on purpose: importing it loads neither torch nor pandas.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from localized_unlearning import extensions as extensions_module
from localized_unlearning.config import reading
from localized_unlearning.config.localization import Localization
from localized_unlearning.config.run import Config
from localized_unlearning.config.source import Source
from localized_unlearning.costs import stages
from localized_unlearning.errors import UserError
from localized_unlearning.files import canonical_json
from localized_unlearning.jobs.job import settings_of
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.localization.settings import for_masks
from localized_unlearning.paper.artefacts import FIGURES, TABLES, lacking
from localized_unlearning.provenance import code as code_module

Wildcards = Mapping[str, str]

SHORT_EXAM = ("facts", "multiple_choice", "mmlu")
"""What is asked at each point of a series."""


def _attempt(words: Sequence[str]) -> int:
    """Which attempt a submitted job is, from the command line of its own Snakemake; 1 in the one that submits.

    (``workflow.attempt`` is 1 as long as the Snakefile is being read.)
    """
    return int(words[words.index("--attempt") + 1]) if "--attempt" in words else 1


class Workflow:
    """One run's paths and params.

    Attributes:
        config: the resolved config.
        results: the run's results folder.
        figures: the run's figures folder.
        resolved: the resolved config's file, which every job reads.
    """

    def __init__(self, layers: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        self.config: Config = reading.resolve(layers)
        self.results = f"results/{self.config.run}"
        self.figures = f"figures/{self.config.run}"
        self.resolved = f"{self.results}/config.yaml"
        for key, path in self.extensions.items():
            if not Path(path).is_file():
                raise UserError(f"{key} names {path}, which does not exist: correct the path")

    @property
    def shell_prefix(self) -> str:
        """What stands before every command: Snakemake's own strict mode, the attempt, and whether to start warm."""
        warm = " LOCALIZED_UNLEARNING_WARM=1" if self.config.compute.warm_start else ""
        return f"set -euo pipefail; export LOCALIZED_UNLEARNING_ATTEMPT={_attempt(sys.argv)}{warm}; "

    def folders(self) -> list[str]:
        """The run's folders that exist, for the audit."""
        return [folder for folder in (self.results, self.figures) if Path(folder).is_dir()]

    def write_resolved(self) -> None:
        """Write the resolved config beside the results, atomically, if it changed."""
        text = "# The resolved config of this run, written by the workflow; jobs read it.\n" + yaml.safe_dump(
            _without_none(self.config.written()), sort_keys=False, allow_unicode=True
        )
        path = Path(self.resolved)
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)

    def seen(self, stage: str) -> Callable[[Mapping[str, str]], str]:
        """The settings of a job as canonical JSON: Snakemake's own params forget the names."""

        def settings(wildcards: Wildcards) -> str:
            values = dict(wildcards)
            if "table" in values:
                values["task"] = self.task_of(values)
            return canonical_json(settings_of(self.config, STAGES[stage], values))

        return settings

    def code(self, stage: str) -> str:
        """The digest of a stage's code: Snakemake does not see a changed import."""
        return code_module.code_digest(code_module.closure(STAGES[stage].module))

    @cached_property
    def costs(self) -> stages.Model:
        """What this run's jobs cost."""
        return stages.Model.of(self.config, Path(self.results))

    def memory(self, stage: str) -> Callable[[Wildcards, int], int]:
        """Memory of a stage's jobs in MB, as the rules' ``mem_mb``; more with each attempt."""

        def mem_mb(wildcards: Wildcards, attempt: int) -> int:
            return stages.memory_mb(self.costs, stage, dict(wildcards), attempt)

        return mem_mb

    def runtime(self, stage: str) -> Callable[[Wildcards, int, int], int]:
        """Time of a stage's jobs in minutes, as the rules' ``runtime``; more with each attempt."""

        def runtime(wildcards: Wildcards, attempt: int, threads: int) -> int:
            return stages.minutes(self.costs, stage, dict(wildcards), threads, attempt)

        return runtime

    def _source(self, dotted: str) -> Source:
        node: Any = self.config
        for part in dotted.split("."):
            node = getattr(node, part)
        assert isinstance(node, Source)
        return node

    def source(self, dotted: str) -> str:
        """Where the file of a config source lies: itself if local, else where ``fetch`` puts it."""
        node = self._source(dotted)
        if node.kind == "path":
            assert node.path is not None
            return os.path.expandvars(os.path.expanduser(node.path))
        return f"{self.results}/sources/{dotted}"

    @property
    def series_questions(self) -> str:
        """The questions asked at each point of a series."""
        return self.source("series.source" if self.config.series.source is not None else "mmlu.source")

    def sources(self) -> dict[str, Source]:
        """The files and folders that come from outside, by dotted name."""
        names = ["athletes.source", "text.train", "text.held_out", "mmlu.source"]
        if self.config.series.source is not None:
            names.append("series.source")
        if self.config.gguf is not None and self.config.model.kind == "gguf":
            names.append("gguf")
        return {name: self._source(name) for name in names}

    def fetched(self, folders: bool | None = None) -> list[str]:
        """Dotted names of the sources that must be fetched; only those that are ``folders``, or only files."""
        return [
            name
            for name, source in self.sources().items()
            if source.kind != "path" and folders in (None, bool(source.files))
        ]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(self.config.tasks)

    @property
    def localizations(self) -> list[str]:
        """Names of the localizations."""
        return list(self.config.localizations)

    def localization(self, name: str) -> Localization:
        """A localization by its name."""
        found = self.config.localizations[name]
        assert found is not None
        return found

    @property
    def compared(self) -> list[str]:
        """Names of the localizations in tables and figures: all but the draws of the null distribution."""
        return [name for name in self.localizations if name not in self.config.null_draws]

    def forget_sets(self, task: str) -> list[str]:
        """A task of the paper and the tasks that are other forget sets of it."""
        return [task, *(name for name, other in self.config.tasks.items() if other and other.of == task)]

    def seeds_of(self, task: str) -> tuple[int, ...]:
        """Seeds of a task's models."""
        found = self.config.tasks[task]
        return found.seeds if found and found.seeds else self.config.seeds

    def model_folders(self, task: str, objective: str, base: bool = True) -> list[str]:
        """The folders of a task's models: the base model's if wanted, then each localization's, seed by seed."""
        seeds = self.seeds_of(task)
        if objective == "mask" and self.config.mask_seeds is not None:
            seeds = self.config.mask_seeds
        folders = [self.model_folder(task, "none", "base", 0)] if base else []
        return folders + [
            self.model_folder(task, objective, name, seed) for name in self.compared for seed in seeds
        ]

    def null_folders(self, task: str, objective: str) -> list[str]:
        """The folders of the models of the null distribution."""
        seeds = self.config.null_distribution.seeds or self.config.seeds[:1]
        return [
            self.model_folder(task, objective, name, seed)
            for name in self.config.null_draws
            for seed in seeds
        ]

    @cached_property
    def extensions(self) -> dict[str, str]:
        """The files of losses and methods, the user's own and ours, by the keys that name them."""
        named = {f"objectives.{name}.loss": o.loss for name, o in self.config.objectives.items() if o}
        named |= {f"scores.{name}.method": s.method for name, s in self.config.scores.items() if s}
        ours = {"objectives": extensions_module.OBJECTIVES}
        found = {}
        for key, value in named.items():
            folder = ours.get(key.partition(".")[0])
            if path := extensions_module.file_of(value, folder):
                found[key] = extensions_module.near(path)
            elif folder:
                known = ", ".join(extensions_module.ours(folder))
                raise UserError(
                    f"{key} is {value}, which is none of {known}: correct it, or give FILE.py:FUNCTION"
                )
        return found

    def loss_for(self, wildcards: Wildcards) -> str | list[str]:
        """The file of an objective's loss."""
        return self.extensions.get(f"objectives.{wildcards['objective']}.loss", [])

    def method_for(self, wildcards: Wildcards) -> str | list[str]:
        """The file of a score's own method; none where the method is one of ours."""
        return self.extensions.get(f"scores.{wildcards['scores']}.method", [])

    def scores_for(self, wildcards: Wildcards) -> str | list[str]:
        """The scores that a localization selects from; none for those that need none."""
        return self._scores(self.localization(wildcards["localization"]), wildcards["task"])

    def scores_for_mask(self, wildcards: Wildcards) -> str | list[str]:
        """The scores that a localization of weight masks selects from."""
        return self._scores(for_masks(self.localization(wildcards["localization"])), wildcards["task"])

    def _scores(self, found: Localization, task: str) -> str | list[str]:
        return f"{self.results}/{task}/scores/{found.scores}.parquet" if found.kind == "scores" else []

    def probes_for(self, wildcards: Wildcards) -> str | list[str]:
        """The base model's probes, for manual layers that are read off them."""
        automatic = self.localization(wildcards["localization"]).layers == "auto"
        return f"{self.results}/interpretability/layer_probes.parquet" if automatic else []

    def mask_selection_for(self, wildcards: Wildcards) -> str:
        """The components that a mask covers: those that are trained, unless the config says otherwise."""
        name, folder = wildcards["localization"], f"{self.results}/{wildcards['task']}"
        other = self.localization(name).mask is not None
        return f"{folder}/mask/{name}/selection.json" if other else f"{folder}/selections/{name}.json"

    def manual_for(self, wildcards: Wildcards) -> str | list[str]:
        """The manual selection, for a localization that matches its parameter count."""
        found = self.localization(wildcards["localization"])
        matched = found.budget == "parameters" and found.kind != "manual"
        return f"{self.results}/{wildcards['task']}/selections/manual.json" if matched else []

    def delta_for(self, wildcards: Wildcards) -> str | list[str]:
        """The delta of a trained model; none for the base model."""
        if wildcards["localization"] == "base":
            return []
        return self.model_folder(**dict(wildcards)) + "/delta.safetensors"

    def model_folder(self, task: str, objective: str, localization: str, seed: int | str) -> str:
        """Where a model's delta and evaluations lie."""
        return f"{self.results}/{task}/{objective}/{localization}/seed{seed}"

    def rows_for(self, evaluation: str) -> Callable[[Wildcards], list[str]]:
        """The rows of every model in a table, forget set by forget set."""

        def rows(wildcards: Wildcards) -> list[str]:
            task, objective = TABLES[wildcards["table"]]
            return [
                f"{folder}/{evaluation}.parquet"
                for forget_set in self.forget_sets(task)
                for folder in self.model_folders(forget_set, objective)
            ]

        return rows

    def compared_rows_for(self, evaluation: str) -> Callable[[Wildcards], list[str]]:
        """The rows of a table, and those of its null distribution."""

        def rows(wildcards: Wildcards) -> list[str]:
            folders = self.null_folders(*TABLES[wildcards["table"]])
            null = [f"{folder}/{evaluation}.parquet" for folder in folders]
            return self.rows_for(evaluation)(wildcards) + null

        return rows

    def task_of(self, wildcards: Wildcards) -> str:
        """The task that a table is about."""
        return TABLES[wildcards["table"]][0]

    def selections_for(self, wildcards: Wildcards) -> list[str]:
        """The selections behind a table."""
        task = self.task_of(wildcards)
        return [f"{self.results}/{task}/selections/{name}.json" for name in self.compared]

    def compared_selections_for(self, wildcards: Wildcards) -> list[str]:
        """The selections behind a table and its null distribution."""
        task = self.task_of(wildcards)
        return [f"{self.results}/{task}/selections/{name}.json" for name in self.localizations]

    def data_for(self, wildcards: Wildcards) -> list[str]:
        """The rows a figure is drawn from."""
        figure = FIGURES[wildcards["figure"]]
        if figure.kind in ("heads", "layers"):
            name = {"heads": "head_ablation", "layers": "layer_probes"}[figure.kind]
            return [f"{self.results}/interpretability/{name}.parquet"]
        everything = self.config.figures.forget_sets == "all"
        models = [
            folder
            for task in (self.forget_sets(figure.task) if everything else [figure.task])
            for folder in self.model_folders(task, figure.objective, base=figure.kind == "probes")
        ]
        if figure.kind == "probes":
            return [f"{model}/probes.parquet" for model in models]
        part = "relearning" if figure.kind == "relearning" else "sweep"
        return [f"{model}/{part}/{rows}.parquet" for model in models for rows in SHORT_EXAM]

    def claim_rows(self, _wildcards: Wildcards) -> list[str]:
        """The rows that claims are judged on: those behind every table and figure, or what lies there."""
        if self.config.claims.rows == "present":
            return sorted(
                str(path) for path in Path(self.results).rglob("*.parquet") if self._is_evidence(path)
            )
        tables = [name for name in TABLES if not lacking(self.config, name)]
        figures = [name for name in FIGURES if not lacking(self.config, name)]
        rows = [
            *(
                path
                for name in tables
                for kind in SHORT_EXAM
                for path in self.rows_for(kind)({"table": name})
            ),
            *(path for name in figures for path in self.data_for({"figure": name})),
        ]
        return list(dict.fromkeys(rows))

    def claim_selection(self, _wildcards: Wildcards) -> str | list[str]:
        """The manual selection, whose layers are the fact-lookup layers; none without it."""
        if "manual" not in self.localizations or not self.tasks:
            return []
        path = f"{self.results}/{self.tasks[0]}/selections/manual.json"
        return path if self.config.claims.rows == "planned" or Path(path).is_file() else []

    @staticmethod
    def _is_evidence(path: Path) -> bool:
        """Whether a file holds per-item rows of a model."""
        return path.stem in (*SHORT_EXAM, "probes", "layer_probes", "head_ablation")

    def overlay_for(self, wildcards: Wildcards) -> str | list[str]:
        """The published curves that the config lays over a figure, if any."""
        path = self.config.figures.overlay.get(wildcards["figure"])
        return [] if path is None else os.path.expandvars(os.path.expanduser(path))

    def target(self, name: str) -> Callable[[Wildcards], list[str]]:
        """The files behind a table or figure called by its name; all of them, so that a lost one is made again.

        Raises:
            UserError: by the function, when the config lacks what it shows.
        """

        def paths(_wildcards: Wildcards) -> list[str]:
            if lack := lacking(self.config, name):
                raise UserError(f"{name} cannot be made in this run: {lack}")
            if name in TABLES:
                return [f"{self.results}/tables/{name}.{suffix}" for suffix in ("md", "csv", "tex")]
            return [f"{self.figures}/{name}.{suffix}" for suffix in ("pdf", "png", "csv")]

        return paths

    def statistics(self) -> list[str]:
        """Comparisons, null distribution and supplement of every table that this config can make."""
        files = (
            "comparisons.csv",
            "comparisons.md",
            "null.csv",
            "null.md",
            "supplement.csv",
            "letters.csv",
            "supplement.md",
        )
        return [
            f"{self.results}/statistics/{table}/{file}"
            for table in TABLES
            if not lacking(self.config, table)
            for file in files
        ]

    def targets(self, names: Iterable[str]) -> list[Callable[[Wildcards], list[str]]]:
        """Those of the tables or figures that this config can make: it may lack a task or an objective."""
        return [self.target(name) for name in names if not lacking(self.config, name)]


def _without_none(node: Any) -> Any:
    """``node`` without the keys of mappings whose value is None."""
    if isinstance(node, dict):
        return {key: _without_none(value) for key, value in node.items() if value is not None}
    return node
