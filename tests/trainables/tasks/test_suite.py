"""A suite: each member is measured as a task of its own would be, and the search goes by the mean.

The oracles are tasks without a suite.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from spaces.errors import ConfigError, DataError, RanksweepError
from tests.trainables.tasks.kinds.examples import write_decoder
from trainables.adaptations.blocks import BlockAdaptation, plain_lora
from trainables.bases.loading import Base, load_base
from trainables.bases.structure import resolve_targets
from trainables.engine.workers import Workers
from trainables.tasks.measured_rows import SuiteRows, read_measured_rows
from trainables.tasks.rows import load_rows
from trainables.tasks.settings import TaskSettings
from trainables.tasks.suite import member_settings
from trainables.tasks.task import Task, build_task
from trainables.training.evaluate import evaluate, evaluate_rows

CHOICE = {
    "kind": "multiple_choice", "template": "{instruction}", "options": ["bad", "good"],
    "label": "right", "label_form": "index", "metric": "accuracy",
}  # fmt: skip
WRITTEN = {
    "kind": "generation", "map": "alpaca", "extract": "good|bad", "metric": "accuracy",
    "generation": {"max_new_tokens": 3},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder, and four sets of films: to train on, and three to be measured on."""
    folder = tmp_path_factory.mktemp("suite")
    write_decoder("llama", folder / "base")
    draw = random.Random(0)
    for name, rows in (("train", 30), ("one", 20), ("two", 35), ("three", 10)):
        good = [draw.random() < 0.4 for _ in range(rows)]
        lines = [
            {"instruction": f"the {name} film {i} is", "input": "", "right": int(each),
             "output": "good" if each else "bad", "word": "good" if each else "bad"}
            for i, each in enumerate(good)
        ]  # fmt: skip
        text = "\n".join(json.dumps(line) for line in lines)
        (folder / f"{name}.jsonl").write_text(text + "\n")
    return folder


def task_of(folder: Path, *suite: Any, **changes: Any) -> TaskSettings:
    """Trained on instructions, measured on a suite; names of files are those in the folder."""

    def placed(data: dict[str, Any]) -> dict[str, Any]:
        return {key: str(folder / f"{name}.jsonl") for key, name in data.items()}

    members = [
        {**each, "data": placed(each["data"])} if isinstance(each.get("data"), dict) else each
        for each in suite
    ]
    data = placed(changes.pop("data", {"train": "train"}))
    raw = {"name": "films", "kind": "causal", "map": "alpaca", "max_length": 250, "data": data}
    return TaskSettings.model_validate(raw | ({"suite": members} if members else {}) | changes)


def films(folder: Path, **changes: Any) -> TaskSettings:
    return task_of(
        folder,
        {"name": "one", "data": {"test": "one"}, **CHOICE},
        {"name": "two", "data": {"dev": "two", "test": "three"}, **WRITTEN},
        **changes,
    )


@pytest.fixture(scope="module")
def task(folder: Path) -> Task:
    return build_task(films(folder), f"path:{folder / 'base'}")


@pytest.fixture(scope="module")
def base(folder: Path, task: Task) -> Base:
    return load_base(f"path:{folder / 'base'}", task.head, task.outputs)


def adapted(base: Base) -> BlockAdaptation:
    targets = resolve_targets(base.model, base.head_modules, ["q_proj"])
    return BlockAdaptation(base.model, plain_lora(targets, 2, 4), seed=0, head={})


def measured(base: Base, task: Task, split: str, workers: Workers) -> Any:
    with adapted(base) as adaptation:
        return evaluate_rows(base.model, adaptation, task.fitted(base.model), split, workers)


# -- what is measured ------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["dev", "test"])
def test_each_member_measures_what_it_would_alone_and_the_task_the_mean(
    split: str, folder: Path, task: Task, base: Base, alone: Workers
) -> None:
    own: dict[str, dict[str, Any]] = {
        "one": {**CHOICE, "map": None, "data": {"train": "train", "test": "one"}},
        "two": {**WRITTEN, "data": {"train": "train", "dev": "two", "test": "three"}},
    }
    reports, rows = {}, {}
    for name, changes in own.items():
        by_itself = build_task(task_of(folder, **changes), f"path:{folder / 'base'}")
        reports[name], rows[name] = measured(base, by_itself, split, alone)
    report, of_suite = measured(base, task, split, alone)

    values = {f"{name}/accuracy": each["accuracy"] for name, each in reports.items()}
    losses = [each[f"{split}_loss"] for each in reports.values()]
    assert report == pytest.approx(
        {f"{split}_loss": fmean(losses), "accuracy": fmean(values.values()), **values}
    )
    assert len(of_suite) == sum(map(len, rows.values()))
    kept = read_measured_rows(of_suite.to_bytes())
    assert isinstance(kept, SuiteRows)
    assert kept.values == pytest.approx(values)
    every = np.ones((1, len(kept)))
    assert kept.on(every) == pytest.approx([report["accuracy"]])


def test_a_sample_of_a_suite_is_so_many_rows_of_each_member(
    task: Task, base: Base, alone: Workers
) -> None:
    few = task.first("test", 4)
    assert few.rows_of("test") == 8
    assert few.rows_of("dev") == task.rows_of("dev")
    with adapted(base) as adaptation:
        report = evaluate(base.model, adaptation, few, "test", alone)
    assert report["one/accuracy"] in np.arange(5) / 4


def test_a_member_takes_dev_from_its_test_as_a_task_does(folder: Path, task: Task) -> None:
    rows = {name: len(split) for name, split in task.every_split.items()}
    assert rows == {"train": 30, "one/dev": 4, "one/test": 16, "two/dev": 35, "two/test": 10}
    read = load_rows(films(folder)).every_split
    assert {name: len(each) for name, each in read.items()} == rows


def share_of_good(answers: Any, references: Any) -> float:
    """A metric of one's own."""
    return float(np.mean([answer == 1 for answer in answers]))


def test_a_member_may_have_a_metric_of_ones_own(folder: Path, base: Base, alone: Workers) -> None:
    name = f"{__name__}:share_of_good"
    own = {"name": "own", "data": {"test": "one"}, **CHOICE, "metric": name}
    usual = {"name": "usual", "data": {"test": "one"}, **CHOICE}
    task = build_task(task_of(folder, own, usual, metric=name), f"path:{folder / 'base'}")
    report, rows = measured(base, task, "test", alone)
    assert report[name] == fmean([report[f"own/{name}"], report["usual/accuracy"]])
    assert rows is None, "what one number says of a split cannot be compared by row"


def test_one_member_is_a_suite(folder: Path) -> None:
    one = task_of(folder, {"name": "one", "data": {"dev": "one"}, **CHOICE})
    made = build_task(one, f"path:{folder / 'base'}")
    assert list(made.suite) == ["one"]
    assert made.lacking("test") == ("one",)
    assert made.lacking("dev") == ()


# -- what names it ---------------------------------------------------------------------------------


def test_a_suite_changes_how_a_task_is_measured_and_not_what_it_trains(
    folder: Path, task: Task
) -> None:
    uri = f"path:{folder / 'base'}"
    without = build_task(task_of(folder, data={"train": "train", "dev": "one"}), uri)
    assert task.train_fingerprint == without.train_fingerprint
    longer = {"name": "one", "data": {"test": "one"}, **CHOICE, "metric": "accuracy_per_token"}
    second = {"name": "two", "data": {"dev": "two", "test": "three"}, **WRITTEN}
    others = [
        task_of(folder, second),
        task_of(folder, longer, second, metric="accuracy"),
        task_of(folder, {"name": "one", "data": {"test": "two"}, **CHOICE}, second),
        task_of(
            folder, {"name": "one", "data": {"test": "one"}, **CHOICE, "delimiter": ":"},
            second,
        ),
    ]  # fmt: skip
    made = [build_task(each, uri) for each in others]
    assert {each.train_fingerprint for each in made} == {task.train_fingerprint}
    assert len({task.fingerprint, *(each.fingerprint for each in made)}) == 5
    assert made[1].data_fingerprint == task.data_fingerprint
    assert len({each.data_fingerprint for each in made}) == 4


def test_settings_with_a_suite_are_the_same_when_they_are_read_again(folder: Path) -> None:
    first = films(folder)
    again = TaskSettings.model_validate(json.loads(json.dumps(first.model_dump(mode="json"))))
    assert member_settings(again) == member_settings(first)
    assert again.metric == first.metric == "accuracy"


# -- what a member is ------------------------------------------------------------------------------


def test_a_member_is_as_its_task_is_but_for_what_it_gives(folder: Path) -> None:
    settings = task_of(
        folder,
        {"name": "same", "data": {"test": "one"}},
        {"name": "own", "data": {"test": "one"}, "template": "{right}:", "max_length": 9},
        {"name": "written", "kind": "generation", "data": {"test": "one"}, "metric": "loss"},
        map=None, template="{instruction}", completion="word", delimiter=" ", rows={"dev": 3},
    )  # fmt: skip
    same, own, written = member_settings(settings)
    assert (same.template, same.completion, same.max_length) == ("{instruction}", "word", 250)
    assert (own.template, own.completion, own.max_length) == ("{right}:", "word", 9)
    assert own.delimiter == same.delimiter == " "
    assert (written.kind, written.template, written.rows.dev) == ("generation", "{instruction}", 3)
    assert {each.metric for each in (same, own, written)} == {"loss"}


def test_what_a_row_is_read_from_replaces_all_that_the_task_reads_it_from(folder: Path) -> None:
    chat = {"name": "chat", "messages": "turns", "data": {"test": "one"}}
    settings = task_of(
        folder, chat, map=None, prompt="instruction", completion="word", delimiter=" "
    )
    (member,) = member_settings(settings)
    assert (member.messages, member.prompt, member.completion, member.delimiter) == (
        "turns", None, None, None,
    )  # fmt: skip


def test_a_member_names_splits_of_the_hub_set_that_its_task_is_of() -> None:
    settings = TaskSettings.model_validate(
        {
            "name": "mnli", "text": ["premise", "hypothesis"],
            "data": {"hub": "glue", "name": "mnli", "revision": "abc"},
            "suite": [
                {"name": "matched", "data": {"test": "validation_matched"}},
                {"name": "mismatched", "data": {"test": "validation_mismatched"}},
                {"name": "other", "data": {"hub": "anli"}},
                {"name": "mine", "data": {"test": "mine.csv"}},
            ],
        }
    )  # fmt: skip
    data = [member.data for member in member_settings(settings)]
    assert [(each.hub, each.name, each.revision) for each in data] == [
        ("glue", "mnli", "abc"), ("glue", "mnli", "abc"), ("anli", None, None), (None, None, None),
    ]  # fmt: skip
    assert [each.test for each in data] == [
        "validation_matched", "validation_mismatched", None, "mine.csv",
    ]  # fmt: skip


def test_a_member_without_data_is_measured_on_the_tasks_own(folder: Path) -> None:
    settings = task_of(
        folder, {"name": "own"}, {"name": "one", "data": {"test": "one"}},
        data={"train": "train", "dev": "two", "test": "three"},
    )  # fmt: skip
    rows = {name: len(each) for name, each in load_rows(settings).every_split.items()}
    assert rows == {"train": 30, "own/dev": 35, "own/test": 10, "one/dev": 4, "one/test": 16}


# -- refusals --------------------------------------------------------------------------------------

ONE = {"name": "one", "data": {"test": "one"}}


@pytest.mark.parametrize(
    ("suite", "changes", "message"),
    [
        ([ONE, ONE], {}, r"task\.suite\[1\]\.name: 'one' is the name of suite\[0\] too; give"),
        ([{**ONE, "name": "a/b"}], {}, r"task\.suite\[0\]\.name: 'a/b' cannot stand in .*; use"),
        ([{**ONE, "name": "dev_a"}], {}, r"task\.suite\[0\]\.name: 'dev_a' cannot stand"),
        ([{**ONE, "suite": [ONE]}], {}, r"task\.suite\[0\]\.suite: .*; drop it"),
        ([{**ONE, "kind": "regression", "text": "word"}], {},
         r"task\.suite\[0\]\.kind: regression is measured with another head .* or generation$"),
        ([{**ONE, "kind": "causl"}], {}, r"task\.suite\[0\]\.kind: 'causl' is not a kind"),
        ([{**ONE, "kind": "multiple_choice", "template": "{word}"}], {},
         r"task\.suite\[0\]\.options: is required"),
        ([ONE], {"split": {"source": "train"}}, r"task\.suite\[0\]\.split: a member has no train"),
        ([ONE], {"data": {"train": "train", "dev": "two"}}, r"task\.data\.dev: is measured by no"),
        ([ONE], {"metric": "accuracy"}, r"task\.metric: 'accuracy' measures no member .* loss,"),
        ([ONE, {"name": "two", "data": {"test": "two"}, **CHOICE}], {},
         r"task\.suite\[1\]\.metric: less of one of accuracy and loss is better"),
    ],
)  # fmt: skip
def test_what_is_no_suite_is_refused_by_its_key(
    suite: list[Any], changes: dict[str, Any], message: str, folder: Path
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        task_of(folder, *suite, **changes)


@pytest.mark.parametrize(
    ("member", "place", "message"),
    [
        ({"data": {"test": "one"}}, ("name",), "Field required"),
        ({**ONE, "tempate": "{word}"}, ("tempate",), "Extra inputs"),
        ({"name": "a", "data": {"train": "one"}}, ("data",), "has train, but a member is measured"),
        ({"name": "a", "data": {}}, ("data",), "has neither dev nor test; give {test: FILE}"),
        ({**ONE, "max_length": 0}, ("max_length",), "greater than 0"),
        ({**ONE, "image": "word"}, ("image",), "does not go with causal"),
    ],
)
def test_a_key_of_a_member_that_is_wrong_is_told_where_it_stands(
    member: dict[str, Any], place: tuple[str, ...], message: str, folder: Path
) -> None:
    with pytest.raises(ValidationError) as refused:
        task_of(folder, ONE | {"name": "first"}, member)
    (told,) = refused.value.errors()
    assert told["loc"] == ("suite", 1, *place)
    assert message in told["msg"]


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ({"name": "gone", "data": {"test": "gone"}}, r"task\.suite\[0\]\.data\.test \(.*gone"),
        ({**ONE, **CHOICE, "label": "word", "label_form": "index"},
         r"task\.suite\[0\]\.label: task\.suite\[0\]\.data\.test \(.*one"),
        ({**ONE, "max_length": 999}, r"task\.suite\[0\]\.max_length: 999 is more than"),
    ],
)  # fmt: skip
def test_rows_of_a_member_that_are_none_are_told_of_it(
    member: dict[str, Any], message: str, folder: Path
) -> None:
    with pytest.raises(RanksweepError, match=f"^{message}"):
        build_task(task_of(folder, member), f"path:{folder / 'base'}")


def test_a_member_of_classes_has_those_of_train(tmp_path: Path) -> None:
    for name, labels in (("train", "ab"), ("dev", "abc")):
        rows = [f"film {i},{labels[i % len(labels)]}" for i in range(12)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows]))
    settings = TaskSettings.model_validate(
        {
            "name": "t", "text": "text", "data": {"train": str(tmp_path / "train.csv")},
            "suite": [{"name": "dev", "data": {"dev": str(tmp_path / "dev.csv")}}],
        }
    )  # fmt: skip
    with pytest.raises(DataError, match=r"^task\.suite\[0\]\.label: dev has the label 'c'"):
        load_rows(settings)


def test_the_base_of_a_suite_is_tried_once_for_all_of_its_members(
    task: Task, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []

    def packs(model: Any) -> bool:
        tried.append(model)
        return True

    monkeypatch.setattr("trainables.tasks.task.packs_exactly", packs)
    fitted = task.fitted(base.model)
    assert tried == [base.model]
    every = [vars(split)["packs"] for split in fitted.every_split.values()]
    assert len(every) == 1 + sum(len(member.splits) for member in task.suite.values())
    assert all(every)
