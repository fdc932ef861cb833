"""Texts as token ids: prompts, and answers as they continue them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localized_unlearning.errors import UserError

if TYPE_CHECKING:
    from localized_unlearning.data.prompts import Prompt

Spelled = tuple[int, ...]
"""All the tokens of an answer after a prompt."""

LOOKED_AT = 24
"""Prompts of which it is made sure that an answer has the same tokens after each."""


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in ``folder``; no code of the folder runs.

    Raises:
        UserError: when there is none that transformers reads.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of many kinds
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"no tokenizer could be loaded from {folder.name} ({why}): put the model's tokenizer files there"
        ) from error


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, with the special tokens that the tokenizer puts in front (Gemma: BOS)."""
    return list(tokenizer(list(texts))["input_ids"])


def asked(tokenizer: Any, prompt: Prompt, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of a prompt's rendered ``texts``: as they stand, or as a user's turn in the tokenizer's chat template.

    Raises:
        UserError: when a chat template is wanted and the tokenizer has none.
    """
    return _ids(tokenizer, prompt, turns(tokenizer, prompt, texts))


def _ids(tokenizer: Any, prompt: Prompt, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of :func:`turns`: a chat template writes its special tokens itself."""
    return list(tokenizer(list(texts), add_special_tokens=not prompt.chat)["input_ids"])


def turns(tokenizer: Any, prompt: Prompt, texts: Sequence[str]) -> list[str]:
    """What the model reads of a prompt's rendered ``texts``: these, or each as a user's turn in the tokenizer's chat template,
    up to where the model begins its own. A template that lets its model think first (Qwen 3) is told not to.

    Raises:
        UserError: when a chat template is wanted and the tokenizer has none, or it does not take one user's turn.
    """
    if not prompt.chat:
        return list(texts)
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"prompt '{prompt.name}' is to be rendered as a chat, but the tokenizer has no chat template: "
            "take 'chat' out of the prompt, or use a chat model"
        )
    talks = [[{"role": "user", "content": text}] for text in texts]
    try:
        found = [
            tokenizer.apply_chat_template(
                talk, add_generation_prompt=True, tokenize=False, enable_thinking=False
            )
            for talk in talks
        ]
    except Exception as error:  # the template is a program of the model's own
        raise UserError(
            f"the tokenizer's chat template does not render prompt '{prompt.name}' as one user's turn "
            f"({' '.join(str(error).split())}): take 'chat' out of the prompt, and write the turn into its text"
        ) from error
    return [str(text) for text in found]


def beginnings(tokenizer: Any, prompt: Prompt, texts: Sequence[str], said: Sequence[str]) -> list[list[int]]:
    """Token ids of what the model reads up to its subject: :func:`turns`, cut behind the last mention.

    Args:
        tokenizer: the model's.
        prompt: what was rendered.
        texts: the prompt about each subject.
        said: the subject, as the text has it.
    """
    whole = zip(turns(tokenizer, prompt, texts), said, strict=True)
    return _ids(tokenizer, prompt, [text[: text.rindex(name) + len(name)] for text, name in whole])


def answer_tokens(
    tokenizer: Any, prompt: Prompt, texts: Sequence[str], answers: Sequence[str]
) -> list[Spelled]:
    """All tokens of each answer as it continues a prompt: those of text, space and answer beyond the text's own.

    Every stage takes its candidate tokens from here. An answer that begins a sentence, or follows a newline, has other
    tokens than one after a word; so none is tokenised alone.

    Args:
        tokenizer: the model's.
        prompt: says whether a space comes between, and whether texts are rendered as a chat.
        texts: what the prompt reads with some subjects; the tokens must be the same after each.
        answers: the answers, spelled as they are to be scored.

    Raises:
        UserError: when the tokenizer joins the end of the prompt to the answer, or spells an answer differently after
            two of the texts.
    """
    space = " " if prompt.space else ""
    found: list[Spelled] | None = None
    for text in dict.fromkeys(texts[:: max(1, len(texts) // LOOKED_AT)]):
        (whole,) = turns(tokenizer, prompt, [text])
        alone, *longer = _ids(tokenizer, prompt, [whole, *(f"{whole}{space}{a}" for a in answers)])
        spelled = [tuple(ids[len(alone) :]) for ids in longer]
        if any(ids[: len(alone)] != alone or not beyond for ids, beyond in zip(longer, spelled, strict=True)):
            raise UserError(
                f"prompt '{prompt.name}' ends in a way that the tokenizer joins to the answer ({text[-20:]!r}): let it end "
                "with a word or a sign, without a space"
            )
        if found is not None and spelled != found:
            raise UserError(
                f"the tokenizer spells an answer differently after '{text[-40:]}' than after other subjects of prompt "
                f"'{prompt.name}': let the prompt end with the same words for all"
            )
        found = spelled
    return found or []


def spelled_by(
    tokenizer: Any, prompt: Prompt, subjects: Sequence[str], texts: Sequence[str], answers: Sequence[str]
) -> list[list[Spelled]]:
    """For each subject all tokens of each answer, as :func:`answer_tokens`: the same for all, unless facts bring their own.

    Args:
        tokenizer: the model's.
        prompt: what was rendered.
        subjects: whom each text is about.
        texts: the prompt about each.
        answers: the answers; of facts with their own, what these are called.
    """
    if not prompt.facts:
        one = answer_tokens(tokenizer, prompt, texts, prompt.answers or answers)
        return [one] * len(texts)
    return [
        answer_tokens(tokenizer, prompt, [text], prompt.words(subject, answers))
        for subject, text in zip(subjects, texts, strict=True)
    ]


def told_apart(spelled: Sequence[Spelled]) -> bool:
    """Whether each answer's first token is its alone, so that it stands for the answer."""
    return len({tokens[0] for tokens in spelled}) == len(spelled)


def first_tokens(spelled: Sequence[Spelled], answers: Sequence[str]) -> list[int]:
    """The first token of each answer.

    Raises:
        UserError: when two answers share it and so cannot be told apart by it.
    """
    if not told_apart(spelled):
        raise UserError(
            f"two of the answers {', '.join(answers)} begin with the same token in this tokenizer: "
            "use answers that differ in their first token"
        )
    return [tokens[0] for tokens in spelled]


def deciding(spelled: Sequence[Spelled]) -> list[tuple[Spelled, int]]:
    """For each answer the token by which it differs from all others, and what of the answer stands before it.

    An answer that another one continues (``New York``, ``New York City``) is told by its last token.
    """
    found = []
    for index, tokens in enumerate(spelled):
        others = [other for i, other in enumerate(spelled) if i != index]
        alike = (len(tokens[:n]) for n in range(1, len(tokens)) if any(o[:n] == tokens[:n] for o in others))
        place = max(alike, default=0)
        found.append((tokens[:place], tokens[place]))
    return found


def fact_items(
    tokenizer: Any, prompt: Prompt, subjects: Sequence[str], said: Sequence[str], answers: Sequence[str]
) -> list[tuple[list[int], int]]:
    """What is trained on: the prompt about each subject, and the token of what is said of it.

    The token is the answer's first, or where answers share it the one that tells them apart, and what stands before it
    then belongs to the prompt.

    Args:
        tokenizer: the model's.
        prompt: the training prompt.
        subjects: whom each prompt is about.
        said: the answer of each, one of ``answers``.
        answers: the candidate answers.
    """
    texts = [prompt.render(subject) for subject in subjects]
    spelled = spelled_by(tokenizer, prompt, subjects, texts, answers)
    each = (
        [deciding(own) for own in spelled]
        if prompt.facts
        else [deciding(own) for own in spelled[:1]] * len(texts)
    )
    found = []
    for ids, answer, told in zip(asked(tokenizer, prompt, texts), said, each, strict=True):
        before, token = told[answers.index(answer)]
        found.append(([*ids, *before], token))
    return found
