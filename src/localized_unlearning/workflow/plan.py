"""The plan of a run: its jobs, what each costs, and the longest chain; and how that compares with what was recorded.

``localized-unlearning costs`` prints it; ``preflight`` adds what is missing; ``docs/scale.md`` is made of it.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from localized_unlearning.config import reading
from localized_unlearning.costs import devices, stages
from localized_unlearning.costs.devices import DEVICES, Cost, Device
from localized_unlearning.costs.sizes import GB
from localized_unlearning.costs.stages import LIGHT
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.paper.artefacts import FIGURES, TABLES, lacking
from localized_unlearning.progress import clock
from localized_unlearning.workflow.snakefile import Workflow

ORDER = [name for name in STAGES if name not in ("table", "figure")] + ["table", "figure"]


@dataclass(frozen=True)
class PlannedJob:
    """One job, by stage and wildcards."""

    stage: str
    wildcards: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, stage: str, **wildcards: str) -> PlannedJob:
        """The job with these wildcards."""
        return cls(stage, tuple(sorted(wildcards.items())))

    @property
    def named(self) -> dict[str, str]:
        """The wildcards by name."""
        return dict(self.wildcards)


_MODEL = re.compile(
    r"/(?P<task>[^/]+)/(?P<objective>[^/]+)/(?P<localization>[^/]+)/seed(?P<seed>\d+)/(?P<rest>[^/]+)"
)


class Plan:
    """The jobs behind every table and figure of a run.

    Attributes:
        workflow: the run.
        model: its cost model.
    """

    def __init__(self, workflow: Workflow) -> None:
        self.workflow = workflow
        self.model = workflow.costs

    @cached_property
    def needs(self) -> dict[PlannedJob, tuple[PlannedJob, ...]]:
        """Every job of ``all``, with the jobs whose outputs it reads."""
        found: dict[PlannedJob, tuple[PlannedJob, ...]] = {}
        waiting = [*self._targets(), PlannedJob.of("model_card"), PlannedJob.of("claims")]
        while waiting:
            job = waiting.pop()
            if job not in found:
                found[job] = tuple(dict.fromkeys(self._inputs(job)))
                waiting += found[job]
        return found

    def _targets(self) -> Iterator[PlannedJob]:
        for kind, of, names in (
            ("table", "table", TABLES),
            ("comparisons", "table", TABLES),
            ("supplement", "table", TABLES),
            ("figure", "figure", FIGURES),
        ):
            for name in names:
                if not lacking(self.workflow.config, name):
                    yield PlannedJob.of(kind, **{of: name})

    def _inputs(self, job: PlannedJob) -> Iterator[PlannedJob]:
        run, w = self.workflow, job.named
        if job.stage in ("table", "comparisons", "supplement"):
            rows = run.compared_rows_for if job.stage == "comparisons" else run.rows_for
            chosen = run.compared_selections_for if job.stage == "comparisons" else run.selections_for
            for evaluation in ("facts", "multiple_choice", "mmlu", "text"):
                yield from map(self._maker, rows(evaluation)(w))
            yield from map(self._maker, chosen(w))
        elif job.stage == "figure":
            yield from map(self._maker, run.data_for(w))
        elif job.stage == "claims":
            selection = run.claim_selection(w)
            yield from map(self._maker, run.claim_rows(w))
            if selection:
                yield self._maker(str(selection))
        elif job.stage in ("finetune", "mask"):
            selections = f"{run.results}/{w['task']}/selections/{w['localization']}.json"
            yield self._maker(selections if job.stage == "finetune" else run.mask_selection_for(w))
            yield PlannedJob.of("split", task=w["task"])
            yield PlannedJob.of("model_card")
        elif job.stage in ("evaluate", "relearn", "probe"):
            yield (
                PlannedJob.of("split", task=w["task"])
                if w["localization"] == "base"
                else PlannedJob("finetune", job.wildcards)
            )
        elif job.stage == "sweep":
            yield PlannedJob("mask", job.wildcards)
        elif job.stage == "select":
            scores = run.scores_for(w) if w["method"] == "finetune" else run.scores_for_mask(w)
            for path in (scores, run.manual_for(w), run.probes_for(w)):
                if path:
                    yield self._maker(str(path))
            yield self._base
        elif job.stage == "score":
            yield PlannedJob.of("split", task=w["task"])
            yield PlannedJob.of("model_card")
        elif job.stage == "split" or job.stage in ("model_card", "layer_probes", "head_ablation"):
            yield PlannedJob.of("known_facts")
        elif job.stage == "known_facts":
            yield self._base
            for name in run.fetched():
                if name != "gguf":
                    yield PlannedJob.of("fetch", source=name)
        elif job.stage == "convert":
            for name in run.fetched():
                if name == "gguf":
                    yield PlannedJob.of("fetch", source=name)

    @property
    def _base(self) -> PlannedJob:
        kinds = {"organism": "pretrain", "gguf": "convert", "huggingface": "download"}
        return PlannedJob.of(kinds[self.workflow.config.model.kind])

    def _maker(self, path: str) -> PlannedJob:
        """The job that makes a file."""
        parts = Path(path).parts
        if parts[-2] == "scores":
            return PlannedJob.of("score", task=parts[-3], scores=Path(path).stem)
        if parts[-2] == "selections":
            return PlannedJob.of("select", task=parts[-3], localization=Path(path).stem, method="finetune")
        if parts[-1] == "selection.json":
            return PlannedJob.of("select", task=parts[-4], localization=parts[-2], method="mask")
        if parts[-2] == "interpretability":
            return PlannedJob.of(Path(path).stem)
        found = _MODEL.search(path)
        assert found is not None, path
        stage = {"relearning": "relearn", "sweep": "sweep", "probes.parquet": "probe"}.get(
            found["rest"], "evaluate"
        )
        return PlannedJob.of(stage, **{name: found[name] for name in STAGES[stage].wildcards})

    @cached_property
    def costs(self) -> dict[PlannedJob, Cost]:
        """What each job costs."""
        return {job: self.model.cost(job.stage, job.named) for job in self.needs}

    def by_stage(self) -> dict[str, list[PlannedJob]]:
        """The jobs of each stage, in the order of the workflow."""
        groups: dict[str, list[PlannedJob]] = defaultdict(list)
        for job in self.needs:
            groups[job.stage].append(job)
        return {stage: groups[stage] for stage in ORDER if stage in groups}

    def seconds(self, job: PlannedJob, device: Device, host: Device) -> float:
        """How long a job takes; stages that use no GPU run on ``host``."""
        where = host if job.stage in LIGHT else device
        return where.seconds(self.costs[job].work, self.workflow.config.model.dtype)

    def longest_chain(self, device: Device, host: Device) -> tuple[float, list[PlannedJob]]:
        """The chain of jobs that must follow one another and takes longest: no number of nodes is faster."""
        best: dict[PlannedJob, tuple[float, list[PlannedJob]]] = {}

        def chain(job: PlannedJob) -> tuple[float, list[PlannedJob]]:
            if job not in best:
                before = max((chain(need) for need in self.needs[job]), key=lambda c: c[0], default=(0.0, []))
                best[job] = (before[0] + self.seconds(job, device, host), [*before[1], job])
            return best[job]

        return max((chain(job) for job in self.needs), key=lambda c: c[0])

    def disk(self) -> float:
        """Bytes of all outputs."""
        return sum(cost.disk for cost in self.costs.values())


def lines_of(plan: Plan, device: Device, host: Device) -> list[str]:
    """The plan as a table of Markdown, one line a stage, with totals and the longest chain."""
    gpu = "GPU" if device.gpu else "CPU"
    heads = (
        "stage",
        "jobs",
        "PFLOP each",
        "seconds each",
        f"{gpu}-hours",
        f"{gpu} GB",
        "host GB asked",
        "output GB",
    )
    rows: list[tuple[str, ...]] = []
    total = 0.0
    for stage, jobs in plan.by_stage().items():
        found = [plan.costs[job] for job in jobs]
        seconds = [plan.seconds(job, device, host) for job in jobs]
        total += sum(seconds) if stage not in LIGHT or not device.gpu else 0
        flops = max(c.work.flops + c.work.logit_flops for c in found) / 1e15
        memory = max(stages.memory_mb(plan.model, stage, job.named) for job in jobs) / 1e3
        held = max(c.device_bytes for c in found) / GB
        rows.append(
            (
                stage, str(len(jobs)), f"{flops:.3g}", _span(seconds), f"{sum(seconds) / 3600:.2f}",
                f"{held:.1f}", f"{memory:.1f}", f"{sum(c.disk for c in found) / GB:.1f}",
            )
        )  # fmt: skip
    length, chain = plan.longest_chain(device, host)
    names = " > ".join(job.stage for job in chain)
    return [
        *table(heads, rows),
        "",
        f"{len(plan.needs)} jobs, {total / 3600:.1f} {gpu}-hours on {device.name}, {plan.disk() / GB:.1f} GB of outputs.",
        f"Longest chain: {clock(length)} ({names}).",
    ]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns are aligned in a terminal too: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in others)]) + " |"

    rule = [f"|{'-' * (widths[0] + 2)}", *(f"{'-' * (w + 1)}:" for w in widths[1:])]
    return [line(heads), "|".join(rule) + "|", *map(line, rows)]


def _span(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{high:.0f}" if high - low < 0.05 * high else f"{low:.0f} to {high:.0f}"


@dataclass(frozen=True)
class Recorded:
    """What a job took by its record: wildcards, seconds, GB at the peak where they were taken, bytes of its outputs."""

    wildcards: dict[str, str]
    seconds: float
    memory: Mapping[str, float]
    size: int


def recorded(results: Path) -> dict[str, list[Recorded]]:
    """Every job below ``results`` that was computed there, by stage."""
    found: dict[str, list[Recorded]] = defaultdict(list)
    for path in sorted(results.rglob("*.record.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.get("seconds") and not record.get("restored"):
            size = sum(file["size"] for output in record["outputs"] for file in output["files"])
            job = Recorded(record["wildcards"], record["seconds"], record.get("memory") or {}, size)
            found[record["stage"]].append(job)
    return found


WITHIN = 0.25
"""Share by which a prediction may miss."""


def comparison(plan: Plan, device: Device, host: Device) -> list[str]:
    """Predicted beside recorded: a stage's seconds (median) and memory (largest job), and the run's sums."""
    measured = recorded(Path(plan.workflow.results))
    if not measured:
        raise UserError(f"{plan.workflow.results} holds no record yet: run the workflow first")
    lines: list[tuple[str, ...]] = []
    totals = [0.0, 0.0, 0.0, 0.0]
    for stage in [s for s in ORDER if s in measured]:
        jobs = measured[stage]
        costs_of = [plan.model.cost(stage, job.wildcards) for job in jobs]
        where = host if stage in LIGHT else device
        predicted = [where.seconds(c.work, plan.workflow.config.model.dtype) for c in costs_of]
        seconds = [job.seconds for job in jobs]
        sums = sum(predicted), sum(seconds), sum(c.disk for c in costs_of), sum(job.size for job in jobs)
        totals = [a + b for a, b in zip(totals, sums, strict=True)]
        part = "device" if where.gpu else "process"
        held = max((job.memory.get(part, 0.0) for job in jobs), default=0.0)
        asked = max(c.device_bytes + (0 if where.gpu else c.host) for c in costs_of) / GB
        memory = (f"{asked:.2f}", f"{held:.2f}", f"{asked / held:.2f}") if held and asked else ("", "", "")
        ratio = f"{sums[0] / max(1e-9, sums[1]):.2f}"
        lines.append(
            (stage, str(len(jobs)), f"{median(predicted):.1f}", f"{median(seconds):.1f}", ratio, *memory)
        )
    count = sum(map(len, measured.values()))
    ratio = f"{totals[0] / totals[1]:.2f}"
    lines.append(("all, summed", str(count), f"{totals[0]:.0f}", f"{totals[1]:.0f}", ratio, "", "", ""))
    heads = ("stage", "jobs", "predicted s", "recorded s", "ratio", "predicted GB", "peak GB", "ratio")
    missed = abs(totals[0] / totals[1] - 1) > WITHIN
    return [
        *table(heads, lines),
        "",
        f"Time in all: {'more' if missed else 'less'} than {WITHIN:.0%} off. Outputs: {totals[2] / GB:.3f} GB predicted, "
        f"{totals[3] / GB:.3f} GB recorded.",
        "Peaks are what a job held beyond its process's start (without compute.warm_start its libraries too); on a GPU, the device's.",
    ]


def device_of(plan: Plan, name: str | None, threads: int, measure: bool) -> tuple[Device, Device]:
    """The device that stages run on, and the host's.

    Raises:
        UserError: for an unknown device.
    """
    host = devices.measured_cpu(threads) if measure else devices.cpu(threads)
    if name is None:
        name = "A100-80" if plan.model.on_gpu else "cpu"
    if name == "cpu":
        return host, host
    if name not in DEVICES:
        raise UserError(f"no device '{name}': choose {', '.join(DEVICES)} or cpu")
    return DEVICES[name], host


def add_commands(commands: Any) -> None:
    """Add ``costs`` to the parser's subcommands."""
    parser = commands.add_parser("costs", help="say what a run's jobs cost: operations, time, memory, disk")
    parser.add_argument("--config", type=Path, action="append", required=True, help="YAML; repeat to overlay")
    parser.add_argument("--device", help=f"{', '.join(DEVICES)} or cpu (default: what the config is for)")
    parser.add_argument("--threads", type=int, help="cores of a CPU job (default: compute.threads)")
    parser.add_argument("--compare", action="store_true", help="beside what a finished run recorded")
    parser.set_defaults(function=run)


def open_plan(paths: list[Path]) -> Plan:
    """The plan of the run that these YAML files configure."""
    return Plan(Workflow(reading.overlays(paths)))


def run(arguments: argparse.Namespace) -> int:
    """Print the costs of a run, or compare them with its records."""
    plan = open_plan(arguments.config)
    threads = arguments.threads or plan.workflow.config.compute.threads
    device, host = device_of(plan, arguments.device, threads, measure=arguments.compare)
    print(
        f"{plan.workflow.config.run}: {plan.model.shape.parameters / 1e9:.3g} B parameters ({plan.model.origin})"
    )
    if not device.gpu:
        print(f"{threads} thread(s) of {device.float32 / threads / GB:.0f} GFLOP/s each")
    print("\n".join(comparison(plan, device, host) if arguments.compare else lines_of(plan, device, host)))
    return 0


def counts(plan: Plan) -> Mapping[str, int]:
    """How many jobs each stage has."""
    return Counter(job.stage for job in plan.needs)
