"""How the rows of a step are divided into passes: what may be padding, and what it costs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from trainables.tasks import grouping
from trainables.tasks.grouping import DOUBLE_TOKENS, PASS_TOKENS, best_fit, in_lines

Lengths = NDArray[np.int64]


def log_normal(median: float, spread: float, least: int, most: int) -> Callable[..., Lengths]:
    def draw(rng: np.random.Generator, rows: int) -> Lengths:
        drawn = rng.lognormal(np.log(median), spread, rows).round()
        return drawn.clip(least, most).astype(np.int64)

    return draw


SETS: dict[str, Callable[..., Lengths]] = {
    # Median, 95 % and longest of the tokens a row in SmolLM2's tokenizer are those of the sets.
    "BoolQ": log_normal(133, 0.45, 30, 1292),
    "PIQA": log_normal(27, 0.33, 8, 63),
    "OpenBookQA": log_normal(14, 0.48, 5, 72),
    "CommonsenseQA": log_normal(21, 0.3, 7, 72),
    "SIQA": log_normal(32, 0.2, 15, 65),
}


def tokens_of(lengths: Lengths, passes: list[list[NDArray[np.int64]]]) -> int:
    """Tokens that go through the base, padding included."""
    return sum(len(lines) * max(lengths[line].sum() for line in lines) for lines in passes)


def cost_of(lengths: Lengths, passes: list[list[NDArray[np.int64]]]) -> float:
    cost = 0.0
    for lines in passes:
        width = max(lengths[line].sum() for line in lines)
        cost += len(lines) * width * (1 + width / DOUBLE_TOKENS) + PASS_TOKENS
    return cost


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("batch_size", [8, 16, 32])
@pytest.mark.parametrize("name", SETS)
def test_at_most_a_tenth_of_what_goes_through_the_base_is_padding(
    name: str, batch_size: int, on_cpu: bool
) -> None:
    rng = np.random.default_rng(0)
    real = through = 0
    for _ in range(60):
        lengths = SETS[name](rng, batch_size)
        real += int(lengths.sum())
        through += tokens_of(lengths, in_lines(lengths, on_cpu=on_cpu, packs=True))
    assert 1 - real / through <= 0.1


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_every_row_has_one_place(seed: int, on_cpu: bool, packs: bool) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 3000, int(rng.integers(1, 40)))
    passes = in_lines(lengths, on_cpu=on_cpu, packs=packs)
    placed = np.concatenate([line for lines in passes for line in lines])
    assert sorted(placed.tolist()) == list(range(len(lengths)))
    assert on_cpu or len(passes) == 1
    assert packs or all(len(line) == 1 for lines in passes for line in lines)


@pytest.mark.parametrize("name", SETS)
def test_lines_cost_no_more_than_padded_groups_or_one_pack(name: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths = SETS[name](rng, 16)
        lines = cost_of(lengths, in_lines(lengths, on_cpu=True, packs=True))
        groups = in_lines(lengths, on_cpu=True, packs=False)
        assert lines <= cost_of(lengths, groups)
        if lengths.sum() <= max(grouping.ROOMS):
            assert lines <= cost_of(lengths, [[np.arange(16)]])


@pytest.mark.parametrize("seed", range(10))
def test_a_row_goes_to_the_fullest_line_that_has_room(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 120, 60)
    wanted: list[list[int]] = []
    for row in sorted(range(60), key=lambda row: -lengths[row]):
        fits = [line for line in wanted if lengths[line].sum() + lengths[row] <= 100]
        if fits:
            max(fits, key=lambda line: lengths[line].sum()).append(row)
        else:
            wanted.append([row])
    assert [line.tolist() for line in best_fit(lengths, 100)] == wanted
