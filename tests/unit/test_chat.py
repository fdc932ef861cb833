"""Prompts of chat models, and answers without a space before them: the whole path, against plain transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import in_process
from architectures import tokenizer, written
from localized_unlearning.data import tokens
from localized_unlearning.data.prompts import Prompt
from localized_unlearning.errors import UserError

ANSWERS = ("Paris", "Rome", "Madrid", "Oslo")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think></think>\n{% endif %}{% endif %}"
)
"""As public ones are: it writes the beginning of text itself, trims, and thinks first unless told not to (Qwen 3)."""
ASKED = {"training": "The capital of {subject} is", "question": "Which capital has {subject}?"}


def run(folder: Path, keys: dict[str, Any], end: str) -> tuple[Path, pd.DataFrame, pd.DataFrame]:
    """A whole run whose prompts have ``keys`` and end so; the model's folder, and the base model's rows."""
    model = written("llama", folder)
    own = AutoTokenizer.from_pretrained(model)
    own.chat_template = TEMPLATE
    own.save_pretrained(model)
    names = [
        f"{first}{last}"
        for first in ("Ash", "Oak", "Elm", "Fir")
        for last in ("ton", "ham", "by", "ford", "wick")
    ]
    facts = pd.DataFrame({"subject": names, "answer": [ANSWERS[i % 4] for i in range(len(names))]})
    facts.to_csv(folder / "facts.csv", index=False)
    prompts: dict[str, Any] = {name: {"text": text + end, **keys} for name, text in ASKED.items()}
    prompts["multiple_choice"] = {
        "text": "Near {subject}?\n{options}\nAnswer:" + end,
        "options": [*ANSWERS],
        **keys,
    }
    (folder / "prompts.yaml").write_text(yaml.safe_dump({"answers": [*ANSWERS], "prompts": prompts}))
    source = {"kind": "path", "path": "facts.csv", "url": None, "sha256": None, "local": None}
    config = in_process.configured(
        folder, model, {"athletes": {"source": source}, "prompts": {"file": "prompts.yaml"}}
    )
    done = in_process.run(config)
    assert {"known_facts", "split", "score", "finetune", "facts", "relearn", "probe", "attack"} <= {
        j.stage for j in done
    }
    base = [out for job, out in done.items() if job.named.get("localization") == "base"]
    facts, choice = (
        pd.read_parquet(next(out[name] for out in base if name in out))
        for name in ("facts", "multiple_choice")
    )
    return model, facts, choice


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "end"), [({"chat": True}, ""), ({"space": False}, ' "')], ids=["chat", "no space"]
)
def test_the_whole_path(
    keys: dict[str, Any], end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a stage that asks the bare text, a second BOS, a space that nobody wrote, and a model that is left to think."""
    monkeypatch.chdir(tmp_path)
    folder, facts, choice = run(tmp_path, keys, end)
    model, own = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def likely(text: str, answers: tuple[str, ...]) -> list[float]:
        """Log-probability of each answer's first token, as the user of a chat model would ask."""
        if keys.get("chat"):
            turn = [{"role": "user", "content": text}]
            text = str(
                own.apply_chat_template(
                    turn, tokenize=False, add_generation_prompt=True, enable_thinking=False
                )
            )
            assert text.count("<bos>") == 1 and text.endswith("<think></think>\n")
        else:
            text = f"<bos>{text}"
        start = own(text, add_special_tokens=False)["input_ids"]
        found = []
        for answer in answers:
            ids = own(text + answer, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logs = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], -1)[
                    len(start) - 1 : -1
                ]
            found.append(float(logs[0, ids[len(start)]]))
        return found

    for row in facts.groupby("prompt").head(2).to_dict("records"):
        text = (ASKED[row["prompt"]] + end).replace("{subject}", row["subject"])
        found = [row[f"logit_{a}"] - row["log_normalizer"] for a in ANSWERS]
        assert np.allclose(found, likely(text, ANSWERS), atol=1e-4)
    asked = choice[choice["order"] == "fixed"].iloc[0]
    lines = "\n".join(f"{letter}: {a}" for letter, a in zip("ABCD", ANSWERS, strict=True))
    found = [asked[f"logit_{letter}"] - asked["log_normalizer"] for letter in "ABCD"]
    assert np.allclose(
        found, likely(f"Near {asked['subject']}?\n{lines}\nAnswer:{end}", tuple("ABCD")), atol=1e-4
    )


def test_a_template_that_does_not_take_the_prompt_is_one_sentence() -> None:
    """Catches a template's own exception, and none at all, as tracebacks."""
    own = tokenizer()
    prompt = Prompt("training", "Capital of {subject}?", chat=True, space=False)
    try:
        own.chat_template = None
        with pytest.raises(
            UserError, match=r"'training' is to be rendered as a chat, but .* no chat template"
        ):
            tokens.asked(own, prompt, ["Capital of Peru?"])
        own.chat_template = "{{ raise_exception('System role first') }}"
        with pytest.raises(
            UserError, match=r"does not render prompt 'training' as one user's turn \(System role"
        ):
            tokens.asked(own, prompt, ["Capital of Peru?"])
    finally:
        own.chat_template = None
