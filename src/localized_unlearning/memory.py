"""How much memory this process holds, and held at most."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path


def resident(field: str = "VmRSS") -> float | None:
    """Memory of this process in bytes, or with ``VmHWM`` the most it ever held; None where the system does not say."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{field}:"):
                return float(line.split()[1]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    return None


def peak_memory(before: float | None) -> dict[str, float] | None:
    """What :class:`records.Record` calls ``memory``, for a process that held ``before`` bytes when it began."""
    peak = resident("VmHWM")
    if before is None or peak is None:
        return None
    found = {"process": round(max(0.0, peak - before) / 1e9, 4)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        devices = range(torch.cuda.device_count())
        found["device"] = round(sum(torch.cuda.max_memory_allocated(d) for d in devices) / 1e9, 4)
    return found


def forget_peaks() -> None:
    """Begin to count peaks anew, for a process that runs another job."""
    with suppress(OSError):  # some containers do not allow it: the peak is then that of all jobs so far
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)
