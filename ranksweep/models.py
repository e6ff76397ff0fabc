"""Trained trials: the model in memory, and what it predicts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from spaces.errors import DataError

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]
    from transformers import PreTrainedModel

    from trainables.trained.answering import Answering

    Rows: TypeAlias = (
        pd.DataFrame | Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]] | Sequence[str]
    )
    """A frame, columns by name, mappings with a value for each column, or plain texts."""

PLACE = "the rows"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A trained trial in memory, its update merged into its base.

    `model` is of transformers' class for the task, in evaluation mode; `tokenizer` (or, for
    pictures, `image_processor`) makes its inputs as the trial did where it is told to truncate.
    `labels` are the classes in the order of its outputs, none where there are none. `run_id` is the
    run whose weights these are: the confirmation `confirms` best on dev, where the named one was
    confirmed.
    """

    run_id: str
    confirms: str | None
    task: str
    kind: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    """The columns of a row that are read."""
    model: PreTrainedModel = field(repr=False)
    tokenizer: Any = field(repr=False)
    """None where the base has none."""
    image_processor: Any = field(repr=False)
    """None where the base has none."""
    _answering: Answering = field(repr=False)

    def predict(self, rows: Rows) -> pd.DataFrame:
        """The rows with what is predicted for each: columns as `predict` has them."""
        return _predicted(self._answering, rows, "")


def load(
    run_id: str,
    *,
    base: str | None = None,
    as_searched: bool = False,
    own_code: bool = False,
    device: str | None = None,
    tracking: str | None = None,
) -> LoadedModel:
    """The trained model of a trial: what `ranksweep export --to merged` writes, in memory.

    Of a trial that was confirmed, the confirmation that is best on dev is loaded, unless it is
    wanted `as_searched`. `base` is where its base is now, where it has moved; `device` such as
    "cuda", by default a GPU where there is one; code of the task's own is imported only with
    `own_code`. Raises ConfigError for a run that is no trial, UsageError where it has kept no
    weights or its update cannot be merged, and other Errors where its base cannot be had.
    """
    from search.trained.loaded import load_trial
    from search.trained.predict import own_device

    asked = _asked(run_id, base, as_searched, own_code, tracking)
    loaded = load_trial(asked, own_device(device))
    answering = loaded.answering
    return LoadedModel(
        run_id=loaded.run_id,
        confirms=loaded.confirms,
        task=answering.settings.name,
        kind=answering.settings.kind,
        labels=answering.labels,
        columns=tuple(answering.asked),
        model=answering.model,
        tokenizer=loaded.tokenizer,
        image_processor=loaded.image_processor,
        _answering=answering,
    )


@overload
def predict(
    run_id: str,
    rows: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = ...,
    overwrite: bool = ...,
    prefix: str = ...,
    base: str | None = ...,
    as_searched: bool = ...,
    own_code: bool = ...,
    tracking: str | None = ...,
) -> Path: ...


@overload
def predict(
    run_id: str,
    rows: Rows,
    *,
    prefix: str = ...,
    base: str | None = ...,
    as_searched: bool = ...,
    own_code: bool = ...,
    tracking: str | None = ...,
) -> pd.DataFrame: ...


def predict(
    run_id: str,
    rows: Any,
    *,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    prefix: str = "",
    base: str | None = None,
    as_searched: bool = False,
    own_code: bool = False,
    tracking: str | None = None,
) -> pd.DataFrame | Path:
    """What a trained trial predicts for rows, beside them.

    `rows` is the path of a file, which is written again with new columns, as `ranksweep predict`
    does, into `out` (default: NAME.predicted.csv beside it, and so on); then the path of what is
    written is returned. Or it is a frame, columns by name, a list of mappings, or a list of texts
    where the task reads one column; then a frame is. Labels are not needed. The new columns depend
    on the kind of task (docs/python.md has them); `prefix` is put before their names.

    It computes with the update beside its base, as when the trial was measured. The other arguments
    and errors are those of `load`; DataError where a column or a value is missing, or a new column
    has the name of one that is there.
    """
    from search.trained.predict import answering, own_device, predict_file

    asked = _asked(run_id, base, as_searched, own_code, tracking)
    if isinstance(rows, str | os.PathLike):
        target = None if out is None else Path(out)
        told = predict_file(asked, Path(rows), target, prefix=prefix, overwrite=overwrite)
        return Path(told.out)
    with answering(asked, own_device()) as model:
        return _predicted(model, rows, prefix)


def _asked(
    run_id: str, base: str | None, as_searched: bool, own_code: bool, tracking: str | None
) -> Any:
    from search.config.reading import resolve_tracking
    from search.trained.predict import asked_trial

    return asked_trial(
        resolve_tracking(tracking),
        run_id,
        base_uri=base,
        as_searched=as_searched,
        own_code=own_code,
    )


def _predicted(model: Answering, rows: Rows, prefix: str) -> pd.DataFrame:
    import pandas as pd

    from search.trained.predict import renamed
    from trainables.tasks.records import check_columns
    from trainables.trained.answering import records_of

    given = _frame(rows, tuple(model.asked))
    check_columns(model.asked, list(given.columns), PLACE)
    columns = {name: [_plain(each) for each in given[name].tolist()] for name in model.asked}
    told = renamed(model.answers(records_of(columns, len(given)), PLACE), prefix)
    if twice := [name for name in told if name in given.columns]:
        raise DataError(
            f"{PLACE}: have a column {twice[0]!r}, as a new one is to be called; rename it, or "
            "give a prefix"
        )
    return pd.concat([given, pd.DataFrame(told, index=given.index)], axis=1)


def _frame(rows: Rows, asked: tuple[str, ...]) -> pd.DataFrame:
    import pandas as pd

    if isinstance(rows, pd.DataFrame):
        return rows
    if isinstance(rows, Mapping):
        return pd.DataFrame(dict(rows))
    every = list(rows)
    if every and isinstance(every[0], Mapping):
        return pd.DataFrame(every)
    if len(asked) != 1:
        raise DataError(
            f"{PLACE}: are single values, and the task reads the columns {', '.join(asked)}; give "
            "mappings or a frame with these"
        )
    return pd.DataFrame({asked[0]: every})


def _plain(value: Any) -> Any:
    """A cell without numpy: a frame that was read from Parquet has its lists as arrays."""
    import numpy as np

    return [_plain(each) for each in value] if isinstance(value, np.ndarray) else value
