"""The command line: one subcommand a stage, and the tools beside them.

``localized-unlearning finetune --config results/organism/config.yaml --task sports ...`` is what the
Snakemake rule runs, what a Slurm job runs and what a person can run at a prompt.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from localized_unlearning import __version__
from localized_unlearning.cli import warm
from localized_unlearning.config import reading
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.job import Stage
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.workflow import runner


def _option(name: str) -> str:
    return "--" + name.rstrip("*?").replace("_", "-")


def _add_stage(commands: argparse._SubParsersAction[argparse.ArgumentParser], stage: Stage) -> None:
    summary = f"stage {stage.name} ({stage.module}.{stage.function})"
    parser = commands.add_parser(stage.name, help=summary, description=summary)
    parser.add_argument("--config", type=Path, action="append", required=True, help="YAML; repeat to overlay")
    for name in stage.wildcards:
        parser.add_argument(_option(name), dest=f"wildcard_{name}", required=True, metavar="NAME")
    for name in stage.inputs:
        plain = name.rstrip("*?")
        parser.add_argument(
            _option(name),
            dest=f"input_{plain}",
            nargs="*" if name.endswith("*") else None,
            required=not name.endswith("?"),
            metavar="PATH",
            help="input",
        )
    for name in stage.outputs:
        option = "--out-" + name.replace("_", "-")
        parser.add_argument(
            option, dest=f"output_{name}", type=Path, required=True, metavar="PATH", help="output"
        )
    parser.set_defaults(stage=stage)


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of all subcommands, or where ``command`` is a stage's name, of that one alone."""
    parser = argparse.ArgumentParser(prog="localized-unlearning", description=__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    if command in STAGES:
        _add_stage(commands, STAGES[command])
        return parser
    for stage in STAGES.values():
        _add_stage(commands, stage)
    from localized_unlearning.cli.tools import (
        add_commands,  # brings pandas: half a second of each job's start
    )

    add_commands(commands)
    return parser


def _run_stage(arguments: argparse.Namespace, compute: bool = True) -> bool:
    """Run a stage's job; without ``compute`` only restore it from the cache. Returns whether it is done."""
    stage: Stage = arguments.stage
    given = vars(arguments)
    inputs: dict[str, Path | list[Path] | None] = {}
    for name in stage.inputs:
        plain = name.rstrip("*?")
        value = given[f"input_{plain}"]
        inputs[plain] = (
            [Path(v) for v in value] if isinstance(value, list) else (Path(value) if value else None)
        )
    loaded = reading.load(arguments.config)
    if not compute and loaded.cache.dir is None:
        return False
    record = runner.execute(
        stage,
        loaded,
        {name: given[f"wildcard_{name}"] for name in stage.wildcards},
        inputs,
        {name: given[f"output_{name}"] for name in stage.outputs},
        Path.cwd(),
        compute,
    )
    return record is not None


def main(argv: Sequence[str] | None = None, warm_start: bool = True) -> int:
    """Run one command; 0 on success, 1 for a fault told in one sentence, 2 for wrong usage.

    With ``LOCALIZED_UNLEARNING_WARM`` in the environment, as the workflow sets it, a stage starts warm
    (see :mod:`localized_unlearning.cli.warm`); ``warm_start`` is false in the forked child itself.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = build_parser(given[0] if given else None).parse_args(given)
    online = "stage" not in arguments or arguments.stage.online
    if not online:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's library is imported, which reads it once
    try:
        if "stage" not in arguments:
            return int(arguments.function(arguments))
        asked = warm_start and not online and os.environ.get("LOCALIZED_UNLEARNING_WARM")
        if asked and warm.possible():
            if _run_stage(arguments, compute=False):  # before any process imports torch for it
                return 0
            status = warm.run(given, start="base_model" in arguments.stage.inputs)
            if status is not None:
                return status
        _run_stage(arguments)
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
