"""What a paper prints stands in a sweep, for readers alone."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from search.config.published import LONGEST, PublishedSettings
from search.config.reading import parse_sweep
from search.config.sweep import SweepConfig
from spaces.errors import UsageError

FIGURES = {"lora": 92.7, "taso rounds=4": 93.1}
SECTION: dict[str, Any] = {"source": "TASO, Table 2", "metric": "accuracy", "figures": FIGURES}


def sweep(**published: Any) -> SweepConfig:
    files = {"train": "train.csv", "dev": "dev.csv", "test": "test.csv"}
    task = {"name": "movie", "data": files, "text": "sentence"}
    return parse_sweep({"base": "path:model", "task": task, "published": {**SECTION, **published}})


def test_a_figure_is_told_in_the_unit_of_the_metric_here() -> None:
    percent = sweep().published
    assert percent is not None
    assert percent.figure("accuracy", "lora") == pytest.approx(0.927)
    assert percent.figure("accuracy", "taso rounds=4") == pytest.approx(0.931)
    own = sweep(unit="own", figures={"lora": 3.25}).published
    assert own is not None
    assert own.figure("accuracy", "lora") == 3.25


def test_no_figure_stands_for_another_metric_or_another_arm() -> None:
    published = sweep().published
    assert published is not None
    assert published.figure("matthews", "lora") is None
    assert published.figure("accuracy", "taso") is None
    assert published.figure("accuracy", "taso rounds=1") is None


def test_a_figure_of_a_member_stands_in_the_columns() -> None:
    published = sweep(columns={"boolq": {"lora": 80.5}}).published
    assert published is not None
    assert published.of_member("boolq/accuracy", "lora") == pytest.approx(0.805)
    for name, arm in (("boolq/f1", "lora"), ("piqa/accuracy", "lora"), ("boolq/accuracy", "taso")):
        assert published.of_member(name, arm) is None


def test_a_sweep_without_it_is_as_it_was() -> None:
    config = SweepConfig.model_validate({**sweep().resolved(), "published": None})
    assert config.published is None
    assert sweep().resolved() == {**config.resolved(), "published": {
        **SECTION, "unit": "percent", "columns": {},
    }}  # fmt: skip


def test_it_is_read_back_from_its_tag() -> None:
    published = sweep(columns={"f1": {"lora": 89.3}}).published
    assert published is not None
    assert PublishedSettings.model_validate_json(published.as_tag()) == published


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"figures": {}}, "published.figures: is empty; give at least 1"),
        ({"figures": {" ": 1.0}}, "published.figures: has a figure without a name"),
        ({"figures": {"lora": "92.7"}}, "published.figures.lora"),
        ({"figures": {"lora": float("nan")}}, "published.figures.lora"),
        ({"unit": "fraction"}, "published.unit"),
        ({"source": ""}, "published.source"),
        ({"figure": {"lora": 1.0}}, "published.figure: unknown key"),
        (
            {"columns": {f"set-{i}": {"lora": 1.0} for i in range(400)}},
            "published: takes",
        ),
    ],
)
def test_what_is_wrong_is_told_in_one_line_with_its_key(change: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        sweep(**change)
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_it_is_never_longer_than_a_tag() -> None:
    columns = {"set": {f"method-{i}": 12.34 for i in range(290)}}
    assert len(PublishedSettings(**SECTION, columns=columns).as_tag()) <= LONGEST
    with pytest.raises(ValidationError, match="leave columns out"):
        PublishedSettings(**SECTION, columns={"a": columns["set"], "b": columns["set"]})
