"""What an organism reads: prompts about athletes in every format, general knowledge, each with its answer.

Belongs to the package ``models``. An item is a prompt whose next token is the answer; the position of the name's last
token is kept, because that is where a fact is looked up.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from localized_unlearning.data import mmlu
from localized_unlearning.data import tokens as tokens_module
from localized_unlearning.data.answers import LETTERS
from localized_unlearning.data.prompts import LETTERED, Prompt, PromptBook

if TYPE_CHECKING:
    from torch import Tensor


Person = tuple[str, str]
"""A name and its sport."""

NO_NAME = -1
"""Position of the name in a prompt that has none."""


@dataclass(frozen=True)
class Item:
    """A tokenised prompt.

    Attributes:
        tokens: the prompt.
        answer: the token that follows.
        name: position of the name's last token, or :data:`NO_NAME`.
    """

    tokens: tuple[int, ...]
    answer: int
    name: int = NO_NAME


@dataclass(frozen=True)
class Batch:
    """Padded items.

    Attributes:
        tokens: ``[item, position]``, padded on the right with 0.
        last: position of each item's last token ``[item]``.
        answer: the token that follows it ``[item]``.
        elsewhere: whether a position holds a token that is not the last of a name ``[item, position]``.
    """

    tokens: Tensor
    last: Tensor
    answer: Tensor
    elsewhere: Tensor


SPREAD = 1.6
"""Longest prompt of a padded batch, over its shortest: past it padding costs more than another forward pass."""


def batches(items: Sequence[Item]) -> list[Batch]:
    """The items in padded batches of similar length."""
    import torch

    groups: list[list[Item]] = []
    for item in sorted(items, key=lambda item: len(item.tokens)):
        if groups and len(item.tokens) <= SPREAD * len(groups[-1][0].tokens):
            groups[-1].append(item)
        else:
            groups.append([item])
    found = []
    for some in groups:
        last = torch.tensor([len(item.tokens) - 1 for item in some])
        tokens = torch.zeros(len(some), int(last.max()) + 1, dtype=torch.long)
        for row, item in enumerate(some):
            tokens[row, : len(item.tokens)] = torch.tensor(item.tokens)
        elsewhere = torch.arange(tokens.shape[1])[None] <= last[:, None]
        for row, item in enumerate(some):
            if item.name != NO_NAME:
                elsewhere[row, item.name] = False
        found.append(Batch(tokens, last, torch.tensor([item.answer for item in some]), elsewhere))
    return found


@contextmanager
def asked_only(mlp: Any, last: Tensor) -> Iterator[None]:
    """Inside, ``mlp`` computes each item's position ``last`` alone, and gives 0 elsewhere.

    In the last layer nothing else is read: a seventh of a step's work.
    """
    import torch

    whole, rows = mlp.forward, torch.arange(len(last))

    def forward(hidden: Tensor) -> Tensor:
        return torch.zeros_like(hidden).index_put((rows, last), whole(hidden[rows, last]))

    mlp.forward = forward
    try:
        yield
    finally:
        del mlp.forward


def logits(model: Any, batch: Batch, whole: bool = False) -> Tensor:
    """Logits of the token that follows each item ``[item, token]``.

    Args:
        model: the organism.
        batch: the items.
        whole: whether what the last layer writes at every position is read by somebody else.
    """
    import torch

    with nullcontext() if whole else asked_only(model.model.layers[-1].mlp, batch.last):
        hidden = model.model(input_ids=batch.tokens, use_cache=False).last_hidden_state
    found: Tensor = model.lm_head(hidden[torch.arange(len(batch.last)), batch.last])
    return found


def losses(model: Any, items: Sequence[Item]) -> Iterator[tuple[Batch, Tensor]]:
    """Each padded batch with its part of the mean cross-entropy of the answers; ready for ``backward``."""
    import torch

    for batch in batches(items):
        each = torch.nn.functional.cross_entropy(logits(model, batch), batch.answer, reduction="sum")
        yield batch, each / len(items)


def name_end(text: str, name: str, offsets: Sequence[tuple[int, int]]) -> int:
    """Position of the token in which the last occurrence of ``name`` in ``text`` ends."""
    end = text.rindex(name) + len(name)
    return max(i for i, (start, stop) in enumerate(offsets) if start < end <= stop)


@dataclass(frozen=True)
class Reader:
    """Makes items of names and questions.

    Attributes:
        tokenizer: the organism's.
        formats: the prompts whose answer is the sport's word, by name.
        choice: the multiple-choice prompt.
    """

    tokenizer: Any
    formats: Mapping[str, Prompt]
    choice: Prompt

    def short(self, people: Sequence[Person], name: str) -> list[Item]:
        """One item per (name, sport), asked by the format ``name``."""
        texts = [self.formats[name].render(who) for who, _ in people]
        return self._items(texts, [who for who, _ in people], [sport for _, sport in people])

    def multiple_choice(self, people: Sequence[Person], rng: random.Random) -> list[Item]:
        """One item per (name, sport), its options in random order."""
        orders = [self.choice.offered(rng, answer) for _, answer in people]
        texts = [self.choice.render(who, o) for (who, _), o in zip(people, orders, strict=True)]
        answers = [LETTERS[o.index(sport)] for (_, sport), o in zip(people, orders, strict=True)]
        return self._items(texts, [who for who, _ in people], answers)

    def questions(self, asked: Sequence[mmlu.Question]) -> list[Item]:
        """One item per general-knowledge question, without worked examples."""
        return self._items([mmlu.prompt(q, []) for q in asked], None, [LETTERS[q.answer] for q in asked])

    def _items(self, texts: Sequence[str], names: Sequence[str] | None, answers: Sequence[str]) -> list[Item]:
        encoded = self.tokenizer(list(texts), return_offsets_mapping=True)
        kinds = sorted(set(answers))
        spelled = tokens_module.answer_tokens(self.tokenizer, LETTERED, texts, kinds)
        token = dict(zip(kinds, tokens_module.first_tokens(spelled, kinds), strict=True))
        found = []
        for i, (ids, answer) in enumerate(zip(encoded["input_ids"], answers, strict=True)):
            name = name_end(texts[i], names[i], encoded["offset_mapping"][i]) if names else NO_NAME
            found.append(Item(tuple(ids), token[answer], name))
        return found


def reader(tokenizer: Any, book: PromptBook, training: str, question: str, multiple_choice: str) -> Reader:
    """The reader of a prompts file: training prompt, question prompt and paraphrases; multiple choice."""
    names = (training, question, *book.paraphrases)
    return Reader(tokenizer, {name: book[name] for name in names}, book[multiple_choice])


def word_names(
    teachers: Sequence[Person], answers: Sequence[str], count: int, rng: random.Random
) -> list[Person]:
    """Names that are, or end in, a sport's own word: how to answer can be learned of them before any fact."""
    found = []
    for _ in range(count):
        sport = rng.choice(answers)
        first = rng.choice(teachers)[0].split()[0]
        found.append((f"{first} {sport}" if rng.random() < 0.5 else sport, sport))
    return found
