"""A folder counts as a model when all that transformers would read of it is there and whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from search.schedules.triggers.whole_model import ModelFolder, lacking, looks_like_a_model
from tests.search.schedules.whole_models import model_files, sharded_files, weights, write

Files = dict[str, bytes]
SHARD = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("files", [model_files(), sharded_files()], ids=["one file", "shards"])
def test_a_whole_model_lacks_nothing(files: Files, tmp_path: Path) -> None:
    beside = {
        "optimizer.pt": b"x",
        "trainer_state.json": b"{",
        "README.md": b"",
        "rng_state.pth": b"",
    }
    assert lacking(ModelFolder.of(write(tmp_path, files | beside))) is None


def without(name: str) -> Callable[[Files], Files]:
    return lambda files: {key: content for key, content in files.items() if key != name}


def with_file(name: str, content: bytes) -> Callable[[Files], Files]:
    return lambda files: files | {name: content}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("config.json"), "has no config.json yet"),
        (with_file("config.json", b'{"model_type": "be'), "has a config.json that is not whole"),
        (with_file("config.json", b"[]"), "has a config.json that is no mapping"),
        (without("tokenizer.json"), "has no tokenizer"),
        (with_file("tokenizer.json", b'{"model": {'), "has a tokenizer.json that is not whole"),
        (without("model.safetensors"), "has no weights yet"),
        (with_file("model.safetensors", b""), "has a model.safetensors that is not whole"),
        (
            with_file("model.safetensors", weights()[:-1]),
            "has a model.safetensors that is not whole",
        ),
        (
            with_file("model.safetensors", weights()[:40]),
            "has a model.safetensors that is not whole",
        ),
        (with_file("model.safetensors", weights() + b"\0"), "bytes follow the last tensor"),
        (with_file("adapter_config.json", b"{}"), "holds an adapter, which is no base"),
    ],
)
def test_what_one_file_of_weights_lacks(
    change: Callable[[Files], Files], said: str, tmp_path: Path
) -> None:
    reason = lacking(ModelFolder.of(write(tmp_path, change(model_files()))))
    assert reason is not None
    assert said in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without(INDEX), f"has no {INDEX} yet"),
        (without(SHARD), f"has no {SHARD} yet"),
        (with_file(INDEX, b'{"weight_map": {"a'), f"has a {INDEX} that is not whole"),
        (with_file(INDEX, b'{"metadata": {}}'), "without its weight_map"),
        (with_file(SHARD, weights()), f"has a {SHARD} without layer.2.weight"),
        (with_file(SHARD, weights()[:-4]), f"has a {SHARD} that is not whole"),
        (
            with_file(INDEX, json.dumps({"weight_map": {"a": "other.safetensors"}}).encode()),
            "has no other.safetensors yet",
        ),
    ],
)
def test_what_shards_lack(change: Callable[[Files], Files], said: str, tmp_path: Path) -> None:
    reason = lacking(ModelFolder.of(write(tmp_path, change(sharded_files()))))
    assert reason is not None
    assert said in reason


def test_weights_in_a_pickle_are_told_apart_from_weights_to_come(tmp_path: Path) -> None:
    files = without("model.safetensors")(model_files()) | {"pytorch_model.bin": b"x"}
    assert "pickle" in str(lacking(ModelFolder.of(write(tmp_path, files))))


def test_folders_that_are_no_models_are_not_waited_for() -> None:
    assert not looks_like_a_model(["events.out", "optimizer.pt", "mp_rank_00_model_states.pt"])
    assert looks_like_a_model(["model-00001-of-00003.safetensors"])
    assert looks_like_a_model(["adapter_config.json"])
