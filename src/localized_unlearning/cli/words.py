"""What each command and option is for, in a sentence each."""

from __future__ import annotations

from typing import Any

STAGES = {
    "fetch": "bring a file of the config's sources here and check its digest",
    "pretrain": "train the small model organism that the default run studies",
    "convert": "turn a GGUF file into a model in Hugging Face's layout, once",
    "download": "bring a model from the hub, or from a folder, at its pinned revision",
    "known_facts": "find out which facts the base model knows, and keep those",
    "model_card": "measure the base model on every fact it knows",
    "split": "say which athletes are forgotten, retained, trained on, tested on and relearned",
    "score": "give every component a score for how much it matters to recalling the facts",
    "select": "choose the weights of a localization from the scores",
    "finetune": "train the chosen weights until the facts are gone",
    "mask": "learn which of the chosen weights to change",
    "evaluate": "ask a model facts, multiple choice and general knowledge, and measure its text loss",
    "facts": "ask a model the facts, by every prompt",
    "multiple_choice": "ask a model the facts as multiple choice",
    "mmlu": "ask a model general knowledge, in MMLU's format",
    "text": "measure a model's loss on text it was not trained on",
    "relearn": "teach a few forgotten facts again and see whether the others return",
    "sweep": "ask a masked model the facts at every number of changed weights",
    "probe": "read the forgotten facts from a model's layers with linear probes",
    "head_ablation": "find the attention heads without which the facts are not carried on",
    "layer_probes": "find the layers in which the facts become readable",
    "table": "make one table of the paper from rows",
    "supplement": "make a table's supplement: every prompt and all three accuracies",
    "comparisons": "compare a table's localizations pair by pair, with p-values",
    "claims": "judge the paper's claims on this run's rows",
    "figure": "draw one figure of the paper from rows",
}
"""Stages, each one job of the workflow."""

WILDCARDS = {
    "source": "dotted path of a source in the config, such as athletes.source",
    "task": "what is forgotten: a name under `tasks`",
    "objective": "how it is unlearned: a name under `objectives`, or `none`",
    "localization": "where it is unlearned: a name under `localizations`, or `base`",
    "scores": "a name under `scores`",
    "method": "the method that the localization selects by",
    "seed": "the training seed, a whole number",
    "table": "a table's number",
    "figure": "a figure's number",
}
"""What a stage's name stands for."""

CONFIG = "a YAML file of settings; repeat to lay one over the other"

GROUPS = {
    "To look at a run": ("summary", "report", "audit"),
    "Before a run": ("presets", "preflight", "costs"),
    "To set up and maintain": ("install-profile", "reference", "ledger"),
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
            lines = [f"  {name:<17}{self.sentences[name]}" for name in names if name in self.sentences]
            parts += [f"{title}:", *lines, ""] if lines else []
        return "\n".join(parts)
