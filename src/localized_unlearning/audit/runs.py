"""Which folders make up a run, told by their place, and the config that a run is judged by."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localized_unlearning import extensions
from localized_unlearning.audit.words import shown
from localized_unlearning.config import reading
from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError
from localized_unlearning.provenance import code
from localized_unlearning.provenance.records import JOURNAL
from localized_unlearning.workflow.layout import FIGURES_TOP, RESOLVED, RESULTS, SOURCES

SIGNED = "signed.json"
MARKS = (SOURCES, JOURNAL, SIGNED)
"""What only the folder of a run's results, or a copy of it, holds."""
TOPS = (RESULTS, FIGURES_TOP)


@dataclass(frozen=True)
class Run:
    """A run as it lies here.

    Attributes:
        name: what its folder is called.
        results: the folder of its results.
        figures: the folder of its figures; None in a copy that has none beside it.
    """

    name: str
    results: Path
    figures: Path | None

    @property
    def folders(self) -> list[Path]:
        """Those of its folders that exist."""
        return [folder for folder in (self.results, self.figures) if folder is not None and folder.is_dir()]

    def named(self, path: Path) -> str:
        """What a file of the run is called in a statement about it."""
        if self.figures is not None and path.is_relative_to(self.figures):
            return f"{FIGURES_TOP}/{self.name}/{path.relative_to(self.figures).as_posix()}"
        return f"{RESULTS}/{self.name}/{path.relative_to(self.results).as_posix()}"


def run_of(path: Path, root: Path) -> Run | None:
    """The run that a path belongs to, by where it lies: in results/ or figures/ of the workflow, or in a copy.

    Args:
        path: an absolute path, of a file, a folder or nothing.
        root: the workflow's folder.
    """
    for folder in (path, *path.parents):
        above = folder.parent
        if above.name in TOPS and (above.parent == root or _is_marked(folder) or _is_marked(_beside(folder))):
            results, figures = (above.parent / top / folder.name for top in TOPS)
            return Run(folder.name, results, figures)
        if _is_marked(folder):
            return Run(folder.name, folder, None)
    return None


def _beside(folder: Path) -> Path:
    """The results of a run, given its figures."""
    return folder.parent.parent / RESULTS / folder.name


def _is_marked(folder: Path) -> bool:
    return any(os.path.lexists(folder / mark) for mark in MARKS)


def runs_under(paths: Sequence[Path], root: Path) -> list[Run]:
    """The runs that some files or folders belong to or hold, each once, by the place of their results."""
    found: dict[Path, Run] = {}
    for path in paths:
        for candidate in _candidates(path):
            if (run := run_of(candidate, root)) is not None:
                found.setdefault(run.results, run)
    return [found[place] for place in sorted(found)]


def _candidates(path: Path) -> Iterator[Path]:
    yield path
    if not path.is_dir():
        return
    for here, folders, _ in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(here, name) for name in folders)


class Configs:
    """The config of each run, as it is now.

    It is what the workflow resolved last, beside the results; the workflow's ``config.yaml`` goes on top when it is
    of the same run, so that an edit counts before the workflow has seen it.
    """

    def __init__(self, root: Path, given: Sequence[Path]) -> None:
        self.root, self.given = root, given
        self.notes: list[str] = []
        self._loaded: dict[tuple[str, Path | None], Config | None] = {}
        self._outside: dict[int, list[Path]] = {}

    def of(self, name: str, run: Run | None) -> Config | None:
        """The config of a run; None where it is not here or cannot be read, which a note then says.

        Args:
            name: what the run's records call it.
            run: where it lies.
        """
        key = (name, run.results if run else None)
        if key not in self._loaded:
            self._loaded[key] = self._load(name, run)
        return self._loaded[key]

    def is_default(self, name: str) -> bool:
        """Whether ``config.yaml`` of the workflow's folder is this run's."""
        default = self.root / "config.yaml"
        return default.is_file() and reading.read_yaml(default).get("run", Config().run) == name

    def _load(self, name: str, run: Run | None) -> Config | None:
        if self.given:
            return reading.load(self.given)
        try:
            return self._resolved(name, run)
        except UserError as error:
            self.notes.append(f"the config of run {name or 'without a name'} cannot be read: {error}")
            return None

    def _resolved(self, name: str, run: Run | None) -> Config | None:
        default = self.root / "config.yaml"
        layers = [run.results / RESOLVED] if run else []
        if self.is_default(name):
            layers.append(default)
        layers = [path for path in layers if path.is_file()]
        loaded = reading.load(layers) if layers else None
        if len(layers) > 1 and loaded != reading.load(layers[:1]):
            self.notes.append(
                f"config.yaml differs from {shown(layers[0])}, by which run {name} was last made: judged by "
                f"config.yaml; --config {shown(layers[0])} judges by the other"
            )
        return loaded

    def outside(self, base_name: str, config: Config | None) -> Path | None:
        """The file outside the workflow's folder that a config names and that has this base name, if there is one.

        A method is named by ``FILE.py:FUNCTION``, or is one of ours, which lies in the package.
        """
        if config is None:
            return None
        key = id(config)  # of those loaded above, which stay
        if key not in self._outside:
            self._outside[key] = [place for place in self._named(config) if not self._is_inside(place)]
        fitting = [place for place in self._outside[key] if place.name == base_name]
        return next((place for place in fitting if place.exists()), fitting[0] if fitting else None)

    def _named(self, config: Config) -> list[Path]:
        """Every file that a config may name, and what its methods import."""
        named = [leaf for leaf in _leaves(config.model_dump(mode="json")) if leaf]
        methods = [extensions.file_of(leaf, folder) for leaf in named for folder in extensions.FOLDERS]
        for path in filter(None, dict.fromkeys(methods)):
            named += [str(path), *map(str, _imported(self.root / path))]
        return [self.root / os.path.expandvars(os.path.expanduser(leaf)) for leaf in dict.fromkeys(named)]

    def _is_inside(self, place: Path) -> bool:
        return not os.path.relpath(place, self.root).startswith("..")


def _leaves(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for inner in node.values():
            yield from _leaves(inner)
    elif isinstance(node, list | tuple):
        for inner in node:
            yield from _leaves(inner)


def _imported(path: Path) -> list[Path]:
    """What a method's file imports from its own folder, as far as it can be read."""
    found: list[Path] = []
    with suppress(OSError, SyntaxError, ValueError, RecursionError):
        for file in code.imported_by(path):
            found.append(file)
    return found
