"""A metric of one's own: `metric: examples.own_metric:within_a_tenth`."""

import re
from collections.abc import Sequence

NUMBER = re.compile(r"-?\d+(\.\d+)?")


def within_a_tenth(written: Sequence[str], accepted: Sequence[Sequence[str]]) -> list[float]:
    """Of each row 1 where the first number written is within a tenth of the right one, else 0."""
    found = [NUMBER.search(text) for text in written]
    right = [float(answers[0]) for answers in accepted]
    return [
        float(said is not None and abs(float(said[0]) - number) <= abs(number) / 10)
        for said, number in zip(found, right, strict=True)
    ]
