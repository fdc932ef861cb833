"""What the command line says to a person: every command explained, every slip answered with the right word."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from localized_unlearning.cli import words
from localized_unlearning.cli.commands import build_parser
from localized_unlearning.cli.main import main
from localized_unlearning.cli.presets import find, sentence
from localized_unlearning.config import reading
from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.workflow import ending, targets
from localized_unlearning.workflow.graph import Graph
from localized_unlearning.workflow.snakefile import Rules

ROOT = Path(__file__).resolve().parents[2]
RULES = ("all", "tables", "figures", "preflight", "report", "split")


def test_every_command_and_option_has_a_sentence() -> None:
    assert all(stage.help for stage in STAGES.values()), "jobs/stages.py: a sentence for each stage"
    assert not {name for stage in STAGES.values() for name in stage.wildcards} - words.WILDCARDS.keys()
    parser = build_parser()
    assert "Others:" not in str(parser.epilog), "cli/words.py: each command has its group"
    subparsers = next(a for a in parser._actions if isinstance(a.choices, dict))
    for name, command in dict(subparsers.choices or {}).items():
        assert command.description, name
        for action in command._actions:
            assert action.help or action.choices, f"{name} {action.dest}: an option without help"


def test_a_command_that_is_not_there_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["sumary"])
    assert exit.value.code == 2
    assert "there is no command 'sumary': did you mean 'summary'?" in capsys.readouterr().err


def test_presets_are_listed_and_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["presets"]) == 0
    said = capsys.readouterr().out
    paths = sorted((ROOT / "workflow/presets").glob("*.yaml"))
    sentences = [sentence(path) for path in paths]
    assert all(f"{path.stem} " in said for path in paths)
    assert len(set(sentences)) == len(paths) and all(
        15 < len(s) < 120 and s[-1] not in ".,:" for s in sentences
    )
    assert main(["presets", "gemma-7b"]) == 0
    assert capsys.readouterr().out == "workflow/presets/gemma-7b.yaml\n"
    with pytest.raises(UserError, match=r"did you mean gemma-7b.*presets are counterfact-sports, "):
        find("gemma7b")


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
@pytest.mark.parametrize("target", ["preflight", "all"])
def test_make_answers_a_misspelt_preset_in_one_sentence(target: str) -> None:
    """Catches a target that goes on, or says nothing, when the preset does not exist."""
    words = ["make", "--no-print-directory", "-o", "setup", target, "PRESET=gemma7"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        words,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode != 0
    assert done.stderr.splitlines()[0].startswith("error: there is no preset gemma7: did you mean gemma-7b?")
    assert not done.stdout


@pytest.mark.parametrize("command", ["summary", "report", "preflight", "costs"])
def test_from_a_wrong_folder_the_right_one_is_named(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([command, "--config", "config.yaml"]) == 1
    assert f"(this is not the workflow's folder: cd {ROOT})" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    ["summary", f"report --config {ROOT}/config.yaml", f"preflight --config {ROOT}/config.yaml", "pages", "reference", "audit verify"],
)  # fmt: skip
@pytest.mark.parametrize("folder", ["docs", None], ids=["below", "outside"])
def test_no_command_reads_another_folder_as_the_workflows(
    line: str,
    folder: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Catches a traceback for a file that lies elsewhere, and docs/results audited as if a run had made it."""
    monkeypatch.chdir(ROOT / folder if folder else tmp_path)
    assert main(line.split()) in (1, 2)
    err = capsys.readouterr()
    assert "Traceback" not in err.err
    if folder:
        assert f"cd {ROOT}" in err.err


def test_settings_are_the_defaults_files_or_a_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a preset that replaces the defaults, and files that are laid over what was not asked for."""
    monkeypatch.chdir(ROOT)
    parse = build_parser().parse_args
    base, preset = Path("config.yaml"), Path("workflow/presets/gemma-7b.yaml")
    assert parse(["costs"]).config == [base]
    assert parse(["costs", "--preset", "gemma-7b"]).config == [base, preset]
    assert parse(["costs", "--config", "a.yaml", "--config", "b.yaml"]).config == [
        Path("a.yaml"),
        Path("b.yaml"),
    ]
    assert parse(["costs", "--config", "a.yaml", "--preset", "gemma-7b"]).config == [Path("a.yaml"), preset]
    assert parse(["costs"]).config == [base]  # the default is not grown


def test_a_reader_that_goes_away_is_no_fault() -> None:
    line = f'"{sys.executable}" -c "from localized_unlearning.cli.main import main; import sys; sys.exit(main([\'presets\']))"'
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line} | true"], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        ({"finetune": {"steps": "many"}}, "finetune.steps in mine.yaml: must be a whole number (got 'many')"),
        ({"finetune": {"steps": 1.5}}, "finetune.steps in mine.yaml: must be a whole number (got 1.5)"),
        ({"relearning": 5}, "relearning in mine.yaml: must hold keys of its own (got 5)"),
        ({"statistics": {"confidence": 3}}, "statistics.confidence in mine.yaml: must be below 1.0 (got 3)"),
        ({"seeds": []}, "seeds in mine.yaml: must have at least 1 entry; it has 0 (got [])"),
        ({"seeds": 3}, "seeds in mine.yaml: must be a list (got 3)"),
        ({"compute": {"deterministic": "maybe"}}, "compute.deterministic in mine.yaml: must be true or false (got 'maybe')"),
        ({"model": {"kind": "lama"}}, "model.kind in mine.yaml: must be 'organism', 'gguf' or 'huggingface' (got 'lama')"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_in_plain_words(layer: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        reading.resolve([("mine.yaml", layer)])
    assert str(error.value) == sentence


def test_no_fault_of_a_value_is_told_in_pydantics_words() -> None:
    """Every scalar setting given a value of a wrong kind: the sentence is one of ours."""
    seen = set()
    for name, field in Config.model_fields.items():
        for value in (object(), [object()], {"x": object()}, -1e300, "§", None):
            try:
                Config.model_validate({name: value})
            except ValidationError as error:
                for found in error.errors():
                    said = reading._sentence(found["type"], found.get("ctx", {}), found["msg"])
                    seen.add(said)
                    assert not said.startswith(("Input", "Value error", "String", "Tuple")), (
                        name,
                        field,
                        found,
                    )
    assert len(seen) > 5


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("figure_17", "there is no figure_17: figures 1 to 16"),
        ("table_0", "there is no table_0: tables 1 to 4"),
        ("fig_3", "there is no target fig_3: say figure_3"),
        ("Figure3", "there is no target Figure3: say figure_3"),
        ("table-2", "there is no target table-2: say table_2"),
        ("tabels", "there is no target tabels: did you mean tables?"),
        ("prefligth", "there is no target prefligth: did you mean preflight?"),
    ],
)
def test_a_target_that_is_not_there_is_answered_with_those_that_are(word: str, sentence: str) -> None:
    graph = Graph(Config())
    with pytest.raises(UserError) as error:
        targets.check(["-n", "all", word], RULES, graph)
    assert str(error.value) == sentence
    words = ["-c2", "figure_3", "table_1", "--configfile", "my_figure_99.yaml"]
    targets.check(["results/x/tables/table_9.md", *words], RULES, graph)
    targets.check(["all", "--until", "tabels", "--config", "run=figure_17"], RULES, graph)


def test_a_stages_start_brings_no_plan() -> None:
    """Catches an import of what people's commands alone need, which every job would pay for."""
    code = "import sys, localized_unlearning.cli.commands; print('localized_unlearning.workflow.plan' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("own", "word", "sentence"),
    [
        ({"objectives": {"inject": None, "erase": {}}}, "figure_13", "no objective 'inject': add it under"),
        (
            {"organism": {"facts_in": None, "injected": 0}},
            "question",
            "needs an organism with injected facts",
        ),
        (
            {"organism": {"facts_in": None, "injected": 0}},
            "localizers",
            "needs an organism with injected facts",
        ),
        ({"attacks": {"run": []}}, "attacks", "there is no matrix of attacks in this run"),
        ({}, "icml_table_3", "take preset icml-mechanisms-gemma-2-9b"),
    ],
)
def test_a_target_that_the_config_lacks_is_refused_in_one_sentence(
    own: dict[str, Any], word: str, sentence: str
) -> None:
    """Catches Snakemake's own exception with a traceback where a sentence would do; `all` makes what there is."""
    graph = Rules([("default", reading.read_yaml(ROOT / "config.yaml")), ("mine", own)], checked=False).graph
    with pytest.raises(UserError, match=re.escape(sentence)):
        targets.check(["-n", word], RULES, graph)
    assert targets.jobs_of(graph, "all")


def test_a_failed_run_ends_with_what_its_jobs_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Below Snakemake's own account, in each job's words; a job that said nothing names its log."""
    monkeypatch.chdir(tmp_path)
    Path("split.log").write_text("reading\nerror: athlete X is in both parts: remove one\n")
    Path("preflight.log").write_text(
        "Missing:\n  a disk\n\nVerdict: not ready, 1 thing is missing: a disk.\n"
    )
    Path("quiet.log").write_text("3 of 9\n")
    block = "Error in rule {0}:\n    message: None\n    jobid: 1\n    log: {1} (check log file(s) for error details)\n"
    text = "".join(
        block.format(*names)
        for names in (("split", "split.log"), ("preflight", "preflight.log"), ("mask", "quiet.log"))
    )
    Path("snakemake.log").write_text(f"some words\n{text}Exiting\n{block.format('split', 'split.log')}")
    told = ending.findings(Path("snakemake.log").read_text())
    assert told == [
        "split: athlete X is in both parts: remove one",
        "preflight: Verdict: not ready, 1 thing is missing: a disk.",
        "mask failed: quiet.log says how",
    ]
    ending._print(told)
    assert capsys.readouterr().err.rstrip().endswith("error: mask failed: quiet.log says how")
    with pytest.raises(SystemExit, match="error: no such thing"):
        ending.refuse(UserError("no such thing"))


def test_every_rule_says_what_it_does() -> None:
    """What ``snakemake --list`` shows."""
    for path in [ROOT / "Snakefile", *(ROOT / "workflow/rules").glob("*.smk")]:
        for name, text in re.findall(
            r'^rule (\w+):\n    (?:"""(.*)""")?', path.read_text(encoding="utf-8"), re.M
        ):
            assert text, f"{path.name}: rule {name}"


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_make_refuses_a_setting_that_it_does_not_have() -> None:
    """Catches `make all CONFIG=mine.yaml`, which would run the default."""
    words = ["make", "-n", "help", "CONFIG=mine.yaml"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode != 0 and "no setting CONFIG: it has PYTHON" in done.stderr
