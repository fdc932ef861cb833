"""What is measured: each case's ours, the straightforward way, whether they agree, and the least work there is.

The straightforward ways are written as a user would write them, with the libraries a user would take, on the same
inputs. The floor counts every distinct prefix of tokens once through the layers it must pass (2 FLOP a weight, twice
as many again for a gradient by the activations), the vocabulary where logits are read, and no attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks import harness
from localized_unlearning.attacks import relearning
from localized_unlearning.config.data import Mmlu
from localized_unlearning.config.evaluation import Probing, Relearning
from localized_unlearning.config.localization import Score
from localized_unlearning.config.unlearning import Masking
from localized_unlearning.data import mmlu
from localized_unlearning.data import tokens as tokens_module
from localized_unlearning.data import windows as windows_module
from localized_unlearning.data.answers import CHOICES, LETTERS, SPORTS
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.evaluation.exam import Exam, ready, take
from localized_unlearning.evaluation.facts import ask_facts
from localized_unlearning.evaluation.knowledge import ask_questions
from localized_unlearning.evaluation.multiple_choice import ask_multiple_choice
from localized_unlearning.interpretability import probes
from localized_unlearning.localization import attribution_patching, causal_tracing
from localized_unlearning.localization import pairs as pairs_module
from localized_unlearning.models import activations as activations_module
from localized_unlearning.models import components, loading, packing
from localized_unlearning.models.components import Component
from localized_unlearning.unlearning import masking, method
from localized_unlearning.unlearning import masks as masks_module
from localized_unlearning.unlearning import steps as steps_module
from localized_unlearning.unlearning.objectives.erase import erase
from localized_unlearning.unlearning.objectives.inject import inject

Outputs = dict[str, np.ndarray]
Work = Callable[[], Outputs]
PROMPTS = Path("workflow/resources/prompts.yaml")
TEXT = Path("workflow/resources/text/train.txt")
BATCH_TOKENS = 4096
SUBJECTS = 5
MANUAL = (2, 3, 4, 5)
"""The manual localization of the Gemma 3 270M preset: the MLPs of these layers."""


@dataclass
class Bench:
    """The model and the inputs, loaded once in each measuring process."""

    folder: Path
    questions_file: Path
    athletes_file: Path
    threads: int
    scale: float
    device: str
    dtype: str
    notes: dict[str, Any] = field(default_factory=dict)

    def count(self, full: int) -> int:
        return max(2, round(full * self.scale))

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        torch.set_num_threads(self.threads)
        return loading.load(self.folder, self.dtype, self.device)

    @property
    def model(self) -> Any:
        return self.loaded[0]

    @property
    def tokenizer(self) -> Any:
        return self.loaded[1]

    def warm_up(self) -> None:
        """Touch every weight and the libraries' code (they are mapped from files), start the threads; untimed."""
        inputs = self.model.get_input_embeddings()(torch.tensor([[2, 3, 4]], device=self.device))
        inputs = inputs.detach().requires_grad_(True)
        torch.autograd.grad(self.model(inputs_embeds=inputs).logits.sum(), inputs)
        with torch.inference_mode():
            for p in self.model.parameters():
                p.sum()

    def questions(self, a_subject: int) -> mmlu.Questions:
        """The first questions of the first subjects that are not among the longest (histories, law)."""
        found = mmlu.load_questions(self.questions_file)
        names = sorted(
            {q.subject for q in found.test if "history" not in q.subject and "law" not in q.subject}
        )
        chosen = names[:: max(1, len(names) // SUBJECTS)][:SUBJECTS]
        test = [
            q
            for name in chosen
            for q in [t for t in found.test if t.subject == name][: self.count(a_subject)]
        ]
        return mmlu.Questions([q for q in found.dev if q.subject in chosen], test)

    def athletes(self, full: int) -> pd.DataFrame:
        table = pd.read_csv(self.athletes_file)[["athlete", "sport"]].drop_duplicates("athlete")
        table = table.sample(self.count(full), random_state=0).reset_index(drop=True)
        return table.assign(forget=table["sport"] == "basketball", relearn=False)

    def rendered(self, prompt: str, athletes: pd.DataFrame) -> list[list[int]]:
        book = load_prompts(PROMPTS)[prompt]
        texts = [
            book.render(a, book.options) if book.options else book.render(a) for a in athletes["athlete"]
        ]
        return tokens_module.encode(self.tokenizer, texts)

    # The least work.

    @property
    def body(self) -> int:
        """FLOP of one token through all layers."""
        return 2 * sum(p.numel() for p in components.layers_of(self.model).parameters())

    @property
    def head(self) -> int:
        """FLOP of one position's logits over the vocabulary."""
        return 2 * self.model.get_output_embeddings().weight.numel()

    def floor(self, prompts: Sequence[Sequence[int]], passes: float = 1, heads: float = 1) -> None:
        """Note the work of ``passes`` through the layers for distinct prefixes and ``heads`` for each prompt."""
        nodes = sum(len(p.tokens) for p in packing.pack(prompts, 10**9))
        self.notes["flop"] = (
            self.notes.get("flop", 0) + nodes * passes * self.body + len(prompts) * heads * self.head
        )


def full_logits(bench: Bench, prompts: Sequence[Sequence[int]], size: int = 16) -> torch.Tensor:
    """Logits after each prompt, in batches padded on the right, the whole vocabulary at every position."""
    found = []
    with torch.no_grad():
        for start in range(0, len(prompts), size):
            some = prompts[start : start + size]
            ids, mask = padded(some, bench.device)
            logits = bench.model(input_ids=ids, attention_mask=mask).logits.float()
            found.append(logits[range(len(some)), [len(p) - 1 for p in some]].cpu())
    return torch.cat(found)


def padded(prompts: Sequence[Sequence[int]], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[*p, *[0] * (longest - len(p))] for p in prompts], device=device)
    mask = torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in prompts], device=device)
    return ids, mask


def bridged(bench: Bench) -> Any:
    """TransformerLens over the same weights."""
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(
        str(bench.folder), hf_model=bench.model, tokenizer=bench.tokenizer, device=bench.device
    )


# ---- MMLU


def mmlu_case(shots: int) -> tuple[Callable[[Bench], Work], Callable[[Bench], Work]]:
    def ours(bench: Bench) -> Work:
        questions, settings = bench.questions(20), Mmlu(shots=shots)
        dev = [[q for q in questions.dev if q.subject == t.subject][:shots] for t in questions.test]
        texts = [mmlu.prompt(q, d) for q, d in zip(questions.test, dev, strict=True)]
        bench.floor(tokens_module.encode(bench.tokenizer, texts))

        def work() -> Outputs:
            table = ask_questions(bench.model, bench.tokenizer, questions, settings, BATCH_TOKENS)
            logits = table[[f"logit_{x}" for x in LETTERS]].to_numpy()
            return {
                "logp": logits - table[["log_normalizer"]].to_numpy(),
                "item": table["item"].to_numpy(str),
            }

        return work

    def theirs(bench: Bench) -> Work:
        return harness.prepare(bench.model, bench.tokenizer, bench.questions(20), shots, bench.notes)

    return ours, theirs


def same_answers(ours: Outputs, theirs: Outputs) -> tuple[bool, str]:
    """Every question: the same of A to D, unless the margin is within the largest difference of log p."""
    assert list(ours["item"]) == list(theirs["item"])
    error = float(np.abs(ours["logp"] - theirs["logp"]).max())
    ranked = np.sort(theirs["logp"], 1)
    margin = ranked[:, -1] - ranked[:, -2]
    differ = ours["logp"].argmax(1) != theirs["logp"].argmax(1)
    real = int((differ & (margin > 2 * error)).sum())
    text = f"{len(differ)} questions, {int(differ.sum())} other answers"
    if differ.any():
        text += f" (their margins at most {margin[differ].max():.1e})"
    return real == 0, f"{text}, log p within {error:.1e}, smallest margin {margin.min():.1e}"


# ---- facts and multiple choice


def facts_ours(bench: Bench) -> Work:
    athletes, book = bench.athletes(96), load_prompts(PROMPTS)
    prompts, choice = (book["training"], book["question"]), book["multiple_choice"]
    for name in ("training", "question", "multiple_choice"):
        bench.floor(bench.rendered(name, athletes))

    def work() -> Outputs:
        facts = ask_facts(bench.model, bench.tokenizer, athletes, prompts, BATCH_TOKENS)
        letters = ask_multiple_choice(
            bench.model, bench.tokenizer, athletes, choice, ("fixed",), 0, BATCH_TOKENS
        )
        first = facts[[f"logit_{c}" for c in CHOICES]].to_numpy() - facts[["log_normalizer"]].to_numpy()
        second = letters[[f"logit_{c}" for c in LETTERS]].to_numpy() - letters[["log_normalizer"]].to_numpy()
        return {"logp": np.concatenate([first, second])}

    return work


def facts_theirs(bench: Bench) -> Work:
    athletes = bench.athletes(96)

    def work() -> Outputs:
        found = []
        for name in ("training", "question", "multiple_choice"):
            answers = LETTERS if name == "multiple_choice" else CHOICES
            tokens = tokens_module.answer_tokens(bench.tokenizer, answers)
            logits = full_logits(bench, bench.rendered(name, athletes))
            found.append(logits.log_softmax(1)[:, tokens].numpy())
        return {"logp": np.concatenate(found)}

    return work


def close(name: str, limit: float) -> Callable[[Outputs, Outputs], tuple[bool, str]]:
    """Agreement of one output to a limit."""

    def compare(ours: Outputs, theirs: Outputs) -> tuple[bool, str]:
        error = float(np.abs(ours[name] - theirs[name]).max())
        size = float(np.abs(theirs[name]).max())
        return error <= limit * max(size, 1), f"{name} within {error:.1e} (up to {size:.3g})"

    return compare


# ---- localization


def pairs_of(bench: Bench, full: int) -> pairs_module.Pairs:
    athletes = bench.athletes(full)
    pairs = list(zip(athletes["athlete"], athletes["sport"], strict=True))
    return pairs_module.make_pairs(pairs, load_prompts(PROMPTS)["training"].render, bench.tokenizer, 0)


def lens_metric(logits: torch.Tensor, answers: Sequence[int], choices: Sequence[int]) -> torch.Tensor:
    last = logits[:, -1, list(choices)].float()
    right = last.gather(1, torch.tensor(answers, device=last.device)[:, None])[:, 0]
    return right - (last.sum(1) - right) / (len(choices) - 1)


def tracing_ours(bench: Bench) -> Work:
    pairs = pairs_of(bench, 8)
    sites = causal_tracing.tracing_sites(bench.model, Score(method="causal_tracing"), [])
    layers = components.geometry_of(bench.model.config).layers
    share = sum((layers - s.layer) / layers for s in sites)
    bench.floor(pairs.clean, passes=2 + share, heads=0)
    return lambda: {
        "score": np.array(causal_tracing.causal_tracing(bench.model, pairs, sites, 3.0, 0, BATCH_TOKENS))
    }


def tracing_theirs(bench: Bench) -> Work:
    """Prompts of equal length together; for each site a whole forward pass with the noise and the restoration."""
    pairs, bridge = pairs_of(bench, 8), bridged(bench)
    sites = causal_tracing.tracing_sites(bench.model, Score(method="causal_tracing"), [])
    scale = 3.0 * causal_tracing.noise_scale(bench.model)
    width = bench.model.get_input_embeddings().weight.shape[1]
    generator = torch.Generator().manual_seed(0)
    draws = [scale * torch.randn(b - a, width, generator=generator) for a, b in pairs.subject]
    names = [
        f"blocks.{s.layer}." + ("attn.o.hook_in" if s.kind == "o" else "mlp.out.hook_out") for s in sites
    ]

    def work() -> Outputs:
        totals = np.zeros(len(sites))
        for length in sorted(set(map(len, pairs.clean))):
            rows = [i for i, ids in enumerate(pairs.clean) if len(ids) == length]
            tokens = torch.tensor([pairs.clean[i] for i in rows], device=bench.device)
            answers = [pairs.answer[i] for i in rows]

            def noise(value: torch.Tensor, hook: Any, rows: list[int] = rows) -> torch.Tensor:
                value = value.clone()
                for row, i in enumerate(rows):
                    start, stop = pairs.subject[i]
                    value[row, start:stop] += draws[i].to(value)
                return value

            with torch.no_grad():
                logits, cache = bridge.run_with_cache(tokens)
                intact = lens_metric(logits, answers, pairs.choices)
                logits = bridge.run_with_hooks(tokens, fwd_hooks=[("embed.hook_out", noise)])
                noised = lens_metric(logits, answers, pairs.choices)
                for index, (site, name) in enumerate(zip(sites, names, strict=True)):

                    def restore(
                        value: torch.Tensor, hook: Any, site: Any = site, clean: torch.Tensor = cache[name]
                    ) -> torch.Tensor:
                        columns = slice(None) if site.columns is None else list(site.columns)
                        value, shape = value.clone(), value.shape
                        flat = value.view(*shape[:2], -1)
                        flat[..., columns] = clean.view(*shape[:2], -1)[..., columns]
                        return value

                    logits = bridge.run_with_hooks(
                        tokens, fwd_hooks=[("embed.hook_out", noise), (name, restore)]
                    )
                    value = lens_metric(logits, answers, pairs.choices)
                    totals[index] += float(((value - noised) / (intact - noised)).sum())
        return {"score": totals / len(pairs.clean)}

    return work


LENS_HOOKS = {
    "q": "attn.q.hook_out", "k": "attn.k.hook_out", "v": "attn.v.hook_out", "o": "attn.o.hook_in",
    "up": "mlp.in.hook_out", "down": "mlp.out.hook_out",
}  # fmt: skip


def attribution_components(bench: Bench) -> list[Component]:
    layers = components.geometry_of(bench.model.config).layers
    return [Component(layer, kind) for layer in range(layers) for kind in LENS_HOOKS]  # type: ignore[arg-type]


def attribution_ours(bench: Bench) -> Work:
    pairs, found = pairs_of(bench, 24), attribution_components(bench)
    bench.floor(pairs.clean, passes=2, heads=0)
    bench.floor(pairs.corrupt, passes=1, heads=0)
    return lambda: {
        "score": np.array(attribution_patching.attribution_patching(bench.model, pairs, found, 64))
    }


def attribution_theirs(bench: Bench) -> Work:
    """One prompt after another: a cache of the corrupt run, and one of the clean run with its gradients."""
    pairs, bridge, found = pairs_of(bench, 24), bridged(bench), attribution_components(bench)
    names = [f"blocks.{c.layer}.{LENS_HOOKS[c.kind]}" for c in found]

    def work() -> Outputs:
        totals = np.zeros(len(found))
        for clean, corrupt, answer in zip(pairs.clean, pairs.corrupt, pairs.answer, strict=True):
            values: dict[str, torch.Tensor] = {}

            def keep(
                value: torch.Tensor, hook: Any, values: dict[str, torch.Tensor] = values
            ) -> torch.Tensor:
                value = value if value.requires_grad else value.detach().requires_grad_(True)
                value.retain_grad()
                values[hook.name] = value
                return value

            with torch.no_grad():
                logits, cache = bridge.run_with_cache(torch.tensor([corrupt], device=bench.device))
                low = lens_metric(logits, [answer], pairs.choices)
            with torch.enable_grad():
                logits = bridge.run_with_hooks(
                    torch.tensor([clean], device=bench.device), fwd_hooks=[(name, keep) for name in names]
                )
                high = lens_metric(logits, [answer], pairs.choices)
                (high / (high.detach() - low)).sum().backward()
            for index, name in enumerate(names):
                change = (cache[name] - values[name].detach()) * values[name].grad
                totals[index] += float(change.double().sum())
        return {"score": totals / len(pairs.clean)}

    return work


# ---- fine-tuning


MICRO = 512
"""Tokens of one of our forward and backward passes; the straightforward way takes 4 prompts or windows at a time."""


def training_data(bench: Bench, forget: int | None = None) -> tuple[steps_module.Data, steps_module.Weights]:
    """Prompts to forget (None: 64) and to retain, and text, 64 of each; and the weights of their losses."""
    athletes = bench.athletes(128)
    size = len(athletes) // 2
    tokens = dict(zip(SPORTS, tokens_module.answer_tokens(bench.tokenizer, SPORTS), strict=True))
    items = [
        (ids, tokens[sport])
        for ids, sport in zip(bench.rendered("training", athletes), athletes["sport"], strict=True)
    ]
    text = windows_module.text_windows(bench.tokenizer, TEXT.read_text(encoding="utf-8"), 48)
    text = text.repeat(size // len(text) + 1, 1)[:size]
    data = steps_module.Data(items[: forget or size], items[size : 2 * size], text)
    return data, steps_module.Weights(0.2, 1.0, 1.0)


def manual(bench: Bench) -> list[str]:
    """The weights that the manual localization trains; from now on they take gradients."""
    chosen = [Component(layer, kind) for layer in MANUAL for kind in ("up", "down")]  # type: ignore[arg-type]
    names = list(components.trainable(bench.model, chosen))
    for name in names:
        bench.model.get_parameter(name).requires_grad_(True)
    return names


def flat(tensors: Sequence[torch.Tensor]) -> np.ndarray:
    return torch.cat([tensor.detach().flatten().float() for tensor in tensors]).cpu().numpy()


def floor_of_step(bench: Bench, data: steps_module.Data, lowest: int, trained: int) -> None:
    layers = components.geometry_of(bench.model.config).layers
    passes = 1 + (layers - lowest) / layers + trained * 2 / bench.body
    prompts = [ids for ids, _ in (*data.forget, *data.retain)]
    bench.floor(prompts, passes=passes, heads=2)
    bench.floor([w[:-1] for w in data.text.tolist()], passes=passes, heads=2 * data.text.shape[1] - 2)


def sizes_of(data: steps_module.Data, tokens: int = MICRO) -> steps_module.Sizes:
    return steps_module.Sizes(len(data.forget), len(data.retain), len(data.text), tokens)


def plain_terms(
    bench: Bench, data: steps_module.Data, weights: steps_module.Weights, erase: bool = True
) -> np.ndarray:
    """Each term by itself: micro-batches of 4, padded, the whole vocabulary at every position, in float32."""
    micro, totals = 4, np.zeros(3)
    for term, items in enumerate((data.forget, data.retain)):
        for start in range(0, len(items), micro):
            part = items[start : start + micro]
            ids, mask = padded([p for p, _ in part], bench.device)
            logits = bench.model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
            value = logits[range(len(part)), [len(p) - 1 for p, _ in part], [a for _, a in part]]
            if term == 0 and erase:
                value = torch.where(value > -5, torch.log1p(-value.exp()), 0)
            loss = -value.sum() / len(items)
            ((weights.forget, weights.retain)[term] * loss).backward()
            totals[term] += loss.item()
    for windows in data.text.to(bench.device).split(micro):
        logits = bench.model(input_ids=windows[:, :-1]).logits.float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        loss = loss * len(windows) / len(data.text)
        (weights.sft * loss).backward()
        totals[2] += loss.item()
    return totals


def gradient_of(parameters: Sequence[Any], terms: Callable[[], np.ndarray]) -> Work:
    """A step's losses and the gradient that computing them leaves in ``parameters``."""
    return lambda: {"loss": terms(), "vector": flat([p.grad for p in parameters])}


def step_ours(bench: Bench) -> Work:
    trained = [bench.model.get_parameter(name) for name in manual(bench)]
    data, weights = training_data(bench)
    floor_of_step(bench, data, min(MANUAL), sum(p.numel() for p in trained))
    steps = steps_module.gradients(
        bench.model, data, sizes_of(data), weights, method.of(erase, {}, "erase"), 0
    )
    return gradient_of(trained, lambda: np.array(list(next(steps).values())))


def step_theirs(bench: Bench) -> Work:
    trained = [bench.model.get_parameter(name) for name in manual(bench)]
    data, weights = training_data(bench)
    return gradient_of(trained, lambda: plain_terms(bench, data, weights))


def adapters(bench: Bench) -> tuple[list[Any], steps_module.Data, steps_module.Weights]:
    """LoRA of rank 64 on everything, dropout off, and two athletes to relearn."""
    found = relearning.add_lora(bench.model, Relearning(), 0)
    relearning.dropout(bench.model, False)
    return found, *training_data(bench, forget=2)


def relearn_ours(bench: Bench) -> Work:
    found, data, weights = adapters(bench)
    floor_of_step(bench, data, 0, sum(p.numel() for p in found))
    steps = steps_module.gradients(
        bench.model, data, sizes_of(data, MICRO // 2), weights, method.of(inject, {}, "inject"), 0
    )
    return gradient_of(found, lambda: np.array(list(next(steps).values())))


def relearn_theirs(bench: Bench) -> Work:
    found, data, weights = adapters(bench)
    return gradient_of(found, lambda: plain_terms(bench, data, weights, erase=False))


def same_step(ours: Outputs, theirs: Outputs) -> tuple[bool, str]:
    a, b = ours["vector"].astype(np.float64), theirs["vector"].astype(np.float64)
    error = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    loss = float(np.abs(ours["loss"] - theirs["loss"]).max())
    return error < 1e-3 and loss < 1e-3, f"step within {error:.1e} of its norm, losses within {loss:.1e}"


# ---- masks

RATE = 1e4
"""Learning rate of a mask's single step, with momentum as in the released code: large, so that the step is no rounding."""


def mask_ours(bench: Bench) -> Work:
    names = manual(bench)
    data, weights = training_data(bench)
    size = len(data.retain)
    settings = Masking(
        steps=1, batch_size=size, text_batch=size, optimizer="sgd", momentum=0.9, learning_rate=RATE,
        micro_batch_tokens=MICRO,
    )  # fmt: skip
    floor_of_step(bench, data, min(MANUAL), sum(bench.model.get_parameter(name).numel() for name in names))

    def work() -> Outputs:
        trainable = dict.fromkeys(names)
        removed, history = masking.train(bench.model, data, trainable, settings, weights, 0)
        terms = history[["forget", "retain", "sft"]].to_numpy()[0]
        return {"loss": terms, "vector": flat([removed[name] for name in names])}

    return work


class Masked(torch.nn.Module):
    """A weight times its mask, which starts at 1."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.mask = torch.nn.Parameter(torch.ones_like(weight, dtype=torch.float32))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.mask.to(weight.dtype)


def mask_theirs(bench: Bench) -> Work:
    """The mask as a parametrization of each weight, in torch's own way, and SGD with momentum."""
    names = manual(bench)
    data, weights = training_data(bench)

    def work() -> Outputs:
        masks = []
        for name in names:
            place, _, attribute = name.rpartition(".")
            module = bench.model.get_submodule(place)
            form = Masked(getattr(module, attribute))
            torch.nn.utils.parametrize.register_parametrization(module, attribute, form)
            module.parametrizations[attribute].original.requires_grad_(False)
            masks.append(form.mask)
        optimizer = torch.optim.SGD(masks, lr=RATE, momentum=0.9)
        totals = plain_terms(bench, data, weights)
        (Masking().lambda_mask * sum(mask.sum() for mask in masks)).backward()
        optimizer.step()
        with torch.no_grad():
            for mask in masks:
                mask.clamp_(0, 1)
        return {"loss": totals, "vector": flat([1 - mask for mask in masks])}

    return work


def sweep_inputs(bench: Bench) -> tuple[Exam, torch.Tensor, dict[str, int], list[int]]:
    names, book = manual(bench), load_prompts(PROMPTS)
    questions = bench.questions(2)
    sizes = {name: bench.model.get_parameter(name).numel() for name in names}
    ranked = torch.randperm(sum(sizes.values()), generator=torch.Generator().manual_seed(0))[:60_000]
    exam = Exam(
        bench.athletes(10), (book["training"], book["question"]), book["multiple_choice"], ("fixed",), 0,
        questions, Mmlu(),
    )  # fmt: skip
    return exam, ranked, sizes, [5000 * i for i in range(13)]


def sweep_rows(tables: dict[str, pd.DataFrame]) -> np.ndarray:
    kinds = ((tables["facts"], CHOICES), (tables["multiple_choice"], LETTERS), (tables["mmlu"], LETTERS))
    return np.concatenate([t[[f"logit_{c}" for c in letters]].to_numpy() for t, letters in kinds])


def sweep_ours(bench: Bench) -> Work:
    exam, ranked, sizes, points = sweep_inputs(bench)
    for prompts in sweep_prompts(bench, exam):
        bench.floor(prompts, passes=len(points), heads=len(points))

    def work() -> Outputs:
        model, tokenizer = loading.load(bench.folder, bench.dtype, bench.device)
        steps = masks_module.edits(model, ranked, sizes, points)
        asked = ready(exam, tokenizer)
        return {"logits": np.stack([sweep_rows(take(asked, model, BATCH_TOKENS)) for _ in steps])}

    return work


def sweep_prompts(bench: Bench, exam: Exam) -> list[list[list[int]]]:
    asked = [bench.rendered(name, exam.athletes) for name in ("training", "question", "multiple_choice")]
    return [*asked, tokens_module.encode(bench.tokenizer, [mmlu.prompt(q, []) for q in exam.questions.test])]


def sweep_theirs(bench: Bench) -> Work:
    exam, ranked, sizes, points = sweep_inputs(bench)
    sports, letters = (tokens_module.answer_tokens(bench.tokenizer, names) for names in (CHOICES, LETTERS))

    def work() -> Outputs:
        found = []
        for size in points:
            bench.loaded = loading.load(bench.folder, bench.dtype, bench.device)
            for _ in masks_module.edits(bench.model, ranked, sizes, [size]):
                pass
            prompts = sweep_prompts(bench, exam)
            kinds = zip(prompts, (sports, sports, letters, letters), strict=True)
            found.append(np.concatenate([full_logits(bench, p)[:, tokens].numpy() for p, tokens in kinds]))
        return {"logits": np.stack(found)}

    return work


# ---- probes


def probe_inputs(bench: Bench) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    athletes = bench.athletes(450)
    activations = activations_module.residuals(
        bench.model, bench.rendered("training", athletes), BATCH_TOKENS
    )
    sports = np.array([SPORTS.index(s) for s in athletes["sport"]])
    return activations, sports, np.arange(len(sports)) % 5 > 0


def probes_ours(bench: Bench) -> Work:
    import sklearn.linear_model  # noqa: F401  (imported once a process: not part of the work)

    activations, sports, train = probe_inputs(bench)
    return lambda: {
        "right": probes.all_right(
            activations[:, train],
            sports[train],
            activations[:, ~train],
            sports[~train],
            Probing(),
            bench.threads,
        )
    }


def probes_theirs(bench: Bench) -> Work:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    activations, sports, train = probe_inputs(bench)

    def work() -> Outputs:
        right = []
        for layer in activations:
            said = []
            for sport in range(len(SPORTS)):
                probe = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=10_000))
                probe.fit(layer[train], sports[train] == sport)
                said.append(probe.predict(layer[~train]) == (sports[~train] == sport))
            right.append(np.all(said, 0))
        return {"right": np.array(right)}

    return work


def same_predictions(ours: Outputs, theirs: Outputs) -> tuple[bool, str]:
    differ = int((ours["right"] != theirs["right"]).sum())
    return differ == 0, f"{differ} of {ours['right'].size} predictions differ"


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        title: what is measured.
        against: the straightforward way.
        target: how many times faster ours should be.
        ours, theirs: untimed preparation that returns the timed work.
        agree: whether the outputs agree, and in words how far.
        memory: the most of their memory that ours may take, where that is a target.
        extra: whether the straightforward way needs the packages of envs/bench.txt.
    """

    title: str
    against: str
    target: float
    ours: Callable[[Bench], Work]
    theirs: Callable[[Bench], Work]
    agree: Callable[[Outputs, Outputs], tuple[bool, str]]
    memory: float = 1.0
    extra: bool = False


CASES: dict[str, Case] = {
    "mmlu_5shot": Case(
        "MMLU, 5-shot", "lm-eval, its best batch size", 5, *mmlu_case(5), same_answers, extra=True
    ),
    "mmlu_0shot": Case(
        "MMLU, 0-shot", "lm-eval, its best batch size", 2, *mmlu_case(0), same_answers, extra=True
    ),
    "facts": Case(
        "facts and multiple choice", "Hugging Face, batches of 16, full logits", 3,
        facts_ours, facts_theirs, close("logp", 1e-3),
    ),
    "causal_tracing": Case(
        "causal tracing, all units", "TransformerLens, one forward a site", 3,
        tracing_ours, tracing_theirs, close("score", 1e-2),
    ),
    "attribution_patching": Case(
        "attribution patching", "TransformerLens, a loop over prompts", 2,
        attribution_ours, attribution_theirs, close("score", 1e-2), memory=0.5,
    ),
    "finetune_step": Case(
        "one fine-tuning step, manual", "three terms, padded 4 x 16, full logits", 2,
        step_ours, step_theirs, same_step,
    ),
    "mask_step": Case(
        "one step of a mask, manual", "torch's parametrizations, three terms, padded 4 x 16, full logits", 1,
        mask_ours, mask_theirs, same_step,
    ),
    "relearning_step": Case(
        "one relearning step, LoRA", "three terms, padded 4 x 16, full logits", 1,
        relearn_ours, relearn_theirs, same_step,
    ),
    "mask_sweep": Case(
        "mask sweep, 13 sizes", "reload, mask, evaluate each", 3,
        sweep_ours, sweep_theirs, close("logits", 1e-3),
    ),
    "probes": Case(
        "probes, all layers and sports", "scikit-learn, one by one", 3,
        probes_ours, probes_theirs, same_predictions,
    ),
}  # fmt: skip
