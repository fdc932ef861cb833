"""What a job ran on and with: locked versions, commit, machine class. Nothing secret, nothing personal."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch transformers tokenizers safetensors numpy scipy pandas pyarrow scikit-learn peft matplotlib"
).split()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can move a number; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def lock_digest(root: Path) -> str | None:
    """SHA-256 of the lock that fits the installed torch, comments and blank lines aside; None without one."""
    torch = versions().get("torch", "")
    name = "cpu.txt" if torch.endswith("+cpu") or not (root / "envs/cuda.txt").is_file() else "cuda.txt"
    path = root / "envs" / name
    if not path.is_file():
        return None
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return hashlib.sha256("\n".join(line for line in lines if line).encode()).hexdigest()


@cache
def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def host() -> dict[str, Any]:
    """The class of machine: system, processor, cores; no host or user name."""
    found: dict[str, Any] = {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }
    if "SLURM_JOB_ID" in os.environ:
        found["slurm_job"] = os.environ["SLURM_JOB_ID"]
    return found


def commit() -> dict[str, Any]:
    """The checkout's commit and whether tracked files differ from it; empty outside git."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return {}
