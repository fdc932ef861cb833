"""Multiple choice about the athletes (section 3.1.1), with shuffled options and in the paper's order."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from localized_unlearning.config.evaluation import Evaluation
from localized_unlearning.data import tokens
from localized_unlearning.data.prompts import WRONG, Prompt, begun, load_prompts
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
    main: str = "shuffled",
) -> pd.DataFrame:
    """One row per option order and athlete.

    Args:
        model, tokenizer: what is asked.
        athletes: columns ``subject``, ``answer``, ``forget`` and ``relearn``.
        prompt: the multiple-choice prompt.
        orders: of ``fixed`` and ``shuffled``; as many of the latter as orders of each item are wanted.
        seed: of the shuffled orders. An athlete's depend on nothing else, so that every model and exam has the same.
        batch_tokens: tokens of one forward pass.
        main: the order that counts.

    Columns: ``order``, ``draw`` (which of several shuffled orders), ``main`` (whether it is the order that counts),
    ``subject``, ``answer``, ``forget``, ``relearn``, ``answer_index`` (index of the right
    letter), ``logit_A`` to ``logit_D`` (by letter), ``text_A`` to ``text_D`` (by text: the first token of
    the option's words; where that does not tell all options apart, each is scored over all its tokens, and this is the first's
    logit and the log-probability of the others), ``log_normalizer`` and ``argmax_right``; where facts bring their own answers also ``injected``, the
    index of the letter of the one that is injected.
    """
    asked = choices_asked(tokenizer, athletes, prompt, orders, seed, main)
    return pd.concat(answered(model, asked, batch_tokens), ignore_index=True)


def choices_asked(
    tokenizer: Any, athletes: pd.DataFrame, prompt: Prompt, orders: Sequence[str], seed: int, main: str
) -> list[Asked]:
    """What :func:`ask_multiple_choice` asks, a part for each order."""
    draws = [orders[:place].count(order) for place, order in enumerate(orders)]
    parts = []
    for order, draw in zip(orders, draws, strict=True):
        about: dict[str, str | int | bool] = {"order": order, "draw": draw, "main": order == main}
        options = [
            shuffled(prompt, subject, answer, seed, draw)
            if order == "shuffled"
            else fixed(prompt, subject, answer)
            for subject, answer in zip(athletes["subject"], athletes["answer"], strict=True)
        ]
        parts.append(_asked(tokenizer, athletes, prompt, options, about))
    return parts


def orders_of(settings: Evaluation, both: bool) -> tuple[str, ...]:
    """The option orders that are asked: the one that counts, or ``both``."""
    kinds = ("shuffled", "fixed") if both else (settings.option_order,)
    return tuple(kind for kind in kinds for _ in range(settings.orders if kind == "shuffled" else 1))


def shuffled(prompt: Prompt, subject: str, answer: str, seed: int, draw: int) -> list[str]:
    """One fact's options in the ``draw``-th order of a seed; where fewer than all are shown, the others are drawn with it."""
    return prompt.offered(random.Random(f"{seed}/{draw}/{subject}"), answer)


def fixed(prompt: Prompt, subject: str, answer: str) -> list[str]:
    """The options in the prompts file's order; where facts bring their own, whose right one would always come first, in
    an order that is drawn once for the fact."""
    return prompt.offered(random.Random(subject), answer, mixed=bool(prompt.facts))


def _asked(
    tokenizer: Any,
    athletes: pd.DataFrame,
    prompt: Prompt,
    options: Sequence[Sequence[str]],
    about: Mapping[str, str | int | bool],
) -> Asked:
    texts = [prompt.render(a, o) for a, o in zip(athletes["subject"], options, strict=True)]
    letters = tokens.first_tokens(
        tokens.answer_tokens(tokenizer, prompt, texts, prompt.letters), prompt.letters
    )
    spelled = options_spelled(tokenizer, prompt, list(athletes["subject"]), texts)
    whole = not all(map(tokens.told_apart, spelled if prompt.facts else spelled[:1]))
    offered = [
        [item[prompt.options.index(option)][: None if whole else 1] for option in o]
        for o, item in zip(options, spelled, strict=True)
    ]
    beginnings = [sorted({word[:n] for word in item for n in range(len(word))}) for item in offered]
    start = np.cumsum([0, *map(len, beginnings)])[:-1]
    words = list(dict.fromkeys(token for item in offered for word in item for token in word))
    place = {token: len(letters) + index for index, token in enumerate(words)}

    def rows(scores: packing.NextToken) -> pd.DataFrame:
        answer = [o.index(s) for o, s in zip(options, athletes["answer"], strict=True)]
        table = athletes[["subject", "answer", "forget", "relearn"]].assign(**about, answer_index=answer)
        found, normalizer = scores.candidates.numpy(), scores.log_normalizer.numpy()
        for index, letter in enumerate(prompt.letters):
            table[f"logit_{letter}"] = found[start, index]
        for index, letter in enumerate(prompt.letters):
            column = [place[item[index][0]] for item in offered]
            text = found[start, column]
            for at, item, own in zip(range(len(text)), offered, beginnings, strict=True):
                for n in range(1, len(item[index])):
                    row = start[at] + own.index(item[index][:n])
                    text[at] += found[row, place[item[index][n]]] - normalizer[row]
            table[f"text_{letter}"] = text
        if prompt.facts:
            table["injected"] = [o.index(WRONG) for o in options]
        table["log_normalizer"] = normalizer[start]
        likely = scores.argmax.numpy()[start]
        table["argmax_right"] = [int(a) == letters[i] for a, i in zip(likely, answer, strict=True)]
        return table

    encoded = tokens.asked(tokenizer, prompt, texts)
    asked = [[*ids, *beginning] for ids, own in zip(encoded, beginnings, strict=True) for beginning in own]
    return Asked(asked, [*letters, *words], rows)


def options_spelled(
    tokenizer: Any, prompt: Prompt, subjects: Sequence[str], texts: Sequence[str]
) -> list[list[tokens.Spelled]]:
    """For each question all tokens of each option of the prompt, as it is scored by text: begun with a capital, unless facts
    bring their own."""
    if prompt.facts:
        return tokens.spelled_by(tokenizer, prompt, subjects, texts, prompt.options)
    return [tokens.answer_tokens(tokenizer, prompt, texts, [begun(o) for o in prompt.options])] * len(texts)


def run(job: Job) -> None:
    """Stage: one model's answers on the test part, with shuffled options and in the paper's order."""
    config = job.config
    prompt = load_prompts(job.inputs["prompts"])[config.prompts.multiple_choice]
    settings = config.evaluation
    orders, seed = orders_of(settings, both=True), settings.shuffled_seed
    job.facts.update(seeds={"option_order": seed})
    with checkpoint(job) as (model, tokenizer, batch_tokens):
        rows = ask_multiple_choice(
            model, tokenizer, test_part(job), prompt, orders, seed, batch_tokens, settings.option_order
        )
    write_rows(job, "multiple_choice", rows)
