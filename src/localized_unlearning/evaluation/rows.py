"""The columns that every row of an evaluation has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


def identity(job: Job) -> dict[str, Any]:
    """The columns that say which model a row is about."""
    names = ("task", "objective", "localization", "seed")
    found = {name: job.wildcards[name] for name in names if name in job.wildcards}
    return {**found, "seed": int(job.wildcards["seed"])}
