"""The weight matrices that are adapted, and the size of the base they belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spaces.errors import ChoiceError


@dataclass(frozen=True)
class TargetModule:
    """One weight matrix of a base, of shape [out, in] however the base stores it.

    `names` lists every layer that uses the matrix; a matrix that is not tied has the one name.
    `name` is the first.
    """

    name: str
    shape: tuple[int, int]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            object.__setattr__(self, "names", (self.name,))

    @property
    def rank_limit(self) -> int:
        """The largest rank that an update of this matrix can have, min(out, in)."""
        return min(self.shape)


@dataclass(frozen=True)
class BaseSize:
    """How many parameters a base has, its task's head left out.

    A matrix that several layers use counts once.
    """

    params: int
    bias_params: int
    """Of those, the ones in parameters whose name ends in "bias"."""


def require_size(method: str, size: BaseSize | None) -> BaseSize:
    """The size of the base that `method` trains. Raises ChoiceError where it is not known."""
    if size is None:
        raise ChoiceError(
            f"method: {method} needs the base's size, which target modules do not tell; name the "
            "base"
        )
    return size


def refuse_rank_above_limit(key: str, rank: int, targets: Iterable[TargetModule]) -> None:
    """Raise ChoiceError naming the first module whose min(out, in) is below `rank`.

    `key` is the key of a choice that holds the rank.
    """
    for target in targets:
        if rank > target.rank_limit:
            out_features, in_features = target.shape
            raise ChoiceError(
                f"{key}: {rank} is above min(out, in) = {target.rank_limit} of module "
                f"'{target.name}' [{out_features}, {in_features}]; use at most "
                f"{target.rank_limit}"
            )


def largest_rank(
    targets: Sequence[TargetModule], searched: Mapping[str, Sequence[Any]]
) -> dict[str, int]:
    """The largest `rank` that every one of `targets` can take, whatever else is searched."""
    return {"rank": min(target.rank_limit for target in targets)} if targets else {}


def largest_of_each(
    *keys: str,
) -> Callable[[Sequence[TargetModule], Mapping[str, Sequence[Any]]], dict[str, int]]:
    """As `largest_rank`, of every one of `keys`."""

    def largest(
        targets: Sequence[TargetModule], searched: Mapping[str, Sequence[Any]]
    ) -> dict[str, int]:
        limits = largest_rank(targets, searched).values()
        return {key: limit for limit in limits for key in keys}

    return largest


def no_largest_values(
    targets: Sequence[TargetModule], searched: Mapping[str, Sequence[Any]]
) -> dict[str, int]:
    """Nothing that the shapes of the targets bound."""
    return {}
