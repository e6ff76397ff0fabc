"""EVA: ranks shared out by the variance of what the modules read (Paischer et al., 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from spaces.alpha import LIKE_LORA
from spaces.choice import Choice, Factor, Positive, Rank, Share
from spaces.errors import ChoiceError
from spaces.plan import Tuner
from spaces.target import BaseSize, TargetModule, refuse_rank_above_limit

DEFAULT_SPACE: dict[str, Any] = {
    "rank": [2, 4, 8, 16],
    "rho": [1.0, 2.0],
    "alpha_over_rank": LIKE_LORA,
}


class EvaChoice(Choice):
    """What EVA lets you choose."""

    method: Literal["eva"] = "eva"
    rank: Rank = 8
    """The mean rank of a module: rank * modules are shared out."""
    alpha: Positive = 16.0
    """The update is scaled by alpha / rank, whatever rank a module gets."""
    rho: Factor = 2.0
    """A module gets at most rho * rank ranks; at 1 all get the same."""
    tau: Share = 0.99
    """Cosine from one batch of training rows to the next at which a direction has settled."""
    whiten: bool = False
    """Divide each direction by the root of its singular value."""


def tuner(choice: EvaChoice, targets: Sequence[TargetModule], size: BaseSize | None) -> Tuner:
    """r_i * (out + in) numbers of module i, the r_i summing to rank * modules; counted at most.

    Raises ChoiceError where the rank is above min(out, in), or above half of `in`: finding a
    direction takes room for two.
    """
    refuse_rank_above_limit("rank", choice.rank, targets)
    for target in targets:
        if choice.rank > (room := target.shape[1] // 2):
            raise ChoiceError(
                f"rank: {choice.rank} is above in / 2 = {room} of module '{target.name}' "
                f"[{target.shape[0]}, {target.shape[1]}]; use at most {room}"
            )
    limit = min((_room(target) for target in targets), default=choice.rank)
    max_rank = min(round(choice.rank * choice.rho), limit)
    sizes = sorted(sum(target.shape) for target in targets)
    budget = choice.rank * len(targets)
    return Tuner(
        choice.method,
        {**choice.own_values(), "max_rank": max_rank},
        params=_filled(reversed(sizes), budget, max_rank),
        least_params=_filled(sizes, budget, max_rank),
    )


def largest_values(
    targets: Sequence[TargetModule], searched: Mapping[str, Sequence[Any]]
) -> dict[str, int]:
    """The largest `rank` that every one of `targets` can take."""
    return {"rank": min(_room(target) for target in targets)} if targets else {}


def _room(target: TargetModule) -> int:
    return min(target.rank_limit, target.shape[1] // 2)


def _filled(sizes: Any, budget: int, max_rank: int) -> int:
    """Numbers of `budget` ranks where the first of `sizes` (out + in) take all that they can."""
    params = 0
    for size in sizes:
        rank = min(budget, max_rank)
        params, budget = params + rank * size, budget - rank
    return params
