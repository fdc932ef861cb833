"""Probes against scikit-learn one by one, and against what they must find where the answer is known."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info, threadpool_limits

from localized_unlearning.attacks import probing
from localized_unlearning.config.evaluation import Probing
from localized_unlearning.config.run import Config
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.errors import UserError
from localized_unlearning.interpretability import probes
from localized_unlearning.models import activations as activations_module
from localized_unlearning.models import components, deltas
from localized_unlearning.reporting.figures.layers import probe_points
from sports import SPORTS
from tiny_base import PROMPTS as PROMPTS_FILE
from tiny_base import TinyBase
from tiny_models import ARCHITECTURES, VOCABULARY

LAYERS, ATHLETES, HIDDEN, PLANTED = 4, 240, 12, 2


@pytest.fixture(scope="module")
def planted() -> tuple[np.ndarray, np.ndarray]:
    """Activations that are noise but in one layer, where three directions name the sport."""
    rng = np.random.default_rng(0)
    sports = rng.integers(0, 3, ATHLETES)
    activations = rng.normal(size=(LAYERS, ATHLETES, HIDDEN)).astype(np.float32)
    activations[PLANTED, :, :3] += 12 * np.eye(3, dtype=np.float32)[sports]
    return activations, sports


def test_the_planted_layer_is_found_and_the_control_finds_nothing(
    planted: tuple[np.ndarray, np.ndarray],
) -> None:
    """Catches layers in another order, and labels that leak into the control."""
    activations, sports = planted
    train, test = slice(0, 160), slice(160, ATHLETES)
    shuffled = np.random.default_rng(1).permutation(sports[train])
    for labels, expected in ((sports[train], {PLANTED}), (shuffled, set())):
        right = probes.all_right(
            activations[:, train], labels, activations[:, test], sports[test], SPORTS, Probing()
        )
        assert {i for i, row in enumerate(right) if row.mean() > 0.95} == expected
        assert all(row.mean() < 0.5 for i, row in enumerate(right) if i not in expected)


def three_probes(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, sports: np.ndarray, c: float
) -> np.ndarray:
    """Whether each sport's probe is right, by scikit-learn alone ``[sport, athlete]``."""
    scaler = StandardScaler().fit(train)
    found = []
    for sport in range(3):
        one = LogisticRegression(C=c, max_iter=1000).fit(scaler.transform(train), labels == sport)
        found.append(one.predict(scaler.transform(test)) == (sports == sport))
    return np.array(found)


@pytest.mark.parametrize("threads", [1, 3])
def test_right_is_all_three_of_scikit_learns_probes(
    planted: tuple[np.ndarray, np.ndarray], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches probes that come back in another order, two of three, and a sport that is left out."""
    monkeypatch.setattr(probes, "LARGE", 0)  # so that the threads are used
    activations, sports = planted
    train, test = activations[:, :160], activations[:, 160:]
    found = probes.all_right(
        train, sports[:160], test, sports[160:], SPORTS, Probing(regularization=0.5), threads
    )
    for layer in range(LAYERS):
        each = three_probes(train[layer], sports[:160], test[layer], sports[160:], 0.5)
        assert np.array_equal(found[layer], each.all(0))
        if layer != PLANTED:  # otherwise two of three would do as well
            assert (each.sum(0) == 2).any()


def test_one_probe_has_one_thread(
    planted: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches probes whose linear algebra, and so whose last bits, depend on the number of cores."""

    def blas() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    seen: list[set[int]] = []
    monkeypatch.setattr(probes, "LARGE", 0)
    monkeypatch.setattr(probes, "_predict", lambda fit, settings: seen.append(blas()))
    activations, sports = planted
    with threadpool_limits(2, user_api="blas"):
        if blas() != {2}:
            pytest.skip("this machine's linear algebra has one thread only")
        probes.predictions([probes.Fit(a, sports[None], a) for a in activations], Probing(), 2)
        assert blas() == {2}
    assert seen == [{1}] * LAYERS


def test_a_sport_without_training_athletes_is_named(planted: tuple[np.ndarray, np.ndarray]) -> None:
    activations, sports = planted
    with pytest.raises(UserError, match="no fact with the answer 'basketball' is left to train a probe"):
        probes.all_right(
            activations[:, sports != 2], sports[sports != 2], activations, sports, SPORTS, Probing()
        )


def split_of(forgotten: list[str], in_both: bool) -> pd.DataFrame:
    """A split with these sports in its forget set, and 24 athletes to retain."""
    table = pd.DataFrame({"answer": [*forgotten, *(list(SPORTS) * 8)]})
    table["subject"] = [f"athlete {i}" for i in range(len(table))]
    table["forget"] = table.index < len(forgotten)
    table["train"] = table.index % 4 != 0
    table["test"] = ~table["train"]
    if in_both:
        table.loc[table["forget"], ["train", "test"]] = True
    return table


def test_the_forget_set_of_a_sport_keeps_its_parts() -> None:
    split = split_of(["basketball"] * 20, False)
    for kind in ("released", "stratified"):
        train, test = probing.probe_parts(split, kind, 0)
        assert np.array_equal(train, split["train"]) and np.array_equal(test, split["test"])


@given(
    st.lists(st.sampled_from(SPORTS), min_size=2, max_size=30),
    st.sampled_from(["released", "stratified"]),
    st.integers(0, 3),
)
def test_a_named_forget_set_is_halved(forgotten: list[str], kind: str, seed: int) -> None:
    """Catches an athlete in both parts or in none, a half without one sport, and moved retain athletes (A.4.3)."""
    split = split_of(forgotten, True)
    train, test = probing.probe_parts(split, kind, seed)
    forget = split["forget"].to_numpy()
    assert (train ^ test).all()
    assert np.array_equal(train[~forget], split["train"][~forget])
    assert abs(int(train[forget].sum()) - int(test[forget].sum())) <= 1
    if kind == "stratified":
        for sport in set(forgotten):
            these = forget & (split["answer"] == sport).to_numpy()
            assert abs(int(train[these].sum()) - int(test[these].sum())) <= 1
    assert split.equals(split_of(forgotten, True))


def test_the_released_half_is_the_first() -> None:
    """Eight train and the next eight test, whatever their sports and the seed."""
    split = split_of(["football"] * 8 + ["basketball"] * 8, True)
    train, test = probing.probe_parts(split, "released", 5)
    assert train[:16].tolist() == [True] * 8 + [False] * 8 == (~test[:16]).tolist()


def test_the_seed_draws_the_half() -> None:
    split = split_of(["football"] * 16, True)
    halves = {tuple(probing.probe_parts(split, "stratified", seed)[0]) for seed in range(5)}
    assert len(halves) > 1


def test_one_athlete_cannot_be_halved() -> None:
    with pytest.raises(UserError, match="athlete 0 alone is left of the forget set"):
        probing.probe_parts(split_of(["football"], True), "stratified", 0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_residuals_are_the_layers_outputs(tiny: Callable[[str], Any], name: str) -> None:
    """Catches another position, prompts in packing order, and layers left out in the wrong place."""
    model = tiny(name)
    prompts = [[2, 5, 9, 11], [2, 5, 7, 7, 3], [2, 8, VOCABULARY - 1]]
    found = activations_module.residuals(model, prompts, 64)
    for row, prompt in enumerate(prompts):
        states: list[torch.Tensor] = []
        with ExitStack() as stack, torch.no_grad():
            for layer in components.layers_of(model):
                hook = layer.register_forward_hook(lambda _m, _a, out, to=states: to.append(out))
                stack.callback(hook.remove)
            model(torch.tensor([prompt]))
        last = [(s[0] if isinstance(s, tuple) else s)[0, -1] for s in states]
        assert np.allclose(found[:, row], torch.stack(last), atol=1e-5)
    assert np.array_equal(activations_module.residuals(model, prompts, 64, [2, 0]), found[[2, 0]])
    embedded = activations_module.residuals(model, prompts, 64, [-1])[0]
    with torch.no_grad():
        wanted = model(torch.tensor([prompts[0]]), output_hidden_states=True).hidden_states[0][0, -1]
    assert np.allclose(embedded[0], wanted, atol=1e-5)


WHO = {"task": "athletes", "objective": "erase", "localization": "manual", "seed": "3"}


def test_the_stage_probes_the_trained_model(tiny_base: TinyBase, tmp_path: Path) -> None:
    """Catches a delta that is not applied, another prompt, control and real rows exchanged, a wrong majority."""
    split = tiny_base.split
    train, test = probing.probe_parts(split, "stratified", 0)
    name = "model.layers.0.mlp.down_proj.weight"
    changed = tiny_base.model.get_parameter(name) + 1.0
    deltas.save_delta(tmp_path / "delta.safetensors", {name: changed}, tiny_base.digest)
    inputs = {"split": tiny_base.write(tmp_path / "split.parquet", split)}
    runs = {
        delta: tiny_base.run("probe", Config(), tmp_path, {**inputs, "delta": delta}, WHO)["probes"]
        for delta in (None, tmp_path / "delta.safetensors")
    }
    sports = np.array([SPORTS.index(s) for s in split["answer"]])
    prompt = load_prompts(PROMPTS_FILE)["training"]
    for delta, rows in runs.items():
        model = tiny_base.fresh()
        if delta:
            with torch.no_grad():
                model.get_parameter(name).copy_(changed)
        with torch.no_grad():
            states = [
                model(
                    torch.tensor([tiny_base.tokenizer(prompt.render(a))["input_ids"]]),
                    output_hidden_states=True,
                ).hidden_states[1][0, -1]
                for a in split["subject"]
            ]
        first = torch.stack(states).float().numpy()
        shuffled = np.random.default_rng(0).permutation(sports[train])
        for control, labels in ((False, sports[train]), (True, shuffled)):
            expected = three_probes(first[train], labels, first[test], sports[test], 1.0).all(0)
            found = rows[(rows["layer"] == 0) & (rows["control"] == control)]
            assert found["subject"].tolist() == split.loc[test, "subject"].tolist()
            assert found["right"].tolist() == expected.tolist()
    base, trained = runs.values()
    assert not base["right"].equals(trained["right"])
    assert base.drop(columns="right").equals(trained.drop(columns="right"))
    assert list(base.groupby(["layer", "control"]).size()) == [test.sum()] * 2 * tiny_base.layers
    assert set(base["task"]) == {"athletes"} and set(base["seed"]) == {3}
    common = SPORTS[np.bincount(sports[train]).argmax()]
    drawn = probe_points({"probes": base}, Config().statistics)
    for panel, forget in (("forget", True), ("retain", False)):
        line = drawn[(drawn["panel"] == panel) & (drawn["series"] == "majority")]["mean"]
        assert line.tolist() == [(split[test & (split["forget"] == forget)]["answer"] == common).mean()]
