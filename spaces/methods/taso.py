"""TASO: rank-1 updates confined to a module's core rows, then to its core columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from spaces.choice import Choice, Factor, Percent, Positive, PositiveShare, Rank
from spaces.errors import ProfileError
from spaces.methods.ranking import NO_BOUND, drawn, largest, lr_scale, rounded_share
from spaces.plan import Block, Plan, StageSteps, all_indices
from spaces.profile import Profile
from spaces.target import TargetModule, refuse_rank_above_limit

Core = tuple[NDArray[np.int32], NDArray[np.int32]]
"""Core rows and core columns of a module, each sorted."""

DEFAULT_SPACE: dict[str, Any] = {
    "retention": {"low": 0.02, "high": 0.4, "log": True},
    "top_percent": [1, 2, 5, 10],
    "rounds": [1, 2, 4],
    "alpha_over_rank": {"low": 1.0, "high": 64.0, "log": True},
}


class TasoChoice(Choice):
    """What TASO lets you choose."""

    RECORDED_WITHOUT: ClassVar[Mapping[str, Any]] = {
        "max_lr_scale": NO_BOUND,
        "stage_steps": "split",
    }

    method: Literal["taso"] = "taso"
    retention: PositiveShare = 0.1
    """Share of the ranked rows and columns that make the core (the paper's top-p%)."""
    top_percent: Percent = 5.0
    """A weight counts as important when it is among so many percent of its matrix: k of the top-k%
    mask; one of `profile.top_percent`."""
    importance: Literal["sensitivity", "gradient", "random"] = "sensitivity"
    """What the mask ranks weights by: abs(theta * g), abs(g), or, at random, as many rows and
    columns of each module as sensitivity takes, drawn with the choice's seed."""
    scope: Literal["module", "model"] = "module"
    """Whether rows and columns are ranked within each module or over the whole model. A module with
    no weight in the mask has no core."""
    rank: Rank = 1
    """Rank of each stage's update."""
    rounds: Rank = 1
    """How many times the row stage and the column stage are run; 4 is the paper's TASO-dagger."""
    stage_steps: StageSteps = "split"
    """split: the stages share the steps of a trial; full: every stage trains all of them, so that a
    trial takes 2 * rounds times as long."""
    alpha: Positive = 16.0
    """Each update is scaled by alpha / rank."""
    lr_scaling: bool = True
    """Whether the learning rate grows with sparsity, by sqrt(1 / (1 - rho)) (Eq. 5)."""
    max_lr_scale: Factor = 4.0
    """The most that `lr_scaling` multiplies the learning rate by."""

    @property
    def length(self) -> int:
        """How many times the epochs of a trial it is trained for."""
        return 2 * self.rounds if self.stage_steps == "full" else 1


def unread_keys(values: Mapping[str, Any]) -> frozenset[str]:
    """The bound of a scaling that is off."""
    return frozenset({"max_lr_scale"} if values.get("lr_scaling") is False else ())


def needs_profile(choice: TasoChoice) -> bool:
    """The core is read from the profile; by `random` its size is."""
    return True


def core(
    choice: TasoChoice, targets: Sequence[TargetModule], profile: Profile | None
) -> list[Core]:
    """Core rows and columns of every module (TASO, section 4.1).

    Rows are ranked by u = row count / in, columns by u = column count / out, together; ties by
    module order, rows before columns, index. The first floor(retention * n + 0.5) of the n ranked
    are the core; of a module without any masked weight none is. Raises ProfileError.
    """
    if profile is None:
        raise ProfileError("method: taso needs a profile; give one")
    line = profile.grid_line(choice.top_percent)
    kind = "gradient" if choice.importance == "gradient" else "sensitivity"
    densities = [_densities(target, profile, kind, line) for target in targets]
    if choice.scope == "module":
        taken = [
            largest(density, rounded_share(choice.retention, density.shape[0]))
            for density in densities
        ]
    else:
        taken = _largest_of_all(densities, choice.retention)
    taken = [
        indices if np.any(density) else indices[:0]
        for density, indices in zip(densities, taken, strict=True)
    ]
    cores = []
    for index, (target, indices) in enumerate(zip(targets, taken, strict=True)):
        out_features, in_features = target.shape
        # Columns stand behind the rows in a module's ranking.
        split = int(np.searchsorted(indices, out_features))
        rows, cols = indices[:split], indices[split:] - np.int32(out_features)
        if choice.importance == "random":
            rows = drawn(out_features, rows.shape[0], (choice.seed, index, 0))
            cols = drawn(in_features, cols.shape[0], (choice.seed, index, 1))
        cores.append((rows, cols))
    return cores


def plan(choice: TasoChoice, targets: Sequence[TargetModule], profile: Profile | None) -> Plan:
    """Two stages per round: core rows, all columns; then all rows, core columns (section 4.2).

    rho, the share of zeros in a stage's update, is 1 - |R| / out for rows and 1 - |C| / in for
    columns; the learning rate grows by sqrt(1 / (1 - rho)), max_lr_scale at most. Raises
    ChoiceError where the rank is above min(out, in), ProfileError where the profile
    lacks what is read.
    """
    refuse_rank_above_limit("rank", choice.rank, targets)
    scale = choice.alpha / choice.rank
    row_stage: dict[str, list[Block]] = {}
    col_stage: dict[str, list[Block]] = {}
    for target, (rows, cols) in zip(targets, core(choice, targets, profile), strict=True):
        out_features, in_features = target.shape
        row_stage[target.name] = [
            Block(
                choice.rank,
                rows,
                all_indices(in_features),
                scale,
                _lr_scale(choice, rows.shape[0], out_features),
            )
        ]
        col_stage[target.name] = [
            Block(
                choice.rank,
                all_indices(out_features),
                cols,
                scale,
                _lr_scale(choice, cols.shape[0], in_features),
            )
        ]
    return Plan.of([row_stage, col_stage] * choice.rounds, targets, choice.stage_steps)


def count_range(
    choice: TasoChoice, targets: Sequence[TargetModule], dominant_fraction: float | None
) -> tuple[int, int]:
    """Least and most stored parameters over all profiles in which every module has a masked weight.

    A module stores rank * rounds * ([R](|R| + in) + [C](out + |C|)). How many indices are kept is
    known, how they fall on rows and columns is not: the most is reached where every stage of every
    module keeps one, which is (1 + retention)(out + in).
    """
    refuse_rank_above_limit("rank", choice.rank, targets)
    least = most = 0
    if choice.scope == "module":
        for target in targets:
            low, high = _kept_range([target], rounded_share(choice.retention, sum(target.shape)))
            least, most = least + low, most + high
    else:
        total = sum(sum(target.shape) for target in targets)
        least, most = _kept_range(targets, rounded_share(choice.retention, total))
    return choice.rank * choice.rounds * least, choice.rank * choice.rounds * most


def _kept_range(targets: Sequence[TargetModule], kept: int) -> tuple[int, int]:
    """Bounds of the rank-1 parameters of a round that keeps `kept` rows and columns in all.

    A module's rows hold up to `out` of them and cost `in` more as soon as they hold one; its
    columns the reverse.
    """
    if kept == 0:
        return 0, 0
    holders = [
        (capacity, cost)
        for target in targets
        for capacity, cost in (target.shape, target.shape[::-1])
    ]
    most = kept + sum(sorted((cost for _, cost in holders), reverse=True)[:kept])
    if len(targets) == 1:
        opened = [cost for capacity, cost in holders if capacity >= kept]
        return kept + min(opened, default=sum(targets[0].shape)), most
    # The fractional cover by the cheapest capacity bounds the opened costs from below; one holder
    # is always opened.
    left, cover = kept, 0.0
    for capacity, cost in sorted(holders, key=lambda holder: holder[1] / holder[0]):
        used = min(left, capacity)
        cover += cost * used / capacity
        left -= used
    return kept + max(ceil(cover - 1e-6), min(cost for _, cost in holders)), most


def _densities(target: TargetModule, profile: Profile, kind: str, line: int) -> NDArray[np.float64]:
    """u of a module's rows, then of its columns, float64 [out + in]."""
    out_features, in_features = target.shape
    rows = profile.require(target.name, f"{kind}_row_count")[line]
    cols = profile.require(target.name, f"{kind}_col_count")[line]
    # Equal fractions divide to equal float64, so ties between rows and columns are exact.
    return np.concatenate([rows / np.float64(in_features), cols / np.float64(out_features)])


def _largest_of_all(
    densities: Sequence[NDArray[np.float64]], retention: float
) -> list[NDArray[np.int32]]:
    if not densities:
        return []
    ranked = np.concatenate(densities)
    taken = largest(ranked, rounded_share(retention, ranked.shape[0]))
    starts = np.cumsum([0] + [density.shape[0] for density in densities])
    edges = np.searchsorted(taken, starts)
    return [
        taken[edges[index] : edges[index + 1]] - np.int32(starts[index])
        for index in range(len(densities))
    ]


def _lr_scale(choice: TasoChoice, kept: int, size: int) -> float:
    return lr_scale(kept, size, choice.max_lr_scale) if choice.lr_scaling and kept else 1.0
