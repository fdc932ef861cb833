"""The hub's own library against a hub on this machine: two checkouts at once, a cut connection, a gated model."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save

from localized_unlearning.config.source import Source
from localized_unlearning.workflow import preflight
from tiny_base import TinyBase

COMMIT = "a" * 40
REPOSITORY = "someone/tiny"
WEIGHTS = "model.safetensors"


def git_hash(data: bytes) -> str:
    """How git, and so the hub, names a small file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub(ThreadingHTTPServer):
    """As much of huggingface.co as a download needs: one repository at one commit.

    Attributes:
        files: what the repository holds.
        gated: whether it refuses everybody.
        cut, cuts: after how many bytes of the weights the connection breaks, and how many times still.
        sent: bodies sent, whole or not, by file.
        ranges: the parts of files that were asked for.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.gated, self.cut, self.cuts = files, False, 0, 0
        self.sent: Counter[str] = Counter()
        self.ranges: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        path = self.path.partition("?")[0]
        if self.server.gated:
            self.reply(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask first"}, b"", body)
        elif path == f"/api/models/{REPOSITORY}/revision/{COMMIT}":
            listed = {
                "id": REPOSITORY, "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.server.files],
            }  # fmt: skip
            self.reply(200, {"Content-Type": "application/json"}, json.dumps(listed).encode(), body)
        elif path == f"/api/models/{REPOSITORY}/tree/{COMMIT}":
            listing = [
                {"type": "file", "path": name, "size": len(data), "oid": git_hash(data)}
                for name, data in self.server.files.items()
            ]
            self.reply(200, {"Content-Type": "application/json"}, json.dumps(listing).encode(), body)
        elif path.startswith(f"/{REPOSITORY}/resolve/{COMMIT}/"):
            self.file(path.rpartition("/")[2], body)
        elif path == f"/api/models/{REPOSITORY}/auth-check":
            self.reply(200, {}, b"{}", body)
        else:
            missing = "RevisionNotFound" if "/revision/" in path else "EntryNotFound"
            self.reply(404, {"X-Error-Code": missing}, b"", body)

    def file(self, name: str, body: bool) -> None:
        data = self.server.files[name]
        large = name == WEIGHTS
        tag = hashlib.sha256(data).hexdigest() if large else git_hash(data)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
        if large:
            headers |= {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(data))}
        start = 0
        if body:
            self.server.sent[name] += 1
            if "Range" in self.headers:
                self.server.ranges.append(self.headers["Range"])
                start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
        if body and large and self.server.cuts:
            self.server.cuts -= 1
            self.reply(200, headers, data, body, self.server.cut)
        elif start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.reply(206, headers, data[start:], body)
        else:
            if body and large:
                time.sleep(1)  # as long as the other download needs to ask for it too
            self.reply(200, headers, data, body)

    def reply(
        self, status: int, headers: dict[str, str], data: bytes, body: bool, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data[:cut])
        if cut:
            self.close_connection = True
            self.wfile.flush()
            self.connection.close()


@pytest.fixture
def hub(tiny_base: TinyBase) -> Iterator[Hub]:
    """A hub with the tiny base model."""
    files = {p.name: p.read_bytes() for p in tiny_base.folder.iterdir() if p.is_file()}
    with Hub({**files, "pytorch_model.bin": b"a pickle"}) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def download(hub: Hub, checkout: Path, home: Path) -> subprocess.Popen[str]:
    """The download command in ``checkout``, with the Hugging Face cache in ``home``."""
    checkout.mkdir(exist_ok=True)
    settings = {"model": {"kind": "huggingface", "name": REPOSITORY, "revision": COMMIT}}
    (checkout / "config.yaml").write_text(yaml.safe_dump(settings))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_HUB_DOWNLOAD_TIMEOUT": "5"}
    command = "download --config config.yaml --base-seed 0 --out-model results/base_model"
    return subprocess.Popen(
        [sys.executable, "-m", "localized_unlearning.cli.main", *command.split()],
        cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """A command's exit status and what it said."""
    said = process.communicate(timeout=120)[1]
    return process.returncode, said


def test_two_checkouts_download_at_once_into_one_cache(hub: Hub, tmp_path: Path) -> None:
    """Catches two users' downloads that mix their bytes, wait for ever for each other, or fetch everything twice."""
    running = [download(hub, tmp_path / name, tmp_path / "home") for name in ("one", "two")]
    for process in running:
        status, said = ended(process)
        assert status == 0, said
    for name in ("one", "two"):
        brought = tmp_path / name / "results/base_model"
        assert (brought / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
        assert {p.name for p in brought.iterdir()} == set(hub.files) - {"pytorch_model.bin"}
    assert hub.sent[WEIGHTS] == 1 and not hub.sent["pytorch_model.bin"]
    assert not list(tmp_path.rglob(".tmp-*")) and not list(tmp_path.rglob("*.incomplete"))


def test_a_connection_that_breaks_once(hub: Hub, tmp_path: Path) -> None:
    """Catches a download that begins anew, or takes half a file for a model."""
    hub.files[WEIGHTS] = save(
        {"large": torch.arange(6_400_000, dtype=torch.int32)}
    )  # the library writes 10 MB at a time
    hub.cut, hub.cuts = 15_000_000, 1
    status, said = ended(download(hub, tmp_path / "one", tmp_path / "home"))
    assert status == 0, said
    assert (tmp_path / "one/results/base_model" / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert len(hub.ranges) == 1 and hub.ranges[0].startswith("bytes=10")


@pytest.mark.slow
def test_a_connection_that_breaks_again_and_again(hub: Hub, tmp_path: Path) -> None:
    """Catches half a file taken for a model, a traceback of the library, and whole files that are fetched twice."""
    hub.cut, hub.cuts = len(hub.files[WEIGHTS]) // 2, 100
    status, said = ended(download(hub, tmp_path / "one", tmp_path / "home"))
    assert status == 1 and "Traceback" not in said
    last = said.splitlines()[-1]
    assert last.startswith("error: the files") and "files that have arrived are kept" in last
    assert not list((tmp_path / "one/results").rglob("*.safetensors"))
    hub.cuts = 0
    status, said = ended(download(hub, tmp_path / "one", tmp_path / "home"))
    assert status == 0, said
    assert (tmp_path / "one/results/base_model" / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert hub.sent["config.json"] == 1


def test_a_licence_that_is_not_accepted(hub: Hub, tmp_path: Path) -> None:
    """Catches a traceback of the library where three steps are to be taken."""
    hub.gated = True
    status, said = ended(download(hub, tmp_path / "one", tmp_path / "home"))
    assert status == 1 and "Traceback" not in said
    assert f"accept the licence at {hub.address}/{REPOSITORY}" in said
    assert "hf auth login" in said and not (tmp_path / "one/results/base_model").exists()


def test_preflight_asks_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a check that passes what a download would refuse."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    environment = preflight.Environment()
    source = Source(kind="hub", repo_id=REPOSITORY, files=("*",), revision=COMMIT)
    assert environment.hub(source) is None
    moved = environment.hub(source.model_copy(update={"revision": "b" * 40}))
    assert moved is not None and "no such revision: choose a commit from" in moved
    hub.gated = True
    refused = environment.hub(source)
    assert refused is not None and "accept the licence" in refused
    hub.shutdown()
    hub.server_close()
    with pytest.raises(preflight.Unreachable):
        environment.hub(source)
