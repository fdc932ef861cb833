"""Intervals over items, seeds and forget sets, held to planted truths and to other people's formulas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localized_unlearning.analysis.measures import MODEL, estimates, items
from localized_unlearning.analysis.statistics import (
    Answers,
    bootstrap_mean,
    compare,
    design_of,
    hierarchical_bootstrap,
    holm,
    pooled,
    score_interval,
    spread,
    wilson,
)
from localized_unlearning.config.data import Prompts
from localized_unlearning.config.evaluation import Statistics
from localized_unlearning.errors import UserError
from localized_unlearning.reporting.comparisons import ranked

QUICK = Statistics(bootstrap=300)
settings.register_profile("patient", deadline=None)  # no timing is asserted
settings.load_profile("patient")


def planted(
    rng: np.random.Generator, sets: int, seeds: int, count: int, by_set: float, by_seed: float, shared: bool
) -> list[Answers]:
    """Scores around 0.3 with noise of sets, seeds, items (1) and answers (1); sets may ask the same items."""
    same = rng.normal(0, 1, count)
    design = []
    for index in range(sets):
        item = same if shared else rng.normal(0, 1, count)
        where = 0.3 + rng.normal(0, by_set) + rng.normal(0, by_seed, (seeds, 1))
        names = np.arange(count) + (0 if shared else count * index)
        design.append(Answers(where + item + rng.normal(0, 1, (seeds, count)), names))
    return design


@pytest.mark.parametrize("share", [False, True], ids=["scores", "shares"])
@pytest.mark.parametrize(
    ("sets", "seeds", "count", "by_set", "by_seed", "shared"),
    [(1, 3, 40, 0, 0.5, False), (1, 5, 40, 0, 0.5, False), (3, 1, 40, 0.5, 0, False), (3, 5, 16, 0.5, 0.3, False),
     (3, 5, 40, 0, 0.3, True)],
    ids=["3 seeds", "5 seeds", "3 sets", "sets and seeds", "sets of the same items"],
)  # fmt: skip
def test_intervals_hold_the_truth_as_often_as_they_say(
    sets: int, seeds: int, count: int, by_set: float, by_seed: float, shared: bool, share: bool
) -> None:
    """95 % intervals on planted data: too few hold the truth if a level is forgotten or few seeds are taken for many."""
    from scipy.stats import norm

    rng, held, runs = np.random.default_rng(1), 0, 150
    truth = norm.cdf(0.3 / np.sqrt(by_set**2 + by_seed**2 + 2)) if share else 0.3
    for _ in range(runs):
        design = planted(rng, sets, seeds, count, by_set, by_seed, shared)
        if share:
            design = [Answers((a.scores > 0).astype(float), a.units) for a in design]
        found = pooled(design, QUICK, share)
        held += found.low <= truth <= found.high
    assert held / runs > 0.91  # 95 % of 150 less two standard errors


def test_items_alone_would_promise_too_much() -> None:
    """The same planted seeds, read over items alone: what the hierarchy is for."""
    rng, held, runs = np.random.default_rng(2), 0, 100
    for _ in range(runs):
        scores = planted(rng, 1, 5, 40, 0, 0.5, False)[0].scores
        found = bootstrap_mean(scores.mean(0), 0.95, 300, 0)
        held += found.low <= 0.3 <= found.high
    assert held / runs < 0.85


def test_the_bootstraps_variance_is_the_closed_forms() -> None:
    """Crossed seeds and items: the variance is that of seed means and item means, the interaction counted once more."""
    rng = np.random.default_rng(3)
    scores = rng.normal(0, 0.3, (6, 1)) + rng.normal(0, 1, 30) + rng.normal(0, 0.01, (6, 30))
    found = hierarchical_bootstrap([Answers(scores, np.arange(30))], 40_000, 0).var()
    expected = scores.mean(1).var(ddof=1) / 6 + scores.mean(0).var(ddof=1) / 30
    assert found == pytest.approx(expected, rel=0.05)


def test_clustered_items_are_drawn_together() -> None:
    """Subjects of ten equal answers carry as much as ten answers, not a hundred."""
    rng = np.random.default_rng(4)
    subjects = np.repeat(np.arange(20), 10)
    scores = rng.normal(0, 1, 20)[subjects][None]
    single, together = (spread([Answers(scores, u)], 4000, 0) for u in (np.arange(200), subjects))
    assert together.error == pytest.approx(np.sqrt(10) * single.error, rel=0.1)
    assert together.freedom == pytest.approx(19) and single.freedom == pytest.approx(199)


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_one_seed_reads_as_wilson_over_items(right: list[bool]) -> None:
    scores = np.array([right], dtype=float)
    assert pooled([Answers(scores, np.arange(len(right)))], QUICK, True) == wilson(scores[0] > 0.5, 0.95)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_score_interval_is_scipys(counts: tuple[int, int]) -> None:
    right, count = counts
    expected = wilson(np.arange(count) < right, 0.95)
    assert score_interval(expected.mean, count, 1.959963984540054) == pytest.approx(expected[1:3], abs=1e-9)


@settings(max_examples=40)
@given(st.integers(2, 5), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_an_interval_holds_its_mean_and_stays_a_share(seeds: int, count: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 2, (seeds, count)).astype(float)
    found = pooled([Answers(scores, np.arange(count))], QUICK, True)
    assert 0 <= found.low <= found.mean <= found.high <= 1
    assert found.high - found.low >= 0.9 * (
        wilson(scores[0] > 2, 0.95).high
    )  # unanimous answers are no certainty


def long_rows(seeds: tuple[int, ...]) -> pd.DataFrame:
    """Facts of two models, four athletes: localization a is right, b wrong, in every seed."""
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "task": "sports", "objective": "erase", "localization": name, "seed": seed, "prompt": "training",
                    "subject": list("wxyz"), "forget": [True, True, False, False], "answer_index": 0,
                    "logit_p": float(right), "logit_q": 0.5, "argmax_right": right,
                }
            )
            for name, right in (("a", True), ("b", False)) for seed in seeds
        ],
        ignore_index=True,
    )  # fmt: skip


def test_estimates_by_model_and_over_seeds() -> None:
    scores = items({"facts": long_rows((0, 1, 2))}, Prompts(), "choice")
    assert set(scores["measure"]) == {"forget_training", "retain_training"}
    single, over = estimates(scores, QUICK), estimates(scores, QUICK, ("task", "localization"))
    assert len(single) == 12 and set(single["seeds"]) == {1} and set(single["n"]) == {2}
    assert len(over) == 4 and set(over["seeds"]) == {3} and list(over["mean"]) == [1, 0, 1, 0]
    assert [name for name in MODEL if name != "base_seed"] == list(single.columns[:4])


def test_seeds_that_answered_other_items_are_refused() -> None:
    rows = long_rows((0, 1))
    rows = rows[rows["localization"] == "a"]
    with pytest.raises(UserError, match="seed 1 of task sports was not asked all items"):
        design_of(rows.iloc[:-1], np.ones(len(rows) - 1))
    twice = pd.concat([rows, rows])
    with pytest.raises(UserError, match="an item stands twice"):
        design_of(twice, np.ones(len(twice)))


def coins(
    rng: np.random.Generator, seeds: int, count: int, by_seed: float, effect: float
) -> tuple[Answers, Answers]:
    """0/1 answers of two localizations to the same items, whose seeds differ; ``effect`` is the second's advantage."""
    item = rng.normal(0, 1, count)
    sides = []
    for advantage in (0.0, effect):
        latent = item + advantage + rng.normal(0, by_seed, (seeds, 1)) + rng.normal(0, 0.5, (seeds, count))
        sides.append(Answers((latent > 0.3).astype(float), np.arange(count)))
    return sides[0], sides[1]


@pytest.mark.parametrize(("seeds", "by_seed"), [(1, 0.0), (5, 0.0), (5, 0.5)])
def test_comparisons_find_what_is_there_and_little_else(seeds: int, by_seed: float) -> None:
    """At 5 %, equal localizations differ in about that share of planted data; an effect is found."""
    rng, runs = np.random.default_rng(5), 120
    equal = [
        compare([a], [b], QUICK, True).p for a, b in (coins(rng, seeds, 40, by_seed, 0) for _ in range(runs))
    ]
    apart = [
        compare([a], [b], QUICK, True).p for a, b in (coins(rng, seeds, 40, by_seed, 2) for _ in range(30))
    ]
    assert np.mean(np.array(equal) < 0.05) < 0.1 and np.mean(np.array(apart) < 0.05) > 0.8


def test_one_seeds_items_do_not_speak_for_other_seeds() -> None:
    """What McNemar on one seed leaves out: equal methods whose seeds vary look different far too often."""
    rng = np.random.default_rng(6)
    p = [compare([a], [b], QUICK, True).p for a, b in (coins(rng, 1, 40, 0.5, 0) for _ in range(100))]
    assert np.mean(np.array(p) < 0.05) > 0.2


@given(st.integers(0, 25), st.integers(0, 25), st.integers(1, 20))
def test_one_seed_of_shares_is_mcnemars_exact_test(only_a: int, only_b: int, both: int) -> None:
    """Against the binomial test that defines it, and whichever way round."""
    from scipy.stats import binomtest

    a = np.array([[1.0] * only_a + [0.0] * only_b + [1.0] * both])
    b = np.array([[0.0] * only_a + [1.0] * only_b + [1.0] * both])
    one, other = (
        compare([Answers(x, np.arange(a.size))], [Answers(y, np.arange(a.size))], QUICK, True)
        for x, y in ((a, b), (b, a))
    )
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert one.p == pytest.approx(expected) == other.p and one.test == "McNemar, exact"
    assert one.difference == -other.difference and one.effect == pytest.approx(-other.effect)
    assert (one.only_first, one.only_second) == (only_a, only_b) and one.low <= one.difference <= one.high


def test_unanimous_seeds_give_a_small_p_and_no_certainty() -> None:
    zeros, names = np.zeros((5, 16)), np.arange(16)
    found = compare([Answers(zeros, names)], [Answers(zeros + 1, names)], QUICK, True)
    assert found.difference == -1 and 0 < found.p < 1e-6 and found.low == -1 < found.high < -0.5


@settings(max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_by_its_definition(p: list[float]) -> None:
    order = np.argsort(p, kind="stable")
    expected, highest = np.empty(len(p)), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        expected[index] = highest
    assert holm(p) == pytest.approx(expected)


def test_different_items_or_seeds_are_not_compared() -> None:
    one = Answers(np.zeros((2, 3)), np.arange(3))
    with pytest.raises(UserError, match="different items"):
        compare([one], [Answers(np.zeros((2, 3)), np.arange(1, 4))], QUICK, True)
    with pytest.raises(UserError, match="different numbers of seeds"):
        compare([one], [Answers(np.zeros((3, 3)), np.arange(3))], QUICK, True)


def test_a_planted_rank_among_random_draws() -> None:
    """Lower is better for forget, higher for retain; ties do not count as better, and the base model has no draw's seed."""

    values = {"base": (1.0, 1.0), "mine": (0.2, 0.7), **{f"d{i}": (0.1 * i, 0.1 * i) for i in range(1, 11)}}
    rows = [
        {"localization": name, "seed": 0, "measure": measure, "score": pair[side]}
        for name, pair in values.items()
        for side, measure in enumerate(("forget_training", "retain_training"))
    ]
    other = {
        "localization": "mine",
        "seed": 1,
        "measure": "forget_training",
        "score": 1.0,
    }  # not the draws' seed
    table = ranked(pd.DataFrame([*rows, other]), ["base", "mine"], [f"d{i}" for i in range(1, 11)])
    mine = table[table["localization"] == "mine"].set_index("measure")
    assert list(mine["rank"]) == [2, 4]
    assert list(mine["p"]) == pytest.approx([3 / 11, 5 / 11])


def test_base_models_are_drawn_like_seeds_and_hold_the_mean_of_theirs() -> None:
    """Three base models that disagree make a wide interval, however many training seeds each has."""
    values = {0: 0.1, 1: 0.5, 2: 0.9}
    rows = pd.DataFrame(
        [
            {"item": f"a{i}", "base_seed": base, "seed": seed, "score": float(i < 100 * share)}
            for base, share in values.items()
            for seed in (0, 1)
            for i in range(100)
        ]
    )
    (answers,) = design_of(rows, rows["score"])
    assert answers.scores.shape == (3, 100) and answers.bases == 3
    assert answers.scores.mean(1) == pytest.approx([0.1, 0.5, 0.9])
    found = pooled([answers], QUICK, True)
    assert found.covers == "base models and test items" and found.high - found.low > 0.6
    one = rows[rows["base_seed"] == 1]
    assert design_of(one, one["score"])[0].scores.shape == (2, 100)  # training seeds of one base model


@pytest.mark.parametrize("bases", [1, 3, 5])
@pytest.mark.parametrize(("mean", "alike"), [(0.05, 0.5), (0.35, 3.0), (0.9, 1.0), (0.98, 50.0)])
def test_intervals_of_averaged_option_orders_hold_the_truth(bases: int, mean: float, alike: float) -> None:
    """Means of four answers an item: quantiles and t both held too little near 0 and 1, and left them (1.050, -0.024).

    ``alike`` says how the orders of an item agree: near 0 they are answered alike, at 50 nearly independently. Base models
    differ by .3 logits.
    """
    from scipy.special import expit, logit

    rng, held, runs, count = np.random.default_rng(2), 0, 200, 46
    shift = rng.normal(0, 0.3, 20_000) if bases > 1 else np.zeros(1)
    truth = float(expit(logit(mean) + shift).mean())
    for _ in range(runs):
        easy = rng.beta(mean * alike, (1 - mean) * alike, count).clip(1e-9, 1 - 1e-9)
        own = rng.choice(shift, bases)[:, None]
        scores = rng.binomial(4, expit(logit(easy) + own)) / 4
        found = pooled([Answers(scores, np.arange(count), bases)], QUICK, True)
        assert 0 <= found.low <= found.mean <= found.high <= 1
        held += found.low <= truth <= found.high
    assert held / runs > 0.91


@settings(max_examples=40)
@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 2**32 - 1), st.booleans())
def test_scores_from_0_to_1_have_intervals_there(seeds: int, count: int, seed: int, near_one: bool) -> None:
    """Averaged option orders and probabilities, of one seed or several, and their differences."""
    scores = np.random.default_rng(seed).integers(0, 5, (seeds, count)) / 4
    scores = np.maximum(scores, 0.75) if near_one else scores
    one, other = Answers(scores, np.arange(count)), Answers(1 - scores, np.arange(count))
    found = pooled([one], QUICK, True)
    assert 0 <= found.low <= found.mean <= found.high <= 1 and found.high > found.low
    apart = compare([one], [other], QUICK, True)
    assert -1 <= apart.low <= apart.difference <= apart.high <= 1


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_designs_by_their_definition(bases: int, seeds: int, draws: int, count: int, seed: int) -> None:
    """Against pandas, step by step: mean over option orders, then of several base models over their seeds; rows in any order."""
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame(
        [
            {"task": task, "base_seed": b, "seed": s, "draw": d, "subject": f"{task}{i}", "score": float(rng.integers(2))}
            for task in ("t", "a") for b in range(bases) for s in range(seeds) for d in range(draws) for i in range(count)
        ]
    ).sample(frac=1, random_state=seed % 1000)  # fmt: skip
    found = design_of(rows.drop(columns="score"), rows["score"])
    for answers, task in zip(found, rows["task"].unique(), strict=True):
        own = rows[rows["task"] == task].groupby(["base_seed", "seed", "subject"])["score"].mean()
        level = ["base_seed"] if bases > 1 else ["seed"]
        wide = own.groupby([*level, "subject"]).mean().unstack("subject")
        assert answers.scores == pytest.approx(wide.to_numpy())
        assert list(answers.units) == list(wide.columns) and answers.bases == bases
    with pytest.raises(UserError, match="stands twice"):
        design_of(pd.concat([rows, rows[:1]]), pd.concat([rows, rows[:1]])["score"])
