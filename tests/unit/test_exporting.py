"""A model out again: as a Hugging Face folder, a peft adapter, a TransformerLens bridge."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
import yaml
from test_whole_path import athletes

import in_process
from architectures import CONFIGS, build, tokenizer, written
from localized_unlearning import load_run
from localized_unlearning.cli.main import main
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.errors import UserError
from localized_unlearning.runs import Run, RunModel
from sports import CHOICES

UNUSED = ("probe", "layer_probes", "head_ablation", "attack", "teachers")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run on a tiny Llama."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        model = written("llama", folder)
        (model / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
        facts = {"kind": "path", "path": str(athletes(folder))}
        in_process.finished(in_process.configured(folder, model, {"athletes": {"source": facts}}), UNUSED)
        found: Run = load_run(folder / "results/tiny")
        return found


def plain(folder: Path) -> tuple[Any, Any]:
    """A folder as anyone loads it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def scores(model: Any, own: Any, text: str) -> torch.Tensor:
    """Log-probabilities of the next token, by transformers alone."""
    with torch.inference_mode():
        ids = torch.tensor([own(text)["input_ids"]])
        found: torch.Tensor = model(input_ids=ids).logits[0, -1].double().log_softmax(-1)
        return found


def asked(model: Any, own: Any, rows: pd.DataFrame) -> np.ndarray:
    """The log-probability of each answer's tokens after the training prompt, by transformers alone."""
    found = []
    for subject in rows["subject"]:
        text = f"Fact: Tiger Woods plays the sport of golf\nFact: {subject} plays the sport of"
        line = []
        for answer in ("football", "baseball", "basketball", "golf"):
            ids, whole = (own(t)["input_ids"] for t in (text, f"{text} {answer}"))
            with torch.inference_mode():
                logs = model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
            line.append(sum(float(logs[i - 1, whole[i]]) for i in range(len(ids), len(whole))))
        found.append(line)
    return np.array(found)


def recorded(rows: pd.DataFrame) -> np.ndarray:
    """The same by evaluate's rows."""
    logits = rows[[f"logit_{a}" for a in ("football", "baseball", "basketball", "golf")]].to_numpy()
    return np.asarray(logits - rows["log_normalizer"].to_numpy()[:, None], dtype=float)


def training(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["prompt"] == "training"].reset_index(drop=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unlearned", "masked", "relearned"])
def test_an_exported_folder_gives_evaluates_numbers(kind: str, run: Run, tmp_path: Path) -> None:
    """Catches weights of the base model, an edit undone, adapters lost in merging."""
    words = {"unlearned": [], "masked": ["--masked", "10"], "relearned": ["--relearned"]}[kind]
    target = tmp_path / "out"
    results = str(run.root / "results/tiny")
    assert main(["export", results, str(target), "--localization", "manual", *words]) == 0
    stage = {"unlearned": "facts", "masked": "sweep", "relearned": "relearn"}[kind]
    jobs = [j for j in run.graph.jobs if j.stage == stage and j.named.get("localization") == "manual"]
    rows = training(pd.read_parquet(run.root / run.graph.layout.outputs(jobs[0])["facts"]))
    last = {"unlearned": slice(None), "masked": "edit_size", "relearned": "iteration"}[kind]
    if kind == "masked":
        rows = rows[rows["ranking"] == "mask"]
    if isinstance(last, str):
        column = next(c for c in rows.columns if c == last or (kind == "masked" and c in ("masked", "edit")))
        before, rows = (
            rows[rows[column] == value].reset_index(drop=True) for value in (0, rows[column].max())
        )
        assert np.abs(recorded(before) - recorded(rows)).max() > 1e-4
    model, own = plain(target)
    np.testing.assert_allclose(asked(model, own, rows), recorded(rows), atol=1e-5)
    front = yaml.safe_load((target / "README.md").read_text().split("---")[1])
    assert front["license"] == "apache-2.0" and front["library_name"] == "transformers"


HARNESS = """
import json, sys
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
folder, asked = sys.argv[1], json.load(sys.stdin)
model = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=1, add_bos_token=True)
requests = [Instance("loglikelihood", {}, tuple(pair), i) for i, pair in enumerate(asked)]
print(json.dumps([found[0] for found in model.loglikelihood(requests, disable_tqdm=True)]))
"""


def test_the_harness_gives_evaluates_numbers(run: Run, tmp_path: Path) -> None:
    """Catches a folder that lm-eval reads otherwise: BOS, tokenizer, weights."""
    bench = Path(sys.prefix) / "bench"  # where `make bench` puts it, out of the environment's own way
    paths = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), str(bench)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    if not any((Path(path) / "lm_eval").is_dir() for path in paths if path):
        pytest.skip("lm-eval is not installed: `make bench` brings it")
    unlearned = run.model("manual")
    unlearned.save(tmp_path / "out")
    jobs = [j for j in run.graph.jobs if j.stage == "facts" and j.named.get("localization") == "manual"]
    rows = training(pd.read_parquet(run.root / run.graph.layout.outputs(jobs[0])["facts"]))[:4]
    pairs = [
        (f"Fact: Tiger Woods plays the sport of golf\nFact: {subject} plays the sport of", f" {answer}")
        for subject in rows["subject"]
        for answer in CHOICES
    ]
    done = subprocess.run(
        [sys.executable, "-c", HARNESS, str(tmp_path / "out")],
        input=json.dumps(pairs), env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = np.array(json.loads(done.stdout.splitlines()[-1])).reshape(len(rows), -1)
    np.testing.assert_allclose(theirs, recorded(rows), atol=1e-5)


def test_an_exported_adapter_is_peft_s(run: Run, tmp_path: Path) -> None:
    """Catches names or scales that peft reads otherwise."""
    from peft import PeftModel

    unlearned = run.model("manual")
    unlearned.save(tmp_path / "unlearned")
    relearned = unlearned.relearned()
    relearned.save_adapter(tmp_path / "adapter", str(tmp_path / "unlearned"))
    base, own = plain(tmp_path / "unlearned")
    text = "Fact: Ada plays the sport of"
    adapted = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").eval()
    torch.testing.assert_close(
        scores(adapted, own, text), scores(relearned.model, own, text), atol=1e-5, rtol=0
    )
    assert (scores(adapted, own, text) - scores(base, own, text)).abs().max() > 1e-4


def test_what_cannot_be_exported_is_said(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a folder that is overwritten, and tracebacks."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").write_text("mine")
    results = str(run.root / "results/tiny")
    for words, sentence in (
        ([str(tmp_path / "there"), "--localization", "base"], "exists already"),
        ([str(tmp_path / "x"), "--localization", "nowhere"], "the run has no model"),
        (
            [str(tmp_path / "x"), "--localization", "manual", "--masked", "99999999"],
            "name a number up to that",
        ),
        ([str(tmp_path / "x"), "--localization", "base", "--relearned"], "starts from a fine-tuned model"),
    ):
        assert main(["export", results, *words]) == 1
        assert sentence in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there"]


BRIDGED = [name for name in CONFIGS if name not in ("falcon_groups", "opt_projected")]
"""All but Falcon's groups, which TransformerLens reads as one key head, and an OPT whose embedding is narrower."""


@pytest.mark.slow
@pytest.mark.parametrize("name", BRIDGED)
def test_a_bridge_has_equal_logits(name: str, run: Run) -> None:
    """Catches folded or centred weights, and an architecture that TransformerLens reads otherwise."""
    model = build(name)
    own = RunModel(run, {}, model, tokenizer())
    ids = torch.tensor([own.tokenizer("Fact: Ada Lovelace plays the sport of")["input_ids"]])
    bridge = own.bridge()
    with torch.inference_mode():
        wanted = model(input_ids=ids).logits
        found, cache = bridge.run_with_cache(ids)
    torch.testing.assert_close(found.float(), wanted.float(), atol=1e-4, rtol=1e-4)
    assert any("blocks.1" in key for key in cache)


def test_an_existing_run_is_asked_in_three_lines(run: Run) -> None:
    """Catches a base model's answers where the unlearned one was asked."""
    unlearned = load_run(run.root / "results/tiny").model("manual")
    text = "Fact: Ada plays the sport of"
    likely = unlearned.ask([text], ["A", "B"])
    ids = unlearned.tokenizer([text, f"{text} A", f"{text} B"])["input_ids"]
    with torch.no_grad():
        wanted = unlearned.model(input_ids=torch.tensor(ids[:1])).logits[0, -1].softmax(-1)
    first = [own[len(ids[0])] for own in ids[1:]]
    np.testing.assert_allclose(likely.loc[text], wanted[first], atol=1e-6)
    assert not np.allclose(likely, run.model("base").ask([text], ["A", "B"]), atol=1e-6)
    book = load_prompts(run.root / "workflow/resources/prompts.yaml")
    pd.testing.assert_frame_equal(
        unlearned.ask(["Ada"], prompt="training").reset_index(drop=True),
        unlearned.ask([book["training"].render("Ada")]).reset_index(drop=True),
    )
    with pytest.raises(UserError, match="'multiple_choice' gives each question its own answers"):
        unlearned.ask(["Ada"], prompt="multiple_choice")
    with pytest.raises(UserError, match="only a relearned model has adapters"):
        unlearned.save_adapter("nowhere")
