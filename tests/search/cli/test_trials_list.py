"""What `trials SWEEP list` draws."""

from __future__ import annotations

from dataclasses import replace

import pytest

from search.cli.output import plain_text
from search.cli.trials import trials_table
from search.study.trial_list import TrialRow

WHOLE = TrialRow(
    0, "lora", "complete", 3, 0.8, 320, "the sweep", None, None, {"rank": 4, "alpha": 8}, {}
)
CUT = replace(WHOLE, number=1, state="pruned", reason="stopped after epoch 1 of 3")


@pytest.mark.parametrize("width", [60, 160])
def test_a_trial_that_is_not_complete_says_why(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.cli.output.PIPE_WIDTH", width)
    drawn = " ".join(plain_text([trials_table([WHOLE, CUT])]).replace("│", " ").split())
    assert "stopped after epoch 1 of 3" in drawn
    assert "why" not in plain_text([trials_table([WHOLE])])
