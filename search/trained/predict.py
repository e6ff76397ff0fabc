"""What a trained trial predicts for rows: of a file, beside them, or in memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from search.queries.trial_run import TrialRun, find_trial
from search.trained.its_task import task_settings
from spaces.errors import ConfigError, DataError, RanksweepError
from trainables.bases.quantization import Quantization
from trainables.tasks.beside import beside
from trainables.tasks.files import located
from trainables.tasks.saved_datasets import is_saved_dataset
from trainables.trained.answering import Answering
from trainables.trained.restored import load_its_base, restored

logger = logging.getLogger(__name__)

AT_ONCE = 1024
"""Rows that are read, predicted and written at a time."""
New = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Predicted:
    """What was written: `rows` rows with the new `columns` beside their own.

    `confirms` is the run that was named, where `run_id` confirms it.
    """

    run_id: str
    confirms: str | None
    task: str
    kind: str
    out: str
    rows: int
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """Which trial is to predict, and how it is taken: see `asked_trial`."""

    run: TrialRun
    confirms: str | None
    base_uri: str | None
    own_code: bool


def asked_trial(
    tracking_uri: str,
    run_id: str,
    *,
    base_uri: str | None = None,
    as_searched: bool = False,
    own_code: bool = False,
) -> Asked:
    """The trial of a run, as `export` takes it: of one that was confirmed the confirmation that is
    best on dev, unless it is wanted `as_searched`.

    `base_uri` is where the base is now, when it is no longer where the trial found it. Code of the
    task's own is imported only where `own_code` is wanted. Raises ConfigError for a run that is no
    trial.
    """
    named = find_trial(tracking_uri, run_id)
    run = named if as_searched else named.confirmed_best()
    return Asked(run, named.run_id if run.run_id != named.run_id else None, base_uri, own_code)


def own_device(device: str | None = None) -> torch.device:
    """The device that is named, else a GPU where there is one. Raises ConfigError."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device: {device!r} is none; use cpu, cuda or cuda:0") from None


@contextmanager
def answering(asked: Asked, device: torch.device) -> Iterator[Answering]:
    """While open, a trial in memory, which computes as it did when it was measured.

    Raises UsageError where the run has kept no weights or its kind of task predicts nothing,
    BaseModelError where the base cannot be had or is another.
    """
    run = asked.run
    trained = run.trained(own_code=asked.own_code)
    settings = task_settings(run, own_code=asked.own_code)
    base = load_its_base(trained.facts, asked.base_uri, device, _quantization(run, device))
    model = Answering(settings, trained.facts.labels, base.model, device, base.uri)
    model.check()
    with restored(trained, run.plan(), base):
        yield model


def _quantization(run: TrialRun, device: torch.device) -> Quantization | None:
    """How its base was quantized, where that can be done here."""
    name = run.sweep().get("base_quantization")
    if name is not None and device.type != "cuda":
        logger.warning(
            "%s: it was trained on its base in %s, which takes a GPU; predictions are with the "
            "base's whole weights, and may differ",
            run.run_id,
            name,
        )
        return None
    return cast(Quantization | None, name)


# -- files -----------------------------------------------------------------------------------------


def predict_file(
    asked: Asked,
    file: Path,
    out: Path | None = None,
    *,
    at_once: int = AT_ONCE,
    prefix: str = "",
    overwrite: bool = False,
    on_rows: Callable[[int], object] = lambda _rows: None,
) -> Predicted:
    """Write a file's rows again with what a trial predicts for each, into a file of the same kind.

    `out` is by default beside the file, as NAME.predicted.csv; it appears when it is whole. The
    file has the columns that the task reads; a label is not needed. `prefix` is put before the
    names of the new columns. `at_once` rows are predicted at a time, and `on_rows` hears how many
    are done. Raises ConfigError where `out` may not be written, DataError where the file cannot be
    read, lacks a column or has a row that the task refuses, and what `answering` does.
    """
    if at_once < 1:
        raise ConfigError(f"--batch-size: {at_once} is not a number of rows; use 1 or more")
    place = str(file)
    source = located(place, place)
    if is_saved_dataset(source):
        raise DataError(f"{file}: is a folder; name a file, such as one of Parquet")
    try:
        source.open("rb").close()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    target = file.with_name(f"{file.stem}.predicted{file.suffix}") if out is None else out
    _check_out(source, target, overwrite)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    done = 0
    columns: tuple[str, ...] = ()
    try:
        with answering(asked, own_device()) as model:
            with closing(beside(source, place, model.asked, part, at_once)) as parts:
                for records, write in parts:
                    told = renamed(model.answers(records, place), prefix)
                    write(told)
                    done, columns = done + len(records), tuple(told)
                    on_rows(done)
            if not done:
                raise DataError(f"{file}: has no rows; name a file that has some")
            settings = model.settings
        part.replace(target)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RanksweepError(
            f"--out: {target} could not be written ({reason}); make room or name another place"
        ) from error
    finally:
        with suppress(OSError):
            part.unlink()
    return Predicted(
        run_id=asked.run.run_id,
        confirms=asked.confirms,
        task=settings.name,
        kind=settings.kind,
        out=str(target),
        rows=done,
        columns=columns,
    )


def _check_out(source: Path, out: Path, overwrite: bool) -> None:
    if out.suffix.lower() != source.suffix.lower():
        raise ConfigError(
            f"--out: {out} does not end in {source.suffix} as the file does; predictions are "
            "written as a file of the same kind"
        )
    if out.exists() and out.resolve() == source.resolve():
        raise ConfigError(f"--out: {out} is the file itself; name another")
    if out.is_dir() or (out.exists() and not overwrite):
        what = "is a folder" if out.is_dir() else "is there already"
        raise ConfigError(f"--out: {out} {what}; name another, or give --overwrite")
    if not out.parent.is_dir():
        raise ConfigError(f"--out: there is no folder {out.parent}; make it, or name another")


def renamed(new: New, prefix: str) -> New:
    """New columns with something before their names."""
    return {f"{prefix}{name}": values for name, values in new.items()} if prefix else new
