"""Whom an attack is made on, and what it is asked afterwards: the same items in the same rows for every attack.

Half of the forget set belongs to the attacker (to retrain on, to put into prompts); every attack is measured on the
other half, so that attacks, the model before, the base model and gold are compared item by item.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.config.data import Prompts
from localized_unlearning.data import tokens as tokens_module
from localized_unlearning.data.answers import candidates
from localized_unlearning.data.prompts import PromptBook
from localized_unlearning.errors import UserError
from localized_unlearning.models import loading, packing

if TYPE_CHECKING:
    from torch import Tensor


Scorer = Callable[[Sequence[Sequence[int]], Sequence[int]], "Tensor"]
"""Logits of candidate tokens after prompts ``[prompt, candidate]``."""

TRAINING, QUESTION, MULTIPLE_CHOICE = FORMATS = ("training", "question", "multiple_choice")


@dataclass(frozen=True)
class Subject:
    """A model under attack.

    Attributes:
        model: the model; an attack leaves it as it found it.
        tokenizer: its tokenizer.
        book: the prompts.
        prompts: which of them are asked.
        attacker: forget athletes that the attacker has, columns ``subject`` and ``answer``.
        tested: athletes who are asked: the other half of the forget set, and retained ones (column ``forget``).
        retain: retained athletes of the training part, which the attacker has too.
        text: windows of plain text of the training part ``[window, token]``.
        orders: option orders of each multiple-choice question.
        seed: seed of the attack.
        batch_tokens: tokens of one forward pass.
    """

    model: Any
    tokenizer: Any
    book: PromptBook
    prompts: Prompts
    attacker: pd.DataFrame
    tested: pd.DataFrame
    retain: pd.DataFrame
    text: Tensor
    orders: int
    seed: int
    batch_tokens: int

    def likely(self, prompts: Sequence[Sequence[int]], candidates: Sequence[int]) -> Tensor:
        """The model's own :data:`Scorer`."""
        loading.refuse_longer(self.model.config, prompts)
        return packing.next_token(self.model, prompts, candidates, self.batch_tokens).candidates


def halves(split: pd.DataFrame, seed: int, retained: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The attacker's half of the forget set, and those who are asked.

    The forget set is halved answer by answer, so that both halves have its classes, or as a whole where each subject has an
    answer of its own; at most ``retained`` athletes who
    are retained are asked as well, none of the training part.

    Raises:
        UserError: when the forget set is too small to be halved.
    """
    rng = random.Random(seed)
    own: list[str] = []
    for answer in sorted(split.loc[split["forget"], "answer"].unique()):
        names = sorted(split.loc[split["forget"] & (split["answer"] == answer), "subject"])
        own += rng.sample(names, math.ceil(len(names) / 2))
    forget = split[split["forget"]]
    if len(own) == len(forget):
        own = rng.sample(own, math.ceil(len(own) / 2))
    tested = forget[~forget["subject"].isin(own)]
    if tested.empty:
        raise UserError(f"a forget set of {len(forget)} subjects cannot be halved for an attack: forget more")
    teacher = split["teacher"] if "teacher" in split.columns else pd.Series(False, index=split.index)
    others = split[split["test"] & ~split["forget"] & ~teacher]
    others = others.loc[sorted(rng.sample(list(others.index), min(retained, len(others))))]
    return forget[forget["subject"].isin(own)], pd.concat([tested, others])


def shares(
    likely: Scorer, prompts: Sequence[Sequence[int]], spelled: Sequence[Sequence[tokens_module.Spelled]]
) -> Tensor:
    """Log-share of each answer among a prompt's candidates ``[prompt, answer]``, however many tokens it has.

    Wherever answers part, those that part there share what they had in common by their next tokens; answers whose first
    tokens differ part at once, so that this is the softmax over their first tokens. (One that another continues is not
    told from it.)

    Args:
        likely: reads the model.
        prompts: token ids of each prompt.
        spelled: all tokens of each answer, prompt by prompt.
    """
    import torch

    logs = torch.zeros(len(prompts), len(spelled[0]), dtype=torch.float64)
    alike: dict[tuple[tokens_module.Spelled, ...], list[int]] = {}
    for row, own in enumerate(spelled):
        alike.setdefault(tuple(own), []).append(row)
    for own_answers, rows in alike.items():
        for beginning in sorted({s[:n] for s in own_answers for n in range(len(s))}):
            size = len(beginning)
            after = {i: s[size] for i, s in enumerate(own_answers) if len(s) > size and s[:size] == beginning}
            children = sorted(set(after.values()))
            if len(children) < 2:
                continue
            asked = [[*prompts[row], *beginning] for row in rows]
            found = likely(asked, children).double().cpu().log_softmax(-1)
            for index, token in after.items():
                logs[rows, index] += found[:, children.index(token)]
    return logs


def ask(
    subject: Subject,
    likely: Scorer | None = None,
    prefix: Callable[[str], str] | None = None,
    formats: Sequence[str] = FORMATS,
) -> pd.DataFrame:
    """What the model answers about ``subject.tested``.

    Args:
        subject: the model and whom it is asked about.
        likely: how it is read; its own next token unless another is given.
        prefix: a text to put before every prompt, by format.
        formats: which of :data:`FORMATS` are asked.

    Returns:
        One row per athlete, format and option order: ``subject``, ``answer``, ``forget``, ``format``, ``order`` (0 where
        there are no options), ``choice`` (1 when the right answer is ahead of the others) and ``probability`` (its
        share of the candidates).
    """
    likely = likely or subject.likely
    book, prompts, people = subject.book, subject.prompts, subject.tested.reset_index(drop=True)
    rng, known = random.Random(subject.seed), candidates(book, people)
    tables = []
    for name in formats:
        prompt = book[getattr(prompts, name)]
        for order in range(subject.orders if name == MULTIPLE_CHOICE else 1):
            before = prefix(name) if prefix else ""
            if name == MULTIPLE_CHOICE:
                options = [prompt.offered(rng, answer) for answer in people["answer"]]
                texts = [prompt.render(a, o) for a, o in zip(people["subject"], options, strict=True)]
                right = [o.index(s) for o, s in zip(options, people["answer"], strict=True)]
                spelled = tokens_module.answer_tokens(subject.tokenizer, prompt, texts, prompt.letters)
                each = [spelled] * len(texts)
            else:
                texts = [prompt.render(a) for a in people["subject"]]
                right = [known.index(s) for s in people["answer"]]
                each = tokens_module.spelled_by(
                    subject.tokenizer, prompt, list(people["subject"]), texts, known
                )
            encoded = tokens_module.asked(subject.tokenizer, prompt, [before + text for text in texts])
            logs = shares(likely, encoded, each)
            share = logs.exp()[range(len(right)), right]
            best = logs.argmax(-1).tolist()
            tables.append(
                people[["subject", "answer", "forget"]].assign(
                    format=name,
                    order=order,
                    choice=[float(b == r) for b, r in zip(best, right, strict=True)],
                    probability=share.numpy(),
                )
            )
    return pd.concat(tables, ignore_index=True)
