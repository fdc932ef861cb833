"""A rerun beside the gallery: numbers agree within the intervals that both state."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from localized_unlearning.audit import gallery
from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError
from localized_unlearning.report.gallery import collect


def table(path: Path, shift: float, rows: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"localization {i}" for i in range(rows)]
    data = pd.DataFrame(
        {"task": "sports", "localization": names, "column": "mmlu", "accuracy": "choice", "mean": 0.5 + shift}
    )
    data.assign(low=data["mean"] - 0.1, high=data["mean"] + 0.1, n=90, seeds=3).to_csv(path, index=False)


@pytest.mark.parametrize(("shift", "outside"), [(0.0, 0), (0.14, 0), (0.15, 40), (-0.15, 40)])
def test_a_rerun_agrees_within_what_both_intervals_allow(tmp_path: Path, shift: float, outside: int) -> None:
    """Two intervals of 0.1 to a side allow 0.141 between them; the run's files lie in its own folders."""
    table(tmp_path / "docs/organism/table_1.csv", 0.0)
    table(tmp_path / "results/organism/tables/table_1.csv", shift)
    shown = tmp_path / "docs/organism"
    assert gallery.is_gallery(shown)
    found = gallery.compare(shown, tmp_path / "results/organism")
    assert [len(f.outside) for f in found] == [outside] and found[0].numbers == 40
    assert gallery.agrees(found) == (outside == 0)
    assert next(gallery.lines(found)).startswith(
        "Agrees: 0 of 40" if outside == 0 else "Does not agree: 40 of 40"
    )


def test_nothing_in_common_does_not_agree(tmp_path: Path) -> None:
    table(tmp_path / "a/table_1.csv", 0.0)
    table(tmp_path / "b/table_2.csv", 0.0)
    found = gallery.compare(tmp_path / "a", tmp_path / "b")
    assert not gallery.agrees(found) and "Nothing to compare" in next(gallery.lines(found))


def test_the_gallery_takes_a_runs_pages_with_their_csv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no table, study or question yet"):
        collect(Config(), Path("docs/results/organism"))
    table(Path("results/organism/tables/table_1.csv"), 0.0)
    for path, text in {
        "results/organism/tables/table_1.md": "x",
        "results/organism/claims.md": "Figure 1\n| x | Figure 1, Figure 10, Table 1, Table 3 |\n",
        "results/organism/statistics/table_1/comparisons.csv": "x",
        "figures/organism/figure_1.csv": "x",
        "figures/organism/figure_1.md": "x",
        "figures/organism/figure_10.png": "x",
    }.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")
    names = {path.name for path in collect(Config(), Path("docs/results/organism"))}
    assert names == {
        "table_1.csv", "table_1.md", "claims.md", "comparisons_1.csv", "figure_1.csv", "figure_1.caption.md", "figure_10.png"
    }  # fmt: skip
    assert (
        Path("docs/results/organism/claims.md").read_text()
        == "Figure 1\n| x | Figure 1, [Figure 10](figure_10.png), [Table 1](table_1.md), Table 3 |\n"
    )
