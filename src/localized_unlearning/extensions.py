"""A researcher's own functions: a file and a function's name in the config stand for one of ours.

The file is an input of the stages that use it, so that its bytes are in their records and keys: a changed file is
seen, and reruns what rests on it. What it imports from elsewhere is not; keep a method in one file.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from localized_unlearning.errors import UserError


def file_of(named: str) -> Path | None:
    """The file in ``FILE.py:FUNCTION``; None for a name of ours, as ``erase``."""
    path, _, function = named.rpartition(":")
    return Path(path) if path and function else None


def load(named: str, path: Path) -> Callable[..., Any]:
    """The function of ``FILE.py:FUNCTION``, from the file where the job found it.

    Raises:
        UserError: when the file cannot be run, or has no such function.
    """
    function = named.rpartition(":")[2]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file: name one, as in my_method.py:{function}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(
            f"{path} cannot be imported ({type(error).__name__}: {error}): correct it and rerun"
        ) from error
    found = getattr(module, function, None)
    if not callable(found):
        raise UserError(f"{path} has no function '{function}': define it, or correct '{named}' in the config")
    return found  # type: ignore[no-any-return]
