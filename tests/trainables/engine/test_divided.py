"""A base divided among two workers: what is trained, measured and profiled is what it ever was."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from spaces.methods.registry import make_plan, parse_choice
from spaces.profile import Profile
from tests.trainables.conftest import head_of, run_group, tiny_bert, tiny_task
from tests.trainables.lm_eval_examples import (
    CHOICE,
    WRITING,
    asked_of,
    decoder,
    save_decoder,
    write_tasks,
)
from tests.trainables.tasks.kinds.examples import DECODER, MadeKind, make_kind
from trainables.adaptations.registry import adaptation_for
from trainables.bases.structure import base_size, resolve_targets
from trainables.engine.divided import divide
from trainables.engine.section import of_trials
from trainables.engine.workers import CancelledError, Workers
from trainables.profiling.profile import compute_profile
from trainables.profiling.settings import ProfileSettings
from trainables.tasks.split import outputs_of, to_device
from trainables.tasks.task import Task
from trainables.training.finetune import finetune, untimed
from trainables.training.lm_eval_scores import lm_eval_scores
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
    {"method": "rslora", "rank": 3},  # layers of PEFT's
    {"method": "pissa", "rank": 3},  # reads weights
    {"method": "eva", "rank": 3},  # reads rows before it trains
)
NOTHING_KEPT = {
    "stage3_param_persistence_threshold": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_max_live_parameters": 0,
    "stage3_prefetch_bucket_size": 0,
}
OFFLOADED = {"offload_param": {"device": "cpu"}}


def _divided(model: Any, task: Task, whole: Sequence[str], zero: Any, workers: Workers) -> Any:
    """The section for the trials on a base that is divided now."""
    section = {"zero_optimization": {"stage": 3, **zero}}

    def idle() -> None:
        batch = to_device(task.splits["train"].batch(np.arange(1)), workers)
        batch.pop("labels")
        outputs_of(model, batch)

    divide(model, whole, section, workers, idle)
    return of_trials(section)


def _held(model: Any) -> int:
    """Entries of the frozen parameters that are on a worker, those of its own part apart."""
    return sum(p.numel() for n, p in model.named_parameters() if not n.startswith("classifier"))


def _found(
    workers: Workers, zero: Mapping[str, Any] | None, methods: Sequence[dict[str, Any]] = METHODS
) -> dict[str, Any]:
    """The profile of a base, and of each method what it reports and has trained."""
    model, task, deepspeed = tiny_bert(), tiny_task(), {}
    targets = resolve_targets(model, ("classifier",), PATTERNS)
    size = base_size(model, ("classifier",))
    if zero is not None:
        deepspeed = _divided(model, task, ("classifier",), zero, workers)
        assert resolve_targets(model, ("classifier",), PATTERNS) == targets
    limit = 2**50 if zero is OFFLOADED else None  # with one, it is measured what a pass takes
    settings = PROFILE.model_copy(update={"memory_limit": limit})
    profile = compute_profile(
        model, head_of(tiny_bert()), targets, task, settings, workers=workers, deepspeed=deepspeed
    )
    found: dict[str, Any] = {"profile": profile.to_bytes()}
    for choice in methods:
        plan = make_plan(parse_choice(choice), targets, profile, size)
        head = head_of(tiny_bert(), 3)
        with adaptation_for(plan, model, seed=3, head=head) as adaptation:
            report = finetune(
                model, adaptation, task, TRAIN, learning_rate=1e-2, seed=3, workers=workers,
                deepspeed=deepspeed,
            )  # fmt: skip
        found[choice["method"]] = untimed(report), adaptation.weights()
        assert zero is not NOTHING_KEPT or not _held(model)
    return found


# One group for all of it, for processes take longest to start.


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What worker 0 of a group of two has found."""
    folder = tmp_path_factory.mktemp("group")
    kinds = [make_kind(name, folder / str(i)) for i, name in enumerate(KINDS)]
    base = save_decoder(folder / "base")
    files = write_tasks(folder / "tasks", CHOICE, WRITING)
    run_group(_in_a_group, 2, folder, kinds, base, files)
    found: dict[str, Any] = pickle.loads((folder / "found").read_bytes())
    return found


def _in_a_group(
    workers: Workers, folder: Path, kinds: Sequence[MadeKind], base: Path, files: list[str]
) -> None:
    found = {
        "whole": _found(workers, None),
        "divided": _found(workers, NOTHING_KEPT),
        "offloaded": _found(workers, OFFLOADED, METHODS[:1]),
        "kinds": [_of_kind(workers, made) for made in kinds],
        "lm_eval": _of_lm_eval(workers, folder, base, files),
    }
    if workers.rank == 0:
        (folder / "found").write_bytes(pickle.dumps(found))


@pytest.mark.group
@pytest.mark.parametrize("way", ["divided", "offloaded"])
def test_a_divided_base_gives_what_a_whole_one_gives(way: str, group: dict[str, Any]) -> None:
    whole, divided = group["whole"], group[way]
    for method in divided.keys() - {"profile"}:
        (report, weights), (other, those) = whole[method], divided[method]
        assert other == pytest.approx(report, rel=1e-6, abs=1e-9)
        for key, tensor in weights.items():
            torch.testing.assert_close(those[key], tensor, rtol=1e-6, atol=1e-8)
    one, two = (Profile.from_bytes(each["profile"], "it") for each in (whole, divided))
    for module, statistics in one.modules.items():
        for field, values in vars(statistics).items():
            found = vars(two.modules[module])[field]
            np.testing.assert_allclose(found, values, rtol=1e-6, err_msg=field)


# -- passes that workers have different numbers of -------------------------------------------------

KINDS = ("causal on llama", "generation on qwen2", "multiple_choice on llama")


def _of_kind(workers: Workers, made: MadeKind) -> list[dict[str, float]]:
    """What a trial reports on a whole base and on a divided one, layers computed twice."""
    reports = []
    for divided in (False, True):
        base = made.base(torch.float64)
        task = made.fitted(base)
        targets = resolve_targets(base.model, (), DECODER)
        base.model.gradient_checkpointing_enable()
        deepspeed: Any = {}
        if divided:
            deepspeed = _divided(base.model, task, (), NOTHING_KEPT, workers)
        plan = make_plan(parse_choice({"method": "lora", "rank": 2}), targets, None)
        settings = TRAIN.model_copy(update={"batch_size": 4})  # the last of 13 rows is alone
        with adaptation_for(plan, base.model, seed=3) as adaptation:
            report = finetune(
                base.model, adaptation, task, settings, learning_rate=1e-2, seed=3,
                workers=workers, deepspeed=deepspeed,
            )  # fmt: skip
        reports.append(untimed(report))
    assert not _held(base.model)
    return reports


@pytest.mark.group
def test_workers_with_fewer_passes_take_part_in_those_of_others(group: dict[str, Any]) -> None:
    for whole, divided in group["kinds"]:
        assert divided == pytest.approx(whole, rel=1e-6)


def _of_lm_eval(
    workers: Workers, folder: Path, base: Path, files: list[str]
) -> list[dict[str, float]]:
    """lm-eval's scores of a whole base, and of a divided one after a worker has been stopped."""
    tokenizer, asked = AutoTokenizer.from_pretrained(base), asked_of(files, folder)
    whole = lm_eval_scores(decoder(base), tokenizer, asked, workers)
    model = decoder(base)
    config = {"zero_optimization": {"stage": 3, **NOTHING_KEPT}}
    ids = torch.tensor([[1]])
    divide(model, (), config, workers, lambda: model(input_ids=ids))
    with pytest.raises(CancelledError):
        lm_eval_scores(model, tokenizer, asked, workers, should_stop=lambda: workers.rank == 0)
    return [whole, lm_eval_scores(model, tokenizer, asked, workers)]


@pytest.mark.group
def test_lm_eval_scores_a_divided_base_as_a_whole_one(group: dict[str, Any]) -> None:
    whole, divided = group["lm_eval"]
    assert divided == pytest.approx(whole, rel=1e-5)
