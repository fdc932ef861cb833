"""What each command and option is for, in a sentence each."""

from __future__ import annotations

from typing import Any

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

GROUPS = {
    "To look at a run": ("summary", "report", "audit", "export"),
    "Before a run": ("presets", "preflight", "costs"),
    "To set up and maintain": ("install-profile", "reference", "reruns", "ledger", "pages", "gallery"),
}
"""The commands for people, in the order in which --help shows them."""


class Commands:
    """Subcommands whose sentences are kept, for an overview in groups that argparse cannot make.

    Args:
        subparsers: what ``add_subparsers`` gave.
    """

    def __init__(self, subparsers: Any) -> None:
        self._subparsers = subparsers
        self.sentences: dict[str, str] = {}

    def add_parser(self, name: str, help: str, **options: Any) -> Any:
        """As argparse's; the sentence describes the command on its own page too."""
        self.sentences[name] = help
        options.setdefault("description", f"{help[0].upper()}{help[1:]}.")
        return self._subparsers.add_parser(name, **options)

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
