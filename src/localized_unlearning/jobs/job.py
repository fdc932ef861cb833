"""A stage, a job of it, and the part of the config that it may read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError


@dataclass(frozen=True)
class Input:
    """One input of a stage, a command-line option.

    Attributes:
        name: the option's name, and the key in ``Job.inputs``.
        many: whether it is a list of files.
        optional: whether it may be absent; ``Job.inputs`` then holds None.
    """

    name: str
    many: bool = False
    optional: bool = False


def many(name: str) -> Input:
    """A list of files."""
    return Input(name, many=True)


def optional(name: str) -> Input:
    """A file that may be absent."""
    return Input(name, optional=True)


@dataclass(frozen=True)
class Stage:
    """One kind of job.

    Attributes:
        name: the rule's and the command's name.
        module: the module whose ``run`` (or ``function``) does the work; its import closure
            inside the package is the stage's code.
        settings: dotted config paths the stage may read; ``*`` stands for every key of a mapping, as in ``tasks.*.forget``.
        inputs: the input files, each a command-line option.
        outputs: names of the output files (or folders), each a command-line option.
        wildcards: names of the wildcards, each a command-line option.
        function: the function inside ``module``.
        cached: whether the shared cache may keep it; not where it reads what its key does not name.
        gpu: whether it loads a model to run it: on a GPU where there is one, in parts where ``compute.shards`` says so.
        shares: whether it only reads its checkpoint's model, so that the next job of the same checkpoint may take the
            loaded one over (:class:`Kept`).
        online: whether it may use the network. All others run with ``HF_HUB_OFFLINE``, since compute nodes
            seldom have one, and a run must not depend on what a hub says today.
        help: what it does, in one sentence.
    """

    name: str
    module: str
    settings: tuple[str, ...] = ()
    inputs: tuple[Input, ...] = ()
    outputs: tuple[str, ...] = ()
    wildcards: tuple[str, ...] = ()
    function: str = "run"
    cached: bool = True
    gpu: bool = False
    shares: bool = False
    online: bool = False
    help: str = ""

    def paths(self, wildcards: Mapping[str, str]) -> tuple[str, ...]:
        """The dotted config paths of this stage for one job."""
        return tuple(path.format(**wildcards) for path in self.settings)


@dataclass
class Kept:
    """What one process keeps between its jobs. A job that runs by itself begins with nothing kept.

    Attributes:
        model: the model loaded last, as :mod:`localized_unlearning.models.checkpoint` left it; None when there is none.
        resident: memory of the process in bytes when its first job began.
        imported: state of each source file (size, modification time, inode) when its module was imported, by module:
            code that was edited since is not the code that a job here would run.
    """

    model: Any = None
    resident: float | None = None
    imported: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)


@dataclass
class Job:
    """One run of a stage, as its function sees it.

    Attributes:
        stage: the stage.
        config: the config, restricted to the stage's settings and ``compute``.
        wildcards: wildcard values by name.
        inputs: input paths by name; a list of paths for a starred input.
        outputs: where to write each output; temporary paths that the runner publishes.
        key: the job's deterministic key, which figures carry in their metadata.
        digests: SHA-256 of each file of an input, by the input's name and the file's relative one; taken before the job.
        facts: what the stage wants recorded besides (seeds by name, device, measured figures).
        written: SHA-256 of an output file by the output's name, where its writer has taken it while writing.
        kept: what this process has kept of the jobs before, and keeps for those that follow.
    """

    stage: Stage
    config: Config
    wildcards: Mapping[str, str]
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Path]
    key: str
    digests: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    kept: Kept = field(default_factory=Kept)


class View:
    """A config of which only some dotted paths may be read.

    Raises:
        UserError: when another path is read; the remedy is to declare it in the stage table.
    """

    def __init__(self, node: Any, allowed: tuple[str, ...], prefix: str = "", who: str = "") -> None:
        self._node, self._allowed, self._prefix, self._who = node, allowed, prefix, who

    def _child(self, name: str, value: Any) -> Any:
        path = f"{self._prefix}.{name}" if self._prefix else name
        parts = path.split(".")
        alike = [
            a for a in self._allowed if all(x in (y, "*") for x, y in zip(a.split("."), parts, strict=False))
        ]
        if any(a.count(".") < len(parts) for a in alike):
            return value
        if alike:
            return None if value is None else View(value, self._allowed, path, self._who)
        raise UserError(
            f"stage {self._who} read the setting '{path}' without declaring it: "
            "add it to the stage's settings in stages.py"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._child(name, getattr(self._node, name))

    def __getitem__(self, key: str) -> Any:
        return self._child(key, self._node[key])

    def get(self, key: str) -> Any:
        """What a mapping has under ``key``; None when it has nothing."""
        return self._child(key, self._node.get(key))

    def items(self) -> list[tuple[str, Any]]:
        """A mapping's keys and what stands under them."""
        return [(key, self._child(key, value)) for key, value in self._node.items()]


def restrict(config: Config, stage: Stage, wildcards: Mapping[str, str]) -> Config:
    """The part of ``config`` that ``stage`` may read, with the same attribute names."""
    allowed = (*stage.paths(wildcards), "compute")
    return cast(Config, View(config, allowed, who=stage.name))


def settings_of(config: Config, stage: Stage, wildcards: Mapping[str, str]) -> dict[str, Any]:
    """The stage's settings by dotted path, as plain JSON values."""
    dumped = config.model_dump(mode="json")
    return {path: _at(dumped, path.split("."), stage.name, path) for path in stage.paths(wildcards)}


def _at(node: Any, parts: list[str], stage: str, path: str) -> Any:
    """What stands at a dotted path; for ``*`` a mapping over the keys, without those that are null."""
    for number, part in enumerate(parts):
        if part == "*" and isinstance(node, Mapping):
            return {
                key: _at(inner, parts[number + 1 :], stage, path)
                for key, inner in node.items()
                if inner is not None
            }
        if not isinstance(node, Mapping) or part not in node:
            raise UserError(
                f"the config has no '{path}', which stage {stage} needs: add it to config.yaml or to the preset"
            )
        node = node[part]
    return node
