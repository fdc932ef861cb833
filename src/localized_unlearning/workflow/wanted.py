"""What a config asks for: tasks, localizations, seeds, methods and files from outside."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from localized_unlearning import extensions
from localized_unlearning.config.localization import Localization
from localized_unlearning.config.run import Config
from localized_unlearning.config.source import Source
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.provenance import code

SCORED_HERE = ("attribution_patching", "causal_tracing")
"""The paper's own ways to score, which the scoring stage imports: no file of theirs is an input."""


class Wanted:
    """The run that a config asks for.

    Attributes:
        config: the resolved config.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._imported: dict[tuple[str, str], list[str]] = {}

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(self.config.tasks)

    @property
    def localizations(self) -> list[str]:
        """Names of the localizations."""
        return list(self.config.localizations)

    @cached_property
    def compared(self) -> list[str]:
        """Names of the localizations in tables and figures: all but the draws of the null distribution."""
        return [name for name in self.localizations if name not in self.config.null_draws]

    @property
    def bases(self) -> tuple[int, ...]:
        """Seeds of the base models; a model that is not pretrained here has one."""
        return self.config.base_seeds if self.config.model.kind == "organism" else (0,)

    @property
    def maker(self) -> str:
        """The stage that makes the base model."""
        if self.config.has_injection:
            return "inject"
        return {"organism": "pretrain", "gguf": "convert", "huggingface": "download"}[self.config.model.kind]

    def localization(self, name: str) -> Localization:
        """A localization by its name."""
        found = self.config.localizations[name]
        assert found is not None
        return found

    def forget_sets(self, task: str) -> list[str]:
        """A task of the paper and the tasks that are other forget sets of it."""
        return [task, *(name for name, other in self.config.tasks.items() if other and other.of == task)]

    def seeds(self, task: str, objective: str) -> tuple[int, ...]:
        """Seeds of a task's models, or with objective ``mask`` of its masks."""
        if objective == "mask" and self.config.mask_seeds is not None:
            return self.config.mask_seeds
        found = self.config.tasks[task]
        return found.seeds if found and found.seeds else self.config.seeds

    @cached_property
    def extensions(self) -> dict[str, str]:
        """The files of losses and methods, the user's own and ours, by the keys that name them.

        Raises:
            UserError: when a method is none of ours and no file.
        """
        named = {f"objectives.{name}.loss": o.loss for name, o in self.config.objectives.items() if o}
        named |= {f"scores.{name}.method": s.method for name, s in self.config.scores.items() if s}
        found = {}
        for key, value in named.items():
            folders = (extensions.OBJECTIVES,) if key.startswith("objectives.") else extensions.SCORE_FOLDERS
            paths = [path for folder in folders if (path := extensions.file_of(value, folder))]
            if paths:
                found[key] = extensions.near(paths[0])
            elif key.startswith("objectives.") or value not in SCORED_HERE:
                known = [name for folder in folders for name in extensions.ours(folder)]
                known += SCORED_HERE if key.startswith("scores.") else ()
                raise UserError(
                    f"{key} is {value}, which is none of {', '.join(known)}: correct it, or give FILE.py:FUNCTION"
                )
        return found

    def extension(self, stage: str, name: str, key: str) -> dict[str, str | list[str] | None]:
        """A stage's input ``name``, the method's file that the setting ``key`` names, and its ``imports``.

        Raises:
            UserError: when that file is no valid Python.
        """
        if (path := self.extensions.get(key)) is None:
            return {name: None, "imports": []}
        if (stage, path) not in self._imported:
            self._imported[stage, path] = _imported(STAGES[stage].module, key, path)
        return {name: path, "imports": self._imported[stage, path]}

    def _source(self, dotted: str) -> Source:
        node: Any = self.config
        for part in dotted.split("."):
            node = getattr(node, part)
        assert isinstance(node, Source)
        return node

    @cached_property
    def sources(self) -> dict[str, Source]:
        """The files and folders that come from outside, by dotted name."""
        names = ["athletes.source", "text.train", "text.held_out", "mmlu.source"]
        if (own := self.config.athletes.own_prompts) is not None and own.questions is not None:
            names.append("athletes.own_prompts.questions")
        if self.config.series.source is not None:
            names.append("series.source")
        if self.config.gguf is not None and self.config.model.kind == "gguf":
            names.append("gguf")
        return {name: self._source(name) for name in names}

    def fetched(self, folders: bool | None = None) -> list[str]:
        """Dotted names of the sources that must be fetched; only those that are ``folders``, or only files."""
        return [
            name
            for name, source in self.sources.items()
            if source.kind != "path" and folders in (None, bool(source.files))
        ]


def _imported(module: str, key: str, path: str) -> list[str]:
    """The files that a method's file imports beside what the stage of ``module`` imports itself."""
    if not Path(path).is_file():
        return []  # which is said elsewhere
    try:
        return [
            extensions.near(found) for found in sorted(code.imported_by(Path(path), code.closure(module)))
        ]
    except SyntaxError as error:
        raise UserError(
            f"{key} names {path}, of which {error.filename} line {error.lineno} is no valid Python ({error.msg}): correct it"
        ) from error
