"""What a config names, beside what is there: prompts, layers, subjects and answers. Asked as soon as it is read.

Light: neither torch nor pandas. What is not there yet (weights, a source to fetch) is not asked about.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from localized_unlearning.config.data import Forget
from localized_unlearning.config.run import Config
from localized_unlearning.config.unlearning import RANDOM
from localized_unlearning.costs import sizes
from localized_unlearning.data.answers import unoffered
from localized_unlearning.data.plain import normalised, pairs_in
from localized_unlearning.data.prompts import PromptBook, load_prompts
from localized_unlearning.errors import UserError

SHOWN = 8
"""Names listed in a sentence at most."""


def faults(config: Config, places: sizes.Places) -> Iterator[str]:
    """Everything that the config names and that is not there, a sentence each."""
    book: PromptBook | None = None
    own = config.athletes.own_prompts is not None  # then a job makes both files
    try:
        book = None if own else load_prompts(Path(config.prompts.file))
    except UserError as error:
        yield str(error)
    if book is not None:
        yield from _prompts(config, book)
    if config.athletes.made_up_names and not Path(config.athletes.made_up_names).is_file():
        yield f"athletes.made_up_names is {config.athletes.made_up_names}, which does not exist: correct the path"
    shape, origin = sizes.find_shape(config, places)
    if not origin.startswith("assumed"):
        yield from _layers(config, shape)
        yield from _attacks(config, shape)
    source = config.athletes.source
    path = sizes.local_path(source, places.source("athletes.source"))
    rows = pairs_in(path, config.athletes.relation) if path is not None and not own else None
    if rows:
        yield from _facts(config, rows, book.answers if book is not None else ())
        choice = book.prompts.get(config.prompts.multiple_choice) if book is not None else None
        listed = set(book.answers) if book is not None else set()
        if choice is not None and choice.options and not choice.facts:
            found = {answer for _, answer in rows}
            fault = unoffered(choice.options, found & listed or found)
            if fault is not None:
                yield fault


def _listed(names: object) -> str:
    found = sorted(map(str, names))  # type: ignore[call-overload]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more


def _prompts(config: Config, book: PromptBook) -> Iterator[str]:
    own = config.prompts
    asked = {"prompts.training": own.training, "prompts.question": own.question}
    asked |= {f"evaluation.prompts ({name})": name for name in config.evaluation.prompts}
    for key, name in {**asked, "prompts.multiple_choice": own.multiple_choice}.items():
        if name not in book.prompts:
            yield f"{key} is '{name}', and {own.file} has no such prompt: name one of {_listed(book.prompts)}"
        elif key in asked and book[name].options:
            yield f"{key} is '{name}', which has options: name a prompt without"
        elif key not in asked and not book[name].options:
            yield f"{key} is '{name}', which has no options: give it some, or name another prompt"


def _layers(config: Config, shape: sizes.Shape) -> Iterator[str]:
    layers = shape.layers
    named = {
        f"localizations.{name}{part}": found.layers
        for name, chosen in config.localizations.items()
        if chosen is not None
        for part, found in (("", chosen), (".mask", chosen.mask))
        if found is not None and isinstance(found.layers, tuple)
    }
    for key, wanted in named.items():
        outside = [layer for layer in wanted if not 0 <= layer < layers]
        if outside:
            yield f"{key}.layers names layer {outside[0]}, and the model has layers 0 to {layers - 1}: correct it"
    for name, mechanism in config.overlap.mechanisms.items():
        outside = [layer for layer in (*mechanism.heads, *mechanism.mlps) if layer >= layers]
        late = [head for own in mechanism.heads.values() for head in own if head >= shape.heads]
        for what, found, there in (("layer", outside, layers), ("head", late, shape.heads)):
            if found:
                yield (
                    f"overlap.mechanisms.{name} names {what} {found[0]}, and the model has {what}s 0 to {there - 1}: "
                    "correct it"
                )
    end = config.interpretability.lookup_end
    if end >= layers:
        yield (
            f"interpretability.lookup_end is {end}, and the model has layers 0 to {layers - 1}: name the first layer past "
            "fact lookup"
        )


def _attacks(config: Config, shape: sizes.Shape) -> Iterator[str]:
    """What an attack that is to run asks of the model's size."""
    attacks = config.attacks
    late = [layer for layer in attacks.logit_lens.layers or () if layer >= shape.layers]
    if "logit_lens" in attacks.run and late:
        yield f"attacks.logit_lens.layers names layer {late[0]}, and the model has layers 0 to {shape.layers - 1}: correct it"
    group = attacks.quantization.group
    wide = [width for width in (shape.hidden, shape.mlp, shape.heads * shape.head_dim) if width % group]
    if "quantization" in attacks.run and wide:
        yield (
            f"attacks.quantization.group is {group}, which does not divide the {wide[0]} columns of a matrix of this model: "
            "choose a divisor"
        )


def _facts(config: Config, rows: list[tuple[str, str]], listed: tuple[str, ...]) -> Iterator[str]:
    subjects, answers = {subject for subject, _ in rows}, {answer for _, answer in rows}
    aliased = bool(listed) and not answers <= set(
        listed
    )  # what the file says is another name of one that is listed
    for name, task in config.tasks.items():
        if task is None:
            continue
        for key, forget in ((f"tasks.{name}.forget", task.forget), (f"tasks.{name}.exclude", task.exclude)):
            if forget is not None:
                yield from _forget(key, forget, subjects, {*answers, *listed} if aliased else answers)
        for absent in (s for s in task.relearn if normalised(s) not in subjects):
            yield f"tasks.{name}.relearn names '{absent}', which is no subject of the facts: correct it"
    for name, objective in config.objectives.items():
        target = objective.target if objective is not None else RANDOM
        candidates = listed or tuple(sorted(answers))
        if objective is not None and objective.loss == "inject" and target not in (RANDOM, *candidates):
            yield (
                f"objectives.{name}.target is '{target}', which is none of the answers: name one of {_listed(candidates)}, "
                f"or {RANDOM}"
            )


def _forget(key: str, forget: Forget, subjects: set[str], answers: set[str]) -> Iterator[str]:
    if forget.answer is not None and forget.answer not in answers:
        yield f"{key}.answer is '{forget.answer}', which no fact has: name one of {_listed(answers)}"
    for absent in (s for s in forget.athletes if normalised(s) not in subjects):
        yield f"{key} names '{absent}', which is no subject of the facts: check the spelling or the file"
    for what, count in (("draw", forget.draw), ("first", forget.first)):
        if count is not None and count >= len(subjects):
            yield f"{key}.{what} is {count}, and there are {len(subjects)} subjects: name fewer, so that some are retained"
