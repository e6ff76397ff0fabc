"""What a preset reads of a data set on the hub is what the set's card says it holds."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.presets.preset import Preset, presets

CARDS: Mapping[str, Any] = yaml.safe_load((Path(__file__).parent / "cards.yaml").read_text())
MAPPED = {"alpaca": ["instruction", "input", "output"], "sharegpt": ["conversations"]}


def hub_tasks(preset: Preset) -> Iterator[dict[str, Any]]:
    """The preset's task and those of its suite, as far as their rows are on the hub."""
    task = preset.sweep()["task"]
    members = [{**task, **own} for own in task.get("suite", ())]
    for each in (task, *members):
        if "hub" in each["data"]:
            yield each


def card_of(task: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = CARDS[task["data"]["hub"]][task["data"].get("name", "default")]
    return found


def columns_of(task: Mapping[str, Any]) -> Iterator[str]:
    """Every column that a task reads."""
    yield from task.get("text", ())
    for key in ("image", "label", "prompt", "completion", "messages"):
        if key in task:
            yield task[key]
    for _, name, _, _ in string.Formatter().parse(task.get("template", "")):
        if name is not None:
            yield name
    options = task.get("options")
    if isinstance(options, str):
        yield options
    elif isinstance(options, Mapping):
        yield from options["columns"]
    if "map" in task:
        yield from MAPPED[task["map"]]


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_its_columns_are_those_of_the_card(preset: Preset) -> None:
    for task in hub_tasks(preset):
        asked = list(columns_of(task))
        assert asked
        assert set(asked) <= set(card_of(task)["features"])


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_its_splits_are_those_of_the_card(preset: Preset) -> None:
    for task in hub_tasks(preset):
        data = task["data"]
        named = {data[key] for key in ("train", "dev", "test") if key in data}
        # Where neither dev nor test is named, the split `validation` is divided; a task with a
        # suite is measured on the splits of its members alone.
        divided = not task.get("suite") and not {"dev", "test"} & set(data)
        named |= {"train"} | ({"validation"} if divided else set())
        assert {each.partition("[")[0] for each in named} <= set(card_of(task)["splits"])


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_no_test_split_of_hidden_labels_is_measured(preset: Preset) -> None:
    for task in hub_tasks(preset):
        if task["data"]["hub"] in ("nyu-mll/glue", "aps/super_glue"):
            assert not task["data"].get("test", "validation").startswith("test")


def test_parts_of_one_split_do_not_overlap() -> None:
    cut = 0
    for preset in presets():
        for task in hub_tasks(preset):
            parts = [value for value in task["data"].values() if "[" in value]
            places = [re.fullmatch(r"(\w+)\[(\d*%?):(\d*%?)\]", part) for part in parts]
            assert len(parts) in (0, 2)
            if parts:
                (split, low, high), (other, first, last) = sorted(
                    place.groups() for place in places if place is not None
                )
                assert (split, low, last) == (other, "", "")
                assert high == first
                cut += 1
    assert cut == 4
