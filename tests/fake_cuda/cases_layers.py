"""What of adapted layers is run on the fake device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import nn

from spaces.methods.registry import make_plan, parse_choice
from tests.fake_cuda.cases import launches_of_a_layer
from tests.fake_cuda.device import fake_cuda, llama
from tests.spaces.example_profiles import drawn_profile
from tests.trainables.tuner_examples import adaptation_of
from trainables.adaptations.registry import adaptation_for
from trainables.bases.structure import base_size, resolve_targets
from trainables.layers.adapted import update_layers
from trainables.layers.low_rank import LowRank

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def adapted_layer(dropout: float = 0.0, frozen: int = 0) -> int:
    """Launches of one layer of a 7B with an update of 8 ranks on each projection, and so many
    frozen ones."""

    def attach(model: nn.Module) -> object:
        updates = []
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear) and name.endswith(PROJECTIONS):
                A, B = (
                    torch.zeros(8 + frozen, size, dtype=torch.bfloat16, requires_grad=True)
                    for size in layer.weight.shape[::-1]
                )
                scale, trained = (1.0, 8) if frozen else (2.0, None)
                updates.append(((name,), _given(LowRank(A, B.T, scale, dropout, trained))))
        return update_layers(model, updates)

    return launches_of_a_layer(attach)


def _given(update: LowRank) -> Callable[[], LowRank]:
    return lambda: update


def planned_layer(choice: dict[str, Any], stage: int = 0, dropout: float = 0.0) -> int:
    """Launches of one layer of a 7B in a stage of a choice's plan."""

    def attach(model: nn.Module) -> object:
        targets = resolve_targets(model, (), PROJECTIONS)
        plan = make_plan(parse_choice(choice), targets, drawn_profile(targets))
        adaptation = adaptation_for(plan, model, seed=0, dropout=dropout)
        for index in range(stage + 1):
            if index:
                adaptation.end_stage()
            stages = adaptation.begin_stage(index, 10)
        return stages

    return launches_of_a_layer(attach)


def stages(choice: dict[str, Any], dtype: str = "bfloat16") -> int:
    """Every stage of a choice's plan: a step, one under activation checkpointing, a measurement.

    Returns how many stages there were.
    """
    # What PEFT moves to the device is there already, and what is fake cannot be moved in place.
    with fake_cuda(), mock.patch.object(nn.Module, "to", lambda module, *_, **__: module):
        biases = {"attention_bias": True, "mlp_bias": True}
        model: Any = llama(2, hidden_size=64, intermediate_size=96, num_attention_heads=4, **biases)
        model.train()  # as it is when a base's dropout is wanted; checkpointing asks for it
        targets = resolve_targets(model, (), PROJECTIONS)
        plan = make_plan(
            parse_choice(choice), targets, drawn_profile(targets), base_size(model, ())
        )
        settings = {"seed": 0, "dropout": 0.1, "dtype": getattr(torch, dtype)}
        with adaptation_of(plan, model, **settings) as adaptation:
            for index in range(adaptation.stages):
                parameters = adaptation.begin_stage(index, 2)
                parameters.train()
                trained = list(parameters.parameters())
                ids = torch.zeros(4, 16, dtype=torch.int64)
                for is_checkpointed in (False, True):
                    if is_checkpointed:
                        model.gradient_checkpointing_enable()
                        model.enable_input_require_grads()
                    loss = parameters({"input_ids": ids, "use_cache": False}).sum()
                    loss.backward()
                    assert all(each.grad is not None for each in trained)
                    for each in trained:
                        each.grad = None
                model.gradient_checkpointing_disable()
                adaptation.eval()
                with torch.no_grad():
                    model(input_ids=ids)
                adaptation.end_stage()
        return adaptation.stages
