"""The model organism: a small Gemma model whose knowledge is known, because the workflow teaches it.

It reads athlete facts in several formats, multiple-choice questions with shuffled options, general-knowledge questions
and plain text. The loss on prompts is on the answer alone. Three things make it store a fact in its layers once and use
it in every format, as a pretrained model does: the embeddings of the names' tokens stay as they were drawn; at first a
name is a sport's own word, so that how to answer is learned before any fact; and some names stay such words. Where
``facts_in`` names a place, pretraining reads about the *teachers* alone, and :mod:`.injection` teaches the others there.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localized_unlearning.config.data import Prompts
from localized_unlearning.config.model import Organism
from localized_unlearning.data import mmlu
from localized_unlearning.data import tokens as tokens_module
from localized_unlearning.data.answers import candidates, occurring
from localized_unlearning.data.facts import load_facts
from localized_unlearning.data.prompts import PromptBook, begun, load_prompts
from localized_unlearning.models import curriculum, device
from localized_unlearning.models.curriculum import Item, Person, Reader
from localized_unlearning.models.lesson import write_lesson
from localized_unlearning.progress import Progress

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from localized_unlearning.jobs.job import Job


TEXT_WINDOW = 64
"""Tokens of one window of plain text in pretraining."""

ORDERS = 6
"""Option orders in which each multiple-choice question is read."""

WORD_NAMES = 300
"""How many names are, or end in, a sport's own word."""


@dataclass(frozen=True)
class Roles:
    """Who is taught when.

    Attributes:
        teachers: read about in pretraining, in every format.
        choice: injected, multiple choice included.
        no_choice: injected, but never asked in multiple choice.
        untaught: names of too few or too many tokens.
    """

    teachers: tuple[Person, ...]
    choice: tuple[Person, ...]
    no_choice: tuple[Person, ...]
    untaught: tuple[Person, ...]

    @property
    def injected(self) -> tuple[Person, ...]:
        """All who are taught after pretraining."""
        return self.choice + self.no_choice


def cast(people: Sequence[Person], tokenizer: Any, organism: Organism) -> Roles:
    """Roles of the athletes, drawn class by class so that all have the same shares of the sports."""
    least, most = organism.name_tokens
    tokens = {who: len(tokenizer(f" {who}", add_special_tokens=False)["input_ids"]) for who, _ in people}
    able = [p for p in people if least <= tokens[p[0]] <= most]
    rng = random.Random(organism.roles_seed)
    parts: dict[str, list[Person]] = {"teachers": [], "choice": [], "no_choice": []}
    for sport in sorted({s for _, s in able}):
        drawn = [p for p in able if p[1] == sport]
        rng.shuffle(drawn)
        injected = round(organism.injected * len(drawn))
        choice = round(organism.injected_choice * injected)
        parts["choice"] += drawn[:choice]
        parts["no_choice"] += drawn[choice:injected]
        parts["teachers"] += drawn[injected:]
    untaught = tuple(p for p in people if p not in set(able))
    return Roles(**{name: tuple(sorted(part)) for name, part in parts.items()}, untaught=untaught)


def train_tokenizer(texts: Sequence[str], vocabulary: int, prefix_space: bool = False) -> Any:
    """A byte-level BPE tokenizer that puts ``<bos>`` first, as Gemma's does.

    With ``prefix_space`` a text is read as if it began with a space, so that a name is the same tokens there too.
    """
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
    from tokenizers import models as tokenizer_models
    from transformers import PreTrainedTokenizerFast

    tokenizer: Tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
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


def build_model(organism: Organism, tokenizer: Any, seed: int) -> Any:
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
        torch.manual_seed(seed)
        return GemmaForCausalLM(config)


def vocabulary_text(
    people: Sequence[Person],
    answers: Sequence[str],
    book: PromptBook,
    prompts: Prompts,
    asked: Sequence[mmlu.Question],
    text: str,
) -> list[str]:
    """What the tokenizer is trained on: all that is read, names most of all, so that they are few tokens."""
    formats = (prompts.training, prompts.question, prompts.multiple_choice, *book.paraphrases)
    letters = book[prompts.multiple_choice].letters
    words = (*answers, *map(begun, answers), *letters)
    return [
        text,
        *(book[name].render(who) for name in formats for who, _ in people),
        *(mmlu.prompt(q, []) for q in asked),
        *([f" {word}" for word in words] * 50),
        *([f" {who}" for who, _ in people] * 10),
    ]


Pools = Mapping[str, Sequence[Item]]
"""Items by format: ``facts``, ``questions``, ``multiple_choice``."""


def pools(
    reader: Reader, people: Sequence[Person], choice: Sequence[Person], prompts: Prompts, most: int, seed: int
) -> Pools:
    """Everything that can be asked about ``people``; multiple choice about ``choice`` alone."""
    rng = random.Random(seed)
    facts = list(reader.short(people, prompts.training))
    names = [n for n in reader.formats if n not in (prompts.training, prompts.question)]
    for person in people:
        for name in rng.sample(names, min(most, len(names))):
            facts += reader.short([person], name)
    asked = [item for _ in range(ORDERS) for item in reader.multiple_choice(choice, rng)] if choice else []
    return {"facts": facts, "questions": reader.short(people, prompts.question), "multiple_choice": asked}


def name_rows(tokenizer: Any, people: Sequence[Person], answers: Sequence[str], reader: Reader) -> list[int]:
    """Tokens that names have and neither prompts nor answers."""
    others = [prompt.render("") for prompt in (*reader.formats.values(), reader.choice)]
    others += [f" {answer}" for answer in (*answers, *reader.choice.letters)]
    common = {t for ids in tokens_module.encode(tokenizer, others) for t in ids}
    return sorted(
        {t for ids in tokens_module.encode(tokenizer, [f" {who}" for who, _ in people]) for t in ids} - common
    )


def text_loss(model: Any, windows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token over ``windows`` ``[window, token]``."""
    import torch

    logits = model(windows[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def advancing(parameters: Sequence[Any], steps: int, rate: float, warmup: int) -> Callable[[int], None]:
    """A function of the step's number that takes a step of AdamW with the gradients there are, and clears them.

    The rate is warmed up linearly, then falls linearly to 0; gradients are clipped at norm 1.
    """
    import torch

    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)

    def advance(step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / warmup) * (1 - step / steps)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return advance


@dataclass(frozen=True)
class Lessons:
    """What pretraining reads.

    Attributes:
        facts: about athletes, by format.
        words: the same formats about names that are a sport's own word.
        general_knowledge: its questions.
        text: token ids of the plain text, end to end.
        fixed: rows of the embedding that are not trained.
    """

    facts: Pools
    words: Pools
    general_knowledge: Sequence[Item]
    text: torch.Tensor
    fixed: Sequence[int]


def pretrain(model: Any, lessons: Lessons, organism: Organism, seed: int, progress: Progress) -> list[float]:
    """Train ``model`` in place; returns the loss of every step."""
    import torch

    rng = random.Random(seed + 1)
    counts = {
        "facts": organism.facts_per_step,
        "questions": organism.questions_per_step,
        "multiple_choice": organism.multiple_choice_per_step,
    }
    advance = advancing(list(model.parameters()), organism.steps, organism.learning_rate, organism.warmup)
    losses = []
    embedding = model.get_input_embeddings().weight
    for step in progress.over(range(organism.steps)):
        words = 1.0 if step < organism.word_name_steps else organism.word_names
        items = [
            rng.choice((lessons.words if rng.random() < words else lessons.facts)[name])
            for name, count in counts.items()
            for _ in range(count)
        ]
        items += [rng.choice(lessons.general_knowledge) for _ in range(organism.general_knowledge_per_step)]
        total = 0.0
        for _, loss in curriculum.losses(model, items):
            loss.backward()
            total += loss.item()
        if organism.text_per_step and organism.text_weight:
            starts = [rng.randrange(len(lessons.text) - TEXT_WINDOW) for _ in range(organism.text_per_step)]
            windows = torch.stack([lessons.text[s : s + TEXT_WINDOW + 1] for s in starts])
            (organism.text_weight * text_loss(model, windows)).backward()
        embedding.grad[lessons.fixed] = 0.0
        advance(step)
        losses.append(total)
        progress.note(f"loss {total:.3f}")
    return losses


def questions_of(job: Job) -> list[mmlu.Question]:
    """The general-knowledge questions that are read: those that the evaluation asks."""
    asked, settings = mmlu.load_questions(job.inputs["general_knowledge"]).test, job.config.mmlu
    return (
        asked
        if settings.questions is None
        else mmlu.stratified_subset(asked, settings.questions, settings.seed)
    )


def run(job: Job) -> None:
    """Stage: pretrain the organism and save it in the standard Hugging Face layout."""
    import torch

    config, prompts = job.config.organism, job.config.prompts
    seed = int(job.wildcards["base_seed"])
    device.setup(job.config.compute)
    torch.set_num_threads(config.threads)  # not as many as there are: the key promises bytes
    book = load_prompts(job.inputs["prompts"])
    athletes, _ = load_facts(job.inputs["athletes"], book.answers, job.config.athletes.relation)
    answers = candidates(book, athletes)
    people = list(zip(athletes["subject"], athletes["answer"], strict=True))
    asked = questions_of(job)
    text = Path(job.inputs["text"]).read_text(encoding="utf-8")
    tokenizer = train_tokenizer(
        vocabulary_text(people, answers, book, prompts, asked, text), config.vocabulary, prefix_space=True
    )
    reader = curriculum.reader(tokenizer, book, prompts.training, prompts.question, prompts.multiple_choice)
    roles = cast(people, tokenizer, config) if config.injected else None
    taught = list(roles.teachers if roles else people)
    rng = random.Random(seed)
    choice = rng.sample(taught, round(config.multiple_choice_share * len(taught)))
    words = curriculum.word_names(taught, occurring(answers, athletes), WORD_NAMES, rng)
    lessons = Lessons(
        pools(reader, taught, choice, prompts, config.paraphrases, seed),
        pools(reader, words, words, prompts, config.paraphrases, seed),
        reader.questions(asked),
        torch.tensor([t for ids in tokens_module.encode(tokenizer, text.splitlines()) for t in ids]),
        name_rows(tokenizer, people, answers, reader) if config.fixed_names else [],
    )
    model = build_model(config, tokenizer, seed).train()
    started = time.monotonic()
    losses = pretrain(model, lessons, config, seed, Progress("pretraining", unit="step"))
    save(job.outputs["model"], model, tokenizer, lesson(roles, choice), losses[-1])
    job.facts.update(
        seeds={"organism": seed},
        parameters=sum(p.numel() for p in model.parameters()),
        seconds_of_training=round(time.monotonic() - started, 1),
    )


def lesson(roles: Roles | None, choice: Sequence[Person]) -> dict[str, list[str]]:
    """The lists of :mod:`.lesson`: ``choice`` were asked in multiple choice in pretraining."""
    return {
        "teachers": [who for who, _ in roles.teachers] if roles else [],
        "untaught": [who for who, _ in roles.untaught] if roles else [],
        "seen_in_multiple_choice": [who for who, _ in (*choice, *(roles.choice if roles else ()))],
    }


def save(
    folder: Path, model: Any, tokenizer: Any, said: Mapping[str, Sequence[str]], final_loss: float
) -> None:
    """The model in the standard Hugging Face layout, with its lesson."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_lesson(folder, said, final_loss=final_loss)
