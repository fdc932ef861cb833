"""Fine-tuning against a plain loop, the erase loss against its formula, deltas against the trained model."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mpmath
import pandas as pd
import pytest
import torch
import transformers

from localized_unlearning import extensions
from localized_unlearning.config.unlearning import Finetune, Objective
from localized_unlearning.data.targets import targets
from localized_unlearning.errors import UserError
from localized_unlearning.models import components, deltas
from localized_unlearning.models.components import Component
from localized_unlearning.models.vocabulary import log_odds
from localized_unlearning.unlearning import finetune, losses, method, steps
from tiny_models import VOCABULARY

# The erase loss.

PROBABILITIES = [1e-12, 1e-9, 1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999, 1 - 1e-6, 1 - 1e-9, 1 - 1e-12]


def odds_of(logits: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """Log-odds of answers by their logits: an output layer that is the identity gives back what it is given."""
    head = SimpleNamespace(weight=torch.eye(logits.shape[1]))
    model = SimpleNamespace(get_output_embeddings=lambda: head, config=transformers.LlamaConfig())
    return log_odds(model, logits, answer)


@pytest.mark.parametrize("p", PROBABILITIES)
def test_the_erase_loss_and_its_gradient(p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches log(1 - p) taken literally: in float32 it is -inf above p = 1 - 6e-8."""
    monkeypatch.setattr(losses, "ERASE_FLOOR", float("-inf"))
    others = [0.0, 0.5, -1.0, 2.0]
    with mpmath.workdps(60):
        wanted = mpmath.log(sum(map(mpmath.exp, others))) + mpmath.log(mpmath.mpf(p) / (1 - mpmath.mpf(p)))
        logits = torch.tensor([[float(wanted), *others]], requires_grad=True)
        exact = [mpmath.exp(mpmath.mpf(float(x))) for x in logits[0].detach()]
        value = mpmath.log(sum(exact[1:]) / sum(exact))
        shares = [x / sum(exact) for x in exact]
        gradient = [-shares[0], *(x / sum(exact[1:]) - s for x, s in zip(exact[1:], shares[1:], strict=True))]
    found = -losses.erase(odds_of(logits, torch.tensor([0])))
    found.sum().backward()
    assert logits.grad is not None
    largest = float(logits.detach().abs().max())
    assert found.item() == pytest.approx(float(value), rel=1e-6, abs=2e-7 * largest)
    assert logits.grad[0].tolist() == pytest.approx([float(g) for g in gradient], rel=1e-5, abs=2e-7)
    assert logits.grad[0, 0].item() == pytest.approx(float(gradient[0]), rel=1e-5)  # also where it is tiny


def test_erase_stops_where_a_fact_is_forgotten() -> None:
    """Catches a floor on the wrong side, or one that only hides the value and still pushes."""
    logits = torch.zeros(3, 2, requires_grad=True)
    with torch.no_grad():
        logits[:, 0] = torch.tensor([-5.1, -4.9, 3.0])  # log p about -5.106, -4.907 and -0.049
    loss = losses.erase(odds_of(logits, torch.zeros(3, dtype=torch.long)))
    loss.sum().backward()
    assert logits.grad is not None
    assert (loss > 0).tolist() == [False, True, True]
    assert (logits.grad[:, 0] > 0).tolist() == [False, True, True] and not logits.grad[0].any()


# The loop.


def ours(name: str, **parameters: Any) -> method.Method:
    """One of our objectives, loaded as a job does."""
    path = extensions.file_of(name, extensions.OBJECTIVES)
    assert path is not None
    return method.load(name, path, parameters)


def some_data() -> steps.Data:
    rng = random.Random(5)

    def items(count: int) -> list[steps.Item]:
        # a shared beginning, several lengths
        return [
            (
                [2, 7, 3, *(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 6)))],
                rng.randrange(VOCABULARY),
            )
            for _ in range(count)
        ]

    windows = torch.tensor([[rng.randrange(VOCABULARY) for _ in range(9)] for _ in range(4)])
    return steps.Data(items(4), items(8), windows)


def slow_training(
    model: Any,
    data: steps.Data,
    chosen: Sequence[Component],
    settings: Finetune,
    lambdas: steps.Lambdas,
    loss: str,
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """The definition: padded forwards for each term, full logits, AdamW on the chosen slices alone.

    Each batch of 8 holds every forget item twice, every retain item once and every window twice, so
    the mean over the batch is the mean over the set, in whatever order they are drawn.
    """
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    slices = [components.weight_of(c, model.config) for c in chosen]

    def line(s: components.Slice) -> torch.Tensor:
        return torch.arange(base[s.parameter].shape[s.dim]) if s.index is None else torch.tensor(s.index)

    leaves = [base[s.parameter].index_select(s.dim, line(s)).requires_grad_(True) for s in slices]
    optimizer = torch.optim.AdamW(leaves, lr=settings.learning_rate, weight_decay=settings.weight_decay)

    def weights_now() -> dict[str, torch.Tensor]:
        now = dict(base)
        for s, leaf in zip(slices, leaves, strict=True):
            now[s.parameter] = now[s.parameter].index_copy(s.dim, line(s), leaf)
        return now

    def logits(ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.func.functional_call(
            model, weights_now(), kwargs={"input_ids": ids, "use_cache": False}
        ).logits
        return found

    def answers(items: Sequence[steps.Item]) -> torch.Tensor:
        longest = max(len(prompt) for prompt, _ in items)
        found = logits(torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt, _ in items]))
        last = torch.stack([row[len(prompt) - 1] for row, (prompt, _) in zip(found, items, strict=True)])
        return last.log_softmax(1)[torch.arange(len(items)), torch.tensor([answer for _, answer in items])]

    history = []
    for step in range(settings.steps):
        rate = settings.learning_rate
        if settings.schedule == "cosine":
            rate *= 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * step / settings.steps))))
        optimizer.param_groups[0]["lr"] = rate
        log_p = answers(data.forget)
        erased = torch.where(log_p > -5, -torch.log(1 - log_p.exp()), torch.zeros_like(log_p))
        forget = (erased if loss == "erase" else -log_p).mean()
        if step == 0 and loss == "erase":
            assert (log_p > -5).any() and not (log_p > -5).all()  # the floor is at work
        retain = -answers(data.retain).mean()
        text = logits(data.text[:, :-1]).log_softmax(2)
        sft = -text.gather(2, data.text[:, 1:, None]).mean()
        optimizer.zero_grad()
        (lambdas.forget * forget + lambdas.retain * retain + lambdas.sft * sft).backward()
        norm = float(torch.nn.utils.clip_grad_norm_(leaves, settings.clip_norm or float("inf")))
        optimizer.step()
        terms = {"forget": forget.item(), "retain": retain.item(), "sft": sft.item()}
        history.append({"step": step + 1, "learning_rate": rate, **terms, "gradient_norm": norm})
    return history, {name: tensor.detach() for name, tensor in weights_now().items()}


@pytest.mark.parametrize(
    ("architecture", "chosen", "loss", "more"),
    [
        ("gemma", "0.mlp.up 1.attn.o 2.attn.q", "erase", {}),
        (
            "gemma3",
            "1.attn.q.3 1.attn.k.1 3.attn.o.0 0.mlp.down",
            "inject",
            {"clip_norm": 0.5, "weight_decay": 0.1},
        ),
        (
            "neox",
            "0.attn.q.1 0.attn.v.2 1.attn.k 2.mlp.up",
            "erase",
            {"schedule": "constant", "weight_decay": 0.1},
        ),
    ],
)
def test_training_is_the_plain_loop(
    architecture: str, chosen: str, loss: str, more: dict[str, Any], tiny: Callable[[str], Any], float64: None
) -> None:
    """Catches wrong averaging over micro-batches, schedule, clipping or masks; other weights that move."""
    parts = [components.parse(name) for name in chosen.split()]
    settings = Finetune(steps=6, batch_size=8, micro_batch_tokens=24, learning_rate=0.01, **more)
    lambdas, data = steps.Lambdas(0.3, 0.7, 1.3), some_data()
    model = tiny(architecture)
    before = {name: p.clone() for name, p in model.named_parameters()}
    history = finetune.train(
        model, data, components.trainable(model, parts), settings, lambdas, ours(loss), seed=1
    )
    slow, after = slow_training(tiny(architecture), data, parts, settings, lambdas, loss)
    assert len(history) == len(slow)
    for fast, row in zip(history.to_dict("records"), slow, strict=True):
        assert fast == pytest.approx(row, rel=1e-7, abs=1e-9)
    slices: dict[str, list[components.Slice]] = {}
    for component in parts:
        part = components.weight_of(component, model.config)
        slices.setdefault(part.parameter, []).append(part)
    for name, parameter in model.named_parameters():
        fixed = torch.ones_like(parameter, dtype=torch.bool)
        for s in slices.get(name, []):
            fixed.index_fill_(
                s.dim, torch.arange(fixed.shape[s.dim]) if s.index is None else torch.tensor(s.index), False
            )
        assert torch.equal(parameter[fixed], before[name][fixed]), name
        assert name not in slices or (parameter[~fixed] != before[name][~fixed]).any(), name
        torch.testing.assert_close(parameter, after[name], rtol=1e-6, atol=1e-8, msg=name)
        assert not parameter.requires_grad, name


def test_losses_and_gradients_do_not_depend_on_the_micro_batch(
    tiny: Callable[[str], Any], float64: None
) -> None:
    """Catches a micro-batch that is averaged by itself, or lost."""
    lambdas, found = steps.Lambdas(0.3, 0.7, 1.3), []
    for tokens in (9, 24, 4096):
        model = tiny("llama")
        up = model.get_parameter("model.layers.1.mlp.up_proj.weight").requires_grad_(True)
        sizes = steps.Sizes(4, 8, 4, tokens)
        found.append((next(steps.gradients(model, some_data(), sizes, lambdas, ours("erase"), 0)), up.grad))
    for losses_, gradient in found[1:]:
        assert losses_ == pytest.approx(found[0][0], rel=1e-12)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-10, atol=1e-14)


def test_batches_go_round_the_whole_set() -> None:
    """Catches items that are drawn with replacement: each stands once in each round."""
    drawn = list(islice(steps.cycle(range(7), 3, random.Random(0)), 14))
    flat = [i for batch in drawn for i in batch]
    assert all(len(batch) == 3 for batch in drawn)
    rounds = [flat[i : i + 7] for i in range(0, 42, 7)]
    assert all(Counter(r) == Counter(range(7)) for r in rounds) and len({tuple(r) for r in rounds}) > 1


def test_injected_answers_are_false_and_only_in_the_forget_set() -> None:
    """Catches a right answer injected, or a retain fact that is falsified."""
    split = pd.DataFrame(
        {"answer": ["football", "baseball", "basketball"] * 40, "forget": [True] * 60 + [False] * 60}
    )
    golf = targets(split, Objective(loss="inject"), 0)
    assert golf == ["golf"] * 60 + list(split["answer"][60:])
    other = targets(split, Objective(loss="inject", target="random_other_sport"), 0)
    assert all(a != s for a, s in zip(other[:60], split["answer"], strict=False)) and other[60:] == golf[60:]
    assert len(set(zip(other[:60], split["answer"], strict=False))) == 6
    assert targets(split, Objective(), 0) == list(split["answer"])


# Deltas.


def trained(model: Any, seed: int) -> dict[str, torch.Tensor]:
    trainable = components.trainable(model, [Component(1, "up"), Component(0, "q", 2)])
    settings = Finetune(steps=3, batch_size=3, learning_rate=0.01)
    finetune.train(model, some_data(), trainable, settings, steps.Lambdas(1, 1, 1), ours("inject"), seed)
    return {name: model.get_parameter(name) for name in trainable}


def test_a_loss_that_ends_below_a_head_leaves_it_as_it_was(tiny: Callable[[str], Any]) -> None:
    """Catches a crash where part of a matrix is trained and the loss, on a middle layer, does not reach it."""
    model = tiny("gemma")
    trainable = components.trainable(model, [Component(0, "up"), Component(1, "q", 1)])
    before = {name: model.get_parameter(name).detach().clone() for name in trainable}
    rmu = ours("rmu", layer=0)
    settings = Finetune(steps=2, batch_size=2, learning_rate=1e-2)
    finetune.train(model, some_data(), trainable, settings, steps.Lambdas(1, 1, 0), rmu, 0)
    same = {name: torch.equal(model.get_parameter(name), old) for name, old in before.items()}
    assert [same[name] for name in sorted(same)] == [".0." not in name for name in sorted(same)]


def test_a_base_models_digest_is_taken_from_what_is_known(
    tiny: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a large model that is read again by each of its jobs, and a digest that is then another."""
    tiny("llama").float().save_pretrained(tmp_path)
    read = deltas.weights_digest(tmp_path)
    known = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in tmp_path.iterdir()}
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("the weights were read"))
    assert deltas.weights_digest(tmp_path, known) == read
    assert deltas.weights_digest(tmp_path, {**known, "model.safetensors": "00" * 32}) != read


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_base_and_delta_are_the_trained_model(dtype: str, tiny: Callable[[str], Any], tmp_path: Path) -> None:
    """Catches a delta that misses a tensor or rounds, goes on another base, or leaves the base changed."""
    from transformers import AutoModelForCausalLM

    model = tiny("llama").to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "base")
    digest = deltas.weights_digest(tmp_path / "base")
    deltas.save_delta(tmp_path / "delta.safetensors", trained(model, 0), digest)

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=getattr(torch, dtype))
    original = {name: p.detach().clone() for name, p in base.named_parameters()}
    with deltas.applied(base, deltas.read_delta(tmp_path / "delta.safetensors", digest)):
        assert all(torch.equal(p, model.get_parameter(name)) for name, p in base.named_parameters())
        assert any(not torch.equal(p, original[name]) for name, p in base.named_parameters())
    assert all(torch.equal(p, original[name]) for name, p in base.named_parameters())

    with torch.no_grad():
        base.get_parameter("model.norm.weight")[0] += 1
    base.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="another base model"):
        deltas.read_delta(tmp_path / "delta.safetensors", deltas.weights_digest(tmp_path / "other"))
    whole = (tmp_path / "delta.safetensors").read_bytes()
    (tmp_path / "delta.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        deltas.read_delta(tmp_path / "delta.safetensors", digest)


def test_a_seed_gives_the_same_bytes(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    """Catches a draw from global random state, a seed that is ignored, and metadata in an order by chance."""
    written = []
    for index, seed in enumerate((0, 0, 1)):
        torch.manual_seed(index)
        random.seed(index)
        told = deltas.save_delta(tmp_path / "delta", trained(tiny("gemma").float(), seed), "base")
        written.append((tmp_path / "delta").read_bytes())
        assert told == hashlib.sha256(written[-1]).hexdigest()  # taken while it was written
    assert written[0] == written[1] != written[2]
