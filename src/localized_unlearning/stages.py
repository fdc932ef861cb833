"""The workflow's stages: what each one reads, makes and is implemented by.

This table is the single description of a stage. The command line builds its options from it,
the Snakemake rules take their two provenance params from it, and the records name it. A stage's
function receives a :class:`Job` and writes every file in ``job.outputs``; the runner
(:mod:`localized_unlearning.runner`) publishes them atomically together with a record.

``settings`` lists the parts of the config that the stage may read, as dotted paths in which
``{task}`` and the like stand for the job's wildcards. Reading any other setting is an error, so
the recorded settings cannot miss one. ``compute`` (device, threads, batch sizes) is always
readable and never recorded as a setting, because results do not depend on it beyond rounding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from localized_unlearning.config import Config
from localized_unlearning.errors import UserError


@dataclass(frozen=True)
class Stage:
    """One kind of job.

    Attributes:
        name: the rule's and the command's name.
        module: the module whose ``run`` (or ``function``) does the work; its import closure
            inside the package is the stage's code.
        settings: dotted config paths the stage may read.
        inputs: names of the input files, each a command-line option. A trailing ``*`` marks a
            list of files, a trailing ``?`` an optional file.
        outputs: names of the output files (or folders), each a command-line option.
        wildcards: names of the wildcards, each a command-line option.
        function: the function inside ``module``.
        cached: whether the shared cache may keep it; not where it reads what its key does not name.
        gpu: whether it loads a model to run it: on a GPU where there is one, in parts where ``compute.shards`` says so.
        online: whether it may use the network. All others run with ``HF_HUB_OFFLINE``, since compute nodes
            seldom have one, and a run must not depend on what a hub says today.
    """

    name: str
    module: str
    settings: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    wildcards: tuple[str, ...] = ()
    function: str = "run"
    cached: bool = True
    gpu: bool = False
    online: bool = False

    def paths(self, wildcards: Mapping[str, str]) -> tuple[str, ...]:
        """The dotted config paths of this stage for one job."""
        return tuple(path.format(**wildcards) for path in self.settings)


@dataclass
class Job:
    """One run of a stage, as its function sees it.

    Attributes:
        stage: the stage.
        config: the config, restricted to the stage's settings and ``compute``.
        wildcards: wildcard values by name.
        inputs: input paths by name; a list of paths for a starred input.
        outputs: where to write each output; temporary paths that the runner publishes.
        key: the job's deterministic key, which figures carry in their metadata.
        facts: what the stage wants recorded besides (seeds by name, device, measured figures).
    """

    stage: Stage
    config: Config
    wildcards: Mapping[str, str]
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Path]
    key: str
    facts: dict[str, Any] = field(default_factory=dict)


class View:
    """A config of which only some dotted paths may be read.

    Raises:
        UserError: when another path is read; the remedy is to declare it in the stage table.
    """

    def __init__(self, node: Any, allowed: tuple[str, ...], prefix: str = "", who: str = "") -> None:
        self._node, self._allowed, self._prefix, self._who = node, allowed, prefix, who

    def _child(self, name: str, value: Any) -> Any:
        path = f"{self._prefix}.{name}" if self._prefix else name
        if any(path == a or path.startswith(a + ".") for a in self._allowed):
            return value
        if any(a.startswith(path + ".") for a in self._allowed):
            return View(value, self._allowed, path, self._who)
        raise UserError(
            f"stage {self._who} read the setting '{path}' without declaring it: "
            "add it to the stage's settings in stages.py"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._child(name, getattr(self._node, name))

    def __getitem__(self, key: str) -> Any:
        return self._child(key, self._node[key])


def restrict(config: Config, stage: Stage, wildcards: Mapping[str, str]) -> Config:
    """The part of ``config`` that ``stage`` may read, with the same attribute names."""
    allowed = (*stage.paths(wildcards), "compute")
    return cast(Config, View(config, allowed, who=stage.name))


def settings_of(config: Config, stage: Stage, wildcards: Mapping[str, str]) -> dict[str, Any]:
    """The stage's settings by dotted path, as plain JSON values."""
    dumped = config.model_dump(mode="json")
    settings: dict[str, Any] = {}
    for path in stage.paths(wildcards):
        node: Any = dumped
        for part in path.split("."):
            if not isinstance(node, Mapping) or part not in node:
                raise UserError(
                    f"the config has no '{path}', which stage {stage.name} needs: "
                    f"add it to config.yaml or to the preset"
                )
            node = node[part]
        settings[path] = node
    return settings


def canonical_json(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII; equal values give equal strings."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "fetch", "localized_unlearning.sources", ("{source}",), (), ("file",), ("source",), online=True
        ),
        Stage(
            "pretrain",
            "localized_unlearning.organism",
            ("organism", "prompts"),
            ("athletes", "prompts", "general_knowledge", "text"),
            ("model",),
        ),
        Stage("convert", "localized_unlearning.gguf", (), ("gguf",), ("model",)),
        Stage(
            "download",
            "localized_unlearning.models",
            ("model",),
            (),
            ("model",),
            function="download",
            cached=False,  # a local folder is copied as it is; the hub has its own cache
            online=True,
        ),
        Stage(
            "known_facts",
            "localized_unlearning.facts",
            ("athletes.known_threshold", "prompts.training", "model.dtype"),
            ("athletes", "base_model", "prompts"),
            ("known",),
            function="known_facts",
            gpu=True,
        ),
        Stage(
            "model_card",
            "localized_unlearning.card",
            (
                "model.kind",
                "model.dtype",
                "organism.requirements",
                "prompts",
                "evaluation.shuffled_seed",
                "mmlu",
                "statistics",
            ),
            ("base_model", "known", "prompts", "mmlu"),
            ("json", "markdown"),
            gpu=True,
        ),
        Stage(
            "split",
            "localized_unlearning.splits",
            ("split", "tasks.{task}.forget", "tasks.{task}.relearn"),
            ("known",),
            ("split",),
            ("task",),
        ),
        Stage(
            "score",
            "localized_unlearning.localization",
            ("scores.{scores}", "components", "prompts.training", "model.dtype"),
            ("base_model", "split", "prompts", "method?"),
            ("scores",),
            ("task", "scores"),
            function="score",
            gpu=True,
        ),
        Stage(
            "select",
            "localized_unlearning.localization",
            ("localizations.{localization}", "components"),
            ("base_model", "scores?", "manual?", "probes?"),
            ("selection",),
            ("task", "localization", "method"),
            function="select",
        ),
        Stage(
            "finetune",
            "localized_unlearning.finetune",
            (
                "finetune",
                "tasks.{task}.lambda_forget",
                "objectives.{objective}",
                "prompts.training",
                "text.tokens",
                "text.documents",
                "model.dtype",
            ),
            ("base_model", "split", "selection", "prompts", "text", "loss?"),
            ("delta", "history"),
            ("task", "objective", "localization", "seed"),
            gpu=True,
        ),
        Stage(
            "evaluate",
            "localized_unlearning.evaluation",
            ("evaluation", "mmlu", "prompts", "text.tokens", "text.documents", "text.windows", "model.dtype"),
            ("base_model", "split", "delta?", "prompts", "mmlu", "text"),
            ("facts", "multiple_choice", "mmlu", "text"),
            ("task", "objective", "localization", "seed"),
            gpu=True,
        ),
        Stage(
            "relearn",
            "localized_unlearning.relearning",
            (
                "relearning",
                "series",
                "evaluation",
                "mmlu",
                "prompts",
                "text.tokens",
                "text.documents",
                "model.dtype",
            ),
            ("base_model", "split", "delta", "prompts", "mmlu", "text"),
            ("facts", "multiple_choice", "mmlu"),
            ("task", "objective", "localization", "seed"),
            gpu=True,
        ),
        Stage(
            "mask",
            "localized_unlearning.masking",
            ("masking", "prompts.training", "text.tokens", "text.documents", "model.dtype"),
            ("base_model", "split", "selection", "prompts", "text"),
            ("mask", "history"),
            ("task", "localization", "seed"),
            function="mask",
            gpu=True,
        ),
        Stage(
            "sweep",
            "localized_unlearning.masking",
            ("masking.edit_sizes", "series", "evaluation", "mmlu", "prompts", "model.dtype"),
            ("base_model", "split", "mask", "prompts", "mmlu"),
            ("facts", "multiple_choice", "mmlu"),
            ("task", "localization", "seed"),
            function="sweep",
            gpu=True,
        ),
        Stage(
            "probe",
            "localized_unlearning.probing",
            ("probing", "split.kind", "prompts.training", "model.dtype"),
            ("base_model", "split", "delta?", "prompts"),
            ("probes",),
            ("task", "objective", "localization", "seed"),
            gpu=True,
        ),
        Stage(
            "head_ablation",
            "localized_unlearning.interpretability",
            ("interpretability", "prompts.training", "text.tokens", "text.documents", "model.dtype"),
            ("base_model", "known", "prompts", "text"),
            ("ablation",),
            function="head_ablation",
            gpu=True,
        ),
        Stage(
            "layer_probes",
            "localized_unlearning.interpretability",
            ("interpretability", "prompts", "text.tokens", "text.documents", "model.dtype"),
            ("base_model", "known", "prompts", "text"),
            ("probes",),
            function="layer_probes",
            gpu=True,
        ),
        Stage(
            "table",
            "localized_unlearning.tables",
            ("run", "model", "prompts", "statistics", "tables", "tasks.{task}.forget"),
            ("facts*", "multiple_choice*", "mmlu*", "text*", "selections*"),
            ("csv", "markdown", "latex"),
            ("table", "task"),
        ),
        Stage(
            "supplement",
            "localized_unlearning.supplement",
            ("run", "statistics"),
            ("facts*", "multiple_choice*", "selections*"),
            ("csv", "letters", "markdown"),
            ("table", "task"),
        ),
        Stage(
            "comparisons",
            "localized_unlearning.comparisons",
            ("run", "prompts", "statistics", "null_distribution"),
            ("facts*", "multiple_choice*", "mmlu*", "text*", "selections*"),
            ("comparisons_csv", "comparisons_markdown", "null_csv", "null_markdown"),
            ("table", "task"),
        ),
        Stage(
            "claims",
            "localized_unlearning.claims",
            ("run", "tasks", "statistics", "prompts.question"),
            ("claims", "rows*", "selection?"),
            ("json", "markdown"),
        ),
        Stage(
            "figure",
            "localized_unlearning.figures",
            ("statistics", "localizations", "prompts.question"),
            ("data*", "overlay?"),
            ("csv", "pdf", "png"),
            ("figure",),
        ),
    )
}
