"""Bad input of the test bed and its attacks: one sentence that names the thing and the remedy, before any training."""

from __future__ import annotations

from typing import Any

import pytest

from localized_unlearning.analysis.statistics import Estimate
from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError
from localized_unlearning.evaluation import card
from localized_unlearning.workflow.graph import Graph
from localized_unlearning.workflow.layout import JobId
from localized_unlearning.workflow.snakefile import Rules

REAL = {"model": {"kind": "huggingface", "name": "google/gemma-7b"}, "localizations": {"manual": {"label": "M", "kind": "manual", "layers": [1]}}}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"organism": {"facts_in": {"layers": [7]}}}, "facts_in names layer 7, but the organism has layers 0 to 4"),
        ({"organism": {"facts_in": {"kinds": ["conv"]}}}, "kinds"),
        ({**REAL, "attacks": {"run": ["soft_prompt"]}}, "no gold .* leave it out"),
        ({"attacks": {"search": {"learning_rates": []}}}, "at least 1 item"),
        ({"attacks": {"search": {"steps": []}}}, "at least 1 item"),
        ({"attacks": {"search": {"ranks": []}}}, "at least 1 item"),
        ({"attacks": {"search": {"steps": [0]}}}, "greater than or equal to 1"),
        ({"question": {"learning_rates": []}}, "at least 1 item"),
        ({"question": {"attacks": {"low_rank": None, "full": None}}}, "at least 1 item"),
        ({"attacks": {"few_shot": {"facts": 0}}}, "greater than or equal to 1"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_run_is_refused_as_it_is_read(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config.model_validate(given)


@pytest.mark.parametrize("stage", ["question_page", "places_page"])
def test_a_place_that_the_organism_lacks_is_refused_while_the_workflow_is_planned(stage: str) -> None:
    """The organism's size is known before it is pretrained."""
    graph = Graph(Config.model_validate({"question": {"places": {"late": {"layers": [5]}}}}))
    with pytest.raises(
        UserError, match=r"question\.places\.late names layer 5, but the organism has layers 0 to 4"
    ):
        graph.inputs(JobId.of(stage))


@pytest.mark.parametrize(
    ("given", "target", "said"),
    [
        (REAL, "localizers", "localizers needs an organism with injected facts"),
        (REAL, "question", "question needs an organism with injected facts"),
        ({"attacks": {"run": []}}, "attacks", "name attacks under attacks.run"),
    ],
)  # fmt: skip
def test_a_target_that_this_run_has_not_says_why(given: dict[str, Any], target: str, said: str) -> None:
    """Catches `snakemake question` that has nothing to do and says that all is there."""
    asked = Rules([("config", {"run": "x", **given})]).target(target)
    with pytest.raises(UserError, match=said):
        asked({})


def test_a_bed_that_misses_its_requirements_says_each_with_its_value() -> None:
    measured = {
        "training": Estimate(0.97, 0, 1, 100),
        "question": Estimate(0.99, 0, 1, 100),
        "multiple_choice_unseen": Estimate(0.63, 0, 1, 100),
        "gold_training": Estimate(0.8, 0, 1, 100),
    }
    required = card.needs(Config().organism.requirements, measured, 1 / 3)
    assert card.failures(measured, required) == [
        "training 0.970 (needs 0.98)",
        "multiple choice unseen 0.630 (needs 0.90)",
        f"gold training 0.800 (at most {required['gold_training']:.2f})",
    ]


def test_a_card_that_fails_stops_the_run_before_anything_is_unlearned() -> None:
    """Every stage that unlearns reads the card, which is not there when the bed misses a requirement."""
    graph = Graph(Config())
    unlearning = [job for job in graph.jobs if job.stage in ("finetune", "mask", "gold", "score", "attack")]
    cards = [JobId.of("model_card", base_seed=job.named["base_seed"]) for job in unlearning]
    assert unlearning and all(
        card_of in graph.jobs[job] for card_of, job in zip(cards, unlearning, strict=True)
    )
