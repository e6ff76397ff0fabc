"""The loop on a device that computes nothing: what it asks of the device, and never waits for."""

from __future__ import annotations

from tests.fake_cuda.process import run_on_fake_cuda


def test_the_host_waits_for_no_step_before_the_epoch_ends() -> None:
    found = run_on_fake_cuda("steps_without_a_wait")
    assert found["seconds"] == [0.002] * 10
    assert found["waits"] == 10  # for the clock, when the epoch is over: one event a step
    assert found["launches"] > 1000
