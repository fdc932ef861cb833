"""What the Snakefile needs from the package: each rule's inputs, outputs, params, resources and shell line.

Light on purpose: importing it loads neither torch nor pandas.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from localized_unlearning import files
from localized_unlearning.config import reading
from localized_unlearning.config.run import Config
from localized_unlearning.costs import stages as costs
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.job import settings_of
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.paper.artefacts import FIGURES, TABLES
from localized_unlearning.provenance import code, environment, pages
from localized_unlearning.workflow import given, targets
from localized_unlearning.workflow.graph import Graph
from localized_unlearning.workflow.layout import FOLDERS, PLACES, JobId, Layout, run_of
from localized_unlearning.workflow.places import Places

Wildcards = Mapping[str, str]


def _attempt(words: Sequence[str]) -> int:
    """Which attempt a submitted job is, from the command line of its own Snakemake; 1 in the one that submits.

    (``workflow.attempt`` is 1 as long as the Snakefile is being read.)
    """
    return int(words[words.index("--attempt") + 1]) if "--attempt" in words else 1


def config_files(given: Iterable[Any]) -> list[str]:
    """``config.yaml`` and the overlays that were given, in their order.

    A run's resolved config stands alone: it holds every setting, and what its overlays had dropped from
    ``config.yaml`` would come back below it.

    >>> config_files(["a.yaml"]), config_files(["results/tiny/config.yaml", "b.yaml"])
    (['config.yaml', 'a.yaml'], ['results/tiny/config.yaml', 'b.yaml'])
    """
    files = ["config.yaml", *map(str, given)]
    resolved = [number for number, name in enumerate(files) if _is_resolved(name)]
    return files[resolved[-1] :] if resolved else files


def _is_resolved(name: str) -> bool:
    run = run_of(os.path.relpath(name))
    return run is not None and os.path.relpath(name) == Layout(run).resolved


def unsupported(workflow: Any) -> str | None:
    """Why this workflow cannot run as it was started, in one sentence; None when it can.

    Args:
        workflow: Snakemake's own object.
    """
    here = Path(str(workflow.current_basedir))
    if not here.is_dir() or here.resolve() != Path.cwd().resolve():
        return (
            f"this workflow runs in its own folder: cd {here} and start snakemake there (not with -s or --directory "
            "from elsewhere, nor as a module); for results elsewhere make a link results -> /scratch/..."
        )
    methods = {str(method) for method in workflow.deployment_settings.deployment_method}
    if methods:
        return (
            f"jobs run in the environment that snakemake runs in: leave out --software-deployment-method "
            f"{' '.join(sorted(methods))}, and install envs/cpu.yaml or envs/cuda.yaml with this package there"
        )
    return None


SIZES = 10_000  # files beyond which Snakemake forgets the sizes that no ready job asks for


def calm(scheduler: Any) -> None:
    """Two habits of Snakemake's scheduler (9.27, job_scheduler.py) that no option turns off and every long run pays for.

    - Its limit of 100 jobs per second, which no run here comes near. With a limit, each pass of the scheduler sets a timer
      that wakes the scheduler again, and each job's end adds one pass: after 500 jobs it looks through all ready jobs
      500 times per second.
    - At each job's end it looks up the sizes of all files that any ready job reads, one coroutine per file: 123 of the 930
      seconds of the default run. What a ready job reads is finished, so that a size looked up once is known.

    Args:
        scheduler: Snakemake's class ``JobScheduler``; there is no scheduler yet while the Snakefile is read.
    """
    look_up = scheduler.update_input_sizes
    if getattr(look_up, "only_new", False):  # the Snakefile is read again for each job that Slurm runs
        return

    begin = scheduler.__init__

    def __init__(self: Any, *given: Any, **named: Any) -> None:
        begin(self, *given, **named)
        self.job_rate_limiter = None

    async def update_input_sizes(self: Any, jobs: Iterable[Any]) -> None:
        jobs = list(jobs)
        sized = self.__dict__.setdefault("_sized_jobs", set())
        new = [job for job in jobs if job not in sized]
        forgets = len(self._input_sizes) + sum(len(job.input) for job in new) > SIZES
        await look_up(self, jobs if forgets else new)
        sized.clear() if forgets else sized.update(new)

    update_input_sizes.only_new = True  # type: ignore[attr-defined]
    scheduler.update_input_sizes = update_input_sizes
    scheduler.__init__ = __init__


class Rules:
    """One run's rules, as the Snakefile asks for them.

    Attributes:
        config: the resolved config.
        graph: the run's jobs.
        layout: where its files lie.
    """

    def __init__(self, overlays: Sequence[tuple[str, Mapping[str, Any]]], checked: bool = True) -> None:
        self.config: Config = reading.resolve(overlays)
        self.graph = Graph(self.config)
        self.layout = self.graph.layout
        for key, path in self.graph.extensions.items():
            if not Path(path).is_file():
                raise UserError(f"{key} names {path}, which does not exist: correct the path")
        for fault in given.faults(self.config, Places(self.graph)) if checked else ():
            raise UserError(fault)

    @property
    def shell_prefix(self) -> str:
        """What stands before every command: Snakemake's own strict mode, the attempt, and whether to start warm.

        A submitted job starts cold, except in a group whose members can share a loaded model: there the group's own
        Snakemake started what starts a server for them (:mod:`localized_unlearning.cli.starting`).
        """
        how = "cache" if self.config.cache.dir else "1"
        alone = "--target-jobs" in sys.argv and "LOCALIZED_UNLEARNING_STARTER" not in os.environ
        warm = (
            f" LOCALIZED_UNLEARNING_WARM={how}:{os.getpid()}"
            if self.config.compute.warm_start and not alone
            else ""
        )
        return f"set -euo pipefail; export LOCALIZED_UNLEARNING_ATTEMPT={_attempt(sys.argv)}{warm}; "

    def folders(self) -> list[str]:
        """The run's folders that exist, for the audit."""
        return [folder for folder in (self.layout.results, self.layout.figures) if Path(folder).is_dir()]

    def write_resolved(self) -> None:
        """Write the resolved config beside the results, atomically, if it changed."""
        path, text = Path(self.layout.resolved), resolved_text(self.config)
        if not pages.is_published(path, text):
            pages.publish(path, text, pages.CONFIG, Path(), self.config.as_written())

    @property
    def verify(self) -> str:
        """The line that audits the run at its end; what it finds fails no run that is done."""
        folders = shlex.join(self.folders())
        return f"localized-unlearning audit verify {folders} --config {self.layout.resolved} || true"

    # -- the parts of a rule

    def constraints(self) -> dict[str, str]:
        """What each wildcard may be, as regular expressions."""
        config = self.config
        return {
            "task": _one_of(self.graph.tasks),
            "localization": _one_of(["base", "gold", *self.graph.localizations]),
            "place": _one_of(config.question.places),
            "attack": _one_of(["asked", *config.attacks.run]),
            "objective": _one_of(["none", *config.objectives]),
            "scores": _one_of(config.scores),
            "table": _one_of(TABLES),
            "figure": _one_of(FIGURES),
            "study": _one_of(config.studies) or "none",
            "seed": r"\d+",
            "base_seed": r"\d+",
        }

    def fetched(self, folders: bool) -> str:
        """The sources that must be fetched as a regular expression: those that are folders, or files."""
        return _one_of(self.graph.fetched(folders)) or "none"

    def inputs(self, stage: str) -> Callable[[Wildcards], dict[str, list[str] | str]]:
        """A job's inputs by name, for ``unpack``."""
        many = {i.name for i in STAGES[stage].inputs if i.many}

        def inputs(wildcards: Wildcards) -> dict[str, list[str] | str]:
            found = self.graph.paths(JobId.of(stage, **dict(wildcards)))
            return {k: v if k in many or len(v) != 1 else v[0] for k, v in found.items()}

        return inputs

    def outputs(self, stage: str, folder: Callable[[str], Any], all_folders: bool = False) -> dict[str, Any]:
        """A rule's outputs by name; ``folder`` is Snakemake's mark of a directory."""
        places = self.layout.templates(stage)
        return {k: folder(v) if all_folders or (stage, k) in FOLDERS else v for k, v in places.items()}

    def log(self, stage: str) -> str:
        """A rule's log."""
        return self.layout.log(stage, ".log")

    def memory(self, stage: str) -> Callable[[Wildcards, int], int]:
        """Memory of a stage's jobs in MB, as the rules' ``mem_mb``; more with each attempt."""

        def mem_mb(wildcards: Wildcards, attempt: int) -> int:
            return costs.memory_mb(self.costs, stage, dict(wildcards), attempt)

        return mem_mb

    def runtime(self, stage: str) -> Callable[[Wildcards, int, int], int]:
        """Time of a stage's jobs in minutes, as the rules' ``runtime``; more with each attempt."""

        def runtime(wildcards: Wildcards, attempt: int, threads: int) -> int:
            return costs.minutes(self.costs, stage, dict(wildcards), threads, attempt)

        return runtime

    def params(self, stage: str) -> dict[str, Any]:
        """What a rule hands Snakemake besides its files: a change of settings, code or environment reruns it.

        The same three are in a job's key, so that Snakemake and ``audit verify`` judge alike.
        """
        given: dict[str, Any] = {
            "config": self.layout.resolved,
            "settings": self._settings(stage),
            "code": code.code_digest(code.closure(STAGES[stage].module)),
            "environment": self._environment,
        }
        for name in self._derived(stage):
            given[name] = lambda wildcards, name=name: JobId.of(stage, **dict(wildcards)).named[name]
        return given

    @cached_property
    def _environment(self) -> str:
        """The lock's digest and the installed versions that it does not state, as canonical JSON."""
        name = environment.lock_name(Path())
        lines = environment.lock_lines(Path(), name) if name else None
        deviations = environment.deviations(environment.versions(), lines)
        return files.canonical_json([environment.lock_digest(Path(), name) if name else None, deviations])

    def _settings(self, stage: str) -> Callable[[Wildcards], str]:
        """The settings of a job as canonical JSON: Snakemake's own params forget the names."""

        def settings(wildcards: Wildcards) -> str:
            job = JobId.of(stage, **dict(wildcards))
            return files.canonical_json(settings_of(self.config, STAGES[stage], job.named))

        return settings

    @staticmethod
    def _derived(stage: str) -> list[str]:
        """Wildcards that no path holds, since they follow from others."""
        places = "".join(PLACES[stage].values())
        return [name for name in STAGES[stage].wildcards if f"{{{name}}}" not in places]

    def command(self, stage: str) -> str:
        """The shell line of a rule: the stage's command with every file and wildcard, all quoted."""
        found, derived = STAGES[stage], self._derived(stage)
        words = [f"localized-unlearning {stage} --config {{params.config:q}}"]
        for name in found.wildcards:
            words.append(f"{_option(name)} {{{'params' if name in derived else 'wildcards'}.{name}:q}}")
        words += [f"{_option(i.name)} {{input.{i.name}:q}}" for i in found.inputs]
        words += [f"{_option('out_' + name)} {{output.{name}:q}}" for name in found.outputs]
        return " ".join([*words, "2> {log:q}"])

    @cached_property
    def costs(self) -> costs.CostModel:
        """What this run's jobs cost."""
        return costs.CostModel.of(self.config, Places(self.graph))

    # -- targets by name

    def target(self, name: str) -> Callable[[Wildcards], list[str]]:
        """The files that a target asks for; all outputs of its jobs, so that a lost one is made again.

        Raises:
            UserError: by the function, when the config lacks what it shows.
        """

        def paths(_wildcards: Wildcards) -> list[str]:
            jobs = targets.jobs_of(self.graph, name)
            return [path for job in jobs for path in self.layout.outputs(job).values()]

        return paths


def resolved_text(config: Config) -> str:
    """The resolved config as YAML, nulls included: a null is a setting like any other."""
    head = "# The resolved config of this run, written by the workflow; jobs read it.\n"
    return head + yaml.safe_dump(config.as_written(), sort_keys=False, allow_unicode=True)


def _one_of(names: Iterable[str]) -> str:
    return "|".join(map(re.escape, names))


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
