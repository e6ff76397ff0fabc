"""Where a base's files are, and the fingerprint of what they hold.

A base is named by `hub:org/name@revision`, `path:dir` or `package:import_name/sub/dir`. Its weights
are safetensors, or one GGUF file (`path:dir/file.gguf`). No pickle is ever read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from spaces.errors import BaseModelError, one_line
from trainables.bases.digests import sha256_of
from trainables.bases.naming import scheme_and_place

_log = logging.getLogger(__name__)
SLOW_S = 5.0
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spm_char.model",
    "prophetnet.tokenizer",
    "bpe.codes",
    "dict.txt",
    "emoji.json",
    "entity_vocab.json",
    "word_shape.json",
    "word_pronunciation.json",
    "byte_maps.json",
)
# What transformers makes a tokenizer of where there is no tokenizer.json, and else passes over.
_CONVERTED_TOKENIZERS = ("tekken.json", "tiktoken.model")
IMAGE_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
CHAT_TEMPLATE = "chat_template.jinja"
MORE_CHAT_TEMPLATES = "additional_chat_templates/*.jinja"
GENERATION_CONFIG = "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"
_LFS_POINTER = b"version https://git-lfs"


def locate(uri: str, *, weights: bool = True) -> Path:
    """The folder of a base, or its GGUF file; a hub base is downloaded, or found in the cache.

    Without `weights` only the small files of a hub base are needed. Raises BaseModelError where
    there is no such base, its weights are in no readable format or an adapter lies beside them.
    """
    scheme, where = _split(uri)
    if scheme == "hub":
        path = _hub_snapshot(uri, weights)
    elif scheme == "path":
        path = Path(os.path.expanduser(where))
    else:
        try:
            path = package_path(f"base: {uri}", where)
        except FileNotFoundError as error:
            raise BaseModelError(str(error)) from error
    if os.path.isfile(path):  # of os.path, for they never raise
        if path.suffix != ".gguf":
            raise BaseModelError(f"base: {uri} is a file, not a GGUF; name the folder it is in")
        return path
    if not os.path.isdir(path):
        raise BaseModelError(f"base: {uri} does not exist; check the path {path}")
    if (path / ADAPTER_CONFIG).is_file():
        # transformers attaches it to the model, or loads the base that it names in its place.
        raise BaseModelError(
            f"base: {uri} holds an adapter of PEFT ({ADAPTER_CONFIG}); merge it into its base and "
            "save that, or name a folder without it"
        )
    if not (path / "config.json").is_file():
        raise BaseModelError(
            f"base: {uri} has no config.json; name the folder that holds it, or a .gguf file"
        )
    _refuse_other_configs(path, uri)
    if weights:
        weight_files(path, uri)
    return path


def _refuse_other_configs(path: Path, uri: str) -> None:
    """Raise BaseModelError where transformers would read another file in place of config.json."""
    try:
        config = json.loads((path / "config.json").read_bytes())
    except ValueError:
        return  # who loads it says so
    if isinstance(config, dict) and "configuration_files" in config:
        raise BaseModelError(
            f"base: {uri} has a config.json that names others to be read in its place "
            f"(configuration_files: {config['configuration_files']!r:.80}); use a copy whose "
            "config.json is the one that is meant"
        )


def from_pretrained_arguments(uri: str) -> tuple[str, dict[str, str]]:
    """What a user gives to transformers' `from_pretrained`: name or folder, and keyword arguments.

    These are `revision` of a hub base that names one, and `gguf_file`. Raises BaseModelError as
    `locate` does.
    """
    if is_of_hub(uri):
        repo, file, revision = hub_parts(uri)
        named = {"revision": revision, "gguf_file": file}
        return repo, {key: value for key, value in named.items() if value is not None}
    path = locate(uri).resolve()
    return (str(path.parent), {"gguf_file": path.name}) if path.is_file() else (str(path), {})


def pin(uri: str) -> str:
    """The same base with the hub's revision replaced by its commit; other bases as they are.

    Raises BaseModelError where the hub and its local cache do not know the base.
    """
    if not is_of_hub(uri):
        return uri
    repo, file, _ = hub_parts(uri)
    return f"hub:{repo}{'/' + file if file else ''}@{_hub_commit(uri)}"


def package_path(uri: str, where: str) -> Path:
    """The path of `import_name/sub/path` inside an installed package, which is not imported.

    `uri` is what an error names. Raises FileNotFoundError where the package or the path is absent.
    """
    name, _, inside = where.partition("/")
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"{uri}: package {name!r} is not installed; pip install it")
    for root in spec.submodule_search_locations:
        if (path := Path(root) / inside).exists():
            return path
    raise FileNotFoundError(f"{uri}: package {name!r} holds no {inside!r}; see what it ships")


def fingerprint(uri: str) -> str:
    """Name the content of a base: SHA-256 over its files, in hex.

    They are those of the model and of its tokenizer or image processor. Modification times, README
    files and copies of the weights for other frameworks do not count. A hub base is named by its
    commit hash. Raises BaseModelError as `locate` does.
    """
    if is_of_hub(uri):
        return _hub_commit(uri)
    path = locate(uri)
    digests = (
        {"gguf": sha256_of(path)}
        if path.is_file()
        else {name: sha256_of(path / name) for name in _defining_files(path)}
    )
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def is_of_hub(uri: str) -> bool:
    """Whether a base lies on the hub. Raises BaseModelError where `uri` names no base."""
    return _split(uri)[0] == "hub"


def _split(uri: str) -> tuple[str, str]:
    """The scheme of a base's name and what follows it. Raises BaseModelError where it is none."""
    try:
        return scheme_and_place(uri)
    except ValueError as error:
        raise BaseModelError(f"base: {error}") from error


def hub_parts(uri: str) -> tuple[str, str | None, str | None]:
    """Repository, GGUF file within it (or None) and revision (or None) of a hub base."""
    named, _, revision = _split(uri)[1].partition("@")
    parts = named.split("/")
    if len(parts) < 2 or not all(parts):
        raise BaseModelError(f"base: {uri!r} names no repository; use hub:org/name@revision")
    file = "/".join(parts[2:]) or None
    if file is not None and not file.endswith(".gguf"):
        raise BaseModelError(
            f"base: {uri!r} names a folder of a repository; use hub:org/name@revision"
        )
    return "/".join(parts[:2]), file, revision or None


def _hub_snapshot(uri: str, weights: bool) -> Path:
    """Fetch a hub base at its revision, from the local cache where the hub cannot be reached.

    Of several workers of a node one fetches: the hub's client holds a lock for each file, and who
    has waited for it finds the file there (huggingface_hub/file_download.py).
    """
    repo, file, revision = hub_parts(uri)
    patterns = ["config.json", WEIGHTS_INDEX, ADAPTER_CONFIG, *IMAGE_PROCESSOR_FILES]
    patterns += [*TOKENIZER_FILES, *_CONVERTED_TOKENIZERS, "tokenizer.*.json"]
    patterns += [CHAT_TEMPLATE, MORE_CHAT_TEMPLATES, GENERATION_CONFIG]
    if file is not None:
        patterns = [file]
    elif weights:
        patterns.append("*.safetensors")
    try:
        with _said_if_slow(uri):
            root = huggingface_hub.snapshot_download(
                repo, revision=revision, allow_patterns=patterns
            )
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise BaseModelError(
            f"base: {uri} cannot be had from the hub nor from its local cache "
            f"({one_line(error)}); check the name and the network, or use path:DIR"
        ) from error
    return Path(root) / file if file is not None else Path(root)


@contextmanager
def _said_if_slow(uri: str) -> Iterator[None]:
    """Say once that a base is being fetched, where it takes longer than a look into the cache."""
    said = f"base: {uri} is being fetched from the hub"
    timer = threading.Timer(SLOW_S, _log.warning, [said])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _hub_commit(uri: str) -> str:
    """Commit hash of a hub base: the name that the hub's cache gives the snapshot's folder."""
    path = locate(uri, weights=False)
    file = hub_parts(uri)[1]
    return path.name if file is None else path.parents[file.count("/")].name


def weight_files(path: Path, uri: str) -> list[str]:
    """Names of the files that hold the weights, with the index where there are several.

    Raises BaseModelError where there are none, or only what Git has left in their place.
    """
    names = _weight_names(path, uri)
    for name in names:
        with (path / name).open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise BaseModelError(
                    f"base: {uri} has a pointer of Git LFS in place of {name}; fetch the file "
                    "with git lfs pull"
                )
    return names


def _weight_names(path: Path, uri: str) -> list[str]:
    if (path / WEIGHTS).is_file():
        return [WEIGHTS]
    if (path / WEIGHTS_INDEX).is_file():
        try:
            index = json.loads((path / WEIGHTS_INDEX).read_text())
            shards = sorted(set(index["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise unloadable(uri, error) from error
        absent = [shard for shard in shards if not (path / shard).is_file()]
        if absent:
            raise BaseModelError(
                f"base: {uri} lacks {absent[0]}, which {WEIGHTS_INDEX} names; fetch it again"
            )
        return [WEIGHTS_INDEX, *shards]
    found = sorted(file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".gguf"))
    if any(name.endswith(".gguf") for name in found):
        gguf = next(name for name in found if name.endswith(".gguf"))
        raise BaseModelError(f"base: {uri} is a folder with {gguf}; name that file in the base")
    if found:
        raise BaseModelError(
            f"base: {uri} has its weights in {found[0]}, a pickle that could run code; convert it "
            f"to {WEIGHTS} with save_pretrained"
        )
    raise BaseModelError(f"base: {uri} holds no {WEIGHTS}; name a folder that holds weights")


def _defining_files(path: Path) -> list[str]:
    """Names of the files of a folder that decide what is loaded from it: model and processor.

    Chat templates are not among them: they are a part of the tasks that render messages.
    """
    return ["config.json", *weight_files(path, str(path)), *processor_files(path)]


def chat_template_files(path: Path) -> list[str]:
    """Names of the files of a folder that hold chat templates."""
    more = sorted(str(file.relative_to(path)) for file in path.glob(MORE_CHAT_TEMPLATES))
    return [name for name in (CHAT_TEMPLATE, *more) if (path / name).is_file()]


def processor_files(path: Path) -> list[str]:
    """Names of the files of a folder that its tokenizer or image processor is made of."""
    names = [*TOKENIZER_FILES, *IMAGE_PROCESSOR_FILES, *_versioned_tokenizers(path)]
    if not (path / "tokenizer.json").is_file():
        names += _CONVERTED_TOKENIZERS
    return [name for name in dict.fromkeys(names) if (path / name).is_file()]


def _versioned_tokenizers(path: Path) -> list[str]:
    """The files, one for each version of transformers, that replace tokenizer.json."""
    try:
        named = json.loads((path / "tokenizer_config.json").read_bytes())["fast_tokenizer_files"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def local_arguments(path: Path) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` takes for a folder or a GGUF file: the folder, keyword arguments."""
    kwargs: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if path.is_file():
        return _alone(path.absolute()).name, kwargs | {"gguf_file": path.name}
    return str(path), kwargs


@cache
def _alone(file: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder with a link to a GGUF file and nothing else, for as long as the process lives.

    A tokenizer or an adapter beside the file would be taken along, and is no part of the base.
    """
    folder = tempfile.TemporaryDirectory(prefix="ranksweep-gguf-")
    (Path(folder.name) / file.name).symlink_to(file)
    return folder


def unloadable(uri: str, error: Exception) -> BaseModelError:
    """The error of a base whose checkpoint cannot be read, because of `error`."""
    return BaseModelError(
        f"base: {uri} cannot be loaded ({one_line(error)}); use a checkpoint that transformers "
        "reads"
    )
