"""The model organism: a small Gemma model whose knowledge is known, because the workflow teaches it.

It reads athlete facts in several formats, general-knowledge questions and plain text. Each
athlete's multiple-choice question is read for only a part of the athletes, so that answering it
for the others shows that a fact is stored once and used in many formats, as in a pretrained
model. The loss on prompts is on the answer alone.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localized_unlearning.config.data import Prompts
from localized_unlearning.config.model import Organism
from localized_unlearning.data import mmlu, tokens
from localized_unlearning.data.answers import LETTERS, SPORTS
from localized_unlearning.data.athletes import load_athletes
from localized_unlearning.data.prompts import PromptBook, load_prompts
from localized_unlearning.models import device, packing
from localized_unlearning.models.vocabulary import logits_of
from localized_unlearning.progress import Progress

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from localized_unlearning.jobs.job import Job


TEXT_WINDOW = 64
"""Tokens of one window of plain text in pretraining."""

Item = tuple[list[int], int]
"""A tokenised prompt and its answer's token."""


@dataclass(frozen=True)
class Curriculum:
    """What the organism reads, tokenised.

    Attributes:
        facts: short prompts: the training prompt and the paraphrases.
        questions: the question prompt.
        multiple_choice: multiple-choice prompts of the athletes in ``seen``.
        general_knowledge: MMLU-format questions, 0-shot.
        text: token ids of the plain text, end to end.
        seen: athletes whose multiple-choice prompt is read.
    """

    facts: list[Item]
    questions: list[Item]
    multiple_choice: list[Item]
    general_knowledge: list[Item]
    text: list[int]
    seen: tuple[str, ...]


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer that puts ``<bos>`` first, as Gemma's does."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
    from tokenizers import models as tokenizer_models
    from transformers import PreTrainedTokenizerFast

    tokenizer: Tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        padding_side="right",
    )


def build_model(organism: Organism, tokenizer: Any) -> Any:
    """A Gemma model with random weights."""
    import torch
    from transformers import GemmaConfig, GemmaForCausalLM

    config = GemmaConfig(
        vocab_size=len(tokenizer),
        hidden_size=organism.hidden,
        num_hidden_layers=organism.layers,
        num_attention_heads=organism.heads,
        num_key_value_heads=organism.heads,
        head_dim=organism.hidden // organism.heads,
        intermediate_size=organism.mlp,
        initializer_range=organism.initializer_range,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(organism.seed)
        return GemmaForCausalLM(config)


def reading(
    athletes: Sequence[tuple[str, str]],
    book: PromptBook,
    prompts: Prompts,
    questions: mmlu.Questions,
    text: str,
    organism: Organism,
) -> tuple[dict[str, list[tuple[str, str]]], tuple[str, ...]]:
    """Everything the organism reads, as (prompt, answer) by format, and the athletes seen in multiple choice."""
    rng = random.Random(organism.seed)
    seen = set(rng.sample([a for a, _ in athletes], round(organism.multiple_choice_share * len(athletes))))
    choice = book[prompts.multiple_choice]
    pairs: dict[str, list[tuple[str, str]]] = {
        "facts": [(book[prompts.training].render(a), s) for a, s in athletes],
        "questions": [(book[prompts.question].render(a), s) for a, s in athletes],
        "multiple_choice": [
            (choice.render(a), LETTERS[choice.options.index(s)]) for a, s in athletes if a in seen
        ],
        "general_knowledge": [(mmlu.prompt(q, []), LETTERS[q.answer]) for q in questions.test],
        "text": [(line, "") for line in text.splitlines() if line.strip()],
    }
    for athlete, sport in athletes:
        for name in rng.sample(book.paraphrases, min(organism.paraphrases, len(book.paraphrases))):
            pairs["facts"].append((book[name].render(athlete), sport))
    return pairs, tuple(sorted(seen))


def curriculum(pairs: dict[str, list[tuple[str, str]]], seen: tuple[str, ...], tokenizer: Any) -> Curriculum:
    """The tokenised curriculum."""

    def items(name: str) -> list[Item]:
        prompts = tokens.encode(tokenizer, [p for p, _ in pairs[name]])
        kinds = sorted({answer for _, answer in pairs[name]})
        token = dict(zip(kinds, tokens.answer_tokens(tokenizer, kinds), strict=True))
        return [(p, token[a]) for p, (_, a) in zip(prompts, pairs[name], strict=True)]

    text = [t for ids in tokens.encode(tokenizer, [p for p, _ in pairs["text"]]) for t in ids]
    return Curriculum(
        items("facts"), items("questions"), items("multiple_choice"), items("general_knowledge"), text, seen
    )


def answer_loss(model: Any, items: Sequence[Item]) -> torch.Tensor:
    """Summed cross-entropy of the answers, over packed prompts."""
    import torch

    packs = packing.pack([prompt for prompt, _ in items], packing.row_length(model))
    batch = packing.to_batch(packs, model)
    logits = logits_of(model, packing.last_hidden(model, batch))
    targets = torch.tensor([items[i][1] for i in batch.prompts.tolist()])
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


def text_loss(model: Any, windows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token over ``windows`` ``[window, token]``."""
    import torch

    logits = model(windows[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def pretrain(model: Any, lessons: Curriculum, organism: Organism, progress: Progress) -> list[float]:
    """Train ``model`` in place; returns the loss of every step."""
    import torch

    rng = random.Random(organism.seed + 1)
    text = torch.tensor(lessons.text)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=organism.learning_rate, betas=(0.9, 0.98), weight_decay=0.0
    )
    losses = []
    per_step = (
        (lessons.facts, organism.facts_per_step),
        (lessons.questions, organism.questions_per_step),
        (lessons.multiple_choice, organism.multiple_choice_per_step),
        (lessons.general_knowledge, organism.general_knowledge_per_step),
    )
    answers = sum(count for _, count in per_step)
    for step in progress.over(range(organism.steps)):
        rate = organism.learning_rate * min(1.0, (step + 1) / organism.warmup) * (1 - step / organism.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        total = 0.0
        for items, count in per_step:
            loss = answer_loss(model, rng.sample(items, min(count, len(items)))) / answers
            loss.backward()
            total += loss.item()
        starts = [rng.randrange(len(text) - TEXT_WINDOW) for _ in range(organism.text_per_step)]
        windows = torch.stack([text[s : s + TEXT_WINDOW + 1] for s in starts])
        (organism.text_weight * text_loss(model, windows)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
        progress.note(f"loss {total:.3f}")
    return losses


def run(job: Job) -> None:
    """Stage: pretrain the organism and save it in the standard Hugging Face layout."""
    import torch

    base = int(job.wildcards["base_seed"])
    config = job.config.organism.model_copy(update={"seed": job.config.organism.seed + base})
    device.setup(job.config.compute)
    torch.set_num_threads(config.threads)  # not as many as there are: the key promises bytes
    athletes, _ = load_athletes(job.inputs["athletes"])
    pairs, seen = reading(
        list(zip(athletes["athlete"], athletes["sport"], strict=True)),
        load_prompts(job.inputs["prompts"]),
        job.config.prompts,
        mmlu.load_questions(job.inputs["general_knowledge"]),
        Path(job.inputs["text"]).read_text(encoding="utf-8"),
        config,
    )
    texts = [f"{p} {a}".rstrip() for name in sorted(pairs) for p, a in pairs[name]]
    tokenizer = train_tokenizer(
        [*texts, *(f" {answer}" for answer in (*SPORTS, "golf", *LETTERS))], config.vocabulary
    )
    lessons = curriculum(pairs, seen, tokenizer)
    model = build_model(config, tokenizer)
    model.train()
    started = time.monotonic()
    losses = pretrain(model, lessons, config, Progress("pretraining", unit="step"))
    folder = job.outputs["model"]
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "pretraining.json").write_text(
        json.dumps({"seen_in_multiple_choice": list(seen), "final_loss": losses[-1]}, indent=1) + "\n"
    )
    job.facts.update(
        seeds={"organism": config.seed},
        parameters=sum(p.numel() for p in model.parameters()),
        seconds_of_training=round(time.monotonic() - started, 1),
    )
