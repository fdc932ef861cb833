"""Clean and corrupted prompts, and what is measured on them (section 2.3)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localized_unlearning.data import tokens
from localized_unlearning.data.plain import normalised
from localized_unlearning.data.prompts import NAME, WRONG, Prompt
from localized_unlearning.errors import UserError
from localized_unlearning.models import packing
from localized_unlearning.models.vocabulary import logits_of

if TYPE_CHECKING:
    from torch import Tensor


FIRST_NAMES = [
    "Alden",
    "Basil",
    "Corwin",
    "Dorian",
    "Elric",
    "Fenton",
    "Gideon",
    "Hollis",
    "Idris",
    "Jorah",
    "Kelvin",
    "Lorcan",
    "Merrick",
    "Nolan",
    "Orrin",
    "Percy",
    "Quentin",
    "Roderick",
    "Silas",
    "Tobias",
    "Ulric",
    "Vernon",
    "Wendell",
    "Xavier",
    "Yorick",
    "Zachary",
    "Ambrose",
    "Bertram",
    "Cedric",
    "Desmond",
    "Edmund",
    "Felix",
    "Gareth",
    "Harold",
    "Ivor",
    "Jasper",
]

LAST_NAMES = [
    "Ashdown",
    "Birchall",
    "Coldwell",
    "Dunmore",
    "Eastbrook",
    "Fairholm",
    "Greystone",
    "Hartwick",
    "Inglewood",
    "Jessop",
    "Kirkham",
    "Longmire",
    "Marchbank",
    "Netherton",
    "Oakshott",
    "Penhale",
    "Quillfeather",
    "Ravenhill",
    "Stanhope",
    "Thornbury",
    "Underhill",
    "Vexley",
    "Whitlock",
    "Yarborough",
    "Zimmer",
    "Applegate",
    "Brackenbury",
    "Cranleigh",
    "Dovecote",
    "Elderwood",
    "Foxglove",
    "Gillespie",
    "Holloway",
    "Ironside",
    "Juniper",
    "Kettleburn",
]
"""Parts of made-up names; no pair of them is a known athlete."""


@dataclass(frozen=True)
class Pairs:
    """Clean and corrupt prompts of equal length.

    Attributes:
        clean, corrupt: token ids, one list per prompt.
        subject: positions of the whole name ``(start, stop)`` in both.
        answer: index of the right answer in ``choices`` ``[prompt]``.
        choices: first token of each candidate answer, each once.
        names: whom each pair is about.
        skipped: subjects without a pair, since no made-up name has as many tokens.
        against: index of the answer that the right one is compared with ``[prompt]``; none: all others.
    """

    clean: list[list[int]]
    corrupt: list[list[int]]
    subject: list[tuple[int, int]]
    answer: list[int]
    choices: list[int]
    names: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    against: tuple[int, ...] = ()


@dataclass(frozen=True)
class _MadeUp:
    """A prompt with made-up names, by its length in tokens, and how many tokens they all have before and after the name."""

    by_length: dict[int, list[list[int]]]
    before: int
    after: int


def names_of_people() -> list[str]:
    """Made-up names of people, of one to three parts."""
    names = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
    names += [
        f"{first} {middle} {last}"
        for first, middle, last in zip(FIRST_NAMES, FIRST_NAMES[1:], LAST_NAMES, strict=False)
    ]
    names += [*LAST_NAMES, *FIRST_NAMES]
    return names


def read_names(path: Path | None) -> list[str]:
    """The made-up subjects of a file, one per line; none without a file.

    Raises:
        UserError: when it holds fewer than two, or is no text.
    """
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the made-up names {path} cannot be read ({error}): give text in UTF-8") from None
    names = list(dict.fromkeys(name for name in map(normalised, lines) if name))
    if len(names) < 2:
        raise UserError(f"{path} holds {len(names)} made-up names: give at least two, one per line")
    return names


def make_pairs(
    athletes: Sequence[tuple[str, str]],
    prompt: Prompt,
    answers: Sequence[str],
    tokenizer: Any,
    seed: int,
    guess: Callable[[list[list[int]]], Sequence[int]] | None = None,
    made_up: Sequence[str] = (),
) -> Pairs:
    """Pairs for ``athletes`` (name, sport), with made-up names drawn for equal token length.

    Args:
        athletes: names and sports.
        prompt: the prompt about a name.
        answers: the candidate answers.
        tokenizer: the model's.
        seed: of the draw.
        guess: the model's choice after each of some prompts, as an index into ``choices``. With it, a made-up name
            after which the model says the athlete's own sport is replaced by another of its length, for such a pair
            shows nothing; it stays where no other name is left.
        made_up: subjects that nobody knows; none: :func:`names_of_people`.

    Raises:
        UserError: when the tokenizer gives no made-up name of any subject's length.
    """

    rng = random.Random(seed)
    subjects = [a for a, _ in athletes]
    choices, said = choices_of(tokenizer, prompt, subjects, answers)
    texts = [prompt.render(a) for a in subjects]
    begun = common_beginning(prompt, tokens.spelled_by(tokenizer, prompt, subjects, texts, answers))
    clean = [[*ids, *begun] for ids in tokens.asked(tokenizer, prompt, texts)]
    names = list(made_up or names_of_people())
    rng.shuffle(names)
    if prompt.facts:  # every fact has a text of its own
        made = [_made_up(tokenizer, prompt, _without(prompt, a), names[:OWN_NAMES]) for a in subjects]
    else:
        made = [_made_up(tokenizer, prompt, prompt.render, names, begun)] * len(subjects)
    kept = [
        index
        for index, (ids, own) in enumerate(zip(clean, made, strict=True))
        if any(other != ids for other in own.by_length.get(len(ids), ()))
    ]
    skipped = tuple(name for index, name in enumerate(subjects) if index not in set(kept))
    if not kept:
        raise UserError(
            f"no made-up name has as many tokens as '{skipped[0]}' or any other subject in this tokenizer: "
            "give names of such lengths in a file (athletes.made_up_names)"
        )
    clean, made, said = [clean[i] for i in kept], [made[i] for i in kept], [said[i] for i in kept]
    answer = [own[answers.index(athletes[i][1])] for i, own in zip(kept, said, strict=True)]
    others = [own.by_length[len(ids)] for ids, own in zip(clean, made, strict=True)]
    corrupt = [rng.choice([o for o in same if o != ids]) for ids, same in zip(clean, others, strict=True)]
    if guess is not None:
        corrupt = _replaced(clean, corrupt, answer, others, guess, rng)
    subject = []
    for ids, other, own in zip(clean, corrupt, made, strict=True):
        start, end = packing.shared_beginning(ids, other), packing.shared_beginning(ids[::-1], other[::-1])
        subject.append((min(own.before, start), len(ids) - min(own.after, end)))
    against = tuple(own[answers.index(WRONG)] for own in said) if prompt.facts else ()
    return Pairs(clean, corrupt, subject, answer, choices, tuple(subjects[i] for i in kept), skipped, against)


OWN_NAMES = 200
"""Made-up names that are tried in each text, where every fact has a text of its own."""


def _made_up(
    tokenizer: Any,
    prompt: Prompt,
    render: Callable[[str], str],
    names: Sequence[str],
    begun: tokens.Spelled = (),
) -> _MadeUp:
    """What ``render`` makes of made-up names. What they all leave alone is the template; a name may begin or end as a
    made-up one does."""
    by_length: dict[int, list[list[int]]] = {}
    asked = tokens.asked(tokenizer, prompt, [render(name) for name in names])
    found = [[*ids, *begun] for ids in asked]
    for ids in found:
        by_length.setdefault(len(ids), []).append(ids)
    before = min(packing.shared_beginning(found[0], ids) for ids in found)
    after = min(packing.shared_beginning(found[0][::-1], ids[::-1]) for ids in found)
    return _MadeUp(by_length, before, after)


def _without(prompt: Prompt, name: str) -> Callable[[str], str]:
    """The text of a fact that brings its own, as a function of whom it is about."""
    text, subject = prompt.render(name), prompt.own(name)[NAME]
    if subject not in text:
        raise UserError(
            f"prompt '{prompt.name}' of the fact '{name}' does not mention '{subject}', so that no made-up name can stand there: "
            "correct the prompts file"
        )
    before, _, after = text.rpartition(subject)
    return lambda other: f"{before}{other}{after}"


def common_beginning(prompt: Prompt, spelled: Sequence[Sequence[tokens.Spelled]]) -> tokens.Spelled:
    """The tokens that all answers begin with, which tell nothing: they belong to the prompt. None where facts bring their own."""
    if prompt.facts:
        return ()
    most = min(map(len, spelled[0])) - 1
    first = spelled[0][0]
    size = next((n for n in range(most) if any(own[n] != first[n] for own in spelled[0])), most)
    return first[:size]


def choices_of(
    tokenizer: Any, prompt: Prompt, subjects: Sequence[str], answers: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """The tokens that the metric compares, and for each subject which of them each answer begins with, behind
    :func:`common_beginning`.

    Raises:
        UserError: when all answers go on with the same token.
    """
    texts = [prompt.render(subject) for subject in subjects]
    spelled = tokens.spelled_by(tokenizer, prompt, subjects, texts, answers)
    at = len(common_beginning(prompt, spelled))
    place: dict[int, int] = {}
    for item in spelled if prompt.facts else spelled[:1]:
        for own in item:
            place.setdefault(own[at], len(place))
    if len(place) < 2:
        raise UserError(
            f"all answers ({', '.join(answers)}) begin with the same token after prompt '{prompt.name}', so its logit "
            "tells nothing: put their common beginning into the prompt's text"
        )
    return list(place), [[place[own[at]] for own in item] for item in spelled]


REDRAWS = 20
"""How many made-up names are tried for an athlete at most."""


def _replaced(
    clean: Sequence[list[int]],
    corrupt: Sequence[list[int]],
    answer: Sequence[int],
    made_up: Sequence[Sequence[list[int]]],
    guess: Callable[[list[list[int]]], Sequence[int]],
    rng: random.Random,
) -> list[list[int]]:
    """``corrupt`` with the prompts after which the model guesses the right answer drawn anew, where it can be."""
    found = list(corrupt)
    told: dict[tuple[int, ...], int] = {}
    for _ in range(REDRAWS):
        unknown = [list(ids) for ids in dict.fromkeys(map(tuple, found)) if ids not in told]
        if unknown:
            told.update(zip(map(tuple, unknown), map(int, guess(unknown)), strict=True))
        redrawn = False
        for index, ids in enumerate(found):
            if told[tuple(ids)] != answer[index]:
                continue
            others = [o for o in made_up[index] if o != clean[index] and told.get(tuple(o)) != answer[index]]
            if others:
                found[index], redrawn = rng.choice(others), True
        if not redrawn:
            break
    return found


def batches(pairs: Pairs, model: Any, batch_tokens: int) -> Sequence[packing.Batch]:
    """The clean prompts, packed so that they share what lies before every subject and nothing else.

    There the clean and the corrupt run are the same, so that nothing is lost, and what a run changes in one
    prompt stays in it.
    """
    first = pairs.clean[0]
    alike = min(packing.shared_beginning(first, ids) for ids in (*pairs.clean, *pairs.corrupt))
    shared = min(alike, *(start for start, _ in pairs.subject))
    return packing.batches(pairs.clean, model, batch_tokens, shared=shared)


def corrupted(pairs: Pairs, batch: packing.Batch) -> Tensor:
    """Token ids of the corrupt prompts, laid out as the batch lays out the clean ones ``[row, node]``."""
    import torch

    ids: Tensor = batch.inputs["input_ids"].clone()
    for row, p in enumerate(batch.packs):
        for index, path in zip(p.prompts, p.paths, strict=True):
            ids[row, list(path)] = torch.tensor(pairs.corrupt[index], device=ids.device)
    return ids


def metric(candidates: Tensor, answer: Tensor) -> Tensor:
    """Logit of the right answer minus the mean of the others ``[prompt]``, from logits ``[prompt, choice]``.

    Args:
        candidates: the logits.
        answer: index of the right answer ``[prompt]``; or of it and of the one it is compared with ``[prompt, 2]``.
    """
    import torch

    if answer.ndim == 2:
        two = candidates.gather(1, answer)
        return two[:, 0] - two[:, 1]
    right = candidates.gather(1, answer[:, None])[:, 0]
    others = candidates.shape[1] - 1
    return right - (candidates.sum(1) - right) / others if others else torch.zeros_like(right)


def _answers(pairs: Pairs, batch: packing.Batch) -> Tensor:
    """Index of the right choice of each prompt of a batch, and of the one it is compared with if there is one."""
    import torch

    right = torch.tensor(pairs.answer)[batch.prompts]
    return torch.stack([right, torch.tensor(pairs.against)[batch.prompts]], 1) if pairs.against else right


def _metric_of(
    model: Any, batch: packing.Batch, inputs: Tensor, answer: Tensor, choices: Sequence[int]
) -> Tensor:
    """Metric of a batch's prompts, given their embeddings ``[row, node, hidden]``."""
    rest = {name: value for name, value in batch.inputs.items() if name != "input_ids"}
    hidden = model.base_model(inputs_embeds=inputs, **rest).last_hidden_state
    return metric(logits_of(model, hidden[batch.rows, batch.nodes], choices), answer)
