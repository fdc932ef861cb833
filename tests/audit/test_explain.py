"""What the audit says: explain, trace, diff, adopt and forget, and the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from lab import SOURCES, Lab

from localized_unlearning.audit import adopt, cli, explain, picture, runs, trace
from localized_unlearning.cli import main
from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError
from localized_unlearning.provenance import records

REASON = "copied from the lab's other disk"


def explained(lab: Lab, path: Path) -> str:
    audit = lab.audit(path)
    (finding,) = audit.findings()
    return "\n".join(explain.explain(audit, finding))


# --- explain


def test_a_configs_own_files_are_looked_for_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an audit that reads what a method imports again for every input of every record: 23 s of a tiny run."""
    parsed: list[Path] = []

    def imported(path: Path) -> list[Path]:
        parsed.append(path)
        return []

    monkeypatch.setattr(runs, "_imported", imported)
    configs = lab.audit(lab.figure).configs
    config = Config(athletes={"source": {"kind": "path", "path": "/elsewhere/mine.csv"}})
    found = [configs.outside("mine.csv", config) for _ in range(3)]
    assert found == [Path("/elsewhere/mine.csv")] * 3 and len(parsed) == len(set(parsed)) > 0


def test_a_setting_is_explained_with_the_chain_and_the_rerun(lab: Lab) -> None:
    lab.configure(finetune={"lambda_retain": 0.2})
    assert explained(lab, lab.figure).splitlines() == [
        "figures/organism/figure_1.csv is stale.",
        "",
        "Cause  finetune.lambda_retain was 1.0, now 0.2",
        "",
        "Chain  finetune.lambda_retain",
        "       └─ results/organism/sports/seed0/model (train, seed 0, task sports)",
        "          └─ results/organism/sports/seed0/rows.csv (evaluate, seed 0, task sports)",
        "             └─ figures/organism/figure_1.csv (table, table figure_1)",
        "",
        "Rerun  1 x train, 1 x evaluate, 1 x table; about 0:00 of job time, as recorded",
    ]


def test_two_causes_are_both_named_the_farthest_first(lab: Lab) -> None:
    lab.configure(finetune={"lambda_retain": 0.2}, statistics={"bootstrap": 10})
    text = explained(lab, lab.figure)
    assert text.index("Cause  finetune.lambda_retain") < text.index(
        "And    statistics.bootstrap was 2000, now 10"
    )


def test_changed_code_is_shown_as_lines(lab: Lab) -> None:
    lab.source("helper").write_text(SOURCES["helper"].replace("x + 1", "x + 2"))
    text = explained(lab, lab.table)
    assert "Cause  helper.py changed (2 lines)" in text
    assert "-    return x + 1  # one up" in text and "+    return x + 2  # one up" in text


def test_a_modified_file_is_explained(lab: Lab) -> None:
    lab.table.write_text("better\n")
    text = explained(lab, lab.table)
    assert text.startswith("results/organism/tables/table_1.csv is modified:\n  bytes: recorded ")
    assert "(recorded by stage table, 20" in text


def test_a_clean_file_is_said_to_be(lab: Lab) -> None:
    assert "is as its record says, and would be made the same way now." in explained(lab, lab.table)


def test_a_stray_file_is_explained(lab: Lab) -> None:
    (lab.seed(0) / "stray.txt").write_text("?")
    assert "is unrecorded: no record names it" in explained(lab, lab.seed(0) / "stray.txt")


def test_a_lost_or_changed_file_says_what_would_rerun(lab: Lab) -> None:
    (lab.seed(0) / "rows.csv").write_text("item,value\n0,1\n")
    assert "Rerun  1 x evaluate; about" in explained(lab, lab.seed(0) / "rows.csv")
    assert "Rerun  1 x evaluate, 1 x table; about" in explained(lab, lab.figure)
    lab.figure.unlink()
    assert "is missing" in explained(lab, lab.figure) and "1 x table" in explained(lab, lab.figure)


def test_an_orphan_is_not_said_to_rerun(lab: Lab) -> None:
    lab.configure(seeds=[0])
    text = explained(lab, lab.seed(1) / "rows.csv")
    assert "Nothing would make it now" in text and "Rerun" not in text


# --- trace


def test_a_cell_is_traced_to_the_rows_of_its_model(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a trace that follows other models' rows, or rows of another measure."""
    folder = lab.root / "cells"
    folder.mkdir()
    rows = []
    for model in ("manual", "random"):
        for name in ("facts", "mmlu"):
            path = folder / model / f"{name}.parquet"
            path.parent.mkdir(exist_ok=True)
            pd.DataFrame({"localization": [model] * 2, "item": [1, 2]}).to_parquet(path)
            rows.append(path)
    lab.source("table").write_text(
        "def run(job):\n"
        "    lines = [f'{m},{c},0.5' for m in ('manual', 'random') for c in ('forget_training', 'mmlu')]\n"
        "    job.outputs['csv'].write_text('\\n'.join(['localization,column,mean', *lines]) + '\\n')\n"
    )
    lab.run("table", {"table": "t"}, {"rows": rows}, {"csv": lab.results / "t.csv"})
    assert (
        main.main(["audit", "trace", str(lab.results / "t.csv"), "--cell", "manual", "mmlu", "--json"]) == 0
    )
    node = json.loads(capsys.readouterr().out)
    assert node["rows"] == [{"localization": "manual", "column": "mmlu", "mean": "0.5"}]
    assert [i["path"] for i in node["inputs"]] == ["cells/manual/mmlu.parquet"]
    assert main.main(["audit", "trace", str(lab.results / "t.csv"), "--cell", "manual"]) == 0
    out = capsys.readouterr().out
    assert "cells/manual/facts.parquet" in out and "cells/manual/mmlu.parquet" in out and "random" not in out
    assert main.main(["audit", "trace", str(lab.results / "t.csv"), "--cell", "manuel"]) == 2
    assert "there are localization: manual, random; column: forget_training, mmlu" in capsys.readouterr().err


def test_the_picture_of_a_file_has_every_stage_and_its_data_left_of_it(lab: Lab) -> None:
    graph = picture.graph(lab.audit(), lab.table)
    assert graph is not None
    assert graph.jobs == {"table": 1, "evaluate": 2, "train": 2, "data.txt": 0, "prompts.yaml": 0}
    assert ("data.txt", "train") in graph.edges and ("evaluate", "table") in graph.edges
    svg = ElementTree.fromstring(picture.svg(graph))
    assert len([line for line in svg if line.tag == "path"]) == len(graph.edges)
    boxes = {g[0].text: float(g[1].attrib["x"]) for g in svg if g.tag == "g"}
    assert set(boxes) == set(graph.jobs) and all(boxes[one] < boxes[other] for one, other in graph.edges)
    (lab.results / "stray.txt").write_text("?")
    assert picture.graph(lab.audit(), lab.results / "stray.txt") is None


def test_a_chain_of_edits_is_followed_to_the_base_model(lab: Lab) -> None:
    """Catches a chain that is cut at the last delta, and a changed link that leaves what was made from it current."""
    chain = ("sports", 0), ("sports", 1), ("athletes", 0)
    *_, third = lab.edit(*chain)
    node, edits = trace.tree(lab.audit(third), third), []
    while node["stage"] == "edit":
        given = {child["input"]: child for child in node["inputs"]}
        edits.append((node["wildcards"]["task"], int(node["wildcards"]["seed"])))
        node = given.get("previous") or given["model"]
    assert tuple(edits[::-1]) == chain and node["path"].endswith("seed0/model")
    assert not lab.findings()
    lab.configure(finetune={"steps": 99})
    lab.resolve()
    lab.train(0)
    lab.edit(*chain[:1])  # the first link is made anew, the others rest on its old one
    found = lab.status()
    assert "sports/edit0.txt" not in found
    assert all(found[name].endswith("/stale") for name in ("sports/edit1.txt", "athletes/edit0.txt"))


def test_trace_goes_down_to_the_data(lab: Lab) -> None:
    node = trace.tree(lab.audit(lab.table), lab.table)
    assert (
        node["stage"] == "table"
        and node["record"] == records.read(lab.results / "tables/table_1.csv.record.json").id
    )
    rows = node["inputs"]
    assert [r["path"] for r in rows] == [f"results/organism/sports/seed{s}/rows.csv" for s in (0, 1)]
    data = rows[0]["inputs"][0]["inputs"]
    assert [d["path"] for d in data] == ["workflow/data.txt", "workflow/prompts.yaml"]
    assert data[0]["sha256"] and "stage" not in data[0]
    lines = list(trace.tree_lines(node))
    assert lines[0].startswith("results/organism/tables/table_1.csv  [table, table table_1; ")
    assert lines[1].startswith("├─ results/organism/sports/seed0/rows.csv") and len(lines) == 9
    json.dumps(node)


def test_a_job_seen_twice_is_shown_once(lab: Lab) -> None:
    lab.run("table", {"table": "t"}, {"rows": [lab.rows()[0]] * 2}, {"csv": lab.results / "t.csv"})
    lines = list(trace.tree_lines(trace.tree(lab.audit(), lab.results / "t.csv")))
    assert len(lines) == 6 and lines[-1].endswith("(see above)")


def test_a_stray_copy_is_found_by_content_or_key(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stray = tmp_path / "stray.csv"
    shutil.copy(lab.table, stray)
    assert main.main(["audit", "trace", str(stray)]) == 0
    found = capsys.readouterr()
    assert found.out.startswith("results/organism/tables/table_1.csv") and "by its bytes" in found.err
    stray.write_text("edited, but it still has its key: " + stray.read_text().splitlines()[-1])
    assert main.main(["audit", "trace", str(stray)]) == 0
    assert "by the key it carries; its bytes are others" in capsys.readouterr().err
    stray.write_text("nothing")
    assert main.main(["audit", "trace", str(stray)]) == 2
    assert "unknown origin" in capsys.readouterr().err


def test_a_stray_copy_is_looked_for_among_given_folders(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a search that ends at the default folders, or that lets another run's key pass for one of here."""
    shutil.move(lab.root / "results", tmp_path / "archive")
    shutil.rmtree(lab.root / "figures")
    (lab.root / "results").mkdir()
    stray = tmp_path / "stray.csv"
    key = (tmp_path / "archive/organism/tables/table_1.csv").read_text().split()[-1]
    stray.write_text(f"edited {key}\n")
    assert main.main(["audit", "trace", str(stray)]) == 2
    assert f"carries the key {key}, which no record here has" in capsys.readouterr().err
    assert main.main(["audit", "trace", str(stray), "--among", str(tmp_path / "archive")]) == 0
    assert "archive/organism/tables/table_1.csv" in capsys.readouterr().out


def test_the_folders_below_a_stray_file_are_not_searched(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a trace in a home folder that reads every record on the disk."""
    shutil.copytree(lab.root / "results", tmp_path / "home/other/results")
    shutil.copy(lab.figure, tmp_path / "home/stray.csv")
    read: list[Path] = []
    real = records.read
    monkeypatch.setattr(records, "read", lambda path: read.append(path) or real(path))  # type: ignore[func-returns-value]
    assert main.main(["audit", "trace", str(tmp_path / "home/stray.csv")]) == 0
    assert read and not [path for path in read if "home" in path.parts]


@pytest.mark.parametrize("suffix", ["pdf", "png", "svg", "md", "tex"])
def test_figures_and_tables_carry_their_key(
    lab: Lab, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a writer that drops the key, or packs it where it cannot be found again."""
    lab.source("table").write_text(
        "from matplotlib.figure import Figure\nfrom localized_unlearning.reporting.figures.drawing import style\n\n\ndef run(job):\n"
        "    path = job.outputs['csv']\n"
        "    if path.suffix in ('.pdf', '.png'):\n"
        "        paths = {kind: path.with_suffix('.' + kind) for kind in ('pdf', 'png', 'svg')}\n"
        "        style.save(Figure(), paths, job.key)\n"
        "        [other.unlink() for other in paths.values() if other != path]\n"
        "    else:\n"
        "        path.write_text('a table\\n')\n"
    )
    path = lab.results / "tables" / f"table_2.{suffix}"
    record = lab.run("table", {"table": "table_2"}, {"rows": lab.rows()}, {"csv": path})
    assert record.key in trace.keys_in(path)
    stray = tmp_path / f"stray.{suffix}"
    stray.write_bytes(path.read_bytes() + b"\n")
    assert main.main(["audit", "trace", str(stray)]) == 0
    assert capsys.readouterr().out.startswith(f"results/organism/tables/table_2.{suffix}")


# --- adopt and forget


def test_adopting_a_changed_file_is_visible_downstream_and_undone(lab: Lab) -> None:
    rows = lab.seed(0) / "rows.csv"
    rows.write_text("item,value\n0,1.0\n")
    assert lab.status() == {
        "sports/seed0/rows.csv": "modified/ok",
        "tables/table_1.csv": "ok/stale",
        "figure_1.csv": "ok/stale",
    }
    adopt.adopt(rows, REASON, lab.root)
    assert lab.status() == {"tables/table_1.csv": "ok/stale", "figure_1.csv": "ok/stale"}
    lab.run("table", {"table": "figure_1"}, {"rows": [rows]}, {"csv": lab.figure})
    assert lab.status() == {"tables/table_1.csv": "ok/stale"}
    (finding,) = lab.audit(lab.figure).findings()
    assert finding.rests_on == (rows,)
    assert f"which a person adopted: {REASON}" in explained(lab, lab.figure)
    assert trace.tree(lab.audit(lab.figure), lab.figure)["inputs"][0]["adopted"] == REASON
    adopt.forget(rows)
    assert lab.status()["sports/seed0/rows.csv"] == "modified/ok"


def test_adopting_a_stale_file_instead_of_touching_it(lab: Lab) -> None:
    lab.source("evaluate").write_text(SOURCES["evaluate"].replace("float(x)", "float(x) + 0"))
    for seed in (0, 1):
        adopt.adopt(lab.seed(seed) / "rows.csv", "the change cannot move a number", lab.root)
    found = lab.audit().findings()
    assert all(f.clean for f in found)
    assert {lab.name(f.path) for f in found if f.rests_on} == {
        "sports/seed0/rows.csv", "sports/seed1/rows.csv", "tables/table_1.csv", "figure_1.csv",
    }  # fmt: skip


def test_adopting_a_file_of_unknown_origin(lab: Lab) -> None:
    stray = lab.seed(0) / "stray.csv"
    stray.write_text("a\n")
    place = adopt.adopt(stray, REASON, lab.root)
    assert place.name == "stray.csv.adopted.record.json"
    assert records.read(place).folder == "results/organism/sports/seed0"
    assert lab.status() == {}
    stray.write_text("b\n")
    assert lab.status() == {"sports/seed0/stray.csv": "modified/ok"}


def test_running_the_job_again_ends_the_adoption(lab: Lab) -> None:
    lab.seed(0).joinpath("rows.csv").write_text("item,value\n")
    place = adopt.adopt(lab.seed(0) / "rows.csv", REASON, lab.root)
    lab.evaluate(0)
    assert not place.exists() and lab.status() == {}


def test_what_cannot_be_adopted(lab: Lab) -> None:
    for path, reason, words in (
        (lab.table, REASON, "as its record says"),
        (lab.table, " ", "needs a reason"),
        (lab.seed(0) / "gone", REASON, "does not exist"),
        (lab.seed(0) / "model" / "weights", REASON, "part of an output folder: adopt .*model as a whole"),
    ):
        with pytest.raises(UserError, match=words):
            adopt.adopt(path, reason, lab.root)
    with pytest.raises(UserError, match="was not adopted"):
        adopt.forget(lab.table)


# --- the command line


def test_verify_prints_one_line_when_clean_and_exits_0(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["audit", "verify"]) == 0
    assert capsys.readouterr().out == "9 artefacts of 6 jobs. Integrity: 9 ok. Currency: 9 ok.\n"


def test_verify_lists_findings_and_exits_1(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.table.write_text("better\n")
    assert main.main(["audit", "verify", "results"]) == 1
    head, line, _, last, mend = capsys.readouterr().out.splitlines()
    assert head.split() == ["integrity", "currency", "path", "why"]
    assert line.split()[:3] == ["modified", "ok", "results/organism/tables/table_1.csv"]
    assert last.startswith("8 artefacts of 5 jobs. Integrity: 7 ok, 1 modified.")
    assert mend.startswith("To mend: snakemake --cores 1 results/organism/tables/table_1.csv --forcerun")


def test_verify_sums_up_many_stale_artefacts(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "LISTED", 5)
    lab.configure(finetune={"steps": 3})
    lab.table.write_text("better\n")
    assert main.main(["audit", "verify"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[1:3] == ["    4  finetune.steps was 50, now 3", "    3  only of what they were made from"]
    assert out[5].split()[:2] == ["modified", "stale"]
    assert out[-1].startswith(
        "Note: config.yaml differs from results/organism/config.yaml, by which run organism"
    )
    assert main.main(["audit", "verify", "--all"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 1 + 9 + 4


def test_verify_as_json(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.table.unlink()
    assert main.main(["audit", "verify", "--json", str(lab.table)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["clean"] is False and found["counts"]["integrity"] == {"missing": 1}
    assert found["artefacts"][0]["stage"] == "table"


def test_verify_by_another_config(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    (lab.root / "other.yaml").write_text("finetune: {steps: 3}\n")
    assert main.main(["audit", "verify", "--config", "config.yaml", "--config", "other.yaml"]) == 1
    assert "finetune.steps was 50, now 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["verify", "gone"], ["explain", "gone"], ["trace", "gone"], ["diff", "gone", "results"],
        ["verify", "--root", "workflow"], ["forget", "config.yaml"],
    ],
)  # fmt: skip
def test_wrong_usage_exits_2_with_one_line(
    lab: Lab, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["audit", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_explain_and_adopt_on_the_command_line(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.configure(statistics={"bootstrap": 10})
    assert main.main(["audit", "explain", str(lab.table)]) == 1
    assert "statistics.bootstrap was 2000, now 10" in capsys.readouterr().out
    assert main.main(["audit", "adopt", str(lab.table), "--reason", REASON]) == 0
    assert main.main(["audit", "explain", str(lab.table)]) == 0
    assert REASON in capsys.readouterr().out
    assert main.main(["audit", "forget", str(lab.table)]) == 0
    assert main.main(["audit", "explain", str(lab.table)]) == 1


def test_the_line_that_mends_names_what_snakemake_cannot_see(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    """An edited intermediate: the job that made it is forced, and the target is what was asked about."""
    (lab.seed(0) / "model" / "weights").write_text("better")
    assert main.main(["audit", "explain", str(lab.table)]) == 1
    seed = "results/organism/sports/seed0"
    line = f"snakemake --cores 1 results/organism/tables/table_1.csv --forcerun {seed}/model"
    assert f"Mend   {line}" in capsys.readouterr().out
    assert main.main(["audit", "verify"]) == 1
    assert "To mend: snakemake --cores 1 " in capsys.readouterr().out
    (lab.root / "config.yaml").write_text("run: another\n")
    assert main.main(["audit", "explain", str(lab.table)]) == 1
    assert " --configfile results/organism/config.yaml --forcerun " in capsys.readouterr().out
    lab.train(0)
    lab.evaluate(0)
    capsys.readouterr()
    assert main.main(["audit", "verify"]) == 0
    assert "mend" not in capsys.readouterr().out
