"""Equivalence: whether numbers agree with a run elsewhere, and what differs beside them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from lab import Lab

from localized_unlearning.audit.diff import Numbers, compare_tables
from localized_unlearning.cli import main
from localized_unlearning.provenance import environment


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, list[str]]:
    """Exit status and lines of ``audit diff``."""
    capsys.readouterr()
    status = main.main(["audit", "diff", *map(str, words)])
    return status, capsys.readouterr().out.splitlines()


@pytest.fixture
def before(lab: Lab, tmp_path: Path) -> Path:
    """A copy of the finished toy run, to hold others against."""
    shutil.copytree(lab.results, tmp_path / "before")
    return tmp_path / "before"


def test_a_copy_does_not_differ(lab: Lab, before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, lab.results, before) == (0, ["no difference"])
    assert said(capsys, lab.table, before / "tables/table_1.csv") == (0, ["no difference"])


def test_the_same_on_another_machine_is_equivalent(
    lab: Lab, before: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other rounding and another GPU, as on a cluster: numbers agree within the tolerance, and only then."""
    monkeypatch.setattr(environment, "host", lambda: {"gpu": "A100"})
    monkeypatch.setattr(environment, "versions", lambda: {**lab.installed, "python": "3.12"})
    for seed in (0, 1):
        lab.train(seed)
        rows = lab.seed(seed) / "rows.csv"
        lab.evaluate(seed)
        rows.write_text(rows.read_text().replace("100.0", "100.003").replace("150.0", "150.00001"))
    status, lines = said(capsys, before, lab.results, "--tolerance", "1e-6")
    assert status == 1 and lines[0] == (
        "Not equivalent: same settings, seeds, code, data and compute; other environment and machine; "
        "2 of 6 items differ by more than 1e-06, by at most 0.003, in 2 of 5 tables."
    )
    assert "machine      gpu: - | A100  (4 jobs)" in lines
    assert "environment  python: 3.11 | 3.12  (4 jobs)" in lines
    assert "numbers      sports/seed1/rows.csv: rows: 1 of 3 items differ, by at most 0.003" in lines
    status, lines = said(capsys, before, lab.results, "--tolerance", "1e-4")
    assert status == 0 and lines[0].startswith("Equivalent: ")
    assert "0 of 6 items differ by more than 0.0001" in lines[0]


def test_what_differs_between_two_runs(lab: Lab, before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab.configure(finetune={"steps": 3})
    lab.build()
    status, lines = said(capsys, before / "sports/seed0/model", lab.seed(0) / "model")
    assert status == 1
    assert lines[0] == (
        "Not equivalent: same seeds, code, environment, data, compute and machine; other settings; "
        "the table has the same bytes."
    )
    assert lines[1:] == [
        "settings     finetune.steps: 50 | 3",
        "bytes        1 other outputs differ, such as model",
    ]
    status, lines = said(capsys, before / "sports/seed0/rows.csv", lab.seed(0) / "rows.csv")
    assert "3 of 3 items differ by more than 1e-06, by at most 188" in lines[0]
    (lab.results / "tables" / "table_1.csv.record.json").unlink()
    status, lines = said(capsys, before, lab.results)
    assert status == 1 and "1 jobs on one side only" in lines[0]
    assert lines[1] == f"only in {before}: tables/table_1.csv"
    assert "settings     finetune.steps: 50 | 3  (2 jobs)" in lines


def test_a_data_file_that_differs_is_called_data(
    lab: Lab, before: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (lab.root / "workflow/data.txt").write_text("1 2 4\n")
    lab.build()
    status, lines = said(capsys, before / "sports/seed0/model", lab.seed(0) / "model")
    assert status == 1 and "other data" in lines[0] and lines[1].startswith("data         data: ")


def test_a_stray_file_has_nothing_to_compare(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    (lab.results / "stray.csv").write_text("a\n")
    assert main.main(["audit", "diff", str(lab.results / "stray.csv"), str(lab.table)]) == 2
    assert "of unknown origin" in capsys.readouterr().err


def write(path: Path, **columns: Any) -> Path:
    frame = pd.DataFrame({"item": ["a", "b", "c"], **columns})
    frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_numbers_are_compared_with_a_tolerance(tmp_path: Path, suffix: str) -> None:
    def table(name: str, **columns: Any) -> Path:
        return write(tmp_path / (name + suffix), **{"p": [0.1, 0.2, None], **columns})

    def compared(one: Path, other: Path) -> Numbers:
        found = compare_tables(one, other, 1e-6)
        return found._replace(gap=round(found.gap, 6))

    a = table("a")
    assert compared(a, table("b", p=[0.1, 0.2 + 1e-9, None])) == Numbers(3)
    assert compared(a, table("c", p=[0.1, 0.3, None])) == Numbers(3, 1, 0.1)
    assert compared(a, table("d", p=[0.1, 0.2, 0.3])) == Numbers(3, 1)  # a value where none was
    assert compared(a, table("e", item=["a", "x", "c"], p=[0.5, 0.2, None])) == Numbers(3, 2, 0.4)
    assert compared(table("f", n=[1, 2, 3]), table("g", n=[1, 2, 5])) == Numbers(3, 1, 2)
    assert compared(a, table("h", q=[1, 2, 3])).fault == "columns q on one side only"


def test_other_rows_are_a_fault(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one.csv"), tmp_path / "other.csv"
    other.write_text("item\na\n")
    assert compare_tables(one, other, 1e-6).fault == "3 rows | 1 rows"


def test_numbers_inside_lists_have_the_tolerance_too(tmp_path: Path) -> None:
    """Catches logits that are called different for their last digit, and lists of other lengths."""

    def table(name: str, last: Any) -> Path:
        return write(tmp_path / f"{name}.parquet", logits=[[1.0, last], [0.0, None], [2.0]])

    a = table("a", 2.0)
    assert compare_tables(a, table("b", 2.0 + 1e-9), 1e-6).differ == 0
    assert compare_tables(a, table("c", 2.5), 1e-6) == Numbers(3, 1, 0.5)
    assert (
        compare_tables(a, write(tmp_path / "d.parquet", logits=[[1.0], [0.0, None], [2.0]]), 1e-6).differ == 1
    )
    one, other = [write(tmp_path / f"{n}.parquet", w=[["x", n], ["y"], []]) for n in "ef"]
    assert compare_tables(one, other, 1e-6).differ == 1


def test_nothing_to_compare_is_no_agreement(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main.main(["audit", "diff", str(tmp_path / "empty"), str(lab.results)]) == 2
    assert "holds no record of a job" in capsys.readouterr().err


def test_seeds_on_one_side_and_bytes_as_they_are(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job without seeds beside one with, and an output edited since it was recorded."""
    assert main.main(["audit", "diff", str(lab.seed(0) / "model"), str(lab.table)]) == 1
    assert "seeds" in capsys.readouterr().out
    shutil.copytree(lab.results, tmp_path / "before")
    (lab.seed(0) / "model" / "weights").write_text("edited")
    assert main.main(["audit", "diff", str(tmp_path / "before"), str(lab.results)]) == 0
    assert "1 other outputs differ, such as sports/seed0/model: model" in capsys.readouterr().out


def test_other_threads_are_named(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(lab.results, tmp_path / "before")
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    lab.train(0)
    assert (
        main.main(
            ["audit", "diff", str(tmp_path / "before" / "sports/seed0/model"), str(lab.seed(0) / "model")]
        )
        == 0
    )
    assert "compute      variables.MKL_CBWR: - | COMPATIBLE" in capsys.readouterr().out
