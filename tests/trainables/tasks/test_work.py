"""What a split says that it puts through a base is what goes through it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainables.tasks.kinds.examples import write_decoder
from trainables.bases.loading import load_base
from trainables.engine.workers import join
from trainables.tasks.settings import TaskSettings
from trainables.tasks.split import outputs_of
from trainables.tasks.task import build_task

KINDS: dict[str, dict[str, Any]] = {
    "classification": {"text": "q", "label": "a"},
    "regression": {"text": "q", "label": "n"},
    "causal": {"prompt": "q", "completion": "a"},
    "multiple_choice": {"prompt": "q", "options": "o", "label": "a", "label_form": "text"},
    "generation": {"prompt": "q", "completion": "a", "generation": {"max_new_tokens": 6}},
}


class Counter:
    """Counts what goes through a base while it is entered."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.tokens = self.passes = self.outputs = self.steps = self.written = 0

    def __enter__(self) -> Counter:
        self.hook = self.model.register_forward_hook(self._count, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def _count(self, _: Any, arguments: Any, given: dict[str, Any], found: Any) -> None:
        ids = given["input_ids"] if "input_ids" in given else arguments[0]
        if ids.shape[1] == 1:  # no prompt is as short
            self.steps += 1
            self.written += len(ids)
            return
        self.tokens += ids.numel()
        self.passes += 1
        self.outputs += found.logits[..., 0].numel() if found.logits.ndim == 3 else 0


@pytest.mark.parametrize("kind", KINDS)
def test_passes_are_those_that_a_base_sees(tmp_path: Path, kind: str) -> None:
    draw = np.random.default_rng(0)
    words = ["film", "plot", "actor", "camera", "score", "scene"]
    rows = [
        {
            "q": " ".join(draw.choice(words, int(draw.integers(2, 12)))) + f" {i}",
            "a": ("good", "bad")[i % 2], "n": float(i), "o": ["good", "bad"],
        }
        for i in range(70)
    ]  # fmt: skip
    write_decoder("llama", tmp_path)
    for split, part in (("train", rows[:48]), ("dev", rows[48:])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    data = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "dev")}
    section = {"name": "t", "kind": kind, "data": data, "max_length": 100, **KINDS[kind]}
    uri = f"path:{tmp_path}"
    built = build_task(TaskSettings.model_validate(section), uri)
    base = load_base(uri, built.head, built.outputs)
    expected, fitted = (
        built.expected(uri),
        built.fitted(base.model),
    )
    train, workers = fitted.splits["train"], join()
    batch = np.arange(16)
    with torch.no_grad():
        with Counter(base.model) as trained:
            for each in train.passes(batch, on_cpu=True):
                each.pop("labels")
                outputs_of(base.model, each)
        with Counter(base.model) as measured:
            built.its_kind.readings(base.model.eval(), fitted, "dev", workers)
    work = expected.splits["train"].work(batch, on_cpu=True)
    assert (work.tokens, work.passes) == (trained.tokens, trained.passes)
    assert work.outputs == trained.outputs
    told = expected.splits["dev"].measuring_work(on_cpu=True)
    if kind == "multiple_choice":  # it first tries whether the base lets options share a prompt
        assert told.tokens <= measured.tokens <= told.tokens + 100
        return
    if kind == "generation":  # the steps' own first tokens come of the prompts' passes
        assert told.share * told.steps * 0.5 < measured.steps <= told.steps
        assert measured.written <= told.written
        assert told.tokens == pytest.approx(measured.tokens, rel=0.1)
        return
    assert (told.tokens, told.passes) == (measured.tokens, measured.passes)
    assert told.outputs == measured.outputs
