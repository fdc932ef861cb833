"""Tiny random models of every architecture that has an adapter, windows shorter than the tests' prompts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as t

from localized_unlearning.models.checking import TEXT
from localized_unlearning.models.organism import train_tokenizer

WINDOW = 4
ROWS = 340
"""Rows of the embeddings: more than the tokenizer has tokens, as in real models."""
SIZES: dict[str, Any] = {
    "vocab_size": ROWS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 512, "initializer_range": 0.25, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
OLD: dict[str, Any] = {
    "vocab_size": ROWS, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512, "initializer_range": 0.25,
    "n_inner": 48, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FALCON = {**{k: v for k, v in SIZES.items() if k != "intermediate_size"}, "ffn_hidden_size": 48}
OPT = {**FALCON, "ffn_dim": 48, "init_std": 0.25}
GEMMA_3 = {
    **GROUPED, "num_hidden_layers": 4, "head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2}
VISION = {
    "image_size": 8, "patch_size": 4, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 1,
}  # fmt: skip

CONFIGS: dict[str, Callable[[], Any]] = {
    "gemma": lambda: t.GemmaConfig(**{**SIZES, "num_key_value_heads": 4, "head_dim": 12}),
    "gemma2": lambda: t.Gemma2Config(
        **GROUPED, head_dim=8, sliding_window=WINDOW, query_pre_attn_scalar=8, attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    "gemma3": lambda: t.Gemma3TextConfig(**GEMMA_3),
    "gemma3_multimodal": lambda: t.Gemma3Config(
        text_config=t.Gemma3TextConfig(**GEMMA_3).to_dict(), vision_config=VISION, mm_tokens_per_image=1,
        image_token_index=ROWS - 3, boi_token_index=ROWS - 2, eoi_token_index=ROWS - 1,
    ),
    "llama": lambda: t.LlamaConfig(**GROUPED),
    "mistral": lambda: t.MistralConfig(**GROUPED, sliding_window=WINDOW, head_dim=8),
    "qwen2": lambda: t.Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen3": lambda: t.Qwen3Config(**GROUPED, head_dim=8),
    "gpt_neox": lambda: t.GPTNeoXConfig(**{**SIZES, "rotary_pct": 0.25}),
    "gpt2": lambda: t.GPT2Config(**OLD),
    "gptj": lambda: t.GPTJConfig(**OLD, rotary_dim=4),
    "phi": lambda: t.PhiConfig(**{**SIZES, "partial_rotary_factor": 0.5}),
    "phi3": lambda: t.Phi3Config(**GROUPED, sliding_window=WINDOW),
    "falcon": lambda: t.FalconConfig(**FALCON, multi_query=True),
    "falcon_heads": lambda: t.FalconConfig(**FALCON, multi_query=False),
    "falcon_groups": lambda: t.FalconConfig(**FALCON, num_kv_heads=2, new_decoder_architecture=True),
    "opt": lambda: t.OPTConfig(**OPT, word_embed_proj_dim=32),
    "opt_projected": lambda: t.OPTConfig(**OPT, word_embed_proj_dim=16, do_layer_norm_before=False),
    "olmo": lambda: t.OlmoConfig(**GROUPED),
    "olmo2": lambda: t.Olmo2Config(**GROUPED),
    "granite": lambda: t.GraniteConfig(
        **GROUPED, logits_scaling=2.0, embedding_multiplier=3.0, residual_multiplier=0.5, attention_multiplier=0.3
    ),
    "cohere": lambda: t.CohereConfig(**GROUPED),
    "cohere2": lambda: t.Cohere2Config(
        **GROUPED, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "mixtral": lambda: t.MixtralConfig(**GROUPED, num_local_experts=4, sliding_window=WINDOW),
    "qwen2_moe": lambda: t.Qwen2MoeConfig(**GROUPED, **EXPERTS, shared_expert_intermediate_size=16),
    "qwen3_moe": lambda: t.Qwen3MoeConfig(**{**GROUPED, **EXPERTS, "head_dim": 8}),
}  # fmt: skip


@functools.cache
def tokenizer() -> Any:
    """A byte-level tokenizer that puts a beginning-of-text token first."""
    return train_tokenizer(
        [
            TEXT,
            "Fact: Ada Lovelace plays the sport of golf",
            "Question: what? Answer:",
            " A B C D E F G H I J" * 40,
        ]
        * 3,
        330,
    )


def build(name: str) -> Any:
    """A random model, in float32, that may be changed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return t.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval().requires_grad_(False)


def written(name: str, parent: Path) -> Path:
    """A model folder in the standard layout."""
    folder = parent / name
    build(name).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
