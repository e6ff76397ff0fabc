"""The section `on` names places, and each becomes a trigger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from search.config.yaml_file import parse_yaml
from search.schedules.triggers.places import triggers_of
from search.schedules.triggers.settings import TriggerSettings

SECTION = """
registry:
  - {model: encoder, alias: candidate}
  - {model: "encoder-*"}
checkpoints:
  - {under: "s3://key:hunter2@bucket/runs/"}
  - {under: ~/runs}
hub:
  - {repo: org/name, revision: v2}
  - {repo: org/name}
data: true
"""


def test_each_place_is_a_trigger_with_a_name_of_its_own(tmp_path: Path) -> None:
    settings = TriggerSettings.model_validate(parse_yaml(SECTION, "a test"))
    assert settings.data is True
    triggers = triggers_of(
        settings, folder=tmp_path, tracking_uri="sqlite:///x.db", cache=tmp_path / "cache"
    )
    assert [each.name for each in triggers] == [
        "registry encoder@candidate",
        "registry encoder-*",
        "checkpoints s3://***@bucket/runs",
        "checkpoints ~/runs",
        "hub org/name@v2",
        "hub org/name@main",
    ]
    assert list(tmp_path.iterdir()) == [], "nothing is made before a look"


def test_nothing_is_looked_at_unless_asked_for(tmp_path: Path) -> None:
    settings = TriggerSettings()
    assert settings.data is False
    assert triggers_of(settings, folder=tmp_path, tracking_uri="x", cache=tmp_path) == []


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        ({"registry": [{"modle": "encoder"}]}, ("registry", 0, "modle")),
        ({"checkpoint": []}, ("checkpoint",)),
        ({"registry": [{"model": "a", "alias": None}, {"model": "a"}]}, ()),
        ({"checkpoints": [{"under": "runs"}, {"under": "runs/"}]}, ()),
        ({"hub": [{"repo": "a/b"}, {"repo": "a/b", "revision": "main"}]}, ()),
        ({"hub": [{"repo": "a/b", "revision": ""}]}, ("hub", 0, "revision")),
        ({"checkpoints": [{"under": "file://"}]}, ("checkpoints", 0, "under")),
        ({"data": "yes"}, ("data",)),
    ],
)
def test_what_cannot_be_is_refused_where_it_stands(
    raw: dict[str, Any], where: tuple[str | int, ...]
) -> None:
    with pytest.raises(ValidationError) as refused:
        TriggerSettings.model_validate(raw)
    assert where in [error["loc"] for error in refused.value.errors()]
