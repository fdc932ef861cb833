"""Bad input, given to the workflow as a user would: one clear sentence, and nothing half-written."""

from __future__ import annotations

import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from localized_unlearning.config.reading import merge
from tiny_run import TINY, configure, environment, snakemake, workplace


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A fresh checkout with the tiny overlay."""
    return workplace(tmp_path)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose tiny organism is measured, split and selected; only training is to be done."""
    place = workplace(tmp_path_factory.mktemp("pretrained"))
    done = snakemake(
        place, "results/tiny/base0/sports/selections/manual.json", "results/tiny/base0/sports/split.parquet"
    )
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    """An HTTP server over a folder of files, with its address."""
    (folder / "served").mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def said(done: subprocess.CompletedProcess[str], sentence: str) -> bool:
    """Whether a failed run told its user ``sentence`` (a pattern), without a traceback."""
    text = done.stdout + done.stderr
    assert done.returncode != 0, text
    assert "Traceback" not in text, text
    return re.search(sentence, " ".join(text.split())) is not None


def written(folder: Path) -> set[str]:
    """What a run left under results/, beside the resolved config and the kept sources."""
    found = {p.relative_to(folder / "results/tiny").as_posix() for p in (folder / "results").rglob("*")}
    return {p for p in found if not p.startswith(".sources") and p not in ("config.yaml", ".")}


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return snakemake(folder, *words, "--show-failed-logs")


def test_a_corrupt_download_leaves_nothing(folder: Path, server: str) -> None:
    (folder / "served" / "athletes.csv").write_text("athlete,sport\nAda Ace,football\n")
    source = {"kind": "url", "path": None, "url": f"{server}/athletes.csv", "sha256": "0" * 64}
    configure(folder, merge(TINY, {"athletes": {"source": source}}))
    done = run(folder, "results/tiny/sources/athletes.source")
    assert said(done, r"athletes\.csv.* SHA-256 .*"), done.stderr
    assert not any("athletes" in name for name in written(folder)), written(folder)


def test_a_missing_column_is_named(folder: Path) -> None:
    (folder / "facts.csv").write_text("name,sport\nAda Ace,football\n")
    configure(folder, merge(TINY, {"athletes": {"source": {"path": "facts.csv"}}}))
    done = run(folder, "results/tiny/base0/known.parquet")
    assert said(done, r"facts\.csv has no column 'subject' \(it has name, sport\)"), done.stderr
    assert not any("base_model" in name for name in written(folder))


def test_a_model_without_a_tokenizer_is_named(folder: Path) -> None:
    import transformers

    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=8)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    configure(folder, merge(TINY, {"model": {"kind": "huggingface", "name": "model"}}))
    done = run(folder, "results/tiny/base0/sports/selections/manual.json")
    assert said(done, r"model has no tokenizer .*put the model's tokenizer files there"), done.stderr
    assert not any("selections/manual.json" in name for name in written(folder))


def test_an_athlete_in_both_parts_is_refused(pretrained: Path) -> None:
    path = pretrained / "results/tiny/base0/sports/split.parquet"
    kept = path.read_bytes()
    split = pd.read_parquet(path)
    split.loc[split["test"], "train"] = True
    command = ("localized-unlearning", "audit", "adopt", str(path), "--reason", "a test")
    delta = "results/tiny/base0/sports/erase/manual/seed0/delta.safetensors"
    try:
        split.to_parquet(path, index=False)
        changed = run(pretrained, delta, "--forcerun", "finetune")
        subprocess.run(command, cwd=pretrained, env=environment(pretrained), check=True, capture_output=True)
        adopted = run(pretrained, delta, "--forcerun", "finetune")
    finally:
        path.write_bytes(kept)
        forget = ("localized-unlearning", "audit", "forget", str(path))
        subprocess.run(forget, cwd=pretrained, env=environment(pretrained), check=True, capture_output=True)
    assert said(changed, r"split\.parquet was changed after stage split made it"), changed.stderr
    assert said(adopted, r"is in both the train and the test part"), adopted.stderr
    assert not (pretrained / delta).exists()


def test_a_killed_training_is_run_again(pretrained: Path) -> None:
    """SIGKILL to the whole job in the middle of training: nothing is left, and the rerun is clean."""
    configure(pretrained, merge(TINY, {"finetune": {"steps": 5000}}))
    model = pretrained / "results/tiny/base0/sports/erase/manual/seed0"
    delta = model.relative_to(pretrained) / "delta.safetensors"
    log = pretrained / "logs/tiny/base0/sports/erase/manual/seed0/finetune.log"
    words = [sys.executable, "-m", "snakemake", "--cores", "2", str(delta), "--configfile", "tiny.yaml"]
    process = subprocess.Popen(
        words, cwd=pretrained, env=environment(pretrained), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (log.is_file() and "step" in log.read_text()):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "training never began"
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not any(p.name in ("delta.safetensors", "history.csv") for p in model.glob("*"))
    configure(pretrained, merge(TINY, {"finetune": {"steps": 3}}))
    assert snakemake(pretrained, "--unlock").returncode == 0
    done = run(pretrained, str(delta), "--rerun-incomplete")
    assert done.returncode == 0, done.stderr
    names = {p.name for p in model.iterdir() if not p.name.endswith(".lock")}
    assert names == {"delta.safetensors", "history.csv", "delta.safetensors.record.json"}, names


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--directory", "{elsewhere}"), r"runs in its own folder: cd \S+ and start snakemake there"),
        (("--software-deployment-method", "conda"), "leave out --software-deployment-method conda"),
    ],
)
def test_a_start_that_is_not_supported_is_said(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, words: tuple[str, ...], sentence: str
) -> None:
    elsewhere = str(tmp_path_factory.mktemp("elsewhere"))
    done = snakemake(folder, "--dry-run", *(word.format(elsewhere=elsewhere) for word in words))
    assert said(done, sentence) and not any(Path(elsewhere).rglob("results"))


def test_the_workflow_as_anothers_module_is_refused(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "Snakefile").write_text(
        f"module unlearning:\n    snakefile: {str(folder / 'Snakefile')!r}\nuse rule * from unlearning\n"
    )
    words = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1"]
    done = subprocess.run(
        words, cwd=other, env=environment(folder), capture_output=True, text=True, timeout=600
    )
    assert said(done, "runs in its own folder")
