"""Tiny bases with random weights, one of each family, and a task for each.

A base is written as its publishers write it: safetensors, config, and tokenizer or image processor;
nothing is fetched. `make` gives what a claim about a family needs. The fixture `family` of
conftest.py runs a test once for each of `FAMILIES`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from trainables.tasks.settings import TaskSettings
from trainables.tasks.task import Task, build_task

GOOD, BAD = ("good", "fine", "great"), ("bad", "poor", "awful")
WORDS = (*GOOD, *BAD, "film", "plot", "scene", "actor", "a", "the")
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # RoBERTa's positions begin after its padding, token 1
BYTES = 300  # vocabulary of a tokenizer of bytes and their merges
ROWS = {"train": 13, "dev": 7, "test": 6}
SIDE, PATCH = 8, 4  # pixels

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SPREAD = {"initializer_range": 0.3}  # so that no two entries of a mask are nearly alike
TEXT = {**SHAPE, **SPREAD, "vocab_size": len(SPECIAL) + len(WORDS), "intermediate_size": 24}
ENCODER = {**TEXT, "max_position_embeddings": 20, "pad_token_id": 1}
DECODER = {**TEXT, "max_position_embeddings": 20, "num_key_value_heads": 1, "eos_token_id": 2}
PICTURES = {**SHAPE, **SPREAD, "intermediate_size": 24, "image_size": SIDE, "patch_size": PATCH}


@dataclass(frozen=True)
class Family:
    """One family: its config, how its checkpoints are saved, and what is expected of it.

    `head` are the modules that a checkpoint lacks; `suffixes` the target modules that are usual.
    """

    config: Any
    saved_as: Any
    head: tuple[str, ...]
    suffixes: tuple[str, ...]
    tokenizer: str = "words"
    processor: Any = None

    @property
    def kind(self) -> str:
        """The kind of task it is for."""
        return "classification" if self.processor is None else "image_classification"


@dataclass(frozen=True)
class Made:
    """A base on disk and a task made ready for it."""

    name: str
    family: Family
    uri: str
    kind: str
    task: Task
    settings: TaskSettings
    suffixes: tuple[str, ...]


FAMILIES: Mapping[str, Family] = {
    "bert": Family(
        transformers.BertConfig(**ENCODER),
        transformers.AutoModel,
        ("classifier",),
        ("query", "key", "value", "intermediate.dense", "output.dense"),
    ),
    "roberta": Family(
        transformers.RobertaConfig(**ENCODER),
        transformers.AutoModelForMaskedLM,
        ("classifier",),
        ("query", "value", "output.dense"),
    ),
    "deberta-v2": Family(  # as version 3: positions go through the projections of tokens
        transformers.DebertaV2Config(
            **ENCODER, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8,
            share_att_key=True, position_biased_input=False, norm_rel_ebd="layer_norm",
        ),
        transformers.AutoModel,
        ("pooler", "classifier"),
        ("query_proj", "key_proj", "value_proj", "output.dense"),
    ),
    "albert": Family(  # its layers are one layer, called several times
        transformers.AlbertConfig(**ENCODER, embedding_size=8),
        transformers.AutoModel,
        ("classifier",),
        ("query", "value", "attention.dense", "ffn", "ffn_output"),
    ),
    "gpt2": Family(  # its weights are stored transposed
        transformers.GPT2Config(
            vocab_size=BYTES, n_embd=16, n_layer=2, n_head=2, n_positions=20,
            eos_token_id=0, bos_token_id=0, **SPREAD,
        ),
        transformers.AutoModelForCausalLM,
        ("score",),
        ("c_attn", "c_proj", "c_fc"),
        tokenizer="bytes",
    ),
    "llama": Family(
        transformers.LlamaConfig(**DECODER),
        transformers.AutoModelForCausalLM,
        ("score",),
        ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj"),
        tokenizer="words without padding",
    ),
    "qwen2": Family(
        transformers.Qwen2Config(**{**DECODER, "vocab_size": BYTES, "eos_token_id": 0}),
        transformers.AutoModelForCausalLM,
        ("score",),
        ("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"),
        tokenizer="bytes",
    ),
    "vit": Family(
        transformers.ViTConfig(**PICTURES),
        transformers.AutoModel,
        ("classifier",),
        ("q_proj", "v_proj", "o_proj", "fc1", "fc2"),
        processor=transformers.ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}),
    ),
    "clip": Family(  # published with its text model, of which a classifier of pictures has no use
        transformers.CLIPConfig(
            vision_config={**PICTURES, "initializer_factor": 5.0},
            text_config={
                **TEXT, "max_position_embeddings": 20, "bos_token_id": 0, "eos_token_id": 2,
            },
        ),
        transformers.AutoModel,
        ("classifier",),
        ("q_proj", "v_proj", "out_proj", "fc1", "fc2"),
        processor=transformers.CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
    ),
}  # fmt: skip


def make(name: str, folder: Path) -> Made:
    """Write a family's base and data into `folder`, and the task that they make."""
    family = FAMILIES[name]
    base = folder / "base"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        family.saved_as.from_config(family.config).save_pretrained(base)
    if family.processor is None:
        _tokenizer(family.tokenizer).save_pretrained(base)
    else:
        family.processor.save_pretrained(base)
    rows = _sentences if family.processor is None else _pictures
    rng = np.random.default_rng(0)
    for split, number in ROWS.items():
        pq.write_table(pa.table(rows(rng, number)), folder / f"{split}.parquet")
    column = "text" if family.processor is None else "image"
    settings = TaskSettings.model_validate({
        "name": f"tiny-{name}",
        "kind": family.kind,
        "data": {split: str(folder / f"{split}.parquet") for split in ROWS},
        column: column,
        "max_length": 16,
    })  # fmt: skip
    uri = f"path:{base}"
    task = build_task(settings, uri)
    return Made(name, family, uri, family.kind, task, settings, family.suffixes)


def _tokenizer(kind: str) -> Any:
    """A tokenizer of whole words or of bytes; those of decoders have no padding token."""
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=BYTES, special_tokens=["<|endoftext|>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
        tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token="<|endoftext|>"
        )
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = {"unk_token": "<unk>", "eos_token": "</s>"}
    if kind == "words":
        tokens["pad_token"] = "<pad>"
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)


def _sentences(rng: np.random.Generator, number: int) -> dict[str, list[Any]]:
    """Sentences of 3 to 9 words; positive ones have more good words than bad ones."""
    rows = [rng.choice(WORDS, rng.integers(3, 10)) for _ in range(number)]
    positive = [int(np.isin(r, GOOD).sum() > np.isin(r, BAD).sum()) for r in rows]
    positive[:2] = [0, 1]  # both classes are there
    return {"text": [" ".join(row) for row in rows], "label": positive}


def _pictures(rng: np.random.Generator, number: int) -> dict[str, list[Any]]:
    """PNG pictures of noise, larger than the base reads them; those of class 1 are brighter."""
    labels = [i % 2 for i in range(number)]
    encoded = []
    for label in labels:
        noise = rng.integers(0, 156, (SIDE + 4, SIDE + 4, 3)) + 100 * label
        buffer = io.BytesIO()
        Image.fromarray(noise.astype(np.uint8)).save(buffer, format="PNG")
        encoded.append(buffer.getvalue())
    return {"image": encoded, "label": labels}
