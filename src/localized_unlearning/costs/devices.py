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
        logit_flops: of the output layer, whose sums are in float32 whatever the weights are.
        logits: logits that are made; the sums over them read and write each a few times.
        traffic: bytes read and written besides matrix products (optimizer steps, masks, restored weights).
        calls: layers that are run, forwards and backwards; each costs a little however small it is.
        prompts: that are rendered, tokenised and packed, and whose rows are written.
        fit_flops: logistic regressions on the CPU.
        load: bytes read from disk.
    """

    flops: float = 0.0
    logit_flops: float = 0.0
    logits: float = 0.0
    traffic: float = 0.0
    calls: float = 0.0
    prompts: float = 0.0
    fit_flops: float = 0.0
    load: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(self.values, other.values, strict=True)))

    def __mul__(self, times: float) -> Work:
        return Work(*(a * times for a in self.values))

    @property
    def values(self) -> tuple[float, ...]:
        """The fields in order."""
        return (
            self.flops, self.logit_flops, self.logits, self.traffic, self.calls, self.prompts,
            self.fit_flops, self.load,
        )  # fmt: skip


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
        bfloat16, float32: matrix products, operations per second at the peak.
        bandwidth: bytes of memory a second.
        memory: bytes.
        utilisation: share of that rate that a model's layers reach.
        call: seconds that running a layer takes at least.
        disk: bytes per second when weights are read.
        start: seconds before a job begins to compute.
        gpu: whether the host is another memory.
        cores: of the host, that fit probes at a time.
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
    cores: int = 8

    def seconds(self, work: Work, dtype: str) -> float:
        """How long ``work`` takes with weights of ``dtype``."""
        rate = self.bfloat16 if dtype == "bfloat16" else self.float32
        logit_rate = rate if self.gpu else self.float32
        return (
            self.start
            + work.load / self.disk
            + work.flops / (rate * self.utilisation)
            + work.logit_flops
            / (logit_rate * LOGIT_UTILISATION if self.gpu else logit_rate * self.utilisation)
            + (work.logits * LOGIT_BYTES / self.bandwidth if self.gpu else 0.0)
            + work.traffic / self.bandwidth
            + work.calls * self.call
            + work.prompts * ASKING
            + work.fit_flops / (FIT_RATE * self.cores)
        )


FIT_RATE = 1e10

FIT_START = 2e7
"""Operations a second of a logistic regression: it streams its data from memory, on one core;
and what each takes besides, in operations."""

ASKING = 5e-4
"""Seconds of Python for each prompt."""

LOGIT_UTILISATION, LOGIT_BYTES = 0.85, 40
"""Of the output layer on a GPU: share of the measured rate of products (702 of 790 TFLOP/s on an H100), and bytes moved
for each logit; on a CPU the latter are within what its utilisation says."""

DEVICES: dict[str, Device] = {
    d.name: d
    for d in (
        # H100: rates of products measured on one, utilisation, call, disk and start fitted to its table in docs/scale.md.
        # The others: their data sheets' rates (dense, float32 without TF32) in the same proportions, not measured.
        Device("A100-80", 250e12, 15e12, 2.0e12, 80e9, 0.65, 6e-4, disk=2.8e9, start=3),
        Device("H100", 790e12, 51e12, 3.35e12, 80e9, 0.65, 6e-4, disk=2.8e9, start=3),
        Device("H200", 790e12, 51e12, 4.8e12, 141e9, 0.65, 6e-4, disk=2.8e9, start=3),
    )
}


def cpu(threads: int, rate: float = 40e9) -> Device:
    """This kind of machine's cores.

    Args:
        threads: cores of a job.
        rate: float32 operations per second and core in large matrix products; bfloat16 is taken to be as fast.
    """
    return Device(
        "cpu", rate * threads, rate * threads, 6e9, 0.0, 0.85, 1e-4, disk=0.4e9, start=0.3, gpu=False, cores=1
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
