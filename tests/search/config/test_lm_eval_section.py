"""The section `confirm.lm_eval`: its files are found, and what it cannot mean is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from search.config.reading import load_sweep, parse_sweep
from search.launch.lm_eval import check_lm_eval, lm_eval_tasks
from spaces.errors import ConfigError
from tests.search.config.test_keys import raw


def asked(**settings: Any) -> dict[str, Any]:
    return raw(confirm={"seeds": 2, "lm_eval": {"tasks": ["piqa"], **settings}})


def test_task_files_are_found_beside_the_sweep_and_named_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers run elsewhere."""
    (tmp_path / "sweeps" / "own").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "sweeps" / "beside.yaml").touch()
    (tmp_path / "here" / "here.yml").touch()
    tasks = ["piqa", "beside.yaml", "here.yml", "nowhere.yaml"]
    file = tmp_path / "sweeps" / "sweep.yaml"
    file.write_text(yaml.safe_dump(asked(tasks=tasks, include_path="own")))
    config = load_sweep(file)
    assert config.confirm is not None
    assert config.confirm.lm_eval is not None
    assert config.confirm.lm_eval.tasks == (
        "piqa",
        str(tmp_path / "sweeps" / "beside.yaml"),
        str(tmp_path / "here" / "here.yml"),
        "nowhere.yaml",
    )
    assert config.confirm.lm_eval.include_path == str(tmp_path / "sweeps" / "own")
    tasks_asked = lm_eval_tasks(config)
    assert tasks_asked is not None
    assert tasks_asked.folder == str(tmp_path / "here")
    assert load_sweep(file, ["confirm.lm_eval.tasks=beside.yaml"]).confirm is not None


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"tasks": []}, "confirm.lm_eval.tasks"),
        ({"tasks": ["piqa", "piqa"]}, "confirm.lm_eval.tasks"),
        ({"num_fewshot": -1}, "confirm.lm_eval.num_fewshot"),
        ({"limit": 0}, "confirm.lm_eval.limit"),
        ({"limit": 1.5}, "confirm.lm_eval.limit"),
        ({"batch_size": 0}, "confirm.lm_eval.batch_size"),
        ({"fewshot": 1}, "confirm.lm_eval.fewshot"),
    ],
)
def test_what_the_section_cannot_mean_is_refused(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_sweep(asked(**settings))
    assert str(caught.value).startswith(f"{key}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("limit", [0, 0.0, -3, 1.0, 1.5])
def test_a_limit_that_is_neither_is_told_what_to_write(limit: float) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_sweep(asked(limit=limit))
    assert str(caught.value) == (
        f"confirm.lm_eval.limit: is {limit}; give a number of rows, from 1 on, a share of them "
        "between 0 and 1, or null for all"
    )


@pytest.mark.parametrize("limit", [None, 20, 0.25])
def test_a_limit_is_a_number_of_rows_or_a_share(limit: float | None) -> None:
    config = parse_sweep(asked(limit=limit))
    assert config.confirm is not None
    assert config.confirm.lm_eval is not None
    assert config.confirm.lm_eval.limit == limit


def test_a_kind_that_does_not_write_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        check_lm_eval(parse_sweep(asked()))
    assert str(caught.value).startswith(
        "confirm.lm_eval: does not go with kind classification; lm-eval needs a model that writes"
    )
    check_lm_eval(parse_sweep(raw(confirm={"seeds": 2})))
