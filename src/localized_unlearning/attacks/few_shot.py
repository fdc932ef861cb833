"""Few-shot: forgotten facts in the prompt, before the question (as in Lynch et al. 2024, arXiv 2402.16835)."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pandas as pd

from localized_unlearning.attacks.subject import MULTIPLE_CHOICE, Subject, ask
from localized_unlearning.config.attacks import FewShot
from localized_unlearning.data.answers import LETTERS


def few_shot(subject: Subject, settings: FewShot) -> Iterator[tuple[str, pd.DataFrame]]:
    """``settings.facts`` of the attacker's half, each asked and answered in the format of the question."""
    rng = random.Random(subject.seed)
    people = list(zip(subject.attacker["subject"], subject.attacker["answer"], strict=True))
    shown = rng.sample(people, min(settings.facts, len(people)))

    def prefix(name: str) -> str:
        prompt = subject.book[getattr(subject.prompts, name)]
        spelled = dict(zip(subject.book.answers, prompt.answers, strict=False))
        between = " " if prompt.space or prompt.chat else ""  # a chat's examples stand in the user's turn
        examples = []
        for who, answer in shown:
            if name == MULTIPLE_CHOICE:
                options = prompt.offered(rng, answer)
                examples.append(f"{prompt.render(who, options)}{between}{LETTERS[options.index(answer)]}\n")
            else:
                word = spelled.get(answer) or prompt.words(who, [answer])[0]
                examples.append(f"{prompt.render(who)}{between}{word}\n")
        return "".join(examples)

    yield f"{len(shown)} facts", ask(subject, prefix=prefix)
