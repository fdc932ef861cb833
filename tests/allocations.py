"""What torch's CPU allocator gave and took while a function ran, scratch inside of kernels included."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch is imported: the profiler says much on stdout


class Allocations(NamedTuple):
    """Bytes beyond what was there before: the most at a time, and the largest single allocation."""

    peak: int
    largest: int


def allocations(function: Callable[[], object]) -> Allocations:
    """Run ``function`` under torch's profiler. What numpy, safetensors or a mapped file hold is not the allocator's."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        function()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = largest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak, largest = max(peak, live), max(largest, event.nbytes())
    return Allocations(peak, largest)
