"""Which data a run has seen, as MLflow keeps it: where they are and a digest, and no rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search.redaction import redacted_text
from search.tracking.mlflow import call
from search.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow.data.dataset_source import DatasetSource

_DIGEST_CHARACTERS = 36  # of MLflow's


@dataclass(frozen=True)
class DataOrigin:
    """Where the rows of one split come from.

    `place` is a file, a folder, or a split of the hub's data set `hub`, of which `subset` is the
    configuration and `revision` the commit or tag. `digest` names the rows, in hex.
    """

    split: str
    place: str
    digest: str
    hub: str | None = None
    subset: str | None = None
    revision: str | None = None


def log_data(tracker: Tracker, run_id: str, task: str, origins: Iterable[DataOrigin]) -> None:
    """Say which data a run has seen; what is said already is not said again."""
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    inputs = []
    for origin in origins:
        seen: Any = MetaDataset(
            _source(origin),
            name=f"{task}/{origin.split}",
            digest=origin.digest[:_DIGEST_CHARACTERS],
        )
        context = InputTag("mlflow.data.context", origin.split)
        inputs.append(DatasetInput(seen._to_mlflow_entity(), [context]))
    call(tracker.uri, lambda: tracker.client.log_inputs(run_id, inputs), tracker.patience)


def _source(origin: DataOrigin) -> DatasetSource:
    """A source that MLflow can load where it knows such a place, else the place's name alone."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.huggingface_dataset_source import HuggingFaceDatasetSource
    from mlflow.exceptions import MlflowException

    if origin.hub is not None:
        return HuggingFaceDatasetSource(
            path=origin.hub,
            config_name=origin.subset,
            split=origin.place,
            revision=origin.revision,
        )
    place = redacted_text(origin.place)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that two of its sources read files, which are one
            return resolve_dataset_source(place)
    except MlflowException:
        return CodeDatasetSource({"place": place})
