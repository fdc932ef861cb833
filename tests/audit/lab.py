"""A small finished run of toy stages: data -> train -> evaluate -> table, and a figure beside it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from localized_unlearning.audit.findings import Audit, Finding
from localized_unlearning.config import reading
from localized_unlearning.jobs.job import Input, Stage, optional
from localized_unlearning.provenance import pages
from localized_unlearning.provenance.records import Record
from localized_unlearning.workflow import runner

SOURCES = {
    "__init__": "",
    "helper": '"""Shared by two stages."""\n\n\ndef shift(x):\n    return x + 1  # one up\n',
    "train": (
        "from toylab import helper\n\n\ndef run(job):\n"
        "    steps = job.config.finetune.steps\n"
        "    data = [int(x) for x in job.inputs['data'].read_text().split()]\n"
        "    job.outputs['model'].mkdir()\n"
        "    (job.outputs['model'] / 'weights').write_text(str([helper.shift(x) * steps for x in data]))\n"
        "    (job.outputs['model'] / 'vocabulary').write_text('words')\n"
        "    job.outputs['history'].write_text('step\\n1\\n')\n"
        "    job.facts['seeds'] = {'order': int(job.wildcards['seed'])}\n"
    ),
    "evaluate": (
        "def run(job):\n"
        "    text = (job.inputs['model'] / 'weights').read_text().strip('[]')\n"
        "    rows = [f'{i},{float(x)}' for i, x in enumerate(text.split(','))]\n"
        "    job.outputs['rows'].write_text('\\n'.join(['item,value', *rows]) + '\\n')\n"
    ),
    "edit": (
        "def run(job):\n"
        "    earlier = job.inputs['previous'].read_text() if job.inputs.get('previous') else ''\n"
        "    steps = job.config.finetune.steps\n"
        "    job.outputs['delta'].write_text(f\"{earlier}{job.wildcards['task']} {steps}\\n\")\n"
    ),
    "table": (
        "def run(job):\n"
        "    text = ''.join(path.read_text() for path in job.inputs['rows'])\n"
        "    job.outputs['csv'].write_text(text + job.key + '\\n')\n"
    ),
}

STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "train",
            "toylab.train",
            ("finetune", "tasks.{task}"),
            (Input("data"), Input("prompts")),
            ("model", "history"),
            ("task", "seed"),
        ),
        Stage(
            "edit",
            "toylab.edit",
            ("finetune.steps",),
            (Input("model"), optional("previous")),
            ("delta",),
            ("task", "seed"),
        ),
        Stage("evaluate", "toylab.evaluate", ("evaluation",), (Input("model"),), ("rows",), ("task", "seed")),
        Stage("table", "toylab.table", ("statistics",), (Input("rows", many=True),), ("csv",), ("table",)),
    )
}


class Lab:
    """The workflow's folder of the toy run."""

    def __init__(self, root: Path, installed: dict[str, str]) -> None:
        self.root, self.installed = root, installed
        self.results = root / "results" / "organism"
        self.figure = root / "figures" / "organism" / "figure_1.csv"
        self.table = self.results / "tables" / "table_1.csv"

    def seed(self, number: int) -> Path:
        return self.results / "sports" / f"seed{number}"

    def build(self) -> None:
        """Run every job, as the workflow would."""
        self.resolve()
        for seed in (0, 1):
            self.train(seed)
            self.evaluate(seed)
        self.run("table", {"table": "table_1"}, {"rows": self.rows()}, {"csv": self.table})
        self.run("table", {"table": "figure_1"}, {"rows": self.rows()[:1]}, {"csv": self.figure})

    def rows(self) -> list[Path]:
        return [self.seed(0) / "rows.csv", self.seed(1) / "rows.csv"]

    def train(self, seed: int) -> Record:
        inputs = {"data": self.root / "workflow/data.txt", "prompts": self.root / "workflow/prompts.yaml"}
        outputs = {"model": self.seed(seed) / "model", "history": self.seed(seed) / "history.csv"}
        return self.run("train", {"task": "sports", "seed": str(seed)}, inputs, outputs)

    def evaluate(self, seed: int) -> Record:
        inputs, outputs = {"model": self.seed(seed) / "model"}, {"rows": self.seed(seed) / "rows.csv"}
        return self.run("evaluate", {"task": "sports", "seed": str(seed)}, inputs, outputs)

    def edit(self, *models: tuple[str, int]) -> list[Path]:
        """Models edited one after another: the delta of each task and seed, which starts from the one before."""
        found: list[Path] = []
        for task, seed in models:
            delta = self.results / task / f"edit{seed}.txt"
            inputs = {"model": self.seed(0) / "model", "previous": found[-1] if found else None}
            self.run("edit", {"task": task, "seed": str(seed)}, inputs, {"delta": delta})
            found.append(delta)
        return found

    def run(self, stage: str, wildcards: dict[str, str], inputs: Any, outputs: dict[str, Path]) -> Record:
        for name in [name for name in sys.modules if name.startswith("toylab")]:
            del sys.modules[name]
        config = reading.load([self.results / "config.yaml"])
        record = runner.execute(STAGES[stage], config, wildcards, inputs, outputs, self.root)
        assert record is not None
        return record

    def configure(self, **settings: Any) -> None:
        """Edit config.yaml, as a person would."""
        path = self.root / "config.yaml"
        merged = reading.merge(yaml.safe_load(path.read_text()), settings)
        path.write_text(yaml.safe_dump(merged))

    def resolve(self) -> None:
        """What the workflow does at its start."""
        self.results.mkdir(parents=True, exist_ok=True)
        config = reading.load([self.root / "config.yaml"])
        text = yaml.safe_dump(config.model_dump(mode="json", exclude_none=True))
        if not pages.is_published(self.results / "config.yaml", text):
            settings = yaml.safe_load(text)
            pages.publish(self.results / "config.yaml", text, pages.CONFIG, self.root, settings)

    def source(self, module: str) -> Path:
        return self.root / "toylab" / f"{module}.py"

    def audit(self, *paths: Path, **options: Any) -> Audit:
        return Audit(paths or (self.root / "results", self.root / "figures"), self.root, **options)

    def findings(self, *paths: Path, **options: Any) -> dict[str, Finding]:
        """What is not clean, by path relative to the run's folder (figures by their name)."""
        found = self.audit(*paths, **options).findings()
        return {self.name(f.path): f for f in found if not f.clean}

    def name(self, path: Path) -> str:
        return path.relative_to(self.results).as_posix() if path.is_relative_to(self.results) else path.name

    def status(self, *paths: Path, **options: Any) -> dict[str, str]:
        """Integrity and currency of what is not clean: "modified/ok"."""
        found = self.findings(*paths, **options)
        return {name: f"{f.integrity}/{f.currency}" for name, f in found.items()}
