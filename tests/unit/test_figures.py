"""Figures on small synthetic rows: their points, their style (by image comparison), and that no model is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from localized_unlearning.analysis.statistics import wilson
from localized_unlearning.config.data import Prompts
from localized_unlearning.config.evaluation import Measures, Statistics
from localized_unlearning.errors import UserError
from localized_unlearning.paper import terms
from localized_unlearning.paper.artefacts import FIGURES
from localized_unlearning.reporting.figures import drawing, style, vector
from localized_unlearning.reporting.figures.rows import Asked, asked
from tiny_run import ROOT

pytestmark = pytest.mark.slow  # all of its tests together

LABELS = {
    "base": "Base model", "attribution_patching": "Attrib. Patching", "causal_tracing": "Causal Tracing",
    "manual": "Manual", "random": "Random", "all_mlps": "All MLPs", "nonlocalized": "Nonlocalized",
}  # fmt: skip
STATISTICS = Statistics(bootstrap=200)
ASKED = Asked("question", "question", "choice")
LOCALIZATIONS = [name for name in LABELS if name != "base"]
MOVED = (5_000, 60_000, 60_000, 60_000, 60_000, 60_000)  # weights that each mask's training moved
SPORTS = ("football", "baseball", "basketball", "golf")
image = pytest.mark.mpl_image_compare(
    baseline_dir="baseline", style="default", savefig_kwargs={"dpi": 70}, tolerance=4
)


def logits(right: np.ndarray, answer: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Logits whose largest is the answer's where ``right``, and another's elsewhere."""
    chosen = np.where(right, answer, (answer + 1) % len(names))
    return {f"logit_{name}": (chosen == i).astype(float) for i, name in enumerate(names)}


def series_frames(x: str, values: list[int]) -> dict[str, pd.DataFrame]:
    """Rows of a series for six localizations: forget accuracy moves with x, the rest stays."""
    rng = np.random.default_rng(0)
    tables: dict[str, list[pd.DataFrame]] = {"facts": [], "multiple_choice": [], "mmlu": []}
    masked = {"masked": 0} if x == "edit_size" else {}
    for index, localization in enumerate(LOCALIZATIONS):
        for step, value in enumerate(values):
            share = step / (len(values) - 1)
            count = 40
            forget, relearn = np.arange(count) < 20, np.arange(count) < 2
            right = rng.random(count) < np.where(forget, share * (0.4 + 0.1 * index), 0.95)
            answer = rng.integers(0, 3, count)
            who = {
                "forget": forget,
                "relearn": relearn,
                "answer_index": answer,
                "localization": localization,
                x: value,
                **{name: min(value, MOVED[index]) for name in masked},
            }
            tables["facts"].append(
                pd.DataFrame({**who, **logits(right, answer, SPORTS), "prompt": "question"})
            )
            tables["multiple_choice"].append(
                pd.DataFrame({**who, **logits(right | relearn, answer, tuple("ABCD")), "main": True})
            )
            known = rng.random(30) < 0.9 - 0.08 * index * share
            answer = rng.integers(0, 4, 30)
            row = {
                "answer_index": answer,
                "localization": localization,
                x: value,
                **logits(known, answer, tuple("ABCD")),
            }
            tables["mmlu"].append(pd.DataFrame(row))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}


def probe_frames() -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(1)
    parts = []
    for index, localization in enumerate(LABELS):
        for layer in range(6):
            for control in (False, True):
                p = 0.2 if control else min(1.0, 0.3 + 0.15 * layer) - 0.05 * index
                rows = {
                    "layer": layer,
                    "control": control,
                    "forget": np.arange(30) < 15,
                    "localization": localization,
                }
                parts.append(
                    pd.DataFrame({**rows, "right": rng.random(30) < p, "majority": np.arange(30) % 3 == 0})
                )
    return {"probes": pd.concat(parts, ignore_index=True)}


def head_frames() -> dict[str, pd.DataFrame]:
    heads = [(-1, -1), *((layer, head) for layer in range(3) for head in range(4))]
    rows = [
        pd.DataFrame(
            {
                "layer": layer,
                "head": head,
                "subject": np.arange(50),
                "right": np.arange(50) < 48 - 6 * (layer == 1) * head,
            }
        )
        for layer, head in heads
    ]
    return {"head_ablation": pd.concat(rows, ignore_index=True)}


def layer_frames() -> dict[str, pd.DataFrame]:
    parts = []
    for place, series in enumerate(("prompt", "name", "subject")):
        for ablated in (False, True):
            for layer in range(-1, 6):
                for labels in ("answer",) if ablated else ("answer", "shuffled labels"):
                    count = 15 if labels != "answer" else min(40, 14 + 6 * layer + 4 * place) - 5 * ablated
                    rows = {
                        "series": series,
                        "ablated": ablated,
                        "labels": labels,
                        "layer": layer,
                        "majority": 0.4,
                    }
                    parts.append(pd.DataFrame({**rows, "right": np.arange(40) < count}))
    return {"layer_probes": pd.concat(parts, ignore_index=True)}


def frames_of(name: str) -> dict[str, pd.DataFrame]:
    kind = FIGURES[name].kind
    if kind == "relearning":
        return series_frames("iteration", list(range(11)))
    if kind in ("edits", "price"):
        return series_frames("edit_size", [0, 100, 1000, 10_000, 100_000])
    return {"probes": probe_frames, "heads": head_frames, "layers": layer_frames}[kind]()


def drawn(name: str, keep: Any = lambda frame: frame) -> tuple[Any, pd.DataFrame]:
    frames = {stem: keep(frame) for stem, frame in frames_of(name).items()}
    points = drawing.points_of(name, frames, ASKED, STATISTICS)
    return drawing.draw(name, points, LABELS), points


@image
def test_relearning() -> Any:
    return drawn("figure_1")[0]


@image
def test_probes() -> Any:
    return drawn("figure_3")[0]


@image
def test_edits() -> Any:
    return drawn("figure_6")[0]


@image
def test_price() -> Any:
    return drawn("figure_7")[0]


@image
def test_heads() -> Any:
    return drawn("figure_15")[0]


@image
def test_layers() -> Any:
    return drawn("figure_16")[0]


def test_the_paper_has_sixteen_figures() -> None:
    assert list(FIGURES) == [f"figure_{n}" for n in range(1, 17)]


def test_fifteen_localizations_are_told_apart_without_colour() -> None:
    known = [*LOCALIZATIONS, *(f"mine_{i}" for i in range(8))]
    styles = [style.style_of(name, known) for name in ("base", *known)]
    assert len({s.colour for s in styles}) == len(styles) == len({s.marker for s in styles})
    more = [*known, *(f"theirs_{i}" for i in range(8))]
    assert len({style.style_of(name, more) for name in ("base", *more)}) == len(more) + 1


def test_labels_that_are_alike_get_their_names() -> None:
    """Two lines with one label would share an entry of the legend."""
    labels = {"a": "Mine", "b": "Mine", "c": "Theirs"}
    assert style.distinct(labels) == {"a": "Mine (a)", "b": "Mine (b)", "c": "Theirs"}


@pytest.mark.parametrize("name", ["figure_1", "figure_4", "figure_6", "figure_7", "figure_15", "figure_16"])
def test_type_can_be_read_and_intervals_say_their_level(name: str) -> None:
    from matplotlib.text import Text

    figure = drawn(name)[0]
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    assert min(text.get_fontsize() for text in texts) >= 6
    words = " ".join(text.get_text() for text in texts)
    assert "n = " in words and ("95 %" in words or "p < 0.05" in words)


@pytest.mark.parametrize("name", ["figure_1", "figure_4", "figure_5", "figure_8", "figure_16"])
def test_every_panel_has_the_floor_and_the_base_model(name: str) -> None:
    frames = frames_of(name)
    if name == "figure_1":  # the base model stands at no iteration
        base = {
            stem: f[f["iteration"] == 0].assign(localization="base", iteration=np.nan)
            for stem, f in frames.items()
        }
        per_model = {stem: len(f) // len(LOCALIZATIONS) for stem, f in base.items()}
        frames = {stem: pd.concat([f, base[stem].head(per_model[stem])]) for stem, f in frames.items()}
    points = drawing.points_of(name, frames, ASKED, STATISTICS)
    for axes in drawing.draw(name, points, LABELS).axes:
        labels = [handle.get_label() for handle in axes.get_lines()]
        assert any(label in ("Guessing", "Always the commonest answer") for label in labels)
        assert "Base model" in labels or axes.get_title(loc="left") == "Base model"


@pytest.mark.parametrize("name", ["figure_1", "figure_3", "figure_5", "figure_7"])
def test_gold_stands_in_the_figures_of_trained_models(name: str) -> None:
    """Catches gold drawn as one of the masks, counted among their items, or given an edit's size."""
    frames = frames_of(name)
    x = {"figure_1": "iteration", "figure_5": "edit_size", "figure_7": "edit_size"}.get(name)
    rows = {stem: f[f["localization"] == "manual"].assign(localization="gold") for stem, f in frames.items()}
    if x:
        first = {
            stem: f[f[x] == f[x].min()].drop(columns=[x, "masked"], errors="ignore")
            for stem, f in rows.items()
        }
        rows = {stem: pd.concat([f, f], ignore_index=True) for stem, f in first.items()}
    frames = {stem: pd.concat([f, rows[stem]], ignore_index=True) for stem, f in frames.items()}
    points = drawing.points_of(name, frames, ASKED, STATISTICS)
    labels = {**terms.KNOWERS, **LABELS}
    figure = drawing.draw(name, points, labels)
    plain = drawn(name)[0]
    for axes, without in zip(figure.axes, plain.axes, strict=True):
        assert terms.KNOWERS["gold"] in axes.get_legend_handles_labels()[1]
        notes = [{t.get_text() for t in a.texts if "n = " in t.get_text()} for a in (axes, without)]
        assert notes[0] == notes[1]
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries.index(terms.KNOWERS["gold"]) <= 1, "the references stand first"


def test_hostile_labels_are_drawn_letter_by_letter() -> None:
    """Catches mathematics read into a label, and a label that matplotlib's legends leave out."""
    hostile = [
        "$\\frac{",
        "_hidden",
        "a | b & c_d % # {x} \\y",
        "<script>alert(1)</script>",
        "line\nbreak",
        "$x^2$",
    ]
    labels = {"base": "Base model", **dict(zip(LOCALIZATIONS, hostile, strict=True))}
    points = drawn("figure_1")[1]
    figure = drawing.draw("figure_1", points, labels)
    entries = {text.get_text().strip("\u2009") for text in figure.legends[0].get_texts()}
    assert {*hostile} <= entries
    figure.canvas.draw()
    text = vector.drawn(figure, "0" * 64)
    assert "<script>" not in text and "&lt;script&gt;" in text


@pytest.mark.parametrize("name", ["figure_2", "figure_4", "figure_9", "figure_10", "figure_12"])
def test_every_point_of_the_csv_is_drawn_and_no_other(name: str) -> None:
    """The lines of a figure are the CSV's means; what one localization lacks is left out, not made up."""
    figure, points = drawn(name, lambda frame: frame[frame["localization"] != "causal_tracing"])
    lines = {}
    for axes in figure.axes:
        for line in axes.get_lines():
            if line.get_label() in LABELS.values():
                lines[axes.get_title(loc="left"), line.get_label()] = np.asarray(
                    line.get_ydata(), dtype=float
                )
    assert {label for _, label in lines} >= {LABELS[n] for n in LOCALIZATIONS if n != "causal_tracing"}
    assert "Causal Tracing" not in {label for _, label in lines}
    known = set(points["mean"].round(12))
    assert all(set(values.round(12)) <= known for values in lines.values())


def test_points_are_wilson_of_the_rows_and_leave_the_relearned_out() -> None:
    frames = frames_of("figure_1")
    points = drawing.points_of("figure_1", frames, ASKED, Statistics(confidence=0.9))
    facts = frames["facts"]
    rows = facts[
        (facts["localization"] == "manual") & (facts["iteration"] == 4) & facts["forget"] & ~facts["relearn"]
    ]
    right = rows[[f"logit_{s}" for s in SPORTS]].to_numpy().argmax(1) == rows["answer_index"]
    found = points[
        (points["panel"] == "forget_others")
        & (points["localization"] == "manual")
        & (points["iteration"] == 4)
    ].iloc[0]
    expected = wilson(right.to_numpy(), 0.9)
    assert (found["mean"], found["low"], found["high"], found["n"]) == expected[:4]


@pytest.mark.parametrize("name", ["figure_5", "figure_7"])
def test_a_masks_controls_are_drawn_beside_it(name: str) -> None:
    """Catches controls that are averaged into the mask's curve, left out, or drawn as localizations of their own."""

    def three(frame: pd.DataFrame) -> pd.DataFrame:
        wrong = frame.assign(ranking="random", answer_index=(frame["answer_index"] + 1) % 3)
        return pd.concat(
            [frame.assign(ranking="mask"), frame[::-1].assign(ranking="saliency"), wrong], ignore_index=True
        )

    figure, points = drawn(name, three)
    alone, plain = drawn(name)
    trained = points[points["ranking"] == "mask"].drop(columns="ranking").reset_index(drop=True)
    pd.testing.assert_frame_equal(trained[plain.columns], plain)
    assert set(points["ranking"]) == {"mask", "saliency", "random"}
    thin = [
        line
        for axes in figure.axes
        for line in axes.get_lines()
        if line.get_linewidth() == 0.6 and len(line.get_xdata())
    ]
    assert len(thin) == 2 * len(LOCALIZATIONS) * (2 if name == "figure_5" else 1)
    column = points[
        (points["ranking"] == "random") & (points["panel"] == "forget") & (points["localization"] == "manual")
    ]
    data = "get_ydata" if name == "figure_5" else "get_xdata"
    assert any(list(getattr(line, data)()) == list(column.sort_values("masked")["mean"]) for line in thin)
    assert {label for label, _ in style.CONTROLS.values()} <= {
        t.get_text() for t in figure.legends[0].get_texts()
    }
    assert not {label for label, _ in style.CONTROLS.values()} & {
        t.get_text() for t in alone.legends[0].get_texts()
    }


def test_an_edit_is_as_large_as_the_weights_that_are_zero() -> None:
    """Catches a curve that goes on to edit sizes its mask does not hold."""
    points = drawn("figure_5")[1]
    for name, moved in (("attribution_patching", 5_000), ("manual", 60_000)):
        sizes = points.loc[(points["localization"] == name) & (points["panel"] == "forget"), "masked"]
        assert list(sizes) == sorted({min(size, moved) for size in (0, 100, 1000, 10_000, 100_000)})


def test_a_head_is_bold_by_mcnemar_over_all_heads() -> None:
    """Four athletes lost and none won is .125, and bold only a difference that holds among all the heads."""
    points: Any = drawn("figure_15")[1].set_index(["layer", "head"])
    assert (points["change"] - (points["mean"] - points.loc[(-1, -1), "mean"])).abs().max() < 1e-12
    lost = points.loc[(1, 1)]
    assert (lost["only_with"], lost["only_without"]) == (6, 0) and lost["p"] == pytest.approx(2 * 0.5**6)
    assert lost["p"] < 0.05 < lost["p_holm"]
    assert points.loc[(1, 3), "p_holm"] < 0.05 and points.loc[(0, 2), "p"] == 1
    assert np.isnan(points.loc[(-1, -1), "p_holm"])


def test_figures_follow_the_accuracy_and_the_prompt_that_tables_have() -> None:
    """Catches a figure that asks the question prompt, or counts right answers, whatever the config says."""
    frames = frames_of("figure_1")
    facts = frames["facts"]
    training = facts.assign(prompt="training", logit_football=9.0, answer_index=0)
    frames["facts"] = pd.concat([facts, training], ignore_index=True)
    how = asked(Measures(accuracy="probability"), Prompts())
    assert how == ("training", "training", "probability")
    points = drawing.points_of("figure_1", frames, how, STATISTICS)
    found = points.loc[points["panel"] == "forget", "mean"]
    assert found.between(
        0.99, 1, inclusive="neither"
    ).all()  # a probability of training's answers, no count of the question's
    figure = drawing.draw("figure_1", points, LABELS)
    assert [axes.get_title(loc="left") for axes in figure.axes][::2] == ["Forget ↓", "Retain ↑"]
    assert figure.axes[0].get_ylabel().startswith("Probability")


@pytest.mark.parametrize("name", ["figure_1", "figure_3", "figure_5", "figure_8", "figure_16"])
def test_a_figures_own_csv_can_be_laid_over_it(name: str, tmp_path: Path) -> None:
    """The overlay's columns are the CSV's: a published curve adds one dashed line a series, and a legend entry."""
    plain, points = drawn(name)
    path = tmp_path / "published.csv"
    points.to_csv(path, index=False)
    both = drawing.draw(name, points, LABELS, drawing.read_overlay(path, name))
    lines = [[len(axes.get_lines()) for axes in figure.axes] for figure in (plain, both)]
    series = 6 if name == "figure_16" else len(LABELS) - (name != "figure_3")
    assert [a + series for a in lines[0]] == lines[1]
    assert "Published" in [text.get_text() for text in both.legends[0].get_texts()]
    points.drop(columns="mean").to_csv(path, index=False)
    with pytest.raises(UserError, match="lacks the column mean"):
        drawing.read_overlay(path, name)


def test_no_model_is_needed_to_draw() -> None:
    """A figure is redrawn in seconds: nothing that draws imports torch."""
    code = "import sys, localized_unlearning.reporting.figures.drawing as f, matplotlib.figure; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_a_person_has_at_home_reaches_no_figure(tmp_path: Path) -> None:
    """The figure stage under a hostile home, locale and environment: the same bytes."""
    home = tmp_path / "home"
    (home / ".config/matplotlib").mkdir(parents=True)
    rc = "axes.grid: True\nsavefig.bbox: tight\nsavefig.transparent: True\nfont.size: 30\ntext.color: red\n"
    for place in (
        home / ".config/matplotlib/matplotlibrc",
        home / ".matplotlibrc",
        tmp_path / "matplotlibrc",
    ):
        place.write_text(rc)
    data = tmp_path / "layer_probes.parquet"
    layer_frames()["layer_probes"].to_parquet(data)
    (tmp_path / "config.yaml").write_text("run: r\n")
    hostile = {
        "HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config"), "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"),
        "LC_ALL": "de_DE.UTF-8", "GIT_DIR": "/nowhere", "HF_ENDPOINT": "http://127.0.0.1:1", "MPLBACKEND": "svg",
    }  # fmt: skip
    name = next(name for name, figure in FIGURES.items() if figure.kind == "layers")
    bytes_of = []
    for more in ({}, hostile):
        folder = tmp_path / f"results{len(more)}"
        words = [sys.executable, "-m", "localized_unlearning.cli.main", "figure", "--config", "config.yaml", "--figure",
                 name, "--data", str(data), "--captions", str(ROOT / "workflow/report/captions.yaml"), *(w for s in ("csv", "pdf", "png", "svg", "md", "tex") for w in (f"--out-{s}", f"{folder}/f.{s}"))]  # fmt: skip
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MPL", "LC_", "LANG"))}
        answer = subprocess.run(words, cwd=tmp_path, env={**clean, "XDG_CACHE_HOME": str(tmp_path), **more},
                                capture_output=True, text=True)  # fmt: skip
        assert answer.returncode == 0, answer.stderr
        bytes_of.append([(folder / f"f.{suffix}").read_bytes() for suffix in ("csv", "pdf", "png", "svg")])
    assert bytes_of[0] == bytes_of[1]
