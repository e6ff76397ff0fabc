"""alpha as a multiple of the rank: what a space says of it, and the choices that come of it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from optuna.trial import FixedTrial

from spaces.domain import Evenly, Fixed, Range
from spaces.errors import ChoiceError
from spaces.methods.registry import METHODS, parse_choice
from spaces.search_space import SearchSpace

RANKS = {"sensitivity": "mean_rank", "joint": "mean_rank", "adalora": "initial_rank"}
"""The rank that a method divides alpha by, where it is not `rank`."""
SCALED = [name for name, method in METHODS.items() if "alpha" in method.choice_class.model_fields]


def space(text: str) -> SearchSpace:
    return SearchSpace.parse(yaml.safe_load(text))


def rank_of(values: dict[str, Any]) -> int:
    return int(values[RANKS.get(values["method"], "rank")])


@pytest.mark.parametrize("name", METHODS)
def test_what_has_an_alpha_searches_it_and_the_papers_is_well_inside(name: str) -> None:
    domains = space(f"methods: [{name}]").domains[name]
    assert ("alpha_over_rank" in domains) == (name in SCALED)
    assert "alpha" not in domains
    if name in SCALED:
        paper = parse_choice({"method": name}).as_dict()
        domain = domains["alpha_over_rank"]
        assert isinstance(domain, Range)
        assert domain.log
        assert domain.low * 1.5 < paper["alpha"] / rank_of(paper) < domain.high / 1.5


@pytest.mark.parametrize("name", SCALED)
def test_alpha_is_what_is_drawn_times_the_rank_that_comes_out(name: str) -> None:
    of, ratios = space(f"methods: [{name}]"), set()
    drawn = Evenly(0)
    for _ in range(60):
        asked: dict[str, Any] = {"method": name}
        for key, domain in of.domains[name].items():
            if isinstance(domain, Range):
                asked[f"{name}.{key}"] = drawn.suggest_float(key, domain.low, domain.high)
            elif not isinstance(domain, Fixed):
                asked[f"{name}.{key}"] = drawn.suggest_categorical(key, domain.values)
        choice = of.suggest(FixedTrial(asked))
        values = choice.as_dict()
        ratio = asked[f"{name}.alpha_over_rank"]
        assert values["alpha"] == pytest.approx(ratio * rank_of(values), rel=1e-11)
        assert of.suggest(FixedTrial(of.params_of(choice))) == choice
        ratios.add(ratio)
    assert len(ratios) == 60


@pytest.mark.parametrize(
    ("rank", "alpha"), [(3, 16.0), (6, 6.4), (7, 10.0), (12, 16.0), (49, 33.3)]
)
def test_the_alpha_that_a_choice_was_written_with_comes_back(rank: int, alpha: float) -> None:
    of = space(f"methods: {{lora: {{rank: {rank}}}}}")
    choice = parse_choice({"method": "lora", "rank": rank, "alpha": alpha, "learning_rate": 1e-3})
    assert of.suggest(FixedTrial(of.params_of(choice))) == choice


def test_an_alpha_that_is_written_holds_as_it_is_and_is_searched_as_it_is() -> None:
    of = space(
        "methods: {lora: {alpha: 32}, pilora: {alpha: [8, 16]}, taso: {alpha: {low: 1, high: 4}}}"
    )
    for name in of.methods:
        assert "alpha_over_rank" not in of.domains[name]
    assert of.default_choice("lora", {"rank": 2}).as_dict()["alpha"] == 32
    for alpha in (8.0, 16.0):
        choice = parse_choice({"method": "pilora", "alpha": alpha, "learning_rate": 1e-3})
        assert of.params_of(choice)["pilora.alpha"] == alpha
    assert of.default_choice("taso").as_dict()["alpha"] == 4


def test_one_value_or_some_may_be_written_and_divide_the_arms() -> None:
    of = space(
        "methods: {lora: {rank: [3, 8], alpha_over_rank: 1.3}, taso: {alpha_over_rank: [4, 16]}}"
    )
    lora = of.default_choice("lora")
    assert lora.as_dict()["alpha"] == pytest.approx(10.4)
    assert not any("alpha" in name for name in of.params_of(lora))
    arms = of.arms(["alpha_over_rank"])
    assert [arm.name for arm in arms] == [
        "lora",
        "taso alpha_over_rank=4.0",
        "taso alpha_over_rank=16.0",
    ]
    choices = [of.default_choice(arm.method, arm.values) for arm in arms]
    assert [choice.as_dict()["alpha"] for choice in choices[1:]] == [4, 16]
    assert [of.arm_of(choice, ["alpha_over_rank"]) for choice in choices] == [a.name for a in arms]


def test_another_rank_leaves_the_scale_as_it_is() -> None:
    of = space("methods: [lora, sensitivity]")
    for rank in (1, 4, 32):
        assert of.default_choice("lora", {"rank": rank}).as_dict()["alpha"] == 2 * rank
        assert of.lora_of_budget(rank * 40, ()).as_dict()["alpha"] % 2 == 0
    assert of.default_choice("sensitivity", {"mean_rank": 2}).as_dict()["alpha"] == 8
    # With an alpha of its own, it is that alpha over that rank.
    assert of.default_choice("lora", {"rank": 4, "alpha": 4.0}).as_dict()["alpha"] == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "lora: {alpha: 16, alpha_over_rank: 2}",
            "space.methods.lora.alpha_over_rank: stands for alpha, which is written too; leave one",
        ),
        ("taso: {alpha_over_rank: 0}", "space.methods.taso.alpha_over_rank: 0 is refused"),
        ("pissa: {alpha_over_rank: 2}", "space.methods.pissa.alpha_over_rank: unknown key"),
        (
            "lora: {alpha_over_rnk: 2}",
            "space.methods.lora.alpha_over_rnk: unknown key; did you mean",
        ),
        ("lora: {alpha_over_rank: {low: 1}}", "space.methods.lora.alpha_over_rank.high: missing"),
    ],
)
def test_a_slip_is_named(text: str, message: str) -> None:
    with pytest.raises(ChoiceError) as caught:
        space(f"methods: {{{text}}}")
    assert str(caught.value).startswith(message)


def test_a_choice_does_not_know_the_key() -> None:
    with pytest.raises(ChoiceError, match="alpha_over_rank: unknown key; did you mean 'alpha'"):
        parse_choice({"method": "lora", "alpha_over_rank": 2})


def test_a_choice_outside_is_told_by_its_alpha() -> None:
    of = space("methods: {lora: {rank: [4, 8]}}")
    choice = parse_choice({"method": "lora", "rank": 4, "alpha": 100, "learning_rate": 1e-3})
    told = (
        "lora.alpha: 100 is 25 times rank 4, and alpha_over_rank 25 is not in the space; "
        "widen space.methods.lora.alpha_over_rank"
    )
    with pytest.raises(ChoiceError) as caught:
        of.params_of(choice)
    assert str(caught.value) == told


def test_a_grid_has_the_papers_alpha_unless_one_is_written() -> None:
    of = space(
        "{learning_rate: 1.0e-3, methods: {lora: {rank: [4, 8]}, "
        "pilora: {rank: [4, 8], supplementary_rank: 0, alpha_over_rank: [1, 2], "
        "partition: {rule: all}}}}"
    )
    found = [
        (choice.method, choice.as_dict()["rank"], choice.as_dict()["alpha"]) for choice in of.grid()
    ]
    assert sorted(found) == [
        ("lora", 4, 16), ("lora", 8, 16),
        ("pilora", 4, 4), ("pilora", 4, 8), ("pilora", 8, 8), ("pilora", 8, 16),
    ]  # fmt: skip
    with pytest.raises(ChoiceError, match=r"space\.methods\.lora\.alpha_over_rank: is a range"):
        space(
            "{learning_rate: 1.0e-3, "
            "methods: {lora: {rank: 8, alpha_over_rank: {low: 1, high: 2}}}}"
        ).grid()
