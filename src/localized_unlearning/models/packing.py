"""Packed prompts: many prompts in one row, each shared prefix computed once.

The prompts of a batch share long beginnings (a system text, a worked example, five solved
questions). A pack holds the *tree* of their tokens: every distinct prefix is one node, a token
attends to its ancestors only, and its position is its depth. A forward pass over the pack gives
each prompt exactly what a forward pass over it alone would give, to rounding, at a fraction of
the tokens. Gradients are equal too, so training uses the same packs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from localized_unlearning.models import prefixes, sharding, vocabulary

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Pack:
    """A tree of tokens.

    Attributes:
        tokens: token ids ``[node]``.
        depth: position of each node in its prompts ``[node]``.
        parent: index of the node before, -1 at a root ``[node]``; parents precede children.
        last: node of each prompt's last token ``[prompt]``.
        prompts: index of each prompt in the list that was packed ``[prompt]``.
        paths: the nodes of each prompt, in order.
    """

    tokens: np.ndarray
    depth: np.ndarray
    parent: np.ndarray
    last: np.ndarray
    prompts: np.ndarray
    paths: tuple[tuple[int, ...], ...]

    def visible(self, window: int | None = None) -> np.ndarray:
        """Which node may attend to which ``[node, node]``; ``window`` limits the distance."""
        size = len(self.tokens)
        seen = np.zeros((size, size), dtype=bool)
        for node, parent in enumerate(self.parent):
            if parent >= 0:
                seen[node] = seen[parent]
            seen[node, node] = True
        if window is not None:
            seen &= self.depth[:, None] - self.depth[None, :] < window
        return seen


def shared_beginning(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two prompts share at their beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def pack(prompts: Sequence[Sequence[int]], max_tokens: int, shared: int | None = None) -> list[Pack]:
    """Pack tokenised prompts into trees of at most ``max_tokens`` nodes.

    Prompts are sorted, so that neighbours share as much as possible; a prompt longer than
    ``max_tokens`` gets a pack of its own. With ``shared``, only that many first tokens are shared: what comes
    after may be changed for one prompt alone.
    """
    order = sorted(range(len(prompts)), key=lambda i: tuple(prompts[i]))
    packs, builder = [], _Builder(shared)
    for index in order:
        if builder.last and builder.size_with(prompts[index]) > max_tokens:
            packs.append(builder.build())
            builder = _Builder(shared)
        builder.add(index, prompts[index])
    if builder.last:
        packs.append(builder.build())
    return packs


class _Builder:
    def __init__(self, shared: int | None) -> None:
        self.shared = shared
        self.children: dict[tuple[int, int], int] = {}
        self.tokens: list[int] = []
        self.depth: list[int] = []
        self.parent: list[int] = []
        self.last: list[int] = []
        self.prompts: list[int] = []
        self.paths: list[tuple[int, ...]] = []

    def size_with(self, prompt: Sequence[int]) -> int:
        node, shared = -1, 0
        for token in prompt[: self.shared]:
            child = self.children.get((node, token))
            if child is None:
                break
            node, shared = child, shared + 1
        return len(self.tokens) + len(prompt) - shared

    def add(self, index: int, prompt: Sequence[int]) -> None:
        node, path = -1, []
        for position, token in enumerate(prompt):
            alone = self.shared is not None and position >= self.shared
            child = None if alone else self.children.get((node, token))
            if child is None:
                child = len(self.tokens)
                if not alone:
                    self.children[node, token] = child
                self.tokens.append(token)
                self.depth.append(position)
                self.parent.append(node)
            node = child
            path.append(node)
        self.last.append(node)
        self.prompts.append(index)
        self.paths.append(tuple(path))

    def build(self) -> Pack:
        return Pack(
            np.array(self.tokens),
            np.array(self.depth),
            np.array(self.parent),
            np.array(self.last),
            np.array(self.prompts),
            tuple(self.paths),
        )


@dataclass(frozen=True)
class Batch:
    """Packs as model inputs.

    Attributes:
        inputs: keyword arguments of the Hugging Face model: ``input_ids`` ``[row, node]``,
            ``position_ids`` ``[row, node]`` and the ``attention_mask``, boolean or, for eager attention, additive.
        rows, nodes: where each prompt's last token stands ``[prompt]``.
        prompts: index of each prompt in the packed list ``[prompt]``.
        packs: the packs, one per row.
    """

    inputs: dict[str, Any]
    rows: Tensor
    nodes: Tensor
    prompts: Tensor
    packs: tuple[Pack, ...]


def to_batch(packs: Sequence[Pack], model: Any, before: int = 0) -> Batch:
    """Model inputs of ``packs``, one per row, padded on the right.

    Args:
        packs: the packs.
        model: gives the device, the mask's type and, for models with sliding-window layers, the window.
        before: tokens that stand before every prompt and are in no pack: the model has their keys and values.
    """
    import torch

    config = model.config.get_text_config()
    device, dtype = model.device, model.dtype
    width = max(len(p.tokens) for p in packs)
    ids = np.zeros((len(packs), width), dtype=np.int64)
    positions = np.zeros_like(ids)
    for row, p in enumerate(packs):
        ids[row, : len(p.tokens)] = p.tokens
        positions[row, : len(p.tokens)] = before + p.depth

    def mask(window: int | None) -> Tensor:
        seen = np.zeros((len(packs), 1, width, before + width), dtype=bool)
        seen[:, :, np.arange(width), before + np.arange(width)] = True
        for row, p in enumerate(packs):
            size = len(p.tokens)
            seen[row, 0, :size, before : before + size] = p.visible(window)
            distance = before + p.depth[:, None] - np.arange(before)
            seen[row, 0, :size, :before] = True if window is None else distance < window
        if (
            model.config._attn_implementation == "sdpa"
        ):  # a quarter of the bytes to send; its kernels take it as it is
            return torch.from_numpy(seen).to(device)
        additive = torch.zeros(seen.shape, dtype=dtype)
        return additive.masked_fill_(torch.from_numpy(~seen), torch.finfo(dtype).min).to(device)

    attention_mask: Any = mask(None)
    window = window_of(config)
    if window is not None:
        longest = before + max(int(p.depth.max()) for p in packs) + 1
        sliding = mask(window) if longest > window else attention_mask
        by_layer = getattr(config, "layer_types", None)
        attention_mask = (
            {"full_attention": attention_mask, "sliding_attention": sliding} if by_layer else sliding
        )
    return Batch(
        {
            "input_ids": torch.from_numpy(ids).to(device),
            "position_ids": torch.from_numpy(positions).to(device),
            "attention_mask": attention_mask,
            "use_cache": False,
        },
        torch.cat([torch.full((len(p.last),), row) for row, p in enumerate(packs)]).to(device),
        torch.cat([torch.from_numpy(p.last) for p in packs]).to(device),
        torch.cat([torch.from_numpy(p.prompts) for p in packs]),
        tuple(packs),
    )


def window_of(config: Any) -> int | None:
    """How far back the sliding-window layers of a text config attend; None when it has no such layers.

    Architectures without ``layer_types`` (Mistral, Mixtral, Phi-3) have the window in every layer, and take one mask;
    those with it take a mask for each type of layer.
    """
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if window is None or (kinds and "sliding_attention" not in kinds):
        return None
    return int(window)


def row_length(model: Any, longest: int = 0) -> int:
    """Nodes of one row: twice the model's width, between 128 and 512, or three times the ``longest`` prompt.

    A row's attention costs the square of its length, its linear layers the width times its length;
    twice the width keeps attention below the rest. Long prompts share long beginnings (five worked examples
    before every question of a subject): a row of three holds the beginning once and a dozen questions or more.
    """
    width = 2 * int(model.config.get_text_config().hidden_size)
    return max(128, min(512, width), 3 * longest)


def batches(
    prompts: Sequence[Sequence[int]],
    model: Any,
    batch_tokens: int,
    row_tokens: int | None = None,
    shared: int | None = None,
    before: int = 0,
) -> Batches:
    """All ``prompts`` as batches of at most ``batch_tokens`` nodes, in rows of ``row_tokens`` (:func:`row_length`).

    A prompt that is longer than that has a batch of its own. ``shared`` is as for :func:`pack`, ``before`` for
    :func:`to_batch`.
    """
    length = row_tokens or min(row_length(model, max(map(len, prompts), default=0)), batch_tokens)
    packs = sorted(pack(prompts, length, shared), key=lambda p: len(p.tokens))
    groups: list[list[Pack]] = []
    for p in packs:
        if groups and len(p.tokens) * (len(groups[-1]) + 1) <= batch_tokens:
            groups[-1].append(p)
        else:
            groups.append([p])
    return Batches(groups, model, before)


@dataclass(frozen=True)
class Batches(Sequence[Batch]):
    """Batches that are made when they are asked for: their masks together would be larger than the model's work.

    Attributes:
        groups: the packs of each batch.
        model, before: as for :func:`to_batch`.
        members: index of each packed prompt in a longer list; None where it is its own.
        more: further keyword arguments of the model.
    """

    groups: list[list[Pack]]
    model: Any
    before: int = 0
    members: Tensor | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: Any) -> Any:
        batch = to_batch(self.groups[index], self.model, self.before)
        prompts = batch.prompts if self.members is None else self.members[batch.prompts]
        return replace(batch, prompts=prompts, inputs={**batch.inputs, **self.more})


def last_hidden(model: Any, batch: Batch) -> Tensor:
    """Final hidden state at each prompt's last token ``[prompt, hidden]``, in the batch's prompt order."""
    hidden = model.base_model(**batch.inputs).last_hidden_state
    chosen: Tensor = hidden[batch.rows, batch.nodes]
    return chosen


@dataclass(frozen=True)
class NextToken:
    """What is kept of the next-token distribution after each prompt, in float32 on the CPU.

    Attributes:
        candidates: logits of the candidate tokens ``[prompt, candidate]``.
        argmax: most likely token of the whole vocabulary ``[prompt]``.
        log_normalizer: log-sum-exp over the vocabulary ``[prompt]``; a candidate's log-probability
            is its logit minus this.
    """

    candidates: Tensor
    argmax: Tensor
    log_normalizer: Tensor


def next_token(
    model: Any, prompts: Sequence[Sequence[int]], candidates: Sequence[int], batch_tokens: int
) -> NextToken:
    """Score the token after each of ``prompts``.

    The slow definition, against which it is tested: one forward pass per prompt, full logits.
    """
    return scored(model, prefixes.prepared(model, prompts, batch_tokens), len(prompts), candidates)


def scored(model: Any, parts: Iterable[prefixes.Part], count: int, candidates: Sequence[int]) -> NextToken:
    """As :func:`next_token`, of ``count`` prompts that :func:`prefixes.prepared` has made into ``parts``."""
    import torch

    scores = torch.zeros(count, len(candidates))
    argmax = torch.zeros(count, dtype=torch.long)
    normalizer = torch.zeros(count)
    with torch.inference_mode():
        for part in parts:
            for batch, counts in sharding.share(prefixes.begun(model, part), model):
                hidden = last_hidden(model, batch)
                if counts:
                    most_likely, total = vocabulary.argmax_and_normalizer(model, hidden)
                    scores[batch.prompts] = vocabulary.logits_of(model, hidden, candidates).cpu()
                    argmax[batch.prompts] = most_likely.cpu()
                    normalizer[batch.prompts] = total.cpu()
    return NextToken(*(sharding.total(found, model) for found in (scores, argmax, normalizer)))
