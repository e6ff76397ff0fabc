"""AdaLoRA: ranks start high and fall where singular values matter least (Zhang et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from spaces.alpha import LIKE_LORA
from spaces.choice import Choice, Count, NonNegative, Positive, Rank, Share
from spaces.methods.lora import lora_params
from spaces.plan import Tuner
from spaces.target import BaseSize, TargetModule

DEFAULT_SPACE: dict[str, Any] = {
    "rank": [2, 4, 8, 16],
    "initial_rank": [6, 12, 24],
    "alpha_over_rank": LIKE_LORA,
}

_BOUNDED_BY_EACH_OTHER = ("rank", "initial_rank", "initial_share", "final_share")
_SLACK = 1e-9


class AdaloraChoice(Choice):
    """What AdaLoRA lets you choose."""

    RANK_OF_ALPHA: ClassVar[str] = "initial_rank"

    method: Literal["adalora"] = "adalora"
    rank: Rank = 8
    """The mean rank of a module at the end."""
    initial_rank: Rank = 12
    """Rank of every module at the start, at least `rank`; what trains and is counted."""
    alpha: Positive = 16.0
    """The update is scaled by alpha / initial_rank."""
    orthogonal_weight: NonNegative = 0.5
    """Weight of the penalty that keeps both factors orthogonal."""
    initial_share: Share = 0.1
    """Share of the steps before ranks begin to fall."""
    final_share: Share = 0.3
    """Share of the steps, at the end, in which ranks stay; at most what initial_share leaves."""
    interval: Count = 1
    """Steps from one allocation of ranks to the next."""

    @model_validator(mode="after")
    def _check_ranks_and_shares(self) -> AdaloraChoice:
        if self.initial_rank < self.rank:
            raise ValueError(
                f"initial_rank: {self.initial_rank} is below rank {self.rank}; use at least "
                f"{self.rank}"
            )
        if self.initial_share + self.final_share > 1 + _SLACK:
            raise ValueError(
                f"final_share: {self.final_share:g} is more than initial_share "
                f"{self.initial_share:g} leaves; use shares that sum to at most 1"
            )
        return self


def tuner(choice: AdaloraChoice, targets: Sequence[TargetModule], size: BaseSize | None) -> Tuner:
    """initial_rank * (out + in) numbers per module, and as many singular values.

    Raises ChoiceError where the initial rank is above min(out, in).
    """
    factors = lora_params(choice.initial_rank, targets, "initial_rank")
    params = factors + choice.initial_rank * len(targets)
    return Tuner(choice.method, choice.own_values(), params)


def reconciled(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with an initial_rank of at least rank, and shares that sum to at most 1."""
    fields = AdaloraChoice.model_fields
    values = {key: fields[key].default for key in _BOUNDED_BY_EACH_OTHER} | dict(values)
    values["initial_rank"] = max(values["initial_rank"], values["rank"])
    if values["initial_share"] + values["final_share"] > 1 + _SLACK:
        values["final_share"] = round(1 - values["initial_share"], 12)
    return values
