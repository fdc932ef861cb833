"""The prompts, read from ``workflow/resources/prompts.yaml``."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from localized_unlearning.data.answers import FEWEST, LETTERS, MOST
from localized_unlearning.errors import UserError

SUBJECTS = ("{subject}", "{athlete}")
"""What stands for the subject in a prompt; the second is the paper's."""

KEYS = ("text", "options", "option_format", "example", "answers", "whole_answer", "space", "chat")
"""The keys of a prompt."""

RIGHT, WRONG = "right", "wrong"
"""The answers where every fact brings its own: its right answer, and the one that is injected."""

NAME = "subject"
"""Where facts bring their own prompts: what stands in a fact's texts for whom it is about."""

Facts = Mapping[str, Mapping[str, str]]
"""By a fact's name, what it says itself: its text of each prompt, its subject in them, and each answer's words."""


@dataclass(frozen=True)
class Prompt:
    """One prompt of the prompts file.

    Attributes:
        name: its name.
        text: the text, with ``{subject}`` and, for multiple choice, ``{options}`` and ``{example}``.
        options: the answers in the order of the letters; empty unless it is multiple choice.
        option_format: how one lettered option reads.
        example: the option whose letter ``{example}`` is.
        answers: how the candidate answers are spelled, in the order of the book's; empty: as there.
        whole_answer: whether an answer is scored over all its tokens, not its first alone.
        space: whether a space comes between prompt and answer.
        chat: whether the text is a user's turn, rendered by the tokenizer's chat template.
        shown: how many options a question offers: the right one, and others drawn for it; 0: all.
        facts: where every fact brings its own texts and answers, what they are; empty: all are asked alike.
    """

    name: str
    text: str
    options: tuple[str, ...] = ()
    option_format: str = "{letter}: {Answer}"
    example: str | None = None
    answers: tuple[str, ...] = ()
    whole_answer: bool = False
    space: bool = True
    chat: bool = False
    shown: int = 0
    facts: Facts = field(default_factory=dict, repr=False)

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of the options that a question offers."""
        return LETTERS[: self.shown or len(self.options)]

    def offered(self, draw: random.Random, right: str, mixed: bool = True) -> list[str]:
        """The options of one question about a fact with the answer ``right``: all of them, or where fewer are shown this one
        and a draw of the others.

        Args:
            draw: decides on the others, and on the order.
            right: the fact's answer.
            mixed: whether their order is drawn, too; otherwise it is the file's.
        """
        found = list(self.options)
        if self.shown:
            others = draw.sample([option for option in found if option != right], self.shown - 1)
            found = [option for option in found if option == right or option in others]
        return draw.sample(found, len(found)) if mixed else found

    def render(self, subject: str, options: Sequence[str] | None = None) -> str:
        """The prompt about ``subject``, with ``options`` in another order if given."""
        text, said = self.text, self.own(subject)[self.name] if self.facts else subject
        if self.options:
            order = tuple(options or self.options[: len(self.letters)])
            lines = "\n".join(
                self.option_format.format(letter=letter, answer=answer, Answer=begun(answer))
                for letter, answer in zip(self.letters, self.words(subject, order), strict=True)
            )
            text = text.replace("{options}", lines)
            if self.example is not None:
                text = text.replace("{example}", LETTERS[order.index(self.example)])
        for placeholder in SUBJECTS:
            text = text.replace(placeholder, said)
        return text

    def words(self, subject: str, answers: Sequence[str]) -> tuple[str, ...]:
        """How ``answers`` read: as they are, or where every fact brings its own, as the fact about ``subject`` says."""
        return tuple(self.own(subject)[answer] for answer in answers) if self.facts else tuple(answers)

    def own(self, subject: str) -> Mapping[str, str]:
        """What the fact of this name brings.

        Raises:
            UserError: when the prompts file has none of this name.
        """
        if subject not in self.facts:
            raise UserError(
                f"the prompts file has no fact '{subject}', which the facts file has: make both files from one source"
            )
        return self.facts[subject]


def begun(answer: str) -> str:
    """An answer as it begins a line: its first letter a capital, the others as they are (``New York``)."""
    return answer[:1].upper() + answer[1:]


LETTERED = Prompt("lettered", "")
"""What general knowledge is asked with: any text, whose answer is a letter after a space."""


ALONE = Prompt("subject", "{subject}")
"""The subject without a prompt, for probes (A.2); every book has it."""


@dataclass(frozen=True)
class PromptBook:
    """All prompts of a file.

    Attributes:
        answers: the candidate answers; none: those of the facts.
        paraphrases: names of the prompts that the organism may read in pretraining.
        prompts: the prompts, by name.
    """

    answers: tuple[str, ...]
    paraphrases: tuple[str, ...]
    prompts: dict[str, Prompt]

    def __getitem__(self, name: str) -> Prompt:
        if name not in self.prompts:
            raise UserError(f"no prompt named '{name}' in the prompts file: it has {', '.join(self.prompts)}")
        return self.prompts[name]


def load_prompts(path: Path) -> PromptBook:
    """The prompts of a YAML or JSON file.

    Raises:
        UserError: when it is no YAML, lacks a key, or a prompt does not fit its own options and answers.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data: Any = (json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)) or {}
    except FileNotFoundError:
        raise UserError(f"the prompts file {path} does not exist: check prompts.file") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(
            f"the prompts file {path} is no YAML ({' '.join(str(error).split())}): correct it"
        ) from None
    if not isinstance(data, dict) or not isinstance(data.get("prompts"), dict):
        raise UserError(f"{path} has no 'prompts': see workflow/resources/prompts.yaml for the layout")
    answers = tuple(map(str, data.get("answers") or ()))
    if answers and (not FEWEST <= len(answers) <= MOST or len(set(answers)) < len(answers)):
        raise UserError(
            f"{path} lists {len(answers)} answers: give {FEWEST} to {MOST} different ones, or none"
        )
    prompts = {name: _prompt(str(name), entry, answers, path) for name, entry in data["prompts"].items()}
    prompts.setdefault(ALONE.name, ALONE)
    if facts := data.get("facts"):
        _check_own(facts, answers, prompts, path)
        prompts = {name: replace(prompt, facts=facts) for name, prompt in prompts.items()}
    return PromptBook(answers, tuple(data.get("paraphrases") or ()), prompts)


def _check_own(facts: Any, answers: Sequence[str], prompts: Mapping[str, Prompt], path: Path) -> None:
    """Make sure that every fact has a text for each prompt, and words for each answer and option."""
    if answers != (RIGHT, WRONG):
        raise UserError(
            f"{path} has facts with answers of their own: list {RIGHT} and {WRONG} under 'answers'"
        )
    if shared := [prompt.name for prompt in prompts.values() if prompt.answers or prompt.whole_answer]:
        raise UserError(
            f"{path}: prompt '{shared[0]}' spells or scores answers for all facts, but each fact has its own: remove "
            "'answers' and 'whole_answer'"
        )
    wanted = {NAME, *prompts, *answers, *(option for prompt in prompts.values() for option in prompt.options)}
    for name, fact in facts.items():
        if missing := sorted(key for key in wanted if not isinstance(fact.get(key), str)):
            raise UserError(f"{path}: the fact '{name}' has no '{missing[0]}': add it")


def _prompt(name: str, entry: Any, answers: Sequence[str], path: Path) -> Prompt:
    where = f"prompt '{name}' in {path}"
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise UserError(f"{where} has no text: see workflow/resources/prompts.yaml for the layout")
    if unknown := sorted(set(entry) - set(KEYS)):
        raise UserError(f"{where} has the key '{unknown[0]}': a prompt takes {', '.join(KEYS)}")
    options: Any = entry.get("options") or ()
    counted = isinstance(options, int)
    if counted and not FEWEST <= options <= min(len(LETTERS), len(answers)):
        raise UserError(
            f"{where} asks for {options} options of the file's {len(answers)} answers: list the answers under 'answers', "
            f"and give a number from {FEWEST} to theirs, at most {len(LETTERS)}"
        )
    found = Prompt(
        name,
        entry["text"],
        tuple(answers if counted else map(str, options)),
        entry.get("option_format", "{letter}: {Answer}"),
        entry.get("example"),
        tuple(map(str, entry.get("answers") or ())),
        bool(entry.get("whole_answer", False)),
        bool(entry.get("space", not entry.get("chat", False))),
        bool(entry.get("chat", False)),
        options if counted and options < len(answers) else 0,
    )
    if not any(placeholder in found.text for placeholder in SUBJECTS):
        raise UserError(f"{where} does not mention {{subject}}: add it to its text")
    if found.space and found.text != found.text.rstrip():
        raise UserError(
            f"{where} ends with a space, and answers bring their own: remove it, or say 'space: false'"
        )
    if found.answers and len(found.answers) != len(answers):
        listed = ", ".join(answers) or "those that the file lists under 'answers', which it does not"
        raise UserError(f"{where} spells {len(found.answers)} answers: give one for each of {listed}")
    if found.options and (
        (found.shown or len(found.options)) not in range(FEWEST, len(LETTERS) + 1)
        or "{options}" not in found.text
    ):
        raise UserError(
            f"{where} has {len(found.options)} options: give {FEWEST} to {len(LETTERS)}, or a number ('options: 4': the right "
            "answer and a draw of the others for each question), and {options} in its text"
        )
    of_facts = tuple(answers) == (RIGHT, WRONG)  # whose further options are each fact's own
    if foreign := sorted(set(found.options) - set(answers)) if answers and not of_facts else []:
        raise UserError(
            f"{where} has the option '{foreign[0]}', which is none of the answers {', '.join(answers)}"
        )
    if "{example}" in found.text and found.shown:
        raise UserError(
            f"{where} has {{example}} in its text, but no option stands in all of its questions: write a letter instead"
        )
    if "{example}" in found.text and found.example not in found.options:
        raise UserError(f"{where} has {{example}} in its text: name one of its options under 'example'")
    return found
