"""What lm-eval could not measure is refused, by key and in one line, before anything starts."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

from spaces.errors import ConfigError
from tests.trainables.lm_eval_examples import CHOICE, WRITING, asked_of, write_tasks
from trainables.training import lm_eval_tasks


def refusal(tasks: list[str], folder: Path, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        asked_of(tasks, folder, **settings).check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def loaded(tasks: list[str], folder: Path, **settings: Any) -> dict[str, int]:
    """Name -> rows of every task."""
    found = asked_of(tasks, folder, **settings).load()["tasks"]
    return {name: len(task.eval_docs) for name, task in found.items()}


def test_a_package_that_is_missing_or_of_another_version_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm_eval_tasks.check_package()
    monkeypatch.setattr(lm_eval_tasks, "version", lambda _: "0.4.9")
    with pytest.raises(ConfigError, match=r"lm-eval 0\.4\.9 is installed, and 0\.4\.13 is needed"):
        lm_eval_tasks.check_package()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError) as caught:
        lm_eval_tasks.check_package()
    assert str(caught.value) == (
        'confirm.lm_eval: needs the package lm-eval; pip install "ranksweep[lm-eval]"'
    )


@pytest.mark.command  # lm-eval reads the index of all its tasks
def test_a_name_or_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert refusal(["piqaa"], tmp_path) == (
        "confirm.lm_eval.tasks: lm-eval knows no 'piqaa'; did you mean 'piqa'?"
    )
    assert "is not there" in refusal([str(tmp_path / "none.yaml")], tmp_path)
    said = refusal(["piqa"], tmp_path, include_path=str(tmp_path / "none"))
    assert said.startswith("confirm.lm_eval.include_path: ")


def test_what_lm_eval_brings_along_is_known_without_its_data(tmp_path: Path) -> None:
    asked_of(["piqa", "mmlu", "ai2_arc"], tmp_path).check()  # a task, a group and a tag


@pytest.mark.parametrize("text", ["- a list", "task: [", "output_type: multiple_choice"])
def test_a_file_that_is_no_task_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "task.yaml").write_text(text)
    said = refusal([str(tmp_path / "task.yaml")], tmp_path)
    assert "is no task file of lm-eval" in said


def test_data_are_looked_for_where_the_launch_is_then_beside_the_file(tmp_path: Path) -> None:
    files = write_tasks(tmp_path / "tasks", CHOICE, rows=5)
    assert loaded(files, tmp_path) == {"tiny_choice": 5}
    write_tasks(tmp_path / "here", rows=3)
    assert loaded(files, tmp_path / "here") == {"tiny_choice": 3}


def test_a_task_of_an_own_folder_is_known_by_its_name_and_in_a_group(tmp_path: Path) -> None:
    group = {"group": "tiny", "task": ["tiny_choice", "tiny_writing"]}
    *_, file = write_tasks(tmp_path / "tasks", CHOICE, WRITING, group)
    own = {"include_path": str(tmp_path / "tasks")}
    both = {"tiny_choice": 17, "tiny_writing": 17}
    asked_of(["tiny"], tmp_path, **own).check()
    assert loaded(["tiny_writing"], tmp_path, **own) == {"tiny_writing": 17}
    assert loaded(["tiny"], tmp_path, **own) == both
    assert loaded([file], tmp_path, **own) == both


def test_two_that_have_a_task_in_common_are_refused(tmp_path: Path) -> None:
    group = {"group": "tiny", "task": ["tiny_choice"]}
    *_, file = write_tasks(tmp_path / "tasks", CHOICE, group)
    said = refusal(["tiny_choice", file], tmp_path, include_path=str(tmp_path / "tasks"))
    assert said.endswith(f"tiny_choice and {file} both have the task tiny_choice; leave one out")


def test_local_data_that_are_missing_are_told_before_anything_starts(tmp_path: Path) -> None:
    files = write_tasks(tmp_path / "tasks", CHOICE)
    (tmp_path / "tasks" / "rows.json").unlink()
    said = refusal(files, tmp_path)
    assert said.startswith(f"confirm.lm_eval.tasks: {files[0]} cannot be loaded (")


def test_a_column_that_the_rows_lack_is_told_before_anything_starts(tmp_path: Path) -> None:
    files = write_tasks(tmp_path / "tasks", {**CHOICE, "doc_to_text": "{{passage}}"})
    assert "'passage' is undefined" in refusal(files, tmp_path)


CODE = "def text(row):\n    open('ran', 'w').close()\n    return row['question']\n"


@pytest.mark.parametrize("through", ["file", "include", "folder", "group"])
def test_code_of_the_user_runs_only_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "tasks"
    write_tasks(folder, {key: value for key, value in CHOICE.items() if key != "task"})
    (folder / "None.yaml").rename(folder / "rest.yaml")
    (folder / "code.py").write_text(CODE)
    coded = "include: rest.yaml\ntask: coded\ndoc_to_text: !function code.text\n"
    (folder / "coded.yaml").write_text(coded)
    (folder / "around.yaml").write_text("include: coded.yaml\ntask: around\n")
    (folder / "group.yaml").write_text("group: both\ntask: [coded]\n")
    settings = {"include_path": str(folder)} if through in ("folder", "group") else {}
    tasks = {
        "file": [str(folder / "coded.yaml")],
        "include": [str(folder / "around.yaml")],
        "folder": ["coded"],
        "group": ["both"],
    }[through]
    said = refusal(tasks, tmp_path, **settings)
    assert "coded.yaml has !function, which runs code" in said
    assert said.endswith("or set confirm.lm_eval.allow_code: true")
    assert not Path("ran").exists()
    asked_of(tasks, tmp_path, allow_code=True, **settings).check()
    assert Path("ran").exists()


def test_a_metric_that_would_be_downloaded_and_run_is_refused(tmp_path: Path) -> None:
    unknown = {**WRITING, "metric_list": [{"metric": "rouge"}]}
    said = refusal(write_tasks(tmp_path / "tasks", unknown), tmp_path)
    assert "tiny_writing has the metric 'rouge', which lm-eval would download" in said
    assert "exact_match" in said
    script = {**WRITING, "metric_list": [{"metric": "exact_match", "hf_evaluate": True}]}
    said = refusal(write_tasks(tmp_path / "tasks", script), tmp_path)
    assert "download" in said


def test_a_metric_that_cannot_be_fetched_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(name: str) -> None:
        raise ConnectionError(name)

    monkeypatch.setattr("evaluate.load", offline)
    metric = {"metric": "rouge", "aggregation": "mean", "higher_is_better": True}
    files = write_tasks(tmp_path / "tasks", {**WRITING, "metric_list": [metric]})
    said = refusal(files, tmp_path, allow_code=True)
    assert "the metric 'rouge' of tiny_writing cannot be had" in said


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"unsafe_code": True}, "runs what the model writes as a program"),
        ({"doc_to_image": ["question"]}, "is no task of text alone"),
    ],
)
def test_a_task_that_cannot_be_measured_here_is_refused(
    tmp_path: Path, more: dict[str, Any], why: str
) -> None:
    assert why in refusal(write_tasks(tmp_path / "tasks", {**WRITING, **more}), tmp_path)


def test_without_a_network_a_set_of_the_hub_is_told_by_a_check_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the hub\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    asked = asked_of(["piqa"], tmp_path)
    asked.check()
    with pytest.raises(ConfigError) as caught:
        asked.check(load_all=True)
    assert str(caught.value) == (
        "confirm.lm_eval.tasks: piqa cannot be loaded (ConnectionError: Couldn't reach the hub); "
        "correct it, or fetch its data where there is a network"
    )


def test_a_member_of_a_group_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "group.yaml").write_text(yaml.safe_dump({"group": "mine", "task": ["piqaa"]}))
    said = refusal([str(tmp_path / "group.yaml")], tmp_path)
    assert "has the member 'piqaa', which lm-eval does not know; did you mean 'piqa'?" in said
