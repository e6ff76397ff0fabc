"""The fake device itself: it runs autograd, and finds what does not belong on a device."""

from __future__ import annotations

import pytest

from tests.fake_cuda.process import run_on_fake_cuda


def test_frozen_layer_runs() -> None:
    assert 40 < run_on_fake_cuda("frozen_layer") < 150


def test_index_left_on_the_cpu_is_found() -> None:
    with pytest.raises(AssertionError, match="device"):
        run_on_fake_cuda("index_left_on_the_cpu")


def test_value_asked_for_is_found() -> None:
    with pytest.raises(AssertionError, match="DataDependent"):
        run_on_fake_cuda("value_asked_for")
