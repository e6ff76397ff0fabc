"""A sweep whose task has a suite: what it is checked for, told of, and launched with."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient

from search.cli.output import plain_text
from search.cli.results import suite_table
from search.cli.view import View
from search.config.published import PublishedSettings
from search.config.reading import load_sweep, parse_sweep
from search.config.sweep import SweepConfig
from search.launch.dry_run import dry_run
from search.launch.launch import launch
from search.launch.prepare import prepare
from search.launch.rows import write_rows
from search.queries.best import best
from search.queries.comparison import compare
from search.trained.export import export
from spaces.errors import ConfigError
from trainables.tasks.measured_rows import SuiteRows, read_measured_rows
from trainables.tasks.rows import load_rows

MEMBERS = ("plain/accuracy", "turned/f1")


def suite_sweep(tiny_sweep: dict[str, Any], folder: Path, **sections: Any) -> dict[str, Any]:
    """The tiny sweep measured on dev and test, and on the two turned about, by F1."""
    raw = copy.deepcopy(tiny_sweep) | {
        "store": f"file://{folder / 'store'}",
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},
    }
    data = raw["task"]["data"]
    raw["task"]["data"] = {"train": data["train"]}
    raw["task"]["suite"] = [
        {"name": "plain", "data": {"dev": data["dev"], "test": data["test"]}},
        {"name": "turned", "data": {"dev": data["test"], "test": data["dev"]}, "metric": "f1",
         "rows": {"test": 30}},
    ]  # fmt: skip
    return raw | sections


def loaded(raw: dict[str, Any], folder: Path) -> SweepConfig:
    (folder / "sweep.yaml").write_text(yaml.safe_dump(raw))
    return load_sweep(folder / "sweep.yaml")


def labels_in(file: str) -> list[str]:
    return list(pq.read_table(file)["label"].to_pylist())


def test_the_search_goes_by_the_mean_and_confirms_where_every_member_has_a_test(
    tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    raw = suite_sweep(tiny_sweep, tmp_path)
    del raw["confirm"]
    config = loaded(raw, tmp_path)
    assert (config.search.metric, config.search.mode) == ("accuracy", "max")
    assert config.confirm is not None
    assert parse_sweep(config.resolved()) == config
    del raw["task"]["suite"][1]["data"]["test"]
    assert loaded(raw, tmp_path).confirm is None
    asked = loaded(raw | {"confirm": {"seeds": 2}}, tmp_path)
    with pytest.raises(ConfigError, match=r"^confirm: turned of the suite has no test .*; give"):
        prepare(asked)


def test_a_suite_of_less_is_better_is_searched_so(
    tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    raw = suite_sweep(tiny_sweep, tmp_path)
    raw["task"] |= {"kind": "causal", "text": "sentence"}
    raw["task"]["suite"] = [{**each, "metric": "loss"} for each in raw["task"]["suite"]]
    config = loaded(raw, tmp_path)
    assert (config.search.metric, config.search.mode) == ("loss", "min")


def test_files_of_a_member_are_found_beside_the_sweep(
    tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    raw = suite_sweep(tiny_sweep, tmp_path)
    (tmp_path / "own.parquet").write_bytes(Path(raw["task"]["data"]["train"]).read_bytes())
    raw["task"]["suite"][0]["data"] = {"dev": "own.parquet"}
    config = loaded(raw, tmp_path)
    assert config.task.suite[0]["data"] == {"dev": str(tmp_path / "own.parquet")}


def test_an_unknown_key_of_a_member_names_the_nearest(
    tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    raw = suite_sweep(tiny_sweep, tmp_path)
    raw["task"]["suite"][1]["max_lenght"] = 9
    with pytest.raises(ConfigError, match=r"^task\.suite\[1\]\.max_lenght: .*'max_length'"):
        loaded(raw, tmp_path)


def test_a_dry_run_tells_the_rows_of_every_member(
    tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    raw = suite_sweep(tiny_sweep, tmp_path, confirm={"seeds": 2})
    told = dry_run(loaded(raw, tmp_path)).task
    assert told["rows"] == {
        "train": 96, "plain/dev": 40, "plain/test": 40, "turned/dev": 40, "turned/test": 30,
    }  # fmt: skip
    assert set(told["mean_tokens"]) == set(told["rows"])
    members = raw["task"]["suite"]
    positive = [np.mean(np.array(labels_in(each["data"]["dev"])) == "positive") for each in members]
    accuracy = max(positive[0], 1 - positive[0])
    f1 = 2 * positive[1] / (1 + positive[1])
    constant = told["constant_answers"]["dev"]
    assert constant["value"] == pytest.approx((accuracy + f1) / 2)
    assert constant["answer"] is None
    assert told["classes"]["positive"]["plain/dev"] == round(40 * positive[0])


def test_the_rows_of_a_member_are_written_into_a_folder_of_its_own(
    tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    task = loaded(suite_sweep(tiny_sweep, tmp_path), tmp_path).task
    rows = load_rows(task)
    files = write_rows(rows, task, tmp_path / "out")
    for split, each in rows.every_split.items():
        assert files[split] == tmp_path / "out" / f"{split}.jsonl"
        written = [json.loads(line) for line in files[split].open()]
        assert [row["label"] for row in written] == each.labels
    with pytest.raises(ConfigError, match="is there already"):
        write_rows(rows, task, tmp_path / "out")


@pytest.mark.ray
def test_a_launch_logs_every_member_and_their_mean(
    ray_cluster: None, tiny_sweep: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = suite_sweep(
        tiny_sweep, tmp_path, confirm={"seeds": 2}, search={"trials": 3},
        space={"methods": ["lora", "sensitivity"]}, train={"epochs": 1, "batch_size": 16},
    )  # fmt: skip
    config = loaded(raw, tmp_path)
    monkeypatch.chdir(tmp_path)
    with View(config.name) as view:
        result = launch(config, view=view)
    client = MlflowClient(config.tracking.uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    by_kind: dict[str, list[Any]] = {}
    for run in runs:
        by_kind.setdefault(run.data.tags["ranksweep.kind"], []).append(run)
    for kind, start in (("trial", ""), ("confirm", "dev_"), ("confirm", "test_")):
        for run in by_kind[kind]:
            metrics = run.data.metrics
            members = [metrics[f"{start}{name}"] for name in MEMBERS]
            assert metrics[f"{start}accuracy"] == pytest.approx(fmean(members)), start
    for run in by_kind["confirm"]:
        file = client.download_artifacts(run.info.run_id, "test_rows.safetensors", str(tmp_path))
        rows = read_measured_rows(Path(file).read_bytes())
        assert isinstance(rows, SuiteRows)
        assert {name: len(each) for name, each in rows.members.items()} == {
            "plain": 40, "turned": 30,
        }  # fmt: skip
        assert rows.values == pytest.approx(
            {name: run.data.metrics[f"test_{name}"] for name in MEMBERS}
        )

    (first,) = best(config.tracking.uri, config.task.name)
    assert set(first.suite) == set(MEMBERS)
    assert first.value == pytest.approx(fmean(first.suite.values()))
    comparison = compare(config.tracking.uri, config.name)
    compared, constant = comparison.rows, comparison.constant
    assert constant is not None
    assert result.confirmation is not None
    assert [row.suite for row in compared] == [
        pytest.approx(row.suite) for row in result.confirmation
    ]
    for row in compared:
        assert row.mean == pytest.approx(fmean(row.suite.values()))
    other = next(row for row in compared if row.arm != "lora")
    assert (other.paired_seeds, other.test_rows) == (2, 70)
    (name, value), *_ = other.suite.items()
    member, _, metric = name.partition("/")
    columns = {member: {other.arm: 12.5}}
    printed = PublishedSettings(source="a paper", metric=metric, figures={"a": 1}, columns=columns)
    table = suite_table(compared, printed)
    assert table is not None
    assert f"{value:.4f} (paper 0.1250)" in plain_text([table])

    export(config.tracking.uri, first.run_id, "peft", tmp_path / "out")
    about = (tmp_path / "out" / "README.md").read_text()
    for name in ("accuracy", *MEMBERS):
        _, values = about.split(f"| {name} | dev | test |")
        assert re.search(
            r"mean of 2 seeds.* \| 0\.\d{4} ± .* \| 0\.\d{4} ± ", values.split("\n\n")[0]
        )
