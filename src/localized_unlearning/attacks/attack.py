"""The stage of all attacks: one model, one attack, one row per item."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.attacks import few_shot, logit_lens, retraining, soft_prompt, weights
from localized_unlearning.attacks.subject import Subject, ask, halves
from localized_unlearning.data import windows
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.data.splits import read_split
from localized_unlearning.errors import UserError
from localized_unlearning.evaluation.rows import identity
from localized_unlearning.models import device as device_module
from localized_unlearning.models import loading
from localized_unlearning.models.deltas import unlearned

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


HALVING = 0
"""Seed of the halves of the forget set: the same for every model, so that all are asked the same items."""

NONE = "asked"
"""The attack that does nothing: what the others are compared with."""


def nothing(subject: Subject, _settings: Any) -> Iterator[tuple[str, pd.DataFrame]]:
    """The model as it is."""
    yield "", ask(subject)


ATTACKS: dict[str, Callable[[Subject, Any], Iterator[tuple[str, pd.DataFrame]]]] = {
    NONE: nothing,
    "half_and_half": retraining.half_and_half,
    "half_and_half_false": retraining.half_and_half_false,
    "retain_only": retraining.retain_only,
    "search": retraining.search,
    "few_shot": few_shot.few_shot,
    "quantization": weights.quantization,
    "soft_prompt": soft_prompt.soft_prompt,
    "logit_lens": logit_lens.logit_lens,
    "noise": weights.noise,
    "pruning": weights.pruning,
}
"""Every attack by its name: it leaves the model as it found it, and yields the rows of each of its cells."""


def made(subject: Subject, attack: str, settings: Any) -> pd.DataFrame:
    """The rows of all cells of an attack: those of :func:`ask`, with columns ``attack`` and ``cell``."""
    tables = [rows.assign(attack=attack, cell=cell) for cell, rows in ATTACKS[attack](subject, settings)]
    return pd.concat(tables, ignore_index=True)


def run(job: Job) -> None:
    """Stage: one attack on the base model, on gold or on an unlearned model.

    Raises:
        UserError: for a sharded model, whose weights the attacks do not change.
    """
    config, attack, seed = job.config, job.wildcards["attack"], int(job.wildcards["seed"])
    if config.compute.shards > 1:
        raise UserError("attacks run on whole models: set compute.shards to 1")
    device = device_module.setup(config.compute)
    model, tokenizer = loading.load(job.inputs["base_model"], config.model.dtype, device)
    split = read_split(job.inputs["split"])
    attacker, tested = halves(split, HALVING, config.attacks.asked.retained)
    subject = Subject(
        model,
        tokenizer,
        load_prompts(job.inputs["prompts"]),
        config.prompts,
        attacker,
        tested,
        split[split["train"] & ~split["forget"]],
        windows.read_windows(job.inputs["text"], tokenizer, config.text.tokens, config.text.documents),
        config.attacks.asked.orders,
        seed,
        device_module.batch_tokens(config.compute, model),
    )
    settings = getattr(config.attacks, attack)
    with unlearned(job, model):
        rows = made(subject, attack, settings)
    job.facts.update(seeds={"attack": seed}, device=device, attacker=sorted(attacker["subject"]))
    rows.assign(**identity(job)).to_parquet(job.outputs["rows"], index=False)
