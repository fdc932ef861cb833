"""What others expect of a repository is there and names what exists: catalogue, containers, CI, citation."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import localized_unlearning

ROOT = Path(__file__).resolve().parents[2]
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
INSTRUCTIONS = {"FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "CMD"}
SECTIONS = {"arguments", "files", "post", "environment", "runscript", "test"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def named_things(text: str) -> set[str]:
    """Targets of make and locks that a text names."""
    return set(re.findall(r"\bmake ([\w-]+)", text)) | set(re.findall(r"envs/\w+\.\w+", text))


@pytest.mark.parametrize(
    "name", ["containers/Dockerfile", "containers/apptainer.def", ".github/workflows/ci.yml", ".ci/run", "CONTRIBUTING.md",
             ".snakemake-workflow-catalog.yml", "README.md"]
)  # fmt: skip
def test_what_is_named_exists(name: str) -> None:
    """Catches a recipe that outlived a target or a lock."""
    for thing in named_things(read(name)):
        assert thing in TARGETS or (ROOT / thing).is_file(), f"{name} names {thing}"


def test_the_dockerfile_reads_as_one() -> None:
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", read("containers/Dockerfile"), flags=re.M))
    lines = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    assert lines[0][0] == "FROM" and {word for word, _ in lines} <= INSTRUCTIONS
    for word, rest in lines:
        if word == "RUN":
            assert shlex.split(rest)
    base = lines[0][1]
    assert f"From: {base}" in read("containers/apptainer.def"), "both recipes build on one image"


def test_the_apptainer_definition_reads_as_one() -> None:
    text = re.sub(r"^#.*\n", "", read("containers/apptainer.def"), flags=re.M)
    header, *sections = re.split(r"^%", text, flags=re.M)
    assert dict(line.split(": ", 1) for line in header.split("\n") if line)["Bootstrap"] == "docker"
    assert {section.split(maxsplit=1)[0] for section in sections} == SECTIONS


def test_the_ci_file_does_what_ci_run_does() -> None:
    workflow: dict[str, Any] = yaml.safe_load(read(".github/workflows/ci.yml"))
    runs = "\n".join(step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"])
    for target in set(re.findall(r"^step make ([\w-]+)|\(step make ([\w-]+)", read(".ci/run"), re.M)):
        assert f"make {target[0] or target[1]}" in runs
    for job in workflow["jobs"].values():
        assert "timeout-minutes" in job and all("uses" in step or "run" in step for step in job["steps"])


def test_the_catalogue_finds_a_workflow_and_its_configuration() -> None:
    assert 'include: "../Snakefile"' in read("workflow/Snakefile") and read("config/README.md")
    usage = yaml.safe_load(read(".snakemake-workflow-catalog.yml"))["usage"]
    assert {"software-stack-deployment", "report"} <= usage.keys()


def test_the_version_is_one() -> None:
    """CITATION, changelog and package; a tag carries the changelog's newest version."""
    assert yaml.safe_load(read("CITATION.cff"))["version"] == localized_unlearning.__version__
    newest = re.search(r"^## \[([\d.]+)\] - (\S+)", read("CHANGELOG.md"), re.M)
    assert newest and newest[1] == localized_unlearning.__version__
    assert newest[2] == yaml.safe_load(read("CITATION.cff"))["date-released"]


def test_the_citation_names_where_the_repository_is_published() -> None:
    """A checkout of a public host must say so; one without such a remote has no address to give."""
    words = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
    said = subprocess.run(words, capture_output=True, text=True).stdout.strip()
    if not re.search(r"git(hub|lab)\.com|codeberg\.org", said):
        pytest.skip("this checkout has no remote on a public host")
    name = re.sub(r"^(?:https://|ssh://)?(?:git@)?([^:/]+)[:/](.*?)(?:\.git)?$", r"https://\1/\2", said)
    assert yaml.safe_load(read("CITATION.cff")).get("repository-code") == name
