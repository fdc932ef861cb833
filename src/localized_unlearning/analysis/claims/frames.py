"""A run's row tables as claims read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd


def frames_of(paths: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """The row tables among ``paths``, by file name, series with ``relearning/`` or ``sweep/`` in front."""
    found: dict[str, list[pd.DataFrame]] = {}
    for path in paths:
        rows = pd.read_parquet(path)
        if "ranking" in rows.columns:  # claims are about the trained mask, not about its controls
            rows = rows[rows["ranking"] == "mask"]
        folder = {"iteration": "relearning/", "edit_size": "sweep/"}
        prefix = next((name for column, name in folder.items() if column in rows.columns), "")
        found.setdefault(prefix + path.stem, []).append(rows)
    return {name: pd.concat(tables, ignore_index=True) for name, tables in found.items()}
