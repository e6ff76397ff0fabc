"""Which rows of a split are taken: so many of each class, drawn by a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spaces.errors import DataError

Ints = NDArray[np.int64]


def drawn_rows(labels: Sequence[str], limit: int, seed: Sequence[int], key: str) -> list[int]:
    """The indices, ascending, of `limit` rows: of each class its share, and at least one.

    `key` names the limit. Raises DataError where there are more classes than that.
    """
    names, of_row = np.unique(np.array(labels, dtype=object), return_inverse=True)
    if limit < len(names):
        raise DataError(
            f"{key}: {limit} rows cannot hold a row of each of the {len(names)} classes; give "
            f"{len(names)} or more"
        )
    counts = np.bincount(of_row)
    shares = allotted(counts, limit, np.ones_like(counts), counts)
    assert shares is not None, "a limit is less than the rows"
    return _of_each_class(of_row, shares, np.random.default_rng(seed))


def drawn_part(
    labels: Sequence[str], count: int, seed: int, *, rest_keeps_all: bool
) -> list[int] | None:
    """The indices of `count` different rows that are divided off from the others.

    A plain draw where no class is missing on either side for want of luck; else each class gives
    its share, and keeps a row on each side where it has two. None where `rest_keeps_all` and the
    others cannot keep a row of each class.
    """
    plain = np.random.default_rng(seed).permutation(len(labels))[:count]
    names, of_row = np.unique(np.array(labels, dtype=object), return_inverse=True)
    counts = np.bincount(of_row)
    drawn = np.bincount(of_row[plain], minlength=len(names))
    two = counts > 1
    if _two_sided(drawn, counts, two) and not (rest_keeps_all and (drawn == counts).any()):
        return list(map(int, plain))
    most = counts - 1 if rest_keeps_all else np.where(two, counts - 1, counts)
    for least in (two.astype(np.int64), np.zeros_like(counts)):
        shares = allotted(counts, count, least, most)
        if shares is not None:
            return _of_each_class(of_row, shares, np.random.default_rng(seed))
    return None if rest_keeps_all else list(map(int, plain))


def _two_sided(drawn: Ints, counts: Ints, among: NDArray[np.bool_]) -> bool:
    """Whether each class of `among` has a row among those drawn and one among the others."""
    return bool(((drawn > 0) & (drawn < counts))[among].all())


def allotted(counts: Ints, total: int, least: Ints, most: Ints) -> Ints | None:
    """`total` shared out in proportion to `counts`, each share from `least` to `most`.

    The whole parts of the exact shares, then one each to those that are shortest of theirs; the
    first of equals. None where the bounds leave no way.
    """
    if not least.sum() <= total <= most.sum():
        return None
    exact = counts * (total / counts.sum())
    shares: Ints = np.clip(np.floor(exact).astype(np.int64), least, most)
    while (missing := total - int(shares.sum())) != 0:
        if missing > 0:
            shares[np.where(shares < most, exact - shares, -np.inf).argmax()] += 1
        else:
            shares[np.where(shares > least, exact - shares, np.inf).argmin()] -= 1
    return shares


def _of_each_class(of_row: Ints, shares: Ints, generator: np.random.Generator) -> list[int]:
    """So many rows of each class, in ascending order."""
    of_class = np.split(np.argsort(of_row, kind="stable"), np.cumsum(np.bincount(of_row))[:-1])
    drawn = [
        generator.choice(rows, share, replace=False)
        for rows, share in zip(of_class, shares, strict=True)
    ]
    return sorted(np.concatenate(drawn).tolist())


def nested_order(groups: NDArray[Any], seed: int) -> Ints:
    """All rows, int64 [n], in such an order that each beginning of it is a fair draw.

    Of each of the `groups` [n] it has its share, and at least one row from so many rows on as there
    are groups.
    """
    names, of_row = np.unique(groups, return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(len(of_row))
    of_class = np.argsort(of_row[shuffled], kind="stable")
    counts = np.bincount(of_row, minlength=len(names))
    turn = np.arange(len(of_row)) - np.repeat(np.cumsum(counts) - counts, counts)
    # Row k of a class of m stands at (k + 1/2) / m of the way, so classes take turns (Webster).
    place = (turn + 0.5) / np.repeat(counts, counts)
    place[turn == 0] = -1.0
    order: Ints = shuffled[of_class[np.argsort(place, kind="stable")]].astype(np.int64)
    return order
