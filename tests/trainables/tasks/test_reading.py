"""Measuring puts no more through a base at once than a number of tokens, and keeps none of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from tests.trainables.families import TEXT
from trainables.bases.key_values import key_value_bytes
from trainables.engine.workers import Workers
from trainables.tasks.language.generation_settings import GenerationSettings
from trainables.tasks.language.writing import CACHE_BYTES, batches_by_tokens, tokens_within
from trainables.tasks.pictures import ImageSplit
from trainables.tasks.reading import EVALUATION_TOKENS, outputs_of_rows
from trainables.tasks.texts import EncodedSplit

DECODER = {**TEXT, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 1}


def texts(lengths: np.ndarray[Any, np.dtype[np.int64]]) -> EncodedSplit:
    offsets = np.concatenate([[0], lengths.cumsum()])
    ids = np.random.default_rng(0).integers(2, 14, offsets[-1]).astype(np.int32)
    return EncodedSplit(ids, offsets, None, np.zeros(len(lengths), np.int64), 1)


def classifier() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(**DECODER, max_position_embeddings=900, num_labels=2)
        return transformers.LlamaForSequenceClassification(config).eval()


@torch.no_grad()
def test_passes_are_within_the_tokens_and_keep_none() -> None:
    model, split = classifier(), texts(np.random.default_rng(1).integers(3, 700, 12))
    sizes, kept = [], []

    def seen(_model: nn.Module, _args: Any, given: dict[str, Any], outputs: Any) -> None:
        sizes.append(given["input_ids"].numel())
        kept.append(outputs.past_key_values)

    handle = model.register_forward_hook(seen, with_kwargs=True)
    found = outputs_of_rows(model, split, 2, Workers(0, 1, torch.device("cpu")))
    handle.remove()
    assert max(sizes) <= EVALUATION_TOKENS
    assert kept == [None] * len(sizes)
    assert len(sizes) < len(split)
    for row in range(len(split)):
        ids = torch.from_numpy(split.batch(np.array([row]))["input_ids"].numpy())
        alone = model(input_ids=ids, use_cache=False).logits[0].double()
        torch.testing.assert_close(found[row], alone, rtol=1e-4, atol=1e-5)


def test_pictures_count_by_their_patches() -> None:
    split = ImageSplit(np.zeros((40, 3, 8, 8), np.float32), np.zeros(40, np.int64), 197)
    assert split.measuring_work(on_cpu=True).passes == math.ceil(40 / (EVALUATION_TOKENS // 197))


def test_keys_and_values_of_a_token() -> None:
    with torch.no_grad():
        config = transformers.LlamaConfig(**DECODER)
        model = transformers.LlamaForCausalLM(config).eval()
        cache = model(input_ids=torch.tensor([[3, 4, 5]]), use_cache=True).past_key_values
    held = sum(
        tensor.numel() * tensor.itemsize
        for each in cache.layers
        for tensor in (each.keys, each.values)
    )
    assert 3 * key_value_bytes(config, torch.float32) == held
    assert key_value_bytes(transformers.MambaConfig(), torch.float32) == 0
    seven_billion = transformers.LlamaConfig(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32
    )
    at_most = tokens_within(CACHE_BYTES, seven_billion, torch.bfloat16)
    assert at_most == 4096
    settings = GenerationSettings(max_new_tokens=24, batch_tokens=4096)
    assert [len(rows) for rows in batches_by_tokens([1000] * 5, settings, at_most)] == [4, 1]
    assert [len(rows) for rows in batches_by_tokens([1000] * 5, settings, 2100)] == [2, 2, 1]
