"""The task of a trial is read from its sweep, wherever its rows have gone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search.trained.its_task import task_settings
from spaces.errors import UsageError


def run_of(**data: Any) -> Any:
    task = {"name": "movie", "data": data, "text": "review"}
    return SimpleNamespace(run_id="abc", sweep=lambda: {"task": task})


def test_rows_that_are_gone_are_no_fault_of_a_task(tmp_path: Path) -> None:
    gone = str(tmp_path / "saved" / "train")
    assert task_settings(run_of(train=gone), own_code=False).data.train == gone


def test_a_task_that_is_none_any_more_is_told_in_plain_words() -> None:
    with pytest.raises(UsageError) as caught:
        task_settings(run_of(dev="dev.csv"), own_code=False)
    assert str(caught.value).startswith(
        "abc: the task of its sweep cannot be read (has neither train nor hub; give"
    )
