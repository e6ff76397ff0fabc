"""What is computed on the device is right: against the CPU, dense matrices and the base itself."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conditions import BASE, TARGET_MODULES
from torch import nn
from torch.func import functional_call

from acceptance.ground import (
    BLOCK_CHOICES,
    HEAD,
    LINEAR,
    MIB,
    Found,
    Ground,
    drawn_split,
    head_of,
    llama,
    plan_of,
    small_llama,
    targets_of,
    task_of,
    workers_of,
)
from spaces.methods.registry import METHODS
from spaces.plan import Plan
from spaces.profile import Profile
from trainables.adaptations.registry import adaptation_for
from trainables.bases.loading import Base, fresh_head, load_base
from trainables.bases.structure import base_size, resolve_targets
from trainables.engine.workers import CancelledError
from trainables.profiling.initial_phase import ScoredLoRA
from trainables.profiling.mask_counts import top_percent_counts
from trainables.profiling.profile import compute_profile
from trainables.profiling.settings import ProfileSettings
from trainables.tasks.split import outputs_of, to_device
from trainables.tasks.texts import EncodedSplit
from trainables.training.finetune import finetune
from trainables.training.observer import Observer
from trainables.training.settings import TrainSettings

HERE = Path(__file__).resolve().parents[1]
STEPS = 20
PROFILE = ProfileSettings(
    target_modules=LINEAR, rank=4, score_every=2, calibration_batches="all", batch_size=8,
    learning_rate=1e-3, checkpoint_every=2,
)  # fmt: skip


# The CPU ------------------------------------------------------------------------------------------


def cuda_cpu(ground: Ground) -> Found:
    """The largest relative difference of a loss; the CPU's side is a process of its own."""
    command = [sys.executable, "-m", "acceptance.correctness"]
    on_cpu = os.environ | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(command, cwd=HERE, env=on_cpu, stdout=subprocess.PIPE, text=True) as peer:
        own = losses_of_20_steps(ground)
        said, _ = peer.communicate()
    theirs = json.loads(said.splitlines()[-1])
    apart = [abs(a - b) / abs(b) for a, b in zip(own, theirs, strict=True)]
    return Found(max(apart), f"the loss goes from {own[0]:.6f} to {own[-1]:.6f}")


def losses_of_20_steps(ground: Ground) -> list[float]:
    """The training loss of each of 20 steps of joint on MiniLM in fp32, 16 x 32 tokens."""
    base = minilm(ground)
    targets = resolve_targets(base.model, base.head_modules, TARGET_MODULES)
    plan = plan_of("joint", targets, mean_rank=4)
    losses: list[float] = []

    class Listener(Observer):
        def on_epoch(self, epoch: int, report: dict[str, float]) -> None:
            losses.append(report["train_loss"])

    head = fresh_head(base, 0)
    with adaptation_for(plan, base.model, seed=0, head=head) as adaptation:
        finetune(
            base.model, adaptation, task_of(drawn_split(16, 32, vocabulary=20_000)),
            TrainSettings(epochs=STEPS, batch_size=16, dropout=0.0), learning_rate=1e-3, seed=0,
            workers=workers_of(ground), evaluate_on=None, base_dropout=False, observer=Listener(),
        )  # fmt: skip
    return losses


def minilm(ground: Ground) -> Base:
    """MiniLM in fp32, of two classes."""
    return load_base(BASE, "classification", 2, torch.float32, ground.device)


# Dense matrices -----------------------------------------------------------------------------------


def dense(ground: Ground) -> Found:
    """The largest difference of a logit after four steps, of what the steps have moved at most."""
    apart = {}
    for method in BLOCK_CHOICES:
        model = small_llama(ground, torch.float32)
        plan = plan_of(method, targets_of(model))
        split, start = drawn_split(8, 12), _drawn_factors(plan)
        settings = TrainSettings(
            epochs=4, batch_size=8, dropout=0.0, warmup_ratio=0.0, lr_scheduler="constant",
            max_grad_norm=None,
        )  # fmt: skip
        with adaptation_for(plan, model, seed=0, head={}) as adaptation:
            adaptation.start_from({n: t.to(ground.device) for n, t in start.items()})
            finetune(
                model, adaptation, task_of(split), settings, learning_rate=1e-3, seed=0,
                workers=workers_of(ground), evaluate_on=None, base_dropout=False,
            )  # fmt: skip
            found = _logits(ground, model, split)
        untouched = _logits(ground, model, split)
        wanted = _trained_densely(model, plan, start, split, settings.epochs, 1e-3)
        apart[method] = float((found - wanted).abs().max() / (wanted - untouched).abs().max())
    return Found(max(apart.values()), ", ".join(f"{n} {each:.1e}" for n, each in apart.items()))


def _drawn_factors(plan: Plan) -> dict[str, torch.Tensor]:
    """Factors of every block, none of them zero, by the names that an adaptation has for them."""
    generator = torch.Generator().manual_seed(3)
    return {
        f"stage{index}/{name}/block{j}/{factor}": 0.05 * torch.randn(*shape, generator=generator)
        for index, stage in enumerate(plan.stages)
        for name, blocks in stage.items()
        for j, block in enumerate(blocks)
        for factor, shape in (
            ("A", (block.rank, len(block.cols))),
            ("B", (len(block.rows), block.rank)),
        )
    }


@torch.no_grad()
def _logits(ground: Ground, model: nn.Module, split: EncodedSplit) -> torch.Tensor:
    model.eval()
    batch = to_device(split.batch(np.arange(len(split))), workers_of(ground))
    batch.pop("labels")
    return outputs_of(model, batch).double().cpu()


def _trained_densely(
    model: nn.Module,
    plan: Plan,
    start: Mapping[str, torch.Tensor],
    split: EncodedSplit,
    steps: int,
    learning_rate: float,
) -> torch.Tensor:
    """The logits after as many steps with W + scale B A written out, float64 on the CPU."""
    exact = copy.deepcopy(model).cpu().double()
    factors = {name: t.double().requires_grad_() for name, t in start.items()}
    shapes = {target.name: target.shape for target in plan.targets}
    batch = split.batch(np.arange(len(split)))
    labels = batch.pop("labels")

    def logits(stages: int) -> torch.Tensor:
        weights = {}
        for index, stage in enumerate(plan.stages[:stages]):
            for name, blocks in stage.items():
                for j, block in enumerate(blocks):
                    place = f"stage{index}/{name}/block{j}"
                    update = block.scale * factors[f"{place}/B"] @ factors[f"{place}/A"]
                    rows, cols = torch.tensor(block.rows).long(), torch.tensor(block.cols).long()
                    whole = torch.zeros(shapes[name], dtype=torch.float64)
                    whole = whole.index_put((rows[:, None], cols[None, :]), update)
                    weight = weights.get(name, exact.get_submodule(name).weight)
                    weights[name] = weight + whole
        named = {f"{name}.weight": weight for name, weight in weights.items()}
        found: torch.Tensor = functional_call(exact, named, (), dict(batch)).logits
        return found

    for index, stage in enumerate(plan.stages):
        number = len(plan.stages)
        own = (index + 1) * steps // number - index * steps // number
        groups = [
            {
                "params": [factors[f"stage{index}/{name}/block{j}/{factor}"] for factor in "AB"],
                "lr": learning_rate * block.lr_scale,
            }
            for name, blocks in stage.items()
            for j, block in enumerate(blocks)
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        for _ in range(own):
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits(index + 1), labels).backward()
            optimizer.step()
    return logits(len(plan.stages)).detach()


# Every method in 16 bits --------------------------------------------------------------------------


def bf16(ground: Ground) -> Found:
    """How many of all methods fail or change the base."""
    return _every_method(ground, torch.bfloat16)


def fp16(ground: Ground) -> Found:
    """How many of all methods fail or change the base."""
    return _every_method(ground, torch.float16)


def _every_method(ground: Ground, dtype: torch.dtype) -> Found:
    model = small_llama(ground, dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wrong = {}
    for method in METHODS:
        try:
            _train_shortly(ground, model, method)
        except Exception as error:
            lines = str(error).splitlines() or [""]
            wrong[method] = f"{type(error).__name__}: {lines[0][:120]}"
        state = model.state_dict()
        differ = [n for n, tensor in before.items() if not torch.equal(state[n], tensor)]
        if differ or state.keys() != before.keys():
            wrong[method] = f"{len(differ)} tensors of the base are changed"
            model = small_llama(ground, dtype)
    said = "; ".join(f"{method}: {why}" for method, why in wrong.items())
    return Found(len(wrong), f"{len(METHODS)} methods; {said or 'the base is bit-equal'}")


def _train_shortly(ground: Ground, model: nn.Module, method: str) -> None:
    """Three steps and a measurement. Raises ValueError where a number is not finite."""
    plan = plan_of(method, targets_of(model), base_size(model, (HEAD,)))
    settings = TrainSettings(epochs=1, batch_size=8, warmup_ratio=0.0)
    with adaptation_for(
        plan, model, seed=0, dropout=settings.dropout, head=head_of(model)
    ) as adaptation:
        report = finetune(
            model, adaptation, task_of(drawn_split(24, 12)), settings,
            learning_rate=1e-3, seed=0, workers=workers_of(ground),
        )  # fmt: skip
    for name in ("train_loss", "dev_loss"):
        if not np.isfinite(report[name]):
            raise ValueError(f"{name} is {report[name]}")


# The profile --------------------------------------------------------------------------------------


def overflow(ground: Ground) -> Found:
    """Steps whose gradients overflowed, which the loss scaler refused, and that count as scored."""
    skipped: list[bool] = []
    told = ScoredLoRA.after_step

    def after_step(self: ScoredLoRA, refused: bool, learning_rate: float) -> None:
        skipped.append(refused)
        told(self, refused, learning_rate)

    model = small_llama(ground, torch.float16)
    head = head_of(model)
    with torch.no_grad():
        head[HEAD].weight.mul_(20)  # its gradients then pass float16's largest number at first
    ScoredLoRA.after_step = after_step  # type: ignore[method-assign]
    try:
        settings = PROFILE.model_copy(update={"score_every": 1, "max_grad_norm": None})
        profile = _profile(ground, model, 160, settings, head)
    finally:
        ScoredLoRA.after_step = told  # type: ignore[method-assign]
    if not any(skipped) or all(skipped):
        raise ValueError(f"{sum(skipped)} of {len(skipped)} steps overflowed: nothing is shown")
    for module in profile.modules.values():
        if not all(np.isfinite(values).all() for values in vars(module).values()):
            raise ValueError("a statistic is not finite")
    scored = profile.scored_steps - (len(skipped) - sum(skipped))
    return Found(abs(scored), f"{sum(skipped)} of {len(skipped)} steps overflowed")


def mask_counts(ground: Ground) -> Found:
    """Counts that differ, over matrices of both shapes, with ties, stored either way."""
    generator = torch.Generator().manual_seed(0)
    grid, differ, counted = (1.0, 2.0, 5.0, 10.0), 0, 0
    for shape in ((300, 1100), (1100, 300)):
        drawn = torch.rand(*shape, generator=generator)
        for score in (drawn, (100 * drawn).round(), drawn.T.contiguous().T, drawn.clamp(min=0.97)):
            own = top_percent_counts(score.to(ground.device), grid)
            theirs = top_percent_counts(score, grid)
            differ += sum(int((a != b).sum()) for a, b in zip(own, theirs, strict=True))
            counted += sum(each.size for each in theirs)
    return Found(differ, f"of {counted:,}")


class Objects(dict[str, bytes]):
    """A store in memory."""

    def put(self, name: str, content: bytes) -> None:
        self[name] = content

    def delete(self, name: str) -> bool:
        return self.pop(name, None) is not None

    def list(self, prefix: str) -> tuple[str, ...]:
        return tuple(name for name in self if name.startswith(f"{prefix}/"))


def resumed(ground: Ground) -> Found:
    """Values that differ, of a profile that was interrupted in both of its phases."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        model = small_llama(ground, torch.float32, attn_implementation="eager")
        whole = _profile(ground, model, 64, PROFILE)
        storage, goes_on = Objects(), [5, 8]  # steps until each interruption, of 8 and 8
        for steps in goes_on:
            _interrupted(ground, model, storage, steps)
        profile = _profile(ground, model, 64, PROFILE, checkpoints=storage)
    finally:
        torch.use_deterministic_algorithms(False)
    differ = total = 0
    for name, module in whole.modules.items():
        for field, values in vars(module).items():
            differ += int((values != getattr(profile.modules[name], field)).sum())
            total += values.size
    return Found(differ, f"of {total:,}, in fp32 with deterministic algorithms")


def _interrupted(ground: Ground, model: nn.Module, storage: Objects, steps: int) -> None:
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == steps

    try:
        _profile(ground, model, 64, PROFILE, checkpoints=storage, should_stop=should_stop)
    except CancelledError:
        return
    raise ValueError(f"the profile was done before {steps} steps")


def _profile(
    ground: Ground,
    model: nn.Module,
    rows: int,
    settings: ProfileSettings,
    head: Mapping[str, nn.Module] | None = None,
    **more: Any,
) -> Profile:
    return compute_profile(
        model, head or head_of(model), targets_of(model), task_of(drawn_split(rows, 12)), settings,
        workers=workers_of(ground), on_message=print, **more,
    )  # fmt: skip


def memory_limit(ground: Ground) -> Found:
    """The peak of the static pass within a limit that a third of the accumulators fit into."""
    width = 64 if ground.rehearsal else 2048
    model = llama(ground, torch.float32, width=width, layers=2)
    targets = targets_of(model)
    accumulators = sum(4 * target.shape[0] * target.shape[1] for target in targets)
    free = _static_peak(ground, model, None)
    limit = free[0] - 2 * accumulators // 3 if ground.is_cuda else 2**40
    peak, passes = _static_peak(ground, model, limit)
    return Found(
        peak / limit,
        f"{peak / MIB:.0f} MiB in {passes} passes within {limit / MIB:.0f} MiB, "
        f"{free[0] / MIB:.0f} MiB in {free[1]} without a limit",
    )


def _static_peak(ground: Ground, model: nn.Module, limit: int | None) -> tuple[int, int]:
    """The most bytes that are allocated in a static pass, and how often the rows go through."""
    batches, passes = 64 // PROFILE.batch_size, 1
    peak = 0

    def on_progress(phase: str, done: int, total: int, _rate: float | None = None) -> None:
        nonlocal passes
        if phase == "static pass":
            passes = total // batches
        elif done == total and ground.is_cuda:
            torch.cuda.reset_peak_memory_stats(ground.device)

    settings = PROFILE.model_copy(update={"memory_limit": limit, "checkpoint_every": None})
    _profile(ground, model, 64, settings, on_progress=on_progress)
    if ground.is_cuda:
        peak = torch.cuda.max_memory_allocated(ground.device)
    return peak, passes


# What jobs leave behind ---------------------------------------------------------------------------


def growth(ground: Ground) -> Found:
    """MiB that are held after ten jobs more than before, each method having had one already."""
    base = minilm(ground)
    targets = resolve_targets(base.model, base.head_modules, TARGET_MODULES)
    plans = [plan_of(method, targets) for method in BLOCK_CHOICES]
    held = [_held_after(ground, base, plan) for plan in (*plans, *plans, *plans)]
    return Found(
        (held[-1] - held[len(plans) - 1]) / MIB,
        f"{held[-1] / MIB:.2f} MiB held after the last job",
    )


def _held_after(ground: Ground, base: Base, plan: Plan) -> int:
    task = task_of(drawn_split(16, 16), drawn_split(8, 16, seed=1))
    with adaptation_for(
        plan, base.model, seed=0, dropout=0.05, head=fresh_head(base, 0)
    ) as adaptation:
        finetune(
            base.model, adaptation, task, TrainSettings(epochs=1, batch_size=8),
            learning_rate=1e-3, seed=0, workers=workers_of(ground),
        )  # fmt: skip
    del adaptation
    return ground.held()


if __name__ == "__main__":  # the CPU's side of `cuda_cpu`
    with Ground.of(True, Path.cwd()) as ground:
        print(json.dumps(losses_of_20_steps(ground)))
