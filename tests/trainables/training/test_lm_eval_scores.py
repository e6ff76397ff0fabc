"""lm-eval on a model in memory says what it says of the merged checkpoint, and leaves no trace."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from transformers import AutoTokenizer

from tests.trainables.conftest import join_group
from tests.trainables.lm_eval_examples import (
    CHOICE,
    PROSE,
    WRITING,
    adapted,
    asked_of,
    decoder,
    draw,
    of_lm_eval,
    save_decoder,
    write_tasks,
)
from trainables.engine.workers import Workers
from trainables.training.lm_eval_scores import lm_eval_scores
from trainables.training.lm_eval_settings import LmEvalError
from trainables.training.stage import CancelledError


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("base"))


def scores(base: Path, workers: Workers, model: Any, asked: Any, **more: Any) -> dict[str, float]:
    return lm_eval_scores(model, AutoTokenizer.from_pretrained(base), asked, workers, **more)


def save_merged(base: Path, folder: Path) -> Path:
    """The adapted decoder as a plain checkpoint."""
    model = decoder(base)
    with adapted(model) as adaptation:
        draw(adaptation)
        merged = adaptation.merged()
    plain = decoder(base)
    plain.load_state_dict(merged, strict=False)
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        (CHOICE, {}),
        (CHOICE, {"num_fewshot": 2}),
        (CHOICE, {"limit": 0.5}),
        (WRITING, {"limit": 5}),
        (PROSE, {}),
    ],
    ids=["choice", "few shots", "half", "writing", "prose"],
)
def test_the_scores_are_those_of_lm_eval_on_the_merged_checkpoint(
    base: Path,
    alone: Workers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    files = write_tasks(tmp_path / "tasks", task)
    model = decoder(base)
    with adapted(model) as adaptation:
        draw(adaptation)
        got = scores(base, alone, model, asked_of(files, tmp_path, **settings))
    monkeypatch.chdir(tmp_path / "tasks")  # where lm-eval itself looks for the rows
    wanted = of_lm_eval(save_merged(base, tmp_path / "merged"), files, **settings)
    assert wanted
    assert got == pytest.approx(wanted, rel=1e-5)
    untouched = scores(base, alone, decoder(base), asked_of(files, tmp_path, **settings))
    assert untouched != got, "the adapters are measured, not the base"
