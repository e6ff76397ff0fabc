"""A set that is larger than memory, on the workers: by its files, wherever these are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from spaces.errors import JobError
from spaces.methods.registry import make_plan, parse_choice
from tests.trainables.tasks.kinds.examples import DECODER, make_kind
from trainables.bases.location import fingerprint
from trainables.bases.structure import meta_base
from trainables.resident import node_files
from trainables.resident.groups import GroupSettings, ResidentWorkers
from trainables.resident.jobs import TrialJob
from trainables.resident.node_files import NodeFiles, serve_files
from trainables.tasks import files
from trainables.tasks.mapped import opened
from trainables.tasks.task import Task
from trainables.training.settings import TrainSettings

pytestmark = pytest.mark.ray

VARY = {"seconds", "time", "memory"}


def trained(uri: str, task: Task, place: Path) -> dict[str, float]:
    """What a trial on resident workers is measured to be on test."""
    targets = meta_base(uri, task.head, task.outputs, DECODER).targets
    job = TrialJob(
        plan=make_plan(parse_choice({"method": "lora", "rank": 4}), targets, None).to_bytes(),
        learning_rate=5e-3,
        seed=3,
        train=TrainSettings(batch_size=4, epochs=2),
        split="test",
    )
    with ResidentWorkers(
        base_uri=uri,
        base_fingerprint=fingerprint(uri),
        task=task,
        dtype="float32",
        deepspeed={},
        settings=GroupSettings(resources_per_worker={"CPU": 1}),
        storage_path=str(place),
    ) as workers:
        metrics = workers.run(job).metrics
    return {name: value for name, value in metrics.items() if not VARY & set(name.split("_"))}


def test_a_trial_is_what_it_is_where_the_set_is_held_in_memory(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKSWEEP_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    made = make_kind("generation on qwen2", tmp_path)  # which is trained as causal
    monkeypatch.setattr(files, "STREAMED_BYTES", 0)
    monkeypatch.setattr(files, "PART", 100)
    on_disk = made.with_()
    assert on_disk.files
    assert not made.task.files
    assert trained(made.uri, on_disk, tmp_path) == trained(made.uri, made.task, tmp_path)


@pytest.fixture
def served(ray_cluster: None, tmp_path: Path) -> tuple[Path, NodeFiles]:
    """A file that is read for those who lack it, some bytes at a time."""
    file = tmp_path / "key" / "input_ids"
    file.parent.mkdir()
    np.arange(1000, dtype=np.int32).tofile(file)
    made = serve_files([str(file)])
    assert made is not None
    return file, made


def test_a_node_without_a_file_fetches_it_once(
    served: tuple[Path, NodeFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, made = served
    monkeypatch.setenv("RANKSWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(node_files, "AT_ONCE", 300)
    monkeypatch.setattr(
        node_files, "size_of", lambda path: None if path == str(file) else size(path)
    )
    made.bring()
    fetched = tmp_path / "cache" / "fetched" / "key" / "input_ids"
    assert fetched.read_bytes() == file.read_bytes()
    np.testing.assert_array_equal(opened(str(file), "<i4", 5, 7), np.arange(5, 12))
    assert str(opened(str(file), "<i4", 5, 7).filename) == str(fetched)  # type: ignore[attr-defined]
    before = fetched.stat().st_mtime_ns
    made.bring()
    assert fetched.stat().st_mtime_ns == before


def size(path: str | Path) -> int | None:
    return os.path.getsize(path) if os.path.exists(path) else None


def test_a_node_that_has_it_fetches_nothing(
    served: tuple[Path, NodeFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKSWEEP_CACHE", str(tmp_path / "cache"))
    served[1].bring()
    assert not (tmp_path / "cache").exists()


def test_a_node_that_cannot_keep_it_says_so(
    served: tuple[Path, NodeFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RANKSWEEP_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(node_files, "size_of", lambda _: None)
    with pytest.raises(JobError, match=r"cannot be written in .*RANKSWEEP_CACHE on every node"):
        served[1].bring()


def test_no_other_file_of_the_node_is_read(served: tuple[Path, NodeFiles], tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    with pytest.raises(ray.exceptions.RayTaskError, match="none of the task's files"):
        ray.get(served[1].server.read.remote(str(tmp_path / "secret"), 0, 4))


def test_they_travel_to_the_workers(served: tuple[Path, NodeFiles]) -> None:
    assert ray.cloudpickle.loads(ray.cloudpickle.dumps(served[1])).sizes == served[1].sizes
    assert serve_files([]) is None
