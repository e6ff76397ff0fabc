"""Small folders that a trainer of transformers might leave, and stores to look at them with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from search.store.objects import ObjectStorage


def weights(value: float = 1.0, name: str = "layer.weight") -> bytes:
    return save({name: np.full((4, 4), value, np.float32)})


def model_files(value: float = 1.0) -> dict[str, bytes]:
    """Name -> content of a whole model; another `value` is another model."""
    return {
        "config.json": json.dumps({"model_type": "bert"}).encode(),
        "model.safetensors": weights(value),
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b"{}",
    }


def sharded_files() -> dict[str, bytes]:
    """The same with its weights in two files and an index."""
    shards = {f"model-0000{i}-of-00002.safetensors": f"layer.{i}.weight" for i in (1, 2)}
    index = {"weight_map": {tensor: shard for shard, tensor in shards.items()}}
    return {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        **{shard: weights(name=tensor) for shard, tensor in shards.items()},
    }


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


def put(objects: ObjectStorage, under: str, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        objects.put(f"{under}/{name}", content)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }
