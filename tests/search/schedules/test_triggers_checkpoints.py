"""Checkpoints of a directory and of object storage count when they are whole and stand still."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from search.schedules.trigger import Look
from search.schedules.triggers.checkpoints import APART_S, Checkpoints
from search.schedules.triggers.settings import CheckpointsSettings, Existing
from search.store.foreign_files import ForeignFiles
from search.store.objects import ObjectStorage
from spaces.errors import RanksweepError, StoreError
from tests.search.schedules.whole_models import files_of, model_files, put, weights, write


class Looker:
    """A trigger on a place, its memory in a store, and a clock that a test sets."""

    def __init__(self, under: str, folder: Path, existing: Existing = "newest") -> None:
        self.memory = ObjectStorage(f"file://{folder / 'store'}").under("triggers/a")
        self.time = 1000.0
        self._settings = CheckpointsSettings(under=under)
        self._folder, self._existing = folder, existing

    def look(self, after: float = APART_S, *, waits: bool = False) -> Look:
        """What one look sees that a process of its own takes so many seconds after the last one."""
        self.time += after
        trigger = Checkpoints(
            self._settings,
            folder=self._folder,
            cache=self._folder / "cache",
            existing=self._existing,
            now=lambda: self.time,
            wait=self._wait if waits else None,
        )
        return trigger.look(self.memory)

    def _wait(self, seconds: float) -> None:
        self.time += seconds


def subjects(look: Look) -> list[str]:
    return [each.subject for each in look.found]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_a_whole_checkpoint_counts_at_the_second_look(runs: Path, tmp_path: Path) -> None:
    write(runs / "a" / "step-1000", model_files() | {"optimizer.pt": b"x"})
    looker = Looker("runs", tmp_path)

    first = looker.look()
    assert first.found == ()
    assert first.waiting == ("a/step-1000: is looked at again, to see whether it still changes",)

    (found,) = looker.look().found
    assert found.subject == "a/step-1000"
    assert found.base == f"path:{runs}/a/step-1000"
    assert (found.trigger, found.family) == ("checkpoints runs", "runs")
    assert looker.look().found == (found,), "it is seen at every look"


def test_a_look_that_may_wait_is_enough(runs: Path, tmp_path: Path) -> None:
    write(runs / "step-1", model_files())
    assert subjects(Looker("runs", tmp_path).look(waits=True)) == ["step-1"]


def test_a_module_of_a_model_is_no_model_that_is_waited_for(runs: Path, tmp_path: Path) -> None:
    """As sentence-transformers saves its models: their poolings have a config of their own."""
    write(runs / "step-1", model_files())
    write(runs / "step-1" / "1_Pooling", {"config.json": b"{}"})
    look = Looker("runs", tmp_path).look(waits=True)
    assert (subjects(look), look.waiting) == (["step-1"], ())


def test_two_looks_at_once_are_one(runs: Path, tmp_path: Path) -> None:
    write(runs / "step-1", model_files())
    looker = Looker("runs", tmp_path)
    looker.look()
    assert looker.look(after=0).found == ()
    assert subjects(looker.look()) == ["step-1"]


def test_a_clock_that_is_set_back_costs_one_look(runs: Path, tmp_path: Path) -> None:
    write(runs / "step-1", model_files())
    looker = Looker("runs", tmp_path)
    looker.look()
    assert looker.look(after=-3600).found == ()
    assert subjects(looker.look()) == ["step-1"]


def test_a_checkpoint_that_grows_is_waited_for(runs: Path, tmp_path: Path) -> None:
    looker = Looker("runs", tmp_path)
    files = model_files()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        write(runs / "step-1", {name: files[name]})
        assert looker.look().found == ()
    assert subjects(looker.look()) == ["step-1"]

    write(runs / "step-1", {"model.safetensors": weights(2.0)})
    assert looker.look().found == (), "it is written anew"
    assert subjects(looker.look()) == ["step-1"]


def test_a_cut_checkpoint_is_never_taken(runs: Path, tmp_path: Path) -> None:
    write(runs / "step-1", model_files() | {"model.safetensors": weights()[:-8]})
    looker = Looker("runs", tmp_path)
    for _ in range(3):
        look = looker.look()
        assert look.found == ()
    assert "step-1: has a model.safetensors that is not whole (yet)" in look.waiting[0]


def test_what_trainers_leave_beside_is_no_checkpoint(runs: Path, tmp_path: Path) -> None:
    write(runs / "tmp-checkpoint-5", model_files())
    write(runs / "adapter", {"adapter_config.json": b"{}", "adapter_model.safetensors": weights()})
    write(runs / "logs", {"events.out": b""})
    write(runs / "step-1" / "global_step1", {"mp_rank_00_model_states.pt": b""})
    looker = Looker("runs", tmp_path, existing="all")
    looker.look()
    look = looker.look()
    assert look.found == ()
    assert sorted(line.partition(":")[0] for line in look.waiting) == [
        "adapter",
        "tmp-checkpoint-5",
    ]


@pytest.mark.parametrize(
    ("existing", "expected"), [("newest", ["step-2"]), ("all", ["step-1", "step-2"]), ("skip", [])]
)
def test_of_what_is_there_at_the_first_look_what_is_asked_for_counts(
    runs: Path, tmp_path: Path, existing: Existing, expected: list[str]
) -> None:
    for number in (1, 2):
        folder = write(runs / f"step-{number}", model_files(number))
        for file in folder.iterdir():
            os.utime(file, (number * 1000, number * 1000))
    looker = Looker("runs", tmp_path, existing)
    looker.look()
    assert subjects(looker.look()) == expected

    # copied here with its old times, and so older than what was there
    folder = write(runs / "step-0", model_files(0))
    for file in folder.iterdir():
        os.utime(file, (10, 10))
    looker.look()
    assert subjects(looker.look()) == ["step-0", *expected], "what comes later always counts"


def test_a_place_that_is_itself_a_checkpoint_and_one_that_is_not_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "final", model_files())
    looker = Looker("final", tmp_path)
    looker.look()
    (found,) = looker.look().found
    assert (found.subject, found.base) == ("final", f"path:{tmp_path}/final")

    assert Looker("gone", tmp_path).look() == Look()
    assert caplog.messages == [f"checkpoints gone: {tmp_path}/gone is not there yet"]


def test_a_checkpoint_that_cannot_be_read_keeps_no_other_from_being_seen(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        write(runs / f"step-{number}", model_files(number))
    read = ForeignFiles.part

    def part(files: ForeignFiles, name: str, *rest: int) -> bytes:
        if name.startswith("step-1/"):
            raise StoreError("store: cannot read it (Permission denied); check its permissions")
        return read(files, name, *rest)

    monkeypatch.setattr(ForeignFiles, "part", part)
    looker = Looker("runs", tmp_path, "all")
    looker.look()
    look = looker.look()
    assert subjects(look) == ["step-2"]
    assert look.waiting == ("step-1: cannot read it (Permission denied); check its permissions",)
    monkeypatch.undo()
    assert sorted(subjects(looker.look())) == ["step-1", "step-2"]


def test_a_memory_that_cannot_be_read_costs_one_look(runs: Path, tmp_path: Path) -> None:
    write(runs / "step-1", model_files())
    looker = Looker("runs", tmp_path)
    looker.look()
    looker.memory.put("looks.json", b"{")
    assert looker.look().found == ()
    assert subjects(looker.look()) == ["step-1"]


@pytest.mark.parametrize("place", ["ftp://host/x", "s3://", " "])
def test_a_place_that_cannot_be_is_refused(place: str) -> None:
    with pytest.raises(ValidationError, match="is no place"):
        CheckpointsSettings(under=place)


@pytest.mark.server
def test_remote_checkpoints_are_brought_once_without_what_trainers_leave(
    s3: str, tmp_path: Path
) -> None:
    bucket = ObjectStorage(s3)
    put(bucket, "runs/step-1", model_files(1) | {"optimizer.pt": b"x" * 1000})
    looker = Looker(f"{s3}/runs/", tmp_path)
    looker.look()

    (found,) = looker.look().found
    brought = Path(found.base.removeprefix("path:"))
    assert brought.name == "step-1"
    assert files_of(brought) == model_files(1)
    assert looker.look().found == (found,)

    put(bucket, "runs/step-2", model_files(1))  # the same model under another name
    looker.look()
    first, second = looker.look().found
    assert (first.subject, second.subject) == ("step-1", "step-2")
    assert second.base == first.base, "one folder for one content"
    assert len(list((tmp_path / "cache" / "models").iterdir())) == 1

    put(bucket, "runs/step-2", {"model.safetensors": weights(5)})
    assert subjects(looker.look()) == ["step-1"], "it is written anew"
    _, second = looker.look().found
    assert files_of(Path(second.base.removeprefix("path:"))) == model_files(5)


@pytest.mark.server
def test_a_bucket_that_is_not_there_is_told_in_one_line(s3: str, tmp_path: Path) -> None:
    with pytest.raises(RanksweepError, match=r"^cannot list s3.*create the bucket") as failed:
        Looker("s3://no-such-bucket-here/runs", tmp_path).look()
    assert not isinstance(failed.value, StoreError), "the schedule's own store is there"
