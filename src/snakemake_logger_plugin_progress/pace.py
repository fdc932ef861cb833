"""How far a run is and how long it will take: arithmetic over what has started and finished, without a clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ENOUGH = 4
"""Finished jobs before a time left is said: the first ones (pretraining) are unlike the rest."""


@dataclass(frozen=True)
class Running:
    """A job that has begun; times are in seconds of any one clock."""

    rule: str
    label: str
    since: float
    logs: Sequence[str] = ()


@dataclass(frozen=True)
class Finished:
    rule: str
    since: float
    until: float

    @property
    def seconds(self) -> float:
        return self.until - self.since


def later_half(jobs: Sequence[Finished]) -> Sequence[Finished]:
    return jobs[len(jobs) // 2 :]


def mean_seconds(jobs: Sequence[Finished]) -> float:
    return sum(job.seconds for job in jobs) / len(jobs)


class Pace:
    """The jobs of one run. Every estimate rests on the later half of what has finished, never on the whole mean.

    Args:
        begun: when the run began, in seconds.
        jobs: the number of planned jobs by rule.
    """

    def __init__(self, begun: float, jobs: Mapping[str, int] | None = None) -> None:
        self.begun = begun
        self.waiting = dict(jobs or {})
        self.running: dict[int, Running] = {}
        self.finished: list[Finished] = []

    @property
    def total(self) -> int:
        """Jobs of this run."""
        return len(self.finished) + len(self.running) + sum(self.waiting.values())

    def start(self, number: int, job: Running) -> None:
        if self.waiting.get(job.rule):
            self.waiting[job.rule] -= 1
        self.running[number] = job

    def finish(self, number: int, now: float) -> None:
        """A job that was never seen to start is none of this run's."""
        job = self.running.pop(number, None)
        if job is not None:
            self.finished.append(Finished(job.rule, job.since, now))

    def fail(self, number: int) -> None:
        """A failed job is still to be done."""
        if (job := self.running.pop(number, None)) is not None:
            self.waiting[job.rule] = self.waiting.get(job.rule, 0) + 1

    def seconds_per_job(self, now: float) -> float | None:
        """Seconds from one finished job to the next, lately; None before enough have finished."""
        if len(self.finished) < ENOUGH:
            return None
        recent = later_half(self.finished)
        return (now - self._window()) / len(recent)

    def left(self, now: float) -> float | None:
        """Seconds until all is done; None before enough has finished to say: four jobs, and of the rules of half that wait.

        A waiting job costs what its rule cost lately (what any job did, for a rule not seen yet). A job that is
        overdue is expected to need its delay once more. The sum is shared among as many jobs as ran at once lately.
        """
        seen = {job.rule for job in self.finished}
        unseen = sum(n for rule, n in self.waiting.items() if rule not in seen)
        if len(self.finished) < ENOUGH or 2 * unseen > sum(self.waiting.values()):
            return None
        remaining = [abs(self._expected(job.rule) - (now - job.since)) for job in self.running.values()]
        work = sum(remaining) + sum(n * self._expected(rule) for rule, n in self.waiting.items() if n)
        return max([work / self._at_once(now), *remaining])

    def _expected(self, rule: str) -> float:
        own = [job for job in self.finished if job.rule == rule]
        return mean_seconds(later_half(own or self.finished))

    def _window(self) -> float:
        """When the later half of the finished jobs began to finish."""
        return self.finished[len(self.finished) // 2 - 1].until

    def _at_once(self, now: float) -> float:
        """Jobs that ran at the same time, on average over the later half; at least a half."""
        window = self._window()
        spans = [(job.since, job.until) for job in later_half(self.finished)]
        spans += [(job.since, now) for job in self.running.values()]
        busy = sum(until - max(since, window) for since, until in spans)
        return max(busy / (now - window), 0.5) if now > window else 1.0
