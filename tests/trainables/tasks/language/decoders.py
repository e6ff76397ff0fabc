"""Tiny decoders with random weights, and tokenizers of bytes and a few merges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel

SPECIAL = ("<s>", "</s>")
TOKENS = 300
SHAPE = {
    "vocab_size": TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 256, "initializer_range": 0.3,
}  # fmt: skip
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SHAPE, num_key_value_heads=2),
    "qwen2": lambda: transformers.Qwen2Config(**SHAPE, num_key_value_heads=2),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3
    ),
    "bloom": lambda: transformers.BloomConfig(
        vocab_size=TOKENS, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3
    ),
    "mamba": lambda: transformers.MambaConfig(
        vocab_size=TOKENS, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.3
    ),
    "recurrent_gemma": lambda: transformers.RecurrentGemmaConfig(
        **{**SHAPE, "num_hidden_layers": 3},
        lru_width=32,
        head_dim=8,
        num_key_value_heads=1,
        attention_window_size=64,
    ),
    "mistral": lambda: transformers.MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=8),
}


def decoder(name: str, dtype: torch.dtype = torch.float64, attention: str | None = None) -> Any:
    """A causal language model of a family, all dropout off."""
    config = CONFIGS[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind = transformers.AutoModelForCausalLM
        model = kind.from_config(config, dtype=dtype, attn_implementation=attention)
    return model.eval()


def bytes_and_merges(texts: Sequence[str], special: Sequence[str]) -> Tokenizer:
    """A tokenizer of all bytes, of the merges that some texts teach it, and of special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS, special_tokens=list(special), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def byte_tokenizer(first: str | None = None, last: str | None = None) -> Any:
    """Bytes and their merges; `first` is put before every text, and `last` behind."""
    tokenizer = bytes_and_merges(["the film is a good film the plot is bad"] * 3, SPECIAL)
    if first or last:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(filter(None, [first, "$A", last])),
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in SPECIAL],
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=first, eos_token="</s>"
    )
