"""What every method promises, whatever it chooses: one suite for all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml

from spaces.choice import Choice
from spaces.errors import ChoiceError, ProfileError
from spaces.methods.registry import METHODS, count_range, make_plan, needs_profile, parse_choice
from spaces.plan import Plan, Tuner
from spaces.target import BaseSize, TargetModule
from tests.spaces.example_profiles import SIZE, SMALL, drawn_profile

OF_BLOCKS: list[dict[str, Any]] = [
    {"method": "lora", "rank": 5},
    {"method": "lora", "rank": 1, "alpha": 2},
    {"method": "pilora", "rank": 4},
    {"method": "pilora", "rank": 4, "supplementary_rank": 0, "partition": {"threshold": 0.95}},
    {"method": "pilora", "rank": 3, "partition": {"rule": "cumulative", "threshold": 0.6}},
    {"method": "pilora", "rank": 5, "supplementary_rank": 5, "partition": {"rule": "top"}},
    {"method": "pilora", "rank": 2, "partition": {"rule": "random", "threshold": 0.3}, "seed": 4},
    {"method": "pilora", "rank": 2, "partition": {"rule": "all"}},
    {"method": "pilora", "rank": 4, "supplementary_rank": 2, "supplementary_scale": "own"},
    {"method": "taso"},
    {"method": "taso", "retention": 1, "top_percent": 1},
    {"method": "taso", "retention": 0.01, "scope": "model", "lr_scaling": False},
    {"method": "taso", "scope": "model", "rank": 3, "rounds": 2},
    {"method": "taso", "importance": "gradient", "top_percent": 10, "rounds": 4},
    {"method": "taso", "importance": "random", "seed": 9},
    {"method": "taso", "retention": 0.02, "max_lr_scale": 1.5, "stage_steps": "full", "rounds": 2},
    {"method": "sensitivity"},
    {"method": "sensitivity", "signal": "global", "weighting": "equal", "mean_rank": 3},
    {"method": "sensitivity", "signal": "local", "min_rank": 0, "mean_rank": 1},
    {"method": "sensitivity", "allocation": "progressive", "mean_rank": 3},
    {"method": "sensitivity", "allocation": "uniform", "mean_rank": 2},
    {"method": "sensitivity", "budget": "parameters", "mean_rank": 3, "min_rank": 0},
    {"method": "sensitivity", "budget": "parameters", "allocation": "progressive"},
    {"method": "joint"},
    {"method": "joint", "allocation": "progressive", "mean_rank": 3, "supplementary_rank": 0},
    {"method": "joint", "allocation": "uniform", "partition": {"rule": "top"}, "retention": 0.03},
    {"method": "joint", "partition": {"rule": "all"}, "retention": 1, "min_rank": 0},
    {"method": "joint", "partition": {"rule": "cumulative"}, "supplementary_rank": 3},
    {"method": "joint", "budget": "parameters", "supplementary_scale": "own", "mean_rank": 2},
    {
        "method": "joint",
        "allocation": "uniform",
        "partition": {"rule": "random"},
        "retention": 1,
    },
]

OF_TUNERS: list[dict[str, Any]] = [
    {"method": "rslora", "rank": 3},
    {"method": "dora", "rank": 4},
    {"method": "pissa", "rank": 2},
    {"method": "adalora", "rank": 2, "initial_rank": 4},
    {"method": "adalora", "rank": 3, "initial_rank": 3, "initial_share": 0, "final_share": 1},
    {"method": "ia3"},
    {"method": "vera", "rank": 50},
    {"method": "lora_xs", "rank": 4},
    {"method": "bottleneck"},
    {"method": "bottleneck", "size": 3, "activation": "relu"},
    {"method": "bitfit"},
    {"method": "full"},
    {"method": "milora", "rank": 4},
    {"method": "lora_dash", "rank": 2, "directions": 4},
    {"method": "dylora", "rank": 4},
    {"method": "sora", "rank": 1, "sparsity": 0},
    {"method": "eva", "rank": 3},
    {"method": "eva", "rank": 2, "rho": 1.0},
    {"method": "gora", "rank": 3},
    {"method": "gora", "rank": 2, "min_share": 1.0, "max_share": 1.0},
    {"method": "para", "rank": 4, "keep": 0.5},
]

CHOICES = OF_BLOCKS + OF_TUNERS

SHARED_OUT = ("eva", "gora")
"""The methods whose training rows decide how many numbers train."""

WHOLE_BASE = ("bitfit", "full")
"""The methods that train a part of the base, whatever the targets."""

BOUNDED = {"rank", "mean_rank", "initial_rank", "directions"}
"""Keys that min(out, in) of the smallest module bounds, where a method has them."""
UNBOUNDED = {("vera", "rank"), ("adalora", "rank")}
"""Those that it does not: factors that are not trained; a rank that initial_rank bounds."""

PROFILES = {
    "varied": drawn_profile(seed=1),
    "tied": drawn_profile(seed=2, levels=2),
}


def _id(choice: dict[str, Any]) -> str:
    return "-".join(str(value) for value in choice.values())


def planned(choice: Choice, profile: Any = None) -> Plan:
    return make_plan(choice, SMALL, profile, SIZE)


@pytest.fixture(params=CHOICES, ids=_id)
def choice(request: pytest.FixtureRequest) -> Choice:
    return parse_choice(request.param)


@pytest.fixture(params=list(PROFILES.values()), ids=list(PROFILES))
def plan(request: pytest.FixtureRequest, choice: Choice) -> Plan:
    return planned(choice, request.param)


@pytest.fixture(params=list(PROFILES.values()), ids=list(PROFILES))
def block_plan(request: pytest.FixtureRequest, block_choice: Choice) -> Plan:
    return planned(block_choice, request.param)


@pytest.fixture(params=OF_BLOCKS, ids=_id)
def block_choice(request: pytest.FixtureRequest) -> Choice:
    return parse_choice(request.param)


@pytest.fixture(params=OF_TUNERS, ids=_id)
def tuner_choice(request: pytest.FixtureRequest) -> Choice:
    return parse_choice(request.param)


def test_every_method_is_covered() -> None:
    assert {choice["method"] for choice in CHOICES} == set(METHODS)
    assert {choice["method"] for choice in OF_TUNERS} == {
        name for name, method in METHODS.items() if method.baseline
    }
    assert all(method.name == name for name, method in METHODS.items())


# -- every plan ------------------------------------------------------------------------------------


def test_the_same_choice_gives_the_same_digest(choice: Choice, plan: Plan) -> None:
    again = [planned(choice, profile).digest for profile in PROFILES.values()]
    assert plan.digest in again
    assert planned(choice, drawn_profile(seed=1)).digest == again[0]


def test_digest_does_not_depend_on_the_learning_rate(choice: Choice) -> None:
    faster = choice.model_copy(update={"learning_rate": choice.learning_rate * 3})
    profile = PROFILES["varied"]
    assert planned(faster, profile).digest == planned(choice, profile).digest


def test_plan_survives_its_file(plan: Plan, tmp_path: Path) -> None:
    plan.write(tmp_path / "plan.safetensors")
    again = Plan.read(tmp_path / "plan.safetensors")
    assert again.digest == plan.digest
    assert again.summary() == plan.summary()
    assert again.targets == plan.targets == SMALL
    assert again.tuner == plan.tuner
    assert Plan.from_bytes(plan.to_bytes()).digest == plan.digest


def test_a_choice_and_its_plan_say_alike_how_long_a_trial_is(choice: Choice, plan: Plan) -> None:
    assert choice.length == plan.length >= 1
    assert Plan.from_bytes(plan.to_bytes()).length == plan.length


def test_summary_is_json_with_the_counts_and_the_digest(plan: Plan) -> None:
    summary = json.loads(json.dumps(plan.summary()))
    assert summary["trainable_params"] == plan.trainable_params > 0
    assert summary["peak_trainable_params"] == plan.peak_trainable_params
    assert summary["digest"] == plan.digest
    assert len(summary["stages"]) == len(plan.stages)


def test_count_lies_within_count_range(choice: Choice, plan: Plan) -> None:
    least, most = count_range(choice, SMALL, size=SIZE)
    assert 0 <= least <= plan.trainable_params <= most


def test_choice_survives_yaml(choice: Choice) -> None:
    assert parse_choice(yaml.safe_load(yaml.safe_dump(choice.as_dict()))) == choice


def test_a_plan_without_a_profile_is_exact_or_refused(choice: Choice) -> None:
    if needs_profile(choice):
        with pytest.raises(ProfileError, match="needs a profile"):
            planned(choice)
    else:
        count = planned(choice).trainable_params
        least, most = count_range(choice, SMALL, size=SIZE)
        assert most == count
        assert least == count or choice.method in SHARED_OUT


# -- plans of blocks -------------------------------------------------------------------------------


def test_blocks_lie_within_their_matrix(block_plan: Plan) -> None:
    shapes = {target.name: target.shape for target in SMALL}
    blocks = [(name, b) for stage in block_plan.stages for name, bs in stage.items() for b in bs]
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


def test_summary_counts_what_a_recount_counts(block_plan: Plan) -> None:
    stages = []
    for stage in block_plan.stages:
        weights = 0
        for blocks in stage.values():
            for block in blocks:
                b = np.zeros((len(block.rows), block.rank))
                a = np.zeros((block.rank, len(block.cols)))
                weights += b.size + a.size
        stages.append(weights)
    summary = block_plan.summary()
    assert summary["trainable_params"] == sum(stages)
    assert summary["peak_trainable_params"] == max(stages)
    assert "tuner" not in summary
    recount = [
        sum(
            b["rank"] * (b["rows"] + b["cols"])
            for blocks in stage["modules"].values()
            for b in blocks
        )
        for stage in summary["stages"]
    ]
    assert recount == stages


def test_digest_changes_with_the_scale_of_blocks(block_choice: Choice) -> None:
    other = block_choice.model_copy(update={"alpha": 1.5})
    profile = PROFILES["varied"]
    assert planned(other, profile).digest != planned(block_choice, profile).digest


# -- plans of a tuner ------------------------------------------------------------------------------


def trained_shapes(choice: Any, target: TargetModule) -> list[tuple[int, ...]]:
    """The tensors that a method trains in one of the small modules, as its paper lists them."""
    out, inner = target.shape
    writes = target.name in ("layers.1.output.dense", "layers.1.down_proj")
    # Those that are wide are all wider than the narrowest input, 8.
    is_second = inner > out
    rank = getattr(choice, "rank", 0)
    lora: list[tuple[int, ...]] = [(out, rank), (rank, inner)]
    shapes: dict[str, Callable[[], list[tuple[int, ...]]]] = {
        "rslora": lambda: lora,
        "pissa": lambda: lora,
        "milora": lambda: lora,
        "dylora": lambda: lora,
        "gora": lambda: lora,
        "para": lambda: lora,
        "dora": lambda: [*lora, (out,)],
        "sora": lambda: [*lora, (rank,)],
        "lora_dash": lambda: [*lora, (choice.directions,)],
        "adalora": lambda: [
            (out, choice.initial_rank),
            (choice.initial_rank,),
            (choice.initial_rank, inner),
        ],
        "ia3": lambda: [(inner,) if is_second else (out,)],
        "vera": lambda: [(rank,), (out,)],
        "lora_xs": lambda: [(rank, rank)],
        "bottleneck": lambda: (
            [(choice.size, out), (choice.size,), (out, choice.size), (out,)] if writes else []
        ),
    }
    return shapes[choice.method]()


def most_of_eva(choice: Any) -> int:
    """The most that rank * modules ranks take, one after another where they cost most."""
    most = min(round(choice.rank * choice.rho), *(min(t.shape[0], t.shape[1] // 2) for t in SMALL))
    dearest = sorted((sum(target.shape) for target in SMALL for _ in range(most)), reverse=True)
    return sum(dearest[: choice.rank * len(SMALL)])


def test_a_tuner_counts_the_numbers_that_train(tuner_choice: Choice) -> None:
    if tuner_choice.method == "eva":
        expected = most_of_eva(tuner_choice)
    elif tuner_choice.method in WHOLE_BASE:
        expected = {"bitfit": 120, "full": 5_000}[tuner_choice.method]
    else:
        expected = sum(
            np.zeros(shape).size
            for target in SMALL
            for shape in trained_shapes(tuner_choice, target)
        )
    plan = planned(tuner_choice)
    assert plan.tuner is not None
    assert plan.tuner.params == plan.trainable_params == plan.peak_trainable_params == expected


def test_a_tuner_stands_in_place_of_blocks(tuner_choice: Choice) -> None:
    plan = planned(tuner_choice, PROFILES["varied"])
    assert [dict(stage) for stage in plan.stages] == [{}]
    assert plan.tuner is not None
    assert plan.summary()["tuner"] == {
        "name": tuner_choice.method,
        "settings": dict(sorted(plan.tuner.settings.items())),
        "params": plan.trainable_params,
        **({"least_params": least} if (least := plan.tuner.least_params) is not None else {}),
    }
    assert (plan.tuner.least_params is not None) == (tuner_choice.method in SHARED_OUT)
    assert plan.digest == planned(tuner_choice).digest, "no baseline reads a profile"


def test_settings_of_a_tuner_are_the_keys_of_its_choice(tuner_choice: Choice) -> None:
    plan = planned(tuner_choice)
    assert plan.tuner is not None
    of_every_choice = {"method", "seed", "learning_rate"}
    own = {k: v for k, v in tuner_choice.as_dict().items() if k not in of_every_choice}
    assert own.items() <= plan.tuner.settings.items()
    derived = {
        "ia3": {"input_modules"},
        "bottleneck": {"modules"},
        "eva": {"max_rank"},
        "gora": {"min_rank", "max_rank"},
    }
    assert plan.tuner.settings.keys() - own.keys() == derived.get(tuner_choice.method, set())


def test_digest_tells_every_setting_of_a_tuner_apart(tuner_choice: Choice) -> None:
    own = tuner_choice.own_values()
    fields = type(tuner_choice).model_fields
    digests = {planned(tuner_choice).digest}
    for key, value in own.items():
        if isinstance(value, str):
            other: Any = next(v for v in get_args(fields[key].annotation) if v != value)
        else:
            other = value + 1
        digests.add(planned(tuner_choice.model_copy(update={key: other})).digest)
    assert len(digests) == 1 + len(own)


@pytest.mark.parametrize("method", WHOLE_BASE)
def test_what_trains_the_base_itself_needs_its_size(method: str) -> None:
    choice = parse_choice({"method": method})
    with pytest.raises(ChoiceError, match=f"method: {method} needs the base's size"):
        make_plan(choice, SMALL, None)
    with pytest.raises(ChoiceError, match=f"method: {method} needs the base's size"):
        count_range(choice, SMALL)


def test_bitfit_of_a_base_without_biases_is_refused() -> None:
    bare = replace(SIZE, bias_params=0)
    with pytest.raises(ChoiceError, match=r"^method: bitfit .* has none; use another method"):
        make_plan(parse_choice({"method": "bitfit"}), SMALL, None, bare)
    assert make_plan(parse_choice({"method": "full"}), SMALL, None, bare).trainable_params == 5_000


def test_adapters_without_a_place_to_stand_are_refused() -> None:
    choice = parse_choice({"method": "bottleneck"})
    with pytest.raises(ChoiceError, match=r"^method: bottleneck .* add .*o_proj.* to the target"):
        make_plan(choice, SMALL[:3], None)
    with pytest.raises(ChoiceError, match=r"^method: bottleneck "):
        count_range(choice, SMALL[:3])


@pytest.mark.parametrize(
    ("readers", "writers"),
    [
        ("attention.self.value intermediate.dense", "attention.output.dense output.dense"),
        ("self_attn.v_proj mlp.gate_proj mlp.up_proj", "self_attn.o_proj mlp.down_proj"),
        ("attn.c_attn mlp.c_fc", "attn.c_proj mlp.c_proj"),
        ("attention.query ffn", "attention.dense ffn_output"),
        ("self_attn.v_proj mlp.fc1", "self_attn.out_proj mlp.fc2"),
        ("attention.v_proj mlp.fc1", "attention.o_proj mlp.fc2"),
    ],
    ids=["bert", "llama", "gpt2", "albert", "clip", "vit"],
)
def test_adapters_stand_behind_what_writes_to_the_residual_stream(
    readers: str, writers: str
) -> None:
    targets = [TargetModule(f"layer.0.{name}", (6, 6)) for name in f"{readers} {writers}".split()]
    tuner = make_plan(parse_choice({"method": "bottleneck", "size": 2}), targets, None).tuner
    assert tuner is not None
    assert json.loads(str(tuner.settings["modules"])) == [
        f"layer.0.{name}" for name in writers.split()
    ]
    assert tuner.params == len(writers.split()) * (2 * 6 + 2 + 6 * 2 + 6)


def test_ia3_scales_the_input_of_the_second_matrix_of_the_feed_forward_alone() -> None:
    # A key of grouped heads is wide too, but reads the residual stream, as the up matrix does.
    shapes = {"k_proj": (2, 8), "o_proj": (8, 8), "up_proj": (20, 8), "down_proj": (8, 20)}
    targets = [TargetModule(name, shape) for name, shape in shapes.items()]
    tuner = make_plan(parse_choice({"method": "ia3"}), targets, None).tuner
    assert tuner is not None
    assert json.loads(str(tuner.settings["input_modules"])) == ["down_proj"]
    assert tuner.params == 2 + 8 + 20 + 20


def test_a_rank_above_the_matrix_is_no_fault_where_it_is_not_trained() -> None:
    plan = make_plan(parse_choice({"method": "vera", "rank": 1_000}), SMALL[:1], None)
    assert plan.trainable_params == 1_000 + 12


def test_a_tuner_of_another_base_has_another_count() -> None:
    bigger = BaseSize(params=9, bias_params=4)
    for method, params in (("full", 9), ("bitfit", 4)):
        choice = parse_choice({"method": method})
        assert make_plan(choice, SMALL, None, bigger).tuner == Tuner(method, {}, params)
        assert count_range(choice, SMALL, None, bigger) == (params, params)


# -- every method ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "key"),
    [
        (name, key)
        for name, method in METHODS.items()
        for key in sorted(BOUNDED & set(method.choice_class.model_fields))
        if (name, key) not in UNBOUNDED
    ],
)
def test_a_rank_above_the_matrix_names_the_module(method: str, key: str) -> None:
    fields = METHODS[method].choice_class.model_fields
    choice = {"method": method, **dict.fromkeys(BOUNDED & set(fields), 2), key: 6}
    if key == "mean_rank":
        choice["allocation"] = "uniform"
    with pytest.raises(ChoiceError, match=rf"{key}: 6 .*layers\.2\.narrow"):
        planned(parse_choice(choice), drawn_profile())
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
            "supplementary_scale": "dominant",
            "alpha": 16,
        },
        "taso": {
            "retention": 0.1,
            "top_percent": 5,
            "importance": "sensitivity",
            "scope": "module",
            "rank": 1,
            "rounds": 1,
            "stage_steps": "split",
            "alpha": 16,
            "lr_scaling": True,
            "max_lr_scale": 4,
        },
        "sensitivity": {
            "mean_rank": 4,
            "signal": "combined",
            "allocation": "scaled",
            "top_fraction": 0.5,
            "energy": 0.85,
            "weighting": "spread",
            "min_rank": 1,
            "budget": "ranks",
            "alpha": 16,
        },
    }
    papers |= {
        "rslora": {"rank": 8, "alpha": 16},
        "dora": {"rank": 8, "alpha": 16},
        "pissa": {"rank": 8},
        "adalora": {
            "rank": 8,
            "initial_rank": 12,
            "alpha": 16,
            "orthogonal_weight": 0.5,
            "initial_share": 0.1,
            "final_share": 0.3,
            "interval": 1,
        },
        "ia3": {},
        "vera": {"rank": 256, "initial": 0.1},
        "lora_xs": {"rank": 8, "alpha": 16},
        "bottleneck": {"size": 16, "activation": "gelu"},
        "bitfit": {},
        "full": {},
        "milora": {"rank": 8},
        "lora_dash": {"rank": 8, "alpha": 16, "directions": 8, "launch_share": 0.1},
        "dylora": {"rank": 8, "alpha": 16},
        "sora": {"rank": 8, "alpha": 16, "sparsity": 0.1},
        "eva": {"rank": 8, "alpha": 16, "rho": 2, "tau": 0.99, "whiten": False},
        "gora": {
            "rank": 8,
            "alpha": 16,
            "min_share": 0.5,
            "max_share": 4,
            "gamma": 0.05,
            "batches": 8,
        },
        "para": {"rank": 16, "keep": 0.25, "alpha": 16},
    }
    papers["joint"] = {
        **papers["sensitivity"],
        "supplementary_rank": 1,
        "partition": {"rule": "hits", "threshold": 0.5},
        "supplementary_scale": "dominant",
        "retention": 0.5,
        "top_percent": 5,
        "max_lr_scale": 4,
    }
    expected = {"method": method, "seed": 0, "learning_rate": 2e-4, **papers[method]}
    assert parse_choice({"method": method}).as_dict() == expected


@pytest.mark.parametrize("method", METHODS)
def test_a_profile_of_another_base_is_refused(method: str) -> None:
    profile = drawn_profile([TargetModule("layers.0.query", (12, 9))])
    with pytest.raises(ProfileError, match=r"layers\.0\.query: profiled as \[12, 9\]"):
        make_plan(parse_choice({"method": method}), SMALL[:1], profile, SIZE)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in WHOLE_BASE])
def test_no_targets_is_a_plan_of_nothing(method: str) -> None:
    plan = make_plan(parse_choice({"method": method}), (), drawn_profile(()))
    assert plan.trainable_params == 0
    assert count_range(parse_choice({"method": method}), ()) == (0, 0)
