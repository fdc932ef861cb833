"""The code of a stage: the modules it imports inside this package, and their digests.

The digest is taken over the syntax tree without docstrings, so comments, formatting and
documentation do not count. Imports inside functions count like any other. Left out are the
modules that move data but compute no result: the command line, the stage table, the runner, the
records and the config (a job's settings are recorded by name and value instead).
"""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

PACKAGE = "localized_unlearning"
NOT_COUNTED = frozenset(
    f"{PACKAGE}{name}" for name in ("", ".cli", ".config", ".errors", ".progress", ".runner", ".stages")
)


def _root() -> Path:
    return Path(__file__).resolve().parents[1]


def _file_of(module: str) -> Path | None:
    parts = module.split(".")[1:]
    base = _root().joinpath(*parts)
    for path in (base.with_suffix(".py") if parts else base / "__init__.py", base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _counts(module: str) -> bool:
    return module not in NOT_COUNTED and not module.startswith(f"{PACKAGE}.provenance")


def _imports(tree: ast.Module, module: str, is_package: bool) -> set[str]:
    """Modules of this package that a syntax tree imports."""
    found = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + (1 if is_package else 0)]
                base = ".".join([*parts, *([base] if base else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        found |= {n for n in names if n.split(".")[0] == PACKAGE and _file_of(n) is not None}
    return found


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


def digest_of_source(source: str) -> str:
    """SHA-256 of a module's syntax tree without docstrings and positions."""
    dump = ast.dump(_without_docstrings(ast.parse(source)), include_attributes=False)
    return hashlib.sha256(dump.encode()).hexdigest()


def closure(module: str) -> dict[str, str]:
    """The digest of every counted module that ``module`` imports, itself included, by name."""
    waiting, found = [module], {}
    while waiting:
        name = waiting.pop()
        path = _file_of(name)
        if name in found or path is None or not _counts(name):
            continue
        source = path.read_text(encoding="utf-8")
        found[name] = digest_of_source(source)
        waiting += sorted(_imports(ast.parse(source), name, path.name == "__init__.py"))
    return dict(sorted(found.items()))


def sources(module: str) -> dict[str, str]:
    """The source text of every module in the closure, by name."""
    paths = {name: _file_of(name) for name in closure(module)}
    return {name: path.read_text(encoding="utf-8") for name, path in paths.items() if path}


def code_digest(modules: dict[str, str]) -> str:
    """One digest for a closure."""
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(modules.items()))
    return hashlib.sha256(text.encode()).hexdigest()
