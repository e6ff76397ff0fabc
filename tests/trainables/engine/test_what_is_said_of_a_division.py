"""What a launch tells of a base that is divided among workers."""

from __future__ import annotations

from typing import Any

import pytest

from trainables.engine.section import said_of_division


@pytest.mark.parametrize(
    ("zero", "workers", "said"),
    [
        ({"stage": 2}, 2, None),
        ({"stage": 3}, 2, "ZeRO 3: the base is divided among the 2 workers of each group"),
        ({"stage": 3}, 1, "divides nothing in groups of one worker"),
        ({"stage": 3, "offload_param": {"device": "cpu"}}, 1, "its parts in main memory"),
    ],
)
def test_a_division_is_said(zero: dict[str, Any], workers: int, said: str | None) -> None:
    found = said_of_division({"zero_optimization": zero}, workers)
    assert (said is None and found is None) or (said is not None and said in str(found))
