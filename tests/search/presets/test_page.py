"""The page of the presets has every one of them."""

from __future__ import annotations

import re
from pathlib import Path

from search.presets.preset import presets

PAGE = Path(__file__).parents[3] / "docs" / "presets.md"


def test_the_page_lists_every_preset_and_no_other() -> None:
    listed = [
        pattern.replace("TASK", task)
        for pattern, tasks in re.findall(
            r"^\| `(\S+TASK\S+)` \| ([^|]+) \|", PAGE.read_text(), re.M
        )
        for task in re.findall(r"`([^`]+)`", tasks)
    ]
    assert sorted(listed) == sorted(each.name for each in presets())


def test_the_page_says_which_table_has_the_values() -> None:
    text = PAGE.read_text()
    for each in presets():
        pattern = each.name.replace(f"-{each.task}-", "-TASK-", 1)
        row = re.search(rf"^\| `{re.escape(pattern)}` .*\| ([^|]+) \|$", text, re.M)
        assert row is not None
        if each.table.hyperparameters is not None:
            assert row.group(1) == f"Table {each.table.hyperparameters}"
        else:
            assert row.group(1) in ("-", "appendix A.2")
