"""A sweep as a job of a Ray cluster: packed, sent, and found again by its name."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from search.config.reading import load_sweep, written_sweep
from search.config.sweep import SweepConfig
from search.launch.submission.arrival import JOB_FILE, JOB_FOLDER
from search.launch.submission.job_server import (
    FOLDER,
    NUMBER,
    STOP_WAIT_S,
    SWEEP,
    Job,
    JobServer,
    TakenError,
)
from search.launch.submission.order import Order
from search.launch.submission.parcel import (
    MOST_BYTES,
    Parcel,
    check_size,
    parcel_of,
    write_zip,
)
from search.launch.submission.places import Places, places_of
from search.launch.submission.unpacked import SWEEP_FILE
from search.launch.submission.wheel import this_distribution, write_wheel
from search.paths import BASE_PACKAGE
from spaces.errors import ConfigError, JobError

REMOTE_FOLDER = "~/ranksweep"
"""Where a submitted sweep works on the head node: it outlives the job, and is the same for all."""
ENTRYPOINT = "exec python -m search.launch.submission.arrival"
TRIES = 5
APART_S = (0.2, 2.0)
"""How long who was refused waits, by chance, so that not both come again at once."""
MOST_PACKED = 20
"""How many times smaller a text may become when it is packed."""


@dataclass(frozen=True)
class Prepared:
    """All that is known of a sweep before it is sent."""

    order: Order
    config: SweepConfig
    parcel: Parcel
    places: Places


@dataclass(frozen=True)
class Packed:
    """What is sent, as files: Ray's runtime environment, and the bytes of each of its packages."""

    runtime_env: Mapping[str, Any]
    sizes: Mapping[str, int] = field(default_factory=dict)


def prepare_to_submit(order: Order) -> Prepared:
    """Read a sweep and see what of it travels. Nothing is sent, and no cluster is asked.

    Raises ConfigError, ChoiceError, BaseModelError or DataError where it cannot be as written.
    """
    overrides = order.overrides
    config = load_sweep(order.file, overrides, store=order.store, tracking=order.tracking)
    written = written_sweep(order.file, overrides)
    places = places_of(
        config, written, store=order.store, tracking=order.tracking, shared=order.shared
    )
    return Prepared(order, config, parcel_of(config, written, shared=order.shared), places)


@contextmanager
def packed(prepared: Prepared, folder: str) -> Iterator[Packed]:
    """While open, what is sent lies in files. `folder` is the remote folder.

    Raises ConfigError where one of them is more than Ray's job server takes.
    """
    parcel = prepared.parcel
    there = sum(piece.bytes for piece in (*parcel.data, *parcel.code))
    if there > MOST_PACKED * MOST_BYTES:  # to find out by packing it would take long
        check_size("task.data", there)
    with tempfile.TemporaryDirectory(prefix="ranksweep-submit-") as made:
        place = Path(made)
        work = place / "work.zip"
        write_zip((*parcel.data, *parcel.code), _texts(prepared, folder), JOB_FOLDER, work)
        modules = [write_wheel(place)]
        sizes = {"the sweep, its data and code": work.stat().st_size}
        sizes["ranksweep"] = modules[0].stat().st_size
        check_size("task.data", work.stat().st_size)
        if parcel.base is not None:
            check_size("base", parcel.base.bytes)
            modules.append(_base_package(parcel, place))
            sizes["the base"] = parcel.base.bytes
        yield Packed(
            {
                "working_dir": str(work),
                "py_modules": [str(module) for module in modules],
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
            },
            sizes,
        )


def submit(server: JobServer, prepared: Prepared) -> Job:
    """Send a sweep to a cluster, where it starts as soon as its files have arrived.

    With `resume` a sweep that runs there is not started again: its job is returned as it runs.

    Raises:
        ConfigError: a job of the sweep's name runs there, or what is to travel is too large.
        JobError: the job server refuses it.
    """
    order, name = prepared.order, prepared.config.name
    for _ in range(TRIES):
        jobs = server.jobs_of(name)
        running = next((job for job in jobs if not job.has_ended), None)
        if running is not None and order.resume:
            return running
        if running is not None:
            raise ConfigError(
                f"name: the sweep {name!r} runs at {server.address} as job {running.id}; follow "
                f"it with --resume, end it with `ranksweep stop {name} --address "
                f"{server.address}`, or submit under another name (--set name=...)"
            )
        folder = folder_of(order, jobs)
        number = max((job.number for job in jobs), default=0) + 1
        job_id = f"{name}-{number}"
        said = {SWEEP: name, NUMBER: str(number), FOLDER: folder}
        try:
            with packed(prepared, folder) as sent:
                server.submit(job_id, ENTRYPOINT, sent.runtime_env, said)
        except TakenError:
            # Another submits the same sweep at this moment. Where Ray fails both, one goes first.
            time.sleep(random.uniform(*APART_S))
            continue
        return server.job(job_id)
    raise JobError(
        f"the job server of {server.address} takes no job of the sweep {name!r}, though none runs; "
        "try again"
    )


def folder_of(order: Order, jobs: Iterable[Job]) -> str:
    """The remote folder: the one that is asked for, else that of the sweep's last job."""
    last = [job.folder for job in jobs if job.folder]
    return order.remote_folder or (last[-1] if last else REMOTE_FOLDER)


def last_job(server: JobServer, sweep: str) -> Job:
    """The job that a sweep runs as, or ran as last. Raises ConfigError where there is none."""
    jobs = server.jobs_of(sweep)
    if not jobs:
        raise ConfigError(
            f"SWEEP: the cluster at {server.address} knows no job of a sweep {sweep!r}; give the "
            "name that it was submitted under"
        )
    return next((job for job in jobs if not job.has_ended), jobs[-1])


def _texts(prepared: Prepared, folder: str) -> dict[str, str]:
    order, parcel, places = prepared.order, prepared.parcel, prepared.places
    about = this_distribution()
    job = {
        "data": [list(piece.at) for piece in parcel.data],
        "store": places.store,
        "tracking": places.tracking,
        "required": dict(places.required),
        "wanted": list(places.wanted),
        "requires": list(about.requires),
        "python": about.python,
        "folder": folder,
        "resume": order.resume,
        "scheduled_by": order.scheduled_by,
        "base_name": order.base_name,
    }
    sweep = {key: value for key, value in parcel.sweep.items() if key != "store"}
    if isinstance(sweep.get("tracking"), Mapping):
        sweep["tracking"] = {k: v for k, v in sweep["tracking"].items() if k != "uri"}
    return {
        JOB_FILE: json.dumps(job, indent=2),
        SWEEP_FILE: yaml.safe_dump(sweep, sort_keys=False, allow_unicode=True),
    }


def _base_package(parcel: Parcel, place: Path) -> Path:
    """The base as a folder that can be imported: Ray packs folders and no zip files as modules."""
    assert parcel.base is not None
    package = place / BASE_PACKAGE
    package.mkdir()
    (package / "__init__.py").touch()
    for name, file in parcel.base.files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, package / name)
    return package
