"""Every way in which a results folder can go wrong is caught and named; what is harmless is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lab import SOURCES, Lab

import localized_unlearning
from localized_unlearning.audit import findings
from localized_unlearning.cli import main
from localized_unlearning.jobs.job import Input, Stage
from localized_unlearning.provenance import digests, hashing, locks, pages, records
from localized_unlearning.report import items

TRAINED = {
    f"sports/seed{seed}/{name}": "ok/stale"
    for seed in (0, 1)
    for name in ("model", "history.csv", "rows.csv")
}
DOWNSTREAM = {"tables/table_1.csv": "ok/stale", "figure_1.csv": "ok/stale"}
EVERYTHING = TRAINED | DOWNSTREAM


def flip(path: Path) -> None:
    """Change one byte and put the modification time back."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def edit(path: Path, change: dict[str, Any], forge: bool = False) -> None:
    """Edit a record's file by hand; a forger also makes id and key fit."""
    data = json.loads(path.read_text()) | change
    path.write_text(json.dumps(data))
    if forge:
        record = records.read(path)
        records.write(record.model_copy(update={"key": records.key_in(record)}), path)


# --- no alarm


def test_a_finished_run_is_clean(lab: Lab) -> None:
    found = lab.audit().findings()
    assert [f.path.name for f in found] == [
        "figure_1.csv", "config.yaml", "history.csv", "model", "rows.csv", "history.csv", "model", "rows.csv",
        "table_1.csv",
    ]  # fmt: skip
    assert all(f.integrity == f.currency == "ok" for f in found)


def test_touched_files_are_no_alarm(lab: Lab) -> None:
    for path in (lab.source("train"), lab.root / "workflow/data.txt", lab.table):
        os.utime(path)
    assert lab.status() == lab.status(quick=True) == {}


def test_files_checked_out_again_are_no_alarm(lab: Lab) -> None:
    for path in (lab.source("helper"), lab.root / "workflow/data.txt"):
        text = path.read_text()
        path.unlink()
        path.write_text(text)
    assert lab.status() == {}


def test_comments_formatting_and_docstrings_are_no_alarm(lab: Lab) -> None:
    lab.source("helper").write_text(
        '"""Other words."""\n# a comment\ndef shift(x):\n    return (x +\n   1)\n'
    )
    assert lab.status() == {}


def test_a_lock_with_other_comments_is_no_alarm(lab: Lab) -> None:
    (lab.root / "envs/cpu.txt").write_text("numpy==1.0  # arrays\n\ntorch==2.0+cpu\n")
    assert lab.status() == {}


def test_unrelated_settings_and_compute_are_no_alarm(lab: Lab) -> None:
    lab.configure(interpretability={"seed": 1}, compute={"threads": 2})
    assert lab.status() == {}


@pytest.mark.parametrize("what", ["results", "results/organism"])
def test_a_copy_elsewhere_is_clean(
    lab: Lab, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "elsewhere" / "under_another_name"
    shutil.copytree(lab.root / what, copy)
    assert lab.status(copy) == {}
    monkeypatch.chdir(tmp_path)
    lab.root = tmp_path  # without the workflow around it: what cannot be checked is said, and is no finding
    found = lab.audit(copy).findings()
    assert len(found) == 8
    assert {(f.integrity, f.currency) for f in found if f.path.name != "config.yaml"} == {("ok", "unknown")}
    assert any("workflow/data.txt is not here" in reason for f in found for reason in f.reasons)


def test_a_copy_is_judged_by_itself_and_not_by_the_original(lab: Lab, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(lab.results, copy)
    flip(lab.seed(0) / "model" / "weights")
    assert lab.status(copy) == {}
    shutil.copytree(copy, lab.root / "results" / "second")
    assert lab.status(lab.root / "results" / "second") == {}


def test_a_fresh_copy_of_the_whole_workflow_is_clean(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(lab.root, tmp_path / "fresh")
    lab.root = tmp_path / "fresh"
    monkeypatch.chdir(lab.root)
    assert lab.status() == {}


# --- settings


def test_two_settings_with_exchanged_values(lab: Lab) -> None:
    lab.configure(finetune={"lambda_retain": 0.0, "weight_decay": 1.0})
    assert lab.status() == EVERYTHING
    reasons = lab.findings()["sports/seed0/model"].reasons
    assert reasons == (
        "finetune.lambda_retain was 1.0, now 0.0",
        "finetune.weight_decay was 0.0, now 1.0",
    )


def test_a_setting_given_a_value_that_another_has(lab: Lab) -> None:
    lab.configure(finetune={"lambda_sft": 0.0})
    assert lab.findings()["sports/seed1/model"].reasons == ("finetune.lambda_sft was 1.0, now 0.0",)


def test_a_structured_setting(lab: Lab) -> None:
    sports = {"forget": {"answer": "basketball"}, "relearn": ["Boris Diaw"], "lambda_forget": 0.2}
    lab.configure(tasks={"sports": sports})
    assert lab.status() == EVERYTHING
    assert "tasks.sports.relearn was" in lab.findings()["sports/seed0/model"].reasons[0]


def test_a_setting_of_the_last_stage_leaves_the_rest_current(lab: Lab) -> None:
    lab.configure(statistics={"bootstrap": 10})
    assert lab.status() == DOWNSTREAM


def test_the_resolved_config_counts_too(lab: Lab) -> None:
    (lab.root / "config.yaml").write_text("run: another\n")
    path = lab.results / "config.yaml"
    path.write_text("# mine\n" + path.read_text())
    assert lab.status() == {}  # a comment
    path.write_text(path.read_text().replace("bootstrap: 2000", "bootstrap: 10"))
    assert lab.status() == DOWNSTREAM | {"config.yaml": "modified/ok"}
    assert lab.findings()["config.yaml"].reasons == ("statistics.bootstrap was 2000, now 10",)


def test_touch_after_a_change(lab: Lab) -> None:
    """What Snakemake's --touch launders stays stale here."""
    lab.configure(finetune={"steps": 3})
    lab.resolve()
    for path in lab.results.rglob("*"):
        os.utime(path)
    assert lab.status() == EVERYTHING


def test_what_the_config_no_longer_asks_for(lab: Lab) -> None:
    lab.configure(seeds=[0])
    found = lab.status()
    orphans = {name: "ok/orphan" for name in TRAINED if "seed1" in name}
    assert found == orphans | {"tables/table_1.csv": "ok/stale"}
    assert "asks for no train with seed 1" in lab.findings()["sports/seed1/model"].reasons[0]


def test_a_stage_that_is_gone(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(lab.audit().judge.stages, "evaluate")
    assert lab.status()["sports/seed0/rows.csv"] == "ok/orphan"


def test_a_stage_that_takes_other_wildcards_now(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = Stage(
        "table", "toylab.table", ("tasks.{task}",), (Input("rows", many=True),), ("csv",), ("table", "task")
    )
    monkeypatch.setitem(lab.audit().judge.stages, "table", changed)
    assert lab.status() == DOWNSTREAM
    assert lab.findings()["figure_1.csv"].reasons == (
        'stage table took the wildcards ["table"], now ["table","task"]',
    )


# --- code and environment


def test_an_imported_module(lab: Lab) -> None:
    lab.source("helper").write_text(SOURCES["helper"].replace("x + 1", "x + 2"))
    assert lab.status() == EVERYTHING
    assert lab.findings()["sports/seed0/model"].reasons == ("helper.py changed",)


def test_the_code_of_one_stage(lab: Lab) -> None:
    lab.source("evaluate").write_text(SOURCES["evaluate"].replace("'item,value'", "'item,result'"))
    assert lab.status() == {name: s for name, s in EVERYTHING.items() if "rows" in name or name in DOWNSTREAM}


def test_the_lock(lab: Lab) -> None:
    (lab.root / "envs/cpu.txt").write_text("numpy==1.1\ntorch==2.0+cpu\n")
    assert lab.status() == EVERYTHING
    reasons = lab.findings()["sports/seed0/model"].reasons
    assert reasons[0] == "the environment's lock envs/cpu.txt changed"


def test_an_installed_version_that_the_lock_does_not_state(lab: Lab) -> None:
    lab.installed["numpy"] = "1.1"
    assert lab.status() == EVERYTHING
    assert lab.findings()["sports/seed0/model"].reasons == ("numpy was 1.0, now 1.1",)


def test_packages_that_are_not_installed_here_are_no_alarm(lab: Lab) -> None:
    del lab.installed["numpy"]
    assert lab.status() == {}


# --- bytes


@pytest.mark.parametrize("quick", [False, True])
def test_one_byte_with_its_time_restored(lab: Lab, quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "SETTLED", -1.0)
    assert lab.status(quick=quick) == {}  # also takes the digests that --quick trusts
    flip(lab.seed(0) / "model" / "weights")
    assert lab.status(quick=quick) == {
        "sports/seed0/model": "modified/ok",
        "sports/seed0/rows.csv": "ok/stale",
        **DOWNSTREAM,
    }
    found = lab.findings(quick=quick)
    assert found["sports/seed0/model"].reasons[0].startswith("weights: recorded ")
    assert (
        found["sports/seed0/rows.csv"]
        .reasons[0]
        .startswith("input results/organism/sports/seed0/model: recorded ")
    )


def test_the_final_result_overwritten(lab: Lab) -> None:
    lab.table.write_text("better numbers\n")
    assert lab.status() == {"tables/table_1.csv": "modified/ok"}


def test_two_results_swapped(lab: Lab) -> None:
    swap(lab.seed(0) / "rows.csv", lab.table)
    assert lab.status() == {
        "sports/seed0/rows.csv": "modified/ok",
        "tables/table_1.csv": "modified/stale",
        "figure_1.csv": "ok/stale",
    }


def test_two_results_swapped_with_their_records(lab: Lab) -> None:
    swap(lab.seed(0), lab.seed(1))
    found = lab.findings()
    for seed in (0, 1):
        finding = found[f"sports/seed{seed}/model"]
        assert finding.integrity == "modified"
        assert (
            finding.reasons[0]
            == f"it was made in results/organism/sports/seed{1 - seed} and has been moved or swapped"
        )


def test_a_result_and_its_record_renamed(lab: Lab) -> None:
    (lab.seed(0) / "rows.csv.record.json").rename(lab.seed(0) / "other.csv.record.json")
    assert lab.findings()["sports/seed0/rows.csv"].reasons == (
        "its record was written as rows.csv.record.json",
    )


def test_a_file_added_to_an_output_folder(lab: Lab) -> None:
    (lab.seed(0) / "model" / "more").write_text("")
    assert lab.findings()["sports/seed0/model"].reasons == ("more was added",)


def test_a_file_removed_from_an_output_folder(lab: Lab) -> None:
    (lab.seed(0) / "model" / "vocabulary").unlink()
    assert "found none" in lab.findings()["sports/seed0/model"].reasons[0]


def test_an_output_that_became_a_link(lab: Lab, tmp_path: Path) -> None:
    shutil.copy(lab.table, tmp_path / "same_bytes.csv")
    lab.table.unlink()
    lab.table.symlink_to(tmp_path / "same_bytes.csv")
    assert lab.status() == {"tables/table_1.csv": "modified/ok"}
    assert "symbolic link" in lab.findings()["tables/table_1.csv"].reasons[0]


@pytest.mark.parametrize("name", ["model", "model/weights"])
def test_a_folder_that_became_a_link_or_holds_one(lab: Lab, tmp_path: Path, name: str) -> None:
    (lab.seed(0) / name).rename(tmp_path / "same_bytes")
    (lab.seed(0) / name).symlink_to(tmp_path / "same_bytes")
    assert lab.status() == {"sports/seed0/model": "modified/ok"}
    assert "symbolic link" in lab.findings()["sports/seed0/model"].reasons[0]


def test_results_that_lie_behind_a_link_are_no_alarm(lab: Lab, tmp_path: Path) -> None:
    """A cluster's scratch disk, say."""
    (lab.root / "results").rename(tmp_path / "scratch")
    (lab.root / "results").symlink_to(tmp_path / "scratch")
    assert lab.status() == {}


def test_an_older_result_put_back_with_its_record(lab: Lab, tmp_path: Path) -> None:
    """A backup fits its record, and is not what the settings ask for now."""
    shutil.copytree(lab.seed(0), tmp_path / "backup")
    lab.configure(finetune={"steps": 3})
    lab.build()
    assert lab.status() == {}
    shutil.rmtree(lab.seed(0))
    shutil.copytree(tmp_path / "backup", lab.seed(0))
    found = lab.findings()
    assert found["sports/seed0/model"].reasons == ("finetune.steps was 50, now 3",)
    assert "figure_1.csv" in found and "sports/seed1/model" not in found


def test_a_missing_output(lab: Lab) -> None:
    lab.table.unlink()
    assert lab.status() == {"tables/table_1.csv": "missing/ok"}
    assert lab.status(lab.table) == {"tables/table_1.csv": "missing/ok"}


def test_a_removed_intermediate_does_not_make_the_result_stale(lab: Lab) -> None:
    shutil.rmtree(lab.seed(0) / "model")
    assert lab.status() == {"sports/seed0/model": "missing/ok"}


# --- data


@pytest.mark.parametrize("name", ["data.txt", "prompts.yaml"])
def test_an_input_edited(lab: Lab, name: str) -> None:
    (lab.root / "workflow" / name).write_text("4 5\n")
    assert lab.status() == EVERYTHING
    assert lab.findings()["sports/seed0/model"].reasons[0].startswith(f"input workflow/{name}: recorded ")


def test_an_input_deleted(lab: Lab) -> None:
    (lab.root / "workflow" / "data.txt").unlink()
    assert lab.status() == EVERYTHING
    assert lab.findings()["sports/seed0/model"].reasons == ("input workflow/data.txt is missing",)


def test_upstream_made_again_with_other_bytes(lab: Lab) -> None:
    lab.configure(finetune={"steps": 3})
    lab.resolve()
    lab.train(0)
    found = lab.findings()
    assert "sports/seed0/model" not in found
    assert (
        found["sports/seed0/rows.csv"]
        .reasons[0]
        .startswith("input results/organism/sports/seed0/model: recorded")
    )


def test_upstream_made_again_with_the_same_bytes(lab: Lab) -> None:
    lab.train(0)
    assert lab.status() == {}


# --- records


@pytest.mark.parametrize(
    "change", [{"settings": {"statistics": {}}}, {"seconds": 0.0}, {"facts": {"seed": 1}}, {"key": "0" * 64}]
)
def test_a_record_edited_by_hand(lab: Lab, change: dict[str, Any]) -> None:
    edit(lab.results / "tables/table_1.csv.record.json", change)
    found = lab.findings()
    assert list(found) == ["tables/table_1.csv"]
    assert found["tables/table_1.csv"].integrity == "modified"
    assert "edited by hand" in found["tables/table_1.csv"].reasons[0]


def test_a_record_forged_with_a_fitting_id(lab: Lab) -> None:
    edit(lab.seed(0) / "rows.csv.record.json", {"facts": {"accuracy": 1}}, forge=True)
    found = lab.findings()
    assert list(found) == ["sports/seed0/rows.csv"]
    assert "another one than" in found["sports/seed0/rows.csv"].reasons[0]


def test_a_forged_result_with_its_record(lab: Lab) -> None:
    """Bytes and record changed to fit: no job wrote that record, and what was made from the old one is stale."""
    path = lab.seed(0) / "rows.csv"
    path.write_text("item,value\n0,1\n")
    output = json.loads((lab.seed(0) / "rows.csv.record.json").read_text())["outputs"][0]
    sha256 = hashing.digest(path).sha256
    output |= {"sha256": sha256, "files": [{"name": "", "size": path.stat().st_size, "sha256": sha256}]}
    edit(lab.seed(0) / "rows.csv.record.json", {"outputs": [output]}, forge=True)
    assert lab.status() == {"sports/seed0/rows.csv": "modified/ok"} | DOWNSTREAM


@pytest.mark.parametrize("name", ["sports/seed0/rows.csv", "tables/table_1.csv"])
@pytest.mark.parametrize("journal", ["kept", "without the forger's id"])
def test_a_forged_record_that_says_to_replace_the_old_one(lab: Lab, name: str, journal: str) -> None:
    """In the middle of a chain and at its end: a rerun is one that a job is known to have written."""
    record = lab.results / f"{name}.record.json"
    old = records.read(record)
    plant(lab, record.name, record, facts={"seeds": {"order": 7}}, replaces=(*old.replaces, str(old.id)))
    if journal == "kept":
        place = records.mark(f"{old.folder}/{record.name}")
        shutil.copy(record, lab.results / records.JOURNAL / f"{place}-{'0' * 64}.json")
    found = lab.findings()
    assert list(found) == [name] and "known to have written" in found[name].reasons[0]


def test_a_copy_without_its_hidden_folders_is_no_alarm(lab: Lab) -> None:
    lab.train(0)  # a rerun that replaces a record
    for folder in lab.root.glob("*/organism/.records"):
        shutil.rmtree(folder)
    assert lab.status() == {}


def test_a_record_deleted(lab: Lab) -> None:
    (lab.seed(0) / "rows.csv.record.json").unlink()
    assert lab.status() == {"sports/seed0/rows.csv": "unrecorded/-"}


def test_a_record_that_is_no_json(lab: Lab) -> None:
    (lab.seed(0) / "rows.csv.record.json").write_text("{")
    assert lab.status() == {
        "sports/seed0/rows.csv.record.json": "modified/-",
        "sports/seed0/rows.csv": "unrecorded/-",
    }


def test_a_stray_file(lab: Lab) -> None:
    (lab.seed(0) / "notes.txt").write_text("mine")
    assert lab.status() == {"sports/seed0/notes.txt": "unrecorded/-"}
    assert lab.status(lab.seed(0) / "notes.txt") == {"sports/seed0/notes.txt": "unrecorded/-"}


def test_what_a_killed_job_left(lab: Lab) -> None:
    (lab.seed(0) / ".tmp-1-rows.csv").write_text("half")
    (lab.seed(0) / ".tmp-1-model").mkdir()
    (lab.seed(0) / ".tmp-1-model" / "w").write_text("half")
    assert lab.status() == {
        "sports/seed0/.tmp-1-model": "incomplete/-",
        "sports/seed0/.tmp-1-rows.csv": "incomplete/-",
    }


def test_what_a_live_job_is_writing(lab: Lab) -> None:
    half = lab.table.with_name(".tmp-1-table_1.csv")
    half.write_text("half")
    with locks.held(lab.table):
        assert lab.status() == {
            "tables/table_1.csv": "incomplete/ok",
            "tables/.tmp-1-table_1.csv": "incomplete/-",
        }
        assert lab.findings()["tables/.tmp-1-table_1.csv"].reasons == ("a job is writing it now",)
    assert lab.findings()["tables/.tmp-1-table_1.csv"].reasons == ("a killed job left it",)


# --- part of a run


def test_one_file_is_judged_with_all_that_is_behind_it(lab: Lab) -> None:
    lab.source("helper").write_text(SOURCES["helper"].replace("x + 1", "x + 2"))
    assert lab.status(lab.figure) == {"figure_1.csv": "ok/stale"}
    assert lab.status(lab.seed(1) / "history.csv") == {"sports/seed1/history.csv": "ok/stale"}


def test_torch_is_not_needed(lab: Lab) -> None:
    script = (
        "import sys; sys.modules['torch'] = sys.modules['pandas'] = sys.modules['transformers'] = None\n"
        "from localized_unlearning.cli import main; sys.exit(main.main(['audit', 'verify', '--json']))"
    )
    package = str(Path(localized_unlearning.__file__).parents[1])
    answer = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=lab.root,
        env=os.environ | {"PYTHONPATH": package},
    )
    assert answer.returncode == 1 and not answer.stderr, (
        answer.stderr
    )  # the toy stages are not in the table of this process
    assert {a["integrity"] for a in json.loads(answer.stdout)["artefacts"]} == {"ok"}


# --- who claims what, told by place


def plant(lab: Lab, name: str, like: Path, **change: Any) -> Path:
    """A record of a forger's: like another one, with changes, its id and key refit."""
    record = records.read(like).model_copy(update=change)
    place = like.with_name(name)
    records.write(record.model_copy(update={"key": records.key_in(record)}), place)
    return place


def test_two_records_that_claim_one_output(lab: Lab) -> None:
    record = lab.results / "tables/table_1.csv.record.json"
    shutil.copy(record, record.with_name("zz.csv.record.json"))
    found = lab.findings()
    assert found["tables/table_1.csv"].integrity == "modified"
    assert "claims it too" in found["tables/table_1.csv"].reasons[0]


def test_a_record_without_a_folder_or_with_another_runs(lab: Lab) -> None:
    record = lab.results / "tables/table_1.csv.record.json"
    plant(lab, record.name, record, folder=None)
    assert "does not say that it was made in run organism" in lab.findings()["tables/table_1.csv"].reasons[0]
    plant(lab, record.name, record, folder="results/another/tables")
    assert "made in results/another/tables" in lab.findings()["tables/table_1.csv"].reasons[0]


def test_an_invented_table_with_a_record(lab: Lab) -> None:
    record = lab.results / "tables/table_1.csv.record.json"
    output = records.read(record).outputs[0].model_copy(update={"path": "table_9.csv"})
    shutil.copy(lab.table, lab.table.with_name("table_9.csv"))
    plant(lab, "table_9.csv.record.json", record, folder=None, outputs=(output,))
    assert list(lab.findings()) == ["tables/table_9.csv"]


@pytest.mark.parametrize("name", ["report.html", "README.md", "tables/config.yaml", "sports/report.html"])
def test_a_page_without_a_record(lab: Lab, name: str) -> None:
    (lab.results / name).write_text("planted")
    assert lab.status() == {name: "unrecorded/-"}


def test_a_report_is_an_artefact_like_others(lab: Lab) -> None:
    report = lab.results / "report.html"
    pages.publish(report, "<html>", pages.REPORT, lab.root, {}, [lab.table])
    assert lab.status() == {}
    report.write_text("<html>better")
    assert lab.status() == {"report.html": "modified/ok"}
    pages.publish(report, "<html>", pages.REPORT, lab.root, {}, [lab.table])
    lab.configure(statistics={"bootstrap": 7})
    lab.resolve()
    lab.run("table", {"table": "table_1"}, {"rows": lab.rows()}, {"csv": lab.table})
    assert lab.status()["report.html"] == "ok/stale"  # it shows the old table


def test_the_report_marks_what_was_modified(lab: Lab) -> None:
    assert items._fault(lab.audit(), lab.table) == ""
    lab.table.write_text("better")
    assert items._fault(lab.audit(), lab.table).startswith("it is modified: bytes: recorded")


# --- records, whatever their times


def test_a_forged_record_is_caught_whatever_its_times(lab: Lab) -> None:
    """No clock decides: the forger's end may lie before, between or after those of the jobs around it."""
    record = lab.seed(0) / "rows.csv.record.json"
    for ended in ("2000-01-01T00:00:00.000+00:00", "2999-01-01T00:00:00.000+00:00"):
        plant(lab, record.name, record, facts={"seeds": {"order": 7}}, ended=ended)
        found = lab.findings()
        assert list(found) == ["sports/seed0/rows.csv"]
        assert "another one than" in found["sports/seed0/rows.csv"].reasons[0]


def test_the_record_of_an_input_exchanged_or_dropped(lab: Lab) -> None:
    """The record that names a wrong producer is found, and the innocent producer is not accused."""
    record = lab.results / "tables/table_1.csv.record.json"
    inputs = records.read(record).inputs
    for change in ("0" * 64, None):
        plant(lab, record.name, record, inputs=(inputs[0].model_copy(update={"record": change}), *inputs[1:]))
        assert list(lab.findings()) == ["tables/table_1.csv"]


def test_a_record_that_contradicts_itself(lab: Lab) -> None:
    record = lab.results / "tables/table_1.csv.record.json"
    output = records.read(record).outputs[0]
    plant(lab, record.name, record, outputs=(output.model_copy(update={"sha256": "0" * 64}),))
    assert "digest of csv is not that of the files" in lab.findings()["tables/table_1.csv"].reasons[0]
    shutil.copy(lab.root / "results/organism/sports/seed0/rows.csv", lab.table)  # and the bytes beside it
    plant(
        lab, record.name, record, outputs=(output,), code={**records.read(record).code, "toylab.x": "0" * 64}
    )
    assert "digest of its code" in " ".join(lab.findings()["tables/table_1.csv"].reasons)


def test_wildcards_that_do_not_fit_the_place(lab: Lab) -> None:
    record = lab.results / "tables/table_1.csv.record.json"
    plant(lab, record.name, record, wildcards={"table": "table_2"})
    assert (
        lab.findings()["tables/table_1.csv"].reasons[0]
        == "its record says table table_2, its place table table_1"
    )


def test_a_rerun_after_the_folder_was_deleted_is_no_alarm(lab: Lab) -> None:
    for _ in range(2):
        shutil.rmtree(lab.seed(0))
        lab.train(0)
        lab.evaluate(0)
    assert lab.status() == {}
    before = records.read(lab.seed(0) / "rows.csv.record.json")
    assert len(before.replaces) == 2 and before.id not in before.replaces


def test_a_run_made_again_from_nothing_beside_its_old_figures_is_no_alarm(lab: Lab) -> None:
    shutil.rmtree(lab.results)
    lab.resolve()
    for seed in (0, 1):
        lab.train(seed)
        lab.evaluate(seed)
    assert lab.status() == {}


# --- what cannot be read, or should not be


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a file one that may not be read; the user of a test may be root, whom no mode keeps out."""
    closed: set[str] = set()
    real = os.open

    def open_(path: Any, *rest: Any, **more: Any) -> int:
        if os.fspath(path) in closed:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", open_)
    return lambda path: closed.add(str(path))


def test_a_file_that_may_not_be_read(lab: Lab, unreadable: Any) -> None:
    unreadable(lab.seed(0) / "model" / "weights")
    found = lab.findings()
    assert found["sports/seed0/model"].integrity == "unreadable"
    assert "Permission denied" in found["sports/seed0/model"].reasons[0]
    assert found.keys() == {"sports/seed0/model"}


def test_a_record_that_may_not_be_read(lab: Lab, unreadable: Any) -> None:
    unreadable(lab.seed(0) / "rows.csv.record.json")
    found = lab.status()
    assert found == {
        "sports/seed0/rows.csv.record.json": "modified/-",
        "sports/seed0/rows.csv": "unrecorded/-",
    }


NESTED = "[" * 100_000


@pytest.mark.parametrize(
    "text",
    [NESTED, '{"schema_version": 2, "x": ' + "[" * 400 + "]" * 400 + "}", '{"schema_version": 1}', "[]", "null",
     '{"schema_version": 2}', "9" * 5000, "\udcff", '{"schema_version": ' + "9" * 5000 + "}"],
)  # fmt: skip
def test_a_hostile_record_is_a_finding(lab: Lab, text: str) -> None:
    place = lab.results / "tables" / "x.record.json"
    place.write_text(text, errors="surrogateescape")
    assert lab.status() == {"tables/x.record.json": "modified/-"}


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "../escaped", "/etc/passwd", "", ".", "a/b"])
def test_a_record_of_an_impossible_file(lab: Lab, name: str) -> None:
    place = lab.results / "tables/table_1.csv.record.json"
    data = json.loads(place.read_text())
    data["outputs"][0]["path"] = name
    place.write_text(json.dumps(data))
    assert lab.status() == {
        "tables/table_1.csv.record.json": "modified/-",
        "tables/table_1.csv": "unrecorded/-",
    }


def test_a_record_that_is_a_fifo(lab: Lab) -> None:
    os.mkfifo(lab.results / "tables" / "x.record.json")
    assert lab.status() == {"tables/x.record.json": "modified/-"}


def odd(folder: Path, kind: str) -> None:
    path = folder / "odd"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("weights")
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "linked folder":
        path.symlink_to(folder.parent)
    elif kind == "stamp":
        (folder / ".snakemake_planted").write_text("")
    elif kind == "socket":
        import socket

        here = os.getcwd()
        os.chdir(folder)
        socket.socket(socket.AF_UNIX).bind("odd")
        os.chdir(here)


ODD = ["FIFO", "folder", "link", "dangling", "linked folder", "stamp", "socket"]


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_plain_file_inside_an_output(lab: Lab, kind: str) -> None:
    odd(lab.seed(0) / "model", kind)
    assert lab.status()["sports/seed0/model"] == "modified/ok"
    assert "was added" in lab.findings()["sports/seed0/model"].reasons[0]


@pytest.mark.parametrize("kind", ["FIFO", "link", "dangling", "linked folder"])
def test_what_is_no_plain_file_beside_the_outputs(lab: Lab, kind: str) -> None:
    odd(lab.results / "tables", kind)
    assert lab.status() == {"tables/odd": "unrecorded/-"}


def test_snakemakes_own_mark_is_no_alarm(lab: Lab) -> None:
    (lab.seed(0) / "model" / ".snakemake_timestamp").touch()
    assert lab.status() == {}


def test_names_that_a_terminal_obeys_or_cannot_show(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (b"red \x1b[31m\n", b"not \xff utf-8"):
        Path(os.fsdecode(os.fsencode(lab.results / "tables") + b"/" + name)).write_text("x")
    assert main.main(["audit", "verify"]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\\x1b" in out and "not \\udcff utf-8" in out


# --- exit statuses


def test_a_fault_of_the_audit_is_no_finding(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a crash that ends with 1, which says that there are findings."""
    assert main.main(["audit", "verify"]) == 0
    monkeypatch.setattr(findings.Audit, "findings", lambda self: 1 / 0)
    assert main.main(["audit", "verify"]) == 2
    assert "could not do its work (ZeroDivisionError" in capsys.readouterr().err


def test_a_reader_that_leaves_and_a_full_disk(lab: Lab) -> None:
    package = str(Path(localized_unlearning.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": package, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "localized_unlearning.cli.main", "audit", "verify", "--all"]
    reader, writer = os.pipe()
    os.close(reader)
    for stream in (writer, os.open("/dev/full", os.O_WRONLY)):
        answer = subprocess.run(
            command, stdout=stream, stderr=subprocess.PIPE, cwd=lab.root, env=environment, text=True
        )
        os.close(stream)
        assert answer.returncode == 2 and "Traceback" not in answer.stderr, answer.stderr


def test_nobody_s_home(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of digests is a convenience: a home that is no folder, or none at all, keeps no audit."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/dev/null")
    assert lab.status() == {}

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    assert lab.status(quick=True) == {}


# --- inputs from outside


def test_an_input_from_outside_is_found_through_the_config_alone(lab: Lab, tmp_path: Path) -> None:
    """Its record holds the base name only; a file of that name in the current folder is another one."""
    outside = tmp_path / "elsewhere" / "facts.csv"
    outside.parent.mkdir()
    outside.write_text("1 2 3\n")
    lab.configure(athletes={"source": {"kind": "path", "path": "../elsewhere/facts.csv"}})
    lab.resolve()
    outputs = {"model": lab.seed(0) / "model", "history": lab.seed(0) / "history.csv"}
    inputs = {"data": outside, "prompts": lab.root / "workflow/prompts.yaml"}
    record = lab.run("train", {"task": "sports", "seed": "0"}, inputs, outputs)
    assert (record.inputs[0].path, record.inputs[0].outside) == ("facts.csv", True)
    (lab.root / "facts.csv").write_text("another file")
    assert lab.status() == {}
    outside.write_text("1 2\n")
    assert lab.status()["sports/seed0/model"] == "ok/stale"
    outside.write_text("1 2 3\n")
    lab.configure(athletes={"source": {"kind": "path", "path": "workflow/data.txt"}})
    reasons = next(f for f in lab.audit().findings() if f.path == outputs["model"]).reasons
    assert reasons == ("input facts.csv lies outside this folder, and the config names no such file",)


def test_what_a_method_outside_imports_is_found_beside_it(lab: Lab, tmp_path: Path) -> None:
    helper = tmp_path / "elsewhere" / "helper.py"
    helper.parent.mkdir()
    helper.write_text("1\n")
    helper.with_name("method.py").write_text("import helper\n")
    lab.configure(objectives={"erase": {"loss": "../elsewhere/method.py:ascend"}})
    lab.resolve()
    outputs = {"model": lab.seed(0) / "model", "history": lab.seed(0) / "history.csv"}
    inputs = {"data": lab.root / "workflow/data.txt", "prompts": helper}
    lab.run("train", {"task": "sports", "seed": "0"}, inputs, outputs)
    assert lab.status() == {}
    for text in ("2\n", "no Python\n"):
        helper.write_text(text)
        assert lab.status()["sports/seed0/model"] == "ok/stale"
