"""How fast a 7B trains and is profiled, and what it takes of the device, alone on it.

A rehearsal does the same with a tiny Llama on the CPU.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import nn

from acceptance.ground import (
    GIB,
    LINEAR,
    Clock,
    Found,
    Ground,
    Skipped,
    drawn_split,
    head_of,
    llama,
    plan_of,
    targets_of,
    task_of,
    workers_of,
)
from spaces.target import TargetModule
from trainables.adaptations.registry import adaptation_for
from trainables.profiling.profile import compute_profile
from trainables.profiling.settings import ProfileSettings
from trainables.training.finetune import finetune
from trainables.training.settings import TrainSettings

PEAKS = {
    "H200": 989, "H100": 989, "GH200": 989, "H100 PCIe": 756, "B200": 2250, "A100": 312,
    "L40S": 362, "L4": 121, "A10G": 70,
}  # fmt: skip
"""Dense bf16 TFLOP/s that NVIDIA's data sheets name; of names that fit, the longest counts."""
ROWS, TOKENS, STEPS = 16, 128, 12
DROPOUT, RANK, ALPHA = 0.05, 8, 16


@dataclass(frozen=True)
class Seven:
    """A random Llama of a 7B's shapes in bf16, and what is asked of it."""

    model: nn.Module
    targets: tuple[TargetModule, ...]
    rows: int
    tokens: int

    @property
    def linear_params(self) -> int:
        """Numbers in its linear layers."""
        return sum(math.prod(target.shape) for target in self.targets)


@cache
def seven_of(ground: Ground) -> Seven:
    """The 7B, made on the device once a process."""
    if ground.rehearsal:
        model = llama(ground, torch.bfloat16, width=64, layers=2)
        return Seven(model, targets_of(model), 4, 16)
    model = llama(
        ground, torch.bfloat16, width=4096, layers=32, intermediate_size=11008, vocab_size=32000
    )
    return Seven(model, targets_of(model), ROWS, TOKENS)


def _peak_tflops(ground: Ground) -> float:
    """What the data sheet says of the device. Raises Skipped where it is not known."""
    name = torch.cuda.get_device_name(ground.device) if ground.is_cuda else "a CPU"
    known = [each for each in PEAKS if all(word in name for word in each.split())]
    if not known:
        raise Skipped(f"the peak of {name} is not known here")
    return float(PEAKS[max(known, key=len)])


def matmul(ground: Ground) -> Found:
    """The share of the peak that a large product reaches."""
    size = 8192 if ground.is_cuda else 256
    a, b = torch.randn(2, size, size, device=ground.device).bfloat16()
    seconds = median(ground.times(lambda: a @ b, 20))
    tflops = 2 * size**3 / seconds / 1e12
    peak = _peak_tflops(ground)
    return Found(tflops / peak, f"{tflops:.0f} of {peak:.0f} TFLOP/s")


# A training step, and PEFT's ----------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A step's seconds, and the peak of what is allocated in it, the base included."""

    seconds: float
    peak: int


@cache
def _ours(ground: Ground) -> Measured:
    """Whole steps of the training loop, the optimizer's included."""
    clock = Clock(ground)
    peak = ground.peak(lambda: _train(ground, "lora", clock))
    return Measured(median(clock.steps[2:]), peak)


def _train(ground: Ground, method: str, clock: Clock) -> None:
    seven = seven_of(ground)
    plan = plan_of(method, seven.targets, rank=RANK, alpha=ALPHA)
    split = drawn_split(STEPS * seven.rows, seven.tokens)
    settings = TrainSettings(epochs=1, batch_size=seven.rows, dropout=DROPOUT)
    with adaptation_for(plan, seven.model, seed=0, dropout=DROPOUT, head={}) as adaptation:
        finetune(
            seven.model, adaptation, task_of(split), settings, learning_rate=1e-4, seed=0,
            workers=workers_of(ground), evaluate_on=None, base_dropout=False, observer=clock,
        )  # fmt: skip


@cache
def _pefts(ground: Ground) -> Measured:
    """The same step as a script of one's own takes it: PEFT's layers in bf16, torch's AdamW."""
    from peft import LoraConfig, get_peft_model

    seven = seven_of(ground)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=list(LINEAR))
    trained: Any = get_peft_model(seven.model, config, autocast_adapter_dtype=False)
    trained.train()
    parameters = [each for each in trained.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)
    batch, labels = _batch(ground, seven)

    def step() -> None:
        logits = trained(**batch, use_cache=False).logits
        nn.functional.cross_entropy(logits, labels).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    times: list[float] = []
    peak = ground.peak(lambda: times.extend(ground.times(step, STEPS - 3)))
    trained.unload()
    seven.model.requires_grad_(False).eval()
    return Measured(median(times), peak)


def _batch(ground: Ground, seven: Seven) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    split = drawn_split(seven.rows, seven.tokens)
    ids = torch.from_numpy(split.input_ids).long().view(seven.rows, seven.tokens).to(ground.device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return batch, torch.from_numpy(split.labels).to(ground.device)


def tokens(ground: Ground) -> Found:
    """Tokens a second of PEFT's; MFU counts 4 FLOPs for each number of a linear layer and token.

    They are those of a forward pass and of the gradient of its input: a frozen weight has none.
    """
    seven, ours, pefts = seven_of(ground), _ours(ground), _pefts(ground)
    done = seven.rows * seven.tokens
    text = f"{done / ours.seconds:,.0f} tokens/s against {done / pefts.seconds:,.0f}"
    try:
        useful = 4 * seven.linear_params * done / 1e12 / _peak_tflops(ground)
        text += f", MFU {useful / ours.seconds:.1%} against {useful / pefts.seconds:.1%}"
    except Skipped as reason:
        text += f", no MFU: {reason}"
    return Found(pefts.seconds / ours.seconds, text)


def peak(ground: Ground) -> Found:
    """Peak memory of PEFT's."""
    ours, pefts = _ours(ground).peak, _pefts(ground).peak
    text = f"{ours / GIB:.1f} GiB against {pefts / GIB:.1f}"
    return Found(ours / pefts if pefts else math.nan, text)


# The frozen base ----------------------------------------------------------------------------------


def lora_floor(ground: Ground) -> Found:
    """Forward and backward with LoRA, of those of the frozen base."""
    return _of_floor(ground, "lora")


def joint_floor(ground: Ground) -> Found:
    """Forward and backward with joint's blocks, of those of the frozen base."""
    return _of_floor(ground, "joint")


def _of_floor(ground: Ground, method: str) -> Found:
    seven, floor = seven_of(ground), _floor(ground)
    plan = plan_of(method, seven.targets)
    batch, labels = _batch(ground, seven)
    with adaptation_for(plan, seven.model, seed=0, dropout=DROPOUT, head={}) as adaptation:
        stage = adaptation.begin_stage(0, 10).train()

        def step() -> None:
            nn.functional.cross_entropy(stage(dict(batch)), labels).backward()
            for parameter in stage.parameters():
                parameter.grad = None

        own = median(ground.times(step, STEPS))
    return Found(own / floor, f"{1000 * own:.1f} ms against {1000 * floor:.1f} ms")


@cache
def _floor(ground: Ground) -> float:
    """Seconds of forward and backward through the activations alone."""
    seven = seven_of(ground)
    batch, labels = _batch(ground, seven)
    entrance = seven.model.get_input_embeddings()  # type: ignore[operator]
    hook = entrance.register_forward_hook(lambda *call: call[2].requires_grad_(True))

    def step() -> None:
        logits = seven.model(**batch, use_cache=False).logits
        nn.functional.cross_entropy(logits, labels).backward()

    try:
        return median(ground.times(step, STEPS))
    finally:
        hook.remove()


def optimizer(ground: Ground) -> Found:
    """Milliseconds of the optimizer's part of a step, clipping and masters included."""
    clock = Clock(ground, optimizer=True)
    _train(ground, "lora", clock)
    spent = 1000 * median(clock.optimizer_steps[2:])
    factors = 2 * len(seven_of(ground).targets)
    return Found(spent, f"{factors} factors of rank {RANK}")


# The profile --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Profiled:
    """Seconds: of a training step, of a static pass's batch, of counting all masks."""

    step: float
    batch: float
    counting: float
    passes: int


@cache
def _profiled(ground: Ground) -> Profiled:
    seven, batches = seven_of(ground), 8
    events: dict[str, list[float]] = {"initial phase": [], "static pass": []}

    def on_progress(phase: str, _done: int, _total: int, _rate: float | None = None) -> None:
        events[phase].append(_now(ground))

    settings = ProfileSettings(
        target_modules=LINEAR, batch_size=seven.rows, calibration_batches="all", score_every=100,
        checkpoint_every=None,
    )  # fmt: skip
    compute_profile(
        seven.model, head_of(seven.model), seven.targets,
        task_of(drawn_split(batches * seven.rows, seven.tokens)), settings,
        workers=workers_of(ground), on_progress=on_progress,
    )  # fmt: skip
    end = _now(ground)
    trained, passed = events["initial phase"], events["static pass"]
    step, batch = (median(b - a for a, b in pairwise(each)) for each in (trained[1:], passed))
    counting = end - trained[-1] - len(passed) * batch
    gc.collect()
    return Profiled(step, batch, max(0.0, counting), len(passed) // batches)


def _now(ground: Ground) -> float:
    ground.wait()
    return time.perf_counter()


def static_pass(ground: Ground) -> Found:
    """A micro-batch of the static pass, in training steps of as many rows."""
    found = _profiled(ground)
    text = f"{1000 * found.batch:.0f} ms against {1000 * found.step:.0f} ms"
    return Found(found.batch / found.step, f"{text}; the rows go through {found.passes} times")


def counting(ground: Ground) -> Found:
    """Seconds from the last micro-batch to the profile, less what the batches take."""
    number = len(seven_of(ground).targets)
    return Found(_profiled(ground).counting, f"{number} matrices, four masks of two signals")


# Decompositions -----------------------------------------------------------------------------------


def svd(ground: Ground) -> Found:
    """A second trial's start with what the first has decomposed, of the first's."""
    seven = seven_of(ground)
    attention, mlp = (
        next(each for each in seven.targets if each.name.endswith(end))
        for end in ("q_proj", "down_proj")
    )
    first = {each: _seconds_to_start(ground, each) for each in (attention, mlp)}
    second = {each: _seconds_to_start(ground, each) for each in first}
    layers = len(seven.targets) // len(LINEAR)
    whole = layers * (4 * first[attention] + 3 * first[mlp])
    text = ", ".join(f"{each.name.split('.')[-1]} {s:.2f} s" for each, s in first.items())
    again = sum(second.values())
    return Found(
        again / sum(first.values()),
        f"{text}, {again:.2f} s the second time; all {layers} layers {whole:.0f} s (computed)",
    )


def _seconds_to_start(ground: Ground, target: TargetModule) -> float:
    seven = seven_of(ground)
    plan = plan_of("milora", (target,), rank=RANK)

    def start() -> None:
        with adaptation_for(plan, seven.model, seed=0, head={}) as adaptation:
            adaptation.begin_stage(0, 10)

    return _seconds(ground, start)


def _seconds(ground: Ground, work: Callable[[], object]) -> float:
    started = _now(ground)
    work()
    return _now(ground) - started
