"""What a job ran on and with: locked versions, commit, machine class. Nothing secret, nothing personal."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from localized_unlearning.provenance import locks

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "transformer-lens", "peft", "numpy",
            "scipy", "scikit-learn", "pandas", "pyarrow", "matplotlib", "pillow", "fonttools",
            "contourpy", "kiwisolver")  # fmt: skip
"""Packages that can move a number or a figure's byte, and with them those that torch brings: CUDA's, triton."""

SLURM = {
    "slurm_job": "SLURM_JOB_ID",
    "slurm_partition": "SLURM_JOB_PARTITION",
    "slurm_node": "SLURMD_NODENAME",
    "slurm_restart": "SLURM_RESTART_COUNT",
}
"""What Slurm tells a job of itself, by the name it has in a record."""

_PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s;\\]+)")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can move a number; absent ones are left out."""
    return dict(_versions())


@cache
def _versions() -> Mapping[str, str]:
    """Read once: what a process has imported does not change under it."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *_of_torch()):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def packages_of(modules: Sequence[str]) -> dict[str, str]:
    """Versions of the installed packages that some top-level modules are of, beside those in :func:`versions`."""
    known = versions()
    asked = [name for name in modules if name not in known]
    found = metadata.packages_distributions() if asked else {}
    packages = sorted({package for name in asked for package in found.get(name, ())} - known.keys())
    return {package: metadata.version(package) for package in packages}


def _of_torch() -> list[str]:
    """The compiled packages that the installed torch asks for: CUDA's libraries and triton."""
    try:
        asked = [
            re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in metadata.requires("torch") or ()
        ]
    except metadata.PackageNotFoundError:
        return []
    return [name for name in asked if name.startswith(("nvidia-", "cuda-")) or name == "triton"]


def lock_name(root: Path) -> str | None:
    """The lock in ``root/envs`` that fits the installed torch: "cpu.txt", "cuda.txt" or None."""
    torch = versions().get("torch", "")
    name = "cpu.txt" if torch.endswith("+cpu") or not (root / "envs/cuda.txt").is_file() else "cuda.txt"
    return name if (root / "envs" / name).is_file() else None


def lock_lines(root: Path, name: str) -> list[str] | None:
    """The lines of a lock, comments and blank lines aside; None when there is no such file, or none that can be read."""
    path = root / "envs" / name
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    except OSError:
        text = None
    if text is None:
        return None
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line]


def lock_digest(root: Path, name: str | None = None) -> str | None:
    """SHA-256 of a lock's content, by default of the one that fits; None when there is none."""
    name = name or lock_name(root)
    lines = lock_lines(root, name) if name else None
    return None if lines is None else hashlib.sha256("\n".join(lines).encode()).hexdigest()


def deviations(installed: Mapping[str, str], lock: Sequence[str] | None) -> dict[str, str]:
    """Installed versions that the lock does not state; without a lock, all of them.

    A job's key holds them: a lock that is not followed says nothing about the job.
    """
    packages = {name: version for name, version in installed.items() if name != "python"}
    if lock is None:
        return packages
    pins = {m[1].lower().replace("_", "-"): m[2] for m in map(_PIN.match, lock) if m}
    return {name: version for name, version in packages.items() if not _same_version(version, pins.get(name))}


def _same_version(installed: str, pin: str | None) -> bool:
    return installed == pin or (pin is not None and "+" not in pin and installed.split("+")[0] == pin)


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
    """The class of machine: system, processor, cores; no host or user name, but a Slurm node's name."""
    found: dict[str, Any] = {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }
    for key, variable in SLURM.items():
        if variable in os.environ:
            found[key] = os.environ[variable]
    if "slurm_job" in found and (restart := locks.slurm_restart()) is not None:
        found["slurm_restart"] = restart
    return found | _accelerator()


def _accelerator() -> dict[str, str]:
    """The GPU that this process used, if it used one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    found = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda or f"rocm {torch.version.hip}"}
    try:
        line = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return found
    driver = re.search(r"\d+\.\d+(\.\d+)?", line)
    return found | ({"driver": driver[0]} if driver else {})


def commit() -> dict[str, Any]:
    """The checkout's commit and whether tracked files differ from it; empty outside a checkout."""
    return commit_or_reason()[0]


def commit_or_reason(refresh: bool = False) -> tuple[dict[str, Any], str]:
    """What :func:`commit` says, and where it is empty, why.

    Git looks at the folder of this package only: variables that point it elsewhere, a person's configuration
    and the language of messages do not count, and a checkout of another user is read all the same.

    Args:
        refresh: whether Git may write down what it saw of the files. In a fresh clone it reads all of them each time until
            it may (60 ms instead of 4); nobody's own git command should meet that lock often, so a run does it once.
    """
    here = Path(__file__).resolve().parent
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    own |= {
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "LC_ALL": "C",
        "GIT_OPTIONAL_LOCKS": "1" if refresh else "0",
    }

    def git(*words: str) -> str:
        command = ["git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-C", str(here), *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20, env=own
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # a checkout of this package, not one around it
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}, ""
    except FileNotFoundError:
        return {}, "git is not installed here"
    except subprocess.CalledProcessError as error:
        words = (error.stderr or "").strip().splitlines()
        return {}, words[0] if words else f"git ended with status {error.returncode}"
    except (OSError, subprocess.SubprocessError) as error:
        return {}, str(error)
