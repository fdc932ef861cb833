"""How much memory this process holds, and held at most."""

from __future__ import annotations

import sys
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
