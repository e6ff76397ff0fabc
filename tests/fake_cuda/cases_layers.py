"""What of adapted layers is run on the fake device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import nn

from spaces.methods.registry import make_plan, parse_choice
from spaces.plan import Plan
from tests.fake_cuda.cases import launches_of_a_layer
from tests.fake_cuda.device import fake_cuda, llama
from tests.spaces.example_profiles import drawn_profile
from tests.trainables.tuner_examples import adaptation_of
from trainables.bases.structure import base_size, resolve_targets
from trainables.layers.adapted import update_layers
from trainables.layers.low_rank import LowRank

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _plan(choice: Mapping[str, Any], model: nn.Module) -> Plan:
    targets = resolve_targets(model, (), PROJECTIONS)
    return make_plan(parse_choice(choice), targets, drawn_profile(targets), base_size(model, ()))


def launches(dropouts: list[float]) -> dict[str, list[int]]:
    """Launches of one layer of a 7B, frozen, and with the updates of each method's last stage for
    each dropout.

    What places a stage's factors, once a step, is not a layer's.
    """
    found = {"frozen": [launches_of_a_layer(lambda _model: None)]}
    for method in ("lora", "pilora", "joint", "taso"):
        attach = partial(_planned, choice={"method": method})
        found[method] = [launches_of_a_layer(partial(attach, dropout=p)) for p in dropouts]
    return found


def _planned(model: nn.Module, choice: Mapping[str, Any], dropout: float) -> object:
    plan = _plan(choice, model)
    adaptation = adaptation_of(plan, model, seed=0, dropout=dropout)
    for index in range(adaptation.stages):
        if index:
            adaptation.end_stage()
        stage = adaptation.begin_stage(index, 10).train()
    names = [target.names for target in plan.targets if any(target.name in s for s in plan.stages)]
    given = [_as_leaves(adapter.update()) for adapter in stage.adapters]  # type: ignore[operator]
    adaptation.detach()
    return update_layers(model, zip(names, given, strict=True))


def _as_leaves(update: LowRank) -> Callable[[], LowRank]:
    A, B = (each.detach().requires_grad_(True) for each in (update.A, update.B))
    return lambda: update._replace(A=A, B=B)


def stages(choices: list[dict[str, Any]], dtypes: list[str]) -> list[int]:
    """Every stage of each choice's plan: a step, one under activation checkpointing, a measurement.

    Returns how many stages there were.
    """
    pairs = zip(choices, dtypes, strict=True)
    return [_stages(choice, getattr(torch, dtype)) for choice, dtype in pairs]


def _stages(choice: Mapping[str, Any], dtype: torch.dtype) -> int:
    # What PEFT moves to the device is there already, and what is fake cannot be moved in place.
    with fake_cuda(), mock.patch.object(nn.Module, "to", lambda module, *_, **__: module):
        biases = {"attention_bias": True, "mlp_bias": True}
        model: Any = llama(2, hidden_size=64, intermediate_size=96, num_attention_heads=4, **biases)
        model.train()  # only then are activations checkpointed
        plan = _plan(choice, model)
        ids = torch.zeros(4, 16, dtype=torch.int64)
        with adaptation_of(plan, model, seed=0, dropout=0.1, dtype=dtype) as adaptation:
            for index in range(adaptation.stages):
                parameters = adaptation.begin_stage(index, 2)
                parameters.train()
                trained = list(parameters.parameters())
                for is_checkpointed in (False, True):
                    if is_checkpointed:
                        model.gradient_checkpointing_enable()
                        model.enable_input_require_grads()
                    parameters({"input_ids": ids, "use_cache": False}).sum().backward()
                    assert all(each.grad is not None for each in trained)
                    for each in trained:
                        each.grad = None
                model.gradient_checkpointing_disable()
                adaptation.eval()
                with torch.no_grad():
                    model(input_ids=ids)
                adaptation.end_stage()
            return adaptation.stages
