"""Where the files are that `confirm.lm_eval` names."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from trainables.training.lm_eval_settings import is_file


def with_files_located(confirm: Any, located: Callable[[str], str]) -> Any:
    """A raw section `confirm` whose task files and folder are absolute, where they are there.

    The workers, which read them, run in a directory of their own.
    """
    asked = confirm.get("lm_eval") if isinstance(confirm, Mapping) else None
    if not isinstance(asked, Mapping):
        return confirm
    found = dict(asked)
    tasks = [asked["tasks"]] if isinstance(asked.get("tasks"), str) else asked.get("tasks")
    if isinstance(tasks, list):
        found["tasks"] = [
            _absolute(task, located) if isinstance(task, str) and is_file(task) else task
            for task in tasks
        ]
    if isinstance(folder := asked.get("include_path"), str) and folder:
        found["include_path"] = _absolute(folder, located)
    return {**confirm, "lm_eval": found}


def _absolute(path: str, located: Callable[[str], str]) -> str:
    file = os.path.expanduser(located(path))
    return os.path.abspath(file) if os.path.exists(file) else path
