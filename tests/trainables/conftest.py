"""A tiny base and a tiny task that the worker's tests share."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from transformers import BertConfig, BertForSequenceClassification

from tests.trainables.families import FAMILIES, Made, make
from trainables.adaptations.adaptation import StageParameters
from trainables.engine.workers import Workers, join
from trainables.tasks.task import Task
from trainables.tasks.texts import EncodedSplit
from trainables.training.observer import Observer

VOCABULARY = 40


def join_in_float64() -> Workers:
    """Join the process group and let DeepSpeed reduce float64, which it refuses by default.

    The oracles are in float64, where floating-point order hides nothing.
    """
    workers = join(torch.device("cpu"))
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    known = accelerator.supported_dtypes()
    accelerator.supported_dtypes = lambda: [*known, torch.float64]
    return workers


def run_group(work: Callable[..., None], size: int, folder: Path, *arguments: Any) -> None:
    """Run `work(workers, folder, *arguments)` on each of `size` processes that are one group.

    They meet in `folder`. `work` stands at a module's top level, for it is named to a new process.
    """
    torch.multiprocessing.spawn(_member, (work, size, folder, arguments), nprocs=size)


def _member(
    rank: int, work: Callable[..., None], size: int, folder: Path, arguments: tuple[Any, ...]
) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(f"{folder}/store", size), rank=rank,
        world_size=size,
    )  # fmt: skip
    work(join_in_float64(), folder, *arguments)
    torch.distributed.destroy_process_group()
    # Left to end by itself, a process that has had threads of gloo's aborts now and then.
    os._exit(0)


@pytest.fixture(scope="session")
def alone() -> Workers:
    """A group of one worker in this process."""
    return join_in_float64()


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A tiny base of each family and a task for it; a test that asks for it runs for every one."""
    return make(request.param, tmp_path_factory.mktemp(request.param))


def hearing(**hooks: Callable[..., Any]) -> Observer:
    """Who hears of a training job by functions named as an observer's; `on_step` of the step."""
    observer = Observer()
    if (on_step := hooks.pop("on_step", None)) is not None:
        hooks["on_step"] = lambda step, *_: on_step(step)
    vars(observer).update(hooks)
    return observer


def tiny_bert(
    dtype: torch.dtype = torch.float64, dropout: float = 0.0, seed: int = 0
) -> BertForSequenceClassification:
    """A two-layer BERT classifier with random weights, frozen and in evaluation mode."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=32, num_labels=2,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        initializer_range=0.3,
    )  # fmt: skip
    model = BertForSequenceClassification(config).to(dtype)
    return model.requires_grad_(False).eval()


def adapters_of(stage: StageParameters) -> list[Any]:
    """What a stage trains of each module; their factors are known by the names of its method."""
    return list(stage.adapters)


def split_of(rows: int, seed: int) -> EncodedSplit:
    """Rows of random tokens; the label says whether the first token is in the vocabulary's half."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 12, rows)
    tokens = rng.integers(1, VOCABULARY, int(lengths.sum())).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    labels = (tokens[offsets[:-1]] >= VOCABULARY // 2).astype(np.int64)
    return EncodedSplit(
        input_ids=tokens, offsets=offsets, token_type_ids=None, labels=labels, pad_token_id=0
    )


def tiny_task(train: int = 21, dev: int = 10) -> Task:
    """A two-class task of random token rows."""
    return Task(
        name="tiny", kind="classification", labels=("0", "1"),
        splits={"train": split_of(train, 1), "dev": split_of(dev, 2)},
        metric="accuracy", train_fingerprint="t" * 64, fingerprint="f" * 64,
    )  # fmt: skip


def head_of(model: Any, seed: int = 0) -> dict[str, Any]:
    """A fresh, trainable head for a tiny model."""
    import copy

    head = copy.deepcopy(model.classifier)
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(head.weight.shape[1])
    with torch.no_grad():
        drawn = torch.rand(head.weight.shape, generator=generator, dtype=torch.float64)
        head.weight.copy_((2 * drawn - 1) * bound)
        head.bias.zero_()
    return {"classifier": head.requires_grad_(True)}


@pytest.fixture
def model() -> BertForSequenceClassification:
    return tiny_bert()


@pytest.fixture
def task() -> Task:
    return tiny_task()
