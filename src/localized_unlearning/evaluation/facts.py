"""Facts: which sport does the athlete play (section 3.1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from localized_unlearning.data import tokens as tokens_module
from localized_unlearning.data.answers import CHOICES
from localized_unlearning.data.prompts import Prompt
from localized_unlearning.models import packing


def ask_facts(
    model: Any, tokenizer: Any, athletes: pd.DataFrame, prompts: Sequence[Prompt], batch_tokens: int
) -> pd.DataFrame:
    """One row per prompt and athlete.

    Columns: ``prompt``, ``athlete``, ``sport``, ``forget``, ``relearn``, ``answer`` (index of the right
    choice), ``logit_<choice>``, ``log_normalizer`` (log-sum-exp over the vocabulary) and ``argmax_right``
    (the most likely next token is the right one). For a prompt that scores whole answers ``logit_<choice>`` is
    the log-probability of all the answer's tokens, ``log_normalizer`` is 0, and ``argmax_right`` says that each
    of the right answer's tokens is the most likely after those before.
    """
    answer = [CHOICES.index(sport) for sport in athletes["sport"]]
    tables = []
    for prompt in prompts:
        encoded = tokens_module.encode(tokenizer, [prompt.render(a) for a in athletes["athlete"]])
        words = prompt.answers or CHOICES
        if prompt.whole_answer:
            scores, normalizer, right = whole_answers(model, tokenizer, encoded, words, answer, batch_tokens)
        else:
            tokens = tokens_module.answer_tokens(tokenizer, words)
            next_ = packing.next_token(model, encoded, tokens, batch_tokens)
            scores, normalizer = next_.candidates.numpy(), next_.log_normalizer.numpy()
            right = [int(a) == tokens[i] for a, i in zip(next_.argmax, answer, strict=True)]
        table = athletes[["athlete", "sport", "forget", "relearn"]].assign(prompt=prompt.name, answer=answer)
        for index, choice in enumerate(CHOICES):
            table[f"logit_{choice}"] = scores[:, index]
        tables.append(table.assign(log_normalizer=normalizer, argmax_right=right))
    return pd.concat(tables, ignore_index=True)


def whole_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[str],
    right: Sequence[int],
    batch_tokens: int,
) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    """Log-probability of each whole answer after each prompt ``[prompt, answer]``.

    Every beginning of an answer is a prompt of its own, whose next token is scored; packing computes what they
    share once.

    Returns:
        The log-probabilities, zeros in place of a normalizer ``[prompt]``, and whether greedy decoding gives the
        right answer.
    """
    spelled = [tokenizer(f" {a}", add_special_tokens=False)["input_ids"] for a in answers]
    beginnings = sorted({tuple(s[:n]) for s in spelled for n in range(len(s))})
    vocabulary = sorted({token for s in spelled for token in s})
    asked = [[*prompt, *beginning] for prompt in prompts for beginning in beginnings]
    found = packing.next_token(model, asked, vocabulary, batch_tokens)
    logs = (found.candidates - found.log_normalizer[:, None]).numpy()
    logs = logs.reshape(len(prompts), len(beginnings), len(vocabulary))
    likely = found.argmax.numpy().reshape(len(prompts), len(beginnings))
    total, greedy = np.zeros((len(prompts), len(answers))), np.ones((len(prompts), len(answers)), dtype=bool)
    for index, tokens in enumerate(spelled):
        for n, token in enumerate(tokens):
            place = beginnings.index(tuple(tokens[:n]))
            total[:, index] += logs[:, place, vocabulary.index(token)]
            greedy[:, index] &= likely[:, place] == token
    return total, np.zeros(len(prompts)), [bool(greedy[row, i]) for row, i in enumerate(right)]
