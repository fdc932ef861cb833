"""Memory that ran out is told in one sentence, whatever says so, and nothing else is taken for it."""

from __future__ import annotations

import pytest
import torch

from localized_unlearning.models import room

CUDA = (
    "CUDA out of memory. Tried to allocate 42.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 9.51 GiB is free. "
    "Including non-PyTorch memory, this process has 69.59 GiB memory in use."
)


def test_a_gpus_memory_is_told_with_what_was_asked_for_and_what_is_free() -> None:
    """Catches a traceback for what a setting mends."""
    told = room.exhausted(torch.OutOfMemoryError(CUDA), "mask")
    assert told == (
        "the GPU's memory ran out in stage mask (42.00 GiB asked for, 9.51 GiB free): lower masking.micro_batch_tokens "
        "(auto fits it to the card), or shard the model over more GPUs (compute.shards)"
    )


def test_the_hosts_memory_is_told_too() -> None:
    """Catches words of torch's CPU allocator that have changed: it is really asked for more than there is."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    told = room.exhausted(caught.value, "evaluate")
    assert told is not None and told.startswith(
        "the memory of this machine ran out in stage evaluate (144115188.1 GB asked for)"
    )
    assert "compute.batch_tokens" in told and "run fewer jobs at a time" in told
    assert room.exhausted(MemoryError(), "claims") is not None


def test_other_errors_are_left_alone() -> None:
    assert room.exhausted(RuntimeError("sizes do not match"), "mask") is None
