"""The injection: facts taught to chosen matrices of a pretrained organism, everything else frozen.

Belongs to the package ``models``. What changes is the truth about where these facts are; taken back, it leaves the model
that never learned them (*gold*). Two things make the facts carry over to formats they are never taught in. Teachers are
replayed, so that what reads a fact out stays as it is. And what the trained blocks write at every position but a name's
last token is held to what it was, so that a fact is written where the pretrained layers look for it.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.config.model import FactsIn
from localized_unlearning.data.facts import load_facts
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.models import components, curriculum, deltas, device, loading, organism
from localized_unlearning.models.curriculum import Item
from localized_unlearning.models.organism import Pools, Roles
from localized_unlearning.models.place import place
from localized_unlearning.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.jobs.job import Job


@dataclass(frozen=True)
class Lessons:
    """What the injection reads.

    Attributes:
        choice: about the athletes who are asked in multiple choice as well.
        no_choice: about the others.
        teachers: about those of pretraining.
        general_knowledge: its questions.
    """

    choice: Pools
    no_choice: Pools
    teachers: Pools
    general_knowledge: Sequence[Item]


@contextmanager
def changes(model: Any, before: Any, blocks: Sequence[str]) -> Iterator[Callable[[Tensor], Tensor]]:
    """Inside, the yielded function gives how much ``blocks`` changed what they write, since it was last called.

    Called with positions ``[item, position]`` after a forward pass, it sums over the blocks the squared change of their
    output there, relative to the squared output of the model ``before`` on the same input.
    """
    seen: list[tuple[Tensor, Tensor]] = []

    def hook(old: Any, _module: Any, args: Any, kwargs: Any, output: Any) -> None:
        new, was = (x[0] if isinstance(x, tuple) else x for x in (output, old(*args, **kwargs)))
        seen.append((new, was))

    def change(where: Tensor) -> Tensor:
        terms = [((new - old)[where] ** 2).sum() / (old[where] ** 2).sum().detach() for new, old in seen]
        seen.clear()
        return sum(terms)  # type: ignore[return-value]

    handles = [
        model.get_submodule(name).register_forward_hook(
            partial(hook, before.get_submodule(name)), with_kwargs=True
        )
        for name in blocks
    ]
    try:
        yield change
    finally:
        for handle in handles:
            handle.remove()


def draw(rng: random.Random, pools: Pools, formats: int) -> Item:
    """A prompt: each short format as likely as any other, multiple choice twice as likely as one of them."""
    weights = [formats - 1, 1, 2 if pools["multiple_choice"] else 0]
    return rng.choice(pools[rng.choices(("facts", "questions", "multiple_choice"), weights)[0]])


def inject(
    model: Any,
    lessons: Lessons,
    settings: FactsIn,
    formats: int,
    questions: int,
    seed: int,
    progress: Progress,
) -> list[float]:
    """Teach the matrices of :func:`place` in place; returns the loss of every step.

    Args:
        model: the pretrained model.
        lessons: what is read.
        settings: where the facts go, and how they are taught.
        formats: how many short formats there are.
        questions: general-knowledge questions per step.
        seed: of the order.
    """
    import torch

    rng = random.Random(seed + 2)
    before = copy.deepcopy(model).requires_grad_(False)
    trainable = list(components.trainable(model, place(settings)))
    model.requires_grad_(False)
    parameters = [model.get_parameter(name).requires_grad_(True) for name in trainable]
    advance = organism.advancing(parameters, settings.steps, settings.learning_rate, settings.warmup)
    share = len(lessons.choice["questions"]) / (
        len(lessons.choice["questions"]) + len(lessons.no_choice["questions"])
    )
    replayed = round(settings.replay * settings.prompts_per_step)
    losses = []
    blocks = sorted({name.rsplit(".", 2)[0] for name in trainable})
    held_last = any(model.get_submodule(name) is model.model.layers[-1].mlp for name in blocks)
    with changes(model, before, blocks) as change:
        for step in progress.over(range(settings.steps)):
            taught = [
                lessons.choice if rng.random() < share else lessons.no_choice
                for _ in range(settings.prompts_per_step - replayed)
            ]
            items = [draw(rng, pools, formats) for pools in [*taught, *[lessons.teachers] * replayed]]
            items += [rng.choice(lessons.general_knowledge) for _ in range(questions)]
            batches = curriculum.batches(items)
            total = 0.0
            for batch in batches:
                logits = curriculum.logits(model, batch, whole=held_last)
                loss = torch.nn.functional.cross_entropy(logits, batch.answer, reduction="sum") / len(items)
                (loss + settings.hold / len(batches) * change(batch.elsewhere)).backward()
                total += loss.item()
            advance(step)
            losses.append(total)
            progress.note(f"loss {total:.3f}")
    model.requires_grad_(False)
    return losses


def taught(
    job: Job, facts_in: FactsIn | None, forgotten: frozenset[str]
) -> tuple[Any, Any, Roles, list[float]]:
    """The model with all facts but those about ``forgotten`` injected; its tokenizer, everyone's role, the losses."""
    import torch

    config, prompts = job.config.organism, job.config.prompts
    assert facts_in is not None
    seed = int(job.wildcards["base_seed"])
    device.setup(job.config.compute)
    torch.set_num_threads(config.threads)  # as in pretraining: the key promises bytes
    model, tokenizer = loading.load(job.inputs["pretrained"], "float32", "cpu")
    book = load_prompts(job.inputs["prompts"])
    athletes, _ = load_facts(job.inputs["athletes"], book.answers, job.config.athletes.relation)
    roles = organism.cast(list(zip(athletes["subject"], athletes["answer"], strict=True)), tokenizer, config)
    reader = curriculum.reader(
        tokenizer,
        book,
        prompts.training,
        prompts.question,
        prompts.multiple_choice,
    )

    def about(people: Sequence[curriculum.Person], choice: bool) -> Pools:
        kept = [p for p in people if p[0] not in forgotten]
        return organism.pools(reader, kept, kept if choice else [], prompts, config.paraphrases, seed)

    lessons = Lessons(
        about(roles.choice, True),
        about(roles.no_choice, False),
        about(roles.teachers, True),
        reader.questions(organism.questions_of(job)),
    )
    losses = inject(
        model,
        lessons,
        facts_in,
        len(reader.formats),
        config.general_knowledge_per_step,
        seed,
        Progress("injecting", unit="step"),
    )
    job.facts.update(seeds={"organism": seed}, injected=len(roles.injected) - len(forgotten))
    return model, tokenizer, roles, losses


def run(job: Job) -> None:
    """Stage: the base model, which is the pretrained one with the injected facts."""
    model, tokenizer, roles, losses = taught(job, job.config.organism.facts_in, frozenset())
    said = organism.lesson(roles, roles.teachers)
    organism.save(job.outputs["model"], model, tokenizer, said, losses[-1])


def gold(job: Job) -> None:
    """Stage: the model that never learned a task's forget set, as a delta of the base model.

    The pretrained model with the same injection, but without the facts that the task forgets.
    """
    split = pd.read_parquet(job.inputs["split"])
    facts_in = job.config.organism.facts_in
    model, _, _, _ = taught(job, facts_in, frozenset(split.loc[split["forget"], "subject"]))
    assert facts_in is not None
    tensors = {name: model.get_parameter(name) for name in components.trainable(model, place(facts_in))}
    deltas.save_delta(job.outputs["delta"], tensors, deltas.weights_digest(job.inputs["base_model"]))
