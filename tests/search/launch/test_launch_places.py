"""A launch where nothing is as Ray and MLflow expect it: one launch, for it takes half a minute."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.search.launches import Launch, complete, states_in_mlflow, states_in_study

pytestmark = pytest.mark.ray

USERS_OWN = ("search.py", "spaces.py", "evaluate.py", "queue.py", "types.py", "random.py")


def test_a_launch_among_the_users_own_modules_in_an_odd_folder_without_a_home(
    tiny_sweep: dict[str, Any],
    tmp_path: Path,
    launched: Callable[..., Launch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "50% a?b #1 {x} ü"
    folder.mkdir()
    for name in USERS_OWN:
        (folder / name).write_text("raise ValueError('a module of the user')")
    for name in ("trainables", "datasets"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise ValueError('a package of the user')")
    long = tmp_path / secrets.token_hex(40)
    long.mkdir()
    for variable in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "XDG_CACHE_HOME", "RANKSWEEP_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", "/proc/no/home")
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    sweep = {**tiny_sweep, "search": {"trials": 1}, "train": {"epochs": 1, "batch_size": 16}}
    sweep["space"] = {"methods": ["taso"]}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))

    launch = launched(folder)

    assert launch.end() == 0, launch.said
    assert complete(states_in_study(folder)) == complete(states_in_mlflow(folder)) == {0}
    kept = folder / ".ranksweep"
    assert len(list(kept.glob("store/profiles/*/*.safetensors"))) == 1
    assert len(list(kept.glob("mlartifacts/*/artifacts/weights.safetensors"))) == 1
    assert {each.name for each in tmp_path.iterdir()} == {folder.name, long.name}
