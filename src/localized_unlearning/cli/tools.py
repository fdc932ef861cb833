"""The commands beside the stages."""

from __future__ import annotations

import argparse
from pathlib import Path

from localized_unlearning.audit import cli as audit
from localized_unlearning.cli import export, preset_costs, words
from localized_unlearning.cli.presets import presets
from localized_unlearning.cli.summary import summary
from localized_unlearning.config.evaluation import Claims
from localized_unlearning.report import gallery, page
from localized_unlearning.reporting.reference import reference
from localized_unlearning.workflow import plan, preflight, reruns
from localized_unlearning.workflow.profile import install_profile


def add_commands(commands: words.Commands) -> None:
    """Add these commands to the parser's subcommands."""
    parser = commands.add_parser(
        "summary", help="print a run's tables, where every output lies and how long it took", settings=True
    )
    parser.set_defaults(function=summary)
    parser = commands.add_parser("presets", help="list the runs that are prepared, or say where one lies")
    parser.add_argument("name", nargs="?", help="a preset's name: prints its path")
    parser.add_argument(
        "--costs", action="store_true", help="print the table of what each is predicted to take"
    )
    parser.set_defaults(function=_presets)
    parser = commands.add_parser("reference", help="write or check the files generated from the typed config")
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 when out of step")
    parser.set_defaults(function=reference)
    parser = commands.add_parser(
        "pages", help="say of pages that their numbers were made anew, and write their lines"
    )
    parser.add_argument(
        "pages", nargs="*", help="pages, or folders of pages, whose numbers were made by this commit"
    )
    parser.add_argument("--command", dest="made_by", default="make all", help="what made them")
    parser.add_argument("--stages", nargs="*", help="the stages behind them; those of before if not given")
    parser.set_defaults(function=_pages)
    parser = commands.add_parser(
        "gallery", help="copy a finished run's tables and figures, with their CSVs, into docs", settings=True
    )
    parser.add_argument("--to", type=Path, required=True, help="a folder below docs/results")
    parser.add_argument("--command", dest="made_by", default="make all", help="what made the run")
    parser.set_defaults(function=gallery.run)
    parser = commands.add_parser(
        "install-profile", help="put profiles/slurm where `snakemake --profile slurm` looks for it"
    )
    parser.add_argument("--replace", action="store_true", help="overwrite a copy that was edited")
    parser.set_defaults(function=install_profile)
    for room in (plan, preflight, reruns, audit):
        room.add_commands(commands)
    page.add_command(commands)
    export.add_command(commands)
    _add_ledger(commands)


def _add_ledger(commands: words.Commands) -> None:
    parser = commands.add_parser(
        "ledger", help="write docs/claims-in-the-paper.md: the claims against the paper's own numbers"
    )
    parser.add_argument("--claims", type=Path, default=Path(Claims().file), help="the claims")
    parser.add_argument("--published", type=Path, help="folder of the released result files, for the curves")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/claims-in-the-paper.md"), help="the page to write"
    )
    parser.set_defaults(function=_ledger)


def _presets(arguments: argparse.Namespace) -> int:
    if not arguments.costs:
        return presets(arguments)
    print(preset_costs.costs(), end="")
    return 0


def _pages(arguments: argparse.Namespace) -> int:
    from localized_unlearning.reporting.pages import run  # brings pandas: half a second of each command

    return run(arguments)


def _ledger(arguments: argparse.Namespace) -> int:
    from localized_unlearning.reporting.claims import (
        write_ledger,  # brings pandas: half a second of each command
    )

    return write_ledger(arguments)
