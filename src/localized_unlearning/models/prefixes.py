"""Long beginnings that many prompts share, run once: their keys and values are kept for what follows.

Five worked examples stand before every question of a subject. A packed row that holds them attends from each of its
questions to all of the row; with their keys and values kept, a row holds a question or two, and attends to those
examples and to itself alone. Nothing of a model's own caches is used: they forget what lies behind a sliding window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import Cache

from localized_unlearning.models import packing

if TYPE_CHECKING:
    from torch import Tensor


LEAST_TOKENS, LEAST_PROMPTS = 64, 4
"""A shorter beginning, or one of fewer prompts, is packed with them: it costs less than a pass of its own."""

LEAST_ROW = 64
"""Tokens of the shortest row of what follows."""


class Group(NamedTuple):
    """Prompts that share their first ``length`` tokens: which of all, in order."""

    length: int
    members: list[int]


def groups(prompts: Sequence[Sequence[int]]) -> list[Group]:
    """All ``prompts``, by the beginning whose keys and values are kept; those without one come last, with length 0.

    Neighbours in sorted order go together when they share :data:`LEAST_TOKENS` and half of the shorter one. A prompt
    keeps at least its last token for itself.
    """
    found: list[Group] = []
    rest: list[int] = []

    def close(members: list[int], length: int) -> None:
        if len(members) < LEAST_PROMPTS:
            rest.extend(members)
        else:
            found.append(Group(min(length, *(len(prompts[i]) - 1 for i in members)), sorted(members)))

    members: list[int] = []
    length = 0
    for index in sorted(range(len(prompts)), key=lambda i: tuple(prompts[i])):
        if members:
            last = prompts[members[-1]]
            common = packing.shared_beginning(last, prompts[index])
            if common >= LEAST_TOKENS and 2 * common >= min(len(last), len(prompts[index])):
                length = min(length, common)
                members.append(index)
                continue
            close(members, length)
        members, length = [index], len(prompts[index])
    if members:
        close(members, length)
    return [*found, Group(0, sorted(rest))] if rest else found


class Part(NamedTuple):
    """Batches of prompts, and what all of them begin with, if anything: a batch of one row that is run before them."""

    beginning: packing.Batch | None
    batches: Sequence[packing.Batch]


def prepared(model: Any, prompts: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[Part]:
    """All ``prompts`` as batches; of a model, its device and config alone matter, so that another's weights may follow."""
    import torch

    for group in groups(prompts):
        members = torch.tensor(group.members, dtype=torch.long)
        rest = [prompts[i][group.length :] for i in group.members]
        beginning = None
        if group.length:
            first = packing.pack([prompts[group.members[0]][: group.length]], group.length)
            beginning = packing.to_batch(first, model)
            row = max(LEAST_ROW, max(map(len, rest)))
            found = packing.batches(rest, model, max(row, batch_tokens), row, before=group.length)
        else:
            found = packing.batches(rest, model, batch_tokens)
        yield Part(beginning, replace(found, members=members))


def begun(model: Any, part: Part) -> Sequence[packing.Batch]:
    """A part's batches; where they share a beginning, it is run now and their inputs hold what it left."""
    if part.beginning is None:
        return part.batches
    kept = Kept()
    more = {"use_cache": True, "past_key_values": kept}
    model.base_model(**{**part.beginning.inputs, **more})
    kept.grows = False
    if isinstance(part.batches, packing.Batches):
        return replace(part.batches, more=more)
    return [replace(batch, inputs={**batch.inputs, **more}) for batch in part.batches]


class Kept(Cache):
    """Keys and values of one beginning, layer by layer; later rows each get them in front of their own.

    Attributes:
        grows: whether what comes is the beginning itself, and is kept.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.grows = True
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: Any, **_more: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values ``[row, head, token, width]`` that a layer attends to."""
        import torch

        if self.grows:
            self.kept[layer_idx] = (key_states, value_states)
            return key_states, value_states
        rows = len(key_states)
        before = (kept.expand(rows, -1, -1, -1) for kept in self.kept[layer_idx])
        key, value = (
            torch.cat([old, new], 2) for old, new in zip(before, (key_states, value_states), strict=True)
        )
        return key, value

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the beginning; positions and masks are given with every call, so nothing follows from it."""
        return 0 if self.grows else self.kept[layer_idx][0].shape[2]
