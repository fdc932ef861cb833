"""The house: rooms that rerun together, floors that look down, and code of results inside the digest."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from localized_unlearning.costs.devices import Device
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.provenance import code
from localized_unlearning.workflow import reruns
from localized_unlearning.workflow.plan import Plan, device_of, open_plan
from tiny_run import ROOT

SRC = ROOT / "src" / code.PACKAGE
FILES = sorted(SRC.rglob("*.py"))
UNDIGESTED = tuple(f"{name}." for name in code.NOT_CODE)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SRC.parent).with_suffix("").parts).removesuffix(".__init__")


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def undigested(name: str) -> bool:
    return name in code.NOT_CODE or name.startswith(UNDIGESTED)


@pytest.fixture(scope="module")
def digested() -> dict[str, ast.Module]:
    """Every module in a stage's closure."""
    names = {name for stage in STAGES.values() for name in code.closure(stage.module)}
    return {name_of(path): parsed(path) for path in FILES if name_of(path) in names}


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Modules of ours and the names taken from them; not those for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(code.PACKAGE):
            yield from ((node.module or "", alias.name) for alias in node.names)
        yield from imports(node)


def definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    return {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}


def test_no_function_outside_the_digest_is_reached_from_a_stage(digested: dict[str, ast.Module]) -> None:
    """What a stage imports from an undigested module is a type, and no method of such a type is called."""
    trees = {name_of(path): parsed(path) for path in FILES if undigested(name_of(path))}
    for name, tree in digested.items():
        for module, taken in imports(tree):
            if undigested(module):
                assert not isinstance(definitions(trees[module]).get(taken), ast.FunctionDef), (
                    name,
                    module,
                    taken,
                )
            assert f"{module}.{taken}" not in trees, f"{name} imports the undigested module {module}.{taken}"
    methods = {
        method.name
        for module, tree in trees.items()
        if module.startswith(f"{code.PACKAGE}.config")
        for found in ast.walk(tree)
        if isinstance(found, ast.ClassDef)
        for method in found.body
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
    }
    used = {
        (name, node.attr)
        for name, tree in digested.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in methods
    }
    assert not used


@pytest.fixture(scope="module")
def gemma_7b() -> tuple[Plan, dict[str, reruns.Edit]]:
    plan = open_plan([ROOT / "config.yaml", ROOT / "workflow/presets/gemma-7b.yaml"])
    return plan, {edit.module: edit for edit in reruns.edits(plan)}


def test_an_edit_reruns_what_it_touches(gemma_7b: tuple[Plan, dict[str, reruns.Edit]]) -> None:
    plan, edits = gemma_7b
    total = plan.hours([job for job in plan.needs if STAGES[job.stage].gpu], *plan_devices(plan))
    assert edits["data.fetching"].jobs == 6 and edits["data.fetching"].hours == 0
    used = {
        name: set(edit.stages) - {"question", "place"} for name, edit in edits.items()
    }  # no jobs of `all`
    assert used["localization.causal_tracing"] == {"score"} and edits["localization.causal_tracing"].jobs == 4
    assert used["evaluation.text"] == {"text"} and edits["evaluation.text"].jobs == 26
    assert edits["reporting.figures.style"].hours == 0
    assert used["unlearning.finetune"] == {"finetune"}
    assert set(edits["unlearning.settings"].stages) & {"finetune", "mask", "relearn"} == {"finetune"}
    assert {"select", "select_for_mask"} <= set(edits["localization.settings"].stages)
    assert "finetune" not in edits["localization.settings"].stages
    assert reruns.mean_hours(list(edits.values())) <= min(
        2.7, 0.3 * total
    )  # 3.7 and .41 before the house was rebuilt


@pytest.mark.parametrize(
    ("module", "stages"),
    [
        ("unlearning.settings", {"finetune", "question"}),
        ("localization.settings", {"select", "select_for_mask", "comparisons"}),
    ],
)
def test_what_computes_settings_is_code_of_the_stages_that_use_it(module: str, stages: set[str]) -> None:
    """Which override of fine-tuning wins, and which components a mask covers: results rest on both."""
    name = f"{code.PACKAGE}.{module}"
    assert {stage.name for stage in STAGES.values() if name in code.closure(stage.module)} == stages


def plan_devices(plan: Plan) -> tuple[Device, Device]:
    return device_of(plan, None, plan.config.compute.threads, measure=False)


def test_imports_stand_at_the_top_or_say_why_not() -> None:
    """An import of ours inside a function says in a comment on its line, or above it, what it saves."""
    for path in FILES:
        lines = path.read_text(encoding="utf-8").splitlines()
        tree = parsed(path)
        top = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
                top |= {id(inner) for inner in node.body}
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or id(node) in top:
                continue
            if (node.module or "").startswith(code.PACKAGE):
                said = "\n".join(lines[node.lineno - 2 : node.end_lineno])
                assert "#" in said, f"{path}:{node.lineno} imports inside a function without a reason"


def test_rooms_have_a_size_that_can_be_read() -> None:
    assert all(len(path.read_text(encoding="utf-8").splitlines()) <= 500 for path in FILES), [
        (name_of(path), len(path.read_text(encoding="utf-8").splitlines()))
        for path in FILES
        if len(path.read_text(encoding="utf-8").splitlines()) > 500
    ]
    long = [
        (name_of(path), node.name)
        for path in FILES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno >= 250
    ]
    assert not long
    assert all(len(path.relative_to(SRC).parts) <= 3 for path in FILES)
    assert len([path for path in SRC.glob("*.py") if path.name != "__init__.py"]) <= 8
    assert not any(path.read_text() for path in SRC.glob("*/**/__init__.py"))


def test_the_snakefile_reads_neither_torch_nor_pandas() -> None:
    script = "import sys, localized_unlearning.workflow.snakefile as _; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "pandas", "transformers", "sklearn", "matplotlib"} & set(done.stdout.split())


def test_one_home_spells_the_folders_of_a_run() -> None:
    """Paths of results are made by the layout alone."""
    for path in FILES:
        if name_of(path).endswith("workflow.layout"):
            continue
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(v.value) for v in node.values if isinstance(v, ast.Constant))
                assert not text.startswith(("results/", "figures/")), f"{path}:{node.lineno}"
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Path" and node.args:
                first = node.args[0]
                assert getattr(first, "value", None) not in ("results", "figures"), f"{path}:{node.lineno}"
