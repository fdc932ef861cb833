"""Sizes of one run: weights, tokens, prompts, what a localization trains, how many athletes are asked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from localized_unlearning.config.base import Kind
from localized_unlearning.config.data import OwnPrompts
from localized_unlearning.config.localization import Localization
from localized_unlearning.config.run import Config
from localized_unlearning.costs.sizes import (
    CHARACTERS_PER_TOKEN,
    COUNTERFACT_CHARACTERS,
    LARGE_VOCABULARY,
    TYPICAL_FACTS,
    TYPICAL_NAME,
    Data,
    Places,
    Shape,
    find_data,
    find_shape,
)
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.localization.settings import for_masks


@dataclass(frozen=True)
class Counts:
    """What is counted of a run before anything is computed.

    Attributes:
        config: the run's.
        shape: the base model's.
        data: sizes of the data.
        origin: where the shape was found.
        places: where selections may be there already; None where nothing is.
        packing: whether prompts share their beginnings, as the package has it; false for plain arithmetic.
    """

    config: Config
    shape: Shape
    data: Data
    origin: str = ""
    places: Places | None = None
    packing: bool = True

    @classmethod
    def of(cls, config: Config, places: Places) -> Self:
        """The cost model of a run."""
        shape, origin = find_shape(config, places)
        return cls(config, shape, find_data(config, places), origin, places)

    @property
    def width(self) -> int:
        """Bytes of a weight."""
        return 2 if self.config.model.dtype == "bfloat16" else 4

    @property
    def on_gpu(self) -> bool:
        """Whether jobs are planned for a GPU: where ``compute.device`` says so; with ``auto``, from 2 B parameters on."""
        device = self.config.compute.device
        return self.shape.parameters > 2e9 if device == "auto" else device.startswith("cuda")

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
        path, own = Path(self.config.prompts.file), self.config.athletes.own_prompts
        if own is not None:
            path = self.places.prompts() if self.places is not None else Path()
            if not path.is_file():
                return self._own_prompts(own)
        found = {}
        for name, prompt in load_prompts(path).prompts.items():
            if prompt.facts:  # each has a text of its own, which shares nothing with the next one's
                some = list(prompt.facts)[:TYPICAL_FACTS]
                found[name] = (
                    self.tokens(sum(len(prompt.render(s)) for s in some) / len(some)),
                    self.tokens(0),
                )
                continue
            text = prompt.render(TYPICAL_NAME)
            found[name] = (self.tokens(len(text)), self.tokens(text.index(TYPICAL_NAME)))
        return found

    def _own_prompts(self, own: OwnPrompts) -> dict[str, tuple[float, float]]:
        """The prompts of CounterFact before they are made: as long as those of the public file."""
        names = ["training", "multiple_choice", *self.config.evaluation.prompts, self.config.prompts.question]
        found = {}
        for name in names:
            characters = COUNTERFACT_CHARACTERS[name.rstrip("_0123456789")]
            shared = self.tokens(own.shots * characters) if name == "multiple_choice" else self.tokens(0)
            found[name] = (shared + self.tokens(characters), shared)
        return {**found, "subject": (self.tokens(len(TYPICAL_NAME)), self.tokens(0))}

    @property
    def batch_tokens(self) -> int:
        """Tokens of one forward pass; ``auto`` fits itself to the device: as :func:`device.batch_tokens` on a CPU, else as on an A100."""
        compute = self.config.compute
        if compute.batch_tokens != "auto":
            return compute.batch_tokens
        return 1024 if compute.device == "cpu" else 4096

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
        if localization == "base":
            return 0.0, 0
        if localization == "gold":
            return self.trained("truth")
        path = self.places.selection(masks, task, localization) if task and self.places else None
        if path is not None and path.is_file():
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
        facts_in = self.config.organism.facts_in
        if chosen.kind in ("truth", "matched_draw") and facts_in is not None:
            lowest = min(facts_in.layers) if chosen.kind == "truth" else 0
            return len(facts_in.layers) * sum(self.shape.kinds[kind] for kind in facts_in.kinds), lowest
        if chosen.kind == "manual":
            each = sum(sizes.values())
            # layers that the probes are still to choose: a quarter of them is more than was ever found
            layers_ = range(1, 1 + layers // 4) if isinstance(chosen.layers, str) else chosen.layers
            return len(layers_) * each, min((*layers_, layers - 1))
        manual = self.config.localizations.get("manual")
        if chosen.budget != "fraction" and manual is not None:
            block = sum(sizes.values()) if chosen.unit == "block" else max(sizes.values())
            return self._budget(manual)[0] + (block if chosen.budget == "parameters_reached" else 0), 0
        if chosen.kind == "weights":
            return chosen.fraction * layers * sum(sizes.values()), 0
        scores = self.config.scores.get(chosen.scores or "")
        if scores is not None and scores.method == "causal_tracing" and scores.sites != "matrices":
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
        if found.forget.answer is not None:
            return self.data.athletes.get(found.forget.answer, 0)
        asked = found.forget.draw or found.forget.first or len(found.forget.athletes) or 1
        return min(asked, self.data.total)

    def parts(self, task: str) -> tuple[float, float, float]:
        """Training athletes, test athletes of the forget set, other test athletes; named ones are in both parts."""
        task_config = self.config.tasks[task]
        assert task_config is not None
        forget, share = self.forget(task), self.config.split.test_fraction
        others = self.data.total - forget
        if task_config.forget.answer is None:
            return others * (1 - share) + forget, forget, others * share
        return self.data.total * (1 - share), forget * share, others * share
