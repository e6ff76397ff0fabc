"""What a study remembers of earlier sweeps, so that one that goes on learns from the same."""

from __future__ import annotations

from collections.abc import Callable

import optuna

from search.study.in_time import in_time
from search.surrogate.history import packed, unpacked
from search.surrogate.observation import RelatedSweep

_FOUND = "ranksweep_history"
MOST_CHARACTERS = 48_000
"""A text of MySQL's takes 65,535 bytes, and a study is read often."""


def remember_history(
    study: optuna.Study, find: Callable[[], list[RelatedSweep]]
) -> list[RelatedSweep]:
    """What `find` returned when the study was first searched, which is written into the study.

    Drivers that share a study learn from the same, and so does a resumed one. Where the tracking
    server cannot be read, or not in time, there is nothing, and a warning.
    """
    if _FOUND not in study.user_attrs:
        found = in_time(find, "nothing is learned from earlier sweeps")
        study.set_user_attr(_FOUND, packed(found, MOST_CHARACTERS))
    return unpacked(study.user_attrs[_FOUND])
