"""Tiny decoders with random weights and a tokenizer of bytes and their merges, made in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers

from tests.trainables.tasks.language.decoders import TOKENS, bytes_and_merges

POSITIONS = 96
TEXT = ("a film of two halves", "the plot is thin", "the actors are fine", "\n\nThe End\n\n") * 3

_SHAPE = {
    "vocab_size": TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": POSITIONS,
    "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
CONFIGS: Mapping[str, Any] = {
    "llama": transformers.LlamaConfig(**_SHAPE),
    "qwen2": transformers.Qwen2Config(**_SHAPE),
    "gpt2": transformers.GPT2Config(
        vocab_size=TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=POSITIONS,
        initializer_range=0.3, bos_token_id=0, eos_token_id=0,
    ),
}  # fmt: skip


def decoder(name: str, seed: int = 0) -> Any:
    """A decoder of a family, float32, its own dropout off."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(CONFIGS[name]).eval()


def byte_tokenizer() -> Any:
    """A tokenizer that knows every text; its one special token ends a text."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytes_and_merges(TEXT, ["<|end|>"]),
        bos_token="<|end|>", eos_token="<|end|>", model_max_length=POSITIONS,
    )  # fmt: skip
