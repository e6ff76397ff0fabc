"""How many entries of every row and column are among the largest of their matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

ENTRIES_AT_ONCE = 2**18  # of a matrix, while its masks are counted
COUNTING_BYTES = 16 * 2**20  # what counting holds beside one copy of a matrix
Fields = dict[str, NDArray[Any]]


def weight_counts(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    top_percent: Sequence[float],
    transposed: bool = False,
) -> Fields:
    """Entries of TASO's top-k% masks per row and column, one line per k (TASO Eq. 2).

    `weight` and its mean abs(g), `gradient`, are [out, in], or [in, out] where `transposed`.
    `gradient` is overwritten with abs(theta) times it, so that no third matrix exists.
    """
    counts: Fields = {}
    for signal in ("gradient", "sensitivity"):
        if signal == "sensitivity":
            for part, theta in zip(_slices(gradient), _slices(weight), strict=True):
                part.mul_(theta.to(part.dtype).abs())
        rows, cols = top_percent_counts(gradient.T if transposed else gradient, top_percent)
        counts[f"{signal}_row_count"], counts[f"{signal}_col_count"] = rows, cols
    return counts


def top_percent_counts(
    score: torch.Tensor, top_percent: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Row and column counts of the masks of a matrix's largest k%: integers [K, out], [K, in].

    A mask holds the floor(k/100 out in + 0.5) largest entries of `score` [out, in], ties taken in
    row-major order; zeros never count. The dtype is uint16, int32 where a count can pass 65,535.
    On a CPU one copy of the matrix exists for a while.
    """
    out, in_ = score.shape
    sizes = [math.floor(k / 100 * out * in_ + 0.5) for k in top_percent]
    dtype = np.uint16 if max(out, in_) <= np.iinfo(np.uint16).max else np.int32
    rows = np.zeros((len(sizes), out), dtype)
    cols = np.zeros((len(sizes), in_), dtype)
    for line, (size, least) in enumerate(zip(sizes, _least_of_largest(score, sizes), strict=True)):
        if size:
            rows[line], cols[line] = _mask_counts(score, size, least)
    return rows, cols


def _least_of_largest(score: torch.Tensor, sizes: Sequence[int]) -> list[float]:
    """For each size the size-th largest entry; zero where the size is."""
    flat = (score if score.is_contiguous() else score.T).reshape(-1)
    if not max(sizes):
        return [0.0] * len(sizes)
    if flat.device.type != "cpu":
        largest = torch.topk(flat, max(sizes)).values
        return [float(largest[size - 1]) if size else 0.0 for size in sizes]
    # Faster than torch.topk, which makes a pair of value and index of every entry.
    entries = np.partition(flat.numpy(), [flat.numel() - size for size in sizes if size])
    return [float(entries[-size]) if size else 0.0 for size in sizes]


def _mask_counts(
    score: torch.Tensor, size: int, least: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts [out], [in] of the mask of the `size` largest entries, the smallest being `least`."""
    out, in_ = score.shape
    rows, cols = np.zeros(out, np.int64), np.zeros(in_, np.int64)
    first = 0
    for part in _slices(score):
        mask = (part > least).cpu().numpy()
        rows[first : first + len(mask)] = np.count_nonzero(mask, axis=1)
        cols += np.count_nonzero(mask, axis=0)
        first += len(mask)
    ties, first = size - int(rows.sum()) if least > 0 else 0, 0
    for part in _slices(score):
        if ties <= 0:
            break
        tied = torch.nonzero((part == least).reshape(-1)).reshape(-1)[:ties].cpu().numpy()
        np.add.at(rows, first + tied // in_, 1)
        np.add.at(cols, tied % in_, 1)
        ties, first = ties - len(tied), first + len(part)
    return rows, cols


def _slices(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A matrix in parts of some rows each."""
    return tuple(matrix.split(max(1, ENTRIES_AT_ONCE // matrix.shape[1])))
