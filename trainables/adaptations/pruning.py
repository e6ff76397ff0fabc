"""A trained update cut to its largest singular components, of all modules together.

PARA (Kumaravelu et al., 2026) decomposes the update of every module, ranks the singular values of
all of them together and keeps those above one threshold. With B = Q_B R_B and A^T = Q_A R_A only
the small matrix R_B R_A^T [r, r] is decomposed:

    B A = Q_B (R_B R_A^T) Q_A^T = (Q_B U) diag(S) (Q_A V)^T

Each module's cut is the nearest update of its rank (Eckart and Young, 1936).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, sqrt

import torch

from trainables.adaptations.adaptation import Factors, Part


@dataclass(frozen=True)
class Components:
    """The singular components of an update: U [out, r], S [r] descending, V^T [r, in]."""

    U: torch.Tensor
    S: torch.Tensor
    Vt: torch.Tensor

    def first(self, rank: int) -> Factors:
        """A [rank, in] and B [out, rank] of the largest `rank`, each with half of the values."""
        root = self.S[:rank].sqrt()
        return root[:, None] * self.Vt[:rank], self.U[:, :rank] * root


def components_of(A: torch.Tensor, B: torch.Tensor) -> Components:
    """The min(r, out, in) singular components of B A, A [r, in] and B [out, r]; float64."""
    Q_B, R_B = torch.linalg.qr(B.double())
    Q_A, R_A = torch.linalg.qr(A.double().T)
    U, S, Vt = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)
    return Components(Q_B @ U, S, Vt @ Q_A.T)


def kept_ranks(values: Sequence[torch.Tensor], share: float) -> list[int]:
    """How many of each update's singular values [r_i], descending, are among the largest of all.

    Of the n values there are floor(share n + 0.5) stay, but at least one; ties go to the first.
    """
    if not values or not (n := sum(len(each) for each in values)):
        return [0 for _ in values]
    kept = max(1, floor(share * n + 0.5))
    owner = torch.cat([torch.full((len(each),), i) for i, each in enumerate(values)])
    order = torch.cat([each.cpu() for each in values]).argsort(descending=True, stable=True)
    return torch.bincount(owner[order[:kept]], minlength=len(values)).tolist()


@dataclass(frozen=True)
class Pruned:
    """A pruned update: module -> A [R, in] and B [out, R], its scale within B, float64 on the CPU.

    Counts are of ranks that can differ, min(rank, rows, cols) of every block before it is cut, and
    of numbers to store: rank * (rows + cols).
    """

    factors: Mapping[str, Factors]
    share: float
    ranks_before: int
    ranks: int
    params_before: int
    params: int
    error: float
    """The Frobenius norm of what is cut, over that of the whole update."""


def pruned(parts: Mapping[str, Sequence[Part]], share: float) -> Pruned:
    """The update of which `share` (above 0, at most 1) of all singular components is left.

    Every part is decomposed by itself, so that it goes on writing to its own rows and reading its
    own columns. A module of which nothing is left is not named.
    """
    flat = [(name, part) for name, of_module in parts.items() for part in of_module]
    found = [components_of(part.A, part.B) for _, part in flat]
    kept = kept_ranks([each.S for each in found], share)
    stacked: dict[str, list[Factors]] = {}
    cut: dict[str, list[Factors]] = {}
    for (name, part), each, rank in zip(flat, found, kept, strict=True):
        A, B = part.in_whole(*each.first(len(each.S)))
        stacked.setdefault(name, []).append((A[:rank], B[:, :rank]))
        cut.setdefault(name, []).append((A[rank:], B[:, rank:]))
    factors = {name: _stacked(own) for name, own in stacked.items()}
    lost = {name: _stacked(own) for name, own in cut.items()}
    whole = {name: _stacked([factors[name], lost[name]]) for name in factors}
    before, after = _norm(whole), _norm(lost)
    return Pruned(
        factors={name: (A, B) for name, (A, B) in factors.items() if len(A)},
        share=share,
        ranks_before=sum(len(each.S) for each in found),
        ranks=sum(kept),
        params_before=sum(part.params for _, part in flat),
        params=sum(rank * part.width for (_, part), rank in zip(flat, kept, strict=True)),
        error=after / before if before > 0 else 0.0,
    )


def _stacked(factors: Sequence[Factors]) -> Factors:
    return torch.cat([A for A, _ in factors]), torch.cat([B for _, B in factors], dim=1)


def _norm(factors: Mapping[str, Factors]) -> float:
    """The Frobenius norm of all updates B A: ||B A||^2 = tr(B^T B A A^T)."""
    squares = sum(float(((B.T @ B) * (A @ A.T)).sum()) for A, B in factors.values())
    return sqrt(max(squares, 0.0))
