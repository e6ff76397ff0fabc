"""A sweep's name is refused while it runs, before anything else is said about it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from search.config.reading import parse_sweep
from search.launch.begun import Begun
from search.launch.resume import as_begun, check_data, check_name, shared_settings
from search.launch.sweep_lock import alone
from search.paths import SweepPaths
from search.study.shared import check_settings
from spaces.errors import ConfigError
from tests.search.toy_search import toy_study

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


def test_what_a_paper_prints_may_be_said_later(tmp_path: Path) -> None:
    paper = {"source": "a paper", "metric": "accuracy", "figures": {"lora": 92.7}}
    check_name(films(SWEEP | {"published": paper}), launched(tmp_path), resume=True)


def test_what_changes_no_result_may_be_changed(tmp_path: Path) -> None:
    train = SWEEP["train"] | {"activation_checkpointing": "on"}
    check_name(films(SWEEP | {"train": train}), launched(tmp_path), resume=True)


# -- the data and the base that a sweep was begun with ---------------------------------------------

ROWS = {"train": "t" * 8, "dev": "d" * 8, "test": "e" * 8}


def inputs(base: str = "b" * 8, **changed: str) -> Any:
    """What a sweep rests on, as far as it is looked at; `changed` splits have other rows."""
    made_of = changed.pop("made_of", "m" * 8)
    task = SimpleNamespace(
        train_fingerprint=made_of, rows={**ROWS, **changed}, fingerprint=str(changed)
    )
    precision = SimpleNamespace(dtype="float32")
    return SimpleNamespace(task=task, base_fingerprint=base, key="profile", precision=precision)


def with_study(url: str | None) -> Any:
    resolved: dict[str, Any] = {"search": {}, "space": None, "train": {}, "deepspeed": {}}
    search = SimpleNamespace(study=url)
    return SimpleNamespace(name="toy", search=search, resolved=lambda: resolved)


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (inputs(dev="x" * 8), "task.data: dev has other rows than the sweep 'toy' was begun with"),
        (inputs(test="x" * 8), "task.data: test has other rows than"),
        (inputs(dev="x" * 8, test="x" * 8), "task.data: dev and test have other rows than"),
        (inputs(train="x" * 8, made_of="y"), "task.data: train has other rows than"),
        (inputs(made_of="x" * 8), "task: other inputs are made of the rows than"),
        (inputs(base="x" * 8), "base: its files are others than"),
    ],
)
def test_a_sweep_does_not_go_on_over_other_data_or_another_base(
    tmp_path: Path, now: Any, told: str
) -> None:
    paths = SweepPaths(tmp_path / "root", name="toy")
    paths.make_sweep()
    Begun.by(inputs()).write(paths)
    check_data(with_study(None), paths, inputs(), resume=True)
    with pytest.raises(ConfigError, match=f"^{told}.*launch under another name") as caught:
        check_data(with_study(None), paths, now, resume=True)
    assert "\n" not in str(caught.value)

    # The same of a study that another launch has begun elsewhere, by the first launch from here.
    elsewhere = SweepPaths(tmp_path / "elsewhere", name="toy")
    url = f"sqlite:///{tmp_path}/study.db"
    check_data(with_study(url), elsewhere, now, resume=False)
    check_settings(toy_study(tmp_path), {}, Begun.by(inputs()).grounds)
    with pytest.raises(ConfigError, match=f"^{told}"):
        check_data(with_study(url), elsewhere, now, resume=False)


@pytest.mark.parametrize("shared", [False, True])
def test_a_sweep_whose_study_is_gone_does_not_go_on(tmp_path: Path, shared: bool) -> None:
    paths = SweepPaths(tmp_path / "root", name="toy")
    paths.make_sweep()
    Begun.by(inputs()).write(paths)
    config = with_study(f"sqlite:///{tmp_path}/study.db" if shared else None)
    check_data(config, paths, inputs(), resume=True)  # it ended before its search began
    paths.journal.touch()
    with pytest.raises(ConfigError, match=r"^name: the study of the sweep 'toy' is gone from .*db"):
        check_data(config, paths, inputs(), resume=True)


def test_what_an_older_version_has_begun_goes_on(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path, name="toy")
    paths.make_sweep()
    check_data(with_study(None), paths, inputs(), resume=True)


def test_the_base_and_the_rows_may_have_moved_where_their_content_is_known(tmp_path: Path) -> None:
    paths = launched(tmp_path)
    places = {"base": "path:/a/base", "task": {"data": {"train": "/a/t.csv"}, "max_length": 8}}
    paths.sweep_file.write_text(yaml.safe_dump(SWEEP | places))
    moved = {"base": "path:/b/base", "task": {"data": {"train": "/b/t.csv"}, "max_length": 8}}
    with pytest.raises(ConfigError, match=r"^base, task\.data\.train: differ"):
        check_name(films(SWEEP | moved), paths, resume=True)
    Begun.by(inputs()).write(paths)
    check_name(films(SWEEP | moved), paths, resume=True)
    moved["task"]["max_length"] = 16  # type: ignore[index]
    with pytest.raises(ConfigError, match=r"^task\.max_length: differs"):
        check_name(films(SWEEP | moved), paths, resume=True)


def test_the_rows_of_a_suite_may_have_moved_and_its_members_may_not_change(tmp_path: Path) -> None:
    def of(folder: str, **changes: Any) -> dict[str, Any]:
        member = {"name": "boolq", "data": {"test": f"{folder}/boolq.csv"}, **changes}
        return SWEEP | {"task": {"max_length": 8, "suite": [member]}}

    paths = launched(tmp_path)
    paths.sweep_file.write_text(yaml.safe_dump(of("/a")))
    with pytest.raises(ConfigError, match=r"^task\.suite: differs"):
        check_name(films(of("/b")), paths, resume=True)
    Begun.by(inputs()).write(paths)
    check_name(films(of("/b")), paths, resume=True)
    with pytest.raises(ConfigError, match=r"^task\.suite: differs"):
        check_name(films(of("/a", label="answer")), paths, resume=True)


def test_a_key_that_an_older_version_did_not_know_is_as_it_was_where_it_has_its_default(
    tmp_path: Path,
) -> None:
    paths = launched(tmp_path)  # its sweep names neither train.batch_size nor search.sampler
    train, search = SWEEP["train"], SWEEP["search"]
    now = {"train": train | {"batch_size": 16}, "search": search | {"sampler": "plan"}}
    check_name(films(SWEEP | now), paths, resume=True)
    now = {"train": train | {"batch_size": 31}, "search": search | {"sampler": "random"}}
    with pytest.raises(ConfigError, match=r"^train\.batch_size, search\.sampler: differ"):
        check_name(films(SWEEP | now), paths, resume=True)


@pytest.mark.parametrize("begun_with", [None, {"top": 2, "seeds": 2}, {"top": 2, "seeds": 3}])
def test_a_sweep_goes_on_with_the_repetitions_that_it_was_begun_with(
    tmp_path: Path, begun_with: dict[str, int] | None
) -> None:
    task = {"name": "films", "data": {"train": "train.csv"}, "text": "text"}
    raw = {"name": "films", "base": "path:model", "task": task}
    paths = SweepPaths(tmp_path, name="films")
    paths.make_sweep()
    begun = parse_sweep({**raw, "search": {"trials": 12, "repeats": begun_with}})
    paths.sweep_file.write_text(yaml.safe_dump(begun.resolved()))
    for trials in (12, 24):  # more of them have another default
        now = as_begun(parse_sweep({**raw, "search": {"trials": trials}}), paths)
        assert now.resolved()["search"]["repeats"] == begun_with
        check_name(now, paths, True)
    asked = parse_sweep({**raw, "search": {"trials": 12, "repeats": {"top": 1, "seeds": 1}}})
    with pytest.raises(ConfigError, match=r"^search\.repeats"):
        check_name(as_begun(asked, paths), paths, True)


@pytest.mark.parametrize("begun_with", [{"sampler": "tpe"}, {"sampler": "random"}, {}])
def test_a_sweep_goes_on_with_the_sampler_that_it_was_begun_with(
    tmp_path: Path, begun_with: dict[str, str]
) -> None:
    task = {"name": "films", "data": {"train": "train.csv"}, "text": "text"}
    raw = {"name": "films", "base": "path:model", "task": task}
    paths = SweepPaths(tmp_path, name="films")
    paths.make_sweep()
    begun = parse_sweep({**raw, "search": begun_with})
    paths.sweep_file.write_text(yaml.safe_dump(begun.resolved()))
    now = as_begun(parse_sweep(raw), paths)
    assert now.search.sampler == begun_with.get("sampler", "plan")
    assert now.search.allocation == ("equal" if begun_with else "free")
    check_name(now, paths, True)
    other = "random" if now.search.sampler != "random" else "tpe"
    with pytest.raises(ConfigError, match=r"search\.sampler"):
        check_name(as_begun(parse_sweep({**raw, "search": {"sampler": other}}), paths), paths, True)


def test_launches_of_other_trials_and_versions_share_a_study() -> None:
    task = {"name": "films", "data": {"train": "train.csv"}, "text": "text"}
    raw = {"name": "films", "base": "path:model", "task": task}

    def settings(**search: Any) -> dict[str, Any]:
        return shared_settings(parse_sweep({**raw, "search": search}), inputs())

    older = settings(trials=11)
    assert older["search"].keys().isdisjoint({"fidelity", "stop_when", "trials"})
    assert older["search"]["repeats"] is None  # as an older version has written it down
    for trials in (12, 24):
        assert settings(trials=trials) == older
    assert settings(trials=24, repeats={"top": 1, "seeds": 5}) != older
    assert settings(trials=24, fidelity={}) != older
    assert "activation_checkpointing" not in older["train"]
