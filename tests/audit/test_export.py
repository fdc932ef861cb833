"""The exported crate: another library reads it, nothing dangles, every digest is that of its file."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import Lab

from localized_unlearning.audit import crate
from localized_unlearning.cli import main
from localized_unlearning.errors import UserError
from localized_unlearning.provenance import records

WEB = "http"  # terms and pages on the web, which a crate need not describe


@pytest.fixture
def flow(lab: Lab) -> Lab:
    """The toy run with a workflow around it."""
    (lab.root / "Snakefile").write_text("# the toy workflow\n")
    return lab


def exported(lab: Lab, out: Path, *words: str) -> dict[str, dict[str, Any]]:
    """The entities of the toy run's crate, by identifier."""
    assert main.main(["audit", "export", "--out", str(out), *words]) == 0
    graph = json.loads((out / "ro-crate-metadata.json").read_text())["@graph"]
    assert len({entity["@id"] for entity in graph}) == len(graph)
    return {entity["@id"]: entity for entity in graph}


def types(entity: dict[str, Any]) -> list[str]:
    found = entity["@type"]
    return found if isinstance(found, list) else [found]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for inner in value:
            yield from references(inner)
    elif isinstance(value, dict):
        yield value["@id"]


def many(entity: dict[str, Any], name: str) -> list[str]:
    return list(references(entity.get(name, [])))


def dangling(entities: dict[str, dict[str, Any]]) -> set[str]:
    """References to what the crate does not describe."""
    named = {r for e in entities.values() for name, v in e.items() if name[0] != "@" for r in references(v)}
    return {name for name in named - set(entities) if not name.startswith(WEB)}


def test_every_file_is_there_with_its_digest_and_nothing_dangles(flow: Lab, tmp_path: Path) -> None:
    """Catches a crate whose metadata speak of other bytes than it holds, or of nothing."""
    out = tmp_path / "crate"
    entities = exported(flow, out)
    assert dangling(entities) == set()
    files = {name: e for name, e in entities.items() if "File" in types(e)}
    for name, entity in files.items():
        data = (out / name).read_bytes()
        assert entity["sha256"] == hashlib.sha256(data).hexdigest(), name
        assert entity["contentSize"] == str(len(data))
    there = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert there == {*files, "ro-crate-metadata.json"}
    assert {"Snakefile", "config.yaml", "workflow/data.txt", "results/organism/sports/seed0/model/weights",
            "results/organism/tables/table_1.csv.record.json"} <= set(files)  # fmt: skip
    assert str(flow.root) not in (out / "ro-crate-metadata.json").read_text()  # nothing absolute


def test_another_library_reads_it_back(flow: Lab, tmp_path: Path) -> None:
    from rocrate import rocrate

    out = tmp_path / "crate"
    entities = exported(flow, out)
    read = rocrate.ROCrate(out)
    assert read.mainEntity.id == "Snakefile" and len(list(read.get_entities())) == len(entities)
    (job,) = [a for a in read.get_by_type("CreateAction") if a["name"] == "train, seed 1, task sports"]
    results = {part["name"] for part in job["result"]}
    assert results == {"results/organism/sports/seed1/model", "results/organism/sports/seed1/history.csv"}
    given = {value["name"]: value["value"] for value in job["object"] if value["@type"] == "PropertyValue"}
    assert given["seed"] == "1" and json.loads(given["finetune"])["lambda_retain"] == 1.0


def test_the_profile_s_required_properties(flow: Lab, tmp_path: Path) -> None:
    """What the Process, Workflow and Provenance Run Crate profiles 0.5 say a crate MUST have."""
    entities = exported(flow, tmp_path / "crate")
    root = entities["./"]
    profiles = many(root, "conformsTo")
    assert set(profiles) == set(crate.PROFILES) and all(
        "CreativeWork" in types(entities[p]) for p in profiles
    )
    assert root["license"] and root["datePublished"] and root["name"] and root["description"]
    workflow = entities[root["mainEntity"]["@id"]]
    assert {"File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"} <= set(types(workflow))
    assert types(entities[workflow["programmingLanguage"]["@id"]]) == ["ComputerLanguage"]
    kinds: dict[str, list[dict[str, Any]]] = {}
    for entity in entities.values():
        for kind in types(entity):
            kinds.setdefault(kind, []).append(entity)
    actions = {action["@id"] for action in kinds["CreateAction"]}
    tools = {name for e in kinds["CreateAction"] for name in many(e, "instrument")}
    assert len(actions) == 7 and workflow["@id"] in tools
    assert set(many(workflow, "hasPart")) == tools - {workflow["@id"]}
    for step in kinds["HowToStep"]:
        assert step["@id"] in many(workflow, "step") and set(many(step, "workExample")) <= tools
    for control in kinds["ControlAction"]:
        assert "HowToStep" in types(entities[control["instrument"]["@id"]])
        assert control["object"]["@id"] in actions
    (organize,) = kinds["OrganizeAction"]
    assert types(entities[organize["instrument"]["@id"]]) == ["SoftwareApplication"]
    assert organize["result"]["@id"] in actions
    assert set(many(organize, "object")) == {control["@id"] for control in kinds["ControlAction"]}
    for parameter in kinds["FormalParameter"]:
        examples = [entities[name] for name in many(parameter, "workExample")]
        assert examples and {kind for e in examples for kind in types(e)} & {parameter["additionalType"]}
        assert all(parameter["@id"] in many(e, "exampleOfWork") for e in examples)
    for owner in (*kinds["SoftwareApplication"], workflow):
        for name in (*many(owner, "input"), *many(owner, "output")):
            assert types(entities[name]) == ["FormalParameter"]


def test_an_unpacked_crate_verifies(
    flow: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is a results folder like any other."""
    assert main.main(["audit", "export", "--out", str(tmp_path / "crate.zip")]) == 0
    assert not (tmp_path / "crate").exists()
    zipfile.ZipFile(tmp_path / "crate.zip").extractall(tmp_path / "unpacked")
    monkeypatch.chdir(tmp_path / "unpacked")
    capsys.readouterr()
    assert main.main(["audit", "verify"]) == 0
    assert capsys.readouterr().out == "9 artefacts of 6 jobs. Integrity: 9 ok. Currency: 9 ok.\n"


def test_one_figure_comes_with_what_is_behind_it_only(flow: Lab, tmp_path: Path) -> None:
    entities = exported(flow, tmp_path / "crate", str(flow.figure))
    names = {e["name"] for e in entities.values() if "CreateAction" in types(e)}
    assert names == {
        "run of localized-unlearning", "table, table figure_1", "evaluate, seed 0, task sports",
        "train, seed 0, task sports",
    }  # fmt: skip


def test_files_by_reference_are_named_by_content_or_address(flow: Lab, tmp_path: Path) -> None:
    entities = exported(flow, tmp_path / "a", "--files-up-to", "0")
    assert dangling(entities) == set()
    assert not list((tmp_path / "a").rglob("weights")) and list((tmp_path / "a").rglob("*.record.json"))
    table = next(e for e in entities.values() if e.get("name") == "results/organism/tables/table_1.csv")
    assert table["@id"].startswith("ni:///sha-256;")
    assert table["sha256"] == hashlib.sha256(flow.table.read_bytes()).hexdigest()
    entities = exported(flow, tmp_path / "b", "--files-up-to", "0", "--url", "https://example.org/data/")
    assert "https://example.org/data/results/organism/tables/table_1.csv" in entities


def test_an_input_that_is_another_one_now_is_named_as_it_was(flow: Lab, tmp_path: Path) -> None:
    """Catches today's data in the place of what the job read."""
    before = hashlib.sha256((flow.root / "workflow/data.txt").read_bytes()).hexdigest()
    (flow.root / "workflow/data.txt").write_text("9 9 9\n")
    entities = exported(flow, tmp_path / "crate")
    (data,) = [e for e in entities.values() if e.get("name") == "workflow/data.txt"]
    assert data["sha256"] == before and data["@id"].startswith("ni:")
    assert not (tmp_path / "crate/workflow/data.txt").exists()


def test_an_adopted_file_is_shown_as_one(flow: Lab, tmp_path: Path) -> None:
    flow.table.write_text("better\n")
    assert main.main(["audit", "adopt", str(flow.table), "--reason", "typed by hand"]) == 0
    table = exported(flow, tmp_path / "crate")["results/organism/tables/table_1.csv"]
    assert table["description"] == "taken into the record by a person: typed by hand"


def test_what_is_not_exported(flow: Lab, tmp_path: Path) -> None:
    flow.table.write_text("better\n")
    with pytest.raises(UserError, match=r"table_1\.csv is modified .* make it again"):
        crate.export(flow.audit(), tmp_path / "crate")
    assert not (tmp_path / "crate").exists()
    with pytest.raises(UserError, match="exists"):
        crate.export(flow.audit(), tmp_path)
    with pytest.raises(UserError, match="no record of a job"):
        crate.export(flow.audit(flow.results / "config.yaml"), tmp_path / "crate")
    (flow.root / "Snakefile").unlink()
    with pytest.raises(UserError, match="--root"):
        crate.export(flow.audit(), tmp_path / "crate")


RUN_TERMS = {name: f"https://w3id.org/ro/terms/workflow-run#{name}" for name in ("environment", "sha256")}
CRATE_TERMS = {
    "ComputationalWorkflow": "https://bioschemas.org/ComputationalWorkflow",
    "FormalParameter": "https://bioschemas.org/FormalParameter",
    "input": "https://bioschemas.org/ComputationalWorkflow#input",
    "output": "https://bioschemas.org/ComputationalWorkflow#output",
}
"""Where the context of RO-Crate 1.1, which the profile builds on, differs from 1.3, which ``rocrate`` brings."""


def test_the_validator_accepts_it(flow: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``roc-validator`` on all three profiles, the contexts that it would fetch given from files."""
    services = pytest.importorskip(
        "rocrate_validator.services",
        reason="roc-validator is not installed: pip install roc-validator==0.13.0",
    )
    import requests
    import rocrate
    from rocrate_validator import models
    from rocrate_validator.utils import http

    own = json.loads((Path(rocrate.__file__).parent / "data/ro-crate.jsonld").read_text())["@context"]

    def local(_: Any, url: str, **__: Any) -> requests.Response:
        answer = requests.Response()
        answer.status_code, answer.headers["Content-Type"] = 200, "application/ld+json"
        terms = {**own, **CRATE_TERMS} if "/ro/crate/" in url else RUN_TERMS
        answer._content = json.dumps({"@context": terms}).encode()
        return answer

    monkeypatch.setattr(http.HttpRequester, "get", local, raising=False)
    exported(flow, tmp_path / "crate")

    def issues() -> list[str]:
        settings = services.ValidationSettings(
            rocrate_uri=str(tmp_path / "crate"),
            profile_identifier="provenance-run-crate",
            requirement_severity=models.Severity.REQUIRED,
        )
        found = services.validate(settings).get_issues()
        return [f"{issue.check.identifier}: {issue.message} {issue.violatingEntity}" for issue in found]

    assert issues() == []
    metadata = tmp_path / "crate/ro-crate-metadata.json"
    metadata.write_text(metadata.read_text().replace('"workExample"', '"workFeatured"'))
    assert issues()  # it would have noticed


def test_a_crate_of_the_same_run_has_the_same_bytes(flow: Lab, tmp_path: Path) -> None:
    for name in "ab":
        exported(flow, tmp_path / name)
    one, other = ((tmp_path / name / "ro-crate-metadata.json").read_text() for name in "ab")
    assert one == other
    assert records.read(flow.results / "tables/table_1.csv.record.json").key in one
    shutil.rmtree(tmp_path / "a")
