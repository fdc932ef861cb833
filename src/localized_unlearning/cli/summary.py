"""A run's tables at a glance."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from localized_unlearning.config import reading
from localized_unlearning.errors import UserError
from localized_unlearning.paper.terms import BY_NAME, MAIN
from localized_unlearning.progress import clock
from localized_unlearning.workflow.layout import Layout


def summary(arguments: argparse.Namespace) -> int:
    """Print a run's tables, where its outputs lie, and the compute time of its jobs."""
    config = reading.load(arguments.config)
    results, figures = Path(Layout(config.run).results), Path(Layout(config.run).figures)
    tables = sorted(results.glob("tables/*.md"))
    if not tables:
        raise UserError(f"{results} holds no table yet: run snakemake tables")
    for path in tables:
        print(compact(path.with_suffix(".csv"), path.read_text(encoding="utf-8").splitlines()[0].strip("*")))
    seconds = [json.loads(p.read_text(encoding="utf-8"))["seconds"] for p in results.rglob("*.record.json")]
    print(f"Full tables   {results}/tables/ (.md, .csv with all three accuracies, .tex)")
    print(f"Figures       {figures}/ (.pdf, .png, and the .csv each was drawn from)")
    print(f"Model card    {results}/base<N>/model_card.md")
    print(
        f"Rows          {results}/base<N>/<task>/<objective>/<localization>/seed<N>/*.parquet, records beside them"
    )
    report = results / "report.html"
    print(f"Jobs          {len(seconds)} recorded jobs, {clock(sum(seconds))} of job time in all")
    if report.is_file():
        print(f"Report        open {report} in a browser: all tables, figures and claims on one page")
    else:
        print("Report        snakemake -c1 report makes one page of all of it")
    return 0


def compact(path: Path, title: str) -> str:
    """A table's main columns as aligned text, from its tidy CSV."""
    import pandas as pd

    data = pd.read_csv(path)
    data = data[data["accuracy"].isin(("choice", "loss"))]
    columns = {name: BY_NAME[name].short for name in MAIN}
    table = data.pivot_table(index="label", columns="column", values="mean", sort=False)[list(columns)]
    table.index.name = None
    text = (
        table.rename(columns=columns).rename_axis(columns=None).to_string(float_format=lambda v: f"{v:.3f}")
    )
    return f"{title}\n{text}\n"
