"""What an edit reruns: for each module, the jobs of a plan whose code it is, and what they cost.

A room of the package is what reruns together. This table shows where that holds, and what an edit in each module
costs; stages downstream of a rerun job rerun too where its outputs change, which is not counted here.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from localized_unlearning.costs.stages import LIGHT
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.provenance import code
from localized_unlearning.workflow.plan import Plan, device_of, open_plan, table


@dataclass(frozen=True)
class Edit:
    """An edit of one module.

    Attributes:
        module: the module, without the package's name.
        stages: the stages whose code it is.
        jobs: how many jobs of the plan those are.
        hours: hours of the device that those jobs take; jobs that load no model count none.
    """

    module: str
    stages: tuple[str, ...]
    jobs: int
    hours: float


def edits(plan: Plan, device_name: str | None = None) -> list[Edit]:
    """Every module in any stage's closure, the most expensive edit first."""
    device, host = device_of(plan, device_name, plan.config.compute.threads, measure=False)
    users: dict[str, list[str]] = defaultdict(list)
    for stage in STAGES.values():
        for module in code.closure(stage.module):
            users[module].append(stage.name)
    by_stage = plan.by_stage()

    def edit(module: str, stages: list[str]) -> Edit:
        jobs = [job for stage in stages for job in by_stage.get(stage, ())]
        hours = plan.hours([job for job in jobs if job.stage not in LIGHT], device, host)
        return Edit(module.removeprefix(f"{code.PACKAGE}."), tuple(stages), len(jobs), hours)

    found = [
        edit(module, stages)
        for module, stages in users.items()
        if module != code.PACKAGE and not source_is_empty(module)
    ]
    return sorted(found, key=lambda edit: (-edit.hours, -edit.jobs, edit.module))


def source_is_empty(module: str) -> bool:
    """Whether a module holds nothing, as a package's ``__init__`` does."""
    return not (code.source_of(module) or b"").strip()


def mean_hours(found: Sequence[Edit]) -> float:
    """Hours that an edit in a module costs, averaged over the modules."""
    return sum(edit.hours for edit in found) / len(found)


def add_commands(commands: Any) -> None:
    """Add ``reruns`` to the parser's subcommands."""
    parser = commands.add_parser(
        "reruns", help="say which jobs an edit in each module reruns, and what they cost", settings=True
    )
    parser.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    plan = open_plan(arguments.config)
    found = edits(plan)
    heads = ("an edit in", "jobs", "hours", "stages")
    rows = [
        (
            edit.module,
            str(edit.jobs),
            f"{edit.hours:.2f}",
            ", ".join(edit.stages) if len(edit.stages) < 6 else str(len(edit.stages)),
        )
        for edit in found
    ]
    print("\n".join(table(heads, rows)))
    print(f"\n{len(found)} modules; {mean_hours(found):.2f} hours on average.")
    return 0
