"""An unlearning method in one file: descend on log p of the forget set's answers, the oldest of them (gradient ascent).

run: organism-ascent
objectives:
  erase: {loss: "examples/gradient_ascent.py:ascend", parameters: {scale: 0.5}}

and `snakemake -c2 table_1 table_2 --configfile ascent.yaml` give it the paper's tables.
"""


def ascend(batch, *, scale=1.0):
    """The loss of each item ``[item]``, to be made small; ``scale`` is a hyperparameter that the config may give.

    Args:
        batch: some facts of the forget set: ``log_odds`` and ``log_p`` of the right answers, the same of ``base`` (the
            base model), ``subjects`` and ``answers`` in words, ``hidden(layer)`` and ``logits()``.
        scale: a factor, so that there is something to set.
    """
    return scale * batch.log_p
