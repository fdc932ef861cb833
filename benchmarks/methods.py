"""What the methods cost beside the paper's own: a step of each objective, and each way of scoring.

    python -m benchmarks.methods [--model FOLDER] [--steps 4]

On a model of random weights in Gemma 3's shape (or a folder's), with prompts that share a beginning. Objectives: seconds of
a step with all three losses over erase's; the base model's values, measured once, are apart. RepSelect owns its steps: all that
it computes is in the first, which is also given in erase's steps. Scores: seconds over attribution patching's. Seconds are a
processor's, of one thread, so that a neighbour's work counts little; the order goes round, and each ratio is the median of
those within a round.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from localized_unlearning import extensions
from localized_unlearning.config.localization import Components
from localized_unlearning.config.unlearning import Finetune
from localized_unlearning.localization.attribution_patching import attribution_patching
from localized_unlearning.localization.pairs import Pairs
from localized_unlearning.models import components, loading
from localized_unlearning.models.components import Component
from localized_unlearning.unlearning import method as methods
from localized_unlearning.unlearning import steps as steps_module

OBJECTIVES = ("erase", "inject", "gradient_ascent", "npo", "simnpo", "undial", "rmu", "repselect")
LIMITS = {"npo": 1.1, "simnpo": 1.1, "undial": 1.1, "rmu": 1.5, "integrated_gradients, 5 points": 6.0}
"""How many times erase's step, or attribution patching, each may take."""
TOKENS, SIZE = 4096, 32


def random_model() -> Any:
    """A model in Gemma 3 270M's shape, of fewer layers and a vocabulary of 16,384, of random weights."""
    import transformers

    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(
        vocab_size=16_384, hidden_size=640, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def prompts(count: int, rng: random.Random, vocabulary: int) -> list[list[int]]:
    """Prompts of 20 shared tokens, a name of three and an end of five."""
    start = [rng.randrange(10, vocabulary) for _ in range(20)]
    end = [rng.randrange(10, vocabulary) for _ in range(5)]
    return [[*start, *(rng.randrange(10, vocabulary) for _ in range(3)), *end] for _ in range(count)]


def steps_of(model: Any, name: str) -> Callable[[], float]:
    """A function that takes the next step of an objective's gradient; seconds."""
    rng, size = random.Random(1), model.config.get_text_config().vocab_size
    forget, retain = prompts(SIZE, rng, size), prompts(SIZE, rng, size)
    items = [(p, rng.randrange(10, 14)) for p in (*forget, *retain)]
    text = torch.tensor([[rng.randrange(size) for _ in range(49)] for _ in range(SIZE)])
    data = steps_module.Data(items[:SIZE], items[SIZE:], text)
    path = extensions.file_of(name, extensions.OBJECTIVES)
    assert path is not None
    given = {"layer": len(components.layers_of(model)) // 4} if name == "rmu" else {}
    found = methods.load(name, path, given)
    sizes, lambdas = steps_module.Sizes(SIZE, SIZE, SIZE, TOKENS), steps_module.Lambdas(1.0, 1.0, 1.0)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    known, kept = (methods.Facts(model, facts, (), TOKENS, 0) for facts in (data.forget, data.retain))
    own = found.gradients(methods.Training(model, trained, known, kept, Finetune(), 0))
    running: Iterator[Any] = own or steps_module.gradients(model, data, sizes, lambdas, found, 0)

    def step() -> float:
        start = time.process_time()
        next(running)
        return time.process_time() - start

    return step


def scores_of(model: Any) -> dict[str, Callable[[], float]]:
    """Each way of scoring every matrix, as a function that does it; seconds."""
    rng, size = random.Random(2), model.config.get_text_config().vocab_size
    clean = prompts(24, rng, size)
    corrupt = [[*p[:20], *(rng.randrange(10, size) for _ in range(3)), *p[23:]] for p in clean]
    pairs = Pairs(
        clean, corrupt, [(20, 23)] * len(clean), [i % 4 for i in range(len(clean))], [10, 11, 12, 13]
    )
    found = components.list_components(model.config, Components())

    def ours(name: str) -> Any:
        path = extensions.file_of(name, extensions.SCORES)
        assert path is not None
        return extensions.load(name, path)

    integrated, exact = ours("integrated_gradients"), ours("activation_patching")

    def timed(work: Callable[[], Any]) -> Callable[[], float]:
        def run() -> float:
            start = time.process_time()
            work()
            return time.process_time() - start

        return run

    return {
        "attribution_patching": timed(lambda: attribution_patching(model, pairs, found, TOKENS)),
        "integrated_gradients, 5 points": timed(lambda: integrated(model, pairs, found, TOKENS, points=5)),
        "activation_patching (exact)": timed(lambda: exact(model, pairs, found, TOKENS)),
    }


def rows(work: dict[str, Callable[[], float]], rounds: int) -> list[tuple[str, float, float, float]]:
    """Name, first seconds, median seconds after it, and the median ratio to the first name's seconds of the round."""
    first = {name: run() for name, run in work.items()}
    later: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            later[name].append(run())
    unit = next(iter(later.values()))
    return [
        (
            name,
            first[name],
            statistics.median(seconds),
            statistics.median(own / of for own, of in zip(seconds, unit, strict=True)),
        )
        for name, seconds in later.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--steps", type=int, default=4)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = loading.load(asked.model, "float32", "cpu")[0] if asked.model else random_model()
    middle = len(components.layers_of(model)) // 4
    for name in components.trainable(model, [Component(middle, "up"), Component(middle, "down")]):
        model.get_parameter(name).requires_grad_(True)
    print(
        "| method | first, s | then, s | times the first | at most |\n|---|---:|---:|---:|---:|", flush=True
    )
    objectives = rows({name: steps_of(model, name) for name in OBJECTIVES}, asked.steps)
    show(objectives)
    step = objectives[0][2]
    print(
        f"| repselect, all of it | {objectives[-1][1]:.2f} | | {objectives[-1][1] / step:.2f} steps | |",
        flush=True,
    )
    model.requires_grad_(False)
    show(rows(scores_of(model), asked.steps))


def show(table: list[tuple[str, float, float, float]]) -> None:
    """Print what :func:`rows` found, beside the limits."""
    for name, first, later, ratio in table:
        limit = f"{LIMITS[name]:g}" if name in LIMITS else ""
        print(f"| {name} | {first:.2f} | {later:.2f} | {ratio:.2f} | {limit} |", flush=True)


if __name__ == "__main__":
    main()
