"""What each command and option is for, in a sentence each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localized_unlearning.cli.presets import find
from localized_unlearning.jobs.stages import STAGES

WILDCARDS = {
    "source": "dotted path of a source in the config, such as athletes.source",
    "task": "what is forgotten: a name under `tasks`",
    "objective": "how it is unlearned: a name under `objectives`, or `none`",
    "localization": "where it is unlearned: a name under `localizations`, or `base`",
    "scores": "a name under `scores`",
    "seed": "the training seed, a whole number",
    "base_seed": "the base model's seed of pretraining, a whole number",
    "attack": "how the facts are brought back: a name under `attacks`",
    "place": "where facts are injected: a name under the question's places",
    "study": "a table of one's own: a name under `studies`",
    "table": "a table's number",
    "figure": "a figure's number",
}
"""What a stage's name stands for."""

CONFIG = "a YAML file of settings; repeat to lay one over the other"

DEFAULTS = [Path("config.yaml")]
"""The settings of a command for people that is given none."""

GROUPS = {
    "To look at a run": ("summary", "report", "audit", "export"),
    "Before a run": ("presets", "preflight", "costs"),
    "To set up and maintain": ("install-profile", "reference", "reruns", "ledger", "pages", "gallery"),
}
"""The commands for people, in the order in which --help shows them."""

ANYWHERE = ("audit", "export", "presets", "install-profile")
"""The commands for people that say themselves where they may run."""


class Settings(argparse.Action):
    """Files of settings: ``--config`` replaces the default, ``--preset`` is laid over what there is."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Add one file.

        Raises:
            UserError: when there is no such preset, naming those that there are.
        """
        before = getattr(namespace, self.dest)
        if option_string == "--preset":
            setattr(namespace, self.dest, [*before, find(str(values))])
        else:
            setattr(namespace, self.dest, [*([] if before is DEFAULTS else before), Path(str(values))])


class Commands:
    """Subcommands whose sentences are kept, for an overview in groups that argparse cannot make.

    Args:
        subparsers: what ``add_subparsers`` gave.
    """

    def __init__(self, subparsers: Any) -> None:
        self._subparsers = subparsers
        self.sentences: dict[str, str] = {}

    def add_parser(self, name: str, help: str, settings: bool = False, **options: Any) -> Any:
        """As argparse's; the sentence describes the command on its own page too.

        Args:
            name: of the command.
            help: its sentence.
            settings: whether it reads the settings of a run: then ``arguments.config`` has their files.
            options: as argparse's.
        """
        self.sentences[name] = help
        options.setdefault("description", f"{help[0].upper()}{help[1:]}.")
        parser = self._subparsers.add_parser(name, **options)
        if settings:
            more: dict[str, Any] = {"dest": "config", "action": Settings, "default": DEFAULTS}
            parser.add_argument("--config", metavar="FILE", help=f"{CONFIG} (default: config.yaml)", **more)
            parser.add_argument("--preset", metavar="NAME", help="a preset, laid over config.yaml", **more)
        return parser

    def overview(self) -> str:
        """Every command with its sentence: those for people by purpose, then the stages."""
        groups = {**GROUPS, "Stages, which the workflow runs, one job each": tuple(STAGES)}
        placed = {name for names in groups.values() for name in names}
        groups["Others"] = tuple(name for name in self.sentences if name not in placed)
        parts = []
        for title, names in groups.items():
            lines = [f"  {name:<20}{self.sentences[name]}" for name in names if name in self.sentences]
            parts += [f"{title}:", *lines, ""] if lines else []
        return "\n".join(parts)
