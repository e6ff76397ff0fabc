"""Rows in batches, and how those of a batch are divided into the passes that cost least."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

PASS_TOKENS = 96
"""What a forward and backward pass costs a CPU beside its tokens, in tokens: 90 on MiniLM."""

DOUBLE_TOKENS = 2400
"""How long a line is when attention has doubled what a token of it costs: SmolLM2-135M on a CPU."""

ROOMS = (1, 64, 128, 256, 512, 1024, 2048)
"""How long the lines may be that rows are packed into; 1 packs none."""


def of_like_length(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Positions of `lengths` [n] in groups of like length that cost least, each by itself padded.

    A group costs its rows times its longest, and `PASS_TOKENS`. The sum of a loss over the rows is
    the same however they are grouped, and so is its gradient.
    """
    order = np.argsort(lengths, kind="stable")
    ascending = lengths[order]
    least = np.zeros(len(order) + 1)  # cost of the first rows, and where their last group begins
    begins = np.zeros(len(order) + 1, dtype=np.int64)
    for end in range(1, len(order) + 1):
        costs = least[:end] + (end - np.arange(end)) * ascending[end - 1] + PASS_TOKENS
        begins[end] = costs.argmin()
        least[end] = costs[begins[end]]
    groups: list[NDArray[np.int64]] = []
    end = len(order)
    while end:
        groups.append(order[begins[end] : end])
        end = int(begins[end])
    return groups


def best_fit(lengths: NDArray[np.int64], room: int) -> list[NDArray[np.int64]]:
    """Positions of `lengths` [n] in lines of at most `room` tokens: best fit decreasing.

    Each row, the longest first, goes to the fullest line that has room for it, else to a new one; a
    row longer than `room` has a line of its own. trl's packing is no use here: it cuts rows longer
    than a line, and packs a data set once, while the rows of a step are drawn anew each epoch.
    """
    lines: list[list[int]] = []
    left: list[tuple[int, int]] = []  # room left and number of each line, the fullest first
    for row in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[row])
        fits = bisect_left(left, (length, 0))
        if fits < len(left):
            space, line = left.pop(fits)
            lines[line].append(row)
        else:
            space, line = max(room, length), len(lines)
            lines.append([row])
        insort(left, (space - length, line))
    return [np.array(rows, dtype=np.int64) for rows in lines]


def in_lines(
    lengths: NDArray[np.int64], *, on_cpu: bool, packs: bool
) -> list[list[NDArray[np.int64]]]:
    """Positions of `lengths` [n] in the passes that cost least: the lines of each pass, and the
    rows of each line one after another.

    A pass of `lines` lines, the longest of `width` tokens, is padded to lines * width tokens and
    costs that many times 1 + width / `DOUBLE_TOKENS`, and on a CPU `PASS_TOKENS`. Lines of every
    length in `_rooms` are tried. On a CPU lines of like length go through together, elsewhere all
    in one pass. Without `packs` a line holds one row. A loss summed over the rows is the same
    however they are divided, and so is its gradient.
    """
    rooms = _rooms(lengths) if packs else [1]
    cheapest: tuple[float, list[list[NDArray[np.int64]]]] = (np.inf, [])
    for room in rooms:
        lines = best_fit(lengths, room)
        sums = np.array([lengths[line].sum() for line in lines])
        groups = of_like_length(sums) if on_cpu else [np.arange(len(lines))]
        widths = [int(sums[group].max()) for group in groups]
        cost = sum(
            len(group) * width * (1 + width / DOUBLE_TOKENS) + PASS_TOKENS
            for group, width in zip(groups, widths, strict=True)
        )
        if cost < cheapest[0]:
            cheapest = cost, [[lines[i] for i in group] for group in groups]
        if len(lines) == 1:
            break
    return cheapest[1]


def _rooms(lengths: NDArray[np.int64]) -> list[int]:
    """How long lines may be that are worth a try: also those that few lines divide the rows to,
    evenly or with 5 % to spare, for rows rarely fit without."""
    longest, total = int(lengths.max()), int(lengths.sum())
    even = [spare * total / lines for lines in range(1, 9) for spare in (1.0, 1.05)]
    return sorted({longest, *(max(longest, math.ceil(room)) for room in even), *ROOMS})


def within_budget(lengths: NDArray[np.int64], tokens: int) -> list[NDArray[np.int64]]:
    """Positions of `lengths` [n] in groups of like length whose rows times their longest are at
    most so many tokens; a longer row is a group of its own. The longest come first, so that memory
    that does not suffice shows early."""
    order = np.argsort(-lengths, kind="stable")
    groups: list[NDArray[np.int64]] = []
    while len(order):
        rows = max(1, tokens // int(lengths[order[0]]))
        groups.append(order[:rows])
        order = order[rows:]
    return groups


def in_batches(order: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """So many of `order` at a time."""
    for start in range(0, len(order), size):
        yield order[start : start + size]
