"""GoRA: ranks and a start from the gradients of the training rows (He et al., 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, sqrt
from typing import Any, Literal

from spaces.alpha import LIKE_LORA
from spaces.choice import Choice, Count, Factor, NonNegative, Positive, PositiveShare, Rank
from spaces.methods.lora import lora_params
from spaces.plan import Tuner
from spaces.target import BaseSize, TargetModule

DEFAULT_SPACE: dict[str, Any] = {
    "rank": [2, 4, 8, 16],
    "gamma": [0.02, 0.05, 0.1],
    "alpha_over_rank": LIKE_LORA,
}


class GoraChoice(Choice):
    """What GoRA lets you choose."""

    method: Literal["gora"] = "gora"
    rank: Rank = 8
    """The budget: at most as many numbers as a LoRA of this rank trains."""
    alpha: Positive = 16.0
    """The update is scaled by alpha / rank, whatever rank a module gets."""
    min_share: PositiveShare = 0.5
    """The lowest rank of a module, as a share of `rank`; rounded up."""
    max_share: Factor = 4.0
    """The highest rank of a module, as a multiple of `rank`; rounded down."""
    gamma: NonNegative = 0.05
    """Size of the start: about as much as a step of gradient descent at this rate."""
    batches: Count = 8
    """Micro-batches of training rows whose gradients are averaged before the training begins."""


def tuner(choice: GoraChoice, targets: Sequence[TargetModule], size: BaseSize | None) -> Tuner:
    """r_i * (out + in) numbers of module i: a LoRA's of `rank` at most, and counted so.

    Raises ChoiceError where the rank is above min(out, in).
    """
    params = lora_params(choice.rank, targets)
    min_rank = ceil(choice.min_share * choice.rank)
    bounds = {"min_rank": min_rank, "max_rank": floor(choice.max_share * choice.rank)}
    return Tuner(
        choice.method,
        {**choice.own_values(), **bounds},
        params=params,
        least_params=lora_params(min_rank, targets),
    )


def allocated_ranks(
    importances: Sequence[float],
    targets: Sequence[TargetModule],
    rank: int,
    min_rank: int,
    max_rank: int,
) -> list[int]:
    """The rank of every module, from the importance I_i = mean |W_i * G_i| of its weight.

    With n_i = out + in and the budget T = sum_i rank * sqrt(n_i), module i gets T a_i / sqrt(n_i),
    a_i = I_i / sum I, rounded and kept within min_rank and max_rank (and min(out, in)), as GoRA
    (He et al., 2025) has it. Rounding and the lower bound may spend more numbers than a LoRA of
    `rank` has; then modules give up a rank each, first the one that is furthest above its share,
    until none is too many; ties in module order. Importances that are all zero mean the same rank
    for all.
    """
    sizes = [sum(target.shape) for target in targets]
    total, budget = sum(importances), sum(rank * sqrt(size) for size in sizes)
    shares = [
        budget * importance / total / sqrt(size) if total > 0 else float(rank)
        for importance, size in zip(importances, sizes, strict=True)
    ]
    ranks = [
        min(max(floor(share + 0.5), min_rank), max_rank, target.rank_limit)
        for share, target in zip(shares, targets, strict=True)
    ]
    spare = sum((rank - own) * size for own, size in zip(ranks, sizes, strict=True))
    while spare < 0:
        above = [i for i, own in enumerate(ranks) if own > min_rank]
        chosen = max(above, key=lambda i: (ranks[i] - shares[i], -i))
        ranks[chosen] -= 1
        spare += sizes[chosen]
    return ranks
