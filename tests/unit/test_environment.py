"""The environments agree with each other, with pyproject.toml and with what the code imports."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import localized_unlearning

ROOT = Path(__file__).resolve().parents[2]
ENVS = ROOT / "envs"
CODE = ("src", "tests", "workflow", "profiles", "Makefile", "Snakefile", "tools")

OURS = {path.name for path in (ROOT / "src").iterdir()}
# Import names that differ from the distribution's.
DISTRIBUTION = {"yaml": "pyyaml", "sklearn": "scikit-learn"}
# What is used without an import in src, and a text in CODE that shows the use.
USED_AS = {
    "gguf": "gguf_file=",
    "snakemake": "snakemake --profile",
    "snakemake-executor-plugin-slurm": "executor: slurm",
    "pyarrow": "parquet",
}
# What the design fixes and its own work has yet to bring in; take it off the list with the code that uses it.
AHEAD: set[str] = set()
CHECKS = "# checks"


def normal(name: str) -> str:
    """A distribution's name in one spelling, without extras."""
    return re.sub(r"[-_.]+", "-", name.split("[")[0].strip()).lower()


def pins(lines: list[str]) -> dict[str, str]:
    """Name to version of ``name==version`` lines; torch's build tag, comments and options aside."""
    found = {}
    for line in lines:
        line = line.split("#")[0].strip()
        if not line or line.startswith("-"):
            continue
        name, equals, version = line.partition("==")
        assert equals, f"not an exact pin: {line}"
        assert normal(name) not in found, f"pinned twice: {name}"
        found[normal(name)] = version.rstrip("\\ ")
    return found


def read_pins(name: str) -> dict[str, str]:
    path = ENVS / name
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".yaml":
        return pins(text.splitlines())
    *_, last = yaml.safe_load(text)["dependencies"]
    return pins(last["pip"])


def direct_runtime() -> dict[str, str]:
    """The direct dependencies before the checks."""
    text = (ENVS / "direct.txt").read_text(encoding="utf-8")
    assert CHECKS in text
    return pins(text.split(CHECKS)[0].splitlines())


def project() -> dict[str, Any]:
    """The [project] table of pyproject.toml."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def imported(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every top-level name imported below ``folder``, at any depth of the code."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name.split(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield path, node.module.split(".")[0]


def third_party(folder: Path) -> Iterator[tuple[Path, str]]:
    for path, name in imported(folder):
        if name not in sys.stdlib_module_names and name not in OURS:
            yield path, normal(DISTRIBUTION.get(name, name))


@pytest.mark.parametrize("lock", ["cpu", "cuda"])
def test_conda_has_the_pins_of_the_lock(lock: str) -> None:
    """Catches a pin changed by hand in one file."""
    assert read_pins(f"{lock}.yaml") == read_pins(f"{lock}.txt")


def test_the_locks_differ_in_cuda_alone() -> None:
    """Catches a package that a laptop and a GPU would have in two versions."""
    cpu, cuda = read_pins("cpu.txt"), read_pins("cuda.txt")
    assert cpu.items() <= cuda.items()
    assert all(re.match("nvidia|cuda|triton", name) for name in cuda.keys() - cpu.keys())


@pytest.mark.parametrize("name", ["cpu.txt", "cuda.txt"])
def test_every_pin_has_the_digests_of_its_files(name: str) -> None:
    """Catches a lock whose digests pip would not look at: it does for all packages or for none."""
    text = (ENVS / name).read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        assert (
            line.startswith("#")
            or not line
            or re.search(r"==\S+( +; .*)?( +--hash=sha256:[0-9a-f]{64})+$", line)
        )


def test_the_lock_has_the_direct_pins() -> None:
    """Catches a direct dependency changed without making the lock again."""
    lock = read_pins("cpu.txt")
    for name, version in read_pins("direct.txt").items():
        assert lock.get(name) == version, f"{name}: run make lock"


def test_every_direct_dependency_says_why() -> None:
    for line in (ENVS / "direct.txt").read_text(encoding="utf-8").splitlines():
        if "==" in line:
            assert re.search(r"\S  # \S", line), f"no reason given: {line}"


@pytest.mark.parametrize("name", ["direct.txt", "cpu.txt", "cuda.txt", "cpu.yaml", "cuda.yaml"])
def test_no_local_paths(name: str) -> None:
    """Catches a lock that only installs where it was made."""
    text = (ENVS / name).read_text(encoding="utf-8")
    assert not re.search(r"file:|(?m:^|\s)/\w| @ |--find-links", text)


def test_conda_files_have_the_python_of_the_lock() -> None:
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "requires-python"
    ]
    for name in ("cpu.yaml", "cuda.yaml"):
        dependencies = yaml.safe_load((ENVS / name).read_text(encoding="utf-8"))["dependencies"]
        assert f"python={requires.removeprefix('>=')}" in dependencies


def test_pyproject_names_the_runtime_dependencies() -> None:
    """Catches a package that a plain ``pip install .`` would lack; only a cluster needs the Slurm plugin."""
    named = {normal(name) for name in project()["dependencies"]}
    assert named == set(direct_runtime()) - {"snakemake-executor-plugin-slurm"}


def test_every_import_of_the_package_is_a_direct_dependency() -> None:
    """Catches reliance on what another package happens to bring along."""
    runtime = {
        *direct_runtime(),
        "transformer-lens",
    }  # imported by those who ask for a bridge; its absence is a sentence
    strays = [
        f"{path.relative_to(ROOT)}: {name}" for path, name in third_party(ROOT / "src") if name not in runtime
    ]
    assert not strays


def test_every_runtime_dependency_is_used() -> None:
    """Catches a dependency that outlived its use, and an entry of AHEAD that has arrived."""
    imports = {name for _, name in third_party(ROOT / "src")}
    paths = [path for name in CODE for path in [ROOT / name, *(ROOT / name).rglob("*")] if path.is_file()]
    paths = [p for p in paths if p.suffix in {".py", ".smk", ".yaml", ""} and p != Path(__file__).resolve()]
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    used = {name for name in direct_runtime() if name in imports or USED_AS.get(name, "\0") in text}
    unused = set(direct_runtime()) - used
    assert not unused - AHEAD, "nothing uses these: take them out of envs/direct.txt and pyproject.toml"
    assert not AHEAD - unused, "these are used now: take them off AHEAD"


def test_citation_has_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == localized_unlearning.__version__
