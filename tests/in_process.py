"""A whole run in this process: every job of a config's graph, in order."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from localized_unlearning.config import reading
from localized_unlearning.config.run import Config
from localized_unlearning.jobs.collecting import COLLECTING
from localized_unlearning.jobs.job import Job, restrict
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.workflow.graph import Graph
from localized_unlearning.workflow.layout import JobId
from localized_unlearning.workflow.snakefile import resolved_text
from tiny_run import ROOT

QUICK: dict[str, Any] = {
    "run": "tiny",
    "tasks": {"sports": None, "athletes": {"forget": {"draw": None, "balanced": False, "first": 4}}},
    "objectives": {"inject": None},
    "localizations": {
        "manual": {"layers": [1], "kinds": ["q", "v"]},
        **dict.fromkeys(("causal_tracing", "all_mlps", "nonlocalized", "random")),
    },
    "scores": {"attribution_patching": {"prompts": 6}, "causal_tracing": None},
    "split": {"test_fraction": 0.4},
    "finetune": {"steps": 2, "batch_size": 4, "micro_batch_tokens": 4096},
    "masking": {"steps": 2, "batch_size": 4, "text_batch": 2, "edit_sizes": [0, 10]},
    "mmlu": {"questions": 6},
    "text": {"windows": 4, "tokens": 24},
    "series": {"retain": 4, "questions": 3},
    "relearning": {"iterations": 1, "rank": 2, "retain_batch": 2, "text_batch": 2},
    "interpretability": {"lookup_end": 2, "test_fraction": 0.4, "mean_windows": 4, "max_iterations": 50},
    "probing": {"max_iterations": 50},
    "attacks": {"run": ["few_shot"], "tasks": [], "asked": {"retained": 4, "orders": 1}, "few_shot": {"facts": 1}},
    "statistics": {"bootstrap": 50},
}  # fmt: skip
"""A run of seconds on a model of three layers."""


def configured(folder: Path, model: Path, *overlays: Mapping[str, Any]) -> Config:
    """The quick run of a model folder, in ``folder`` made to look like a checkout."""
    if not (folder / "workflow").exists():
        (folder / "workflow").symlink_to(ROOT / "workflow")
    own = {"model": {"kind": "huggingface", "name": str(model)}}
    layers = [("config.yaml", reading.read_yaml(ROOT / "config.yaml")), ("quick", QUICK), ("model", own)]
    return reading.resolve([*layers, *(("test", overlay) for overlay in overlays)])


def run(config: Config, but: Collection[str] = (), drawn: bool = False) -> dict[JobId, dict[str, Path]]:
    """Do every job of the working folder's run; the outputs of each.

    Args:
        config: the run's.
        but: stages to leave out, with those that read from them.
        drawn: also make what is drawn and written from rows.
    """
    graph, done = Graph(config), {}
    collected = set() if drawn else {stage.name for stage in COLLECTING}

    def do(job: JobId) -> bool:
        if job in done:
            return True
        if job.stage in collected or job.stage in but or not all([do(need) for need in graph.needs(job)]):
            return False
        done[job] = do_one(graph, config, job)
        return True

    for job in sorted(graph.jobs):
        do(job)
    return done


def do_one(graph: Graph, config: Config, job: JobId) -> dict[str, Path]:
    """Do one job, whose inputs are there."""
    stage = STAGES[job.stage]
    many = {given.name for given in stage.inputs if given.many}
    inputs: dict[str, Any] = {}
    for name, values in graph.paths(job).items():
        paths = [Path(value) for value in values]
        inputs[name] = paths if name in many else next(iter(paths), None)
    outputs = {name: Path(path) for name, path in graph.layout.outputs(job).items()}
    for path in outputs.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    view = restrict(config, stage, job.named)
    getattr(importlib.import_module(stage.module), stage.function)(
        Job(stage, view, job.named, inputs, outputs, "key")
    )
    return outputs


def finished(config: Config, but: Collection[str] = ()) -> dict[JobId, dict[str, Path]]:
    """:func:`run`, with the resolved config beside the results, as ``load_run`` wants it."""
    done = run(config, but)
    Path(Graph(config).layout.resolved).write_text(resolved_text(config), encoding="utf-8")
    return done
