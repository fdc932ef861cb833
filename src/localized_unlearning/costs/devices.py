"""What a device does in a second, and what a job asks of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

# ---- what computing takes


@dataclass(frozen=True)
class Work:
    """What a job computes.

    Attributes:
        flops: in the type of the weights.
        float32_flops: logits, which are in float32 whatever the weights are.
        traffic: bytes read and written besides matrix products (optimizer steps, masks, restored weights).
        calls: layers that are run, forwards and backwards; each costs a little however small it is.
        fit_flops: logistic regressions on the CPU.
        load: bytes read from disk, and hashed.
    """

    flops: float = 0.0
    float32_flops: float = 0.0
    traffic: float = 0.0
    calls: float = 0.0
    fit_flops: float = 0.0
    load: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(self.values, other.values, strict=True)))

    def __mul__(self, times: float) -> Work:
        return Work(*(a * times for a in self.values))

    @property
    def values(self) -> tuple[float, ...]:
        """The fields in order."""
        return self.flops, self.float32_flops, self.traffic, self.calls, self.fit_flops, self.load


@dataclass(frozen=True)
class Cost:
    """What one job costs.

    Attributes:
        work: what it computes.
        device: bytes on the device at the peak, by what they hold.
        host: bytes of the process beside the device.
        disk: bytes of its outputs.
    """

    work: Work = field(default_factory=Work)
    device: Mapping[str, float] = field(default_factory=dict)
    host: float = 0.0
    disk: float = 0.0

    @property
    def device_bytes(self) -> float:
        """The peak on the device."""
        return sum(self.device.values())


@dataclass(frozen=True)
class Device:
    """How fast something computes.

    Attributes:
        name: its name.
        bfloat16, float32: matrix products, operations a second at the peak.
        bandwidth: bytes of memory a second.
        memory: bytes.
        utilisation: share of the peak that our stages reach, all in all.
        call: seconds that running a layer takes at least.
        disk: bytes a second when weights are read and hashed.
        start: seconds before a job begins to compute.
        gpu: whether the host is another memory.
    """

    name: str
    bfloat16: float
    float32: float
    bandwidth: float
    memory: float
    utilisation: float
    call: float
    disk: float = 1e9
    start: float = 2.0
    gpu: bool = True

    def seconds(self, work: Work, dtype: str) -> float:
        """How long ``work`` takes with weights of ``dtype``."""
        rate = self.bfloat16 if dtype == "bfloat16" else self.float32
        return (
            self.start
            + work.load / self.disk
            + work.flops / (rate * self.utilisation)
            + work.float32_flops / (self.float32 * self.utilisation)
            + work.traffic / self.bandwidth
            + work.calls * self.call
            + work.fit_flops / FIT_RATE
        )


FIT_RATE = 1e10

FIT_START = 2e7
"""Operations a second of a logistic regression: it streams its data from memory, on one core;
and what each takes besides, in operations."""

ASKING = 5
"""A prompt's share of Python, in calls."""

DEVICES: dict[str, Device] = {
    d.name: d
    for d in (
        # NVIDIA's data sheets, dense; float32 without TF32. Utilisation is an assumption until measured on one.
        Device("A100-80", 312e12, 19.5e12, 2.0e12, 80e9, 0.4, 2e-4, start=20),
        Device("H100", 989e12, 67e12, 3.35e12, 80e9, 0.4, 2e-4, start=20),
        Device("H200", 989e12, 67e12, 4.8e12, 141e9, 0.4, 2e-4, start=20),
    )
}


def cpu(threads: int, rate: float = 40e9) -> Device:
    """This kind of machine's cores.

    Args:
        threads: cores of a job.
        rate: float32 operations a second and core in large matrix products; bfloat16 is taken to be as fast.
    """
    return Device(
        "cpu", rate * threads, rate * threads, 6e9, 0.0, 0.85, 1e-4, disk=0.4e9, start=0.3, gpu=False
    )


def measured_cpu(threads: int) -> Device:
    """:func:`cpu` with the rate that this machine shows now, in half a second; imports torch."""
    import time

    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
        best, end = math.inf, time.perf_counter() + 0.5
        while time.perf_counter() < end:
            started = time.perf_counter()
            a @ b
            best = min(best, time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)
    return cpu(threads, 2 * 1024**3 / best / threads)
