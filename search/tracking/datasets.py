"""The rows of a sweep as MLflow's datasets: what they are, where they come from, how many."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from search.redaction import redacted_text

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

SourceType = Literal["local", "hugging_face"]
"""How MLflow names a file, and a data set of the hub."""
_DIGEST_CHARACTERS = 36  # all that MLflow takes


@dataclass(frozen=True)
class DatasetFacts:
    """Rows that a run was trained or measured on.

    `digest` names the rows whatever they are called, `source` is a file or a data set on the hub,
    and `used` says for what: "train", "dev" or "test". `profile` has what is counted of them.
    """

    name: str
    digest: str
    source: Mapping[str, Any]
    source_type: SourceType
    used: str
    profile: Mapping[str, Any] = field(default_factory=dict)

    def as_input(self) -> DatasetInput:
        """The same as MLflow logs it, without credentials."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=self.name,
            digest=self.digest[:_DIGEST_CHARACTERS],
            source_type=self.source_type,
            source=json.dumps({k: _shown(v) for k, v in self.source.items()}),
            profile=json.dumps(self.profile),
        )
        return DatasetInput(dataset, [InputTag("mlflow.data.context", self.used)])


def _shown(value: Any) -> Any:
    return redacted_text(value) if isinstance(value, str) else value
