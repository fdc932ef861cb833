"""The paper's own numbers as evidence: Tables 1-4, and its curves where the released result files lie at hand."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from localized_unlearning.analysis.claims.evidence import Cell, Curve, Ends, NotTestable, summed
from localized_unlearning.config.evaluation import Statistics
from localized_unlearning.paper.artefacts import TABLES
from localized_unlearning.paper.published import PAPER

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
    that many items (Jeffreys), independent from model to model and, in a difference of two points, from point to
    point: the real differences are paired and so somewhat more certain. The base model was never published, so
    nothing is refused for its sake, nor for multiple choice on the retain set, which the paper leaves out.

    Args:
        settings: samples and seed.
        folder: the released result files as CSV; None leaves the curves out.
    """

    lookup: tuple[int, ...] = (2, 3, 4, 5, 6, 7)
    retained = False
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
        if cell.measure.startswith("selection_"):
            raise NotTestable("the paper does not list the components of its localizations")
        reader = {
            "relearned": self._relearned,
            "relearned_all": self._relearned,
            "probe": self._probe,
            "head_ablation": self._heads,
        }.get(cell.measure, self._layers if cell.task == "base" else self._sweep)
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
        level = generator.random((self.settings.bootstrap, 1))  # one for all points: the same items
        other = generator.random((self.settings.bootstrap, len(mean)))

        def drawn(levels: np.ndarray, share: np.ndarray | float) -> np.ndarray:
            return np.asarray(beta.ppf(levels, items * share + 0.5, items * (1 - share) + 0.5))

        top, bottom = drawn(level[:, 0], 1.0), drawn(level[:, 0], 0.0)
        ends = Ends(1.0, 0.0, top, bottom, drawn(other[:, 0], 1.0), drawn(other[:, 0], 0.0))
        points = tuple(float(v) for v in x)
        return Curve(points, mean, drawn(level, mean), drawn(other, mean), items, 1, ends)

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
        if cell.measure == "sweep_mmlu_change_minus_forget":
            raise NotTestable("the released files do not hold the unedited model")
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
        return summed(curves)

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
        return summed(curves)

    def _heads(self, cell: Cell) -> Curve:
        """What each head's removal costs: the difference of two shares, late attention ablated in both."""
        layers = self._read("fig16_probe_across_layers_exact_from_pdf.csv")
        intact = layers[layers["series"].str.startswith("Prompt +")].sort_values("layer")["accuracy"].iloc[-1]
        rows = self._read("fig15_head_ablation_delta_decoded_from_pdf_image.csv")
        rows = rows[rows["layer"] >= min(self.lookup)]
        without = (float(intact) + rows["delta_final_layer_probe_acc_approx"]).tolist()
        x = range(len(rows))
        return summed(
            [
                (1, self._curve(cell, x, [float(intact)] * len(rows), 314, "intact")),
                (-1, self._curve(cell, x, without, 314, "without")),
            ]
        )
