"""The plan of a run: its jobs, what each costs, and the longest chain; and how that compares with what was recorded.

``localized-unlearning costs`` prints it; ``preflight`` adds what is missing; ``docs/scale.md`` is made of it.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from localized_unlearning.config import reading
from localized_unlearning.config.run import Config
from localized_unlearning.costs import devices, stages
from localized_unlearning.costs.devices import DEVICES, Cost, Device
from localized_unlearning.costs.sizes import GB
from localized_unlearning.costs.stages import LIGHT
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.stages import CHECKPOINT, STAGES
from localized_unlearning.progress import clock
from localized_unlearning.workflow import targets
from localized_unlearning.workflow.layout import JobId
from localized_unlearning.workflow.places import Places
from localized_unlearning.workflow.snakefile import Rules

ORDER = [name for name in STAGES if name not in ("table", "figure")] + ["table", "figure"]


class Plan:
    """The jobs behind targets of a run, and what they cost.

    Attributes:
        rules: the run's rules.
        graph: its jobs.
        model: its cost model.
        places: where its files lie.
        needs: every job of the targets, with the jobs whose outputs it reads.
    """

    def __init__(self, rules: Rules, names: Sequence[str] = ("all",)) -> None:
        self.rules = rules
        self.graph = rules.graph
        self.model = rules.costs
        self.places = Places(rules.graph)
        self.needs = self.graph.behind(job for name in names for job in targets.jobs_of(self.graph, name))

    @property
    def config(self) -> Config:
        """The run's config."""
        return self.rules.config

    @cached_property
    def costs(self) -> dict[JobId, Cost]:
        """What each job costs."""
        return {job: self.model.cost(job.stage, job.named) for job in self.needs}

    def by_stage(self) -> dict[str, list[JobId]]:
        """The jobs of each stage, in the order of the workflow."""
        groups: dict[str, list[JobId]] = defaultdict(list)
        for job in self.needs:
            groups[job.stage].append(job)
        return {stage: groups[stage] for stage in ORDER if stage in groups}

    def seconds(self, job: JobId, device: Device, host: Device, follows: bool = False) -> float:
        """How long a job takes; stages that use no GPU run on ``host``.

        Args:
            job: the job.
            device: what it runs on.
            host: what it runs on if it uses no GPU.
            follows: whether it finds its model loaded (:meth:`followers`).
        """
        where, work = host if job.stage in LIGHT else device, self.costs[job].work
        return where.seconds(replace(work, load=0.0) if follows else work, self.config.model.dtype)

    def followers(self, jobs: Iterable[JobId]) -> set[JobId]:
        """Those of ``jobs`` that find their checkpoint's model loaded by one before them, where all of them are done.

        On one machine, or in one allocation of Slurm.
        """
        if not self.config.compute.warm_start or self.config.compute.shards > 1:
            return set()
        checkpoints: dict[tuple[str, ...], list[JobId]] = defaultdict(list)
        for job in jobs:
            if STAGES[job.stage].shares:
                checkpoints[tuple(job.named[name] for name in CHECKPOINT)].append(job)
        return {
            job
            for found in checkpoints.values()
            for job in sorted(found, key=lambda job: (job.stage != "text", job.stage))[1:]
        }

    def hours(self, jobs: Sequence[JobId], device: Device, host: Device) -> float:
        """Hours of ``device`` that jobs take which are done together."""
        follow = self.followers(jobs)
        mine = [job for job in jobs if job.stage not in LIGHT or not device.gpu]
        return sum(self.seconds(job, device, host, job in follow) for job in mine) / 3600

    def longest_chain(self, device: Device, host: Device) -> tuple[float, list[JobId]]:
        """The chain of jobs that must follow one another and takes longest: no number of nodes is faster."""
        best: dict[JobId, tuple[float, list[JobId]]] = {}

        def chain(job: JobId) -> tuple[float, list[JobId]]:
            if job not in best:
                before = max((chain(need) for need in self.needs[job]), key=lambda c: c[0], default=(0.0, []))
                best[job] = (before[0] + self.seconds(job, device, host), [*before[1], job])
            return best[job]

        return max((chain(job) for job in self.needs), key=lambda c: c[0])

    def disk(self) -> float:
        """Bytes of all outputs."""
        return sum(cost.disk for cost in self.costs.values())


def lines_of(plan: Plan, device: Device, host: Device) -> list[str]:
    """The plan as a table of Markdown, one line per stage, with totals and the longest chain."""
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
    follow = plan.followers(plan.needs)
    for stage, jobs in plan.by_stage().items():
        found = [plan.costs[job] for job in jobs]
        seconds = [plan.seconds(job, device, host, job in follow) for job in jobs]
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
        f"{len(plan.needs)} jobs, {plan.hours(list(plan.needs), device, host):.1f} {gpu}-hours on {device.name}, {plan.disk() / GB:.1f} GB of outputs.",
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
    """What a job took by its record: wildcards, seconds, GB at the peak where they were taken, bytes of its outputs, and
    whether it found its model loaded."""

    wildcards: dict[str, str]
    seconds: float
    memory: Mapping[str, float]
    size: int
    follows: bool


def jobs_recorded(results: Path) -> dict[str, list[Recorded]]:
    """Every job below ``results`` that was computed there, by stage."""
    found: dict[str, list[Recorded]] = defaultdict(list)
    for path in sorted(results.rglob("*.record.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.get("seconds") and not record.get("restored"):
            size = sum(file["size"] for output in record["outputs"] for file in output["files"])
            follows = "model" in (record.get("compute") or {})
            job = Recorded(record["wildcards"], record["seconds"], record.get("memory") or {}, size, follows)
            found[record["stage"]].append(job)
    return found


WITHIN = 0.25
"""Share by which a prediction may miss."""


def comparison(plan: Plan, device: Device, host: Device) -> list[str]:
    """Predicted beside recorded: a stage's seconds (median) and memory (largest job), and the run's sums."""
    measured = jobs_recorded(Path(plan.graph.layout.results))
    if not measured:
        raise UserError(f"{plan.graph.layout.results} holds no record yet: run the workflow first")
    lines: list[tuple[str, ...]] = []
    totals = [0.0, 0.0, 0.0, 0.0]
    for stage in [s for s in ORDER if s in measured]:
        jobs = measured[stage]
        costs_of = [plan.model.cost(stage, job.wildcards) for job in jobs]
        where = host if stage in LIGHT else device
        works = [
            replace(c.work, load=0.0) if j.follows else c.work for c, j in zip(costs_of, jobs, strict=True)
        ]
        predicted = [where.seconds(work, plan.config.model.dtype) for work in works]
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
    parser = commands.add_parser(
        "costs", help="say what a run's jobs cost: operations, time, memory, disk", settings=True
    )
    parser.add_argument("--device", help=f"{', '.join(DEVICES)} or cpu (default: what the config is for)")
    parser.add_argument("--threads", type=int, help="cores of a CPU job (default: compute.threads)")
    add_targets(parser)
    parser.add_argument("--compare", action="store_true", help="beside what a finished run recorded")
    parser.set_defaults(function=run)


def open_plan(paths: list[Path], checked: bool = True, names: Sequence[str] = ("all",)) -> Plan:
    """The plan of the run that these YAML files configure, for some of its targets.

    Args:
        paths: the files.
        checked: whether what they name is there, as far as it can be seen.
        names: the targets.
    """
    return Plan(Rules(reading.overlays(paths), checked), names)


def add_targets(parser: argparse.ArgumentParser) -> None:
    """Add the option that names targets."""
    parser.add_argument(
        "--targets", nargs="+", default=["all"], metavar="TARGET", help="what is asked for (default: all)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the costs of a run, or compare them with its records."""
    plan = open_plan(arguments.config, names=arguments.targets)
    threads = arguments.threads or plan.config.compute.threads
    device, host = device_of(plan, arguments.device, threads, measure=arguments.compare)
    print(f"{plan.config.run}: {plan.model.shape.parameters / 1e9:.3g} B parameters ({plan.model.origin})")
    if not device.gpu:
        print(f"{threads} thread(s) of {device.float32 / threads / GB:.0f} GFLOP/s each")
    print("\n".join(comparison(plan, device, host) if arguments.compare else lines_of(plan, device, host)))
    return 0


def counts(plan: Plan) -> Mapping[str, int]:
    """How many jobs each stage has."""
    return Counter(job.stage for job in plan.needs)
