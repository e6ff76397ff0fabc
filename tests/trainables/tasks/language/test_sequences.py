"""Passes of a language model's rows: the same loss and gradient as each row alone, in full."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from trainables.tasks.language.sequences import Sequences
from trainables.tasks.split import Pass

VOCABULARY, PAD = 67, 3
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
COMMON = {**SHAPE, "vocab_size": VOCABULARY, "intermediate_size": 24, "initializer_range": 0.3}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**COMMON, num_key_value_heads=1),
    "qwen2": lambda: transformers.Qwen2Config(**COMMON, num_key_value_heads=1),
    "mistral with a window": lambda: transformers.MistralConfig(
        **COMMON, num_key_value_heads=1, sliding_window=4
    ),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=VOCABULARY, initializer_range=0.3
    ),
}

ROUNDING = {"eager": 1e-7, "sdpa": 1e-12}  # eager attention's softmax is float32 in any dtype

Examples = list[tuple[list[int], list[bool]]]


def drawn_examples(lengths: Sequence[int], seed: int = 0) -> Examples:
    """Random rows; the loss of each begins at a place of its own, and one row bears none."""
    rng = np.random.default_rng(seed)
    made: Examples = []
    for i, length in enumerate(lengths):
        bears = rng.random(length) < 0.5
        bears[0] = False
        if i == 1:
            bears[:] = False
        made.append((rng.integers(0, VOCABULARY, length).tolist(), bears.tolist()))
    return made


EXAMPLES = drawn_examples([7, 5, 12, 2, 1, 9, 7])
ROWS = np.array([5, 0, 3, 1, 6, 4, 2])


def tiny(name: str, attention: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(
            CONFIGS[name](), attn_implementation=attention, dtype=torch.float64
        )
    return model.eval()


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def by_passes(model: Any, passes: Sequence[Pass]) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for passed in passes:
        given = dict(passed)
        labels, places = given.pop("labels"), given.pop("places")
        given.pop("is_token", None)
        logits = model(**given, use_cache=False).logits
        assert logits.shape[1] == len(given["logits_to_keep"])
        total = total + cross_entropy(logits.flatten(0, 1)[places], labels, reduction="sum")
    return total


def row_by_row(model: Any, examples: Examples) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for ids, bears in examples:
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        for place in range(1, len(ids)):
            if bears[place]:
                total = total - logits[place - 1].log_softmax(0)[ids[place]]
    return total


def in_one_batch(data: Sequences, rows: NDArray[np.int64]) -> list[Pass]:
    return [data.batch(rows)]


def in_groups(data: Sequences, rows: NDArray[np.int64]) -> list[Pass]:
    return [data.batch(rows[:3]), data.batch(rows[3:])]


def in_one_pack(data: Sequences, rows: NDArray[np.int64]) -> list[Pass]:
    return [data.packed([rows])]


def in_two_packs(data: Sequences, rows: NDArray[np.int64]) -> list[Pass]:
    return [data.packed([rows[:2]]), data.packed([rows[2:]])]


def in_lines(data: Sequences, rows: NDArray[np.int64]) -> list[Pass]:
    return [data.packed([rows[:1], rows[1:2], rows[2:]])]


def one_by_one(data: Sequences, rows: NDArray[np.int64]) -> list[Pass]:
    return [
        data.packed([rows[i : i + 1]]) if i % 2 else data.batch(rows[i : i + 1])
        for i in range(len(rows))
    ]


def as_chosen(packs: bool, on_cpu: bool) -> Callable[..., list[Pass]]:
    return lambda data, rows: replace(data, packs=packs).passes(rows, on_cpu)


WAYS: dict[str, Callable[..., list[Pass]]] = {
    "one batch": in_one_batch,
    "groups": in_groups,
    "one pack": in_one_pack,
    "two packs": in_two_packs,
    "lines of packs": in_lines,
    "one by one": one_by_one,
    "as chosen, padded": as_chosen(packs=False, on_cpu=True),
    "as chosen, packed": as_chosen(packs=True, on_cpu=True),
    "as chosen on a GPU, padded": as_chosen(packs=False, on_cpu=False),
    "as chosen on a GPU, packed": as_chosen(packs=True, on_cpu=False),
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradient_are_those_of_each_row_alone(name: str, attention: str) -> None:
    if (name, attention) == ("mistral with a window", "eager"):
        pytest.skip(
            "eager attention in float64 makes NaN of padding with padding alone in its window"
        )
    model, data = tiny(name, attention), Sequences.of(EXAMPLES, PAD)
    wanted = row_by_row(model, [EXAMPLES[i] for i in ROWS])
    wanted_gradients = gradients(model, wanted)
    rounding = ROUNDING[attention]
    for way, passes_of in WAYS.items():
        loss = by_passes(model, passes_of(data, ROWS))
        assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=rounding), way
        found = gradients(model, loss)
        assert found.keys() == wanted_gradients.keys()
        for parameter, gradient in found.items():
            difference = (gradient - wanted_gradients[parameter]).abs().max()
            assert difference <= 100 * rounding, f"{way}: {parameter}"


@pytest.mark.parametrize("way", WAYS)
def test_a_step_without_any_target_has_loss_and_gradient_zero(way: str) -> None:
    model, data = tiny("llama", "sdpa"), Sequences.of(EXAMPLES, PAD)
    loss = by_passes(model, WAYS[way](data, np.array([1, 4, 1, 1])))
    assert float(loss.detach()) == 0.0
    assert all(not gradient.any() for gradient in gradients(model, loss).values())


def test_a_target_that_follows_another_row_in_a_pack_is_refused() -> None:
    with pytest.raises(ValueError, match="first token"):
        Sequences(
            np.arange(4, dtype=np.int32), np.array([0, 1, 1, 0], bool), np.array([0, 2, 4]), 0
        )


def test_what_stands_in_padding_changes_nothing() -> None:
    model, data = tiny("llama", "sdpa"), Sequences.of(EXAMPLES, PAD)
    passed = data.batch(ROWS)
    other = {**passed, "input_ids": passed["input_ids"].clone()}
    other["input_ids"][passed["attention_mask"] == 0] = 11
    torch.testing.assert_close(
        by_passes(model, [passed]), by_passes(model, [other]), rtol=0, atol=0
    )


def test_the_head_computes_only_columns_that_a_target_is_predicted_at() -> None:
    data = Sequences.of(
        [([1, 2, 3, 4, 5], [False] * 4 + [True]), ([6, 7, 8], [False, True, True])], PAD
    )
    padded, packed = data.batch(np.array([0, 1])), data.packed([np.array([0, 1])])
    assert padded["logits_to_keep"].tolist() == [0, 1, 3]
    assert padded["labels"].tolist() == [5, 7, 8]
    assert padded["places"].tolist() == [2, 3, 4]
    assert padded["input_ids"].tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, PAD, PAD]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert packed["logits_to_keep"].tolist() == [3, 5, 6]
    assert packed["labels"].tolist() == [5, 7, 8]
    assert packed["places"].tolist() == [0, 1, 2]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert "attention_mask" not in packed
    assert "attention_mask" not in data.batch(np.array([1, 1]))


def test_lines_of_packed_rows_are_filled_up_with_a_row_of_padding() -> None:
    data = Sequences.of([([n] * n, [False] * n) for n in (4, 5, 6)], PAD)
    packed = data.packed([np.array([0, 1]), np.array([2])])
    assert packed["input_ids"].tolist() == [[4] * 4 + [5] * 5, [6] * 6 + [PAD] * 3]
    assert packed["position_ids"].tolist() == [
        [0, 1, 2, 3, 0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4, 5, 0, 1, 2],
    ]
    assert packed["is_token"].tolist() == [[True] * 9, [True] * 6 + [False] * 3]
    assert "is_token" not in data.packed([np.array([0, 1])])


def test_what_fills_up_a_line_changes_nothing() -> None:
    model, data = tiny("llama", "sdpa"), Sequences.of(EXAMPLES, PAD)
    passed = data.packed([ROWS[:2], ROWS[2:]])
    other = {**passed, "input_ids": passed["input_ids"].masked_fill(~passed["is_token"], 11)}
    torch.testing.assert_close(
        by_passes(model, [passed]), by_passes(model, [other]), rtol=0, atol=0
    )


def test_rows_know_their_tokens_and_targets() -> None:
    data = Sequences.of(EXAMPLES, PAD)
    assert len(data) == 7
    assert data.lengths.tolist() == [7, 5, 12, 2, 1, 9, 7]
    assert data.targets.tolist() == [sum(bears) for _, bears in EXAMPLES]
    assert data.lengths.dtype == data.targets.dtype == np.dtype(np.int64)
    empty = Sequences.of([], PAD)
    assert (len(empty), empty.lengths.tolist(), empty.targets.tolist()) == (0, [], [])


def test_a_mark_on_a_first_token_is_dropped() -> None:
    data = Sequences.of([([4, 5], [True, True]), ([6], [True])], PAD)
    assert data.targets.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ([([1], [False]), ([], [])], "row 1 has no token"),
        ([([1, 2], [False])], "row 0 has 2 tokens but 1 marks"),
    ],
)
def test_a_row_that_cannot_be_is_named(examples: Examples, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Sequences.of(examples, PAD)


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_every_row_goes_through_once(packs: bool, on_cpu: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 400, 24)
    examples = [([i + 1] * length, [False] * length) for i, length in enumerate(lengths)]
    data = Sequences.of(examples, 0)
    rows = rng.permutation(24)[:20]
    passed = torch.cat(
        [each["input_ids"].flatten() for each in replace(data, packs=packs).passes(rows, on_cpu)]
    )
    counts = torch.bincount(passed, minlength=25)[1:].numpy()
    assert (counts == np.where(np.isin(np.arange(24), rows), lengths, 0)).all()


@pytest.mark.parametrize("on_cpu", [False, True])
def test_a_long_row_forces_no_padding_on_short_ones(on_cpu: bool) -> None:
    data = Sequences.of([([1] * n, [False] * n) for n in (900, *[30] * 30)], PAD)
    passes = replace(data, packs=True).passes(np.arange(31), on_cpu)
    assert sum(each["input_ids"].numel() for each in passes) == 1800
