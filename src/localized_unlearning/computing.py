"""How this process computes, as far as the last digits of a result may depend on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_noted: ContextVar[dict[str, list[int]] | None] = ContextVar("_noted", default=None)

VARIABLES = (
    "OMP_NUM_THREADS", "OMP_DYNAMIC", "MKL_NUM_THREADS", "MKL_DYNAMIC", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS",
    "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA",
    "OMP_SCHEDULE", "KMP_DETERMINISTIC_REDUCTION", "BLIS_NUM_THREADS", "TORCH_BLAS_PREFER_CUBLASLT",
    "DISABLE_ADDMM_CUDA_LT", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG",
    "PYTHONHASHSEED",
)  # fmt: skip
"""Variables on which the last digits of a result may depend; a record names those that are set."""


@contextmanager
def noting() -> Iterator[dict[str, list[int]]]:
    """Gives what :func:`note` is told inside of it, by name, each value once."""
    found: dict[str, list[int]] = {}
    token = _noted.set(found)
    try:
        yield found
    finally:
        _noted.reset(token)


def note(name: str, value: int) -> int:
    """Tell the record of the running job what a setting such as ``auto`` came to; outside of a job, nobody. Returns it."""
    found = _noted.get()
    if found is not None and value not in found.setdefault(name, []):
        found[name].append(value)
    return value


def compute(settings: Mapping[str, Any]) -> dict[str, Any]:
    """How this process computed, beyond what a job's key holds: bytes may depend on it.

    Args:
        settings: the config's ``compute``; where torch is loaded its effective values go before those asked for. How
            many tokens were taken at a time is what the job noted (:func:`note`).
    """
    found: dict[str, Any] = {
        name: value for name, value in settings.items() if name not in ("warm_start", "batch_tokens")
    }
    noted = _noted.get() or {}
    found |= {name: values[0] if len(values) == 1 else values for name, values in noted.items()}
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        found["threads"] = int(os.environ["OMP_NUM_THREADS"])
    found["variables"] = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_num_threads"):
        return found
    found |= {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    if torch.cuda.is_initialized():
        found |= {
            "device": "cuda" if settings["device"] == "auto" else settings["device"],
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        }
    elif settings["device"] == "auto":
        found["device"] = "cpu"
    return found


def cpu_seconds() -> float:
    """Processor time of this process and of its children that ended, in seconds."""
    found = os.times()
    return round(found.user + found.system + found.children_user + found.children_system, 3)
