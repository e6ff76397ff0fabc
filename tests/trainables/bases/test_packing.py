"""Which families compute packed rows as they compute them apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from trainables.bases.packing import packs_exactly

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 211}
GATED = {**SHAPE, "intermediate_size": 48, "num_key_value_heads": 2, "initializer_range": 0.2}
WINDOW = {"sliding_window": 4, "use_sliding_window": True}

PACKING: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**GATED),
    "qwen2": lambda: transformers.Qwen2Config(**GATED),
    "qwen2 with a window": lambda: transformers.Qwen2Config(**GATED, **WINDOW, max_window_layers=1),
    "qwen3": lambda: transformers.Qwen3Config(**GATED, head_dim=8),
    "mistral with a window": lambda: transformers.MistralConfig(**GATED, sliding_window=4),
    "gemma2": lambda: transformers.Gemma2Config(**GATED, head_dim=8, sliding_window=4),
    "gemma3": lambda: transformers.Gemma3TextConfig(**GATED, head_dim=8, sliding_window=4),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=211, initializer_range=0.2
    ),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(
        **SHAPE, intermediate_size=48, initializer_range=0.2
    ),
    "mixtral": lambda: transformers.MixtralConfig(**GATED, num_local_experts=4),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "bloom (ALiBi)": lambda: transformers.BloomConfig(
        hidden_size=32, n_layer=2, n_head=4, vocab_size=211, initializer_range=0.2
    ),
    "mpt (ALiBi)": lambda: transformers.MptConfig(
        d_model=32, n_heads=4, n_layers=2, vocab_size=211, initializer_range=0.2
    ),
    "mamba": lambda: transformers.MambaConfig(
        hidden_size=32, num_hidden_layers=2, vocab_size=211, state_size=4, initializer_range=0.2
    ),
    "rwkv": lambda: transformers.RwkvConfig(
        hidden_size=32, attention_hidden_size=32, num_hidden_layers=2, vocab_size=211
    ),
    "recurrent gemma": lambda: transformers.RecurrentGemmaConfig(
        **GATED, lru_width=32, attention_window_size=8, block_types=["recurrent", "attention"]
    ),
}
UNSURE: dict[str, Callable[[], Any]] = {
    "falcon with ALiBi": lambda: transformers.FalconConfig(
        **SHAPE, alibi=True, initializer_range=0.2
    ),
    "opt": lambda: transformers.OPTConfig(
        **SHAPE, ffn_dim=48, word_embed_proj_dim=32, init_std=0.2
    ),
}


def tiny(config: Any, attention: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        given = {} if attention is None else {"attn_implementation": attention}
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, **given).eval()


def is_exact(model: Any) -> bool:
    """Brute force: the logits of rows in two lines, the first padded, against each row alone."""
    long, short, other = torch.arange(3, 16), torch.arange(40, 51), torch.arange(90, 120)
    padding = torch.zeros(6, dtype=torch.long)
    lines = torch.stack([torch.cat([long, short, padding]), other])
    places = [torch.arange(len(row)) for row in (long, short, padding, other)]
    position_ids = torch.stack([torch.cat(places[:3]), places[3]])
    with torch.no_grad():
        alone = [model(input_ids=row[None], use_cache=False).logits[0] for row in (short, other)]
        try:
            packed = model(input_ids=lines, position_ids=position_ids, use_cache=False).logits
        except TypeError:  # no such argument
            return False
    return all(
        torch.allclose(found, wanted, rtol=1e-3, atol=1e-4)
        for found, wanted in zip((packed[0, 13:24], packed[1]), alone, strict=True)
    )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", PACKING)
def test_families_with_positions_pack(family: str, attention: str) -> None:
    if family == "gemma2":  # transformers has no sdpa for it
        attention = "eager"
    model = tiny(PACKING[family](), attention)
    assert is_exact(model)
    assert packs_exactly(model)


@pytest.mark.parametrize("family", [*OTHERS, *UNSURE])
def test_what_other_families_say_is_true(family: str) -> None:
    model = tiny((OTHERS | UNSURE)[family]())
    assert packs_exactly(model) is is_exact(model)
    if family in OTHERS:
        assert not packs_exactly(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("family", "packs"), [("llama", True), ("bloom (ALiBi)", False)])
def test_rounding_is_told_from_a_leak_in_every_precision(
    family: str, packs: bool, dtype: torch.dtype
) -> None:
    assert packs_exactly(tiny((PACKING | OTHERS)[family](), dtype=dtype)) is packs


def test_the_model_is_left_as_it_was() -> None:
    model = tiny(transformers.LlamaConfig(**GATED, attention_dropout=0.5))
    model.model.layers[0].train()
    before = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    assert packs_exactly(model)
    assert [module.training for module in model.modules()] == before
    assert torch.equal(torch.random.get_rng_state(), state)


def test_attention_that_packs_a_single_line_alone_does_not_pack() -> None:
    """As flash attention does: rows in several lines would see each other."""
    model = tiny(PACKING["llama"]())
    forward = model.model.forward

    def flash(*args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        if position_ids is not None and len(position_ids) > 1:
            position_ids = torch.arange(position_ids.shape[1])[None]
        return forward(*args, position_ids=position_ids, **kwargs)

    model.model.forward = flash
    assert not packs_exactly(model)


@pytest.mark.parametrize(
    "config",
    [
        transformers.LlamaConfig(**GATED, max_position_embeddings=16),
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=211, n_positions=16),
    ],
)
def test_a_base_without_the_positions_does_not_pack(config: Any) -> None:
    assert not packs_exactly(tiny(config))


@pytest.mark.parametrize("error", [IndexError, TypeError, RuntimeError, ValueError])
def test_whatever_a_base_raises_it_does_not_pack_and_is_left_as_it_was(
    error: type[Exception],
) -> None:
    model = tiny(PACKING["llama"]())
    model.train()
    forward = model.model.forward

    def alone(*args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        if position_ids is not None:
            raise error("no such positions")
        return forward(*args, **kwargs)

    model.model.forward = alone
    assert not packs_exactly(model)
    assert all(module.training for module in model.modules())
