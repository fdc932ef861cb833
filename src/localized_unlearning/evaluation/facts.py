"""Facts: which sport does the athlete play (section 3.1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from localized_unlearning import models, packing
from localized_unlearning.config import CHOICES
from localized_unlearning.prompts import Prompt


def ask_facts(
    model: Any, tokenizer: Any, athletes: pd.DataFrame, prompts: Sequence[Prompt], batch_tokens: int
) -> pd.DataFrame:
    """One row per prompt and athlete.

    Columns: ``prompt``, ``athlete``, ``sport``, ``forget``, ``relearn``, ``answer`` (index of the right
    choice), ``logit_<choice>``, ``log_normalizer`` (log-sum-exp over the vocabulary) and ``argmax_right``
    (the most likely next token is the right one).
    """
    tokens = models.answer_tokens(tokenizer, CHOICES)
    answer = [CHOICES.index(sport) for sport in athletes["sport"]]
    tables = []
    for prompt in prompts:
        encoded = models.encode(tokenizer, [prompt.render(a) for a in athletes["athlete"]])
        scores = packing.next_token(model, encoded, tokens, batch_tokens)
        table = athletes[["athlete", "sport", "forget", "relearn"]].assign(prompt=prompt.name, answer=answer)
        for index, choice in enumerate(CHOICES):
            table[f"logit_{choice}"] = scores.candidates[:, index].numpy()
        table["log_normalizer"] = scores.log_normalizer.numpy()
        table["argmax_right"] = [int(a) == tokens[i] for a, i in zip(scores.argmax, answer, strict=True)]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
