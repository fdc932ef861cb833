"""The base model and athletes that probes and ablations look at (A.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from localized_unlearning.config.evaluation import Interpretability
from localized_unlearning.data import tokens
from localized_unlearning.data import windows as windows_module
from localized_unlearning.data.answers import candidates, occurring
from localized_unlearning.data.documents import read_documents
from localized_unlearning.data.prompts import NAME, load_prompts
from localized_unlearning.errors import UserError
from localized_unlearning.interpretability.probes import Fit
from localized_unlearning.models import components, loading, packing
from localized_unlearning.models import device as device_module

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.data.prompts import PromptBook
    from localized_unlearning.jobs.job import Job


def test_rows(sports: Sequence[str], settings: Interpretability) -> np.ndarray:
    """Which athletes test the probe ``[athlete]``: seeded and stratified by sport.

    Raises:
        UserError: when the test part, or what is left, is smaller than the number of answers.
    """
    from sklearn.model_selection import train_test_split

    part, classes = math.ceil(settings.test_fraction * len(sports)), len(set(sports))
    if min(part, len(sports) - part) < classes:
        raise UserError(
            f"interpretability.test_fraction {settings.test_fraction:g} of {len(sports)} known subjects leaves {part} to test "
            f"and {len(sports) - part} to train a probe of {classes} answers, and each needs {classes}: change it or add facts"
        )
    index = np.arange(len(sports))
    _, test = train_test_split(
        index, test_size=settings.test_fraction, random_state=settings.seed, stratify=list(sports)
    )
    return np.isin(index, test)


@dataclass(frozen=True)
class Subject:
    """The base model and the athletes that it is probed for.

    Attributes:
        model, tokenizer: the base model.
        athletes: names of the known athletes, in file order.
        sports: index of the answer ``[athlete]``.
        test: which of them test the probes ``[athlete]``.
        book: the prompts.
        windows: the text windows that means are taken over ``[window, token]``.
        device: where the model is.
    """

    model: Any
    tokenizer: Any
    athletes: pd.Series
    sports: np.ndarray
    test: np.ndarray
    book: PromptBook
    windows: Tensor
    device: str

    def encode(self, prompt: str) -> list[list[int]]:
        """Token ids of a prompt about every athlete."""
        found = self.book[prompt]
        return tokens.asked(self.tokenizer, found, [found.render(a) for a in self.athletes])

    def encode_names(self, prompt: str) -> list[list[int]]:
        """Token ids of a prompt about every athlete, up to the last token of the name."""
        found, names = self.book[prompt], list(self.athletes)
        said = [found.own(name)[NAME] for name in names] if found.facts else names
        begun = tokens.beginnings(self.tokenizer, found, [found.render(name) for name in names], said)
        full = self.encode(prompt)
        return [ids[: packing.shared_beginning(ids, start)] for ids, start in zip(full, begun, strict=True)]

    def fit(self, activations: np.ndarray, labels: np.ndarray) -> Fit:
        """The probes of activations ``[athlete, hidden]`` for labels ``[target, athlete]``."""
        return Fit(activations[~self.test], labels[:, ~self.test], activations[self.test])


def load_subject(job: Job) -> Subject:
    """What a stage of this module reads.

    Raises:
        UserError: when ``lookup_end`` is no layer of the model, so that no attention would be ablated.
    """

    config, settings = job.config, job.config.interpretability
    device = device_module.setup(config.compute)
    model, tokenizer = loading.load(job.inputs["base_model"], config.model.dtype, device)
    layers = components.geometry_of(model.config).layers
    if settings.lookup_end >= layers:
        raise UserError(
            f"interpretability.lookup_end is {settings.lookup_end}, but the model's layers are 0 to {layers - 1}: "
            "name the first layer past fact lookup"
        )
    known = pd.read_parquet(job.inputs["known"])
    known = known[known["known"]].reset_index(drop=True)
    book = load_prompts(job.inputs["prompts"])
    answers = occurring(candidates(book, known), known)
    text = read_documents(job.inputs["text"], config.text.documents)
    return Subject(
        model,
        tokenizer,
        known["subject"],
        np.array([answers.index(s) for s in known["answer"]]),
        test_rows(list(known["answer"]), settings),
        book,
        windows_module.text_windows(tokenizer, text, config.text.tokens, settings.mean_windows),
        device,
    )
