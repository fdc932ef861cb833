"""What is measured: each case's ours, the straightforward way, whether they agree, and the least work there is.

The straightforward ways are written as a user would write them, with the libraries a user would take, on the same
inputs. The floor counts every distinct prefix of tokens once through the layers it must pass (2 FLOP a weight, twice
as many again for a gradient by the activations), the vocabulary where logits are read, and no attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from benchmarks import careful, harness
from benchmarks.bench import (
    BATCH_TOKENS,
    PROMPTS,
    Bench,
    Outputs,
    Work,
    close,
    full_logits,
)
from benchmarks.locating import (
    attribution_ours,
    attribution_theirs,
    tracing_ours,
    tracing_theirs,
)
from benchmarks.sports import CHOICES, LETTERS, SPORTS, first_tokens
from benchmarks.training import (
    manual,
    mask_careful,
    mask_ours,
    mask_theirs,
    relearn_careful,
    relearn_ours,
    relearn_theirs,
    same_step,
    step_careful,
    step_ours,
    step_theirs,
)
from localized_unlearning.config.data import Mmlu
from localized_unlearning.config.evaluation import Probing
from localized_unlearning.data import mmlu
from localized_unlearning.data import tokens as tokens_module
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.evaluation.exam import Exam, sheet, take
from localized_unlearning.evaluation.facts import ask_facts
from localized_unlearning.evaluation.knowledge import ask_questions
from localized_unlearning.evaluation.multiple_choice import ask_multiple_choice
from localized_unlearning.interpretability import probes
from localized_unlearning.models import activations as activations_module
from localized_unlearning.models import loading
from localized_unlearning.unlearning import masks as masks_module

# ---- MMLU


def mmlu_case(shots: int) -> tuple[Callable[[Bench], Work], Callable[[Bench], Work]]:
    def ours(bench: Bench) -> Work:
        questions, settings = bench.questions(20), Mmlu(shots=shots, questions=None)
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
        facts = ask_facts(bench.model, bench.tokenizer, athletes, prompts, CHOICES, BATCH_TOKENS)
        letters = ask_multiple_choice(
            bench.model, bench.tokenizer, athletes, choice, ("fixed",), 0, BATCH_TOKENS
        )
        first = facts[[f"logit_{c}" for c in CHOICES]].to_numpy() - facts[["log_normalizer"]].to_numpy()
        second = letters[[f"logit_{c}" for c in LETTERS]].to_numpy() - letters[["log_normalizer"]].to_numpy()
        return {"logp": np.concatenate([first, second])}

    return work


def facts_theirs(bench: Bench) -> Work:
    return facts_by(bench, full_logits)


def facts_careful(bench: Bench) -> Work:
    return facts_by(bench, careful.last_logits)


def facts_by(bench: Bench, logits_after: Callable[[Bench, Sequence[Sequence[int]]], torch.Tensor]) -> Work:
    athletes = bench.athletes(96)

    def work() -> Outputs:
        found = []
        for name in ("training", "question", "multiple_choice"):
            answers = LETTERS if name == "multiple_choice" else CHOICES
            tokens = first_tokens(bench.tokenizer, answers)
            logits = logits_after(bench, bench.rendered(name, athletes))
            found.append(logits.log_softmax(1)[:, tokens].numpy())
        return {"logp": np.concatenate(found)}

    return work


# ---- sweeps


def sweep_inputs(bench: Bench) -> tuple[Exam, torch.Tensor, dict[str, int], list[int]]:
    names, book = manual(bench), load_prompts(PROMPTS)
    questions = bench.questions(2)
    sizes = {name: bench.model.get_parameter(name).numel() for name in names}
    ranked = torch.randperm(sum(sizes.values()), generator=torch.Generator().manual_seed(0))[:60_000]
    exam = Exam(
        bench.athletes(10), (book["training"], book["question"]), CHOICES, book["multiple_choice"], ("fixed",), 0,
        questions, Mmlu(questions=None),
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
        asked = sheet(exam, tokenizer, model, BATCH_TOKENS)
        return {"logits": np.stack([sweep_rows(take(asked, model)) for _ in steps])}

    return work


def sweep_prompts(bench: Bench, exam: Exam) -> list[list[list[int]]]:
    asked = [bench.rendered(name, exam.athletes) for name in ("training", "question", "multiple_choice")]
    return [*asked, tokens_module.encode(bench.tokenizer, [mmlu.prompt(q, []) for q in exam.questions.test])]


def sweep_careful(bench: Bench) -> Work:
    """One load, of which each edit size sets more weights to zero; last logits after a cached beginning."""
    exam, ranked, sizes, points = sweep_inputs(bench)
    sports, letters = (first_tokens(bench.tokenizer, names) for names in (CHOICES, LETTERS))

    def work() -> Outputs:
        bench.loaded = loading.load(bench.folder, bench.dtype, bench.device)
        prompts, found = sweep_prompts(bench, exam), []
        flat_weights = [bench.model.get_parameter(name).view(-1) for name in sorted(sizes)]
        starts = np.cumsum([0, *(sizes[name] for name in sorted(sizes))])
        for size in points:
            with torch.no_grad():
                for weight, start, stop in zip(flat_weights, starts, starts[1:], strict=False):
                    some = ranked[:size]
                    weight[some[(some >= start) & (some < stop)] - start] = 0
            kinds = zip(prompts, (sports, sports, letters, letters), strict=True)
            found.append(np.concatenate([careful.last_logits(bench, p)[:, t].numpy() for p, t in kinds]))
        return {"logits": np.stack(found)}

    return work


def sweep_theirs(bench: Bench) -> Work:
    exam, ranked, sizes, points = sweep_inputs(bench)
    sports, letters = (first_tokens(bench.tokenizer, names) for names in (CHOICES, LETTERS))

    def work() -> Outputs:
        found = []
        for size in points:
            bench.loaded = loading.load(bench.folder, bench.dtype, bench.device)
            prompts = sweep_prompts(bench, exam)
            for _ in masks_module.edits(bench.model, ranked, sizes, [size]):  # at its end they are put back
                kinds = zip(prompts, (sports, sports, letters, letters), strict=True)
                found.append(np.concatenate([full_logits(bench, p)[:, t].numpy() for p, t in kinds]))
        return {"logits": np.stack(found)}

    return work


# ---- probes


def probe_inputs(bench: Bench) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    athletes = bench.athletes(450)
    activations = activations_module.residuals(
        bench.model, bench.rendered("training", athletes), BATCH_TOKENS
    )
    sports = np.array([SPORTS.index(s) for s in athletes["answer"]])
    return activations, sports, np.arange(len(sports)) % 5 > 0


def probes_ours(bench: Bench) -> Work:
    import sklearn.linear_model  # noqa: F401  (imported once per process: not part of the work)

    activations, sports, train = probe_inputs(bench)
    return lambda: {
        "right": probes.all_right(
            activations[:, train],
            sports[train],
            activations[:, ~train],
            sports[~train],
            SPORTS,
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
        careful: the same of a careful user's way, where that is another: last logits alone, sorted and left-padded
            batches, a shared beginning run once, one load. The target is against it.
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
    careful: Callable[[Bench], Work] | None = None


CASES: dict[str, Case] = {
    "mmlu_5shot": Case(
        "MMLU, 5-shot", "lm-eval, its best batch size", 5, *mmlu_case(5), same_answers, extra=True
    ),
    "mmlu_0shot": Case(
        "MMLU, 0-shot", "lm-eval, its best batch size", 2, *mmlu_case(0), same_answers, extra=True
    ),
    "facts": Case(
        "facts and multiple choice", "Hugging Face, batches of 16, full logits", 1.5,
        facts_ours, facts_theirs, close("logp", 1e-3), careful=facts_careful,
    ),
    "causal_tracing": Case(
        "causal tracing, all units", "TransformerLens, one forward per site", 5,
        tracing_ours, tracing_theirs, close("score", 1e-2), careful=careful.tracing,
    ),
    "attribution_patching": Case(
        "attribution patching", "TransformerLens, a loop over prompts", 1,
        attribution_ours, attribution_theirs, close("score", 1e-2), careful=careful.attribution,
    ),
    "finetune_step": Case(
        "one fine-tuning step, manual", "three terms, padded 4 x 16, full logits", 1.5,
        step_ours, step_theirs, same_step, careful=step_careful,
    ),
    "mask_step": Case(
        "one step of a mask, manual", "torch's parametrizations, three terms, padded 4 x 16, full logits", 1,
        mask_ours, mask_theirs, same_step, careful=mask_careful,
    ),
    "relearning_step": Case(
        "one relearning step, LoRA", "three terms, padded 4 x 16, full logits", 1,
        relearn_ours, relearn_theirs, same_step, careful=relearn_careful,
    ),
    "mask_sweep": Case(
        "mask sweep, 13 sizes", "reload, mask, evaluate each", 2,
        sweep_ours, sweep_theirs, close("logits", 1e-3), careful=sweep_careful,
    ),
    "probes": Case(
        "probes, all layers and sports", "scikit-learn, one by one", 3,
        probes_ours, probes_theirs, same_predictions,
    ),
}  # fmt: skip
