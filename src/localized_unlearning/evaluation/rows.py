"""The rows that every evaluation writes: one per item, with the columns that say which model they are about.

Rows keep the logits, never a metric: any statistic can be recomputed without a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.data.splits import read_split

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


def identity(job: Job) -> dict[str, Any]:
    """The columns that say which model a row is about."""
    names = ("task", "objective", "localization")
    found: dict[str, Any] = {name: job.wildcards[name] for name in names if name in job.wildcards}
    return {**found, "seed": int(job.wildcards["seed"]), "base_seed": int(job.wildcards["base_seed"])}


def write_rows(job: Job, name: str, table: pd.DataFrame) -> None:
    """Write an output's rows, each with its model's :func:`identity`."""
    table.assign(**identity(job)).to_parquet(job.outputs[name], index=False)


def test_part(job: Job) -> pd.DataFrame:
    """The test athletes of the job's split."""
    split = read_split(job.inputs["split"])
    return split[split["test"]].reset_index(drop=True)
