"""Multiple choice about the athletes (section 3.1.1), in the paper's option order and shuffled."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.data import tokens
from localized_unlearning.data.answers import LETTERS
from localized_unlearning.data.prompts import Prompt, load_prompts
from localized_unlearning.evaluation.asking import Asked, answered
from localized_unlearning.evaluation.rows import test_part, write_rows
from localized_unlearning.models import packing
from localized_unlearning.models.checkpoint import checkpoint

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


def ask_multiple_choice(
    model: Any,
    tokenizer: Any,
    athletes: pd.DataFrame,
    prompt: Prompt,
    orders: Sequence[str],
    seed: int,
    batch_tokens: int,
) -> pd.DataFrame:
    """One row per option order (of ``fixed`` and ``shuffled``) and athlete.

    Columns: ``order``, ``athlete``, ``sport``, ``forget``, ``relearn``, ``answer`` (index of the right
    letter), ``logit_A`` to ``logit_D`` (by letter), ``text_A`` to ``text_D`` (by text: the first token of
    the option's word), ``log_normalizer`` and ``argmax_right``.
    """
    asked = choices_asked(tokenizer, athletes, prompt, orders, seed)
    return pd.concat(answered(model, asked, batch_tokens), ignore_index=True)


def choices_asked(
    tokenizer: Any, athletes: pd.DataFrame, prompt: Prompt, orders: Sequence[str], seed: int
) -> list[Asked]:
    """What :func:`ask_multiple_choice` asks, a part for each order."""
    rng = random.Random(seed)
    return [_asked(tokenizer, athletes, prompt, order, rng) for order in orders]


def _asked(tokenizer: Any, athletes: pd.DataFrame, prompt: Prompt, order: str, rng: random.Random) -> Asked:
    letters = tokens.answer_tokens(tokenizer, LETTERS)
    words = tokens.answer_tokens(tokenizer, [option.capitalize() for option in prompt.options])
    options = [
        list(prompt.options) if order == "fixed" else rng.sample(prompt.options, len(prompt.options))
        for _ in range(len(athletes))
    ]
    texts = [prompt.render(a, o) for a, o in zip(athletes["athlete"], options, strict=True)]

    def rows(scores: packing.NextToken) -> pd.DataFrame:
        answer = [o.index(s) for o, s in zip(options, athletes["sport"], strict=True)]
        table = athletes[["athlete", "sport", "forget", "relearn"]].assign(order=order, answer=answer)
        where = [[len(letters) + prompt.options.index(option) for option in o] for o in options]
        for index, letter in enumerate(LETTERS):
            table[f"logit_{letter}"] = scores.candidates[:, index].numpy()
        for index, letter in enumerate(LETTERS):
            column = [w[index] for w in where]
            table[f"text_{letter}"] = scores.candidates[range(len(column)), column].numpy()
        table["log_normalizer"] = scores.log_normalizer.numpy()
        table["argmax_right"] = [int(a) == letters[i] for a, i in zip(scores.argmax, answer, strict=True)]
        return table

    return Asked(tokens.encode(tokenizer, texts), [*letters, *words], rows)


def run(job: Job) -> None:
    """Stage: one model's answers on the test part, in the paper's option order and shuffled."""
    config = job.config
    prompt = load_prompts(job.inputs["prompts"])[config.prompts.multiple_choice]
    seed = config.evaluation.shuffled_seed
    job.facts.update(seeds={"option_order": seed})
    with checkpoint(job) as (model, tokenizer, batch_tokens):
        rows = ask_multiple_choice(
            model, tokenizer, test_part(job), prompt, ("fixed", "shuffled"), seed, batch_tokens
        )
    write_rows(job, "multiple_choice", rows)
