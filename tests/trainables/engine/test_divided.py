"""A base divided among two workers: what is trained, measured and profiled is what it ever was."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spaces.methods.registry import make_plan, parse_choice
from spaces.profile import Profile
from tests.trainables.conftest import head_of, run_group, tiny_bert, tiny_task
from trainables.adaptations.registry import adaptation_for
from trainables.bases.structure import base_size, resolve_targets
from trainables.engine.divided import divide
from trainables.engine.section import of_trials
from trainables.engine.workers import Workers
from trainables.profiling.profile import compute_profile
from trainables.profiling.settings import ProfileSettings
from trainables.tasks.split import outputs_of, to_device
from trainables.training.finetune import finetune, untimed
from trainables.training.settings import TrainSettings

PATTERNS = ("query", "output.dense")
PROFILE = ProfileSettings(
    target_modules=PATTERNS, rank=3, epochs=1, score_every=2, calibration_batches=3, batch_size=5,
    top_percent=(5, 30), learning_rate=5e-3, seed=4,
)  # fmt: skip
TRAIN = TrainSettings(epochs=2, batch_size=6, dropout=0.0, gradient_accumulation_steps=2)
METHODS: tuple[dict[str, Any], ...] = (
    {"method": "lora", "rank": 3},
    {"method": "pilora", "rank": 3},
    {"method": "taso", "rank": 3},
    {"method": "rslora", "rank": 3},
    {"method": "ia3"},
    {"method": "milora", "rank": 3},
    {"method": "pissa", "rank": 3},
    {"method": "lora_dash", "rank": 3},
    {"method": "eva", "rank": 3},
)
WHOLE: Mapping[str, Any] = {}
DIVIDED: Mapping[str, Mapping[str, Any]] = {
    "divided": {"stage3_param_persistence_threshold": 0},
    "offloaded": {"offload_param": {"device": "cpu"}},
}


def _base_on(workers: Workers, zero: Mapping[str, Any] | None) -> tuple[Any, dict[str, Any]]:
    """A tiny base, divided where `zero` says how, and the section for its trials."""
    model, task = tiny_bert(), tiny_task()
    if zero is None:
        return model, {}
    section = {"zero_optimization": {"stage": 3, **zero}}

    def idle() -> None:
        batch = to_device(task.splits["train"].batch(np.arange(1)), workers)
        batch.pop("labels")
        outputs_of(model, batch)

    divide(model, ("classifier",), section, workers, idle)
    held = sum(p.numel() for n, p in model.named_parameters() if "classifier" not in n)
    assert held == 0 if "stage3_param_persistence_threshold" in zero else held >= 0
    return model, of_trials(section)


def _found(workers: Workers, zero: Mapping[str, Any] | None) -> dict[str, Any]:
    """The profile of a base, and of each method what it reports and has trained."""
    model, deepspeed = _base_on(workers, zero)
    task, targets = tiny_task(), resolve_targets(model, ("classifier",), PATTERNS)
    limited = PROFILE.model_copy(update={"memory_limit": None})
    profile = compute_profile(
        model, head_of(tiny_bert()), targets, task, limited, workers=workers, deepspeed=deepspeed
    )
    found: dict[str, Any] = {"profile": profile.to_bytes()}
    size = base_size(tiny_bert(), ("classifier",))
    for choice in METHODS:
        plan = make_plan(parse_choice(choice), targets, profile, size)
        head = head_of(tiny_bert(), 3)
        with adaptation_for(plan, model, seed=3, head=head) as adaptation:
            report = finetune(
                model, adaptation, task, TRAIN, learning_rate=1e-2, seed=3, workers=workers,
                deepspeed=deepspeed,
            )  # fmt: skip
        found[choice["method"]] = untimed(report), adaptation.weights()
    return found


def _in_a_group(workers: Workers, folder: Path) -> None:
    for name, zero in {"whole": None, **DIVIDED}.items():
        found = _found(workers, zero)
        if workers.rank == 0:
            (folder / name).write_bytes(pickle.dumps(found))


@pytest.mark.group
def test_a_divided_base_gives_what_a_whole_one_gives(tmp_path: Path) -> None:
    run_group(_in_a_group, 2, tmp_path)
    whole = pickle.loads((tmp_path / "whole").read_bytes())
    for name in DIVIDED:
        divided = pickle.loads((tmp_path / name).read_bytes())
        for method in (choice["method"] for choice in METHODS):
            (report, weights), (other, others) = whole[method], divided[method]
            assert other == pytest.approx(report, rel=1e-6, abs=1e-9)
            for key, tensor in weights.items():
                torch.testing.assert_close(others[key], tensor, rtol=1e-6, atol=1e-8)
        one, other = (Profile.from_bytes(each["profile"], "x") for each in (whole, divided))
        for module, statistics in one.modules.items():
            for field, values in vars(statistics).items():
                np.testing.assert_allclose(
                    vars(other.modules[module])[field], values, rtol=1e-6, err_msg=field
                )
