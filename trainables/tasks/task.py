"""A task made ready for a base: its splits as the base's inputs, and what names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainables.tasks.kinds import KINDS, metric_for
from trainables.tasks.rows import label_names, load_rows
from trainables.tasks.settings import TaskSettings
from trainables.tasks.split import Split


@dataclass(frozen=True)
class Task:
    """A task made ready for one base: its splits as the base's inputs, and what names it.

    `train_fingerprint` covers the training rows and how they become inputs, which is all that a
    profile depends on; `fingerprint` adds dev, test and the metric. `rows` has, of each split, what
    names its rows alone.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    splits: dict[str, Split]
    metric: str
    train_fingerprint: str
    fingerprint: str
    rows: Mapping[str, str] = field(default_factory=dict)

    @property
    def data_fingerprint(self) -> str:
        """`fingerprint` without the metric: measurements are of the same data where it is equal."""
        others = {split: rows for split, rows in self.rows.items() if split != "train"}
        return _fingerprint({"train": self.train_fingerprint, "rows": others})

    @property
    def num_labels(self) -> int:
        """How many classes there are."""
        return len(self.labels)


def build_task(settings: TaskSettings, base_uri: str) -> Task:
    """Read a task's rows and turn them into the inputs of a base.

    Raises DataError as `load_rows` does and for an input that is none, BaseModelError where the
    base has nothing that makes inputs of such rows, and ConfigError for a metric that does not
    measure this kind of task.
    """
    metric = metric_for(settings.metric, settings.kind)
    rows = load_rows(settings)
    labels = label_names(rows["train"])
    kind = KINDS[settings.kind]
    train = _fingerprint(
        {
            "kind": settings.kind,
            "labels": labels,
            "rows": rows["train"].hashes,
            **kind.input_facts(settings),
        }
    )
    others = {split: rows[split].hashes for split in rows if split != "train"}
    return Task(
        name=settings.name,
        kind=settings.kind,
        labels=labels,
        splits=kind.encode(rows, labels, settings, base_uri),
        metric=metric.name,
        train_fingerprint=train,
        fingerprint=_fingerprint({"train": train, "metric": metric.name, "rows": others}),
        rows={split: _fingerprint({"rows": rows[split].hashes}) for split in rows},
    )


def _fingerprint(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
