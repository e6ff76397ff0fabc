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
                part.mul_(theta).abs_()
        rows, cols = top_percent_counts(gradient.T if transposed else gradient, top_percent)
        counts[f"{signal}_row_count"], counts[f"{signal}_col_count"] = rows, cols
    return counts


def top_percent_counts(
    score: torch.Tensor, top_percent: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Row and column counts of the masks of a matrix's largest k%: integers [K, out], [K, in].

    A mask holds the floor(k/100 out in + 0.5) largest entries of `score` [out, in], ties taken in
    row-major order; zeros never count. The dtype is uint16, int32 where a count can pass 65,535.
    On a CPU one copy of the matrix exists for a while. On a device the masks are counted where the
    matrix is, and the counts alone come to the host.
    """
    out, in_ = score.shape
    sizes = mask_sizes(out * in_, top_percent)
    dtype = np.uint16 if max(out, in_) <= np.iinfo(np.uint16).max else np.int32
    if score.device.type != "cpu":
        counts = counts_on_device(score, sizes).cpu().numpy().astype(dtype)
        return counts[:, :out], counts[:, out:]
    rows = np.zeros((len(sizes), out), dtype)
    cols = np.zeros((len(sizes), in_), dtype)
    for line, (size, least) in enumerate(zip(sizes, _least_of_largest(score, sizes), strict=True)):
        if size:
            rows[line], cols[line] = _mask_counts(score, size, least)
    return rows, cols


def mask_sizes(entries: int, top_percent: Sequence[float]) -> list[int]:
    """How many of a matrix's entries each mask holds."""
    return [math.floor(k / 100 * entries + 0.5) for k in top_percent]


def counts_on_device(score: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Row counts, then column counts, of the masks of the `sizes` largest entries of `score`.

    int64 [K, out + in], without a sync. Beside `score` [out, in] there are first 12 bytes for each
    entry of the largest mask (values and torch.topk's indices), later 4 for each of the matrix: 54
    and 180 MB at 10 % of a layer of 4096 x 11008, which itself takes 180.
    """
    leasts = _leasts_on_device(score, sizes)
    return torch.stack([_counts_of_mask(score, size, leasts[size]) for size in sizes])


def _leasts_on_device(score: torch.Tensor, sizes: Sequence[int]) -> dict[int, torch.Tensor]:
    """The size-th largest entry for each size; the next smaller size is sought among the larger."""
    largest = (score if score.is_contiguous() else score.T).reshape(-1)
    leasts = {0: torch.full((), torch.inf, dtype=score.dtype, device=score.device)}
    for size in sorted(set(sizes) - {0}, reverse=True):
        largest = torch.topk(largest, size, sorted=False).values
        leasts[size] = largest.amin()
    return leasts


def _counts_of_mask(score: torch.Tensor, size: int, least: torch.Tensor) -> torch.Tensor:
    """Counts [out + in] of the mask of the `size` largest entries, the smallest being `least`."""
    mask, tied = score > least, score == least
    above, tied_in_row = _true_along(mask, 1), _true_along(tied, 1)
    before = tied_in_row.cumsum(0) - tied_in_row  # ties in the rows above
    left = (size - above.sum() - before).clamp_(min=0)
    taken = torch.minimum(left, tied_in_row) * (least > 0)
    mask |= tied & (taken == tied_in_row)[:, None]
    # Of one row at most some ties are taken and some are not.
    cut = (taken > 0) & (taken < tied_in_row)
    row = cut.to(torch.uint8).argmax()[None]
    ties = tied.index_select(0, row)[0] & cut.index_select(0, row)
    first = ties & (ties.cumsum(0) <= taken.index_select(0, row))
    return torch.cat([above + taken, _true_along(mask, 0) + first])


def _true_along(mask: torch.Tensor, dim: int) -> torch.Tensor:
    """How many entries are true along a dimension, int64: exact up to 2^24.

    A GPU sums 16 bits in float32 as it reads them; of any other type it first makes a copy in the
    type of the sum, which would be int64.
    """
    return mask.to(torch.float16).sum(dim, dtype=torch.float32).to(torch.int64)


def _least_of_largest(score: torch.Tensor, sizes: Sequence[int]) -> list[float]:
    """For each size the size-th largest entry; zero where the size is."""
    flat = (score if score.is_contiguous() else score.T).reshape(-1)
    if not max(sizes):
        return [0.0] * len(sizes)
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
        mask = (part > least).numpy()
        rows[first : first + len(mask)] = np.count_nonzero(mask, axis=1)
        cols += np.count_nonzero(mask, axis=0)
        first += len(mask)
    ties, first = size - int(rows.sum()) if least > 0 else 0, 0
    for part in _slices(score):
        if ties <= 0:
            break
        tied = torch.nonzero((part == least).reshape(-1)).reshape(-1)[:ties].numpy()
        np.add.at(rows, first + tied // in_, 1)
        np.add.at(cols, tied % in_, 1)
        ties, first = ties - len(tied), first + len(part)
    return rows, cols


def _slices(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A matrix in parts of some rows each; one that is not on a CPU in one part."""
    if matrix.device.type != "cpu":
        return (matrix,)
    return tuple(matrix.split(max(1, ENTRIES_AT_ONCE // matrix.shape[1])))
