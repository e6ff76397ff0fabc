"""What is told of a task before it is trained, to people and to MLflow."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from search.launch.result import constant_answers
from trainables.tasks.care import quantiles
from trainables.tasks.task import Task


def task_summary(task: Task) -> dict[str, Any]:
    """Its classes, and of each split rows, what names them, tokens and the best constant answer;
    its longest rows, and an example as pieces of text that bear loss or do not. A split of a member
    of a suite is `<member>/<split>`."""
    splits = task.every_split
    lengths = {name: split.lengths for name, split in splits.items()}
    spread = {name: quantiles(each) for name, each in lengths.items()}
    return {
        "name": task.name,
        "labels": list(task.labels),
        "classes": task.class_counts(),
        "fingerprint": task.fingerprint,
        "row_fingerprints": dict(task.rows),
        "constant_answers": {split: asdict(each) for split, each in constant_answers(task).items()},
        "rows": {name: len(split) for name, split in splits.items()},
        "mean_tokens": {name: round(float(each.mean()), 1) for name, each in lengths.items()},
        "median_tokens": {name: middle for name, (middle, _) in spread.items()},
        "tokens_95_percent": {name: high for name, (_, high) in spread.items()},
        "most_tokens": {name: int(each.max()) for name, each in lengths.items()},
        "longest": [asdict(each) for each in task.longest],
        "example": [{"text": text, "loss": bears_loss} for text, bears_loss in task.example],
    }
