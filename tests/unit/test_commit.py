"""The commit in a record: this checkout's own, or none and a reason."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from localized_unlearning.provenance import environment

PACKAGE = Path(environment.__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed here")


def git(folder: Path, *words: str) -> str:
    named = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-c", "init.defaultBranch=main", "-C", str(folder), *words],
        env=clean | named | {"GIT_CONFIG_GLOBAL": os.devnull}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package's part that asks, in a folder that is no checkout."""
    package = tmp_path / "checkout/src/localized_unlearning"
    (package / "provenance").mkdir(parents=True)
    for name in (
        "__init__.py",
        "errors.py",
        "files.py",
        *(f"provenance/{p.name}" for p in PACKAGE.glob("provenance/*.py")),
    ):
        shutil.copy(PACKAGE / name, package / name)
    return tmp_path / "checkout"


def committed(folder: Path) -> str:
    """Make a folder a repository with all that is in it; returns the commit."""
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "all")
    return git(folder, "rev-parse", "HEAD")


def asked(
    copy: Path, folder: Path, variables: Mapping[str, str] | None = None, refresh: bool = False
) -> tuple[Mapping[str, object], str]:
    """What the copy says in a process of its own, started in ``folder``."""
    code = (
        "import json; from localized_unlearning.provenance import environment as e; "
        f"print(json.dumps(e.commit_or_reason(refresh={refresh})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1", **(variables or {})},
    )  # fmt: skip
    commit, why = json.loads(done.stdout)
    return commit, why


def test_no_variable_or_configuration_of_a_person_points_elsewhere(copy: Path, tmp_path: Path) -> None:
    mine = committed(copy)
    other, home = tmp_path / "other", tmp_path / "home"
    for folder in (other, home):
        folder.mkdir()
    (other / "__init__.py").write_text("")
    committed(other)
    ran = tmp_path / "ran"
    (home / ".gitconfig").write_text(
        f"[core]\n\tfsmonitor = touch {ran}\n\tworktree = {other}\n[status]\n\tshort = true\n"
    )
    hostile = {
        "GIT_DIR": str(other / ".git"), "GIT_WORK_TREE": str(other), "GIT_INDEX_FILE": str(other / ".git/index"),
        "GIT_CEILING_DIRECTORIES": str(copy), "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.worktree",
        "GIT_CONFIG_VALUE_0": str(other), "HOME": str(home), "XDG_CONFIG_HOME": str(home), "LC_ALL": "de_DE.UTF-8",
        "LANGUAGE": "de",
    }  # fmt: skip
    for folder in (copy, other, tmp_path):
        assert asked(copy, folder, hostile) == ({"commit": mine, "dirty": False}, "")
    assert not ran.exists()
    (copy / "src/localized_unlearning/files.py").write_text("")
    assert asked(copy, tmp_path)[0]["dirty"] is True


def test_a_worktree_and_a_shallow_clone_have_their_own(copy: Path, tmp_path: Path) -> None:
    mine = committed(copy)
    git(copy, "worktree", "add", "--quiet", str(tmp_path / "tree"))
    git(tmp_path, "clone", "--quiet", "--depth", "1", copy.as_uri(), str(tmp_path / "shallow"))
    for folder in ("tree", "shallow"):
        assert asked(tmp_path / folder, tmp_path)[0] == {"commit": mine, "dirty": False}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a checkout to another user")
def test_a_checkout_of_another_user_is_read(copy: Path, tmp_path: Path) -> None:
    mine = committed(copy)
    for path in (copy, *copy.rglob("*")):
        os.chown(path, 12345, 12345)
    assert asked(copy, tmp_path)[0] == {"commit": mine, "dirty": False}


def test_without_a_commit_of_its_own_it_says_why(copy: Path, tmp_path: Path) -> None:
    """An unpacked archive; a copy inside another repository, as in site-packages; one without a commit yet; no git."""
    assert asked(copy, tmp_path) == (
        {},
        "fatal: not a git repository (or any of the parent directories): .git",
    )
    (tmp_path / "around.txt").write_text("")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "around.txt")
    git(tmp_path, "commit", "--quiet", "--message", "around")
    commit, why = asked(copy, tmp_path)
    assert commit == {} and "did not match any file" in why
    git(copy, "init", "--quiet")
    git(copy, "add", "--all")
    commit, why = asked(copy, tmp_path)
    assert commit == {} and why
    assert asked(copy, tmp_path, {"PATH": str(tmp_path)}) == ({}, "git is not installed here")


def test_git_writes_down_what_it_saw_only_when_it_may(copy: Path, tmp_path: Path) -> None:
    """Catches jobs that read a fresh clone's files each time, and jobs that take the lock of a person's git command."""
    mine = committed(copy)
    index, touched = copy / ".git/index", copy / "src/localized_unlearning/files.py"
    os.utime(touched, (1e9, 1e9))
    before = index.read_bytes()
    assert asked(copy, tmp_path) == ({"commit": mine, "dirty": False}, "")
    assert index.read_bytes() == before
    assert asked(copy, tmp_path, refresh=True) == ({"commit": mine, "dirty": False}, "")
    assert index.read_bytes() != before
