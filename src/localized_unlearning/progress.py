"""Progress with time left: plain lines at growing intervals, readable on a terminal and in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TextIO, TypeVar

T = TypeVar("T")


class Progress:
    """Prints ``what: 40/700 steps, loss 1.2, 0:12 gone, 3:18 left`` at most every few seconds.

    The time left is at the pace of the later half of what is done.

    Args:
        what: what is going on.
        unit: the noun of one step.
        every: seconds between two lines.
        stream: where to print; standard error, so that it lands in a rule's log.
    """

    def __init__(
        self, what: str, unit: str = "item", every: float = 10.0, stream: TextIO | None = None
    ) -> None:
        self.what, self.unit, self.every = what, unit, every
        self.stream = stream or sys.stderr
        self._note = ""

    def note(self, text: str) -> None:
        """A few words that the next line shows."""
        self._note = text

    def over(self, items: Sequence[T]) -> Iterator[T]:
        """Yield ``items``, printing progress between them."""
        started = shown = time.monotonic()
        total = len(items)
        times = [started]  # at which 0, 1, 2, ... items were done
        for done, item in enumerate(items, 1):
            yield item
            now = time.monotonic()
            times.append(now)
            if now - shown >= self.every or done == total:
                shown = now
                gone = now - started
                left = seconds_per_item(times) * (total - done)
                plural = "es" if self.unit.endswith(("ch", "x", "s")) else "s"
                note = f", {self._note}" if self._note else ""
                print(
                    f"{self.what}: {done}/{total} {self.unit}{plural}{note}, {clock(gone)} gone, {clock(left)} left",
                    file=self.stream,
                    flush=True,
                )


def seconds_per_item(times: Sequence[float]) -> float:
    """Seconds from one item to the next over the later half of ``times``, at which 0, 1, 2, ... were done.

    Never the whole mean: the first items are unlike the rest, and a machine may become busy.

    >>> seconds_per_item([0.0, 100.0, 101.0, 102.0, 103.0])
    1.0
    """
    half = (len(times) - 1) // 2
    return (times[-1] - times[half]) / (len(times) - 1 - half)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss.

    >>> clock(3671), clock(59.7)
    ('1:01:11', '1:00')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
