"""Facts: which of the candidate answers does the model give (section 3.1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from localized_unlearning.data import tokens as tokens_module
from localized_unlearning.data.answers import candidates
from localized_unlearning.data.prompts import Prompt, load_prompts
from localized_unlearning.evaluation.asking import Asked, answered
from localized_unlearning.evaluation.rows import test_part, write_rows
from localized_unlearning.models import packing
from localized_unlearning.models.checkpoint import checkpoint

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


def ask_facts(
    model: Any,
    tokenizer: Any,
    athletes: pd.DataFrame,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    batch_tokens: int,
) -> pd.DataFrame:
    """One row per prompt and subject.

    Columns: ``prompt``, ``subject``, ``answer``, ``forget``, ``relearn``, ``answer_index`` (index of the right
    choice), ``logit_<choice>``, ``log_normalizer`` (log-sum-exp over the vocabulary) and ``argmax_right``
    (the most likely next token is the right one). Where whole answers are scored (the prompt says so, or two answers
    begin with the same token) ``logit_<choice>`` is the log-probability of all the answer's tokens, ``log_normalizer`` is 0, and ``argmax_right`` says that each
    of the right answer's tokens is the most likely after those before.
    """
    asked = facts_asked(tokenizer, athletes, prompts, answers)
    return pd.concat(answered(model, asked, batch_tokens), ignore_index=True)


def facts_asked(
    tokenizer: Any, athletes: pd.DataFrame, prompts: Sequence[Prompt], answers: Sequence[str]
) -> list[Asked]:
    """What :func:`ask_facts` asks, a part for each prompt."""
    return [_asked(tokenizer, athletes, prompt, answers) for prompt in prompts]


def _asked(tokenizer: Any, athletes: pd.DataFrame, prompt: Prompt, answers: Sequence[str]) -> Asked:
    answer = [answers.index(sport) for sport in athletes["answer"]]
    texts = [prompt.render(a) for a in athletes["subject"]]
    encoded = tokens_module.asked(tokenizer, prompt, texts)
    each = tokens_module.spelled_by(tokenizer, prompt, list(athletes["subject"]), texts, answers)
    spelled = each[0] if each else []
    whole = not prompt.facts and (prompt.whole_answer or not tokens_module.told_apart(spelled))
    first = np.array([[own[0] for own in item] for item in each], dtype=np.int64)
    if whole:
        beginnings = sorted({tuple(s[:n]) for s in spelled for n in range(len(s))})
        tokens = sorted({token for s in spelled for token in s})
        asked = [[*ids, *beginning] for ids in encoded for beginning in beginnings]
    else:
        asked, tokens = encoded, sorted(set(first.ravel().tolist()))

    def rows(found: packing.NextToken) -> pd.DataFrame:
        if whole:
            scores, normalizer, right = whole_answers(found, spelled, beginnings, tokens, answer)
        else:
            place = np.arange(len(first))[:, None], np.searchsorted(tokens, first)
            scores, normalizer = found.candidates.numpy()[place], found.log_normalizer.numpy()
            right = [int(a) == own[i] for a, own, i in zip(found.argmax, first, answer, strict=True)]
        table = athletes[["subject", "answer", "forget", "relearn"]].assign(
            prompt=prompt.name, answer_index=answer
        )
        for index, choice in enumerate(answers):
            table[f"logit_{choice}"] = scores[:, index]
        return table.assign(log_normalizer=normalizer, argmax_right=right)

    return Asked(asked, tokens, rows)


def whole_answers(
    found: packing.NextToken,
    spelled: Sequence[Sequence[int]],
    beginnings: Sequence[tuple[int, ...]],
    tokens: Sequence[int],
    right: Sequence[int],
) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    """Log-probability of each whole answer after each prompt ``[prompt, answer]``.

    Every beginning of an answer is a prompt of its own, whose next token is scored; packing computes what they
    share once.

    Args:
        found: scores of ``tokens`` after each prompt with each beginning, prompt by prompt.
        spelled: the tokens of each answer.
        beginnings: every beginning of an answer, the empty one among them.
        tokens: every token of an answer.
        right: which of the answers is right ``[prompt]``.

    Returns:
        The log-probabilities, zeros in place of a normalizer ``[prompt]``, and whether greedy decoding gives the
        right answer.
    """
    count = len(right)
    logs = (
        (found.candidates - found.log_normalizer[:, None])
        .numpy()
        .reshape(count, len(beginnings), len(tokens))
    )
    likely = found.argmax.numpy().reshape(count, len(beginnings))
    total, greedy = np.zeros((count, len(spelled))), np.ones((count, len(spelled)), dtype=bool)
    for index, answer in enumerate(spelled):
        for n, token in enumerate(answer):
            place = beginnings.index(tuple(answer[:n]))
            total[:, index] += logs[:, place, tokens.index(token)]
            greedy[:, index] &= likely[:, place] == token
    return total, np.zeros(count), [bool(greedy[row, i]) for row, i in enumerate(right)]


def prompts_of(job: Job) -> tuple[Prompt, ...]:
    """The prompts on which facts are asked: training, question, and those that the config adds."""
    book = load_prompts(job.inputs["prompts"])
    config = job.config
    names = (config.prompts.training, config.prompts.question, *config.evaluation.prompts)
    return tuple(book[name] for name in names)


def run(job: Job) -> None:
    """Stage: one model's answers on the test part, prompt by prompt."""
    athletes = test_part(job)
    answers = candidates(load_prompts(job.inputs["prompts"]), athletes)
    with checkpoint(job) as (model, tokenizer, tokens):
        rows = ask_facts(model, tokenizer, athletes, prompts_of(job), answers, tokens)
    write_rows(job, "facts", rows)
