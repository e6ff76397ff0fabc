"""The section `confirm.lm_eval` of a sweep; read where lm-eval need not be installed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, field_validator

from spaces.errors import JobError
from trainables.settings import Names, Settings

SCORE_PREFIX = "lm_eval/"
"""What the names of lm-eval's scores start with in MLflow: `lm_eval/piqa/acc`."""


class LmEvalError(JobError):
    """lm-eval has failed, on all workers of a group alike."""


def is_file(task: str) -> bool:
    """Whether a task is named by its file, not by its name."""
    return Path(task).suffix in (".yaml", ".yml")


def _some(tasks: tuple[str, ...]) -> tuple[str, ...]:
    if not tasks:
        raise ValueError("names no task; write names that lm-eval knows, or paths of task files")
    twice = [task for task, count in Counter(tasks).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} stands twice; leave one out")
    return tasks


class LmEvalSettings(Settings):
    """lm-eval, run on the untouched base and on what every confirmed seed has trained."""

    tasks: Annotated[Names, AfterValidator(_some)]
    """Tasks, groups or tags that lm-eval knows, and paths of task files (`.yaml`). Data files that
    a task file names are looked for where the launch is started, then beside the task file."""
    num_fewshot: NonNegativeInt | None = None
    """Worked examples before each question; `null` takes what each task says. A task that says 0
    keeps to it."""
    limit: PositiveInt | Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Only so many rows of each task, or such a share of them: for trying things out, as others do
    not recognise the score; `null` takes all."""
    include_path: Annotated[str, Field(min_length=1)] | None = None
    """Folder of task files whose tasks are known by their names too."""
    batch_size: PositiveInt = 16
    """Requests of one forward pass."""
    allow_code: bool = False
    """Whether code may run that does not come with lm-eval: the `!function` of task files of your
    own, and metrics that lm-eval downloads as scripts."""

    @field_validator("limit", mode="before")
    @classmethod
    def _rows_or_share(cls, limit: object) -> object:
        if isinstance(limit, bool) or not isinstance(limit, int | float):
            return limit
        if not (limit >= 1 if isinstance(limit, int) else 0.0 < limit < 1.0):
            raise ValueError(
                f"is {limit}; give a number of rows, from 1 on, a share of them between 0 and 1, "
                "or null for all"
            )
        return limit

    @property
    def of_scores(self) -> dict[str, Any]:
        """The settings that make the scores what they are, as JSON has them."""
        return self.model_dump(mode="json", exclude={"allow_code", "batch_size"})

    @property
    def digest(self) -> str:
        """SHA-256 of `of_scores`: scores of one digest can be compared, and their mean taken."""
        return hashlib.sha256(json.dumps(self.of_scores, sort_keys=True).encode()).hexdigest()
