"""Where every output of a run lies, and which job makes a file: two directions of one table.

A path is a template of a stage's output with the job's wildcards in it. Names in wildcards are identifiers (the config
holds them to a pattern), seeds are numbers, and no two templates fit one path (tested), so a path has one job.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path, PurePosixPath

from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.paper.artefacts import FIGURES, TABLES

RESULTS, FIGURES_TOP, LOGS = "results", "figures", "logs"
"""The folders that a run's files lie in, seen from the checkout."""

RESOLVED = "config.yaml"
"""The resolved config, in the results folder: every job reads it."""

SOURCES = ".sources"
"""The kept sources of recorded code, in the results folder."""

REPORT = "report.html"
"""The report, in the results folder."""

BASE = "base{base_seed}"
MODEL = f"{BASE}/{{task}}/{{objective}}/{{localization}}/seed{{seed}}"
MASK = f"{BASE}/{{task}}/mask/{{localization}}"

PAGE = {"csv": "csv", "markdown": "md", "pdf": "pdf", "png": "png", "svg": "svg"}

PLACES: Mapping[str, Mapping[str, str]] = {
    "fetch": {"file": "sources/{source}"},
    "counterfact": {"facts": "counterfact/facts.csv", "prompts": "counterfact/prompts.json"},
    "pretrain": {"model": f"{BASE}/pretrained"},
    "inject": {"model": f"{BASE}/base_model"},
    "gold": {"delta": f"{BASE}/{{task}}/gold.safetensors"},
    "convert": {"model": f"{BASE}/base_model"},
    "download": {"model": f"{BASE}/base_model"},
    "check_model": {"check": f"{BASE}/model_check.json", "longest": f"{BASE}/longest_prompts.json"},
    "known_facts": {"known": f"{BASE}/known.parquet"},
    "windows": {"windows": f"{BASE}/windows.safetensors"},
    "model_card": {"json": f"{BASE}/model_card.json", "markdown": f"{BASE}/model_card.md"},
    "layer_probes": {"probes": f"{BASE}/interpretability/layer_probes.parquet"},
    "head_ablation": {"ablation": f"{BASE}/interpretability/head_ablation.parquet"},
    "split": {"split": f"{BASE}/{{task}}/split.parquet"},
    "score": {"scores": f"{BASE}/{{task}}/scores/{{scores}}.parquet"},
    "select": {"selection": f"{BASE}/{{task}}/selections/{{localization}}.json"},
    "select_weights": {
        "selection": f"{BASE}/{{task}}/weights/{{localization}}/{{scores}}.json",
        "weights": f"{BASE}/{{task}}/weights/{{localization}}/{{scores}}.safetensors",
    },
    "faithfulness": {"faithfulness": f"{BASE}/{{task}}/faithfulness/{{localization}}.parquet"},
    "select_for_mask": {"selection": f"{MASK}/selection.json"},
    "mask": {"mask": f"{MASK}/seed{{seed}}/mask.safetensors", "history": f"{MASK}/seed{{seed}}/history.csv"},
    "sweep": {name: f"{MASK}/seed{{seed}}/sweep/{name}.parquet" for name in ("facts", "multiple_choice", "mmlu")},
    "finetune": {"delta": f"{MODEL}/delta.safetensors", "history": f"{MODEL}/history.csv"},
    **{name: {name: f"{MODEL}/{name}.parquet"} for name in ("facts", "multiple_choice", "mmlu", "text", "teachers")},
    "attack": {"rows": f"{MODEL}/attacks/{{attack}}.parquet"},
    "place": {"rows": f"{BASE}/places/{{place}}.parquet"},
    "places_page": {**{name: f"localizers.{suffix}" for name, suffix in {**PAGE, "latex": "tex"}.items()}, "places": "places.csv"},
    "question": {"rows": f"{BASE}/question/{{place}}.parquet"},
    "question_page": {name: f"question.{suffix}" for name, suffix in PAGE.items()},
    "attack_table": {
        "csv": "attacks.csv",
        "markdown": "attacks.md",
        "latex": "attacks.tex",
        "pdf": "attacks.pdf",
        "png": "attacks.png",
        "svg": "attacks.svg",
    },
    "localizers": {
        "csv": "{task}/localizers.csv",
        "markdown": "{task}/localizers.md",
        "latex": "{task}/localizers.tex",
        "pdf": "{task}/localizers.pdf",
        "png": "{task}/localizers.png",
        "svg": "{task}/localizers.svg",
    },
    "probe": {"probes": f"{MODEL}/probes.parquet"},
    "relearn": {name: f"{MODEL}/relearning/{name}.parquet" for name in ("facts", "multiple_choice", "mmlu")},
    "supplement": {
        "csv": "statistics/{table}/supplement.csv",
        "letters": "statistics/{table}/letters.csv",
        "markdown": "statistics/{table}/supplement.md",
    },
    "comparisons": {
        "comparisons_csv": "statistics/{table}/comparisons.csv",
        "comparisons_markdown": "statistics/{table}/comparisons.md",
        "null_csv": "statistics/{table}/null.csv",
        "null_markdown": "statistics/{table}/null.md",
    },
    "study": {
        "csv": "studies/{study}.csv",
        "markdown": "studies/{study}.md",
        "latex": "studies/{study}.tex",
    },
    "overlap": {"overlap": f"{BASE}/{{task}}/overlap.parquet"},
    "overlap_table": {"csv": "overlap.csv", "markdown": "overlap.md", "latex": "overlap.tex"},
    "faithfulness_report": {
        "csv": "faithfulness/faithfulness.csv",
        "markdown": "faithfulness/faithfulness.md",
        "pdf": "faithfulness/faithfulness.pdf",
        "png": "faithfulness/faithfulness.png",
        "svg": "faithfulness/faithfulness.svg",
    },
    "claims": {"json": "claims.json", "markdown": "claims.md"},
    "table": {
        "csv": "tables/{table}.csv",
        "markdown": "tables/{table}.md",
        "latex": "tables/{table}.tex",
    },
    "figure": {kind: f"{{figure}}.{kind}" for kind in ("csv", "pdf", "png", "svg", "md", "tex")},
}  # fmt: skip
"""Each stage's outputs: templates below the run's results folder, or for ``figure`` below its figures folder."""

FOLDERS = frozenset({("pretrain", "model"), ("inject", "model"), ("convert", "model"), ("download", "model")})
"""Outputs that are folders."""

RULES = {
    "question": "ask_place",
    "attack_table": "write_attacks",
    "localizers": "grade",
    "question_page": "answer",
    "places_page": "grade_places",
}
"""Rules that are not named after their stage, since a target has its name."""


@dataclass(frozen=True, order=True)
class JobId:
    """One job of a run: its stage and wildcards."""

    stage: str
    wildcards: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, stage: str, **wildcards: str | int) -> JobId:
        """The job of a stage with these wildcards; those that follow from others are added."""
        values = {name: str(value) for name, value in wildcards.items()}
        if "table" in values:
            values["task"] = TABLES[values["table"]][0]
        names = STAGES[stage].wildcards
        return cls(stage, tuple((name, values[name]) for name in sorted(names)))

    @cached_property
    def named(self) -> dict[str, str]:
        """The wildcards by name."""
        return dict(self.wildcards)


@dataclass(frozen=True)
class Layout:
    """The places of one run's files.

    Attributes:
        run: the run's name.
    """

    run: str

    @property
    def results(self) -> str:
        """The run's results folder."""
        return f"{RESULTS}/{self.run}"

    @property
    def figures(self) -> str:
        """The run's figures folder."""
        return f"{FIGURES_TOP}/{self.run}"

    @property
    def logs(self) -> str:
        """The run's logs."""
        return f"{LOGS}/{self.run}"

    @property
    def resolved(self) -> str:
        """The resolved config."""
        return f"{self.results}/{RESOLVED}"

    @property
    def report(self) -> str:
        """The report."""
        return f"{self.results}/{REPORT}"

    @property
    def sources(self) -> str:
        """The kept sources of recorded code."""
        return f"{self.results}/{SOURCES}"

    def _top(self, stage: str) -> str:
        return self.figures if stage == "figure" else self.results

    def templates(self, stage: str) -> dict[str, str]:
        """Each output's path with the wildcards in braces, as Snakemake's rules name them."""
        return {name: f"{self._top(stage)}/{place}" for name, place in PLACES[stage].items()}

    def outputs(self, job: JobId) -> dict[str, str]:
        """Each output's path."""
        return {name: path.format(**job.named) for name, path in self.templates(job.stage).items()}

    def log(self, stage: str, suffix: str) -> str:
        """The template of a job's log, with this suffix: one place per job."""
        first = next(iter(PLACES[stage].values()))
        folder, _, name = first.rpartition("/")
        own = "".join(f"_{{{field}}}" for field in _fields(name))
        return f"{self.logs}/{folder}/{stage}{own}{suffix}".replace("//", "/")

    def job(self, path: str) -> JobId | None:
        """The job that makes a file, or None when no stage does; base models are said to be pretrained."""
        for stage in STAGES:
            below = _below(path, self._top(stage))
            for place in PLACES[stage].values() if below else ():
                values = _match(place, below)
                if values is not None and _may(values):
                    return JobId.of(stage, **values)
        return None


def run_of(path: str) -> str | None:
    """The run whose results or figures folder a path lies in; None elsewhere."""
    parts = PurePosixPath(path).parts
    return parts[1] if len(parts) > 1 and parts[0] in (RESULTS, FIGURES_TOP) else None


def _below(path: str, folder: str) -> str:
    return path.removeprefix(f"{folder}/") if path.startswith(f"{folder}/") else ""


def _fields(template: str) -> Iterator[str]:
    for _, field, _, _ in string.Formatter().parse(template):
        if field:
            yield field


@cache
def _segments(template: str) -> tuple[tuple[str, str, str], ...]:
    """Each part of a path as (literal before, wildcard, literal after); no part has two wildcards."""
    found = []
    for part in template.split("/"):
        before, field, after = part, "", ""
        if "{" in part:
            before, _, rest = part.partition("{")
            field, _, after = rest.partition("}")
        found.append((before, field, after))
    return tuple(found)


def _match(template: str, path: str) -> dict[str, str] | None:
    parts, segments = path.split("/"), _segments(template)
    if len(parts) != len(segments):
        return None
    values: dict[str, str] = {}
    for part, (before, field, after) in zip(parts, segments, strict=True):
        if not field:
            if part != before:
                return None
            continue
        value = part[len(before) : len(part) - len(after)]
        if part != f"{before}{value}{after}" or values.setdefault(field, value) != value:
            return None
    return values


def _may(values: Mapping[str, str]) -> bool:
    """Whether wildcards can have these values, whatever the config."""
    if any(not values[name].isdecimal() for name in ("seed", "base_seed") if name in values):
        return False
    if values.get("table", "table_1") not in TABLES or values.get("figure", "figure_1") not in FIGURES:
        return False
    return values.get("objective") != "mask"


def is_checkout(folder: Path) -> bool:
    """Whether a folder is the workflow's, below which results and figures lie."""
    return (folder / "workflow/rules").is_dir()


def checkout_above(folder: Path) -> Path | None:
    """The workflow's folder that ``folder`` lies in; None where it is one itself, or lies in none."""
    if (folder / "Snakefile").is_file():
        return None
    return next((place for place in folder.absolute().parents if is_checkout(place)), None)
