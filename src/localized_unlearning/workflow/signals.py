"""Signals of a scheduler or a person while a job runs."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def stop(number: int, _frame: Any) -> None:
    """Turn a scheduler's or a person's signal into an exception, so that clean-up runs."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def ignore(_number: int, _frame: Any) -> None:
    """Let a signal pass."""


@contextmanager
def seen_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Let ``handler`` see SIGTERM and SIGINT for a while."""
    try:
        before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread, as in a test
        yield
        return
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
