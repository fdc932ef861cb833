"""The prompts, read from ``workflow/resources/prompts.yaml``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from localized_unlearning.data.answers import LETTERS
from localized_unlearning.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """One prompt of the prompts file.

    Attributes:
        name: its name.
        text: the text, with ``{athlete}`` and, for multiple choice, ``{options}`` and ``{example}``.
        options: the answers in the order of the letters; empty unless it is multiple choice.
        option_format: how one lettered option reads.
        answers: how the candidate answers are spelled, in the order of the book's; empty: as there.
        whole_answer: whether an answer is scored over all its tokens, not its first alone.
    """

    name: str
    text: str
    options: tuple[str, ...] = ()
    option_format: str = "{letter}: {Answer}"
    answers: tuple[str, ...] = ()
    whole_answer: bool = False

    def render(self, athlete: str, options: Sequence[str] | None = None) -> str:
        """The prompt about ``athlete``, with ``options`` in another order if given."""
        if not self.options:
            return self.text.replace("{athlete}", athlete)
        order = tuple(options or self.options)
        lines = "\n".join(
            self.option_format.format(letter=letter, answer=answer, Answer=answer.capitalize())
            for letter, answer in zip(LETTERS, order, strict=True)
        )
        example = LETTERS[order.index("golf")]
        text = self.text.replace("{options}", lines).replace("{example}", example)
        return text.replace("{athlete}", athlete)


@dataclass(frozen=True)
class PromptBook:
    """All prompts of a file.

    Attributes:
        answers: the candidate answers.
        paraphrases: names of the prompts that the organism may read in pretraining.
    """

    answers: tuple[str, ...]
    paraphrases: tuple[str, ...]
    prompts: dict[str, Prompt]

    def __getitem__(self, name: str) -> Prompt:
        if name not in self.prompts:
            raise UserError(f"no prompt named '{name}' in the prompts file: it has {', '.join(self.prompts)}")
        return self.prompts[name]


def load_prompts(path: Path) -> PromptBook:
    """The prompts of a YAML file.

    Raises:
        UserError: when the file lacks a key or a prompt lacks ``{athlete}``.
    """
    data: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for key in ("answers", "prompts"):
        if key not in data:
            raise UserError(f"{path} has no '{key}': see workflow/resources/prompts.yaml for the layout")
    prompts = {}
    for name, entry in data["prompts"].items():
        text = entry.get("text", "")
        if "{athlete}" not in text:
            raise UserError(f"prompt '{name}' in {path} does not mention {{athlete}}: add it to its text")
        answers = tuple(entry.get("answers", ()))
        if answers and len(answers) != len(data["answers"]):
            raise UserError(
                f"prompt '{name}' in {path} spells {len(answers)} answers: give one for each of {', '.join(data['answers'])}"
            )
        prompts[name] = Prompt(
            name,
            text,
            tuple(entry.get("options", ())),
            entry.get("option_format", "{letter}: {Answer}"),
            answers,
            bool(entry.get("whole_answer", False)),
        )
    return PromptBook(tuple(data["answers"]), tuple(data.get("paraphrases", ())), prompts)
