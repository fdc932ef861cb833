"""What claims are judged on: a run's per-item rows, or the numbers that the paper published.

Both give :class:`Curve`: a measure's mean at one or more points, with samples that carry its uncertainty.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd

from localized_unlearning.analysis.claims.schema import At
from localized_unlearning.analysis.statistics import item_scores
from localized_unlearning.config.evaluation import Statistics
from localized_unlearning.paper.artefacts import TABLES
from localized_unlearning.paper.published import PAPER

CHANCE = 0.25
"""Accuracy of guessing among four answers, as the tables have it."""

HALF = 0.5
"""Accuracy that the base model's best layer must surpass for probes to mean anything."""

ANSWERED = {
    "forget": "the question prompt on the forget set",
    "retain": "the question prompt",
    "mcq_forget": "multiple choice",
    "mmlu": "MMLU",
}
"""Measures that are answers, in words."""


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
    """

    value: float
    samples: np.ndarray
    opposed: np.ndarray
    choices: int = 1


@dataclass(frozen=True)
class Curve:
    """A measure at its points.

    Attributes:
        x: the points (iterations, layers, edit sizes); one for a plain accuracy.
        mean: ``[point]``.
        samples, opposed: ``[sample, point]``, see :class:`Number`.
        items, seeds: over how many items and seeds.
    """

    x: tuple[float, ...]
    mean: np.ndarray
    samples: np.ndarray
    opposed: np.ndarray
    items: int
    seeds: int

    def point(self, index: int, choices: int = 1) -> Number:
        """One point's number."""
        return Number(
            float(self.mean[index]), self.samples[:, index], self.opposed[:, index], choices=choices
        )

    def at(self, how: At) -> Number:
        """The number that stands for the series."""
        if how == "mean":
            return Number(float(self.mean.mean()), self.samples.mean(1), self.opposed.mean(1))
        if how == "last":
            return self.point(len(self.x) - 1)
        return self.point(int(self.mean.argmax() if how == "max" else self.mean.argmin()), len(self.x))


class Evidence(Protocol):
    """Where numbers come from."""

    lookup: tuple[int, ...]
    """Layers of the manual localization."""

    def curve(self, cell: Cell) -> Curve:
        """A measure of one model.

        Raises:
            NotTestable: when there is none, or when the base model cannot do what is measured.
        """


@dataclass(frozen=True)
class Part:
    """Some rows: of a frame (see :func:`frames_of`), those that meet ``where``, as a series over ``x``."""

    frame: str
    where: Mapping[str, object] = field(default_factory=dict)
    x: str = ""
    first: int | None = None


FORGET, OTHERS, RETAIN = {"forget": True}, {"forget": True, "relearn": False}, {"forget": False}

FIXED = {"order": "fixed"}

SWEEP = {
    "forget": Part("sweep/facts", FORGET, "edit_size", 1),
    "retain": Part("sweep/facts", RETAIN, "edit_size", 1),
    "mcq_forget": Part("sweep/multiple_choice", {**FORGET, **FIXED}, "edit_size", 1),
    "mmlu": Part("sweep/mmlu", {}, "edit_size", 1),
}
"""Along the edit sizes, the unedited model left out."""


def _layers(series: str, ablated: bool) -> Part:
    return Part("layer_probes", {"series": series, "ablated": ablated, "labels": "sport"}, "layer")


MEASURES: Mapping[str, tuple[tuple[int, Part], ...]] = {
    "forget": ((1, Part("facts", FORGET)),),
    "retain": ((1, Part("facts", RETAIN)),),
    "mcq_forget": ((1, Part("multiple_choice", {**FORGET, **FIXED})),),
    "mmlu": ((1, Part("mmlu")),),
    "relearned": ((1, Part("relearning/facts", OTHERS, "iteration")),),
    "probe": ((1, Part("probes", {**FORGET, "control": False}, "layer")),),
    "sweep_forget": ((1, SWEEP["forget"]),),
    "sweep_mcq_forget": ((1, SWEEP["mcq_forget"]),),
    "sweep_retain_minus_forget": ((1, SWEEP["retain"]), (-1, SWEEP["forget"])),
    "sweep_mmlu_minus_forget": ((1, SWEEP["mmlu"]), (-1, SWEEP["forget"])),
    "sweep_mmlu_minus_mcq_forget": ((1, SWEEP["mmlu"]), (-1, SWEEP["mcq_forget"])),
    "layers_prompt": ((1, _layers("prompt", False)),),
    "layers_athlete": ((1, _layers("athlete", False)),),
    "late_attention_prompt": ((1, _layers("prompt", False)), (-1, _layers("prompt", True))),
    "late_attention_athlete": ((1, _layers("athlete", False)), (-1, _layers("athlete", True))),
}
"""Each measure as a signed sum of accuracies. ``head_ablation`` is not among them: it is the last layer's
accuracy with no single head ablated minus that without each head from the first lookup layer on."""

BASE_MEASURES: Mapping[str, tuple[str, ...]] = {
    "forget": ("forget",),
    "retain": ("retain",),
    "mcq_forget": ("mcq_forget",),
    "mmlu": ("mmlu",),
    "relearned": ("forget",),
    "probe": ("probe",),
    "late_attention_prompt": ("layers_prompt",),
    "late_attention_athlete": ("layers_athlete",),
    "head_ablation": ("layers_prompt",),
    "sweep_forget": ("forget",),
    "sweep_mcq_forget": ("mcq_forget",),
    "sweep_retain_minus_forget": ("forget", "retain"),
    "sweep_mmlu_minus_forget": ("forget", "mmlu"),
    "sweep_mmlu_minus_mcq_forget": ("mcq_forget", "mmlu"),
}
"""What the base model must be able to do for a measure to mean anything."""

WORDS = {
    "facts": "evaluation",
    "multiple_choice": "multiple-choice evaluation",
    "mmlu": "MMLU evaluation",
    "relearning/facts": "relearning",
    "probes": "probes",
    "layer_probes": "probes of the base model",
    "head_ablation": "head ablation",
    **{part.frame: "sweep of edit sizes" for part in SWEEP.values()},
}


def frames_of(paths: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """The row tables among ``paths``, by file name, series with ``relearning/`` or ``sweep/`` in front."""
    found: dict[str, list[pd.DataFrame]] = {}
    for path in paths:
        rows = pd.read_parquet(path)
        folder = {"iteration": "relearning/", "edit_size": "sweep/"}
        prefix = next((name for column, name in folder.items() if column in rows.columns), "")
        found.setdefault(prefix + path.stem, []).append(rows)
    return {name: pd.concat(tables, ignore_index=True) for name, tables in found.items()}


class Run:
    """A run's rows.

    Accuracy is ``choice``. Items and seeds are resampled together (items are the same for every seed), the
    same items alike for every model, so that differences are paired; questions of general knowledge are drawn
    by subject. Two pseudo-items, one right and one wrong, take part, answered the other way round on the other
    side of a difference: without them 0 of 16 would be certain. What the seeds add is widened as Student's t
    asks for their number.

    Args:
        frames: see :func:`frames_of`.
        question: the question prompt's name.
        settings: bootstrap samples and seed.
        lookup: layers of the manual localization.
    """

    def __init__(
        self, frames: Mapping[str, pd.DataFrame], question: str, settings: Statistics, lookup: tuple[int, ...]
    ) -> None:
        self.frames, self.question, self.settings, self.lookup = frames, question, settings, lookup
        self._curves: dict[Cell, Curve | NotTestable] = {}
        self._weights: dict[str, np.ndarray] = {}
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
        if cell.measure == "head_ablation":
            heads = self._heads()
            self._can(cell.task, "layers_prompt")
            return heads
        terms = [(sign, *self._scores(part, cell)) for sign, part in MEASURES[cell.measure]]
        if cell.localization != "base" or cell.task == "base":
            for measure in BASE_MEASURES.get(cell.measure, ()):
                self._can(cell.task, measure)
        x = terms[0][1]
        for _, other, _, _ in terms[1:]:
            x = tuple(value for value in x if value in other)
        curves = []
        for sign, points, scores, units in terms:
            chosen = [points.index(value) for value in x]
            curves.append((sign, self._sampled(x, scores[..., chosen], units)))
        return _sum(curves)

    def _can(self, task: str, measure: str) -> None:
        """Refuse a measure at which the base model itself fails: answers at chance, or no layer that tells the sport."""
        base = self.curve(Cell(task, "none", "base", measure)).at("max")
        low = float(np.quantile(base.samples, (1 - self.settings.confidence) / 2))
        if low <= CHANCE and measure in ANSWERED:
            raise NotTestable(
                f"the base model itself is at chance in {ANSWERED[measure]} ({base.value:.3f}): nothing can be "
                "forgotten there"
            )
        if low <= HALF and measure not in ANSWERED:
            raise NotTestable(
                f"probes do not find the sport in the base model itself (best layer {base.value:.3f})"
            )

    def _heads(self) -> Curve:
        rows = self._frame("head_ablation")
        wide = rows.pivot(index="athlete", columns=["layer", "head"], values="right").astype(float)
        first = min(self.lookup, default=0)
        named = rows[["layer", "head"]].drop_duplicates()
        heads = [
            (int(a), int(b)) for a, b in zip(named["layer"], named["head"], strict=True) if a >= max(first, 0)
        ]
        none = wide[(-1, -1)].to_numpy()
        x, items = tuple(float(i) for i in range(len(heads))), tuple(wide.index)
        intact = np.repeat(none[None, :, None], len(heads), 2)
        curves = [
            (1, self._sampled(x, intact, items)),
            (-1, self._sampled(x, wide[heads].to_numpy()[None], items)),
        ]
        return _sum(curves)

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

    def _scores(self, part: Part, cell: Cell) -> tuple[tuple[float, ...], np.ndarray, tuple[str, ...]]:
        """Points, scores ``[seed, item, point]`` and what each item is drawn with, of the rows behind a cell."""
        rows = self._of_model(part.frame, cell)
        where = {**part.where, **({"prompt": self.question} if "prompt" in rows.columns else {})}
        for column, value in where.items():
            rows = rows[rows[column] == value]
        if part.first is not None:
            rows = rows[rows[part.x] >= part.first]
        if rows.empty:
            raise NotTestable(f"the {WORDS[part.frame]} of {cell.localization} holds no such rows")
        scores = (
            rows["right"].to_numpy(dtype=float) if "right" in rows.columns else item_scores(rows, "choice")
        )
        tidy = pd.DataFrame(
            {
                "seed": rows["seed"] if "seed" in rows.columns else 0,
                "item": rows["athlete" if "athlete" in rows.columns else "item"].astype(str),
                "x": rows[part.x].astype(float) if part.x else 0.0,
                "score": scores,
            }
        )
        wide = tidy.pivot(index=["seed", "item"], columns="x", values="score")
        seeds = wide.index.unique("seed")
        items = tuple(wide.index.unique("item"))
        if len(wide) != len(seeds) * len(items) or wide.isna().to_numpy().any():
            raise NotTestable(
                f"the {WORDS[part.frame]} of {cell.localization} lacks items at some seed or point"
            )
        values = wide.reindex(pd.MultiIndex.from_product([seeds, items])).to_numpy()
        units = items
        if "subject" in rows.columns:
            subject = dict(zip(tidy["item"], rows["subject"], strict=True))
            units = tuple(subject[item] for item in items)
        return tuple(float(v) for v in wide.columns), values.reshape(len(seeds), len(items), -1), units

    def _draws(self, name: str, count: int, draws: int) -> np.ndarray:
        """Shares of each of ``count`` things in ``draws`` draws ``[sample, thing]``; alike for the same name."""
        if name not in self._weights:
            generator = np.random.default_rng([self.settings.seed, zlib.crc32(name.encode())])
            drawn = generator.multinomial(draws, np.full(count, 1 / count), self.settings.bootstrap)
            self._weights[name] = drawn / draws
        return self._weights[name]

    def _sampled(self, x: tuple[float, ...], scores: np.ndarray, units: tuple[str, ...]) -> Curve:
        seeds, count, points = scores.shape
        by_seed = self._draws(f"seeds {seeds}", seeds, max(1, seeds - 1))  # see hierarchical_bootstrap
        by_seed = 1 / seeds + _few(seeds, self.settings.confidence) * (by_seed - 1 / seeds)
        names, codes = np.unique(units, return_inverse=True)
        by_unit = self._draws("items " + "\n".join(names), len(names) + 2, len(names) + 2)
        by_item = by_unit[:, [*codes, len(names), len(names) + 1]]  # and the two pseudo-items
        by_item = by_item / by_item.sum(1, keepdims=True)

        def sample(pseudo: tuple[float, float]) -> np.ndarray:
            two = np.broadcast_to(np.array(pseudo)[None, :, None], (seeds, 2, points))
            table = np.concatenate([scores, two], 1)
            means = np.stack([by_item @ one for one in table], 1)
            return np.asarray(np.einsum("bs,bsp->bp", by_seed, means))

        return Curve(x, scores.mean((0, 1)), sample((1, 0)), sample((0, 1)), count, seeds)


def _few(seeds: int, confidence: float) -> float:
    """How much wider Student's t is than the normal distribution, at a level, for so few seeds."""
    from scipy.stats import norm, t

    level = (1 + confidence) / 2
    return float(t.ppf(level, seeds - 1) / norm.ppf(level)) if seeds > 1 else 1.0


def _sum(curves: Sequence[tuple[int, Curve]]) -> Curve:
    """A signed sum of curves over the same points; what is subtracted is resampled with its pseudo-items opposed."""
    first = curves[0][1]
    return Curve(
        first.x,
        sum(sign * curve.mean for sign, curve in curves),  # type: ignore[arg-type]
        sum(sign * (curve.samples if sign > 0 else curve.opposed) for sign, curve in curves),  # type: ignore[arg-type]
        sum(sign * (curve.opposed if sign > 0 else curve.samples) for sign, curve in curves),  # type: ignore[arg-type]
        min(curve.items for _, curve in curves),
        min(curve.seeds for _, curve in curves),
    )


# ---- published numbers

ITEMS = {("sports", True): 99, ("sports", False): 215, ("athletes", True): 16, ("athletes", False): 310}
"""Test items behind the paper's accuracies, by task and whether forgotten."""

MMLU_ITEMS, TINY_MMLU_ITEMS, PROBED = 14_042, 100, {"sports": 99, "athletes": 8}

RUNS = {
    ("sports", "erase"): "table1_basketball_unlearn",
    ("athletes", "erase"): "table2_16athletes_unlearn",
    ("sports", "inject"): "table3_basketball_inject",
    ("athletes", "inject"): "table4_16athletes_inject",
}

NAMES = {
    "attribution_patching": ("localized_ap", "ap"),
    "causal_tracing": ("localized_ct", "ct"),
    "manual": ("manual_interp", "manual"),
    "random": ("random", "random"),
    "all_mlps": ("all_mlps", "all_mlps"),
    "nonlocalized": ("nonlocalized", "none"),
}
"""Localizations as the released result files call them, for fine-tuning and for masks."""


class Published:
    """The paper's own numbers: Tables 1-4, and its curves where ``folder`` holds them.

    The paper gives means without their items, so samples are drawn from the Beta distribution of a share of
    that many items (Jeffreys), independent from model to model: the real differences are paired and so
    somewhat more certain. The base model was never published, so nothing is refused for its sake.

    Args:
        settings: samples and seed.
        folder: the released result files as CSV; None leaves the curves out.
    """

    lookup: tuple[int, ...] = (2, 3, 4, 5, 6, 7)
    layers = 28

    def __init__(self, settings: Statistics, folder: Path | None = None) -> None:
        self.settings, self.folder = settings, folder
        self._tables: dict[str, pd.DataFrame] = {}
        self._curves: dict[Cell, Curve] = {}

    def curve(self, cell: Cell) -> Curve:
        """See :class:`Evidence`."""
        if cell not in self._curves:
            self._curves[cell] = self._find(cell)
        return self._curves[cell]

    def _find(self, cell: Cell) -> Curve:
        if cell.measure in ("forget", "retain", "mcq_forget", "mmlu") and cell.objective != "mask":
            table = next(name for name, what in TABLES.items() if what == (cell.task, cell.objective))
            value = PAPER[table][cell.localization][
                ("forget", "retain", "mcq_forget", "mmlu").index(cell.measure)
            ]
            items = MMLU_ITEMS if cell.measure == "mmlu" else ITEMS[cell.task, cell.measure != "retain"]
            return self._curve(cell, (0.0,), [value], items)
        if self.folder is None:
            raise NotTestable("the paper prints no numbers for this, only a figure")
        reader = {"relearned": self._relearned, "probe": self._probe, "head_ablation": self._heads}.get(
            cell.measure, self._layers if cell.task == "base" else self._sweep
        )
        return reader(cell)

    def _read(self, name: str) -> pd.DataFrame:
        assert self.folder is not None
        if name not in self._tables:
            if not (self.folder / name).is_file():
                raise NotTestable(f"{name} is not among the published files")
            self._tables[name] = pd.read_csv(self.folder / name)
        return self._tables[name]

    def _curve(
        self, cell: Cell, x: Sequence[float], means: Sequence[float], items: int, term: str = ""
    ) -> Curve:
        from scipy.stats import beta

        mean = np.clip(np.asarray(means, dtype=float), 0, 1)
        name = "\n".join((*cell, term))
        generator = np.random.default_rng([self.settings.seed, zlib.crc32(name.encode())])
        level = generator.random((self.settings.bootstrap, 1))
        samples = beta.ppf(level, items * mean + 0.5, items * (1 - mean) + 0.5)
        return Curve(tuple(float(v) for v in x), mean, samples, samples, items, 1)

    def _relearned(self, cell: Cell) -> Curve:
        rows = self._read("fig1_fig2_fig13_relearning.csv")
        run = RUNS[cell.task, cell.objective]
        rows = rows[rows["run"].str.startswith(run) & (rows["localisation"] == NAMES[cell.localization][0])]
        return self._curve(
            cell, rows["iteration"].tolist(), rows["normal_forget"].tolist(), ITEMS[cell.task, True]
        )

    def _probe(self, cell: Cell) -> Curve:
        name = {
            ("sports", "erase"): "fig3",
            ("athletes", "erase"): "fig4",
            ("athletes", "inject"): "fig14",
        }.get((cell.task, cell.objective), "")
        if name == "fig3":
            rows = self._read("fig3_fig4_fig14_probes_digitised_from_png.csv").dropna(
                subset="accuracy_quantised"
            )
            column, scale = "accuracy_quantised", 1.0
        else:
            rows, column, scale = self._read("fig4_fig14_probes_read_by_eye.csv"), "accuracy_eighths", 8.0
        rows = rows[(rows["figure"] == name) & (rows["localisation"] == NAMES[cell.localization][0])]
        if len(rows) < self.layers:
            raise NotTestable(f"the curve of {cell.localization} lies hidden behind others in the figure")
        return self._curve(cell, rows["layer"].tolist(), (rows[column] / scale).tolist(), PROBED[cell.task])

    def _sweep(self, cell: Cell) -> Curve:
        rows = self._read("fig5_to_fig12_weight_masking.csv")
        task = {"sports": "basketball", "athletes": "athlete"}[cell.task]
        rows = rows[(rows["task"] == task) & (rows["localisation"] == NAMES[cell.localization][1])]
        rows = rows[rows["n_weights_masked"] > 0]  # those with 0 are not of the unedited model
        if rows.empty:
            raise NotTestable(f"the paper masks nothing with {cell.localization}")
        columns = {
            "sweep_forget": ("normal_forget", ITEMS[cell.task, True]),
            "sweep_retain": ("normal_retain", ITEMS[cell.task, False]),
            "sweep_mcq_forget": ("mcq_forget", ITEMS[cell.task, True]),
            "sweep_mmlu": ("tinymmlu", TINY_MMLU_ITEMS),
        }
        plus, _, minus = cell.measure.partition("_minus_")
        curves = []
        for sign, term in ((1, plus), (-1, f"sweep_{minus}")):
            if term in columns:
                column, items = columns[term]
                curves.append(
                    (
                        sign,
                        self._curve(
                            cell, rows["n_weights_masked"].tolist(), rows[column].tolist(), items, term
                        ),
                    )
                )
        return _sum(curves)

    def _layers(self, cell: Cell) -> Curve:
        rows = self._read("fig16_probe_across_layers_exact_from_pdf.csv")
        kind, _, series = cell.measure.rpartition("_")
        curves = []
        for sign, ablated in ((1, False), (-1, True)):
            if sign > 0 or kind == "late_attention":
                name = series.capitalize()
                named = rows["series"].str.startswith(f"{name} +") if ablated else rows["series"] == name
                part = rows[named]
                curves.append(
                    (
                        sign,
                        self._curve(
                            cell, part["layer"].tolist(), part["accuracy"].tolist(), 314, str(ablated)
                        ),
                    )
                )
        return _sum(curves)

    def _heads(self, cell: Cell) -> Curve:
        rows = self._read("fig15_head_ablation_delta_decoded_from_pdf_image.csv")
        rows = rows[rows["layer"] >= min(self.lookup)]
        lost = -rows["delta_final_layer_probe_acc_approx"].clip(upper=0)
        return self._curve(cell, range(len(rows)), lost.tolist(), 314)
