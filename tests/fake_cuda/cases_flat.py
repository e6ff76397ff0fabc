"""What an optimizer step launches once, for all modules of a 7B: placing and AdamW."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from spaces.methods.registry import make_plan, parse_choice
from spaces.target import TargetModule
from tests.fake_cuda.device import Launches, fake_cuda, llama
from tests.spaces.example_profiles import drawn_profile
from trainables.adaptations.blocks import BlockAdaptation


def placed_steps(layers: int, choices: Sequence[Mapping[str, Any]]) -> list[int]:
    """Launches of a placing, its backward pass and a step of AdamW in the last stage of the plan of
    each choice, all linear layers of a 7B of so many layers adapted."""
    with fake_cuda():
        model = llama(layers)
        targets = [
            TargetModule(name, (module.out_features, module.in_features))
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and name != "lm_head"
        ]
        profile = drawn_profile(targets)
        return [
            _placed_step(BlockAdaptation(model, make_plan(choice, targets, profile), seed=0))
            for choice in map(parse_choice, choices)
        ]


def _placed_step(adaptation: BlockAdaptation) -> int:
    with adaptation:
        for number in range(adaptation.stages - 1):
            adaptation.begin_stage(number, 1)
            adaptation.end_stage()
        stage: Any = adaptation.begin_stage(adaptation.stages - 1, 1)
        optimizer = torch.optim.AdamW(stage.parameter_groups(1e-3, 0.0), fused=True)
        for _ in range(2):  # the first step makes the optimizer's state
            optimizer.zero_grad()
            with Launches() as launches:
                stage.place()
                updates = [adapter.update() for adapter in stage.adapters]
                matrices = [matrix for update in updates for matrix in (update.A, update.B)]
                gradients = [torch.empty_like(matrix) for matrix in matrices]
                torch.autograd.backward(matrices, gradients)
                optimizer.step()
        adaptation.eval()
        adaptation.end_stage()
    return launches.number
