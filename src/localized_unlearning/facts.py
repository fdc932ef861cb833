"""The facts: athletes and their sports, and which of them the base model knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from localized_unlearning.config import SPORTS
from localized_unlearning.errors import UserError

if TYPE_CHECKING:
    from localized_unlearning.stages import Job


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
    rows = table.groupby("athlete", sort=False)["row"].apply(list)
    kept = table.drop_duplicates("athlete").drop(columns="row").reset_index(drop=True)
    kept["rows"] = list(rows)
    return kept, Duplicates(tuple(dict.fromkeys(repeated)), len(repeated))


def known_facts(job: Job) -> None:
    """Stage: how well the base model knows each fact, and which facts are kept.

    Writes one row per athlete: ``athlete``, ``sport``, ``rows``, ``probability`` (of the right sport
    over the whole vocabulary, training prompt) and ``known`` (at least the threshold; all without one).
    """
    from localized_unlearning import models, packing
    from localized_unlearning.prompts import load_prompts

    athletes, duplicates = load_athletes(job.inputs["athletes"])
    threshold = job.config.athletes.known_threshold
    device = models.setup(job.config.compute)
    model, tokenizer = models.load(job.inputs["base_model"], job.config.model.dtype, device)
    book = load_prompts(job.inputs["prompts"])
    prompt = book[job.config.prompts.training]
    scores = packing.next_token(
        model,
        models.encode(tokenizer, [prompt.render(a) for a in athletes["athlete"]]),
        models.answer_tokens(tokenizer, SPORTS),
        models.batch_tokens(job.config.compute, model),
    )
    probability = (scores.candidates - scores.log_normalizer[:, None]).double().exp().numpy()
    right = [SPORTS.index(sport) for sport in athletes["sport"]]
    athletes["probability"] = probability[range(len(right)), right]
    athletes["known"] = athletes["probability"] >= (threshold or 0.0)
    if not athletes["known"].any():
        raise UserError(
            f"the base model knows none of the {len(athletes)} facts with probability {threshold}: "
            "lower athletes.known_threshold or use another model"
        )
    job.facts.update(
        repeated_names=list(duplicates.repeated), athletes=len(athletes), known=int(athletes["known"].sum())
    )
    athletes.to_parquet(job.outputs["known"], index=False)
