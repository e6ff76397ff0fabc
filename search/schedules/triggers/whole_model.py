"""Whether a folder that somebody else writes is a whole model by now, and if not what it lacks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from spaces.errors import shown
from spaces.files import tensor_file
from trainables.bases.location import (
    ADAPTER_CONFIG,
    CHAT_TEMPLATE,
    GENERATION_CONFIG,
    IMAGE_PROCESSOR_FILES,
    MORE_CHAT_TEMPLATES,
    TOKENIZER_FILES,
    WEIGHTS,
    WEIGHTS_INDEX,
)

CONFIG = "config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PARTS = (
    CONFIG,
    WEIGHTS_INDEX,
    *("*.safetensors", "tokenizer.*.json", "tekken.json", "tiktoken.model"),
    *TOKENIZER_FILES,
    *IMAGE_PROCESSOR_FILES,
    *(CHAT_TEMPLATE, MORE_CHAT_TEMPLATES, GENERATION_CONFIG),
)
"""Names, and patterns of names, of what a base is made of; a trainer leaves more beside it."""

_ABOUT_A_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_TOKENIZERS = {*TOKENIZER_FILES, "tekken.json", "tiktoken.model"} - {*_ABOUT_A_TOKENIZER}
_PICKLES = ("pytorch_model*.bin", "model*.pt", "*.ckpt")
_SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")
_LARGEST_JSON = 100 * 2**20


@dataclass(frozen=True)
class ModelFolder:
    """A folder as it can be looked at from afar: its files, and parts of what they hold.

    `read` takes a name, where to begin and how many bytes are wanted.
    """

    sizes: Mapping[str, int]
    read: Callable[[str, int, int], bytes]

    @classmethod
    def of(cls, folder: Path) -> ModelFolder:
        """A folder of this machine."""

        def read(name: str, start: int, length: int) -> bytes:
            with (folder / name).open("rb") as file:
                file.seek(start)
                return file.read(length)

        files = (file for file in folder.rglob("*") if file.is_file())
        return cls({str(file.relative_to(folder)): file.stat().st_size for file in files}, read)


def is_a_part(name: str) -> bool:
    """Whether a base of transformers has a file of this name that decides what it is."""
    if name == ADAPTER_WEIGHTS:
        return False
    return any(fnmatch(name, part) and name.count("/") == part.count("/") for part in PARTS)


def looks_like_a_model(names: Collection[str]) -> bool:
    """Whether a folder with these files is, or will be, a model or an adapter, or neither."""
    return any(
        name in (CONFIG, ADAPTER_CONFIG, WEIGHTS, WEIGHTS_INDEX, ADAPTER_WEIGHTS)
        or _SHARD.fullmatch(name)
        for name in names
    )


def lacking_in_names(names: Collection[str]) -> str | None:
    """What a folder with these files lacks, as far as names tell; None where nothing."""
    if ADAPTER_CONFIG in names or ADAPTER_WEIGHTS in names:
        return "holds an adapter, which is no base; merge it into its base and save that"
    if CONFIG not in names:
        return f"has no {CONFIG} yet"
    if not any(name in names for name in (WEIGHTS, WEIGHTS_INDEX)):
        if any(_SHARD.fullmatch(name) for name in names):
            return f"has no {WEIGHTS_INDEX} yet"
        if any(fnmatch(name, pattern) for name in names for pattern in _PICKLES):
            return f"has its weights in a pickle; save them as {WEIGHTS}"
        return "has no weights yet"
    if WEIGHTS not in names and (absent := _absent_shards(names)):
        return f"has no {absent[0]} yet"
    if not any(name in names for name in (*_TOKENIZERS, *IMAGE_PROCESSOR_FILES)):
        return "has no tokenizer and no image processor; have the trainer save one beside the model"
    return None


def lacking(folder: ModelFolder) -> str | None:
    """What a folder lacks to be a whole model; None where it is one.

    config.json and the weights' index must be whole JSON, the index may name only shards and
    tensors that are there, and every file of weights must be as long as its header says. No tensor
    is read.
    """
    if reason := lacking_in_names(folder.sizes):
        return reason
    try:
        config = _json(folder, CONFIG)
        if not isinstance(config, dict):
            return f"has a {CONFIG} that is no mapping"
        for name in (*_ABOUT_A_TOKENIZER, "tokenizer.json", *IMAGE_PROCESSOR_FILES):
            if name in folder.sizes:
                _json(folder, name)
        if WEIGHTS in folder.sizes:
            _tensors(folder, WEIGHTS)
            return None
        return _lacking_of_index(folder)
    except ValueError as error:
        return str(error)


def _lacking_of_index(folder: ModelFolder) -> str | None:
    index = _json(folder, WEIGHTS_INDEX)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        return f"has a {WEIGHTS_INDEX} without its weight_map"
    held: dict[str, frozenset[str]] = {}
    for tensor, shard in shards.items():
        if shard not in folder.sizes:
            return f"has no {shown(shard)} yet, which {WEIGHTS_INDEX} names"
        if shard not in held:
            held[shard] = _tensors(folder, shard)
        if tensor not in held[shard]:
            return f"has a {shown(shard)} without {shown(tensor)}, which {WEIGHTS_INDEX} puts there"
    return None if held else f"has a {WEIGHTS_INDEX} that names no weights"


def _absent_shards(names: Collection[str]) -> list[str]:
    """The shards that must be there too, by the names of those that are."""
    found = [match for name in names if (match := _SHARD.fullmatch(name))]
    if not found:
        return []
    width, count = len(found[0].group(1)), found[0].group(2)
    wanted = [f"model-{i:0{width}d}-of-{count}.safetensors" for i in range(1, int(count) + 1)]
    return [name for name in wanted if name not in names]


def _json(folder: ModelFolder, name: str) -> Any:
    """What a JSON file holds. Raises ValueError, as the reason of a folder, where it is none."""
    size = folder.sizes[name]
    if size > _LARGEST_JSON:
        raise ValueError(f"has a {name} of {size:,} bytes, more than {_LARGEST_JSON:,}")
    try:
        return json.loads(folder.read(name, 0, size))
    except (ValueError, RecursionError):
        raise ValueError(f"has a {name} that is not whole (yet)") from None


def _tensors(folder: ModelFolder, name: str) -> frozenset[str]:
    """The tensors of a file of weights. Raises ValueError, as above, where it is not whole."""
    size = folder.sizes[name]
    try:
        first = folder.read(name, 0, min(size, tensor_file.START))
        end = tensor_file.header_end(first, size)
        return tensor_file.names_in(folder.read(name, 0, end), size)
    except ValueError as error:
        raise ValueError(f"has a {shown(name)} that is not whole (yet): {error}") from None
