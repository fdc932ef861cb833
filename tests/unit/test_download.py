"""The download stage: a local folder, and what the hub refuses, each said as one sentence with its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_sources import hub_error

from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.job import Job, restrict
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.models import deltas, loading
from localized_unlearning.models import download as download_module
from tiny_base import TinyBase

COMMIT = "0" * 40


def download(name: str, target: Path, revision: str | None = COMMIT) -> Path:
    """What the stage brings."""
    config = Config.model_validate({"model": {"kind": "huggingface", "name": name, "revision": revision}})
    stage = STAGES["download"]
    download_module.download(Job(stage, restrict(config, stage, {}), {}, {}, {"model": target}, "key"))
    return target


def test_a_local_folder_loads(tiny_base: TinyBase, tmp_path: Path) -> None:
    model, tokenizer = loading.load(download(str(tiny_base.folder), tmp_path / "model"), "bfloat16", "cpu")
    assert str(model.dtype) == "torch.bfloat16" and tokenizer("a")["input_ids"]
    assert deltas.weights_digest(tmp_path / "model") == tiny_base.digest


def test_a_hub_snapshot_loads(tiny_base: TinyBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tiny_base.folder / "pytorch_model.bin").write_bytes(b"a pickle")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda **_: str(tiny_base.folder))
    target = download("some/model", tmp_path / "model")
    (tiny_base.folder / "pytorch_model.bin").unlink()
    assert not (target / "pytorch_model.bin").exists()
    assert loading.load(target, "float32", "cpu")[0].num_parameters() == tiny_base.model.num_parameters()


@pytest.mark.parametrize(
    ("error", "status", "complaint"),
    [
        ("GatedRepoError", 401, r"accept the licence at \S+/google/gemma-7b,.*hf auth login.*HF_TOKEN"),
        ("GatedRepoError", 403, r"accept the licence at \S+/google/gemma-7b,.*hf auth login.*HF_TOKEN"),
        ("RepositoryNotFoundError", 401, "gated, private or misspelt"),
        ("RevisionNotFoundError", 404, r"choose a commit from \S+/google/gemma-7b/commits/main"),
        ("HfHubHTTPError", 503, "run again later"),
    ],
)
def test_refusals(
    error: str, status: int, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> str:
        raise hub_error(error, status)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(UserError, match=complaint):
        download("google/gemma-7b", tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(("offline", "complaint"), [(True, "HF_HUB_OFFLINE"), (False, "cannot be reached")])
def test_no_network(offline: bool, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real library with an empty cache: offline, and with a hub that nobody answers for."""
    from huggingface_hub import constants

    for module in ("huggingface_hub.constants", "huggingface_hub._snapshot_download.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "cache"), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _seconds: None)  # between the library's tries
    with pytest.raises(UserError, match=complaint):
        download("google/gemma-7b", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_model_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must pin a commit of google/gemma-7b"):
        download("google/gemma-7b", tmp_path / "model", revision=None)
    with pytest.raises(UserError, match=r"\./gemma, which is neither a folder here nor a hub name"):
        download("./gemma", tmp_path / "model")
