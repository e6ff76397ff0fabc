"""What every method promises, whatever it chooses: one suite for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from spaces.choice import Choice
from spaces.errors import ChoiceError, ProfileError
from spaces.methods import METHODS, count_range, make_plan, needs_profile, parse_choice
from spaces.plan import Plan
from tests.spaces.example_profiles import SMALL, drawn_profile

CHOICES: list[dict[str, Any]] = [
    {"method": "lora", "rank": 5},
    {"method": "lora", "rank": 1, "alpha": 2},
    {"method": "pilora", "rank": 4},
    {"method": "pilora", "rank": 4, "supplementary_rank": 0, "partition": {"threshold": 0.95}},
    {"method": "pilora", "rank": 3, "partition": {"rule": "cumulative", "threshold": 0.6}},
    {"method": "pilora", "rank": 5, "supplementary_rank": 5, "partition": {"rule": "top"}},
    {"method": "pilora", "rank": 2, "partition": {"rule": "random", "threshold": 0.3}, "seed": 4},
    {"method": "pilora", "rank": 2, "partition": {"rule": "all"}},
    {"method": "taso"},
    {"method": "taso", "retention": 1, "top_percent": 1},
    {"method": "taso", "retention": 0.01, "scope": "model", "lr_scaling": False},
    {"method": "taso", "scope": "model", "rank": 3, "rounds": 2},
    {"method": "taso", "importance": "gradient", "top_percent": 10, "rounds": 4},
    {"method": "taso", "importance": "random", "seed": 9},
    {"method": "sensitivity"},
    {"method": "sensitivity", "signal": "global", "weighting": "equal", "mean_rank": 3},
    {"method": "sensitivity", "signal": "local", "min_rank": 0, "mean_rank": 1},
    {"method": "sensitivity", "allocation": "progressive", "mean_rank": 3},
    {"method": "sensitivity", "allocation": "uniform", "mean_rank": 2},
    {"method": "joint"},
    {"method": "joint", "allocation": "progressive", "mean_rank": 3, "supplementary_rank": 0},
    {"method": "joint", "allocation": "uniform", "partition": {"rule": "top"}, "retention": 0.03},
    {"method": "joint", "partition": {"rule": "all"}, "retention": 1, "min_rank": 0},
    {"method": "joint", "partition": {"rule": "cumulative"}, "supplementary_rank": 3},
    {
        "method": "joint",
        "allocation": "uniform",
        "partition": {"rule": "random"},
        "retention": 1,
    },
]

PROFILES = {
    "varied": drawn_profile(seed=1),
    "tied": drawn_profile(seed=2, levels=2),
}


def _id(choice: dict[str, Any]) -> str:
    return "-".join(str(value) for value in choice.values())


@pytest.fixture(params=CHOICES, ids=_id)
def choice(request: pytest.FixtureRequest) -> Choice:
    return parse_choice(request.param)


@pytest.fixture(params=PROFILES.values(), ids=PROFILES.keys())
def plan(request: pytest.FixtureRequest, choice: Choice) -> Plan:
    return make_plan(choice, SMALL, request.param)


def test_every_method_is_covered() -> None:
    assert {choice["method"] for choice in CHOICES} == set(METHODS)


def test_blocks_lie_within_their_matrix(plan: Plan) -> None:
    shapes = {target.name: target.shape for target in SMALL}
    blocks = [(name, b) for stage in plan.stages for name, bs in stage.items() for b in bs]
    assert blocks
    for name, block in blocks:
        for indices, size in zip((block.rows, block.cols), shapes[name], strict=True):
            assert indices.dtype == np.int32
            assert len(indices) > 0
            assert list(indices) == sorted(set(indices.tolist()))
            assert indices.min() >= 0
            assert indices.max() < size
        assert 1 <= block.rank <= min(shapes[name])
        assert block.scale > 0
        assert block.lr_scale >= 1


def test_summary_counts_what_a_recount_counts(plan: Plan) -> None:
    stages = []
    for stage in plan.stages:
        weights = 0
        for blocks in stage.values():
            for block in blocks:
                b = np.zeros((len(block.rows), block.rank))
                a = np.zeros((block.rank, len(block.cols)))
                weights += b.size + a.size
        stages.append(weights)
    summary = plan.summary()
    assert summary["trainable_params"] == plan.trainable_params == sum(stages)
    assert summary["peak_trainable_params"] == plan.peak_trainable_params == max(stages)
    assert summary["digest"] == plan.digest
    recount = [
        sum(
            b["rank"] * (b["rows"] + b["cols"])
            for blocks in stage["modules"].values()
            for b in blocks
        )
        for stage in summary["stages"]
    ]
    assert recount == stages


def test_the_same_choice_gives_the_same_digest(choice: Choice, plan: Plan) -> None:
    again = [make_plan(choice, SMALL, profile).digest for profile in PROFILES.values()]
    assert plan.digest in again
    assert make_plan(choice, SMALL, drawn_profile(seed=1)).digest == again[0]


def test_digest_does_not_depend_on_the_learning_rate(choice: Choice) -> None:
    faster = choice.model_copy(update={"learning_rate": choice.learning_rate * 3})
    profile = PROFILES["varied"]
    assert make_plan(faster, SMALL, profile).digest == make_plan(choice, SMALL, profile).digest


def test_digest_changes_with_the_content(choice: Choice) -> None:
    other = choice.model_copy(update={"alpha": 1.5})
    profile = PROFILES["varied"]
    assert make_plan(other, SMALL, profile).digest != make_plan(choice, SMALL, profile).digest


def test_plan_survives_its_file(plan: Plan, tmp_path: Path) -> None:
    plan.write(tmp_path / "plan.safetensors")
    again = Plan.read(tmp_path / "plan.safetensors")
    assert again.digest == plan.digest
    assert again.summary() == plan.summary()
    assert again.targets == plan.targets == SMALL
    assert Plan.from_bytes(plan.to_bytes()).digest == plan.digest


def test_count_lies_within_count_range(choice: Choice, plan: Plan) -> None:
    least, most = count_range(choice, SMALL)
    assert 0 <= least <= plan.trainable_params <= most


def test_choice_survives_yaml(choice: Choice) -> None:
    assert parse_choice(yaml.safe_load(yaml.safe_dump(choice.as_dict()))) == choice


def test_a_plan_without_a_profile_is_exact_or_refused(choice: Choice) -> None:
    if needs_profile(choice):
        with pytest.raises(ProfileError, match="needs a profile"):
            make_plan(choice, SMALL, None)
    else:
        plan = make_plan(choice, SMALL, None)
        assert count_range(choice, SMALL) == (plan.trainable_params, plan.trainable_params)


@pytest.mark.parametrize("method", METHODS)
def test_a_rank_above_the_matrix_names_the_module(method: str) -> None:
    key = "mean_rank" if "mean_rank" in METHODS[method].choice_class.model_fields else "rank"
    choice = {"method": method, key: 6}
    if key == "mean_rank":
        choice["allocation"] = "uniform"
    with pytest.raises(ChoiceError, match=rf"{key}: 6 .*layers\.2\.narrow"):
        make_plan(parse_choice(choice), SMALL, drawn_profile())
    with pytest.raises(ChoiceError, match=rf"{key}: 6 .*layers\.2\.narrow"):
        count_range(parse_choice(choice), SMALL)


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_those_of_the_papers(method: str) -> None:
    papers: dict[str, dict[str, Any]] = {
        "lora": {"rank": 8, "alpha": 16},
        "pilora": {
            "rank": 8,
            "supplementary_rank": 1,
            "partition": {"rule": "hits", "threshold": 0.5},
            "alpha": 16,
        },
        "taso": {
            "retention": 0.1,
            "top_percent": 5,
            "importance": "sensitivity",
            "scope": "module",
            "rank": 1,
            "rounds": 1,
            "alpha": 1,
            "lr_scaling": True,
        },
        "sensitivity": {
            "mean_rank": 4,
            "signal": "combined",
            "allocation": "scaled",
            "top_fraction": 0.5,
            "energy": 0.85,
            "weighting": "spread",
            "min_rank": 1,
            "alpha": 16,
        },
    }
    papers["joint"] = {
        **papers["sensitivity"],
        "supplementary_rank": 1,
        "partition": {"rule": "hits", "threshold": 0.5},
        "retention": 0.5,
        "top_percent": 5,
    }
    expected = {"method": method, "seed": 0, "learning_rate": 2e-4, **papers[method]}
    assert parse_choice({"method": method}).as_dict() == expected


@pytest.mark.parametrize("method", METHODS)
def test_a_profile_of_another_base_is_refused(method: str) -> None:
    profile = drawn_profile([type(SMALL[0])("layers.0.query", (12, 9))])
    with pytest.raises(ProfileError, match=r"layers\.0\.query: profiled as \[12, 9\]"):
        make_plan(parse_choice({"method": method}), SMALL[:1], profile)


@pytest.mark.parametrize("method", METHODS)
def test_no_targets_is_a_plan_of_nothing(method: str) -> None:
    plan = make_plan(parse_choice({"method": method}), (), drawn_profile(()))
    assert plan.trainable_params == 0
    assert count_range(parse_choice({"method": method}), ()) == (0, 0)
