"""Robust knowledge unlearning via mechanistic localizations (Guo et al. 2024), rebuilt."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``load_run``, imported when it is asked for: with it comes torch."""
    if name == "load_run":
        import importlib

        return importlib.import_module("." + "runs", __name__).load_run
    raise AttributeError(name)
