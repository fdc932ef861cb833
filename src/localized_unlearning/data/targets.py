"""What each fact is trained on: its answer, or an injected one (A.1)."""

from __future__ import annotations

import random

import pandas as pd

from localized_unlearning.config.unlearning import Objective
from localized_unlearning.data.answers import SPORTS


def targets(split: pd.DataFrame, objective: Objective, seed: int) -> list[str]:
    """The answer that each row of ``split`` is trained on: the sport, or for injected facts a false one."""
    rng = random.Random(seed)
    answers = []
    for sport, forget in zip(split["sport"], split["forget"], strict=True):
        if forget and objective.loss == "inject":
            others = [s for s in SPORTS if s != sport]
            answers.append("golf" if objective.target == "golf" else rng.choice(others))
        else:
            answers.append(sport)
    return answers
