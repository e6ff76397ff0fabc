"""What of a trial's trained weights another plan can start from.

A block takes the factors of the same block of the other plan where both write the same rows and
read the same columns at the same rank. Where their scales differ B is scaled, so that the block
starts as the same update. The head comes along whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from spaces.errors import UsageError
from spaces.plan import Block, Plan
from trainables.trained.weights import Trained


@dataclass(frozen=True)
class Agreement:
    """How many of a plan's blocks can start from another's, and the factor of B for each of these
    by the block's name."""

    blocks: int
    scales: dict[str, float]

    @property
    def in_words(self) -> str:
        """For a user: 12 of 12 blocks."""
        return f"{len(self.scales)} of {self.blocks} blocks"


def agreement(source: Plan, plan: Plan) -> Agreement:
    """Which blocks of a plan can start from those of another.

    Raises UsageError where none can, with the reason.
    """
    if source.tuner is not None or plan.tuner is not None:
        name = (plan.tuner or source.tuner).name  # type: ignore[union-attr]
        raise UsageError(
            f"--warm: {name} is not trained as blocks, and starts from the base alone; clone the "
            "trial without --warm"
        )
    before, after = _blocks(source), _blocks(plan)
    scales = {
        name: before[name].scale / block.scale
        for name, block in after.items()
        if name in before and _is_same_place(before[name], block)
    }
    if not scales:
        raise UsageError(
            f"--warm: none of the {len(after)} blocks of the plan has the rank, the rows and the "
            "columns that it has in the trial's plan; change other keys, or clone it without --warm"
        )
    return Agreement(len(after), scales)


def warm_weights(trained: Trained, agreed: Agreement) -> Trained:
    """Of a trial's weights those that agree, as the plan that starts from them scales them.

    Of a trial that still trains, blocks of stages to come are missing: they start afresh.
    """
    weights: dict[str, torch.Tensor] = {}
    for name, scale in agreed.scales.items():
        A, B = (trained.weights.get(f"{name}/{factor}") for factor in ("A", "B"))
        if A is not None and B is not None:
            weights |= {f"{name}/A": A, f"{name}/B": B if scale == 1 else B * scale}
    return replace(trained, weights=weights)


def _blocks(plan: Plan) -> dict[str, Block]:
    return {
        f"stage{i}/{module}/block{j}": block
        for i, stage in enumerate(plan.stages)
        for module, blocks in stage.items()
        for j, block in enumerate(blocks)
    }


def _is_same_place(one: Block, other: Block) -> bool:
    return (
        one.rank == other.rank
        and np.array_equal(one.rows, other.rows)
        and np.array_equal(one.cols, other.cols)
    )
