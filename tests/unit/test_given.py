"""What a config names and is not there: refused in one sentence as soon as it is read, and in preflight's verdict."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from localized_unlearning.cli.main import main
from localized_unlearning.config import reading
from localized_unlearning.errors import UserError
from localized_unlearning.workflow.snakefile import Rules
from tiny_base import ROOT

BAD = {
    "compute: {device: gpu}": "compute.device .*must be auto, cpu, cuda or cuda:N",
    "compute: {device: 'cuda:x'}": "compute.device .*must be auto, cpu, cuda or cuda:N",
    "model: {revision: abc}": "model.revision is for kind huggingface, not organism",
    "localizations: {manual: {layers: [99]}}": "manual.layers names layer 99, and the model has layers 0 to 4",
    "localizations: {manual: {layers: [-1]}}": "manual.layers names layer -1",
    "localizations: {manual: {mask: {layers: [5]}}}": "manual.mask.layers names layer 5",
    "localizations: {manual: {fraction: 0.2}}": "manual.fraction is for kind scores and weights and random, not manual",
    "localizations: {manual: {seed: 3}}": "manual.seed is for kind random and matched_draw",
    "localizations: {all_mlps: {disjoint: true}}": "all_mlps.disjoint is for kind matched_draw",
    "localizations: {manual: {layers: [1], rise: [0.1, 0.5]}}": "manual.rise is for layers auto",
    "interpretability: {lookup_end: 5}": "interpretability.lookup_end is 5, and the model has layers 0 to 4",
    "attacks: {quantization: {group: 48}}": "group is 48, which does not divide the 64 columns .*: choose a divisor",
    "attacks: {run: [logit_lens], logit_lens: {layers: [5]}}": "logit_lens.layers names layer 5, and the model has layers 0",
    "overlap: {mechanisms: {mine: {label: Mine, heads: {1: [99]}}}}": "mechanisms.mine names head 99, and the model has heads 0 to",
    "overlap: {mechanisms: {mine: {label: Mine, mlps: [5]}}}": "mechanisms.mine names layer 5, and the model has layers 0 to 4",
    "overlap: {mechanisms: {mine: {label: Mine}}}": "a mechanism needs heads or mlps",
    "overlap: {tasks: [chess]}": "overlap.tasks names chess, which is not under 'tasks'",
    "{overlap: {masked: 10}, mask_seeds: []}": "overlap.masked needs masks, and mask_seeds is empty",
    "overlap: {masked: 99000000}": "overlap.masked is 99,000,000, and masks rank .* weights: raise masking.edit_sizes",
    "scores: {attribution_patching: {noise: 2.0}}": "noise is for causal_tracing, not attribution_patching",
    "scores: {attribution_patching: {sites: blocks}}": "sites is for causal_tracing",
    "scores: {causal_tracing: {replace_guessed: false}}": "replace_guessed is for all methods but causal_tracing",
    "scores: {causal_tracing: {parameters: {steps: 3}}}": "parameters is for the other methods",
    "prompts: {training: nothere}": "prompts.training is 'nothere', .*no such prompt: name one of",
    "prompts: {question: multiple_choice}": "prompts.question is 'multiple_choice', which has options",
    "prompts: {multiple_choice: question}": "prompts.multiple_choice is 'question', which has no options",
    "prompts: {file: nowhere.yaml}": "the prompts file nowhere.yaml does not exist",
    "evaluation: {prompts: [nope]}": "evaluation.prompts .nope. is 'nope'",
    "tasks: {sports: {relearn: [Nobody Atall]}}": "tasks.sports.relearn names 'Nobody Atall', which is no subject",
    "tasks: {athletes: {forget: {draw: null, balanced: false, athletes: [Nobody]}}}": "athletes.forget names 'Nobody'",
    "tasks: {sports: {forget: {answer: golf}}}": "forget.answer is 'golf', which no fact has: name one of baseball",
    "tasks: {athletes: {forget: {draw: 5000}}}": "forget.draw is 5000, and there are .* subjects",
    "objectives: {inject: {target: chess}}": "inject.target is 'chess', which is none of the answers",
    "athletes: {made_up_names: nowhere.txt}": "made_up_names is nowhere.txt, which does not exist",
}  # fmt: skip


@pytest.mark.parametrize("overlay", BAD)
def test_what_is_not_there_is_refused_when_the_config_is_read(overlay: str, checkout: Path) -> None:
    """Catches a name that fails hours later, and a setting that does nothing and is taken without a word."""
    (checkout / "overlay.yaml").write_text(overlay)
    with pytest.raises(UserError, match=BAD[overlay]) as error:
        Rules(reading.overlays([Path("config.yaml"), Path("overlay.yaml")]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "preset",
    [None, *sorted((ROOT / "workflow/presets").glob("*.yaml"))],
    ids=lambda p: p.stem if p else "default",
)
def test_what_is_shipped_is_taken(preset: Path | None, checkout: Path) -> None:
    """Catches a check that refuses what is in order."""
    Rules(reading.overlays([Path("config.yaml"), *([preset] if preset else [])]))


def preflight(overlay: dict[str, object] | str, checkout: Path) -> tuple[int, str]:
    """Exit status and what preflight prints."""
    text = overlay if isinstance(overlay, str) else yaml.safe_dump(overlay)
    (checkout / "overlay.yaml").write_text(text)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main(["preflight", "--config", "config.yaml", "--config", "overlay.yaml"])
    return status, out.getvalue()


@pytest.mark.parametrize(
    "overlay",
    [*list(BAD)[:4], "athletes: {source: {path: bad.csv}}", "text: {train: {path: bad.csv}, held_out: {path: Snake}}",
     "mmlu: {source: {path: bad.csv}}", "prompts: {file: bad.csv}", "nonsense: 1", "a: ["],
)  # fmt: skip
def test_preflight_ends_with_its_verdict(overlay: str, checkout: Path) -> None:
    """Catches a traceback, and a cost below zero."""
    (checkout / "bad.csv").write_bytes(os.urandom(64))
    status, said = preflight(overlay, checkout)
    assert status == 1 and said.rstrip().endswith("missing: the run would stop.")
    assert "Traceback" not in said and " -" not in said.replace(" --", "").replace("|--", "")


def test_preflight_says_a_fault_once(checkout: Path) -> None:
    """Catches a prompts file's fault told by every check that reads it, and counted as so many things."""
    prompt = {"text": "{subject}?\n{options}", "options": 4}
    (checkout / "prompts.yaml").write_text(yaml.safe_dump({"prompts": {"multiple_choice": prompt}}))
    own = {"prompts": {"file": "prompts.yaml"}, "objectives": {"inject": {"target": "random_other"}}}
    _, said = preflight(own, checkout)
    assert said.count("asks for 4 options") == 1 and "not ready, 1 thing is missing" in said


def test_preflight_looks_at_facts_of_any_relation(checkout: Path) -> None:
    """Catches classes with too few rows, and a forget set larger than all there is, which made costs negative."""
    (checkout / "facts.csv").write_text(
        "subject,answer\nParis,France\nLyon,France\nRome,Italy\nFlo,flo\nflo,flo\n"
    )
    shutil.copy(ROOT / "workflow/resources/prompts.yaml", checkout / "prompts.yaml")
    book: dict[str, Any] = {
        "prompts": {name: {"text": f"{name}: {{subject}} is in"} for name in ("training", "question")}
    }
    book["prompts"]["multiple_choice"] = {
        "text": "{subject}?\n{options}\nAnswer:",
        "options": ["France", "Italy"],
    }
    (checkout / "prompts.yaml").write_text(yaml.safe_dump(book))
    overlay = {
        "athletes": {"source": {"path": "facts.csv"}},
        "prompts": {"file": "prompts.yaml"},
        "tasks": {
            "sports": {"forget": {"answer": "France"}},
            "athletes": {"forget": {"draw": 2, "balanced": False}},
        },
        "objectives": {"inject": {"target": "Italy"}},
    }
    status, said = preflight(overlay, checkout)
    assert status == 1 and "the answer 'Italy' has 1 subject" in said
    (checkout / "facts.csv").write_text(
        "subject,answer\nParis,France\nLyon,France\nRome,Italy\nFlo,Italy\nflo,Italy\n"
    )
    status, said = preflight(overlay, checkout)
    assert "5 subjects with 2 answers" in said and "'Flo' and 'flo' differ in case" in said
    assert status == 0 and said.rstrip().endswith("Nothing is missing.")
