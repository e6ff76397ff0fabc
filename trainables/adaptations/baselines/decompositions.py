"""The singular components of a resident base's weights, found once and not once a trial.

W [out, in] = U diag(S) V^T, singular values descending. Of each module the first and the last
components are kept, in main memory, as long as the base is there: more than a trial asks for, so
that another one finds those of its rank as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import nn

LEAST_KEPT = 64
"""Components that are kept of either end; twice as many, and so on, where a rank asks for them."""


@dataclass(frozen=True)
class Components:
    """Some components of a weight: U [out, k], S [k] descending and V^T [k, in]."""

    U: torch.Tensor
    S: torch.Tensor
    Vt: torch.Tensor


@dataclass(frozen=True)
class _Ends:
    """The `kept` first and last components of a weight, on the CPU."""

    kept: int
    first: Components
    last: Components


_of_bases: WeakKeyDictionary[nn.Module, dict[str, _Ends]] = WeakKeyDictionary()


def singular_components(weight: torch.Tensor) -> Components:
    """All min(out, in) components of a weight; float64 of a float64 weight, else float32."""
    precise = weight if weight.dtype == torch.float64 else weight.float()
    return Components(*torch.linalg.svd(precise, full_matrices=False))


def largest_components(
    base: nn.Module, name: str, weight: Callable[[], torch.Tensor], rank: int
) -> Components:
    """The `rank` components of the largest singular values, on the CPU.

    `weight` gives that of the base's module of that name, and is asked only where it must be.
    """
    of = _ends(base, name, weight, rank).first
    return Components(of.U[:, :rank], of.S[:rank], of.Vt[:rank])


def smallest_components(
    base: nn.Module, name: str, weight: Callable[[], torch.Tensor], rank: int
) -> Components:
    """The `rank` components of the smallest singular values, as `largest_components` has them."""
    of = _ends(base, name, weight, rank).last
    return Components(of.U[:, -rank:], of.S[-rank:], of.Vt[-rank:])


def _ends(base: nn.Module, name: str, weight: Callable[[], torch.Tensor], rank: int) -> _Ends:
    found = _of_bases.setdefault(base, {})
    ends = found.get(name)
    if ends is None or ends.kept < rank:
        kept = LEAST_KEPT
        while kept < rank:
            kept *= 2
        all_ = singular_components(weight())
        ends = found[name] = _Ends(
            kept, _cut(all_, slice(kept)), _cut(all_, slice(max(len(all_.S) - kept, 0), None))
        )
    return ends


def _cut(of: Components, part: slice) -> Components:
    """Copies of some components in main memory, which do not hold on to the others."""
    return Components(*(each.clone().cpu() for each in (of.U[:, part], of.S[part], of.Vt[part])))
