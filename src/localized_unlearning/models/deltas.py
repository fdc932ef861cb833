"""Deltas: the trained tensors of an unlearned model and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localized_unlearning.errors import UserError
from localized_unlearning.models import sharding

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.jobs.job import Job


def weights_digest(folder: Path) -> str:
    """SHA-256 over the weight files of a model folder: what a delta belongs to."""
    total = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder.name} holds no .safetensors weights: convert the model first")
    for file in files:
        with file.open("rb") as stream:
            total.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def save_delta(path: Path, tensors: Mapping[str, Tensor], base: str) -> None:
    """Write trained tensors, named by the base model's :func:`weights_digest`."""
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    # One entry only: safetensors writes several in an order that differs from process to process.
    save_file(contiguous, path, metadata={"base": base})


def read_delta(path: Path, base: str) -> dict[str, Tensor]:
    """The tensors of a delta made from the base model with digest ``base``.

    Raises:
        UserError: when the delta belongs to another base model or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get("base")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): delete it and rerun") from error
    if found != base:
        raise UserError(
            f"{path} was trained from another base model ({str(found)[:12]} instead of {base[:12]}): "
            "rerun the fine-tuning"
        )
    return tensors


@contextmanager
def applied(model: Any, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """``model`` with the tensors of a delta in place; the base's own return on exit."""
    import torch

    parameters = {name: model.get_parameter(name) for name in tensors}
    kept = {name: sharding.held(parameter).clone() for name, parameter in parameters.items()}

    def put(values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():  # not around the yield: the caller may train something else meanwhile
            for name, value in values.items():
                sharding.held(parameters[name]).copy_(value)

    put({name: sharding.part(parameters[name], value) for name, value in tensors.items()})
    try:
        yield
    finally:
        put(kept)


def unlearned(job: Job, model: Any) -> Any:
    """A context in which ``model`` is the base model plus the job's delta, if it has one."""

    if not job.inputs.get("delta"):
        return nullcontext()
    digest = weights_digest(job.inputs["base_model"])
    return applied(model, read_delta(job.inputs["delta"], digest))
