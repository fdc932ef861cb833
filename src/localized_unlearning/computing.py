"""How this process computes, as far as the last digits of a result may depend on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

VARIABLES = (
    "OMP_NUM_THREADS", "OMP_DYNAMIC", "MKL_NUM_THREADS", "MKL_DYNAMIC", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS",
    "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA",
    "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG", "PYTHONHASHSEED",
)  # fmt: skip
"""Variables on which the last digits of a result may depend; a record names those that are set."""


def compute(settings: Mapping[str, Any]) -> dict[str, Any]:
    """How this process computed, beyond what a job's key holds: bytes may depend on it.

    Args:
        settings: the config's ``compute``; where torch is loaded its effective values go before those asked for.
    """
    found: dict[str, Any] = {name: value for name, value in settings.items() if name != "warm_start"}
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
