"""All that an optimizer step of a DeepSpeed engine depends on, whole, however ZeRO divides it.

State that one group of workers has given may be put into an engine of a group of another size, or
of another ZeRO stage (0, 1 or 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.utils import (
    lazy_init_hp_params_optimizer_state,
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
)
from torch import nn

from trainables.engine.masters import at_least_float, rewrite

MOMENTS = ("exp_avg", "exp_avg_sq")
LOSS_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class EngineState:
    """Parameters, AdamW's state, the place in the learning-rate schedule and the loss scaler.

    `tensors` holds `<parameter>/value` (the fp32 master where there is one), `<parameter>/exp_avg`,
    `<parameter>/exp_avg_sq` and `<buffer>/buffer`, on the CPU. `optimizer_steps` counts the steps
    of each parameter that has taken any, `schedule_steps` those of the schedule.
    """

    tensors: Mapping[str, torch.Tensor]
    optimizer_steps: Mapping[str, float]
    schedule_steps: int
    loss_scaler: Mapping[str, float]


@torch.no_grad()
def engine_state(engine: Any, schedule: Any) -> EngineState:
    """The state of an engine between two steps. A collective under ZeRO 1 and 2."""
    optimizer, tensors, steps = schedule.optimizer, {}, {}
    holders = _holders(engine, optimizer)
    for name, parameter in engine.module.named_parameters():
        if parameter not in holders:
            continue
        holder = holders[parameter]
        whole = parameter if holder is parameter else safe_get_full_fp32_param(parameter)
        tensors[f"{name}/value"] = at_least_float(whole)
        if kept := optimizer.state.get(holder):
            steps[name] = float(kept["step"])
            for moment in MOMENTS:
                tensors[f"{name}/{moment}"] = (
                    kept[moment]
                    if holder is parameter
                    else safe_get_full_optimizer_state(parameter, moment)
                )
    for name, buffer in engine.module.named_buffers():
        tensors[f"{name}/buffer"] = buffer
    return EngineState(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        steps,
        int(schedule.last_epoch),
        _loss_scaler(engine),
    )


@torch.no_grad()
def restore_engine(engine: Any, schedule: Any, state: EngineState) -> None:
    """Put a state into an engine that has not stepped yet. A collective under ZeRO 1 and 2."""
    optimizer = schedule.optimizer
    holders = _holders(engine, optimizer)
    parameters = {n: p for n, p in engine.module.named_parameters() if p in holders}
    for name, parameter in parameters.items():
        rewrite(engine, parameter, state.tensors[f"{name}/value"].to)
    for name, buffer in engine.module.named_buffers():
        buffer.copy_(state.tensors[f"{name}/buffer"])
    _begin_moments(engine, optimizer, {parameters[n]: s for n, s in state.optimizer_steps.items()})
    for name in state.optimizer_steps:
        parameter = parameters[name]
        for moment in MOMENTS:
            saved = state.tensors[f"{name}/{moment}"]
            if holders[parameter] is parameter:
                optimizer.state[parameter][moment].copy_(saved)
            else:
                safe_set_full_optimizer_state(parameter, saved, moment)
    _advance(schedule, state.schedule_steps)
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    for name, value in state.loss_scaler.items():
        if hasattr(scaler, name):  # without ZeRO nothing scales the loss
            setattr(scaler, name, value)


def _groups(engine: Any) -> list[list[nn.Parameter]] | None:
    """The parameters of each optimizer group whose state is divided among the workers."""
    for name in ("bit16_groups", "bf16_groups"):
        groups: list[list[nn.Parameter]] | None = getattr(engine.optimizer, name, None)
        if groups is not None:
            return groups
    return None


def _holders(engine: Any, optimizer: Any) -> dict[nn.Parameter, torch.Tensor]:
    """What the optimizer keeps a parameter's state under: this worker's part of its group where it
    is divided, else the parameter itself."""
    groups = _groups(engine)
    if groups is None:
        return {p: p for group in optimizer.param_groups for p in group["params"]}
    return {
        parameter: group["params"][0]
        for group, parameters in zip(optimizer.param_groups, groups, strict=True)
        for parameter in parameters
    }


def _begin_moments(engine: Any, optimizer: Any, steps: Mapping[nn.Parameter, float]) -> None:
    """Give the optimizer the state that AdamW makes at its first step, the steps counted."""
    holders = _holders(engine, optimizer)
    for parameter, count in steps.items():
        holder = holders[parameter]
        optimizer.state[holder] = {
            "step": torch.tensor(count, dtype=torch.float32, device=holder.device),
            **{moment: torch.zeros_like(holder) for moment in MOMENTS},
        }
    for group, parameters in zip(optimizer.param_groups, _groups(engine) or (), strict=False):
        if steps:
            lazy_init_hp_params_optimizer_state(parameters, group["params"][0], optimizer.state)


def _advance(schedule: Any, steps: int) -> None:
    """Put a fresh LambdaLR where `steps` of its steps would have brought it."""
    schedule.load_state_dict(
        schedule.state_dict() | {"last_epoch": steps, "_step_count": steps + 1}
    )
    for group, base, factor in zip(
        schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["lr"] = base * factor(steps)


def _loss_scaler(engine: Any) -> dict[str, float]:
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return {name: getattr(scaler, name) for name in LOSS_SCALER if hasattr(scaler, name)}
