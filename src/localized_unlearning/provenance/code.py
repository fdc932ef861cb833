"""The code behind a stage: the import closure of its module inside the package, file by file.

A digest is taken over the syntax tree, so comments, formatting and docstrings do not count, and
it is written down independently of Python's own ``ast.dump``, whose text changes between versions.
Imports count wherever they stand, also inside functions, and so does a string that names a module
of the package (a registry that imports lazily).

Some modules are no stage's code. ``jobs``, ``cli``, ``workflow`` and ``provenance`` move data and
keep the books; ``errors`` holds an exception. ``config`` holds the types of the settings, which
records state by name and value: counting it would make every stage stale at each new setting.
No function of theirs is reached from a stage (a test walks the syntax trees).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

PACKAGE = "localized_unlearning"

NOT_CODE = frozenset(
    f"{PACKAGE}.{name}" for name in ("jobs", "cli", "workflow", "provenance", "config", "errors")
)


State = tuple[int, int, int]
"""Size, modification time (ns) and inode of a source file."""


class _Parsed(NamedTuple):
    digest: str  # of the whole syntax tree
    imports: frozenset[str]  # dotted names that may be modules


def closure(module: str) -> dict[str, str]:
    """The digest of ``module`` and of every module of its package that it imports, by name.

    Raises:
        ModuleNotFoundError: when there is no such module.
        SyntaxError: when a file of the closure is no valid Python.
    """
    folder = _folder(module.partition(".")[0])
    if _file(folder, module) is None:
        raise ModuleNotFoundError(f"no module named {module!r}", name=module)
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = None if name in found or _is_not_code(name) else _file(folder, name)
        if path is None:
            continue
        parsed = _parse(name, path)
        found[name] = parsed.digest
        for imported in parsed.imports:
            waiting.extend(_with_parents(imported))
    return dict(sorted(found.items()))


def code_digest(modules: Mapping[str, str]) -> str:
    """One digest for a :func:`closure`."""
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(modules.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def state(modules: Iterable[str]) -> dict[str, State]:
    """The state of each module's file; a module that is gone is absent."""
    found = {}
    for module in modules:
        path = _file(_folder(module.partition(".")[0]), module)
        if path is not None:
            status = path.stat()
            found[module] = (status.st_size, status.st_mtime_ns, status.st_ino)
    return found


def source_of(module: str) -> bytes | None:
    """The source of a module as it is now; None when there is no such module."""
    try:
        path = _file(_folder(module.partition(".")[0]), module)
    except ModuleNotFoundError:
        return None
    return path.read_bytes() if path else None


def imported_by(path: Path, known: Iterable[str] = ()) -> Iterator[Path]:
    """The files that a method's file imports, directly or through others: those of its own folder, and modules of this
    package that are not ``known``.

    Raises:
        SyntaxError: when one of them is no valid Python, after it was given.
    """
    own, package, counted = path.parent, _folder(PACKAGE), frozenset(known)
    found = {path}
    waiting = [(path, "")]
    while waiting:
        here, above = waiting.pop()
        for name in _imports(ast.parse(here.read_bytes(), filename=str(here)), above, PACKAGE):
            for part in _with_parents(name):
                ours = part.partition(".")[0] == PACKAGE
                passed = part in counted or _is_not_code(part) if ours else _is_standard(part)
                file = None if passed else _file(package if ours else own, part)
                if file is not None and file not in found:
                    yield file
                    found.add(file)
                    waiting.append((file, part if file.name == "__init__.py" else part.rpartition(".")[0]))


def installed_by(paths: Iterable[Path]) -> list[str]:
    """Names of the top-level modules that some files import and that are neither this package nor Python's own."""
    names = {
        name.partition(".")[0]
        for path in paths
        for name in _imports(ast.parse(path.read_bytes(), filename=str(path)), "", PACKAGE)
    }
    return sorted(name for name in names if name and name != PACKAGE and not _is_standard(name))


def _is_standard(name: str) -> bool:
    return name.partition(".")[0] in sys.stdlib_module_names


def _is_not_code(name: str) -> bool:
    return any(name == module or name.startswith(module + ".") for module in NOT_CODE)


def _with_parents(name: str) -> Iterator[str]:
    """``a.b.c``, ``a.b`` and ``a``: importing the first runs them all."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _folder(top: str) -> Path:
    """The folder that a top-level package or module stands in."""
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module named {top!r}", name=top)
    path = Path(spec.origin)
    return path.parent.parent if path.name == "__init__.py" else path.parent


def _file(folder: Path, name: str) -> Path | None:
    """The file of a module by its dotted name; None when it is none."""
    path = folder.joinpath(*name.split("."))
    for candidate in (path.with_name(path.name + ".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _parse(name: str, path: Path) -> _Parsed:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return _parse_text(path.read_bytes(), package, name.partition(".")[0], str(path))


@functools.lru_cache(maxsize=1024)
def _parse_text(text: bytes, package: str, top: str, where: str) -> _Parsed:
    tree = ast.parse(text, filename=where)
    return _Parsed(
        _syntax_digest(tree.body),
        frozenset(n for n in _imports(tree, package, top) if n.partition(".")[0] == top),
    )


def _imports(tree: ast.Module, package: str, top: str) -> Iterator[str]:
    """Dotted names that ``tree`` may import; some are functions or classes inside a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value.startswith(f"{top}.")
        ):
            yield node.value


def _syntax_digest(body: list[ast.stmt]) -> str:
    parts: list[str] = []
    for node in body:
        if not _is_version(node):
            _write(node, parts)
    return hashlib.sha256("".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _is_version(node: ast.stmt) -> bool:
    """``__version__ = ...``: a release alone makes no result stale."""
    return isinstance(node, ast.Assign) and any(
        isinstance(t, ast.Name) and t.id == "__version__" for t in node.targets
    )


_IGNORED = frozenset({"ctx", "kind", "type_comment", "type_ignores"})


def _write(node: ast.AST, parts: list[str]) -> None:
    """Append a text of ``node`` that does not depend on positions, docstrings or Python's version.

    Empty and absent fields are left out, as fields that newer versions add usually are empty.
    """
    if (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ):
        return
    parts.append(f"({type(node).__name__}")
    for name in node._fields:
        if name in _IGNORED:
            continue
        value = getattr(node, name, None)
        if isinstance(value, ast.AST):
            parts.append(f" {name}=")
            _write(value, parts)
        elif isinstance(value, list):
            if value:
                parts.append(f" {name}=[")
                for item in value:
                    if isinstance(item, ast.AST):
                        _write(item, parts)
                    else:
                        parts.append(f"{item!r},")  # names, or None for a missing key or default
                parts.append("]")
        elif value is not None or isinstance(node, ast.Constant):
            parts.append(f" {name}={value!r}")
    parts.append(")")
