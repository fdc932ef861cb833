"""What each fact is trained on: its answer, or an injected one (A.1)."""

from __future__ import annotations

import random

import pandas as pd

from localized_unlearning.config.unlearning import RANDOM, Objective


def targets(split: pd.DataFrame, objective: Objective, seed: int) -> list[str]:
    """The answer that each row of ``split`` is trained on: its own, or for injected facts a false one.

    A false answer that is drawn is one of the answers that the facts of ``split`` have.
    """
    rng = random.Random(seed)
    classes = sorted(set(split["answer"]))
    answers = []
    for answer, forget in zip(split["answer"], split["forget"], strict=True):
        if forget and objective.loss == "inject":
            others = [other for other in classes if other != answer]
            answers.append(rng.choice(others) if objective.target == RANDOM else objective.target)
        else:
            answers.append(answer)
    return answers
