"""What checks stand on: the device, bases, drawn rows and plans."""

from __future__ import annotations

import contextlib
import copy
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from plans import drawn_profile
from torch import nn
from transformers import LlamaConfig, LlamaForSequenceClassification

from spaces.methods.registry import make_plan, parse_choice
from spaces.plan import Plan
from spaces.target import BaseSize, TargetModule
from trainables.bases.structure import resolve_targets
from trainables.engine.workers import Workers, join
from trainables.tasks.task import Task
from trainables.tasks.texts import EncodedSplit
from trainables.training.observer import Observer

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
HEAD = "score"
BLOCK_CHOICES: Mapping[str, Mapping[str, Any]] = {
    "lora": {"rank": 8},
    "pilora": {"rank": 8, "supplementary_rank": 1},
    "taso": {"retention": 0.3},
    "sensitivity": {"mean_rank": 8},
    "joint": {"mean_rank": 8},
}
MIB, GIB = 2**20, 2**30


class Found(NamedTuple):
    """A check's figure, and what else is to be known of it."""

    figure: float
    text: str


class Skipped(Exception):  # noqa: N818  # it is no error
    """Why a check cannot be made here."""


@dataclass(frozen=True)
class Ground:
    """The device, a folder of the process's own, and what is closed at its end."""

    device: torch.device
    rehearsal: bool
    folder: Path
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, hash=False)

    @classmethod
    @contextlib.contextmanager
    def of(cls, rehearsal: bool, folder: Path) -> Iterator[Ground]:
        """On the CPU for a rehearsal, else on the first GPU."""
        ground = cls(torch.device("cpu" if rehearsal else "cuda:0"), rehearsal, folder)
        with ground.stack:
            yield ground

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def held(self) -> int:
        """Bytes of the tensors that live, on the device or, in a rehearsal, in the process."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()
            return torch.cuda.memory_allocated(self.device)
        found = (each for each in gc.get_objects() if isinstance(each, torch.Tensor))
        storages = (each.untyped_storage() for each in found)
        return sum({each.data_ptr(): each.nbytes() for each in storages}.values())

    def peak(self, work: Callable[[], object]) -> int:
        """The most bytes that are allocated while something is done; 0 in a rehearsal."""
        if not self.is_cuda:
            work()
            return 0
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device)

    def times(self, step: Callable[[], object], repeat: int) -> list[float]:
        """Seconds of each of some steps, after three that do not count."""
        found = []
        for turn in range(repeat + 3):
            self.wait()
            started = time.perf_counter()
            step()
            self.wait()
            if turn >= 3:
                found.append(time.perf_counter() - started)
        return found


@cache
def workers_of(ground: Ground) -> Workers:
    """This process as a group of one worker on the device, as Ray Train would have made it."""
    if ground.is_cuda:
        torch.cuda.set_device(ground.device)
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    workers = join(ground.device)
    if not ground.is_cuda:
        from deepspeed.accelerator import get_accelerator

        accelerator = get_accelerator()  # which knows no float16 on many a CPU that computes it
        accelerator.is_fp16_supported = lambda: True
    return workers


def llama(
    ground: Ground, dtype: torch.dtype, *, width: int, layers: int, **more: Any
) -> LlamaForSequenceClassification:
    """A frozen Llama of random weights, made on the device, that tells two classes apart."""
    shape = {"intermediate_size": 43 * width // 16, "num_attention_heads": max(4, width // 128)}
    config = LlamaConfig(
        hidden_size=width, num_hidden_layers=layers, num_labels=2, pad_token_id=0,
        **{**shape, "vocab_size": 512, **more},
    )  # fmt: skip
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with ground.device:
            model = LlamaForSequenceClassification(config)
    finally:
        torch.set_default_dtype(before)
    return model.requires_grad_(False).eval()


def small_llama(ground: Ground, dtype: torch.dtype, **more: Any) -> LlamaForSequenceClassification:
    """Two layers of width 64, with biases."""
    biases = {"attention_bias": True, "mlp_bias": True}
    return llama(ground, dtype, width=64, layers=2, initializer_range=0.1, **biases, **more)


def targets_of(model: nn.Module) -> tuple[TargetModule, ...]:
    """Its linear layers but for the head."""
    return resolve_targets(model, (HEAD,), LINEAR)


def head_of(model: nn.Module) -> dict[str, nn.Module]:
    """A copy of its head that trains."""
    return {HEAD: copy.deepcopy(model.get_submodule(HEAD)).requires_grad_(True)}


def plan_of(
    method: str, targets: Sequence[TargetModule], size: BaseSize | None = None, **keys: Any
) -> Plan:
    """The plan of a method's choice; a profile that it needs is drawn. Baselines ask for `size`."""
    choice = parse_choice({"method": method, **(keys or BLOCK_CHOICES.get(method, {}))})
    return make_plan(choice, targets, drawn_profile(tuple(targets)), size)


def drawn_split(rows: int, tokens: int, vocabulary: int = 512, seed: int = 0) -> EncodedSplit:
    """Rows of random tokens, all as long, of two classes."""
    rng = np.random.default_rng(seed)
    return EncodedSplit(
        input_ids=rng.integers(1, vocabulary, rows * tokens).astype(np.int32),
        offsets=np.arange(rows + 1, dtype=np.int64) * tokens,
        token_type_ids=None,
        labels=np.arange(rows, dtype=np.int64) % 2,
        pad_token_id=0,
    )


def task_of(train: EncodedSplit, dev: EncodedSplit | None = None) -> Task:
    """A task of two classes."""
    dev = drawn_split(8, 8, seed=1) if dev is None else dev
    return Task(
        name="drawn", kind="classification", labels=("0", "1"),
        splits={"train": train, "dev": dev}, metric="accuracy",
        train_fingerprint="t" * 64, fingerprint="f" * 64,
    )  # fmt: skip


class Clock(Observer):
    """The seconds of every step of a training job, and of its optimizer's part where asked for."""

    def __init__(self, ground: Ground, optimizer: bool = False) -> None:
        self._ground, self._optimizer = ground, optimizer
        self._last = 0.0
        self.steps: list[float] = []
        self.optimizer_steps: list[float] = []

    def restore(self, engine: Any, schedule: Any) -> None:
        """Called with the engine before its first step, which is what is wanted of it here."""
        step = engine.step

        def timed(*args: Any, **kwargs: Any) -> None:
            self._ground.wait()
            started = time.perf_counter()
            step(*args, **kwargs)
            self._ground.wait()
            self.optimizer_steps.append(time.perf_counter() - started)

        if self._optimizer:
            engine.step = timed

    def on_step(self, step: int, steps: int, learning_rate: float) -> None:
        self._ground.wait()
        now = time.perf_counter()
        if step > 1:
            self.steps.append(now - self._last)
        self._last = now
