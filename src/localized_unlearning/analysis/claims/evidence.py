"""What claims are judged on: a run's per-item rows (the paper's own numbers: :mod:`.published`).

Both give :class:`Curve`: a measure's mean at one or more points, with samples that carry its uncertainty, and the
answers themselves where an exact test can count them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd

from localized_unlearning.analysis.claims.schema import HALFWAY, ROUNDING, At
from localized_unlearning.analysis.standing import Recall, recall
from localized_unlearning.analysis.statistics import Accuracy, item_scores
from localized_unlearning.config.evaluation import Statistics
from localized_unlearning.paper.terms import GROUPS


class NotTestable(Exception):
    """What is missing for a comparison, in words that follow 'not testable:'."""


class Cell(NamedTuple):
    """One measure of one model."""

    task: str
    objective: str
    localization: str
    measure: str


@dataclass(frozen=True)
class Number:
    """A value with its samples.

    Attributes:
        value: the estimate.
        samples: it, resampled ``[sample]``.
        opposed: the same samples, the two pseudo-items answered the other way round ``[sample]``.
        choices: how many points it was chosen among as the least or greatest.
        answers: right (1) or wrong (0) by item's name, where the value is a plain share of one seed's answers.
    """

    value: float
    samples: np.ndarray
    opposed: np.ndarray
    choices: int = 1
    answers: Mapping[str, float] | None = None


class Ends(NamedTuple):
    """What the samples would be if the outcome were the highest, or the lowest, that there can be.

    Attributes:
        top, bottom: the extreme values.
        top_samples, bottom_samples: their samples ``[sample]``.
        top_opposed, bottom_opposed: the same with the pseudo-items the other way round.
    """

    top: float
    bottom: float
    top_samples: np.ndarray
    bottom_samples: np.ndarray
    top_opposed: np.ndarray
    bottom_opposed: np.ndarray


@dataclass(frozen=True)
class Curve:
    """A measure at its points.

    Attributes:
        x: the points (iterations, layers, edit sizes); one for a plain accuracy.
        mean: ``[point]``.
        samples, opposed: ``[sample, point]``, see :class:`Number`.
        items, seeds: over how many items and seeds.
        ends: its extremes; None where no outcome but this one is thinkable.
        names, scores: the items and their answers ``[item, point]``, for a share of one seed's answers.
    """

    x: tuple[float, ...]
    mean: np.ndarray
    samples: np.ndarray
    opposed: np.ndarray
    items: int
    seeds: int
    ends: Ends | None = None
    names: tuple[str, ...] = ()
    scores: np.ndarray | None = None

    def point(self, index: int, choices: int = 1) -> Number:
        """One point's number."""
        answers = None
        if self.scores is not None:
            answers = dict(zip(self.names, self.scores[:, index].tolist(), strict=True))
        return Number(
            float(self.mean[index]), self.samples[:, index], self.opposed[:, index], choices, answers
        )

    def at(self, how: At) -> Number:
        """The number that stands for the series."""
        if how == "mean" and len(self.x) > 1:
            return Number(float(self.mean.mean()), self.samples.mean(1), self.opposed.mean(1))
        if how in ("last", "mean"):
            return self.point(len(self.x) - 1)
        return self.point(int(self.mean.argmax() if how == "max" else self.mean.argmin()), len(self.x))


class Evidence(Protocol):
    """Where numbers come from."""

    lookup: tuple[int, ...]
    """Layers of the manual localization."""

    retained: bool
    """Whether it can be told if a model still answers multiple choice on the retain set."""

    def curve(self, cell: Cell) -> Curve:
        """A measure of one model.

        Raises:
            NotTestable: when there is none, or when the base model cannot do what is measured.
        """


@dataclass(frozen=True)
class Part:
    """Some rows: of a frame (see :mod:`.frames`), those that meet ``where``, as a series over ``x``.

    Of a series the points from ``first`` on count, or only the point ``fixed``, which then stands for all.
    """

    frame: str
    where: Mapping[str, object] = field(default_factory=dict)
    x: str = ""
    first: int | None = None
    fixed: float | None = None


FORGET, OTHERS, RETAIN = {"forget": True}, {"forget": True, "relearn": False}, {"forget": False}

MAIN_ORDER = {"main": True}

SWEEP = {
    "forget": Part("sweep/facts", FORGET, "edit_size", 1),
    "retain": Part("sweep/facts", RETAIN, "edit_size", 1),
    "mcq_forget": Part("sweep/multiple_choice", {**FORGET, **MAIN_ORDER}, "edit_size", 1),
    "mmlu": Part("sweep/mmlu", {}, "edit_size", 1),
    "mmlu_unedited": Part("sweep/mmlu", {}, "edit_size", fixed=0),
}
"""Along the edit sizes, the unedited model left out."""


def _layers(series: str, ablated: bool) -> Part:
    return Part("layer_probes", {"series": series, "ablated": ablated, "labels": "answer"}, "layer")


ASKED_OF: Mapping[str, tuple[tuple[int, Part], ...]] = {
    "forget": ((1, Part("facts", FORGET)),),
    "retain": ((1, Part("facts", RETAIN)),),
    "mcq_forget": ((1, Part("multiple_choice", {**FORGET, **MAIN_ORDER})),),
    "mcq_retain": ((1, Part("multiple_choice", {**RETAIN, **MAIN_ORDER})),),
    "mmlu": ((1, Part("mmlu")),),
    "relearned": ((1, Part("relearning/facts", OTHERS, "iteration")),),
    "relearned_all": ((1, Part("relearning/facts", FORGET, "iteration")),),
    "probe": ((1, Part("probes", {**FORGET, "control": False}, "layer")),),
    "sweep_forget": ((1, SWEEP["forget"]),),
    "sweep_mcq_forget": ((1, SWEEP["mcq_forget"]),),
    "sweep_retain_minus_forget": ((1, SWEEP["retain"]), (-1, SWEEP["forget"])),
    "sweep_mmlu_minus_forget": ((1, SWEEP["mmlu"]), (-1, SWEEP["forget"])),
    "sweep_mmlu_minus_mcq_forget": ((1, SWEEP["mmlu"]), (-1, SWEEP["mcq_forget"])),
    "sweep_mmlu_change_minus_forget": (
        (1, SWEEP["mmlu"]),
        (-1, SWEEP["mmlu_unedited"]),
        (-1, SWEEP["forget"]),
    ),
    "layers_prompt": ((1, _layers("prompt", False)),),
    "layers_athlete": ((1, _layers("subject", False)),),
    "late_attention_prompt": ((1, _layers("prompt", False)), (-1, _layers("prompt", True))),
    "late_attention_athlete": ((1, _layers("subject", False)), (-1, _layers("subject", True))),
}
"""Each measure as a signed sum of accuracies. Not among them: ``head_ablation``, the last layer's accuracy with no
single head ablated minus that without each head from the first lookup layer on; ``selection_depth`` and
``selection_attention``, the mean layer of a localization's components and the share of attention among them."""

BASE_GROUPS: Mapping[str, tuple[str, ...]] = {
    "forget": ("facts",),
    "retain": ("facts",),
    "mcq_forget": ("mcq",),
    "mcq_retain": ("mcq",),
    "mmlu": ("mmlu",),
    "relearned": ("facts",),
    "relearned_all": ("facts",),
    "sweep_forget": ("facts",),
    "sweep_mcq_forget": ("mcq",),
    "sweep_retain_minus_forget": ("facts",),
    "sweep_mmlu_minus_forget": ("facts", "mmlu"),
    "sweep_mmlu_minus_mcq_forget": ("mcq", "mmlu"),
    "sweep_mmlu_change_minus_forget": ("facts", "mmlu"),
}
"""What the base model must be able to answer for a measure to mean anything: facts in the main prompt, multiple
choice, or general knowledge."""

BASE_PROBES: Mapping[str, str] = {
    "probe": "probe",
    "late_attention_prompt": "layers_prompt",
    "late_attention_athlete": "layers_athlete",
    "head_ablation": "layers_prompt",
}
"""In which probes of the base model some layer must tell the sport for a measure to mean anything."""

WORDS = {
    "facts": "evaluation",
    "multiple_choice": "multiple-choice evaluation",
    "mmlu": "MMLU evaluation",
    "relearning/facts": "relearning",
    "probes": "probes",
    "layer_probes": "probes of the base model",
    "head_ablation": "head ablation",
    "selection": "selection",
    **{part.frame: "sweep of edit sizes" for part in SWEEP.values()},
}


class Run:
    """A run's rows.

    Items and seeds (or base models, where there are several, each with the mean of its seeds) are resampled together
    (items are the same for every seed), the same items alike for every model, so that differences are paired; questions of general knowledge are drawn within their subjects, as in
    the tables. Two pseudo-items, one right and one wrong, take part, answered the other way round on the other
    side of a difference: without them 0 of 16 would be certain. What the seeds add is widened as Student's t
    asks for their number.

    Args:
        frames: see :mod:`.frames`.
        prompt: name of the prompt that facts are asked with.
        settings: bootstrap samples and seed.
        lookup: layers of the manual localization.
        accuracy: how answers are scored, see :mod:`localized_unlearning.analysis.statistics`.
        selections: names of the chosen components by task and localization, base model by base model.
    """

    retained = True

    def __init__(
        self,
        frames: Mapping[str, pd.DataFrame],
        prompt: str,
        settings: Statistics,
        lookup: tuple[int, ...],
        accuracy: Accuracy = "choice",
        selections: Mapping[tuple[str, str], Sequence[Sequence[str]]] | None = None,
    ) -> None:
        self.frames, self.prompt, self.settings, self.lookup = frames, prompt, settings, lookup
        self.accuracy, self.selections = accuracy, selections or {}
        self._curves: dict[Cell, Curve | NotTestable] = {}
        starts = [rows["base_seed"].nunique() for rows in frames.values() if "base_seed" in rows.columns]
        self.bases = max(starts, default=1)
        self._weights: dict[str, np.ndarray] = {}
        self._recalls: dict[tuple[str, str], Recall] = {}
        self._models: dict[str, dict[tuple[str, ...], pd.DataFrame]] = {}

    def curve(self, cell: Cell) -> Curve:
        """See :class:`Evidence`."""
        if cell not in self._curves:
            try:
                self._curves[cell] = self._curve(cell)
            except NotTestable as reason:
                self._curves[cell] = reason
        found = self._curves[cell]
        if isinstance(found, NotTestable):
            raise found
        return found

    def _curve(self, cell: Cell) -> Curve:
        if cell.measure.startswith("selection_"):
            return self._selection(cell)
        if cell.measure == "head_ablation":
            heads = self._heads()
            self._finds(cell.task, "layers_prompt")
            return heads
        terms = [(sign, part, *self._scores(part, cell)) for sign, part in ASKED_OF[cell.measure]]
        if cell.localization != "base" or cell.task == "base":
            for group in BASE_GROUPS.get(cell.measure, ()):
                self._can(cell.task, group)
            if cell.measure in BASE_PROBES:
                self._finds(cell.task, BASE_PROBES[cell.measure])
        x = terms[0][2]
        for _, part, other, _, _ in terms[1:]:
            x = x if part.fixed is not None else tuple(value for value in x if value in other)
        curves = []
        for sign, part, points, scores, names in terms:
            chosen = [0] * len(x) if part.fixed is not None else [points.index(value) for value in x]
            curves.append((sign, self._sampled(x, scores[..., chosen], names)))
        return summed(curves)

    def _can(self, task: str, group: str) -> None:
        """Refuse what the base model itself cannot answer, forget and retain set together."""
        frame, where = {"facts": ("facts", {}), "mcq": ("multiple_choice", MAIN_ORDER), "mmlu": ("mmlu", {})}[
            group
        ]
        if (task, group) not in self._recalls:
            rows = self._rows(Part(frame, where), Cell(task, "none", "base", group))
            self._recalls[task, group] = recall(rows, "logit_", self.settings.confidence)
        found = self._recalls[task, group]
        if found.standing != "above chance":
            what = {"facts": "facts", "mcq": GROUPS["mcq"].lower(), "mmlu": GROUPS["mmlu"]}[group]
            why = " (it answers systematically)" if found.standing == "below chance" else ""
            raise NotTestable(
                f"the base model itself is {found.standing}{why} in {what} (mean recall {found.mean:.3f}): nothing can be "
                "forgotten there"
            )

    def _finds(self, task: str, measure: str) -> None:
        """Refuse probes that find nothing in the base model's best layer either."""
        base = self.curve(Cell(task, "none", "base", measure)).at("max")
        if float(np.quantile(base.samples, (1 - self.settings.confidence) / 2)) <= HALFWAY + ROUNDING:
            raise NotTestable(
                f"probes do not find the answer in the base model itself (best layer {base.value:.3f})"
            )

    def _selection(self, cell: Cell) -> Curve:
        """Depth or share of attention of the chosen components: a count, which only base models make uncertain."""
        found = self.selections.get((cell.task, cell.localization))
        if not found:
            raise NotTestable(f"the run has no selection of {cell.localization} ({cell.task})")
        of: Callable[[str], float] = {
            "selection_depth": lambda name: float(name.partition(".")[0]),
            "selection_attention": lambda name: float(name.split(".")[1] == "attn"),
        }[cell.measure]
        values = np.array([[np.mean([of(name) for name in names])] for names in found])
        samples = self._by_seed(len(values)) @ values
        return Curve((0.0,), values.mean(0), samples, samples, min(map(len, found)), len(values))

    def _heads(self) -> Curve:
        rows = self._frame("head_ablation")
        if "base_seed" in rows.columns:  # a head is this head of one base model only
            rows = rows[rows["base_seed"] == rows["base_seed"].min()]
        wide = rows.pivot(index="subject", columns=["layer", "head"], values="right").astype(float)
        first = min(self.lookup, default=0)
        named = rows[["layer", "head"]].drop_duplicates()
        heads = [
            (int(a), int(b)) for a, b in zip(named["layer"], named["head"], strict=True) if a >= max(first, 0)
        ]
        none = wide[(-1, -1)].to_numpy()
        x, items = tuple(float(i) for i in range(len(heads))), tuple(map(str, wide.index))
        intact = np.repeat(none[None, :, None], len(heads), 2)
        curves = [
            (1, self._sampled(x, intact, items)),
            (-1, self._sampled(x, wide[heads].to_numpy()[None], items)),
        ]
        return summed(curves)

    def _frame(self, name: str) -> pd.DataFrame:
        if name not in self.frames:
            raise NotTestable(f"the run has no {WORDS[name]}")
        return self.frames[name]

    def _of_model(self, frame: str, cell: Cell) -> pd.DataFrame:
        """A frame's rows about the cell's model."""
        if frame not in self._models:
            rows = self._frame(frame)
            known = "localization" in rows.columns
            groups = (
                rows.groupby(["task", "objective", "localization"], sort=False) if known else [((), rows)]
            )
            self._models[frame] = {tuple(map(str, key)): table for key, table in groups}
        found = self._models[frame]
        key = (cell.task, cell.objective, cell.localization) if () not in found else ()
        if key not in found:
            model = f"{cell.localization} ({cell.task}, {cell.objective})"
            raise NotTestable(f"the run has no {WORDS[frame]} of {model}")
        return found[key]

    def _rows(self, part: Part, cell: Cell) -> pd.DataFrame:
        """The rows behind a part of a cell."""
        rows = self._of_model(part.frame, cell)
        where = {**part.where, **({"prompt": self.prompt} if "prompt" in rows.columns else {})}
        for column, value in where.items():
            rows = rows[rows[column] == value]
        if part.first is not None:
            rows = rows[rows[part.x] >= part.first]
        if part.fixed is not None:
            rows = rows[rows[part.x] == part.fixed]
        if rows.empty:
            raise NotTestable(f"the {WORDS[part.frame]} of {cell.localization} holds no such rows")
        return rows

    def _scores(self, part: Part, cell: Cell) -> tuple[tuple[float, ...], np.ndarray, tuple[str, ...]]:
        """Points, scores ``[seed, item, point]`` and the items' names, of the rows behind a cell."""
        rows = self._rows(part, cell)
        scores = (
            rows["right"].to_numpy(dtype=float)
            if "right" in rows.columns
            else item_scores(rows, self.accuracy)
        )
        tidy = pd.DataFrame(
            {
                "seed": rows["seed"] if "seed" in rows.columns else 0,
                "item": rows["item" if "item" in rows.columns else "subject"].astype(str),
                "x": rows[part.x].astype(float) if part.x else 0.0,
                "score": scores,
            }
        )
        several = "base_seed" in rows.columns and rows["base_seed"].nunique() > 1
        if (
            several or "draw" in rows.columns
        ):  # means over seeds and option orders, as in statistics.design_of
            if several:
                tidy["seed"] = rows["base_seed"]
            tidy = tidy.groupby(["seed", "item", "x"], sort=False)["score"].mean().reset_index()
        wide = tidy.pivot(index=["seed", "item"], columns="x", values="score")
        seeds = wide.index.unique("seed")
        items = tuple(wide.index.unique("item"))
        if len(wide) != len(seeds) * len(items) or wide.isna().to_numpy().any():
            raise NotTestable(
                f"the {WORDS[part.frame]} of {cell.localization} lacks items at some seed or point"
            )
        values = wide.reindex(pd.MultiIndex.from_product([seeds, items])).to_numpy()
        return tuple(float(v) for v in wide.columns), values.reshape(len(seeds), len(items), -1), items

    def _draws(self, name: str, count: int, draws: int) -> np.ndarray:
        """Shares of each of ``count`` things in ``draws`` draws ``[sample, thing]``; alike for the same name."""
        if name not in self._weights:
            generator = np.random.default_rng([self.settings.seed, zlib.crc32(name.encode())])
            drawn = generator.multinomial(draws, np.full(count, 1 / count), self.settings.bootstrap)
            self._weights[name] = drawn / draws
        return self._weights[name]

    def _by_seed(self, seeds: int) -> np.ndarray:
        """Weights of so many seeds ``[sample, seed]``, widened for their number (see hierarchical_bootstrap)."""
        drawn = self._draws(f"seeds {seeds}", seeds, max(1, seeds - 1))
        return np.asarray(1 / seeds + _few(seeds, self.settings.confidence) * (drawn - 1 / seeds))

    def _sampled(self, x: tuple[float, ...], scores: np.ndarray, names: tuple[str, ...]) -> Curve:
        seeds, count, points = scores.shape
        by_seed = self._by_seed(seeds)
        ordered = np.sort(names)
        by_item = self._draws("items " + "\n".join(ordered), count + 2, count + 2)
        by_item = by_item[
            :, [*np.searchsorted(ordered, names), count, count + 1]
        ]  # the last are the pseudo-items

        def sample(pseudo: tuple[float, float]) -> np.ndarray:
            two = np.broadcast_to(np.array(pseudo)[None, :, None], (seeds, 2, points))
            table = np.concatenate([scores, two], 1)
            means = np.stack([by_item @ one for one in table], 1)
            return np.asarray(np.einsum("bs,bsp->bp", by_seed, means))

        one, other = by_item[:, count], by_item[:, count + 1]
        plain = seeds == 1 and bool(np.isin(scores, (0.0, 1.0)).all())
        return Curve(
            x, scores.mean((0, 1)), sample((1, 0)), sample((0, 1)), count, seeds,
            Ends(1.0, 0.0, 1 - other, one, 1 - one, other), names, scores[0] if plain else None,
        )  # fmt: skip


def _few(seeds: int, confidence: float) -> float:
    """How much wider Student's t is than the normal distribution, at a level, for so few seeds."""
    from scipy.stats import norm, t

    level = (1 + confidence) / 2
    return float(t.ppf(level, seeds - 1) / norm.ppf(level)) if seeds > 1 else 1.0


def summed(curves: Sequence[tuple[int, Curve]]) -> Curve:
    """A signed sum of curves over the same points; what is subtracted is resampled with its pseudo-items opposed."""
    if len(curves) == 1 and curves[0][0] == 1:
        return curves[0][1]
    first = curves[0][1]

    def total(plus: str, minus: str, of: Callable[[Curve], Any] = lambda curve: curve) -> Any:
        return sum(s * getattr(of(curve), plus if s > 0 else minus) for s, curve in curves)

    ends = None
    if all(curve.ends for _, curve in curves):

        def extreme(plus: str, minus: str) -> Any:
            return total(plus, minus, lambda curve: curve.ends)

        ends = Ends(
            extreme("top", "bottom"), extreme("bottom", "top"),
            extreme("top_samples", "bottom_opposed"), extreme("bottom_samples", "top_opposed"),
            extreme("top_opposed", "bottom_samples"), extreme("bottom_opposed", "top_samples"),
        )  # fmt: skip
    return Curve(
        first.x, total("mean", "mean"), total("samples", "opposed"), total("opposed", "samples"),
        min(curve.items for _, curve in curves), min(curve.seeds for _, curve in curves), ends,
    )  # fmt: skip
