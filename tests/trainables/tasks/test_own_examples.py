"""The examples of a metric and of a kind of one's own: found by import path, they measure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from tests.conftest import EXAMPLES
from tests.trainables.tasks.language.decoders import byte_tokenizer, decoder
from trainables.adaptations.blocks import BlockAdaptation, plain_lora
from trainables.bases.loading import fresh_head, load_base
from trainables.bases.structure import resolve_targets
from trainables.engine.workers import Workers
from trainables.tasks.kinds.registry import kind_of, own_metric
from trainables.tasks.settings import TaskSettings
from trainables.tasks.task import Task, build_task
from trainables.training.evaluate import evaluate_rows

METRIC, KIND = "examples.own_metric:within_a_tenth", "examples.own_kind:Smoothed"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory is that which holds the examples."""
    monkeypatch.chdir(EXAMPLES.parent)


@pytest.fixture
def writer() -> Any:
    """A tiny Llama that writes digits."""
    model, digits = decoder("llama", torch.float32), byte_tokenizer()("0123456789")["input_ids"]
    others = torch.ones(model.config.vocab_size, dtype=torch.bool)
    others[digits] = False
    with torch.no_grad():
        model.lm_head.weight[others] = 0.0
    return model


@pytest.fixture
def base(writer: Any, tmp_path: Path) -> str:
    """URI of that Llama."""
    writer.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    return f"path:{tmp_path / 'base'}"


def number_after(model: Any, prompt: str) -> int:
    """The number that a model writes behind a prompt, by transformers alone."""
    tokenizer = byte_tokenizer()
    ids = tokenizer(prompt, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    return int(text)


def made(folder: Path, base: str, rows: Sequence[Mapping[str, Any]], **task: Any) -> Task:
    """A task of which every second row is dev."""
    for place, split in enumerate(("train", "dev")):
        lines = [json.dumps(row) + "\n" for row in rows[place::2]]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    data = {split: str(folder / f"{split}.jsonl") for split in ("train", "dev")}
    settings = {"name": "own", "data": data, "max_length": 32, **task}
    return build_task(TaskSettings.model_validate(settings), base)


def measured(task: Task, base: str, workers: Workers) -> tuple[dict[str, float], Any]:
    """A task's dev split on an untrained adapter, and the same of every row."""
    loaded = load_base(base, task.head, task.outputs)
    targets = resolve_targets(loaded.model, loaded.head_modules, ["q_proj"])
    head = fresh_head(loaded, 0)
    with BlockAdaptation(loaded.model, plain_lora(targets, 2, 4), seed=0, head=head) as adaptation:
        return evaluate_rows(loaded.model, adaptation, task, "dev", workers)


def test_the_metric_takes_the_first_number_that_is_written(here: None) -> None:
    metric = own_metric(METRIC)
    written = ["It is 10.9, or 3", "nine", "-2", "11.1"]
    assert metric(written, [["10"], ["9"], ["-2", "2"], ["10"]]) == [1.0, 0.0, 1.0, 0.0]


def test_the_metric_measures_what_a_base_writes(
    here: None, writer: Any, base: str, tmp_path: Path, alone: Workers
) -> None:
    prompts = [f"film {i}?" for i in range(12)]
    numbers = [number_after(writer, prompt) for prompt in prompts]
    wrong = {1, 5, 7}  # of the rows of dev, which have the odd places
    answers = [str(2 * n + 1 if i in wrong else n) for i, n in enumerate(numbers)]
    task = made(
        tmp_path, base, [{"q": q, "a": a} for q, a in zip(prompts, answers, strict=True)],
        kind="generation", template="{q}", completion="a", generation={"max_new_tokens": 3},
        metric=METRIC,
    )  # fmt: skip
    report, of_rows = measured(task, base, alone)
    assert report[METRIC] == 0.5
    assert {"dev_loss", "exact_match"} <= report.keys()
    assert len(of_rows) == 6


def test_the_kind_trains_on_its_own_loss_and_is_measured_by_it(
    here: None, base: str, tmp_path: Path, alone: Workers
) -> None:
    rows = [{"text": f"film {i}", "label": "good" if i % 4 < 2 else "bad"} for i in range(16)]
    task = made(tmp_path, base, rows, kind=KIND, text=["text"])
    assert task.metric == "accuracy"
    report, _ = measured(task, base, alone)
    assert report["dev_loss"] > 0
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(9, 3)), generator.integers(0, 3, 9)
    share = 0.9 * np.eye(3)[labels] + 0.1 / 3
    loss = kind_of(KIND).summed_loss(torch.tensor(logits), torch.tensor(labels))
    assert float(loss) == pytest.approx(-(share * log_softmax(logits, axis=1)).sum(), rel=1e-12)


def test_a_module_in_a_package_has_its_whole_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_folder").mkdir()
    (tmp_path / "own_folder/inner.py").write_text("def metric(answers, references): return 0.0\n")
    monkeypatch.chdir(tmp_path)
    assert own_metric("own_folder.inner:metric").__module__ == "own_folder.inner"


def test_a_kinds_code_names_what_is_trained_and_a_metrics_what_is_measured(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kind, metric = tmp_path / "own_kind_file.py", tmp_path / "own_metric_file.py"
    kind.write_text((EXAMPLES / "own_kind.py").read_text())
    metric.write_text("def hits(answers, references): return 0.5\n")
    rows = [{"text": f"film {i}", "label": "good" if i % 4 < 2 else "bad"} for i in range(16)]

    def task(**keys: Any) -> Task:
        return made(tmp_path, base, rows, text=["text"], **keys)

    own = {"kind": "own_kind_file:Smoothed", "metric": "own_metric_file:hits"}
    before = task(**own)
    metric.write_text("def hits(answers, references): return 1.0\n")
    measured_otherwise = task(**own)
    kind.write_text(f"{kind.read_text()}# another loss\n")
    trained_otherwise = task(**own)
    names = [each.fingerprint for each in (before, measured_otherwise, trained_otherwise)]
    assert len(set(names)) == 3
    assert before.train_fingerprint == measured_otherwise.train_fingerprint
    assert before.data_fingerprint == measured_otherwise.data_fingerprint
    assert trained_otherwise.train_fingerprint != before.train_fingerprint
    assert task(**own).fingerprint == trained_otherwise.fingerprint
    assert task(kind="classification").fingerprint == task(kind="classification").fingerprint
