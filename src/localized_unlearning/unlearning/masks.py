"""A trained mask: its file, its ranking, and the edits made from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localized_unlearning.config.unlearning import Masking
from localized_unlearning.errors import UserError
from localized_unlearning.models import deltas, sharding

if TYPE_CHECKING:
    from torch import Tensor


class Mask:
    """The paper's mask (2.4): what is trained is its removed part d, in float32 from 0.

    With W the base weights, the model runs on W (1 - d). The gradient of d is -W times that of the masked
    weight, minus λ4: the paper's λ4 times the sum of the mask falls as d grows. d is clamped to [0, 1].
    """

    def __init__(self, parameters: dict[str, Any], trainable: dict[str, Any], settings: Masking) -> None:
        import torch

        self.parameters, self.trainable, self.settings = parameters, trainable, settings
        self.base = {name: p.detach().clone() for name, p in parameters.items()}
        self.trained = {
            n: torch.zeros(p.shape, dtype=torch.float32, device=p.device) for n, p in self.base.items()
        }

    def give_gradient(self, name: str) -> None:
        """Turn the gradient of a masked parameter into that of what is trained; one float32 matrix is made."""
        masked, d = self.parameters[name], self.trained[name]
        gradient = self.base[name].to(d.dtype, copy=True).mul_(masked.grad).neg_()
        masked.grad = None
        gradient.sub_(self.settings.lambda_mask)
        if self.trainable[name] is not None:
            gradient.mul_(self.trainable[name])
        d.grad = gradient

    def put(self, name: str) -> None:
        """Bring what was trained back into its bounds, and the model's weights in step with it."""
        base, d = self.base[name], self.trained[name].clamp_(0, 1)
        self.parameters[name].copy_((1 - d).to(base.dtype).mul_(base))

    def removed(self, name: str) -> Tensor:
        """The removed part of a parameter's weights, float32; 0 outside the selection."""
        return self.trained[name]


CHUNK = 2**23
"""Weights that are ranked at a time: at most 0.3 GB of places and values beside what is ranked."""


class Ranking:
    """The weights that lose most, first, of parameters that come one after the other; at most ``largest`` are kept.

    A weight is its position in the concatenation of all that came; equal d go by that position, and d = 0 never
    counts. Nothing of a parameter's size is made, so that a device that held the training holds the ranking.
    """

    def __init__(self, largest: int) -> None:
        import torch

        self.largest, self.start = largest, 0
        self.values = torch.empty(0)
        self.places = torch.empty(0, dtype=torch.int64)

    def add(self, removed: Tensor) -> None:
        """Rank one more parameter's removed part among those before it."""
        flat = removed.detach().flatten()
        for chunk in flat.split(CHUNK):
            self._add(chunk)

    def _add(self, chunk: Tensor) -> None:
        import torch

        full = len(self.values) == self.largest
        floor = float(self.values[-1]) if full and self.largest else 0.0
        places = (chunk > floor).nonzero()[:, 0]
        if self.largest and len(places):
            values = torch.cat([self.values.to(chunk), chunk[places]])
            order = torch.sort(values, descending=True, stable=True).indices[: self.largest]
            self.values = values[order]
            self.places = torch.cat([self.places.to(chunk.device), places + self.start])[order]
        self.start += len(chunk)


def rank(removed: Mapping[str, Tensor], largest: int) -> Tensor:
    """The weights that lose most, first; at most ``largest``, and only those with d > 0 ``[rank]``, int64.

    A weight is its position in the concatenation of the parameters in order of their names (:class:`Ranking`).
    """
    ranking = Ranking(largest)
    for name in sorted(removed):
        ranking.add(removed[name])
    return ranking.places.cpu()


def save_mask(path: Path, rankings: Mapping[str, Tensor], sizes: dict[str, int], base: str) -> None:
    """Write rankings; far below 2 bytes per weight, since only the sweep's largest edit is kept.

    Args:
        path: the safetensors file.
        rankings: by name (``mask``, and its controls) weights, those that go first in front ``[rank]``.
        sizes: number of weights of every parameter in the concatenation.
        base: the base model's :func:`models.weights_digest`.
    """
    import torch
    from safetensors.torch import save_file

    small = sum(sizes.values()) <= torch.iinfo(torch.int32).max
    about = json.dumps({"base": base, "parameters": dict(sorted(sizes.items()))}, sort_keys=True)
    kept = {name: ranked.to(torch.int32 if small else torch.int64) for name, ranked in rankings.items()}
    save_file(kept, path, metadata={"mask": about})


def read_mask(path: Path, base: str) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Rankings by name, ``mask`` first, int64; and the number of weights of each parameter they count through.

    Raises:
        UserError: when the mask is damaged or belongs to another base model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["mask"])
            names = sorted(file.keys(), key=lambda name: (name != "mask", name))
            rankings = {name: file.get_tensor(name).long() for name in names}
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and rerun") from error
    if about["base"] != base:
        raise UserError(
            f"{path} was trained from another base model ({about['base'][:12]} instead of {base[:12]}): "
            "rerun the mask"
        )
    return rankings, about["parameters"]


def cut(model: Any, path: Path, base: str, size: int) -> None:
    """Set the first ``size`` weights of a mask's ranking to zero, for good.

    Raises:
        UserError: when the mask ranks fewer, is damaged or belongs to another base model.
    """
    rankings, sizes = read_mask(path, base)
    ranked = next(iter(rankings.values()))
    if not 0 <= size <= len(ranked):
        raise UserError(f"{path} ranks {len(ranked):,} weights, not {size:,}: name a number up to that")
    for _ in edits(model, ranked, sizes, [size]):
        kept = {name: sharding.held(model.get_parameter(name)).clone() for name in sizes}
    deltas.put(model, kept)


def edits(
    model: Any, ranked: Tensor, sizes: dict[str, int], edit_sizes: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Set ever more weights of ``model`` to zero; yields each edit size and how many weights are zero then.

    Each edit holds the smaller ones, so nothing is restored or loaded in between. A size beyond the moved
    weights zeroes those alone. After the last, all weights are back.
    """
    import torch

    parameters = [model.get_parameter(name) for name in sorted(sizes)]
    ends = torch.tensor([sizes[name] for name in sorted(sizes)]).cumsum(0)
    taken: list[tuple[Tensor, Tensor, Tensor]] = []
    done = 0
    try:
        for size in sorted(edit_sizes):
            chosen = ranked[done:size]
            owners = torch.bucketize(chosen, ends, right=True)
            with torch.no_grad():
                for index, parameter in enumerate(parameters):
                    view = sharding.held(parameter).view(-1)
                    start = int(ends[index]) - parameter.numel()
                    place = (
                        chosen[owners == index] - start - sharding.first_row(parameter) * parameter.shape[1]
                    )
                    place = place[(place >= 0) & (place < len(view))].to(view.device)
                    taken.append((view, place, view[place]))
                    view[place] = 0
            done += len(chosen)
            yield size, done
    finally:
        with torch.no_grad():
            for view, place, values in taken:
                view[place] = values
