"""The command line: one subcommand per stage, and the tools beside them.

``localized-unlearning finetune --config results/organism/config.yaml --task sports ...`` is what the
Snakemake rule runs, what a Slurm job runs and what a person can run at a prompt.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from localized_unlearning import __version__
from localized_unlearning.cli import warm, words
from localized_unlearning.config import reading
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.job import Kept, Stage
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.provenance import code, environment
from localized_unlearning.workflow import layout, runner

DESCRIPTION = """Unlearning of facts at chosen places in a language model, measured.

The workflow runs these commands: `make all`, or `snakemake figure_3`. Each can be run by hand as well."""


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add_stage(commands: words.Commands, stage: Stage) -> None:
    sentence = stage.help or f"stage {stage.name}"
    parser = commands.add_parser(stage.name, help=sentence)
    parser.add_argument("--config", type=Path, action="append", required=True, help=words.CONFIG)
    for name in stage.wildcards:
        parser.add_argument(
            _option(name),
            dest=f"wildcard_{name}",
            required=True,
            metavar="NAME",
            help=words.WILDCARDS.get(name, name),
        )
    for given in stage.inputs:
        # an absent optional input is an option without a file, as a rule's shell line writes it
        parser.add_argument(
            _option(given.name),
            dest=f"input_{given.name}",
            type=Path,
            nargs="*",
            default=[],
            metavar="PATH",
            help=f"the job's input `{given.name}`: its file{'s' if given.many else ' or folder'}",
        )
    for name in stage.outputs:
        parser.add_argument(
            _option(f"out_{name}"),
            dest=f"output_{name}",
            type=Path,
            required=True,
            metavar="PATH",
            help=f"where to write the output `{name}`",
        )
    parser.set_defaults(stage=stage)


def _inputs(stage: Stage, given: Mapping[str, list[Path]]) -> dict[str, Path | list[Path] | None]:
    """A stage's inputs from the command line: a list, one file, or None.

    Raises:
        UserError: when one file is wanted and none or several are given.
    """
    found: dict[str, Path | list[Path] | None] = {}
    for wanted in stage.inputs:
        files = given[f"input_{wanted.name}"]
        if wanted.many:
            found[wanted.name] = files
        elif len(files) == 1 or (wanted.optional and not files):
            found[wanted.name] = files[0] if files else None
        else:
            raise UserError(
                f"{stage.name} takes one file for {_option(wanted.name)}, not {len(files)}: give one"
            )
    return found


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of all subcommands, or where ``command`` is a stage's name, of that one alone."""
    parser = argparse.ArgumentParser(
        prog="localized-unlearning",
        description=DESCRIPTION,
        usage="%(prog)s COMMAND [OPTION ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(
        required=True, metavar="COMMAND", prog="localized-unlearning", help=argparse.SUPPRESS
    )
    commands = words.Commands(subparsers)
    if command in STAGES:
        _add_stage(commands, STAGES[command])
        return parser
    for stage in STAGES.values():
        _add_stage(commands, stage)
    from localized_unlearning.cli.tools import (
        add_commands,  # brings pandas: half a second of each job's start
    )

    add_commands(commands)
    parser.epilog = commands.overview()
    if command is not None and not command.startswith("-") and command not in commands.sentences:
        near = difflib.get_close_matches(command, commands.sentences, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "--help lists them"
        parser.error(f"there is no command '{command}': {hint}")
    return parser


def _run_stage(arguments: argparse.Namespace, compute: bool = True, kept: Kept | None = None) -> bool:
    """Run a stage's job; without ``compute`` only restore it from the cache. Returns whether it is done."""
    stage: Stage = arguments.stage
    given = vars(arguments)
    loaded = reading.load(arguments.config)
    if not compute and loaded.cache.dir is None:
        return False
    record = runner.execute(
        stage,
        loaded,
        {name: given[f"wildcard_{name}"] for name in stage.wildcards},
        _inputs(stage, given),
        {name: given[f"output_{name}"] for name in stage.outputs},
        Path.cwd(),
        compute,
        kept,
    )
    return record is not None


def main(given: Sequence[str], kept: Kept | None = None) -> int:
    """Run one command; 0 on success, 1 for a fault told in one sentence, 2 for wrong usage.

    Args:
        given: the command line.
        kept: in a forked child, what it has imported and kept of the jobs before.
    """
    try:
        arguments = build_parser(given[0] if given else None).parse_args(given)
        online = "stage" not in arguments or arguments.stage.online
        if not online:
            os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's library is imported, which reads it once
        if "stage" not in arguments:
            if given[0] not in words.ANYWHERE and layout.checkout_above(Path.cwd()):
                raise UserError(f"{given[0]} runs in the workflow's folder")
            return int(arguments.function(arguments))
        asked = kept is None and not online and warm.asked() == "cache"
        if asked and warm.possible():
            if _run_stage(arguments, compute=False):  # before any process imports torch for it
                return 0
            status = warm.run(given, start=warm.starts(given))
            if status is not None:
                return status
        _run_stage(arguments, kept=kept)
        return 0
    except UserError as error:
        print(f"error: {error}{_elsewhere(Path.cwd())}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `localized-unlearning summary | head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def can_be_warm(given: Sequence[str]) -> bool:
    """Whether a command is a stage that needs no network: what a warm process has imported is offline."""
    return bool(given) and given[0] in STAGES and not STAGES[given[0]].online


def shared(given: Sequence[str]) -> list[str] | None:
    """What two jobs have in common that read the model of one checkpoint; None for a job that shares with none.

    Its base model and delta, and the configs, which say how and on what it is loaded, by their names and states.
    """
    if not STAGES[given[0]].shares:
        return None
    arguments = build_parser(given[0]).parse_args(given)
    states = [file.stat() for file in arguments.config if file.is_file()]
    # Parsed here, a config is parsed for every process forked from here; a fault in it is the job's to tell.
    with contextlib.suppress(UserError):
        reading.overlays(arguments.config)
    paths = [*arguments.config, *arguments.input_base_model, *arguments.input_delta]
    return [*map(str, paths), *(f"{state.st_size} {state.st_mtime_ns}" for state in states)]


def preload() -> None:
    """Import every stage, and look once at what each job looks at: code, versions, the commit, transformers' tables."""
    for module in sorted({stage.module for stage in STAGES.values()}):
        try:
            import_module(module)
            code.closure(module)
        except (ImportError, SyntaxError):
            continue  # the job that needs it says so
    environment.versions()
    environment.commit_or_reason(refresh=True)
    try:
        from transformers import conversion_mapping  # with it, torch
    except ImportError:
        return
    conversion_mapping.get_checkpoint_conversion_mapping(
        "gemma"
    )  # compiles a thousand patterns, once per process


def _elsewhere(folder: Path) -> str:
    """Where the workflow's folder is, if this is not it."""
    if (folder / "Snakefile").is_file():
        return ""
    own = Path(__file__).parents[3]
    found = layout.checkout_above(folder) or (own if layout.is_checkout(own) else None)
    return f" (this is not the workflow's folder: cd {found})" if found else ""
