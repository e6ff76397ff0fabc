"""A submitted sweep as the cluster has it: read from the job's folder, checked as any other."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from search.config.reading import parse_sweep, resolve_store, resolve_tracking
from search.config.sweep import SweepConfig
from search.launch.submission.arrival import OWN_CODE

SWEEP_FILE = "sweep.yaml"


def unpacked_sweep(here: Path, job: Mapping[str, Any]) -> SweepConfig:
    """The sweep in the job's folder `here`, its files where they are unpacked.

    Store and tracking are those that it names, else those of this environment, else the defaults.
    Errors as of `load_sweep`.
    """
    raw = yaml.safe_load((here / SWEEP_FILE).read_text())
    for *keys, last in job["data"]:
        inner: Any = raw
        for key in keys:
            inner = inner[key]
        inner[last] = str(here / inner[last])
    raw["store"] = resolve_store(job["store"])
    tracking = {**(raw.get("tracking") or {}), "uri": resolve_tracking(job["tracking"])}
    with _own_code_first(here / OWN_CODE):
        return parse_sweep({**raw, "tracking": tracking})


@contextmanager
def _own_code_first(folder: Path) -> Iterator[None]:
    """While open, modules are found in a folder before all else, as in the directory of a launch.

    Not for longer: what ranksweep imports later is not to be a file of the user's.
    """
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
