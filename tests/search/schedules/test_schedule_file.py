"""A schedule's file: what it fills in, and what it refuses in one line."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from search.schedules.quiet import cover_the_day, is_quiet
from search.schedules.schedule import read_schedule
from spaces.errors import ConfigError
from tests.search.schedules.schedules import SWEEP, write_schedule


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"quite": []}, "quite: unknown key; did you mean 'quiet'?"),
        ({"when": {"evry": 3}}, "when.evry: unknown key; did you mean 'every'?"),
        ({"when": {"cron": ["0 0 31 6 *"]}}, "when.cron: '0 0 31 6 *' never fires"),
        ({"when": {"timezone": "Europe/Berln"}}, "did you mean 'Europe/Berlin'?"),
        ({"quiet": ["22:00-06:00", "06:00-22:00"]}, "quiet: covers the whole day"),
        ({"quiet": ["25:00-06:00"]}, "quiet: '25:00-06:00' is no span of time"),
        ({"quiet": ["06:00-06:00"]}, "begins where it ends"),
        ({"set": {"name": "mine"}}, "each claim makes its own name"),
        ({"set": {"search.trails": 3}}, "trails: unknown key; did you mean 'trials'?"),
        ({"set": {"search.study": "postgresql://me:secret@db/x"}}, "holds credentials"),
        ({"set": {"search": {"study": "postgresql://me:secret@db/x"}}}, "search.study holds cred"),
        ({"set": {"a": [{"b": "s3://x?key=secret"}]}}, "a[0].b holds credentials"),
        ({"shared": True}, "shared: goes with `submit`; name a cluster there, or remove it"),
        ({"remote_folder": "/data"}, "remote_folder: goes with `submit`"),
        ({"tracking": "https://me:secret@mlflow"}, "tracking: https://***@mlflow holds"),
        ({"name": "new films"}, "'new films' cannot name a schedule"),
        ({"name": "usage"}, "use another name"),
        ({"sweep": "other.yaml"}, "other.yaml: no such file"),
        ({"at_once": 0}, "at_once: should be greater than 0"),
        ({"store": "s4://x"}, "is no store"),
    ],
)
def test_what_cannot_be_is_refused_with_its_file_and_its_key(
    tmp_path: Path, keys: dict[str, Any], told: str
) -> None:
    path = write_schedule(tmp_path, **keys)
    with pytest.raises(ConfigError) as refused:
        read_schedule(path)
    assert told in str(refused.value)
    assert str(refused.value).startswith(str(path))
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_sweep_with_a_name_is_refused(tmp_path: Path) -> None:
    path = write_schedule(tmp_path, {**SWEEP, "name": "mine"})
    with pytest.raises(ConfigError, match=r"has a name \('mine'\).*remove `name`"):
        read_schedule(path)


def test_a_budget_that_a_grid_cannot_keep_is_refused(tmp_path: Path) -> None:
    grid = {
        "space": {"learning_rate": [1e-4, 1e-3], "methods": {"lora": {"rank": [2, 4]}}},
        "search": {"sampler": "grid"},
    }
    path = write_schedule(tmp_path, {**SWEEP, **grid}, budget={"trials": 3})
    with pytest.raises(ConfigError, match=r"budget: search\.trials"):
        read_schedule(path)


def test_a_budget_caps_what_the_sweep_asks_for_and_no_more(tmp_path: Path) -> None:
    search = {"trials": 50, "time_budget": 60}
    path = write_schedule(tmp_path, {**SWEEP, "search": search}, budget={"trials": 20, "hours": 2})
    config = read_schedule(path).config
    assert (config.search.trials, config.search.time_budget) == (20, 60)
    write_schedule(tmp_path, SWEEP, budget={"trials": 200, "hours": 2})
    config = read_schedule(path).config
    assert (config.search.trials, config.search.time_budget) == (24, 7200)


def test_the_key_on_need_not_be_quoted(tmp_path: Path) -> None:
    path = write_schedule(tmp_path)
    path.write_text(path.read_text() + "on: {data: on}\n")
    assert read_schedule(path).settings.on.data


def test_quiet_hours_go_over_midnight() -> None:
    spans = ["22:00-06:00", "12:30-13:00"]
    quiet = [hour for hour in range(24) if is_quiet(spans, datetime(2026, 11, 30, hour, 45))]
    assert quiet == [0, 1, 2, 3, 4, 5, 12, 22, 23]
    assert not cover_the_day(spans)
    assert cover_the_day([*spans, "05:00-22:01"])
    assert cover_the_day(["00:00-24:00"])
