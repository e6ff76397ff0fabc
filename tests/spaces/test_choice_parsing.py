"""Choices as users write them, and what they are told when they slip."""

from __future__ import annotations

import pytest
import yaml

from spaces.errors import ChoiceError, RanksweepError, UsageError
from spaces.methods.registry import parse_choice


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{method: lora, rnk: 8}", "rnk: unknown key; did you mean 'rank'?"),
        ("{method: lora, supplementary_rank: 1}", "supplementary_rank: unknown key; "),
        ("{method: lora, zzz: 1}", "zzz: unknown key; use one of method, seed, learning_rate"),
        (
            "{method: pilora, partition: {rul: top}}",
            "partition.rul: unknown key; did you mean 'rule'?",
        ),
        (
            "{method: pilora, partition: {rule: hit}}",
            "partition.rule: 'hit' is unknown; did you mean 'hits'?",
        ),
        ("{method: pilora, partition: hits}", "partition: 'hits' is refused; "),
        ("{method: pilora, partition: {threshold: 2}}", "partition.threshold: 2 is refused; "),
        ("{method: taso, scope: layer}", "scope: 'layer' is unknown; use one of module, model"),
        ("{method: taso, rounds: 0}", "rounds: 0 is refused; it should be greater than"),
        ("{method: taso, top_percent: 101}", "top_percent: 101 is refused; "),
        ("{method: taso, lr_scaling: maybe}", "lr_scaling: 'maybe' is refused; "),
        ("{method: lora, rank: 0}", "rank: 0 is refused; "),
        ("{method: lora, rank: 2.5}", "rank: 2.5 is refused; "),
        ("{method: lora, rank: true}", "rank: True is refused; it should be an integer"),
        ("{method: lora, rank: eight}", "rank: 'eight' is refused; "),
        ("{method: lora, rank: null}", "rank: None is refused; "),
        ("{method: lora, rank: [8]}", "rank: [8] is refused; "),
        ("{method: lora, alpha: 0}", "alpha: 0 is refused; "),
        ("{method: lora, alpha: .inf}", "alpha: inf is refused; "),
        ("{method: lora, learning_rate: .nan}", "learning_rate: nan is refused; "),
        ("{method: lora, learning_rate: -1.0e-4}", "learning_rate: -0.0001 is refused; "),
        ("{method: lora, seed: -1}", "seed: -1 is refused; "),
        ("{method: sensitivity, top_fraction: 1.2}", "top_fraction: 1.2 is refused; "),
        ("{method: sensitivity, energy: -0.1}", "energy: -0.1 is refused; "),
        ("{method: sensitivity, min_rank: -1}", "min_rank: -1 is refused; "),
        ("{method: joint, retention: 0}", "retention: 0 is refused; "),
        ("{method: sensitivity, mean_rank: 0}", "mean_rank: 0 is refused; "),
        ("{method: sensitivity, mean_rank: 0.5}", "mean_rank: 0.5 is refused; "),
        ("{method: ia3, rank: 8}", "rank: unknown key; use one of method, seed, learning_rate"),
        ("{method: adalora, rank: 16}", "initial_rank: 12 is below rank 16; use at least 16"),
        (
            "{method: adalora, initial_share: 0.8, final_share: 0.4}",
            "final_share: 0.4 is more than initial_share 0.8 leaves; ",
        ),
        ("{method: adalora, interval: 0}", "interval: 0 is refused; "),
        ("{method: adalora, orthogonal_weight: -1}", "orthogonal_weight: -1 is refused; "),
        ("{method: bottleneck, size: 0}", "size: 0 is refused; "),
        ("{method: bottleneck, activation: silu}", "activation: 'silu' is unknown; "),
        ("{method: lora_dash, directions: 0}", "directions: 0 is refused; "),
        ("{method: lora_dash, launch_share: 1.5}", "launch_share: 1.5 is refused; "),
        ("{method: sora, sparsity: -0.1}", "sparsity: -0.1 is refused; "),
        ("{method: vera, initial: 0}", "initial: 0 is refused; "),
        ("{method: pissa, alpha: 16}", "alpha: unknown key; "),
        ("{method: loraxs}", "method: 'loraxs' is no method; did you mean 'lora_xs'?"),
        ("{rank: 8}", "method: missing; use one of lora, pilora, taso, sensitivity, joint"),
        ("{method: pi-lora}", "method: 'pi-lora' is no method; did you mean 'pilora'?"),
        ("{method: [lora]}", "method: \"['lora']\" is no method; use one of lora"),
        ("{method: null}", "method: 'None' is no method; use one of lora"),
        ("{method: lora, 3: 4}", "3: a key that is not text; "),
        ("lora", "choice: 'lora' is not a mapping; "),
        ("null", "choice: 'None' is not a mapping; "),
    ],
)
def test_a_slip_is_named_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ChoiceError) as caught:
        parse_choice(yaml.safe_load(text))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_key_path_starts_where_the_caller_says() -> None:
    with pytest.raises(ChoiceError, match=r"^best\.choice\.rank: 0 is refused"):
        parse_choice({"method": "lora", "rank": 0}, "best.choice")
    with pytest.raises(ChoiceError, match=r"^best\.choice\.supplementary_rank: 9 is above"):
        parse_choice({"method": "pilora", "supplementary_rank": 9}, "best.choice")


def test_a_long_value_is_cut_short() -> None:
    with pytest.raises(ChoiceError) as caught:
        parse_choice({"method": "lora", "rank": "8" * 5000 + "\n"})
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("written", "remedy"),
    [
        ("rank: 8.0", "write 8"),
        ("rank: '8'", "write 8, without quotes or separators"),
        ("rank: '1,024'", "write 1024, without quotes or separators"),
        ("rank: [8, 16]", "write one value"),
        ("alpha: '2.5'", "write it without quotes"),
        ("alpha: yes", "yes, no, on and off are read as true and false"),
        ("lr_scaling: 1", "write true or false"),
    ],
)
def test_a_value_of_another_type_is_told_how_it_is_written(written: str, remedy: str) -> None:
    key, _, value = written.partition(": ")
    method = "taso" if key == "lr_scaling" else "lora"
    with pytest.raises(ChoiceError) as caught:
        parse_choice({"method": method, key: yaml.safe_load(value)})
    assert str(caught.value).startswith(f"{key}: ")
    assert str(caught.value).endswith(remedy)


@pytest.mark.parametrize("whole", [8, 8.0])
def test_a_whole_number_is_a_number(whole: float) -> None:
    alpha = parse_choice({"method": "lora", "alpha": whole}).as_dict()["alpha"]
    assert alpha == 8.0
    assert isinstance(alpha, float)


def test_a_choice_cannot_be_changed() -> None:
    choice = parse_choice({"method": "pilora"})
    with pytest.raises(ValueError, match="frozen"):
        choice.seed = 3  # type: ignore[misc]
    assert choice == parse_choice({"method": "pilora", "partition": {}})
    assert hash(choice) == hash(parse_choice({"method": "pilora", "alpha": 16}))


def test_what_is_wrong_with_the_input_is_a_usage_error() -> None:
    assert issubclass(ChoiceError, UsageError)
    assert (RanksweepError.exit_code, UsageError.exit_code) == (1, 2)
