"""Taking the largest of some values, with ties."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces.methods.ranking import drawn, largest, rounded_share, shortest_prefix


@given(values=st.lists(st.integers(0, 5), max_size=30), count=st.integers(-1, 35))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_largest_takes_the_larger_then_the_earlier(values: list[int], count: int) -> None:
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    for dtype in (np.uint16, np.int32, np.float32, np.float64):
        taken = largest(np.array(values, dtype=dtype), count)
        assert taken.dtype == np.int32
        assert taken.tolist() == sorted(order[: max(count, 0)])


@pytest.mark.parametrize(
    ("values", "share", "count"),
    [
        ([1, 2, 3, 4], 0.0, 0),
        ([1, 2, 3, 4], 0.4, 1),
        ([1, 2, 3, 4], 0.41, 2),
        ([1, 2, 3, 4], 1.0, 4),
        ([1, 2, 0, 0], 1.0, 2),
        ([0, 0], 0.5, 0),
        ([], 0.5, 0),
        ([1] * 10, 0.3, 3),
    ],
)
def test_shortest_prefix_by_hand(values: list[float], share: float, count: int) -> None:
    assert shortest_prefix(np.array(values, dtype=np.float32), share) == count


@pytest.mark.parametrize(("fraction", "total"), [(0.5, 5), (0.1, 4096), (0.25, 10), (0.0, 3)])
def test_shares_round_half_up(fraction: float, total: int) -> None:
    exact = (Decimal(str(fraction)) * total).to_integral_value(ROUND_HALF_UP)
    assert rounded_share(fraction, total) == int(exact)


def test_a_larger_draw_holds_the_smaller() -> None:
    for count in range(20):
        smaller, larger = drawn(20, count, (3, 1)), drawn(20, count + 1, (3, 1))
        assert len(smaller) == count
        assert set(smaller.tolist()) < set(larger.tolist())
    assert drawn(20, 10, (3, 1)).tolist() != drawn(20, 10, (3, 2)).tolist()
