"""The device and threads of a job, and how much one forward pass may hold."""

from __future__ import annotations

from typing import Any

from localized_unlearning.config.base import Compute
from localized_unlearning.errors import UserError
from localized_unlearning.models import components, sharding


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

    A power of two, so that a neighbour's megabyte changes nothing; at most 4096 on a CPU, where more is not faster.

    Args:
        compute: the settings.
        model: gives its sizes, type and device.
        kept: layers whose activations are held at once; all of them where gradients or patches need them.
    """
    if compute.batch_tokens != "auto":
        return compute.batch_tokens
    import torch

    if model.device.type != "cuda":
        return 4096
    config = model.config.get_text_config()
    each = kept * (10 * config.hidden_size + 4 * components.geometry_of(model.config).mlp) * 4
    free = torch.tensor(torch.cuda.mem_get_info(model.device)[0])
    least = -int(sharding.largest(-free, model))  # alike in all processes that share the model
    fits = int(least / 2 / each)
    return max(LEAST_TOKENS, min(MOST_TOKENS, 1 << max(0, fits.bit_length() - 1)))
