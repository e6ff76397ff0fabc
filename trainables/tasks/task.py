"""Tasks: labelled rows, how they become inputs of a base, and the fingerprints that name them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainables.bases.parts import load_config, load_image_processor
from trainables.tasks.metrics import metric_for
from trainables.tasks.pictures import Picture, encode_pictures
from trainables.tasks.rows import Rows, label_indices, label_names, load_rows
from trainables.tasks.settings import IMAGE_KINDS, TaskSettings
from trainables.tasks.split import Split
from trainables.tasks.texts import token_splits

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A task made ready for one base: its splits as the base's inputs, and what names it.

    `train_fingerprint` covers the training rows and how they become inputs, which is all that a
    profile depends on; `fingerprint` adds dev, test and the metric.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    splits: dict[str, Split]
    metric: str
    train_fingerprint: str
    fingerprint: str

    @property
    def num_labels(self) -> int:
        """How many classes there are."""
        return len(self.labels)


# --- a base's inputs ---------------------------------------------------------------------------


def build_task(settings: TaskSettings, base_uri: str) -> Task:
    """Read a task's rows and turn them into the tokens, or the pixels, of a base.

    Raises DataError as `load_rows` does and for a picture that is none, BaseModelError where the
    base has no tokenizer or image processor, and ConfigError for a metric that does not measure
    this kind of task.
    """
    metric = metric_for(settings.metric, settings.kind)
    rows = load_rows(settings)
    labels = label_names(rows["train"])
    content: dict[str, Any] = {"kind": settings.kind, "labels": labels}
    content["rows"] = rows["train"].hashes
    splits: dict[str, Split]
    if settings.kind in IMAGE_KINDS:
        splits = _pixels(rows, labels, base_uri)
    else:
        content |= {"max_length": settings.max_length, "texts": len(settings.text)}
        splits = token_splits(rows, labels, settings, base_uri)
    train_fingerprint = _fingerprint(content)
    others = {split: rows[split].hashes for split in rows if split != "train"}
    return Task(
        name=settings.name,
        kind=settings.kind,
        labels=labels,
        splits=splits,
        metric=metric.name,
        train_fingerprint=train_fingerprint,
        fingerprint=_fingerprint(
            {"train": train_fingerprint, "metric": metric.name, "rows": others}
        ),
    )


def _fingerprint(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _pixels(rows: Mapping[str, Rows], labels: Sequence[str], base_uri: str) -> dict[str, Split]:
    """Every split as pixels."""
    processor, config = load_image_processor(base_uri), load_config(base_uri)
    return {
        split: encode_pictures(
            [row[0] for row in part.inputs if isinstance(row[0], Picture)],
            label_indices(part, labels),
            processor,
            config,
            base_uri,
        )
        for split, part in rows.items()
    }
