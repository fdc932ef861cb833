"""The shell scripts, as ShellCheck reads them and as a user starts them."""

from __future__ import annotations

import functools
import http.server
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*(ROOT / "tools").glob("*.sh"), ROOT / ".ci/run"])

# Stands in for pip: finds two builds, installs nothing and says what it was told.
FAKE_PIP = """#!{python}
import sys
if sys.argv[1:3] == ["index", "versions"]:
    print("Available versions: 2.99.0, {offered}")
else:
    print("pip", *sys.argv[1:])
"""
HERE = (sys.version_info[:2], platform.system(), platform.machine())


def test_shellcheck_has_nothing_to_say() -> None:
    done = subprocess.run(["shellcheck", *map(str, SCRIPTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_makefile_holds_no_program() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "define " not in text and "for " not in "".join(
        line for line in text.splitlines() if line[:1] == "\t" and "echo" not in line
    )


def setup(
    folder: Path,
    *words: str,
    lock: str = "envs/cpu.txt",
    python: str = sys.executable,
    index: str = "http://127.0.0.1:9",
) -> subprocess.CompletedProcess[str]:
    """``tools/setup.sh`` with the environment ``folder``; without ``index``, PyTorch's does not answer."""
    return subprocess.run(
        ["bash", str(ROOT / "tools/setup.sh"), python, lock, str(folder), *words],
        capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "CPU_INDEX": index},
    )  # fmt: skip


@pytest.fixture
def index(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """The page that an index shows of torch, and the index's address."""
    page = tmp_path / "index/torch/index.html"
    page.parent.mkdir(parents=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(page.parents[1]))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield page, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"python": "python9"}, "There is no 'python9' here: install Python 3.11 or newer"),
        ({"lock": "envs/gpu.txt"}, "There is no lock 'envs/gpu.txt': LOCK is envs/cpu.txt"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_answered_in_a_sentence(
    tmp_path: Path, options: dict[str, str], sentence: str
) -> None:
    done = setup(tmp_path, **options)
    assert done.returncode == 1 and done.stderr.startswith(sentence)


def environment(folder: Path, offered: str) -> Path:
    """A folder that looks like a virtual environment whose pip finds ``offered`` and installs nothing."""
    (folder / "bin").mkdir()
    (folder / "bin/python").symlink_to(sys.executable)
    pip = folder / "bin/pip"
    pip.write_text(FAKE_PIP.format(python=sys.executable, offered=offered))
    pip.chmod(0o755)
    return folder


def pinned(lock: str = "cpu.txt") -> tuple[str, str]:
    """The version of torch in a lock, and the first digest of its files."""
    text = (ROOT / "envs" / lock).read_text(encoding="utf-8")
    after = text.split("\ntorch==")[1]
    return after.split()[0], after.split("--hash=sha256:")[1][:64]


@pytest.mark.parametrize("answer", ["pip", "index", "other bytes", "nothing"])
def test_the_cpu_build_is_taken_where_it_is_offered(
    tmp_path: Path, index: tuple[Path, str], answer: str
) -> None:
    """Catches gigabytes of CUDA on a laptop, and a lock that cannot be installed without the CPU build."""
    if answer == "other bytes" and HERE != ((3, 11), "Linux", "x86_64"):
        pytest.skip("the digests are of Python 3.11 on Linux x86-64")
    (page, address), (version, digest) = index, pinned()
    folder = environment(tmp_path, f"{version}+cpu" if answer == "pip" else version)
    if answer in ("index", "other bytes"):
        shown = digest if answer == "index" else "0" * 64
        tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
        page.write_text(f"torch-{version}%2Bcpu-{tag}-{tag}-linux.whl#sha256={shown}")
    done = setup(folder, index=address)
    assert done.returncode == 0, done.stderr
    said, told = done.stdout, (folder / "setup.log").read_text()
    if answer in ("pip", "index"):
        assert "envs/cpu.txt" in said and "torch's CPU build: about 0.5 GB" in said
        assert (f"--extra-index-url {address} " in told) == (answer == "index")
    else:
        assert (
            "envs/cuda.txt" in said
            and "torch's CUDA build: about 3.1 GB" in said
            and "not available here" in said
        )
        assert "--extra-index-url" not in told
    assert (
        f"-r {'envs/cpu.txt' if answer in ('pip', 'index') else 'envs/cuda.txt'}" in told
        or "pins.txt" in told
    )


def test_pip_arguments_win(tmp_path: Path) -> None:
    version, _ = pinned()
    done = setup(environment(tmp_path, f"{version}+cpu"), "--index-url", "https://mirror.example/simple")
    assert done.returncode == 0, done.stderr
    told = (tmp_path / "setup.log").read_text()
    assert told.count("--index-url https://mirror.example/simple") == 2 and "pytorch.org" not in told
