"""Which weights are kept, which reach MLflow, and what an MLflow that is away costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.paths import SweepPaths
from search.tracking.weights import KeptWeights
from spaces.errors import TrackingError


class Runs:
    """Stands for the tracker: notes the files of each run, or is away."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[str, bytes]] = {}
        self.away = False

    def log_file(self, run_id: str, path: Path) -> None:
        if self.away:
            raise TrackingError("tracking: no answer; check that the server runs")
        self.files[run_id] = (path.name, path.read_bytes())


def kept(tmp_path: Path, which: str, best: set[int]) -> KeptWeights:
    folder = SweepPaths(tmp_path, "a-sweep").weights
    return KeptWeights(folder, which, lambda n: None if n == 9 else b"%d" % n, lambda: best)  # type: ignore[arg-type]


def names(number: int) -> dict[int, str]:
    return {n: f"run-{n}" for n in range(number)}


def test_only_those_that_are_best_in_the_end_are_given_to_their_runs(tmp_path: Path) -> None:
    best: set[int] = set()
    weights, runs = kept(tmp_path, "best", best), Runs()
    for number, now_best in ((0, {0}), (1, {1}), (2, {1, 2}), (3, {1, 2})):
        best.clear()
        best.update(now_best)
        weights.trial_completed(number)
    assert weights.log(runs, names(4)) is None  # type: ignore[arg-type]
    assert runs.files == {
        "run-1": ("weights.safetensors", b"1"),
        "run-2": ("weights.safetensors", b"2"),
    }
    assert not list(SweepPaths(tmp_path, "a-sweep").weights.iterdir())


@pytest.mark.parametrize(("which", "expected"), [("all", {0, 1, 2}), ("none", set())])
def test_all_or_none_are_kept_where_that_is_asked(
    tmp_path: Path, which: str, expected: set[int]
) -> None:
    weights, runs = kept(tmp_path, which, {1}), Runs()
    for number in range(3):
        weights.trial_completed(number)
    weights.log(runs, names(3))  # type: ignore[arg-type]
    assert set(runs.files) == {f"run-{number}" for number in expected}


def test_what_mlflow_does_not_take_stays_for_the_next_launch(tmp_path: Path) -> None:
    weights, runs = kept(tmp_path, "best", {0, 1}), Runs()
    weights.trial_completed(0)
    weights.trial_completed(1)
    runs.away = True
    problem = weights.log(runs, names(2))  # type: ignore[arg-type]
    assert problem is not None
    assert "no answer" in problem
    runs.away = False
    again = kept(tmp_path, "best", {0, 1})  # another process
    assert again.log(runs, names(1)) == "trial 1 has no run in MLflow"  # type: ignore[arg-type]
    assert set(runs.files) == {"run-0"}
    assert again.log(runs, names(2)) is None  # type: ignore[arg-type]
    assert set(runs.files) == {"run-0", "run-1"}


def test_a_job_that_left_no_weights_is_no_error(tmp_path: Path) -> None:
    weights, runs = kept(tmp_path, "best", {9}), Runs()
    weights.trial_completed(9)
    assert weights.log(runs, names(10)) is None  # type: ignore[arg-type]
    assert not runs.files


def test_the_files_are_private(tmp_path: Path) -> None:
    weights = kept(tmp_path, "best", {0})
    weights.trial_completed(0)
    assert weights.file(0).stat().st_mode & 0o077 == 0


def test_weights_that_a_full_disk_cut_off_are_not_given_to_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, runs = kept(tmp_path, "all", set()), Runs()

    def half(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", half)
        with pytest.raises(OSError, match="No space"):
            weights.trial_completed(1)
    weights.trial_completed(2)
    (weights.folder / ".nfs01").touch()
    assert weights.log(runs, names(3)) is None  # type: ignore[arg-type]
    assert set(runs.files) == {"run-2"}
