"""A sweep's name is refused while it runs, before anything else is said about it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from search.launch.resume import check_name
from search.launch.sweep_lock import alone
from search.paths import SweepPaths
from spaces.errors import ConfigError

SWEEP: dict[str, Any] = {
    "train": {"epochs": 2, "learning_rate": {"log": [1e-4, 1e-3]}},
    "search": {"trials": 4, "seed": 0},
    "cluster": {"groups": 1},
    "profile": None,
}


def films(resolved: dict[str, Any]) -> Any:
    """A sweep whose resolved mapping is given."""
    return SimpleNamespace(name="films", resolved=lambda: resolved)


def launched(root: Path) -> SweepPaths:
    paths = SweepPaths(root, name="films")
    paths.make_sweep()
    paths.sweep_file.write_text(yaml.safe_dump(SWEEP))
    return paths


@pytest.mark.parametrize("resume", [True, False])
def test_a_sweep_that_runs_is_said_to_run(tmp_path: Path, resume: bool) -> None:
    paths = launched(tmp_path)
    with alone(paths), pytest.raises(ConfigError, match="is being run by process") as caught:
        check_name(films(SWEEP), paths, resume)
    assert "--resume" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "value", "key"),
    [
        ("train", {"epochs": 3, "learning_rate": SWEEP["train"]["learning_rate"]}, "train.epochs"),
        ("train", {"epochs": 2, "learning_rate": {"log": [1e-5, 1e-3]}}, "train.learning_rate.log"),
        ("train", {"epochs": 2}, "train.learning_rate"),
        ("search", {"trials": 9, "seed": 1}, "search.seed"),
        ("profile", {"rank": 8}, "profile"),
    ],
)
def test_what_differs_from_the_sweep_is_named_to_its_key(
    tmp_path: Path, section: str, value: object, key: str
) -> None:
    paths = launched(tmp_path)
    with pytest.raises(ConfigError) as caught:
        check_name(films(SWEEP | {section: value}), paths, resume=True)
    assert str(caught.value).startswith(f"{key}: differs from the sweep 'films'")


def test_all_that_differs_is_named(tmp_path: Path) -> None:
    changed = {"train": SWEEP["train"] | {"epochs": 3}, "search": {"trials": 4, "seed": 1}}
    with pytest.raises(ConfigError, match=r"^train\.epochs, search\.seed: differ from"):
        check_name(films(SWEEP | changed), launched(tmp_path), resume=True)


def test_more_trials_on_another_cluster_may_go_on(tmp_path: Path) -> None:
    changed = {"search": {"trials": 9, "seed": 0}, "cluster": {"groups": 2}}
    check_name(films(SWEEP | changed), launched(tmp_path), resume=True)
