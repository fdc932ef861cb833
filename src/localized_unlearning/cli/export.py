"""``export``: a model of a finished run as a standard folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from localized_unlearning.cli import words


def add_command(commands: words.Commands) -> None:
    """Add ``export`` to the parser's subcommands."""
    parser = commands.add_parser(
        "export", help="write a run's unlearned model as a standard Hugging Face folder"
    )
    parser.add_argument("run", type=Path, help="the run's results, such as results/organism")
    parser.add_argument("folder", type=Path, help="a new folder to write")
    parser.add_argument(
        "--localization",
        required=True,
        metavar="NAME",
        help="where it was unlearned, or base for the base model",
    )
    for name in ("task", "objective"):
        parser.add_argument(f"--{name}", metavar="NAME", help=f"{words.WILDCARDS[name]} (default: the first)")
    for name in ("seed", "base-seed"):
        parser.add_argument(f"--{name}", type=int, metavar="N", help="default: the first")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--masked", type=int, metavar="N", help="the base model with N of the trained mask's weights at zero"
    )
    kinds.add_argument(
        "--relearned",
        action="store_true",
        help="after the run's relearning, its adapters merged into the weights",
    )
    kinds.add_argument(
        "--adapter",
        action="store_true",
        help="the relearned adapters alone, a peft folder for the unlearned model",
    )
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help="with --adapter: the exported unlearned model, for peft to find it by itself",
    )
    parser.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the folder and say where it lies."""
    from localized_unlearning.runs import load_run  # brings torch

    model = load_run(arguments.run).model(
        arguments.localization,
        arguments.task,
        arguments.objective,
        arguments.seed,
        arguments.base_seed,
        arguments.masked,
    )
    if arguments.adapter:
        folder = model.relearned().save_adapter(arguments.folder, arguments.base)
    else:
        folder = (model.relearned() if arguments.relearned else model).save(arguments.folder)
    print(f"{folder} (its README.md is the model card)")
    return 0
