"""Deltas: the trained tensors of an unlearned model and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localized_unlearning.errors import UserError
from localized_unlearning.models import sharding

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.jobs.job import Job


def weights_digest(folder: Path, known: Mapping[str, str] | None = None) -> str:
    """SHA-256 over the weight files of a model folder: what a delta belongs to.

    Args:
        folder: the model's.
        known: SHA-256 of its files by name, where somebody has read them already; a large model is not read again.
    """
    total = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder.name} holds no .safetensors weights: convert the model first")
    for file in files:
        digest = (known or {}).get(file.name)
        if digest is None:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(file.name.encode() + bytes.fromhex(digest))
    return total.hexdigest()


def base_digest(job: Job) -> str:
    """:func:`weights_digest` of a job's base model, whose files were read when the job's inputs were checked."""
    return weights_digest(job.inputs["base_model"], job.digests.get("base_model"))


TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
"""How safetensors names what weights are made of."""


def save_delta(path: Path, tensors: Mapping[str, Tensor], base: str) -> str:
    """Write trained tensors as safetensors, named by the base model's :func:`weights_digest`; returns the SHA-256.

    One tensor at a time comes to the host, and is written and hashed side by side, while safetensors' own writer wants
    all of them there and the file is then read again to be hashed.
    """
    import torch

    entries: dict[str, Any] = {"__metadata__": {"base": base}}
    end = 0
    for name, tensor in sorted(tensors.items()):
        start, end = end, end + tensor.numel() * tensor.element_size()
        kind = TYPES[str(tensor.dtype).removeprefix("torch.")]
        entries[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    total = hashlib.sha256()
    with path.open("wb") as stream, ThreadPoolExecutor(2) as pool:

        def put(data: Any) -> None:
            writing, hashing = pool.submit(stream.write, data), pool.submit(total.update, data)
            writing.result()
            hashing.result()

        put(len(header).to_bytes(8, "little") + header)
        for _, tensor in sorted(tensors.items()):
            whole = tensor.detach().cpu().contiguous()
            if whole.numel():
                put(whole.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


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
    kept = {name: sharding.held(model.get_parameter(name)).clone() for name in tensors}
    put(model, tensors)
    try:
        yield
    finally:
        put(model, kept)


def put(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors``, whole or this process's part of them, into the parameters that they are named by."""
    import torch

    with torch.no_grad():
        for name, value in tensors.items():
            parameter = model.get_parameter(name)
            held = sharding.held(parameter)
            held.copy_(value if value.shape == held.shape else sharding.part(parameter, value))


def unlearned(job: Job, model: Any) -> Any:
    """A context in which ``model`` is the base model plus the job's delta, if it has one.

    A job has its model for itself: the base's weights are not kept beside the delta's, and do not return on exit.
    """
    if job.inputs.get("delta"):
        put(model, read_delta(job.inputs["delta"], base_digest(job)))
    return nullcontext()
