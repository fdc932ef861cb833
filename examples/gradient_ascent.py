"""An unlearning method in one file: descend on log p of the forget set's answers, the oldest of them (gradient ascent).

run: organism-ascent
objectives:
  erase: {loss: "examples/gradient_ascent.py:ascend"}

and `snakemake -c2 table_1 table_2 --configfile ascent.yaml` give it the paper's tables.
"""

from torch.nn.functional import logsigmoid


def ascend(odds):
    """log p of the right answers, one number a prompt, from their log-odds ``[prompt]``; to be made small."""
    return logsigmoid(odds)
