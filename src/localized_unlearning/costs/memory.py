"""Bytes on the device: weights, activations, logits, gradients and states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from localized_unlearning.costs.passes import Passes
from localized_unlearning.costs.sizes import BLOCK

CARD, SHARE = 80e9, 0.7
"""Bytes of the smallest GPU that ``auto`` is planned for, and the share of what is free that activations may fill."""


class Memory(Passes):
    """What each kind of pass holds at its peak."""

    def saved(self, tokens: float, lowest: int, trained: float, row: float = 0) -> float:
        """Bytes of activations kept for the backward pass of ``tokens`` tokens, above the lowest trained layer.

        Attention is a fused kernel's: queries, keys, values and results. Under a mask, as packed prompts have one, transformers
        repeats keys and values of grouped-query attention for each head, and a GPU's kernels keep the mask in the weights'
        type, once for all heads of a layer.
        """
        s, b, layers = self.shape, self.width, self.shape.layers - lowest
        norms = 4 * s.norms * s.hidden  # each keeps its input in float32
        attention: float = 4 * s.heads * s.head_dim * b
        attention += (row or self.row) * b if self.on_gpu else 0
        attention += 8 * s.heads * (row or self.row) if s.softcapped else 0
        mlp = (3 if s.gated else 1) * s.mlp * b
        share = min(1.0, 1.4 * trained * s.layers / (s.body * layers))  # several matrices read one input
        inputs = (2 * s.hidden + s.heads * s.head_dim + s.mlp) * b * share
        return tokens * layers * (norms + attention + mlp + inputs)

    def logits(self, positions: float) -> float:
        """Bytes of the output layer at work: a block of logits thrice, of 16-bit weights one of them, hidden states in float32."""
        s = self.shape
        block = min(BLOCK, positions * s.vocabulary)
        upcast = 4 * min(BLOCK, s.head) if self.width == 2 else 0
        return 3 * 4 * block + upcast + 4 * 4 * positions * s.hidden

    def evaluating(self, batch: float | None = None) -> dict[str, float]:
        """Device bytes of a forward pass of ``batch`` tokens without gradients."""
        s, tokens = self.shape, batch or self.batch_tokens
        largest = max(3 * s.mlp, (3 * s.heads + 2 * s.kv_heads) * s.head_dim)  # one layer's MLP or attention
        held = (3 * s.hidden + largest) * self.width + 4 * s.hidden
        held += 8 * s.heads * self.row if s.softcapped else 0
        return {"weights": self.weights, "activations": tokens * held, "logits": self.logits(tokens / 8)}

    def micro_batch(self, setting: int | Literal["auto"], each: float, reserved: float) -> int:
        """Tokens of a micro-batch: the setting, or for ``auto`` what ``device.micro_batch_tokens`` takes on the smallest card.

        Args:
            setting: what the config says.
            each: bytes of activations of a token.
            reserved: bytes held besides weights and activations.
        """
        if setting != "auto":
            return setting
        if not self.on_gpu:
            return 4096
        shards = self.config.compute.shards
        fits = SHARE * (CARD - (self.weights + reserved) / shards) / each
        sizes = [size for power in range(8, 15) for size in (1 << power, 3 << (power - 1))]
        return max((size for size in sizes if size <= fits), default=sizes[0])

    def adapters(self, rank: int, dropout: bool) -> tuple[float, float]:
        """Parameters of LoRA's adapters on every linear module, and bytes that they keep of a token, in float32.

        Each keeps what it reads, and in ``rank`` numbers what it makes of it. Dropout, or weights of 16 bits, give each
        adapter a copy of its own; without, those that read one tensor keep one, and attention keeps its result anyway.
        """
        s, own = self.shape, dropout or self.width == 2
        pairs = sum((size / s.hidden + s.hidden) * rank for size in s.kinds.values())
        read = (6 if s.gated else 4) * s.hidden + s.heads * s.head_dim if own else 2 * s.hidden
        return s.layers * pairs, 4.0 * s.layers * (read + s.mlp + len(s.kinds) * rank)

    def training_bytes(self, trained: float, lowest: int, batch: float) -> dict[str, float]:
        """Device bytes of training besides gradients and states."""
        return {
            "weights": self.weights,
            "activations": self.saved(batch, lowest, trained),
            "logits": self.logits(batch),
        }

    def held(self, facts: float, windows: float, batch: int) -> float:
        """Tokens of the larger of a step's micro-batches."""
        tokens, shared = self.prompts[self.config.prompts.training]
        return min(batch, max(windows * self.config.text.tokens, self.packed(facts, tokens, shared)))

    def states(self, trained: float) -> dict[str, float]:
        """Bytes of gradients, optimizer states and float32 masters in fine-tuning."""
        if self.width == 4:
            return {
                "gradients": 4 * trained,
                "optimizer": 8 * trained,
                "one matrix's step": 12.0 * self.shape.largest,
            }
        precision = self.config.finetune.precision
        optimizer = (12 if precision == "fp32_master" else 4) * trained
        temporary = 6 * self.shape.largest if precision == "bf16" else 20 * self.shape.largest
        return {"gradients": 2 * trained, "optimizer": optimizer, "one matrix's step": temporary}

    def sharded(self, device: Mapping[str, float]) -> Mapping[str, float]:
        """Of a job's bytes, what one of ``compute.shards`` devices holds.

        The layers and what belongs to their weights are divided. A layer is whole while it runs, and so is the next, with
        the gradient of both in training; embeddings, adapters and the work on a batch are not divided.
        """
        shards = self.config.compute.shards
        if shards == 1 or not device:
            return device
        layers = self.shape.body * self.width
        alone = {"activations", "logits", "adapters", "adapters' activations"}
        parts = {name: size if name in alone else size / shards for name, size in device.items()}
        parts["weights"] = device["weights"] - layers + layers / shards
        gradients = 2 if "gradients" in device else 1
        return {**parts, "gathered layers": 2 * gradients * layers / self.shape.layers}
