"""lm-eval on a model in memory says what it says of the merged checkpoint, and leaves no trace."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from tests.trainables.conftest import run_group
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
from trainables.engine.workers import CancelledError, Workers
from trainables.training.lm_eval_scores import lm_eval_scores
from trainables.training.lm_eval_settings import LmEvalError


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


def _of_two(workers: Workers, folder: Path, base: Path, files: list[str]) -> None:
    rank, model = workers.rank, decoder(base)
    with adapted(model) as adaptation:
        draw(adaptation)
        asked = asked_of(files, folder, num_fewshot=1)
        got = scores(base, workers, model, asked)
        torch.save(got, folder / f"scores-{rank}")
        # a worker without the file: all of them hear of it, and go on together
        missing = [*files, f"{folder}/missing.yaml"] if rank else files
        with pytest.raises(LmEvalError, match=r"missing\.yaml is not there"):
            scores(base, workers, model, asked_of(missing, folder))
        with pytest.raises(CancelledError):
            scores(base, workers, model, asked, should_stop=lambda: rank == 0)
        assert scores(base, workers, model, asked) == got


@pytest.mark.group
def test_two_workers_share_the_requests_and_the_scores_are_those_of_one(
    base: Path, alone: Workers, tmp_path: Path
) -> None:
    files = write_tasks(tmp_path / "tasks", CHOICE, WRITING, PROSE)
    run_group(_of_two, 2, tmp_path, base, files)
    model = decoder(base)
    with adapted(model) as adaptation:
        draw(adaptation)
        wanted = scores(base, alone, model, asked_of(files, tmp_path, num_fewshot=1))
    for rank in range(2):
        assert torch.load(tmp_path / f"scores-{rank}") == pytest.approx(wanted, rel=1e-5)


def everything(model: Any) -> dict[str, Any]:
    """What of a process and a model lm-eval could change."""
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "config": model.config.to_dict(),
        "generation": model.generation_config.to_dict(),
        "attributes": set(vars(model)),
        "training": [module.training for module in model.modules()],
        "random": (random.getstate(), torch.get_rng_state(), np.random.get_state()),
        "environment": dict(os.environ),
    }


def assert_alike(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor | np.ndarray):
        assert np.array_equal(np.asarray(one), np.asarray(other))
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_alike(one[key], other[key])
    elif isinstance(one, tuple | list):
        for each, its in zip(one, other, strict=True):
            assert_alike(each, its)
    else:
        assert one == other


def test_it_leaves_model_and_process_as_they_were_also_where_it_fails(
    base: Path, alone: Workers, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = write_tasks(tmp_path / "tasks", CHOICE, WRITING)
    model = decoder(base)
    before = everything(model)
    capfd.readouterr()
    scores(base, alone, model, asked_of(files, tmp_path))
    assert_alike(everything(model), before)

    too_long = {**WRITING, "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4000}}
    files = write_tasks(tmp_path / "tasks", too_long)
    with pytest.raises(LmEvalError, match=r"lm-eval: .*max tokens to generate") as caught:
        scores(base, alone, model, asked_of(files, tmp_path))
    assert "\n" not in str(caught.value)
    assert_alike(everything(model), before)
    assert capfd.readouterr() == ("", ""), "its news and bars are kept out of the logs"


def losses(base: Path, model: Any) -> list[float]:
    """Those of a few steps that train fresh adapters on one batch, with dropout, from a seed."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    batch = tokenizer(["red stone under blue river"], return_tensors="pt")
    torch.manual_seed(3)
    found = []
    with adapted(model) as adaptation:
        parameters = adaptation.begin_stage(0, 4)
        optimizer = torch.optim.SGD(parameters.parameters(), lr=0.5)
        model.train()
        for _ in range(4):
            parameters.place()
            loss = model(**batch, labels=batch["input_ids"]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
    return found


def test_what_is_trained_after_lm_eval_is_trained_bit_for_bit_as_before(
    base: Path, alone: Workers, tmp_path: Path
) -> None:
    files = write_tasks(tmp_path / "tasks", CHOICE, WRITING)
    model = decoder(base)
    before = losses(base, model)
    assert len(set(before)) == 4
    scores(base, alone, model, asked_of(files, tmp_path))
    assert losses(base, model) == before
