"""The device and threads of a job, and how much one forward pass may hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from localized_unlearning import computing
from localized_unlearning.config.base import Compute
from localized_unlearning.errors import UserError
from localized_unlearning.models import components, sharding

if TYPE_CHECKING:
    from torch import Tensor


def threads(compute: Compute) -> int:
    """How many cores this job has.

    Snakemake tells a job how many it reserved in ``OMP_NUM_THREADS``; at a prompt, ``compute.threads`` counts.
    """
    import os

    return int(os.environ.get("OMP_NUM_THREADS") or compute.threads)


def setup(compute: Compute) -> str:
    """Set up this process as ``compute`` asks: its threads (:func:`threads`), deterministic algorithms or not.

    Returns:
        The device; ``cuda*N`` and ``cpu*N`` are N processes, this one among them, that share a model.
    """
    import os

    import torch

    torch.set_num_threads(max(1, threads(compute) // compute.shards))
    if compute.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when a GPU is first used
    torch.use_deterministic_algorithms(compute.deterministic)
    torch.set_float32_matmul_precision("highest" if compute.precision == "exact" else "high")
    torch.backends.cudnn.benchmark = False
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if compute.shards > 1:
        if compute.device == "cpu":
            return f"cpu*{compute.shards}"
        if found < compute.shards:
            raise UserError(
                f"compute.shards is {compute.shards} but torch sees {found} GPUs: ask the scheduler for as many, "
                "lower it, or set compute.device to cpu"
            )
        return f"cuda*{compute.shards}"
    if compute.device == "auto":
        return "cuda" if found else "cpu"
    if compute.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"compute.device is {compute.device} but torch sees no GPU: set it to cpu or auto, "
            "or install the CUDA environment (envs/README.md)"
        )
    return compute.device


LEAST_TOKENS, MOST_TOKENS = 1024, 32_768


def batch_tokens(compute: Compute, model: Any, kept: int = 1) -> int:
    """Tokens of one forward pass: as ``compute`` says, or for ``auto`` what half of the free memory holds.

    A power of two, so that a neighbour's megabyte changes nothing; 1024 on a CPU, whose caches hold a small model's activations of so many.

    Args:
        compute: the settings.
        model: gives its sizes, type and device.
        kept: layers whose activations are held at once; all of them where gradients or patches need them.
    """
    return computing.note("batch_tokens", _batch_tokens(compute, model, kept))


def _batch_tokens(compute: Compute, model: Any, kept: int) -> int:
    if compute.batch_tokens != "auto":
        return compute.batch_tokens
    import torch

    if model.device.type != "cuda":
        return 1024
    config = model.config.get_text_config()
    each = kept * (10 * config.hidden_size + 4 * components.geometry_of(model.config).mlp) * 4
    free = torch.tensor(free_memory(model.device))
    least = -int(sharding.largest(-free, model))  # alike in all processes that share the model
    return _power_of_two(least / 2 / each, LEAST_TOKENS)


def _power_of_two(tokens: float, least: int) -> int:
    return max(least, min(MOST_TOKENS, 1 << max(0, int(tokens).bit_length() - 1)))


def free_memory(device: Any) -> int:
    """Bytes of a GPU that this process can still have: what nobody holds, and what it holds itself and does not use."""
    import torch

    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused


LEAST_MICRO, SHARE, ROW = 256, 0.7, 128
"""Fewest tokens of a micro-batch; the share of free memory that its activations may fill, since gradients on their way
and the output layer need room too; tokens of the rows on which activations are measured."""


def micro_batch_tokens(setting: int | Literal["auto"], model: Any, reserved: float) -> int:
    """Tokens of one forward and backward: ``setting``, or for ``auto`` what free memory holds; 4096 on a CPU.

    A power of two, or half as much again, so that a neighbour's megabyte changes nothing. What training finds does not
    depend on it, but for rounding.

    Args:
        setting: what the config says.
        model: the model, with gradients where it is trained.
        reserved: bytes of gradients and optimizer states that are still to come.
    """
    return computing.note("micro_batch_tokens", _micro_batch_tokens(setting, model, reserved))


def _micro_batch_tokens(setting: int | Literal["auto"], model: Any, reserved: float) -> int:
    if setting != "auto":
        return setting
    import torch

    if model.device.type != "cuda":
        return 4096
    each = kept_for_backward(model)
    free = torch.tensor(free_memory(model.device) - reserved)
    fits = -float(sharding.largest(-free, model)) * SHARE / each
    whole = _power_of_two(fits, LEAST_MICRO)
    return whole + whole // 2 if whole + whole // 2 <= min(fits, MOST_TOKENS) else whole


def kept_for_backward(model: Any) -> float:
    """Bytes of activations that autograd keeps for each token: what a forward pass of one more row adds."""
    import torch

    parameters = {sharding.held(p).untyped_storage().data_ptr() for p in model.parameters()}

    def kept(rows: int) -> int:
        found: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            place = tensor.untyped_storage().data_ptr()
            if place not in parameters:
                found[place] = tensor  # held, so that no other takes its place
            return tensor

        ids = torch.zeros(rows, ROW, dtype=torch.long, device=model.device)
        devices = [model.device] if model.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=devices),  # adapters draw their dropout
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            model.base_model(input_ids=ids, use_cache=False)
        return sum(tensor.untyped_storage().nbytes() for tensor in found.values())

    return (kept(2) - kept(1)) / ROW
