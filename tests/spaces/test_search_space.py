"""The search space: its domains, its conditions, and its starting points."""

from __future__ import annotations

from math import sqrt
from typing import Any

import optuna
import pytest
import yaml

from spaces.choice import Choice
from spaces.domain import Fixed, Range
from spaces.errors import ChoiceError, ConfigError, UsageError
from spaces.methods.registry import METHODS, count_range, make_plan, parse_choice
from spaces.search_space import SearchSpace
from spaces.target import TargetModule
from tests.spaces.example_profiles import GRID, SIZE, drawn_profile

optuna.logging.set_verbosity(optuna.logging.WARNING)

FRESH = (
    TargetModule("query", (32, 32)),
    TargetModule("intermediate", (64, 32)),
    TargetModule("output.dense", (32, 64)),
)

SEARCHED = ("lora", "pilora", "taso", "sensitivity", "joint")
"""The methods that a sweep searches where it names none."""
BASELINES = tuple(name for name in METHODS if name not in SEARCHED)

EXAMPLE = """
learning_rate: {low: 5.0e-5, high: 2.0e-3, log: true}
methods:
  pilora:
    rank: 8
    supplementary_rank: [0, 1, 2, 4]
    partition: {rule: cumulative, threshold: {low: 0.3, high: 0.9}}
  taso: {retention: {low: 0.02, high: 0.4, log: true}, top_percent: [2, 5, 10]}
  sensitivity: {mean_rank: [2, 4, 8]}
  joint: {}
"""


def space(text: str) -> SearchSpace:
    return SearchSpace.parse(yaml.safe_load(text))


def drawn(of: SearchSpace, count: int = 150) -> list[tuple[Choice, dict[str, Any]]]:
    """Choices of random trials, with the parameters that Optuna saw."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = []
    for _ in range(count):
        trial = study.ask()
        found.append((of.suggest(trial), dict(trial.params)))
    return found


def test_the_example_gives_what_it_says() -> None:
    parsed = space(EXAMPLE)
    assert parsed.methods == SEARCHED
    seen: dict[str, set[Any]] = {}
    for choice, params in drawn(parsed):
        values = choice.as_dict()
        assert params["method"] == choice.method
        assert 5e-5 <= choice.learning_rate <= 2e-3
        assert params[f"{choice.method}.learning_rate"] == choice.learning_rate
        seen.setdefault(choice.method, set()).add(
            values.get("supplementary_rank", values.get("mean_rank"))
            if choice.method != "taso"
            else values["top_percent"]
        )
        if choice.method == "pilora":
            assert values["rank"] == 8
            assert "pilora.rank" not in params
            assert values["partition"]["rule"] == "cumulative"
            assert 0.3 <= params["pilora.partition.threshold"] <= 0.9
        if choice.method == "taso":
            assert 0.02 <= values["retention"] <= 0.4
    assert seen["pilora"] == {0, 1, 2, 4}
    assert seen["taso"] == {2, 5, 10}
    assert seen["sensitivity"] == {2, 4, 8}
    assert set(seen) == set(SEARCHED)


@pytest.mark.parametrize("text", ["null", "{}", "methods: null", "learning_rate: null"])
def test_nothing_written_is_every_method_but_the_baselines(text: str) -> None:
    assert space(text) == SearchSpace.parse(None)
    assert SearchSpace.parse(None).methods == SEARCHED
    assert [name for name, method in METHODS.items() if not method.baseline] == list(SEARCHED)


def test_a_sweep_may_name_any_method() -> None:
    every = space(f"methods: [{', '.join(METHODS)}]")
    assert every.methods == tuple(METHODS)
    assert space("methods: {vera: {}, full: null}").methods == ("lora", "vera", "full")


@pytest.mark.parametrize(
    ("text", "methods"),
    [
        ("methods: [taso]", ("lora", "taso")),
        ("methods: [taso, lora]", ("taso", "lora")),
        ("methods: {joint: null}", ("lora", "joint")),
        ("methods: []", ("lora",)),
    ],
)
def test_lora_is_always_searched(text: str, methods: tuple[str, ...]) -> None:
    assert space(text).methods == methods


def test_a_list_takes_the_default_space_and_a_key_replaces_only_its_own() -> None:
    listed, written = space("methods: [taso]"), space("methods: {taso: {rounds: 1}}")
    assert written.domains["taso"] != listed.domains["taso"]
    assert {k: v for k, v in written.domains["taso"].items() if k != "rounds"} == {
        k: v for k, v in listed.domains["taso"].items() if k != "rounds"
    }


def test_loras_own_space_goes_down_to_rank_one() -> None:
    ranks = {choice.as_dict()["rank"] for choice, _ in drawn(space("methods: [lora]"))}
    assert ranks == {1, 2, 4, 8, 16, 32}


@pytest.mark.parametrize("name", METHODS)
def test_every_choice_of_the_default_space_of_a_fresh_small_base_is_a_plan(name: str) -> None:
    fitted = space(f"methods: [{name}]").fitted(FRESH, GRID)
    profile = drawn_profile(FRESH)
    for choice, params in drawn(fitted):
        plan = make_plan(choice, FRESH, profile, SIZE)
        least, most = count_range(choice, FRESH, None, SIZE)
        assert least <= plan.trainable_params <= most
        assert fitted.suggest(optuna.trial.FixedTrial(params)) == choice


@pytest.mark.parametrize("name", METHODS)
def test_a_choice_becomes_parameters_that_become_the_choice(name: str) -> None:
    of = space(EXAMPLE + "".join(f"  {baseline}: {{}}\n" for baseline in BASELINES))
    choices = [choice for choice, _ in drawn(of) if choice.method == name]
    study = optuna.create_study()
    for choice in [of.default_choice(name), *choices]:
        params = of.params_of(choice)
        assert params["method"] == name
        study.enqueue_trial(params)
        trial = study.ask()
        assert of.suggest(trial) == choice
        assert trial.params == params


def test_a_trial_enqueued_with_its_method_keeps_it() -> None:
    of, study = space(f"methods: [{', '.join(METHODS)}]"), optuna.create_study()
    for name in of.methods:
        study.enqueue_trial({"method": name})
        assert of.suggest(study.ask()).method == name


def test_what_a_choice_does_not_read_is_not_suggested() -> None:
    of = space(
        """
        methods:
          pilora: {partition: {rule: [all, top]}}
          sensitivity: {allocation: [uniform, scaled], weighting: [spread, equal]}
          joint: {retention: [1, 0.5]}
        """
    )
    kinds = set()
    for choice, params in drawn(of, 300):
        values, names = choice.as_dict(), {name.partition(".")[2] for name in params}
        if choice.method == "pilora":
            kinds.add(values["partition"]["rule"])
            assert ("partition.threshold" in names) == (values["partition"]["rule"] == "top")
        if choice.method == "sensitivity":
            kinds.add(values["allocation"])
            scaled = values["allocation"] == "scaled"
            assert {"signal", "weighting"} <= names if scaled else not {"signal"} & names
            assert ("energy" in names) == (scaled and values["signal"] != "global")
        if choice.method == "joint":
            kinds.add(values["retention"])
            assert ("top_percent" in names) == (values["retention"] < 1)
    assert kinds == {"all", "top", "uniform", "scaled", 1, 0.5}


def test_what_another_key_leaves_without_effect_is_not_asked() -> None:
    of = space(
        """
        methods:
          pilora: {supplementary_rank: [0, 1], supplementary_scale: [dominant, own],
            partition: {rule: [all, hits]}}
          taso: {lr_scaling: [true, false], max_lr_scale: {low: 1, high: 8}}
          sensitivity: {allocation: [uniform, progressive], budget: [ranks, parameters],
            min_rank: [0, 1]}
          joint: {retention: [1, 0.5], max_lr_scale: [2, 4], supplementary_scale: [dominant, own]}
        """
    ).fitted(FRESH, GRID)
    profile = drawn_profile(FRESH)
    asked = set()
    for choice, params in drawn(of, 400):
        values = choice.as_dict()
        names = {name.partition(".")[2] for name in params}
        if choice.method == "pilora":
            read = values["supplementary_rank"] > 0 and values["partition"]["rule"] == "hits"
            assert ("supplementary_scale" in names) == read
        if choice.method == "taso":
            assert ("max_lr_scale" in names) == values["lr_scaling"]
        if choice.method == "sensitivity":
            assert ("budget" in names) == (values["allocation"] != "uniform")
        if choice.method == "joint":
            assert ("max_lr_scale" in names) == (values["retention"] < 1)
        asked |= names
        assert make_plan(choice, FRESH, profile).trainable_params > 0
        assert of.suggest(optuna.trial.FixedTrial(of.params_of(choice))) == choice
        assert of.params_of(choice).keys() == params.keys()
    assert {"supplementary_scale", "max_lr_scale", "budget"} <= asked


def test_keys_that_are_kept_stay_as_they_are_said_and_nothing_else_changes() -> None:
    of = space("methods: {taso: {retention: [0.1, 0.2]}, pilora: {}}")
    rates = Range(1e-4, 2e-4)
    kept = of.keeping(
        {"taso": {"alpha": Fixed(1.0), "max_lr_scale": Fixed(1e6), "learning_rate": rates}}
    )
    for choice, params in drawn(kept, 40):
        if choice.method == "taso":
            assert (choice.as_dict()["alpha"], choice.as_dict()["max_lr_scale"]) == (1, 1e6)
            assert 1e-4 <= choice.learning_rate <= 2e-4
            assert kept.params_of(choice) == params
    assert kept.fitted(FRESH, GRID).domains["taso"]["learning_rate"] == rates
    assert kept.domains["pilora"] == of.domains["pilora"]
    assert of.keeping({}) == of


def test_the_length_of_an_arm_is_the_mean_over_its_choices() -> None:
    of = space(
        "methods: {taso: {stage_steps: [split, full], rounds: {low: 1, high: 3}}, joint: {}}"
    )
    split, full = of.arms(["stage_steps"])[1:3]
    assert (split.name, full.name) == ("taso stage_steps=split", "taso stage_steps=full")
    assert of.mean_length(split) == 1
    assert of.mean_length(full) == pytest.approx(4, abs=0.4)
    assert [of.mean_length(arm) for arm in of.arms([]) if arm.method != "taso"] == [1, 1]


def test_contradictions_are_reconciled() -> None:
    of = space(
        """
        methods:
          pilora: {rank: [1, 8], supplementary_rank: [0, 4]}
          sensitivity: {mean_rank: [1, 4], min_rank: 1, allocation: [progressive, scaled]}
        """
    )
    ranks, floors = set(), set()
    for choice, _ in drawn(of, 300):
        values = choice.as_dict()
        if choice.method == "pilora":
            ranks.add((values["rank"], values["supplementary_rank"]))
        if choice.method == "sensitivity":
            floors.add((values["allocation"], values["mean_rank"], values["min_rank"]))
    assert ranks == {(1, 0), (1, 1), (8, 0), (8, 4)}
    assert floors == {
        ("progressive", 1, 0),
        ("progressive", 4, 1),
        ("scaled", 1, 1),
        ("scaled", 4, 1),
    }
    clamped = parse_choice({"method": "pilora", "rank": 1, "supplementary_rank": 1})
    assert of.params_of(clamped)["pilora.supplementary_rank"] == 4


@pytest.mark.parametrize(
    ("text", "rank"),
    [("rank: [4, 32]", 4), ("rank: 3", 3), ("rank: {low: 10, high: 20}", 10), ("alpha: 8", 8)],
)
def test_default_choice_moves_to_the_nearest_value(text: str, rank: int) -> None:
    assert space(f"methods: {{lora: {{{text}}}}}").default_choice("lora").as_dict()["rank"] == rank


@pytest.mark.parametrize(
    ("text", "middle"),
    [
        ("{low: 1.0e-4, high: 1.0e-2, log: true}", 1e-3),
        ("{low: 1.0e-4, high: 4.0e-4}", 2e-4),
        ("[1.0e-4, 3.0e-4, 1.0e-2]", 3e-4),
        ("3.0e-4", 3e-4),
    ],
)
def test_default_learning_rate_is_the_geometric_middle(text: str, middle: float) -> None:
    of = space(f"learning_rate: {text}")
    for name in of.methods:
        assert of.default_choice(name).learning_rate == pytest.approx(middle, rel=1e-12)


def test_a_method_may_have_its_own_learning_rate() -> None:
    of = space("{learning_rate: 1.0e-3, methods: {taso: {learning_rate: 5.0e-3}}}")
    assert of.default_choice("taso").learning_rate == 5e-3
    assert of.default_choice("lora").learning_rate == 1e-3


@pytest.mark.parametrize("name", ["full", "bitfit", "ia3", "vera", "lora_xs"])
def test_what_is_no_low_rank_update_has_a_range_of_learning_rates_of_its_own(name: str) -> None:
    of = space(f"{{learning_rate: 1.0e-3, methods: [{name}, dora]}}")
    own, shared = of.domains[name]["learning_rate"], of.domains["dora"]["learning_rate"]
    assert own != shared == of.domains["lora"]["learning_rate"]
    written = space(f"{{methods: {{{name}: {{learning_rate: 7.0e-3}}}}}}")
    assert written.default_choice(name).learning_rate == 7e-3


def test_learning_rates_of_full_fine_tuning_are_low() -> None:
    of = space("methods: [full]")
    rates = [choice.learning_rate for choice, _ in drawn(of) if choice.method == "full"]
    assert 1e-5 <= min(rates) < 1e-4 < max(rates) <= 5e-4
    assert of.default_choice("full").learning_rate == pytest.approx(sqrt(1e-5 * 5e-4))


def test_adaloras_initial_rank_is_raised_to_the_rank() -> None:
    of = space(
        "methods: {adalora: {rank: [2, 8], initial_rank: [4, 12], final_share: [0.3, 0.95]}}"
    )
    seen = set()
    for choice, params in drawn(of, 200):
        if choice.method == "adalora":
            values = choice.as_dict()
            seen.add((values["rank"], values["initial_rank"]))
            share = params["adalora.final_share"]
            # The schedule leaves 0.9 of the steps after the initial share of 0.1.
            assert values["final_share"] == pytest.approx(min(share, 0.9))
    assert seen == {(2, 4), (2, 12), (8, 8), (8, 12)}
    raised = parse_choice(
        {"method": "adalora", "rank": 8, "initial_rank": 8, "learning_rate": 3e-4}
    )
    assert of.params_of(raised)["adalora.initial_rank"] == 4


def test_what_a_search_leaves_out_still_fits_the_matrices() -> None:
    narrow = (TargetModule("m", (5, 40)),)
    fitted = space("methods: {lora_dash: {rank: 2}, adalora: {rank: 2}, vera: {}}").fitted(narrow)
    assert fitted.default_choice("lora_dash").as_dict()["directions"] == 5
    assert fitted.default_choice("adalora").as_dict()["initial_rank"] == 5
    assert fitted.default_choice("vera").as_dict()["rank"] == 256


def test_default_choices_of_the_default_space_are_the_papers() -> None:
    of = space(f"methods: [{', '.join(METHODS)}]")
    for name in METHODS:
        choice = of.default_choice(name)
        assert (
            choice.as_dict() | {"learning_rate": 2e-4} == parse_choice({"method": name}).as_dict()
        )


def test_lora_of_budget_is_the_nearest_count() -> None:
    of = SearchSpace.parse(None)
    per_rank = sum(sum(target.shape) for target in FRESH)
    for params, rank in [(0, 1), (3 * per_rank, 2), (3.1 * per_rank, 4), (10**9, 32)]:
        choice = of.lora_of_budget(int(params), FRESH)
        assert choice.as_dict()["rank"] == rank
        assert of.params_of(choice)["lora.rank"] == rank
        assert choice.learning_rate == of.default_choice("lora").learning_rate
    narrow = (TargetModule("m", (6, 100)),)
    assert of.lora_of_budget(10**9, narrow).as_dict()["rank"] == 4
    with pytest.raises(ChoiceError, match=r"space\.methods\.lora\.rank: every rank is above"):
        space("methods: {lora: {rank: 8}}").lora_of_budget(5, narrow)


@pytest.mark.parametrize("limit", [1, 3, 5, 9])
def test_fitted_leaves_out_ranks_that_no_plan_can_take(limit: int) -> None:
    targets = tuple(TargetModule(f"{i}.o_proj", (limit, 40)) for i in range(4))
    fitted = space(f"methods: [{', '.join(METHODS)}]").fitted(targets, (5,))
    profile = drawn_profile(targets)
    for choice, _ in drawn(fitted, 300):
        assert make_plan(choice, targets, profile, SIZE).targets == targets
    for name in METHODS:
        make_plan(fitted.default_choice(name), targets, profile, SIZE)
    assert {c.as_dict()["top_percent"] for c, _ in drawn(fitted) if c.method == "taso"} == {5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora: {rank: [8, 64]}", "space.methods.lora.rank: 64 is above 32"),
        ("pilora: {rank: {low: 1, high: 33}}", "space.methods.pilora.rank: 33 is above 32"),
        ("sensitivity: {mean_rank: 40}", "space.methods.sensitivity.mean_rank: 40 is above 32"),
        (
            "sensitivity: {mean_rank: 32, allocation: progressive}",
            "space.methods.sensitivity.mean_rank: 32 is above 31",
        ),
        (
            "sensitivity: {mean_rank: 33, budget: [ranks, parameters]}",
            "space.methods.sensitivity.mean_rank: 33 is above 32",
        ),
        ("joint: {min_rank: 40, mean_rank: 41}", "space.methods.joint.mean_rank: 41 is above 32"),
        ("adalora: {initial_rank: 40}", "space.methods.adalora.initial_rank: 40 is above 32"),
        ("lora_dash: {directions: [4, 33]}", "space.methods.lora_dash.directions: 33 is above 32"),
        ("taso: {top_percent: [5, 3]}", "space.methods.taso.top_percent: "),
        ("taso: {top_percent: {low: 1, high: 5}}", "space.methods.taso.top_percent: "),
    ],
)
def test_what_the_user_wrote_and_cannot_be_is_refused(text: str, message: str) -> None:
    of = space(f"methods: {{{text}}}")
    with pytest.raises(ChoiceError) as caught:
        of.fitted(FRESH, GRID)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "space: not a mapping"),
        ("lerning_rate: 1", "space.lerning_rate: unknown key; did you mean 'learning_rate'?"),
        ("learning_rate: 0", "space.learning_rate: 0 is refused"),
        ("learning_rate: {low: 1, high: .inf}", "space.learning_rate.high: inf is refused"),
        ("learning_rate: {low: 2, high: 1}", "space.learning_rate.low: 2.0 is above high 1.0"),
        ("learning_rate: {low: 1}", "space.learning_rate.high: missing"),
        ("learning_rate: {lo: 1, high: 2}", "space.learning_rate.lo: unknown key; did you mean"),
        ("learning_rate: {low: 1, high: 2, log: 1}", "space.learning_rate.log: 1 is refused"),
        (
            "learning_rate: {low: 1, high: 2, log: true, step: 1}",
            "space.learning_rate.step: does not go with log",
        ),
        ("methods: lora", "space.methods: neither a list of names nor a mapping"),
        ("methods: [lora, lora]", "space.methods: lists lora twice"),
        ("methods: [tasso]", "space.methods: 'tasso' is no method; did you mean 'taso'?"),
        ("methods: {tasso: {}}", "space.methods: 'tasso' is no method; did you mean 'taso'?"),
        ("methods: [[lora]]", "space.methods: "),
        ("methods: {taso: 3}", "space.methods.taso: not a mapping"),
        (
            "methods: {taso: {retenton: 0.1}}",
            "space.methods.taso.retenton: unknown key; did you mean 'retention'?",
        ),
        ("methods: {taso: {retention: 0}}", "space.methods.taso.retention: 0 is refused"),
        ("methods: {taso: {retention: [0.1, 2]}}", "space.methods.taso.retention: 2 is refused"),
        (
            "methods: {taso: {retention: {low: 0, high: 1}}}",
            "space.methods.taso.retention.low: 0 is refused",
        ),
        ("methods: {taso: {retention: []}}", "space.methods.taso.retention: an empty list"),
        (
            "methods: {taso: {retention: [0.1, 0.1]}}",
            "space.methods.taso.retention: lists a value twice",
        ),
        (
            "methods: {taso: {scope: {low: 1, high: 2}}}",
            "space.methods.taso.scope: a range is for numbers",
        ),
        ("methods: {taso: {scope: [module, modl]}}", "space.methods.taso.scope: 'modl' is unknown"),
        ("methods: {taso: {method: lora}}", "space.methods.taso.method: unknown key"),
        ("methods: {lora: {rank: {low: 1.5, high: 4}}}", "space.methods.lora.rank.low: 1.5 is"),
        (
            "methods: {lora: {rank: {low: 1, high: 4, step: 0.5}}}",
            "space.methods.lora.rank.step: '0.5' is refused; write a positive whole number",
        ),
        (
            "methods: {joint: {min_rank: {low: 0, high: 4, log: true}}}",
            "space.methods.joint.min_rank.low: 0 has no logarithm",
        ),
        ("methods: {pilora: {partition: hits}}", "space.methods.pilora.partition: 'hits' is"),
        (
            "methods: {pilora: {partition: {rule: tops}}}",
            "space.methods.pilora.partition.rule: 'tops' is unknown; did you mean 'top'?",
        ),
        (
            "methods: {pilora: {partition: {thresh: 1}}}",
            "space.methods.pilora.partition.thresh: unknown key; did you mean 'threshold'?",
        ),
        (
            "methods: {pilora: {rank: 4, supplementary_rank: 8}}",
            "space.methods.pilora.supplementary_rank: 8 is above 4",
        ),
        (
            "methods: {sensitivity: {mean_rank: 2, min_rank: 3}}",
            "space.methods.sensitivity.min_rank: 3 is above 2",
        ),
        (
            "methods: {pilora: {rank: [2, 4], supplementary_rank: [6, 8]}}",
            "space.methods.pilora.supplementary_rank: 6 is above 4, the most that the other keys",
        ),
        (
            "methods: {adalora: {rank: [8, 16], initial_rank: [4, 6]}}",
            "space.methods.adalora.initial_rank: 6 is below 8, the least that the other keys",
        ),
        (
            "methods: {adalora: {initial_share: 0.8, final_share: 0.3}}",
            "space.methods.adalora.final_share: 0.3 is above 0.2, the most that the other keys",
        ),
        ("methods: {ia3: {rank: 8}}", "space.methods.ia3.rank: unknown key; use one of"),
        ("methods: {bottleneck: {activation: [gelu, silu]}}", "space.methods.bottleneck.activatio"),
    ],
)
def test_a_slip_in_the_space_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        space(text)
    assert isinstance(caught.value, ChoiceError | ConfigError)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_ranges_with_steps_hold_their_ends() -> None:
    of = space(
        "methods: {lora: {rank: {low: 2, high: 11, step: 4}}, "
        "taso: {retention: {low: 0.1, high: 0.4, step: 0.1}}}"
    )
    ranks, retentions = set(), set()
    for choice, _ in drawn(of):
        values = choice.as_dict()
        if choice.method == "lora":
            ranks.add(values["rank"])
        else:
            retentions.add(round(values["retention"], 9))
    assert ranks == {2, 6, 10}
    assert retentions == {0.1, 0.2, 0.3, 0.4}
    assert of.default_choice("lora").as_dict()["rank"] == 10
    assert of.default_choice("taso").as_dict()["retention"] == 0.1


def test_a_choice_outside_the_space_has_no_parameters() -> None:
    of = space("methods: {lora: {rank: [1, 2]}}")
    with pytest.raises(ChoiceError, match=r"lora\.rank: 8 is not in the space"):
        of.params_of(parse_choice({"method": "lora", "learning_rate": 1e-3}))
    with pytest.raises(ChoiceError, match="method: 'taso' is not in the space"):
        of.params_of(parse_choice({"method": "taso"}))
    with pytest.raises(ChoiceError, match="method: 'taso' is not in the space"):
        of.default_choice("taso")


# -- a grid ----------------------------------------------------------------------------------------


def test_a_grid_has_every_choice_that_can_be_suggested_and_each_once() -> None:
    of = space(
        """
        learning_rate: [1.0e-3, 2.0e-3]
        methods:
          lora: {rank: {low: 2, high: 8, step: 3}}
          pilora:
            rank: [2, 8]
            supplementary_rank: [0, 1, 4]
            partition: {rule: [hits, all], threshold: {low: 0.3, high: 0.7, step: 0.2}}
        """
    )
    grid = of.grid()
    assert len(set(grid)) == len(grid)
    assert set(grid) == {choice for choice, _ in drawn(of.as_grid(), 1500)}
    assert {choice.as_dict()["alpha"] for choice in grid} == {16.0}


def test_the_arms_of_a_grid_take_turns_and_try_the_same_learning_rates() -> None:
    of = space(
        """
        learning_rate: [1.0e-3, 2.0e-3, 5.0e-3]
        methods:
          lora: {rank: 8}
          taso: {retention: [0.1, 0.2], top_percent: 5, rounds: 1}
        """
    )
    arms = [of.arm_of(choice, ["retention"]) for choice in of.grid(["retention"])]
    assert arms == ["lora", "taso retention=0.1", "taso retention=0.2"] * 3
    rates = [choice.learning_rate for choice in of.grid(["retention"])]
    assert rates == [1e-3] * 3 + [2e-3] * 3 + [5e-3] * 3
