"""The athletes and their sports (section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from localized_unlearning.data.answers import SPORTS
from localized_unlearning.errors import UserError


@dataclass(frozen=True)
class Duplicates:
    """What the loader found: names that stand more than once."""

    repeated: tuple[str, ...]
    dropped_rows: int


def load_athletes(path: Path) -> tuple[pd.DataFrame, Duplicates]:
    """Athletes in file order, each name once: columns ``athlete``, ``sport`` and ``rows``.

    ``rows`` lists the athlete's positions in the file, which the released split needs. A name that is repeated
    with the same sport keeps its first row; the paper's file has seven such names.

    Raises:
        UserError: for a missing file or column, an unknown sport, an empty name, or one name with two sports.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"the athletes file {path} does not exist: check athletes.source") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"the athletes file {path} is no CSV: {error}") from None
    for column in ("athlete", "sport"):
        if column not in table.columns:
            raise UserError(
                f"{path} has no column '{column}' (it has {', '.join(map(str, table.columns))}): "
                "name the columns athlete and sport"
            )
    table = table[["athlete", "sport"]].assign(row=range(len(table)))
    table["athlete"] = table["athlete"].str.strip()
    bad = table[~table["sport"].isin(SPORTS) | (table["athlete"] == "")]
    if len(bad):
        row = bad.iloc[0]
        raise UserError(
            f"{path}, data row {row['row'] + 1}: athlete {row['athlete']!r} has the sport {row['sport']!r}, "
            f"but every row needs a name and one of {', '.join(SPORTS)}"
        )
    sports = table.groupby("athlete", sort=False)["sport"].nunique()
    if (sports > 1).any():
        name = sports.index[sports > 1][0]
        raise UserError(f"{path} gives {name} two sports: keep one row for each athlete")
    repeated = table.loc[table["athlete"].duplicated(), "athlete"]
    rows: dict[str, list[int]] = {}
    for number, name in enumerate(table["athlete"]):
        rows.setdefault(name, []).append(number)
    kept = table.drop_duplicates("athlete").drop(columns="row").reset_index(drop=True)
    kept["rows"] = list(rows.values())
    return kept, Duplicates(tuple(dict.fromkeys(repeated)), len(repeated))
