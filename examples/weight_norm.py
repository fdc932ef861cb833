"""A localization in one file: components score by the norm of their weights, which no activation enters.

scores:
  weight_norm: {method: "examples/weight_norm.py:score"}
localizations:
  weight_norm: {label: Weight norm, kind: scores, scores: weight_norm, fraction: 0.1}
"""


def score(model, pairs, components, batch_tokens):
    """A score for each of ``components``, of which the largest absolute values are taken.

    Args:
        model: the base model.
        pairs: prompts about real athletes (``pairs.clean``) and the same with made-up names (``pairs.corrupt``), as
            token ids, with the index of the right answer (``pairs.answer``) among the tokens ``pairs.choices``.
        components: what is scored; ``layer``, ``kind`` (q, k, v, o, up, down, gate) and ``head`` (None: all) of each.
        batch_tokens: tokens of one forward pass.
    """
    from localized_unlearning.models.components import trainable

    found = []
    for component in components:
        ((name, mask),) = trainable(model, [component]).items()
        weight = model.get_parameter(name).float()
        found.append(float((weight if mask is None else weight * mask).norm()))
    return found
