"""Methods as files: what the config names is a file with a function or class, a researcher's own or one of ours.

``FILE.py:NAME`` is one's own; a plain name is one of ours, the file of that name in a folder of the package, and in it
the function or class of that name. Either file is an input of the stages that use it, so that its bytes are in their
records and keys: a changed file is seen, and reruns what rests on it and nothing else. The files that it imports from
its own folder are inputs too. Of installed packages the version is recorded; a file that came from anywhere else ends
the job, since no record would name it.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from localized_unlearning.errors import UserError

PACKAGE = Path(__file__).parent

OBJECTIVES = PACKAGE / "unlearning" / "objectives"
"""Our objectives, one per file."""
SCORES = PACKAGE / "localization" / "methods"
"""Our ways to score components, one per file, but for the paper's two, which the scoring stage imports."""
WEIGHT_SCORES = PACKAGE / "localization" / "weight_methods"
"""Our ways to score single weights, one per file."""
SCORE_FOLDERS = (SCORES, WEIGHT_SCORES)
FOLDERS = (OBJECTIVES, *SCORE_FOLDERS)


def file_of(named: str, folder: Path | None = None) -> Path | None:
    """The file that ``FILE.py:NAME`` or, with the ``folder`` of ours, a plain name stands for; None where there is none."""
    path, _, function = named.rpartition(":")
    if path and function:
        return Path(path)
    found = None if folder is None else folder / f"{named}.py"
    return found if found is not None and found.is_file() else None


def near(path: Path) -> str:
    """A path as jobs and records name it: from the current folder where it lies below it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def ours(folder: Path) -> list[str]:
    """Names of our methods in a folder of the package."""
    return sorted(path.stem for path in folder.glob("[!_]*.py"))


def load(named: str, path: Path) -> Callable[..., Any]:
    """The function or class of ``FILE.py:NAME``, or of a name of ours, from the file where the job found it.

    Raises:
        UserError: when the file cannot be run, or has no such function.
    """
    function = named.rpartition(":")[2]
    spec = importlib.util.spec_from_file_location(f"_method_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file: name one, as in my_method.py:{function}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)  # behind all else: a file of its own takes no other module's place
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(
            f"{path} cannot be imported ({type(error).__name__}: {error}): correct it and rerun"
        ) from error
    members = vars(module)
    if named == function:  # one of ours: a class may be written in capitals
        members = {**{name.lower(): value for name, value in members.items()}, **members}
    found = members.get(function)
    if not callable(found):
        raise UserError(f"{path} has no function '{function}': define it, or correct '{named}' in the config")
    return found  # type: ignore[no-any-return]


def strangers(before: Collection[str], inputs: Iterable[Path]) -> list[Path]:
    """Files that were imported although they are neither inputs of the job nor of an installed package.

    Args:
        before: names of the modules that were loaded before.
        inputs: the job's.
    """
    known = {path.resolve() for path in inputs}
    homes = [PACKAGE, *(Path(path).resolve() for path in sysconfig.get_paths().values())]
    found = [
        (name.partition(".")[0], Path(file).resolve())
        for name, module in list(sys.modules.items())
        if name not in before and (file := getattr(module, "__file__", None))
    ]
    found = [
        (top, file) for top, file in found if file not in known and not any(map(file.is_relative_to, homes))
    ]
    installed = (
        metadata.packages_distributions() if found else {}
    )  # also those that lie elsewhere (pip install -e)
    return [file for top, file in found if top not in installed]


def files_of(inputs: Mapping[str, Any]) -> list[Path]:
    """The file of a job's method, first, and those that it imports from its own folder; none for most jobs."""
    own = next((path for name in ("method", "loss") if (path := inputs.get(name)) is not None), None)
    return [] if own is None else [own, *inputs.get("imports", ())]


def refuse_strangers(before: Collection[str], own: Sequence[Path]) -> None:
    """Make sure that what a job's method imported is known: :func:`strangers`.

    Raises:
        UserError: naming the first file that is not.
    """
    if own and (found := strangers(before, own)):
        raise UserError(
            f"{own[0]} imported {found[0]}, which no record would name: put it beside {own[0].name} and import it by "
            "its name, or install its package"
        )


def check(found: Callable[..., Any], parameters: Mapping[str, Any], named: str, given: int) -> None:
    """Make sure that a function or class takes these settings.

    Args:
        found: the function or class.
        parameters: settings by name, as the config has them.
        named: how the config names it.
        given: how many arguments come before them.

    Raises:
        UserError: when it has no such setting.
    """
    taken = list(inspect.signature(found).parameters.values())[given:]
    known = [p.name for p in taken if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for name in parameters:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UserError(f"{named} has no hyperparameter '{name}': {has}; correct its 'parameters'")
