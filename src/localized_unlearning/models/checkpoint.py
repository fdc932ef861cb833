"""The model that a job is about: the base model, or the base model plus the job's delta."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from localized_unlearning.models import device as device_module
from localized_unlearning.models import loading
from localized_unlearning.models.deltas import unlearned

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


def base_model(job: Job) -> tuple[Any, Any, int]:
    """The job's base model, its tokenizer and the tokens of one forward pass; records the device."""
    compute = job.config.compute
    device = device_module.setup(compute)
    model, tokenizer = loading.load(job.inputs["base_model"], job.config.model.dtype, device)
    job.facts.update(device=device)
    return model, tokenizer, device_module.batch_tokens(compute, model)


@contextmanager
def checkpoint(job: Job) -> Iterator[tuple[Any, Any, int]]:
    """The job's model, its tokenizer and the tokens of one forward pass; records the device."""
    model, tokenizer, tokens = base_model(job)
    with unlearned(job, model):
        yield model, tokenizer, tokens
