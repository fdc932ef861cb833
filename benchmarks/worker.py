"""One measurement in a process of its own: `python -m benchmarks.worker CASE VARIANT ...`.

Writes OUT.json (seconds, memory, what the case says of itself) and OUT.npz (its outputs, to be compared).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from localized_unlearning.memory import resident


def measured(work: Callable[[], Any], device: str) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The outputs of ``work()`` with its seconds and its peak memory beyond what was there before, in GB."""
    import ctypes
    import gc

    import torch

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the preparation freed goes back first
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 1e9
    else:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
        before = (resident() or 0) / 1e9
    start, cpu = time.perf_counter(), time.process_time()
    outputs = work()
    if cuda:
        torch.cuda.synchronize()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else (resident("VmHWM") or 0) / 1e9
    return outputs, {"seconds": seconds, "cpu_seconds": cpu, "memory": peak - before, "peak": peak}


def main() -> None:
    from benchmarks.bench import Bench
    from benchmarks.cases import CASES

    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=CASES)
    parser.add_argument("variant", choices=["ours", "theirs", "careful"])
    for name in ("model", "out", "questions", "athletes"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    bench = Bench(
        args.model, args.questions, args.athletes, args.threads, args.scale, args.device, args.dtype
    )
    bench.warm_up()
    work = getattr(CASES[args.case], args.variant)(bench)
    outputs, figures = measured(work, args.device)
    arrays: dict[str, Any] = {k: np.asarray(v) for k, v in outputs.items()}
    np.savez(args.out.with_suffix(".npz"), **arrays)
    args.out.with_suffix(".json").write_text(json.dumps({**figures, **bench.notes}))


if __name__ == "__main__":
    main()
