"""What a profile does on a GPU, as far as a CPU can tell: the same functions on CPU tensors, the
decisions by a GPU's counters, and a fake device's launches and waits."""

from __future__ import annotations

import os
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from spaces.errors import JobError
from tests.fake_cuda.process import run_on_fake_cuda
from tests.trainables.conftest import tiny_bert
from tests.trainables.profile_oracle import mask_counts
from trainables.bases.structure import resolve_targets
from trainables.engine import memory
from trainables.engine.memory import HighestHeld, limit_of
from trainables.layers.hooks import Hooks, weight_of
from trainables.profiling.accumulators import Accumulators, squares_at_once, squares_in_parts
from trainables.profiling.determinism import CUBLAS, allow_determinism, deterministic
from trainables.profiling.mask_counts import counts_on_device, mask_sizes
from trainables.resident.jobs import ProfileJob

GIB = 2**30
CUDA = torch.device("cuda")


# -- sums and counts -------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [False, True], ids=["lines", "flat"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_squares_in_one_part_are_those_of_float64_and_padding_is_left_out(
    dtype: torch.dtype, flat: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    # Lines of 128, as a GPU adds a few more at most one after another.
    x = torch.randn(64, 128, 32, generator=generator)
    x[:, :, 5] *= torch.linspace(1, 3000, 128)  # as some features of language models are
    is_token = torch.arange(128) < torch.randint(1, 129, (64, 1), generator=generator)
    x = x.to(dtype)
    x[~is_token] = torch.nan
    wanted = (x[is_token].double() ** 2).sum(0)
    found = squares_at_once(x.flatten(0, 1) if flat else x, is_token)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(squares_in_parts(x[is_token]), wanted, rtol=1e-12, atol=0)


def test_squares_of_what_is_not_padded_are_those_of_all() -> None:
    for shape in ((7, 3), (2, 7, 3), (2, 4, 7, 3)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        wanted = (x.reshape(-1, 3) ** 2).sum(0)
        torch.testing.assert_close(squares_at_once(x, None), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("values", [1, 2, 4, 1000])
def test_masks_counted_on_a_device_take_ties_row_major_and_leave_zeros_out(
    values: int, transposed: bool
) -> None:
    score = np.random.default_rng(values).integers(0, values, (13, 7)).astype(np.float32)
    tensor = torch.tensor(score.T.copy()).T if transposed else torch.tensor(score)
    grid = (0.1, 1.0, 10.0, 33.0, 33.3, 50.0, 100.0)  # of no entry, and two of the same
    counts = counts_on_device(tensor, mask_sizes(score.size, grid)).numpy()
    for line, percent in zip(counts, grid, strict=True):
        rows, cols = mask_counts(score, percent)
        np.testing.assert_array_equal(line, np.concatenate([rows, cols]))


def test_gradients_exist_one_at_a_time() -> None:
    model = tiny_bert()
    targets = resolve_targets(model, ("classifier",), ("query", "key", "value", "dense"))
    seen: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def look(weight: torch.Tensor) -> None:
        nonlocal most
        assert weight.grad is not None
        seen.append(weakref.ref(weight.grad))
        most = max(most, sum(gradient() is not None for gradient in seen))

    with Hooks() as first:
        for target in targets:
            first.on_gradient(weight_of(model, target), look)
        with Accumulators(model, targets):
            model(input_ids=torch.ones(2, 5, dtype=torch.long)).logits.sum().backward()
    assert len(seen) == len(targets)
    assert most == 1


# -- memory ----------------------------------------------------------------------------------------


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The counters of a GPU of 80 GiB, to be set."""
    counts = {"free": 60 * GIB, "reserved": 16 * GIB, "peak": 3 * GIB}

    def reset(_device: torch.device) -> None:
        counts["peak"] = 0

    for name, answer in {
        "mem_get_info": lambda _device: (counts["free"], 80 * GIB),
        "memory_reserved": lambda _device: counts["reserved"],
        "max_memory_allocated": lambda _device: counts["peak"],
        "reset_peak_memory_stats": reset,
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    return counts


def test_without_a_limit_a_gpu_has_what_is_free_and_held_less_a_margin(
    counters: dict[str, int],
) -> None:
    assert limit_of(CUDA, None) == (60 + 16 - 4) * GIB
    assert limit_of(CUDA, 5 * GIB) == 5 * GIB
    assert limit_of(torch.device("cpu"), None) is None
    assert limit_of(torch.device("cpu"), 7) == 7


def test_what_a_gpu_held_at_most_is_read_from_its_allocator(counters: dict[str, int]) -> None:
    held = HighestHeld(CUDA)
    assert held.bytes == 0  # what was held before does not count
    counters["peak"] = 9 * GIB
    held.look()
    assert held.bytes == 9 * GIB


def test_what_a_cpu_held_at_most_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([5, 9, 7])
    monkeypatch.setattr(memory, "held_bytes", lambda _device: next(sizes))
    held = HighestHeld(torch.device("cpu"))
    held.look()
    held.look()
    assert held.bytes == 9


def test_a_profile_without_memory_is_told_all_that_helps() -> None:
    for key in ("profile.batch_size", "profile.memory_limit", "train.activation_checkpointing"):
        assert key in ProfileJob.takes_less_memory


# -- the fake device -------------------------------------------------------------------------------


def test_on_a_device_a_pass_takes_few_launches_waits_for_nothing_and_fits() -> None:
    roomy = {"peak": 8 * GIB, "free": 60 * GIB, "reserved": 0, "total": 80 * GIB}
    # 1 GiB beside the peak: a layer takes 772 MiB, its query, key, value and output 64 MiB each.
    narrow = {"peak": 8 * GIB, "free": 6 * GIB, "reserved": 4 * GIB, "total": 20 * GIB}
    full = {"peak": 8 * GIB, "free": 5 * GIB, "reserved": 4 * GIB, "total": 20 * GIB}
    found = run_on_fake_cuda("profile", counters=[roomy, narrow, full])
    launches = found["launches"]
    assert launches["modules"] == 7
    assert launches["added"] <= 7 * launches["modules"]  # of a micro-batch; on a CPU it is hundreds
    assert launches["to_host"] == 0
    assert found["groups"][:2] == [1, 2]
    assert found["groups"][2] == (
        "profile: the GPU's 8192 MiB does not hold the accumulator of model.layers.0.mlp.gate_proj "
        "(172 MiB) beside the 8192 MiB that base, batch and counting take; lower "
        "profile.batch_size or turn on train.activation_checkpointing, or use a GPU with more"
    )
    for masks in found["masks"]:
        assert masks["shape"] == [4, 4096 + 11008]
        assert masks["launches"] < 200
        assert masks["to_host"] == 0


# -- determinism -----------------------------------------------------------------------------------


def settings_of_torch() -> tuple[Any, ...]:
    return (
        torch.get_deterministic_debug_mode(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )


def test_determinism_lasts_as_long_as_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS, ":16:8")
    before = settings_of_torch()
    with deterministic(True, CUDA):
        assert settings_of_torch() == (2, False)  # 2: an error, where 1 only warns
    assert settings_of_torch() == before
    for wanted, device in ((False, CUDA), (True, torch.device("cpu"))):
        with deterministic(wanted, device):
            assert settings_of_torch() == before


def test_an_operation_that_is_not_deterministic_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS, ":4096:8")
    before = settings_of_torch()
    with (
        pytest.raises(JobError, match=r"profile.deterministic: put_ has no .* set it to false"),
        deterministic(True, CUDA),
    ):
        torch.zeros(3).put_(torch.tensor([1]), torch.ones(1))
    assert settings_of_torch() == before
    with pytest.raises(RuntimeError, match="another"), deterministic(True, CUDA):
        raise RuntimeError("another")


def test_workers_let_cublas_be_deterministic_unless_they_are_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(CUBLAS, raising=False)
    with pytest.raises(JobError, match=f"{CUBLAS} is None"), deterministic(True, CUDA):
        pass
    monkeypatch.setenv(CUBLAS, ":0:0")
    allow_determinism()
    assert os.environ[CUBLAS] == ":0:0"
    with pytest.raises(JobError, match=f"{CUBLAS} is ':0:0'"), deterministic(True, CUDA):
        pass
    monkeypatch.delenv(CUBLAS)
    allow_determinism()
    with deterministic(True, CUDA):
        pass
