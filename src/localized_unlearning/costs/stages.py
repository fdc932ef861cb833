"""What a run costs, before it runs: floating-point operations, seconds, bytes of memory and of disk, job by job.

The rules' memory and time, ``preflight`` and ``docs/scale.md`` all come from here. Everything is arithmetic over the
config, the sizes of the model and of the data; nothing is loaded, neither torch nor weights. What a rule computes is
described in one function a stage below; how fast a device is stands in ``DEVICES``.

Operations are counted as multiply and add (2 for each weight and token of a forward pass); B below is billion.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from localized_unlearning.config.base import Kind
from localized_unlearning.config.localization import Localization
from localized_unlearning.config.run import Config
from localized_unlearning.costs.devices import ASKING, DEVICES, FIT_START, Cost, Work, cpu
from localized_unlearning.costs.sizes import (
    BLOCK,
    CHARACTERS_PER_TOKEN,
    GB,
    LARGE_VOCABULARY,
    TINY_MMLU,
    TYPICAL_NAME,
    Data,
    Shape,
    find_data,
    find_shape,
)
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.localization.settings import for_masks
from localized_unlearning.unlearning.settings import finetune_settings

Wildcards = Mapping[str, str]

TABLE, COMPARING = Work(fit_flops=6e9), Work(fit_flops=1.7e10)
"""Drawing a table's or a figure's intervals, and comparing every pair of its rows, with 2000 bootstrap samples."""


# ---- the stages


@dataclass(frozen=True)
class Model:
    """The cost model of one run.

    Attributes:
        config: the run's.
        shape: the base model's.
        origin: where the shape was found.
        data: sizes of the data.
        results: the run's folder, in which selections may be there already.
        packing: whether prompts share their beginnings, as the package has it; false for plain arithmetic.
    """

    config: Config
    shape: Shape
    data: Data
    origin: str = ""
    results: Path = Path()
    packing: bool = True

    @classmethod
    def of(cls, config: Config, results: Path) -> Model:
        """The cost model of a run whose outputs lie, or will lie, in ``results``."""
        shape, origin = find_shape(config, results)
        return cls(config, shape, find_data(config, results), origin, results)

    # -- sizes

    @property
    def width(self) -> int:
        """Bytes of a weight."""
        return 2 if self.config.model.dtype == "bfloat16" else 4

    @property
    def weights(self) -> float:
        """Bytes of the base model."""
        return float(self.shape.parameters * self.width)

    def tokens(self, characters: float, kind: str = "prompt") -> float:
        """Tokens of so many characters, with the beginning-of-sequence token."""
        return characters / CHARACTERS_PER_TOKEN[kind][self.shape.vocabulary < LARGE_VOCABULARY] + 1

    @cached_property
    def prompts(self) -> dict[str, tuple[float, float]]:
        """Tokens of each prompt, and how many of them stand before the athlete's name."""
        found = {}
        for name, prompt in load_prompts(Path(self.config.prompts.file)).prompts.items():
            text = prompt.render(TYPICAL_NAME)
            found[name] = (self.tokens(len(text)), self.tokens(text.index(TYPICAL_NAME)))
        return found

    @property
    def batch_tokens(self) -> int:
        """Tokens of one forward pass; ``auto`` fits itself to the device and counts as the default's."""
        given = self.config.compute.batch_tokens
        return 4096 if given == "auto" else given

    @property
    def row(self) -> int:
        """Nodes of one packed row, as :func:`packing.row_length`."""
        return max(128, min(512, 2 * self.shape.hidden))

    def packed(self, count: float, tokens: float, shared: float, row: float = 0) -> float:
        """Nodes of ``count`` prompts of ``tokens`` tokens, of which each row holds the ``shared`` ones once."""
        if not self.packing:
            return count * tokens
        own = tokens - shared
        each = max(1.0, ((row or self.row) - shared) / own)
        return count * own + math.ceil(count / each) * shared

    def trained(self, localization: str, task: str = "", masks: bool = False) -> tuple[float, int]:
        """Parameters that a localization trains, or masks, and its lowest layer.

        Exact where the selection is there or the config says which; otherwise the most that the budget can hold.
        """
        path = self.results / task / "selections" / f"{localization}.json"
        other = self.config.localizations[localization]
        if masks and other is not None and other.mask is not None:
            path = self.results / task / "mask" / localization / "selection.json"
        if task and path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            return found["parameters"], min(int(name.split(".")[0]) for name in found["components"])
        chosen = self.config.localizations[localization]
        assert chosen is not None
        return self._budget(for_masks(chosen) if masks else chosen)

    def _budget(self, chosen: Localization) -> tuple[float, int]:
        sizes = {
            k: v for k, v in self.shape.kinds.items() if k != "gate" or self.config.components.include_gate
        }
        kinds = chosen.kinds or (("up", "down") if chosen.kind == "manual" else tuple(sizes))
        everything = sizes
        sizes = {k: v for k, v in sizes.items() if k in kinds}
        mlps = {k: v for k, v in sizes.items() if k in ("gate", "up", "down")}
        layers = self.shape.layers
        if chosen.kind == "all":
            return layers * sum(sizes.values()), 0
        if chosen.kind == "all_mlps":
            return layers * sum(mlps.values()), 0
        if chosen.kind == "manual":
            each = sum(sizes.values())
            # layers that the probes are still to choose: a quarter of them is more than was ever found
            layers_ = range(1, 1 + layers // 4) if isinstance(chosen.layers, str) else chosen.layers
            return len(layers_) * each, min(layers_)
        manual = self.config.localizations.get("manual")
        if chosen.budget != "fraction" and manual is not None:
            block = sum(sizes.values()) if chosen.unit == "block" else max(sizes.values())
            return self._budget(manual)[0] + (block if chosen.budget == "parameters_reached" else 0), 0
        if chosen.kind == "weights":
            return chosen.fraction * layers * sum(sizes.values()), 0
        scores = self.config.scores.get(chosen.scores or "")
        if scores is not None and scores.method == "causal_tracing" and scores.sites == "units":
            units = math.ceil(2 * layers * chosen.fraction - 1e-9)
            return units * max(sum(mlps.values()), sum(sizes.values()) - sum(mlps.values())), 0
        if (chosen.granularity or self.config.components.granularity) == "head":
            ordered = sorted([*mlps.values()] * layers + self._heads(sizes) * layers, reverse=True)
            per_layer = len([k for k in everything if k in ("gate", "up", "down")]) + len(
                self._heads(everything)
            )
        else:
            ordered = sorted([*sizes.values()] * layers, reverse=True)
            per_layer = len(everything)
        # these two choose more than the fraction: 14 % instead of 5 of Gemma-7B's components
        more = 1 if chosen.selection == "absolute" else 3
        return sum(ordered[: math.ceil(more * layers * per_layer * chosen.fraction - 1e-9)]), 0

    def _heads(self, sizes: Mapping[Kind, int]) -> list[int]:
        s = self.shape
        counts = {"q": s.heads, "o": s.heads, "k": s.kv_heads, "v": s.kv_heads}
        return [
            size // counts[kind]
            for kind, size in sizes.items()
            if kind in counts
            for _ in range(counts[kind])
        ]

    def forget(self, task: str) -> int:
        """Athletes to forget."""
        found = self.config.tasks[task]
        assert found is not None
        if found.forget.sport is not None:
            return self.data.athletes.get(found.forget.sport, 0)
        return len(found.forget.athletes)

    def parts(self, task: str) -> tuple[float, float, float]:
        """Training athletes, test athletes of the forget set, other test athletes; named ones are in both parts."""
        task_config = self.config.tasks[task]
        assert task_config is not None
        forget, share = self.forget(task), self.config.split.test_fraction
        others = self.data.total - forget
        if task_config.forget.sport is None:
            return others * (1 - share) + forget, forget, others * share
        return self.data.total * (1 - share), forget * share, others * share

    # -- passes

    def forward(self, nodes: float, row: float, answers: float, batch: float | None = None) -> Work:
        """A forward pass over ``nodes`` tokens in rows of ``row``, with logits at ``answers`` of them."""
        s = self.shape
        attention = 4 * s.layers * s.heads * s.head_dim * row
        passes = math.ceil(nodes / max(1, batch or self.batch_tokens))
        return Work(
            flops=nodes * (2 * s.body + attention),
            float32_flops=2 * s.head * answers,
            calls=passes * s.layers,
            traffic=nodes * self.elementwise(row) + (passes * 4 * s.head if self.width == 2 else 0.0),
        )

    def elementwise(self, row: float) -> float:
        """Bytes that a token moves besides matrix products: norms, activations, attention scores without a kernel."""
        s = self.shape
        return s.layers * self.width * (20 * s.hidden + 6 * s.mlp + 3 * s.heads * min(row, self.row))

    def pass_over(self, name: str, count: float) -> Work:
        """A forward pass over a fact prompt about ``count`` athletes."""
        tokens, shared = self.prompts[name]
        return self.forward(self.packed(count, tokens, shared), self.row, count)

    def ask(self, name: str, count: float) -> Work:
        """A fact prompt about ``count`` athletes, with the answers as rows."""
        return self.pass_over(name, count) + self.asking(count)

    def asking(self, prompts: float) -> Work:
        """Tokenising prompts, packing them and writing their rows down."""
        return Work(calls=ASKING * prompts)

    def ask_choice(self, count: float, orders: int) -> Work:
        """Multiple choice about ``count`` athletes; a shuffled order shares only the text in front."""
        tokens, shared = self.prompts[self.config.prompts.multiple_choice]
        work = self.forward(self.packed(count, tokens, shared), self.row, count) + self.asking(count * orders)
        if orders == 1:
            return work
        again = min(count, 24) * 0.65 * shared  # each of the 24 orders stands in front of some athletes
        return work + self.forward(self.packed(count, tokens, shared) + again, self.row, count)

    def ask_questions(self, count: float | None, shots: int) -> Work:
        """General knowledge: ``count`` questions (None: all) with ``shots`` examples, a subject's ones shared."""
        asked = self.data.questions if count is None else min(count, self.data.questions)
        own = self.tokens(self.data.question_characters, "question")
        shared = self.tokens(80 + shots * 0.9 * self.data.question_characters, "question")
        tokens = own + (shared if shots else 0)
        row = max(self.row, min(3 * tokens, self.batch_tokens))
        nodes = max(
            self.packed(asked, tokens, shared, row),
            min(asked, self.data.subjects) * shared + asked * own * bool(shots),
        )
        return self.forward(nodes, row, asked) + self.asking(asked)

    def exam(self, task: str, short: bool) -> Work:
        """What a trained model is asked."""
        c = self.config
        _, forget, retain = self.parts(task)
        if short and c.series.retain is not None:
            retain = min(retain, c.series.retain)
        names = (c.prompts.training, c.prompts.question, *(() if short else c.evaluation.prompts))
        work = self.ask_choice(forget + retain, 1 if short else 2)
        for name in names:
            work += self.ask(name, forget + retain)
        if short and c.series.source is not None:  # tinyMMLU, whose questions bring their examples
            asked = c.series.questions or TINY_MMLU
            tokens = self.tokens(self.data.question_characters * (1 + 0.9 * c.series.shots), "question")
            return work + self.forward(asked * tokens, 3 * tokens, asked) + self.asking(asked)
        chosen = (c.series.questions, c.series.shots) if short else (c.mmlu.questions, c.mmlu.shots)
        return work + self.ask_questions(*chosen)

    def training(
        self,
        steps: int,
        facts: float,
        windows: float,
        trained: float,
        lowest: int,
        batch: int,
        name: str = "",
    ) -> Work:
        """Optimizer steps: ``facts`` prompts and ``windows`` of text a step, ``trained`` parameters, forwards and backwards.

        Below the lowest trained layer there is no backward pass.
        """
        tokens, shared = self.prompts[name or self.config.prompts.training]
        text = windows * self.config.text.tokens
        nodes = self.packed(facts, tokens, shared)
        forward = self.forward(nodes, self.row, facts, batch) + self.forward(
            text, self.config.text.tokens, text, batch
        )
        above = (self.shape.layers - lowest) / self.shape.layers
        backward = Work(
            flops=forward.flops * above + 2 * trained * (nodes + text),
            float32_flops=forward.float32_flops,
            calls=2 * forward.calls * above,
            traffic=2 * forward.traffic * above,
        )
        return (forward + backward) * steps

    def loading(self, delta: float = 0.0) -> Work:
        """Reading and hashing the weights, and a delta."""
        return Work(load=self.weights * 2 + 2 * delta * self.width)

    def probes(self, fits: float, athletes: float) -> Work:
        """Logistic regressions on the residual stream: about 140 iterations of two products each."""
        return Work(fit_flops=fits * (athletes * self.shape.hidden * 140 * 4 + FIT_START))

    # -- memory

    def saved(self, tokens: float, lowest: int, trained: float, row: float = 0) -> float:
        """Bytes of activations kept for the backward pass of ``tokens`` tokens, above the lowest trained layer."""
        s, b, layers = self.shape, self.width, self.shape.layers - lowest
        norms = 4 * s.norms * s.hidden  # each keeps its input in float32
        attention: float = 2 * (s.heads + s.kv_heads) * s.head_dim * b
        attention += 8 * s.heads * (row or self.row) if s.softcapped else 0
        mlp = (3 if s.gated else 1) * s.mlp * b
        share = min(1.0, 1.4 * trained * s.layers / (s.body * layers))  # several matrices read one input
        inputs = (2 * s.hidden + s.heads * s.head_dim + s.mlp) * b * share
        return tokens * layers * (norms + attention + mlp + inputs)

    def logits(self, positions: float) -> float:
        """Bytes of the output layer at work: blocks of it and of its logits, and float32 hidden states."""
        return 6 * 4 * BLOCK + 4 * 4 * positions * self.shape.hidden

    def evaluating(self, batch: float | None = None) -> dict[str, float]:
        """Device bytes of a forward pass of ``batch`` tokens without gradients."""
        s, tokens = self.shape, batch or self.batch_tokens
        held = (
            6 * s.hidden + 2 * (s.heads + s.kv_heads) * s.head_dim + 3 * s.mlp
        ) * self.width + 8 * s.hidden
        held += 8 * s.heads * self.row if s.softcapped else 0
        return {"weights": self.weights, "activations": tokens * held, "logits": self.logits(tokens)}

    def training_bytes(self, trained: float, lowest: int, batch: float) -> dict[str, float]:
        """Device bytes of training besides gradients and states."""
        return {
            "weights": self.weights,
            "activations": self.saved(batch, lowest, trained),
            "logits": self.logits(batch),
        }

    def held(self, facts: float, windows: float, batch: int) -> float:
        """Tokens of the larger of a step's micro-batches."""
        tokens, shared = self.prompts[self.config.prompts.training]
        return min(batch, max(windows * self.config.text.tokens, self.packed(facts, tokens, shared)))

    def states(self, trained: float) -> dict[str, float]:
        """Bytes of gradients, optimizer states and float32 masters in fine-tuning."""
        if self.width == 4:
            return {
                "gradients": 4 * trained,
                "optimizer": 8 * trained,
                "one matrix's step": 12.0 * self.shape.largest,
            }
        precision = self.config.finetune.precision
        optimizer = (12 if precision == "fp32_master" else 4) * trained
        temporary = 6 * self.shape.largest if precision == "bf16" else 20 * self.shape.largest
        return {"gradients": 2 * trained, "optimizer": optimizer, "one matrix's step": temporary}

    # -- one stage each

    def cost(self, stage: str, wildcards: Wildcards) -> Cost:
        """What one job costs; of a sharded model, on each of its devices."""
        cost = STAGE_COSTS[stage](self, wildcards)
        return replace(cost, device=self.sharded(cost.device)) if stage not in LIGHT else cost

    def sharded(self, device: Mapping[str, float]) -> Mapping[str, float]:
        """Of a job's bytes, what one of ``compute.shards`` devices holds.

        The layers and what belongs to their weights are divided. A layer is whole while it runs, and so is the next, with
        the gradient of both in training; embeddings, adapters and the work on a batch are not divided.
        """
        shards = self.config.compute.shards
        if shards == 1 or not device:
            return device
        layers = self.shape.body * self.width
        alone = {"activations", "logits", "adapters", "adapters' activations"}
        parts = {name: size if name in alone else size / shards for name, size in device.items()}
        parts["weights"] = device["weights"] - layers + layers / shards
        gradients = 2 if "gradients" in device else 1
        return {**parts, "gathered layers": 2 * gradients * layers / self.shape.layers}

    def _finetune(self, w: Wildcards) -> Cost:
        trained, lowest = self.trained(w["localization"], w["task"])
        objective = self.config.objectives[w["objective"]]
        assert objective is not None
        f = finetune_settings(self.config.finetune, objective, w["localization"])
        windows = f.sft_batch_size or f.batch_size
        work = self.training(f.steps, 2 * f.batch_size, windows, trained, lowest, f.micro_batch_tokens)
        held = self.held(2 * f.batch_size, windows, f.micro_batch_tokens)
        states = self.states(trained)
        # gradient norm and clipping, AdamW, zeroing: each state is read and written
        work += Work(traffic=f.steps * 2.5 * sum(states.values())) + self.loading(trained)
        device = {**self.training_bytes(trained, lowest, held), **states}
        return Cost(work, device, 2 * trained * self.width, trained * self.width)

    def _mask(self, w: Wildcards) -> Cost:
        m, trained, lowest = self.config.masking, *self.trained(w["localization"], w["task"], masks=True)
        work = self.training(m.steps, 2 * m.batch_size, m.text_batch, trained, lowest, m.micro_batch_tokens)
        states = {"adam": 2, "sgd": 1 if m.momentum else 0}[m.optimizer]
        each = 60 + 12 * states  # gradient of d, the step, clamping, the masked weight, the step's statistics
        work += Work(traffic=m.steps * each * trained) + self.loading()
        device = {
            **self.training_bytes(
                trained, lowest, self.held(2 * m.batch_size, m.text_batch, m.micro_batch_tokens)
            ),
            "gradients": self.width * trained,
            "base weights": self.width * trained,
            "mask": 4 * trained if m.parameterization == "mask" else 0,
            "optimizer": (4 if m.parameterization == "mask" else self.width) * states * trained,
            "one matrix's step": 16.0 * self.shape.largest,
        }
        return Cost(work, device, 8 * max(m.edit_sizes), 4.0 * max(m.edit_sizes))

    def _relearn(self, w: Wildcards) -> Cost:
        r, s = self.config.relearning, self.shape
        trained, _ = self.trained(w["localization"], w["task"])
        pairs = sum((size / s.hidden + s.hidden) * r.rank for size in s.kinds.values())
        lora = s.layers * pairs
        task = self.config.tasks[w["task"]]
        assert task is not None
        facts = len(task.relearn) + r.retain_batch
        work = self.training(r.iterations, facts, r.text_batch, lora, 0, r.micro_batch_tokens)
        work += Work(flops=work.flops * 2 * lora / s.body) + Work(traffic=r.iterations * 40 * lora)
        exam = self.exam(w["task"], short=True)
        asked = exam + Work(flops=exam.flops * lora / s.body, calls=exam.calls)  # the adapters answer too
        work += asked * (r.iterations + 1) + self.loading(trained)
        tokens = self.held(facts, r.text_batch, r.micro_batch_tokens)
        device = {
            **self.training_bytes(self.shape.body, 0, tokens),
            "adapters": 16 * lora,
            "adapters' activations": tokens
            * s.layers
            * (4 * (4 * s.hidden + s.mlp))
            * (2 if self.width == 2 else 0),
            "base weights": self.width * trained,
        }
        device = self._larger(
            device, {**self.evaluating(), "adapters": 16 * lora, "base weights": self.width * trained}
        )
        return Cost(work, device, 2 * trained * self.width, 2e4 * (r.iterations + 1))

    @staticmethod
    def _larger(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
        return max(first, second, key=lambda parts: sum(parts.values()))

    def _evaluate(self, w: Wildcards) -> Cost:
        trained = 0.0 if w["localization"] == "base" else self.trained(w["localization"], w["task"])[0]
        c = self.config
        text = c.text.windows * c.text.tokens
        work = (
            self.exam(w["task"], short=False)
            + self.forward(text, c.text.tokens, text)
            + self.loading(trained)
        )
        device = {**self.evaluating(), "base weights": self.width * trained}
        rows = self.data.questions if c.mmlu.questions is None else c.mmlu.questions
        return Cost(work, device, 2 * trained * self.width, 5e4 + 60.0 * rows)

    def _sweep(self, w: Wildcards) -> Cost:
        points = len(self.config.masking.edit_sizes)
        return Cost(
            self.exam(w["task"], short=True) * points + self.loading(), self.evaluating(),
            8 * max(self.config.masking.edit_sizes), 2e4 * points,
        )  # fmt: skip

    def _score(self, w: Wildcards) -> Cost:
        c, s = self.config, self.shape
        score = c.scores[w["scores"]]
        assert score is not None
        train = self.parts(w["task"])[0]
        count = train if score.prompts is None else min(train, score.prompts)
        tokens = self.prompts[c.prompts.training][0]
        once = self.forward(count * tokens, tokens, count)
        batch = min(self.batch_tokens, count * tokens)
        device = self.evaluating()
        if score.method == "attribution_patching":
            work = once * 3  # two forwards, and a backward to the activations alone
            each = 2 * (s.heads + s.kv_heads) * s.head_dim + s.mlp + s.hidden
            device["activations"] = self.saved(batch, 0, 0) + batch * s.layers * each * self.width * 3
        else:
            sites = s.layers * (s.heads + 1)
            work = once * 2 + once * (sites / 2)  # each restarts at its layer: half the network in the mean
            device["activations"] += batch * s.layers * (s.hidden + s.mlp + s.heads * s.head_dim) * self.width
        return Cost(work + self.loading(), device, 0, 2e4)

    def _known_facts(self, w: Wildcards) -> Cost:
        work = self.ask(self.config.prompts.training, self.data.total) + self.loading()
        return Cost(work, self.evaluating(), 0, 1e5)

    def _model_card(self, w: Wildcards) -> Cost:
        c, n = self.config, self.data.total
        work = self.ask(c.prompts.training, n) + self.ask(c.prompts.question, n) + self.ask_choice(n, 2)
        work += self.ask_questions(c.mmlu.questions, c.mmlu.shots) + self.loading()
        return Cost(work, self.evaluating(), 0, 1e4)

    def _probe(self, w: Wildcards) -> Cost:
        trained = 0.0 if w["localization"] == "base" else self.trained(w["localization"], w["task"])[0]
        work = replace(self.pass_over(self.config.prompts.training, self.data.total), float32_flops=0)
        work += self.probes(2 * 3 * self.shape.layers, self.parts(w["task"])[0]) + self.loading(trained)
        residual = 4.0 * self.shape.layers * self.data.total * self.shape.hidden
        device = {**self.evaluating(), "base weights": self.width * trained}
        return Cost(work, device, 2 * trained * self.width + 3 * residual, 1e4)

    def _layer_probes(self, w: Wildcards) -> Cost:
        n = self.data.total
        work = self.pass_over(self.config.prompts.training, n) * 2 + self.pass_over("athlete", n) * 2
        work += self.probes(6 * self.shape.layers, 0.8 * n) * 2 + self.loading()
        return Cost(work, self.evaluating(), 12.0 * self.shape.layers * n * self.shape.hidden, 1e5)

    def _head_ablation(self, w: Wildcards) -> Cost:
        runs = self.config.interpretability.lookup_end * self.shape.heads + 1
        work = self.pass_over(self.config.prompts.training, self.data.total) * runs
        work += self.probes(runs, 0.8 * self.data.total) * 2 + self.loading()
        return Cost(work, self.evaluating(), 12.0 * self.data.total * self.shape.hidden, 1e5)

    def _pretrain(self, w: Wildcards) -> Cost:
        o, c = self.config.organism, self.config
        work = Work()
        for name, count in (
            (c.prompts.training, o.facts_per_step), (c.prompts.question, o.questions_per_step),
            (c.prompts.multiple_choice, o.multiple_choice_per_step),
        ):  # fmt: skip
            tokens, shared = self.prompts[name]
            work += self.forward(self.packed(count, tokens, shared), self.row, count)
        questions = self.tokens(self.data.question_characters, "question") * o.general_knowledge_per_step
        text = o.text_per_step * 64
        work += self.forward(questions, self.row, o.general_knowledge_per_step) + self.forward(text, 64, text)
        work = work * 3 + Work(traffic=40.0 * self.shape.parameters)
        n = self.shape.parameters
        device = {
            "weights": 4.0 * n,
            "gradients": 4.0 * n,
            "optimizer": 8.0 * n,
            "activations": self.saved(4096, 0, True),
        }
        return Cost(work * o.steps, device, 0, 4.0 * n)

    def _download(self, w: Wildcards) -> Cost:
        return Cost(Work(load=2 * self.weights), {}, 1e9, self.weights)

    def _convert(self, w: Wildcards) -> Cost:
        return Cost(
            Work(load=2 * self.weights, traffic=200 * self.shape.parameters),
            {},
            3 * self.weights,
            self.weights,
        )

    def _claims(self, w: Wildcards) -> Cost:
        return Cost(COMPARING, host=2e9, disk=2e5)  # every model's rows at once, and their resampled means

    def _fetch(self, w: Wildcards) -> Cost:
        return Cost(disk=0.4 * GB)  # the largest of the presets: a part of the Pile, compressed

    def _table(self, w: Wildcards) -> Cost:
        return Cost(TABLE, disk=4e4)

    def _comparisons(self, w: Wildcards) -> Cost:
        return Cost(COMPARING, disk=5e4)

    def _light(self, w: Wildcards) -> Cost:
        return Cost(disk=1e4)


STAGE_COSTS: dict[str, Callable[[Model, Wildcards], Cost]] = {
    "fetch": Model._fetch,
    "pretrain": Model._pretrain,
    "convert": Model._convert,
    "download": Model._download,
    "known_facts": Model._known_facts,
    "model_card": Model._model_card,
    "split": Model._light,
    "score": Model._score,
    "select": Model._light,
    "finetune": Model._finetune,
    "evaluate": Model._evaluate,
    "relearn": Model._relearn,
    "mask": Model._mask,
    "sweep": Model._sweep,
    "probe": Model._probe,
    "head_ablation": Model._head_ablation,
    "layer_probes": Model._layer_probes,
    "table": Model._table,
    "figure": Model._table,
    "supplement": Model._table,
    "comparisons": Model._comparisons,
    "claims": Model._claims,
}

LIGHT = tuple(name for name, stage in STAGES.items() if not stage.gpu)
"""Stages that use no GPU even where there is one."""

# ---- what a job asks the scheduler for

PROCESS = 1.2 * GB
"""A Python process that has imported torch, transformers and scikit-learn, with room for its data frames."""

HEADROOM = 1.3
"""Memory asked for, over what is predicted."""

PATIENCE = 4
"""Time asked for, over what is predicted: a busy file system or a neighbour must not kill a job."""


def on_gpu(config: Config, shape: Shape) -> bool:
    """Whether jobs are planned for a GPU: where ``compute.device`` says so; with ``auto``, from 2 B parameters on."""
    if config.compute.device == "auto":
        return shape.parameters > 2e9
    return config.compute.device.startswith("cuda")


def memory_mb(model: Model, stage: str, wildcards: Wildcards, attempt: int = 1) -> int:
    """Host memory to ask for, in MB; half as much again with each further attempt.

    On a GPU the host holds the weights while they are loaded, and the copies that are kept beside the device. The
    processes of a sharded model load it in turn.
    """
    cost = model.cost(stage, wildcards)
    processes = 1 if stage in LIGHT else model.config.compute.shards
    if stage not in LIGHT and on_gpu(model.config, model.shape):
        needed = model.weights + cost.host
    else:
        loaded = model.weights if cost.device and stage != "pretrain" else 0
        needed = processes * cost.device_bytes + cost.host + loaded
    needed = processes * PROCESS + HEADROOM * needed
    return math.ceil(needed / 1e6 * 1.5 ** (attempt - 1))


def minutes(model: Model, stage: str, wildcards: Wildcards, threads: int = 1, attempt: int = 1) -> int:
    """Time to ask for, in minutes; twice as much with each further attempt."""
    cost = model.cost(stage, wildcards)
    gpu = stage not in LIGHT and on_gpu(model.config, model.shape)
    device = DEVICES["A100-80"] if gpu else cpu(threads)
    seconds = device.seconds(cost.work, model.config.model.dtype)
    least = 60 if stage in ("fetch", "download") else 10
    return math.ceil((least + PATIENCE * seconds / 60) * 2.0 ** (attempt - 1))
