"""A finished run in Python: its rows and tables as DataFrames, its unlearned models, and attacks on them.

run = load_run("results/organism")
unlearned = run.model("manual")
likely = unlearned.ask(["Fact: Derek Jeter plays the sport of"])
about = unlearned.ask(["Derek Jeter"], prompt="question")  # the same by one of the run's prompts

bridge = unlearned.bridge()  # the same model as a TransformerLens TransformerBridge
unlearned.save("exported")  # or as a standard Hugging Face folder
"""

from __future__ import annotations

import copy
import importlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from localized_unlearning.attacks import relearning
from localized_unlearning.config import reading
from localized_unlearning.config.run import Config
from localized_unlearning.data.answers import candidates
from localized_unlearning.data.facts import load_facts
from localized_unlearning.data.prompts import Prompt, load_prompts
from localized_unlearning.data.tokens import load_tokenizer
from localized_unlearning.errors import UserError
from localized_unlearning.evaluation.facts import ask_facts
from localized_unlearning.jobs.job import Job, restrict
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.models import deltas, device, exporting, loading
from localized_unlearning.unlearning import masks
from localized_unlearning.workflow.graph import Graph
from localized_unlearning.workflow.layout import RESOLVED, JobId

ATTACKS = {"relearn": "relearning", "probe": "probing"}
"""Stages that attack a model, and the part of the config that each is set by."""


@dataclass(frozen=True)
class RunModel:
    """A model of a run: the base model, or the base model with a delta laid over it.

    Attributes:
        run: the run it is of.
        wildcards: which one: base seed, task, objective, localization and seed.
        model: a causal language model of transformers; its weights are the unlearned ones.
        tokenizer: its tokenizer.
        source: what it was made from beside the base model: a delta or a mask; None for the base model itself.
        done: what was done to it after unlearning, in words.
        adapted: whether it has LoRA adapters in its modules.
    """

    run: Run
    wildcards: Mapping[str, str]
    model: Any
    tokenizer: Any
    source: Path | None = None
    done: str = ""
    adapted: bool = False

    @property
    def tasks(self) -> tuple[str, ...]:
        """Whose facts were unlearned in it, in order: the base model and then these tasks' deltas; none for the base model."""
        return (
            () if self.wildcards["localization"] == "base" else self.run.graph.chain(self.wildcards["task"])
        )

    def ask(self, texts: Sequence[str], answers: Sequence[str] = (), prompt: str = "") -> pd.DataFrame:
        """How likely each answer is to come next: its first token, or where answers begin alike all of it.

        Args:
            texts: what stands before the answer, without a space at its end; with a ``prompt``, subjects.
            answers: words; none: the run's candidate answers.
            prompt: the name of one of the run's prompts, by which it is asked about each of ``texts``, as a chat where
                that prompt is one.

        Returns:
            Probabilities over the whole vocabulary, one row per text and one column per answer.

        Raises:
            UserError: for a prompt that does not exist, is multiple choice, or belongs to facts with answers of their own.
        """
        graph, root, config = self.run.graph, self.run.root, self.run.config
        book = load_prompts(root / graph.path(graph.prompts_file))
        asked = book[prompt] if prompt else Prompt("text", "{subject}")
        if asked.options or asked.facts:
            raise UserError(
                f"prompt '{prompt}' gives each question its own answers: ask with another, or with a text"
            )
        if answers:
            asked = replace(asked, answers=())
        elif not (answers := book.answers):
            facts, _ = load_facts(root / graph.path(graph.facts_file), (), config.athletes.relation)
            answers = candidates(book, facts)
        table = pd.DataFrame(
            {"subject": list(texts), "answer": answers[0], "forget": False, "relearn": False}
        )
        batch = device.batch_tokens(config.compute, self.model)
        rows = ask_facts(self.model, self.tokenizer, table, [asked], answers, batch)
        logs = rows[[f"logit_{answer}" for answer in answers]].sub(rows["log_normalizer"], axis=0)
        likely = np.exp(logs.to_numpy(dtype=np.float64))
        index = pd.Index(list(texts), name="subject" if prompt else "text")
        return pd.DataFrame(likely, index=index, columns=list(answers))

    def attack(self, name: str, **settings: Any) -> dict[str, pd.DataFrame]:
        """Try to bring the forgotten facts back; writes nothing.

        Args:
            name: ``relearn`` (trains on a few forgotten facts, then asks for the others) or ``probe`` (reads the facts off
                the activations).
            settings: instead of the config's, under ``relearning`` or ``probing``: ``iterations=5``.

        Returns:
            Rows by kind, as the run itself has them: ``facts``, ``multiple_choice`` and ``mmlu``, or ``probes``.

        Raises:
            UserError: for an attack or a setting that does not exist, or when the run lacks what it needs.
        """
        if name not in ATTACKS:
            raise UserError(f"there is no attack {name}: say {' or '.join(ATTACKS)}")
        resolved = self.run.root / self.run.graph.layout.resolved
        config = reading.load([resolved], {ATTACKS[name]: settings})
        return self.run.compute(JobId.of(name, **self.wildcards), config)

    def relearned(self) -> RunModel:
        """The model after the run's last iteration of relearning, trained again here; its LoRA adapters are apart.

        Raises:
            UserError: for the base model or a masked one, or when the run lacks what it needs.
        """
        if self.wildcards.get("objective", "none") == "none" or self.adapted:
            raise UserError("relearning starts from a fine-tuned model: name one of a localization, unmasked")
        job = self.run._job(JobId.of("relearn", **self.wildcards), self.run.config, {})
        model, tokenizer = self.run._base(job.inputs["base_model"])
        _, steps = relearning.start(job, model, tokenizer)
        for _ in range(self.run.config.relearning.iterations):
            next(steps)
        return replace(self, model=model.requires_grad_(False), done=", relearned", adapted=True)

    def bridge(self) -> Any:
        """The model as a TransformerLens ``TransformerBridge``, hooks and all, with the same weights and logits.

        Raises:
            UserError: when TransformerLens is not installed, or does not know the architecture.
        """
        try:
            from transformer_lens.model_bridge.sources import (
                _bridge_builder,  # takes seconds, and is a part that only this needs
            )
        except ImportError as error:
            raise UserError(
                f"TransformerLens cannot be imported ({error}): pip install transformer-lens"
            ) from error
        model = self._merged()
        try:
            with (
                tempfile.TemporaryDirectory() as place
            ):  # from where TransformerLens reads the tokenizer again
                self.tokenizer.save_pretrained(place)
                return _bridge_builder.build_bridge_from_module(
                    model, type(model).__name__, hf_config=model.config, tokenizer=load_tokenizer(Path(place))
                )
        except (KeyError, ValueError, NotImplementedError) as error:
            raise UserError(f"TransformerLens has no bridge for {type(model).__name__} ({error})") from error

    def _merged(self) -> Any:
        """A copy that may be changed, with its adapters in its weights."""
        model = copy.deepcopy(self.model)
        if self.adapted:
            exporting.merge_adapters(model)
        return model

    def save(self, folder: str | Path) -> Path:
        """Write a standard Hugging Face folder with a model card (key, record, licence), for any other tool.

        Adapters of relearning are merged into the weights. Returns the folder.

        Raises:
            UserError: when the folder is there already.
        """
        use = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{Path(folder).name}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{Path(folder).name}")'
        )
        model = self._merged() if self.adapted else self.model
        return exporting.write_folder(folder, exporting.write_model(model, self.tokenizer), self._card(use))

    def save_adapter(self, folder: str | Path, base: str | None = None) -> Path:
        """Write the adapters of relearning as a peft folder; they belong on the unlearned model, saved by itself.

        Args:
            folder: a new folder.
            base: name or folder of the saved unlearned model, for peft to find it by itself.

        Raises:
            UserError: when the model has no adapters, or the folder is there already.
        """
        if not self.adapted:
            raise UserError("only a relearned model has adapters: ask for a relearned one")
        use = (
            "from peft import PeftModel\n\n# unlearned: the unlearned model, exported without relearning\n"
            f'model = PeftModel.from_pretrained(unlearned, "{Path(folder).name}")'
        )
        return exporting.write_folder(folder, exporting.write_adapter(self.model, base), self._card(use))

    def _card(self, use: str) -> str:
        config, masked = self.run.config, self.source is not None and "objective" not in self.wildcards
        what = "base model" if self.source is None else "masked model" if masked else "unlearned model"
        folder = self.run._inputs(JobId.of("check_model", **self.wildcards))["base_model"]
        name = (
            config.model.name
            if config.model.kind == "huggingface"
            else f"{config.model.kind} of {config.run}"
        )
        title = f"{config.run}: {what}{self.done}"
        return exporting.card(title, name, config.run, self.wildcards, self.source, folder, use)


@dataclass(frozen=True)
class Run:
    """One run's config and results; see :func:`load_run`.

    Attributes:
        root: the folder that holds ``results`` and ``figures``.
        config: the resolved config.
    """

    root: Path
    config: Config = field(repr=False)

    @cached_property
    def graph(self) -> Graph:
        """The jobs of the run, and where their files lie, seen from :attr:`root`."""
        return Graph(self.config)

    def _read(self, job: JobId, output: str) -> Path:
        path = self.root / self.graph.layout.outputs(job)[output]
        if not path.is_file():
            raise UserError(f"{path} is not there: make it with snakemake {path.relative_to(self.root)}")
        return path

    def table(self, name: str) -> pd.DataFrame:
        """A table of the paper, one row per localization, column and accuracy; ``name`` is such as ``table_1``."""
        return pd.read_csv(self._read(JobId.of("table", table=name), "csv"))

    def figure(self, name: str) -> pd.DataFrame:
        """What a figure was drawn from; ``name`` is such as ``figure_3``."""
        return pd.read_csv(self._read(JobId.of("figure", figure=name), "csv"))

    def rows(self, kind: str, **which: str | int) -> pd.DataFrame:
        """The answers of all models, or of those that ``which`` names, one row per item.

        Args:
            kind: ``facts``, ``multiple_choice``, ``mmlu``, ``text`` or ``probe``.
            which: ``task``, ``objective``, ``localization``, ``seed`` or ``base_seed``, to have only those.

        Raises:
            UserError: when there is no such kind, or no such rows yet.
        """
        kinds = [
            name for name, stage in STAGES.items() if {"task", "localization", "seed"} <= set(stage.wildcards)
        ]
        if kind not in kinds:
            raise UserError(f"there are no rows of {kind}: say one of {', '.join(sorted(kinds))}")
        wanted = {name: str(value) for name, value in which.items()}
        jobs = [job for job in self.graph.jobs if job.stage == kind and wanted.items() <= job.named.items()]
        paths = [self.root / path for job in sorted(jobs) for path in self.graph.layout.outputs(job).values()]
        found = [pd.read_parquet(path) for path in paths if path.suffix == ".parquet" and path.is_file()]
        if not found:
            said = ", ".join(f"{name} {value}" for name, value in which.items()) or "any model"
            raise UserError(f"{self.root / self.graph.layout.results} has no {kind} of {said}")
        return pd.concat(found, ignore_index=True)

    def model(
        self,
        localization: str,
        task: str | None = None,
        objective: str | None = None,
        seed: int | None = None,
        base_seed: int | None = None,
        masked: int | None = None,
    ) -> RunModel:
        """The base model (``base``), or the one unlearned at a localization.

        Args:
            localization: a name under ``localizations``, or ``base``.
            task: the first of the config unless said.
            objective: the first of the config unless said.
            seed: the training seed; the first of the config unless said.
            base_seed: the base model's; the first of the config unless said.
            masked: instead of the fine-tuned model, the base model with so many of the trained mask's weights at zero.

        Raises:
            UserError: when the config has no such model, or it was not made yet.
        """
        task = task or self.graph.tasks[0]
        base = localization == "base"
        objective = "none" if base else objective or next(iter(self.config.objectives))
        if masked is not None:
            objective = "mask"
        seed = 0 if base else self.graph.seeds(task, objective)[0] if seed is None else seed
        start = self.graph.bases[0] if base_seed is None else base_seed
        names: dict[str, str | int] = {
            "base_seed": start,
            "task": task,
            "objective": objective,
            "localization": localization,
            "seed": seed,
        }
        if masked is not None:
            del names["objective"]
        job = JobId.of("facts" if masked is None else "sweep", **names)
        if not self.graph.has(job):
            raise UserError(
                f"the run has no model {', '.join(f'{k} {v}' for k, v in names.items())}: localizations are "
                f"{', '.join(self.graph.localizations)}"
            )
        inputs = self._inputs(job)
        loaded, tokenizer = self._base(inputs["base_model"])
        digest = deltas.weights_digest(inputs["base_model"])
        if masked is not None:
            masks.cut(loaded, inputs["mask"], digest, masked)
            done = f", {masked} weights at zero"
            return RunModel(self, job.named, loaded, tokenizer, inputs["mask"], done)
        if inputs["delta"]:
            deltas.put(loaded, deltas.read_delta(inputs["delta"], digest))
        return RunModel(self, job.named, loaded, tokenizer, inputs["delta"])

    def _base(self, folder: Path) -> tuple[Any, Any]:
        return loading.load(folder, self.config.model.dtype, device.setup(self.config.compute))

    def _job(self, job: JobId, config: Config, outputs: dict[str, Path]) -> Job:
        stage = STAGES[job.stage]
        return Job(
            stage, restrict(config, stage, job.named), job.named, self._inputs(job), outputs, "not recorded"
        )

    def _inputs(self, job: JobId) -> dict[str, Any]:
        """A job's inputs by name, each a path, a list of paths, or None."""
        many = {given.name for given in STAGES[job.stage].inputs if given.many}
        found: dict[str, Any] = {}
        for name, values in self.graph.paths(job).items():
            paths = [self.root / value for value in values]
            for path in paths:
                if not path.exists():
                    raise UserError(
                        f"{path} is not there: make it with snakemake {path.relative_to(self.root)}"
                    )
            found[name] = paths if name in many else next(iter(paths), None)
        return found

    def compute(self, job: JobId, config: Config) -> dict[str, pd.DataFrame]:
        """The rows of a job with another config than the run's, computed here and kept nowhere."""
        with tempfile.TemporaryDirectory() as folder:
            outputs = {name: Path(folder) / f"{name}.parquet" for name in STAGES[job.stage].outputs}
            self._do(job, config, outputs)
            return {name: pd.read_parquet(path) for name, path in outputs.items()}

    def draw(self, name: str, folder: str | Path) -> Path:
        """Draw a figure of the paper again, from the run's rows alone: no model is needed.

        Args:
            name: such as ``figure_3``.
            folder: where to write it as PDF, PNG and CSV.

        Returns:
            The PDF.
        """
        job = JobId.of("figure", figure=name)
        Path(folder).mkdir(parents=True, exist_ok=True)
        outputs = {kind: Path(folder) / f"{name}.{kind}" for kind in STAGES["figure"].outputs}
        self._do(job, self.config, outputs)
        return outputs["pdf"]

    def _do(self, job: JobId, config: Config, outputs: dict[str, Path]) -> None:
        """A job's work without its record: for looking, not for publishing."""
        stage = STAGES[job.stage]
        function = getattr(importlib.import_module(stage.module), stage.function)
        function(self._job(job, config, outputs))


def load_run(folder: str | Path) -> Run:
    """A finished, or half-finished, run.

    Args:
        folder: its results, such as ``results/organism``; they may have been copied from elsewhere with ``figures`` beside.

    Raises:
        UserError: when there is no resolved config in ``folder``.
    """
    path = Path(folder).resolve()
    if not (path / RESOLVED).is_file():
        raise UserError(f"{folder} holds no {RESOLVED}: name the results of a run, such as results/organism")
    return Run(path.parents[1], reading.load([path / RESOLVED]))
