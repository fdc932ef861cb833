"""The model that a job is about: the base model, or the base model plus the job's delta.

A process may run several jobs of one checkpoint, one after the other. Each leaves the model it has only read in
``job.kept``, and the next takes it over where it is made of the same bytes and is as it was after loading. Whatever else
is kept is freed first, so that no process ever holds two models.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from localized_unlearning.models import device as device_module
from localized_unlearning.models import loading
from localized_unlearning.models.deltas import unlearned

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job

Content = tuple[str, ...]


@dataclass
class Loaded:
    """A model in memory.

    Attributes:
        model: frozen, in evaluation mode.
        tokenizer: its tokenizer.
        content: what it is made of (:func:`content_of`); empty where nobody knows, so that it cannot be taken over.
        marks: how it looked when it was made (:func:`marks`).
    """

    model: Any
    tokenizer: Any
    content: Content
    marks: list[Any]

    @property
    def size(self) -> int:
        """Bytes of its weights."""
        return sum(p.untyped_storage().nbytes() for p in self.model.parameters())

    def change(self, job: Job) -> None:
        """Put the job's delta, if it has one, over the base model that this is."""
        unlearned(job, self.model)
        self.content, self.marks = content_of(job, str(job.facts["device"]), delta=True), marks(self.model)


def content_of(job: Job, device: str, delta: bool) -> Content:
    """Digests of the files that a job's model is made of, its number type and its device.

    Args:
        job: the job; one whose inputs nobody has read has no digests, and gives the empty content.
        device: as :func:`localized_unlearning.models.device.setup` says.
        delta: whether the job's delta is part of it.
    """
    if "base_model" not in job.digests:
        return ()
    parts: list[Mapping[str, str]] = [job.digests["base_model"]]
    if delta and job.inputs.get("delta"):
        parts.append(job.digests["delta"])
    digests = [json.dumps(part, sort_keys=True) for part in parts]
    return (*digests, job.config.model.dtype, device)


def marks(model: Any) -> list[Any]:
    """What any change to a model would show in: each tensor's version, each module's mode and hooks, and the config."""
    tensors = [
        (
            name, tensor.data_ptr(), tensor.requires_grad, tensor.grad is None,
            object() if tensor.is_inference() else tensor._version,  # an inference tensor counts no versions
        )
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    ]  # fmt: skip
    modules = [
        (
            name, module.training, "forward" in vars(module),
            len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks),
        )
        for name, module in model.named_modules()
    ]  # fmt: skip
    return [tensors, modules, repr(model.config)]


@contextmanager
def base_model(job: Job) -> Iterator[tuple[Loaded, int]]:
    """The job's base model and the tokens of one forward pass; records the device.

    The job may :meth:`Loaded.change` it. What it has become is kept for the next job, unless something raises.
    """
    with _held(job, delta=False) as held:
        yield held


@contextmanager
def checkpoint(job: Job) -> Iterator[tuple[Any, Any, int]]:
    """The job's model, its tokenizer and the tokens of one forward pass; records the device."""
    with _held(job, delta=True) as (loaded, tokens):
        yield loaded.model, loaded.tokenizer, tokens


@contextmanager
def _held(job: Job, delta: bool) -> Iterator[tuple[Loaded, int]]:
    compute = job.config.compute
    device = device_module.setup(compute)
    job.facts.update(device=device)
    wanted = content_of(job, device, delta)
    loaded, job.kept.model = job.kept.model, None
    if loaded is not None and (not wanted or loaded.content != wanted or marks(loaded.model) != loaded.marks):
        loaded = None
        _free()
    if loaded is None:
        model, tokenizer = loading.load(job.inputs["base_model"], job.config.model.dtype, device)
        loaded = Loaded(model, tokenizer, content_of(job, device, delta=False), marks(model))
        if delta:
            loaded.change(job)
    else:
        job.facts["compute"] = {"model": "taken over from the job before"}
    yield loaded, device_module.batch_tokens(compute, loaded.model)
    if loaded.content and marks(loaded.model) == loaded.marks:
        job.kept.model = loaded


def _free() -> None:
    """Give back what a model held that nobody refers to any more."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
