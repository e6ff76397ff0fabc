"""The sections of a sweep that a worker reads accept what is right and say what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from spaces.errors import ConfigError
from trainables.profiling.settings import ProfileSettings
from trainables.tasks.settings import FILE_SUFFIXES, DataSettings, TaskSettings
from trainables.training.settings import TrainSettings

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = {"train": "a.parquet", "dev": "b.csv", "test": "c.jsonl"}


def task(**changes: Any) -> dict[str, Any]:
    return {"name": "t", "data": FILES, "text": ["sentence"]} | changes


@pytest.mark.parametrize("name", ["movie-minilm.yaml", "demo.yaml"])
def test_the_sections_of_the_examples_are_valid(name: str) -> None:
    sweep = yaml.safe_load((EXAMPLES / name).read_text())
    assert TaskSettings.model_validate(sweep["task"]).text == ("sentence",)
    assert ProfileSettings.model_validate(sweep["profile"]).top_percent == (1, 2, 5, 10)
    assert TrainSettings.model_validate(sweep["train"]).warmup_ratio == 0.06


def test_the_profile_sections_unwritten_keys_are_those_of_the_design() -> None:
    profile = ProfileSettings(rank=4)
    assert profile.learning_rate == 2e-4
    assert profile.resolved_alpha == 8
    assert (profile.lr_scheduler, profile.warmup_ratio) == ("linear", 0)
    assert (profile.max_grad_norm, profile.weight_decay, profile.dropout) == (1, 0, 0)
    assert not profile.base_dropout
    assert ProfileSettings(alpha=3).resolved_alpha == 3


def test_yamls_bare_on_and_off_are_no_booleans() -> None:
    written = yaml.safe_load("[on, off, 'on', auto]")
    said = [
        TrainSettings(activation_checkpointing=each).activation_checkpointing for each in written
    ]
    assert said == ["on", "off", "on", "auto"]


def test_one_text_column_may_be_written_without_a_list() -> None:
    assert TaskSettings.model_validate(task(text="sentence")).text == ("sentence",)


def test_the_percentages_are_kept_ascending_and_once() -> None:
    assert ProfileSettings(top_percent=(10, 1, 1, 0.5)).top_percent == (0.5, 1, 10)


def test_a_task_of_pictures_names_their_column_in_place_of_texts() -> None:
    values = {"name": "t", "kind": "image_classification", "data": FILES, "image": "picture"}
    settings = TaskSettings.model_validate(values)
    assert (settings.image, settings.text) == ("picture", ())
    assert TaskSettings.model_validate(settings.model_dump(mode="json")) == settings
    for metric in ("accuracy", "f1", "macro_f1", "matthews", "roc_auc"):
        TaskSettings.model_validate(values | {"metric": metric})


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({}, "image", "is required; name the column of pictures"),
        ({"image": ""}, "image", "is required"),
        ({"image": "p", "text": "sentence"}, "text", "does not go with image_classification"),
        ({"image": "label"}, "", "'label' is both image and label"),
        ({"kind": "classification", "image": "p", "text": "s"}, "image",
         "does not go with classification; set kind: image_classification"),
        ({"kind": "classification"}, "text", "is required; name one column"),
    ],
)  # fmt: skip
def test_a_wrong_task_of_pictures_is_refused_with_the_reason(
    changes: dict[str, Any], key: str, said: str
) -> None:
    values = {"name": "t", "kind": "image_classification", "data": FILES}
    with pytest.raises(ValidationError) as caught:
        TaskSettings.model_validate(values | changes)
    (error,) = caught.value.errors()
    assert ".".join(map(str, error["loc"])) == key
    assert said in error["msg"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "guess"}, "task.kind: 'guess' is not a kind of task; did you mean"),
        ({"kind": "regression", "metric": "f1"}, "task.metric: 'f1' does not measure regression"),
        ({"metric": "bleu"}, "task.metric: 'bleu' does not measure classification; use one of"),
        ({"kind": "causal", "text": ["a"], "metric": "f1"}, "task.metric: 'f1' does not measure"),
        ({"kind": "causal", "text": []}, "task.text: names no column; name one of running text"),
        ({"kind": "causal", "prompt": "a", "text": []}, "task.completion: is required with prompt"),
        ({"kind": "generation", "text": [], "template": "{a}"}, "task.completion: is required"),
        ({"kind": "multiple_choice", "text": [], "prompt": "a"}, "task.options: is required"),
        (
            {"kind": "multiple_choice", "text": [], "options": ["a", "b"]},
            "task.prompt: is required",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        TaskSettings.model_validate(task(**changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "regression", "positive_class": "a"}, "does not go with regression"),
        ({"text": ["a", "b", "c"]}, "names 3 columns"),
        ({"text": []}, "is required; name one column"),
        ({"text": ["label"]}, "'label' is both text and label"),
        ({"max_length": 0}, "greater than 0"),
        ({"rows": {"train": 0}}, "greater than 0"),
        ({"split": {"dev_fraction": 1.0}}, "less than 1"),
        ({"template": "{a}"}, "text\n  Value error, does not go with template"),
        ({"template": "{a", "text": []}, "has a '{' that no other closes"),
        ({"data": {"dev": "b.csv"}}, "neither train nor hub"),
        ({"data": FILES | {"name": "rte"}}, "name goes with hub only"),
    ],
)
def test_a_wrong_task_is_refused_with_the_reason(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TaskSettings.model_validate(task(**changes))
    assert said in str(caught.value)
    assert caught.value.error_count() == 1


@pytest.mark.parametrize(
    "values",
    [
        {"rank": 0},
        {"epochs": 0},
        {"score_every": 0},
        {"calibration_batches": 0},
        {"calibration_batches": "some"},
        {"batch_size": 0},
        {"top_percent": []},
        {"top_percent": [0]},
        {"top_percent": [101]},
        {"target_modules": []},
        {"target_modules": [""]},
        {"learning_rate": 0},
        {"learning_rate": float("inf")},
        {"dropout": 1.0},
        {"max_grad_norm": 0},
        {"precision": "fp8"},
        {"seed": -1},
    ],
)
def test_a_wrong_value_of_the_profile_section_is_refused(values: dict[str, Any]) -> None:
    (key,) = values
    with pytest.raises(ValidationError) as caught:
        ProfileSettings.model_validate(values)
    assert all(error["loc"][0] == key for error in caught.value.errors())


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 0},
        {"batch_size": -1},
        {"optimizer": "lion"},
        {"lr_scheduler": "sawtooth"},
        {"warmup_ratio": 1.5},
        {"warmup_steps": -1},
        {"warmup_steps": 0.5},
        {"weight_decay": -0.1},
    ],
)
def test_a_wrong_value_of_the_train_section_is_refused(values: dict[str, Any]) -> None:
    (key,) = values
    with pytest.raises(ValidationError) as caught:
        TrainSettings.model_validate(values)
    assert all(error["loc"][0] == key for error in caught.value.errors())


def test_the_length_of_the_warm_up_is_said_once() -> None:
    with pytest.raises(
        ValidationError, match=r"warmup_steps and warmup_ratio both .*leave one"
    ) as e:
        TrainSettings(warmup_steps=100, warmup_ratio=0.1)
    assert e.value.error_count() == 1
    by_steps = TrainSettings(warmup_steps=100)
    assert (by_steps.warmup_ratio, by_steps.warmup_of(1000)) == (None, 100)
    assert TrainSettings.model_validate(by_steps.model_dump(mode="json")) == by_steps
    assert TrainSettings(warmup_steps=None, warmup_ratio=0.1).warmup_of(1001) == 101
    assert TrainSettings(warmup_steps=0).warmup_of(50) == 0
    assert TrainSettings(warmup_ratio=None).warmup_of(50) == 0


def test_a_batch_must_divide_into_its_accumulation_steps() -> None:
    with pytest.raises(ValidationError, match="batch_size 16 does not divide into 3"):
        TrainSettings(batch_size=16, gradient_accumulation_steps=3)


def test_settings_are_frozen_and_round_trip_through_plain_values() -> None:
    settings = TaskSettings.model_validate(task())
    with pytest.raises(ValidationError, match="frozen"):
        settings.max_length = 3  # type: ignore[misc]
    assert TaskSettings.model_validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize("suffix", FILE_SUFFIXES)
def test_packaged_files_are_accepted(suffix: str) -> None:
    assert DataSettings(train=f"package:some_package/data/a{suffix}").train is not None


@pytest.mark.parametrize("section", [TaskSettings, DataSettings, ProfileSettings, TrainSettings])
def test_every_key_explains_itself(section: Any) -> None:
    undocumented = [key for key, field in section.model_fields.items() if not field.description]
    assert undocumented == []


def test_importing_the_settings_imports_no_heavy_library() -> None:
    script = (
        "import sys, trainables.settings; "
        "print([m for m in ('torch', 'transformers', 'datasets', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=EXAMPLES.parent,
    )
    assert done.stdout.strip() == "[]"
