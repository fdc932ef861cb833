"""Operations of forward and backward passes: what is asked, what is trained, what is read."""

from __future__ import annotations

import math

from localized_unlearning.costs.counts import Counts
from localized_unlearning.costs.devices import FIT_START, Work
from localized_unlearning.costs.sizes import TINY_MMLU

KEPT, KEPT_PROMPTS = 64, 4
"""As ``prefixes.LEAST_TOKENS`` and ``LEAST_PROMPTS``."""


class Passes(Counts):
    """What each kind of pass computes."""

    def forward(self, nodes: float, row: float, answers: float, batch: float | None = None) -> Work:
        """A forward pass over ``nodes`` tokens in rows of ``row``, with logits at ``answers`` of them."""
        s = self.shape
        attention = 4 * s.layers * s.heads * s.head_dim * row
        passes = math.ceil(nodes / max(1, batch or self.batch_tokens))
        return Work(
            flops=nodes * (2 * s.body + attention),
            logit_flops=2 * s.head * answers,
            logits=s.vocabulary * answers,
            calls=passes * s.layers,
            traffic=nodes * self.elementwise(row),
        )

    def elementwise(self, row: float) -> float:
        """Bytes that a token moves besides matrix products: norms, activations, attention scores without a kernel."""
        s = self.shape
        return s.layers * self.width * (20 * s.hidden + 6 * s.mlp + 3 * s.heads * min(row, self.row))

    def pass_over(self, name: str, count: float) -> Work:
        """A forward pass over a fact prompt about ``count`` athletes."""
        tokens, shared = self.prompts[name]
        return self.forward(self.packed(count, tokens, shared), self.row, count)

    def ask(self, name: str, count: float) -> Work:
        """A fact prompt about ``count`` athletes, with the answers as rows."""
        return self.pass_over(name, count) + self.asking(count)

    def asking(self, prompts: float) -> Work:
        """Tokenising prompts, packing them and writing their rows down."""
        return Work(prompts=prompts)

    def ask_choice(self, count: float, orders: int) -> Work:
        """Multiple choice about ``count`` athletes; a shuffled order shares only the text in front."""
        tokens, shared = self.prompts[self.config.prompts.multiple_choice]
        work = self.forward(self.packed(count, tokens, shared), self.row, count) + self.asking(count * orders)
        if orders == 1:
            return work
        again = min(count, 24) * 0.65 * shared  # each of the 24 orders stands in front of some athletes
        return work + self.forward(self.packed(count, tokens, shared) + again, self.row, count) * (orders - 1)

    def ask_questions(self, count: float | None, shots: int) -> Work:
        """General knowledge: ``count`` questions (None: all) with ``shots`` examples, a subject's ones shared."""
        asked = self.data.questions if count is None else min(count, self.data.questions)
        own = self.tokens(self.data.question_characters, "question")
        shared = self.tokens(80 + shots * 0.9 * self.data.question_characters, "question")
        tokens = own + (shared if shots else 0)
        row = max(self.row, min(3 * tokens, self.batch_tokens))
        if self.packing and shots and shared >= KEPT and asked >= KEPT_PROMPTS * self.data.subjects:
            # the examples' keys and values are kept: each question attends to them and to itself
            nodes = self.data.subjects * shared + asked * own
            return self.forward(nodes, tokens, asked) + self.asking(asked)
        nodes = max(
            self.packed(asked, tokens, shared, row),
            min(asked, self.data.subjects) * shared + asked * own * bool(shots),
        )
        return self.forward(nodes, row, asked) + self.asking(asked)

    def exam(self, task: str) -> Work:
        """What a model is asked at each point of a series."""
        c = self.config
        _, forget, retain = self.parts(task)
        if c.series.retain is not None:
            retain = min(retain, c.series.retain)
        orders = min(c.series.orders, c.evaluation.orders) if c.evaluation.option_order == "shuffled" else 1
        work = self.ask_choice(forget + retain, orders)
        work += self.ask(getattr(c.prompts, c.measures.prompts[0]), forget + retain)
        if c.series.source is not None:  # tinyMMLU, whose questions bring their examples
            asked = c.series.questions or TINY_MMLU
            tokens = self.tokens(self.data.question_characters * (1 + 0.9 * c.series.shots), "question")
            return work + self.forward(asked * tokens, 3 * tokens, asked) + self.asking(asked)
        return work + self.ask_questions(c.series.questions, c.series.shots)

    def training(
        self,
        steps: int,
        facts: float,
        windows: float,
        trained: float,
        lowest: int,
        batch: int,
        name: str = "",
    ) -> Work:
        """Optimizer steps: ``facts`` prompts and ``windows`` of text a step, ``trained`` parameters, forwards and backwards.

        Below the lowest trained layer there is no backward pass.
        """
        tokens, shared = self.prompts[name or self.config.prompts.training]
        text = windows * self.config.text.tokens
        nodes = self.packed(facts, tokens, shared)
        forward = self.forward(nodes, self.row, facts, batch) + self.forward(
            text, self.config.text.tokens, text, batch
        )
        above = (self.shape.layers - lowest) / self.shape.layers
        backward = Work(
            flops=forward.flops * above + 2 * trained * (nodes + text),
            # of a bfloat16 model the sum of two products
            logit_flops=forward.logit_flops * (2 if self.width == 2 else 1),
            calls=2 * forward.calls * above,
            traffic=2 * forward.traffic * above,
        )
        return (forward + backward) * steps

    def loading(self, delta: float = 0.0) -> Work:
        """Reading the weights, and reading and hashing a delta."""
        return Work(load=self.weights + 2 * delta * self.width)

    def probes(self, fits: float, athletes: float) -> Work:
        """Logistic regressions on the residual stream: about 140 iterations of two products each."""
        return Work(fit_flops=fits * (athletes * self.shape.hidden * 140 * 4 + FIT_START))
