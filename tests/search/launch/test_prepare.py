"""What a sweep rests on is found before it starts: the head, the profile's key, faults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from search.config.reading import parse_sweep
from search.config.sweep import ConfirmSettings, SweepConfig
from search.launch.dry_run import dry_run
from search.launch.prepare import prepare, profile_key_of
from spaces.errors import BaseModelError, ConfigError
from tests.trainables.tasks.test_texts import TEXTS, a_base
from trainables.training.lm_eval_settings import LmEvalSettings


@pytest.fixture
def headed(tmp_path: Path) -> str:
    """A base with a head of its own: its outputs are not in the order of the task's classes."""
    uri = a_base(tmp_path / "base")
    folder = uri.removeprefix("path:")
    config = transformers.AutoConfig.from_pretrained(folder, id2label={0: "yes", 1: "no"})
    config.label2id = {"yes": 0, "no": 1}
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return uri


def sweep(folder: Path, base: str) -> SweepConfig:
    for split in ("train", "dev"):
        rows = [{"text": text, "label": ("no", "yes")[i % 2]} for i, text in enumerate(TEXTS)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return parse_sweep({
        "base": base,
        "task": {
            "name": "letters",
            "data": {split: str(folder / f"{split}.jsonl") for split in ("train", "dev")},
            "text": "text",
            "max_length": 8,
        },
        "profile": {"target_modules": ["query"], "batch_size": 5},
        "confirm": None,
        "store": f"file://{folder}/store",
    })  # fmt: skip


def test_an_own_head_is_a_part_of_the_profiles_key_and_a_fresh_one_is_not(
    headed: str, tmp_path: Path
) -> None:
    config = sweep(tmp_path, headed)
    owned = prepare(config)
    rows, targets = owned.task.train_fingerprint, owned.targets
    assert owned.head.order == (1, 0)
    facts = (config, owned.base_fingerprint, rows, targets)
    assert owned.key == profile_key_of(*facts, "own", dtype="float32")
    assert owned.key != profile_key_of(*facts, dtype="float32")

    model = transformers.AutoModel.from_pretrained(headed.removeprefix("path:"))
    model.save_pretrained(headed.removeprefix("path:"))
    bare = prepare(config)
    assert bare.head.order is None
    facts = (config, bare.base_fingerprint, rows, targets)
    assert bare.key == profile_key_of(*facts, dtype="float32")


def test_a_profile_needs_no_lm_eval(headed: str, tmp_path: Path) -> None:
    asked = ConfirmSettings(lm_eval=LmEvalSettings(tasks=("nowhere.yaml",)))
    config = sweep(tmp_path, headed)
    test = config.task.data.model_copy(update={"test": config.task.data.dev})
    task = config.task.model_copy(update={"data": test})
    asking = config.model_copy(update={"task": task, "confirm": asked})
    assert prepare(asking).key == prepare(config).key
    with pytest.raises(ConfigError, match=r"^confirm\.lm_eval"):
        dry_run(asking)


def test_weights_that_are_no_numbers_are_found(headed: str, tmp_path: Path) -> None:
    weights = Path(headed.removeprefix("path:")) / "model.safetensors"
    tensors = load_file(weights)
    tensors["bert.encoder.layer.0.output.dense.bias"][3] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=r"layer.0.output.dense.bias that is no finite number"):
        prepare(sweep(tmp_path, headed))
