"""Bases: where a frozen pre-trained model lies, what names it, and how it is loaded.

A base is named by `hub:org/name@revision`, `path:dir` or `package:import_name/sub/dir`. Its weights
are safetensors, or one GGUF file (`path:dir/file.gguf`), which is unpacked when it is loaded. No
code of a base is ever run and no pickle is ever read.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MethodType
from typing import Any

import huggingface_hub
import torch
import transformers
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    StrictDataclassError,
)
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from spaces.errors import BaseModelError, nearest
from spaces.target import BaseSize, TargetModule
from trainables.settings import ALL_LINEAR, IMAGE_KINDS

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
)
IMAGE_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_POOLER = "pooler"


# --- where a base lies -------------------------------------------------------------------------


def locate(uri: str) -> Path:
    """The folder of a base, or its GGUF file; a hub base is downloaded, or found in the cache.

    Raises BaseModelError where there is no such base or its weights are in no readable format.
    """
    return _located(uri, weights=True)


def from_pretrained_arguments(uri: str) -> tuple[str, dict[str, str]]:
    """What a user gives to transformers' `from_pretrained`: name or folder, and keyword arguments.

    These are `revision` of a hub base that names one, and `gguf_file`. Raises BaseModelError as
    `locate` does.
    """
    scheme, where = _split(uri)
    if scheme == "hub":
        repo, file, revision = _hub_parts(uri, where)
        named = {"revision": revision, "gguf_file": file}
        return repo, {key: value for key, value in named.items() if value is not None}
    path = locate(uri).resolve()
    return (str(path.parent), {"gguf_file": path.name}) if path.is_file() else (str(path), {})


def pin(uri: str) -> str:
    """The same base with the hub's revision replaced by its commit; other bases as they are.

    Raises BaseModelError where the hub and its local cache do not know the base.
    """
    scheme, where = _split(uri)
    if scheme != "hub":
        return uri
    repo, file, _ = _hub_parts(uri, where)
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
    if _split(uri)[0] == "hub":
        return _hub_commit(uri)
    path = locate(uri)
    digests = (
        {"gguf": _sha256(path)}
        if path.is_file()
        else {name: _sha256(path / name) for name in _defining_files(path)}
    )
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _split(uri: str) -> tuple[str, str]:
    """The scheme of a base's name and what follows it."""
    scheme, colon, where = uri.partition(":")
    if not colon or scheme not in ("hub", "path", "package") or not where:
        raise BaseModelError(
            f"base: {uri!r} names no base; use hub:org/name@revision, path:DIR or "
            "package:import_name/sub/dir"
        )
    return scheme, where


def _located(uri: str, weights: bool) -> Path:
    """As `locate`; without `weights` only the small files of a hub base are needed."""
    scheme, where = _split(uri)
    if scheme == "hub":
        path = _hub_snapshot(uri, where, weights)
    elif scheme == "path":
        path = Path(where).expanduser()
    else:
        try:
            path = package_path(f"base: {uri}", where)
        except FileNotFoundError as error:
            raise BaseModelError(str(error)) from error
    if path.is_file():
        if path.suffix != ".gguf":
            raise BaseModelError(f"base: {uri} is a file, not a GGUF; name the folder it is in")
        return path
    if not path.is_dir():
        raise BaseModelError(f"base: {uri} does not exist; check the path {path}")
    if not (path / "config.json").is_file():
        raise BaseModelError(
            f"base: {uri} has no config.json; name the folder that holds it, or a .gguf file"
        )
    if weights:
        _weight_files(path, uri)
    return path


def _hub_parts(uri: str, where: str) -> tuple[str, str | None, str | None]:
    """Repository, GGUF file within it (or None) and revision (or None) of a hub base."""
    named, _, revision = where.partition("@")
    parts = named.split("/")
    if len(parts) < 2 or not all(parts):
        raise BaseModelError(f"base: {uri!r} names no repository; use hub:org/name@revision")
    file = "/".join(parts[2:]) or None
    if file is not None and not file.endswith(".gguf"):
        raise BaseModelError(
            f"base: {uri!r} names a folder of a repository; use hub:org/name@revision"
        )
    return "/".join(parts[:2]), file, revision or None


def _hub_snapshot(uri: str, where: str, weights: bool) -> Path:
    """Fetch a hub base at its revision, from the local cache where the hub cannot be reached."""
    repo, file, revision = _hub_parts(uri, where)
    patterns = ["config.json", WEIGHTS_INDEX, *TOKENIZER_FILES, *IMAGE_PROCESSOR_FILES]
    if file is not None:
        patterns = [file]
    elif weights:
        patterns.append("*.safetensors")
    try:
        root = huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=patterns)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise BaseModelError(
            f"base: {uri} cannot be had from the hub nor from its local cache "
            f"({_first_line(error)}); check the name and the network, or use path:DIR"
        ) from error
    return Path(root) / file if file is not None else Path(root)


def _hub_commit(uri: str) -> str:
    """Commit hash of a hub base: the name that the hub's cache gives the snapshot's folder."""
    path = _located(uri, weights=False)
    _, file, _ = _hub_parts(uri, _split(uri)[1])
    levels = 0 if file is None else file.count("/") + 1
    return (path.parents[levels - 1] if levels else path).name


def _first_line(error: BaseException) -> str:
    """The first line of an error, for a message of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _weight_files(path: Path, uri: str) -> list[str]:
    """Names of the files that hold the weights, with the index where there are several."""
    if (path / WEIGHTS).is_file():
        return [WEIGHTS]
    if (path / WEIGHTS_INDEX).is_file():
        try:
            index = json.loads((path / WEIGHTS_INDEX).read_text())
            shards = sorted(set(index["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise _unloadable(uri, error) from error
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
    """Names of the files of a folder that decide what is loaded from it: model and processor."""
    small = (*TOKENIZER_FILES, *IMAGE_PROCESSOR_FILES)
    present = [name for name in small if (path / name).is_file()]
    return ["config.json", *_weight_files(path, str(path)), *present]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _source(path: Path) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` takes for a folder or a GGUF file: the folder, keyword arguments."""
    kwargs: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if path.is_file():
        return str(path.parent), kwargs | {"gguf_file": path.name}
    return str(path), kwargs


# --- tokenizer, image processor and config ------------------------------------------------------


def load_tokenizer(uri: str) -> Any:
    """The tokenizer of a base; a decoder's that has no padding token pads with its end token.

    Raises BaseModelError where there is none, or none that transformers can read.
    """
    path = _located(uri, weights=False)
    if path.is_dir() and not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise BaseModelError(f"base: {uri} has no tokenizer; add its tokenizer files")
    folder, kwargs = _source(path)
    with quiet():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **kwargs)
        except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
            raise BaseModelError(
                f"base: {uri} has no tokenizer that can be read ({_first_line(error)}); add its "
                "tokenizer files"
            ) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise BaseModelError(
                f"base: {uri} has a tokenizer with neither a padding nor an end token; set "
                "pad_token in tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_image_processor(uri: str) -> Any:
    """The image processor of a base, computing with Pillow whatever else is installed.

    Raises BaseModelError where there is none, or none that transformers knows without running code.
    """
    path = _located(uri, weights=False)
    if path.is_file() or not any((path / name).is_file() for name in IMAGE_PROCESSOR_FILES):
        raise BaseModelError(
            f"base: {uri} has no image processor; add its {IMAGE_PROCESSOR_FILES[0]}, or use a "
            "base that reads pictures"
        )
    folder, kwargs = _source(path)
    with quiet():
        try:
            return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", **kwargs)
        except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
            raise BaseModelError(
                f"base: {uri} has an image processor that cannot be read ({_first_line(error)}); "
                "use one that transformers knows without remote code"
            ) from error


def load_config(uri: str) -> Any:
    """The transformers config of a base; its weights are not needed.

    Raises BaseModelError where there is none, or none that transformers knows without running code.
    """
    folder, kwargs = _source(_located(uri, weights=False))
    with quiet():
        try:
            return transformers.AutoConfig.from_pretrained(folder, **kwargs)
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            ImportError,
            StrictDataclassError,
        ) as error:
            raise BaseModelError(
                f"base: {uri} has a config that cannot be read ({_first_line(error)}); use a model "
                "that transformers knows without remote code"
            ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from reporting a fresh head, and its progress, as if they were news."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _task_config(uri: str, kind: str, num_labels: int) -> Any:
    """The config of a base for a task of `kind` with `num_labels` classes."""
    config = load_config(uri)
    auto_class(kind)
    config.num_labels = num_labels
    config.problem_type = "single_label_classification"
    return config


def auto_class(kind: str) -> Any:
    """The transformers class that puts a head for a task of `kind` on a base."""
    heads = {
        "classification": transformers.AutoModelForSequenceClassification,
        "image_classification": transformers.AutoModelForImageClassification,
    }
    if kind not in heads:
        raise BaseModelError(f"task.kind: no head is known for {kind!r}; {nearest(kind, heads)}")
    return heads[kind]


def _skeleton(uri: str, kind: str, config: Any) -> Any:
    """The base's model with its head on the meta device: shapes and names, no weights."""
    with quiet(), torch.device("meta"):
        try:
            return auto_class(kind).from_config(config, trust_remote_code=False)
        except (ValueError, KeyError, TypeError, ImportError) as error:
            raise BaseModelError(
                f"base: {uri} ({config.model_type}) has no head for {kind} in transformers; use a "
                "base of another family"
            ) from error


# --- head and target modules -------------------------------------------------------------------


def meta_targets(
    uri: str, kind: str, num_labels: int, patterns: Sequence[str]
) -> tuple[TargetModule, ...]:
    """The target modules of a base, found without loading a weight: those of `meta_base`."""
    return meta_base(uri, kind, num_labels, patterns)[0]


def meta_base(
    uri: str, kind: str, num_labels: int, patterns: Sequence[str]
) -> tuple[tuple[TargetModule, ...], BaseSize]:
    """The target modules of a base and its size, found without loading a weight.

    They are those that `resolve_targets` and `base_size` find in the loaded base. Raises
    BaseModelError as `resolve_targets` and `load_config` do.
    """
    config = _task_config(uri, kind, num_labels)
    model = _skeleton(uri, kind, config)
    shapes = _checkpoint_shapes(uri)
    missing = _outside_backbone(model) if shapes is None else _missing(model, config, shapes, uri)
    head_modules = _head_modules(model, missing, uri)
    return resolve_targets(model, head_modules, patterns), base_size(model, head_modules)


def base_size(model: nn.Module, head_modules: Sequence[str]) -> BaseSize:
    """How many parameters a model has outside its head, and how many of them are biases."""
    sizes = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if not _is_within(name, head_modules)
    }
    biases = sum(size for name, size in sizes.items() if name.endswith("bias"))
    return BaseSize(params=sum(sizes.values()), bias_params=biases)


def resolve_targets(
    model: nn.Module, head_modules: Sequence[str], patterns: Sequence[str]
) -> tuple[TargetModule, ...]:
    """The linear layers of `model` that `patterns` name, in the model's order, the head left out.

    PEFT's suffix rule: a module is named where its name is a pattern or ends in "." + pattern;
    `all-linear` names every one. Shapes are [out, in], also where the weight is stored transposed
    (GPT-2's Conv1D). One weight of several layers is one TargetModule with several names. Raises
    BaseModelError for a pattern that names no such layer.
    """
    linears = _linear_layers(model, head_modules)
    matched = {pattern: _named(linears, pattern) for pattern in patterns}
    for pattern, names in matched.items():
        if not names:
            raise BaseModelError(_unknown_target(model, head_modules, linears, pattern))
    chosen = {name for names in matched.values() for name in names}

    layers_of: dict[int, list[str]] = {}
    for name, module in linears.items():
        layers_of.setdefault(id(module.weight), []).append(name)
    return tuple(
        TargetModule(names[0], _out_in(linears[names[0]]), tuple(names))
        for names in layers_of.values()
        if not chosen.isdisjoint(names)
    )


def _linear_layers(model: nn.Module, head_modules: Sequence[str]) -> dict[str, Any]:
    """Name -> module of every nn.Linear or Conv1D outside the head, shared ones by each name."""
    # MultiheadAttention reads the weight of its output layer without calling the layer, so an
    # adapter on that layer would never run.
    uncalled = nn.modules.linear.NonDynamicallyQuantizableLinear
    return {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear | Conv1D)
        and not isinstance(module, uncalled)
        and not _is_within(name, head_modules)
    }


def _named(names: Iterable[str], pattern: str) -> list[str]:
    if pattern == ALL_LINEAR:
        return list(names)
    return [name for name in names if name == pattern or name.endswith(f".{pattern}")]


def _out_in(module: Any) -> tuple[int, int]:
    """[out, in] of a linear layer; a Conv1D stores [in, out]."""
    first, second = module.weight.shape
    return (first, second) if isinstance(module, nn.Linear) else (second, first)


def _is_within(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _unknown_target(
    model: nn.Module, head_modules: Sequence[str], linears: Mapping[str, Any], pattern: str
) -> str:
    """One line on why a pattern names no target."""
    key = f"profile.target_modules: {pattern!r}"
    for name in _named((name for name, _ in model.named_modules()), pattern):
        if _is_within(name, head_modules):
            return f"{key} names only the task's head, which trains whole; leave it out"
        kind = type(model.get_submodule(name)).__name__
        return f"{key} names {name} ({kind}), which is not a linear layer; name linear layers"
    depth = pattern.count(".") + 1
    suffixes = sorted({".".join(name.split(".")[-depth:]) for name in linears})
    return f"{key} names no module of this base; {nearest(pattern, suffixes)}"


def _head_modules(model: Any, missing: set[str], uri: str) -> tuple[str, ...]:
    """The topmost modules all of whose parameters are `missing` from the checkpoint.

    Raises BaseModelError where weights of the base itself are missing, other than its pooler's:
    that checkpoint is damaged or of another model, and training it as a head would hide it.
    """
    heads: list[str] = []
    for name, module in model.named_modules():
        if not name or _is_within(name, heads):
            continue
        parameters = [f"{name}.{p}" for p, _ in module.named_parameters(remove_duplicate=False)]
        if parameters and missing.issuperset(parameters):
            heads.append(name)
    backbone = model.base_model_prefix
    for name in sorted(missing):
        fresh = _is_within(name, heads)
        inside = _is_within(name, [backbone]) and not _is_within(name, [f"{backbone}.{_POOLER}"])
        if inside or not fresh:
            raise BaseModelError(
                f"base: {uri} lacks {len(missing)} weights of a {type(model).__name__}, such as "
                f"{name}; use the complete checkpoint of that model"
            )
    return tuple(heads)


def _outside_backbone(model: Any) -> set[str]:
    """Parameters that a checkpoint of the bare base lacks: all that the base does not hold."""
    return {
        name
        for name, _ in model.named_parameters(remove_duplicate=False)
        if not _is_within(name, [model.base_model_prefix])
    }


def _checkpoint_shapes(uri: str) -> dict[str, tuple[int, ...]] | None:
    """Name -> shape of every tensor of a base's safetensors files, from their headers.

    None where there is no safetensors file at hand (GGUF, a config alone, a hub out of reach):
    then the checkpoint is taken to hold the whole base and no head.
    """
    path = _located(uri, weights=False)
    if path.is_file():
        return None
    try:
        files = [name for name in _weight_files(path, uri) if name.endswith(".safetensors")]
    except BaseModelError:
        return _remote_shapes(uri) if _split(uri)[0] == "hub" else None
    shapes: dict[str, tuple[int, ...]] = {}
    for name in files:
        try:
            with safe_open(path / name, framework="pt") as tensors:
                names = tensors.keys()
                shapes |= {key: tuple(tensors.get_slice(key).get_shape()) for key in names}
        except (SafetensorError, OSError) as error:
            raise _unloadable(uri, error) from error
    return shapes


def _remote_shapes(uri: str) -> dict[str, tuple[int, ...]] | None:
    """As `_checkpoint_shapes`, from the headers on the hub; None where it cannot be reached."""
    repo, _, revision = _hub_parts(uri, _split(uri)[1])
    try:
        metadata = huggingface_hub.get_safetensors_metadata(repo, revision=revision)
    except Exception:  # whatever the hub's client raises, the config alone still answers
        return None
    return {
        name: tuple(tensor.shape)
        for file in metadata.files_metadata.values()
        for name, tensor in file.tensors.items()
    }


def _missing(model: Any, config: Any, shapes: Mapping[str, tuple[int, ...]], uri: str) -> set[str]:
    """Parameters of `model` that a checkpoint with tensors of these `shapes` does not fill.

    The tensors are loaded as shapes alone, so that transformers' own renaming of keys decides.
    """
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with quiet():
        try:
            _, info = type(model).from_pretrained(
                None,
                config=config,
                state_dict=state,
                device_map={"": "meta"},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise _unloadable(uri, error) from error
    return _unfilled(model, info)


def _unfilled(model: Any, info: Mapping[str, Any]) -> set[str]:
    """Parameters that loading reports as missing, or as of another shape than the checkpoint's."""
    mismatched = {entry[0] for entry in info["mismatched_keys"]}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return (set(info["missing_keys"]) | mismatched) & parameters


def _unloadable(uri: str, error: Exception) -> BaseModelError:
    return BaseModelError(
        f"base: {uri} cannot be loaded ({_first_line(error)}); use a checkpoint that transformers "
        "reads"
    )


# --- loading -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Base:
    """A loaded base: in evaluation mode, every parameter frozen.

    `head_modules` are the topmost modules whose weights the checkpoint did not hold; `model_kind`
    is the family of the model (bert, llama, ...).
    """

    uri: str
    fingerprint: str
    model: Any
    head_modules: tuple[str, ...]
    model_kind: str


def load_base(
    uri: str,
    kind: str,
    num_labels: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Base:
    """Load a base with a head for a task of `kind`, in `dtype` on `device`.

    A head of the checkpoint that has as many classes is kept and counts as part of the base; one
    of another size is replaced by a fresh one. Loading leaves torch's random state as it was.
    Raises BaseModelError where the base cannot be loaded.
    """
    path = locate(uri)
    folder, kwargs = _source(path)
    if path.is_file():
        # Packed layers take no adapter: their weights are bytes.
        kwargs["quantization_config"] = transformers.GgufConfig(dequantize=True)
    else:
        kwargs["use_safetensors"] = True
    config = _task_config(uri, kind, num_labels)
    with quiet(), seeded(0):
        try:
            model, info = auto_class(kind).from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **kwargs,
            )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise _unloadable(uri, error) from error
    model.requires_grad_(False)
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # In training mode it would overwrite the base's running statistics.
            module.train = MethodType(_unmoved, module)  # type: ignore[method-assign]
    if kind in IMAGE_KINDS:
        model.register_forward_pre_hook(_in_its_precision, with_kwargs=True)
    else:
        # A decoder's classifier finds the last token of a row by the padding token, so it must be
        # the one that rows are padded with.
        model.config.get_text_config().pad_token_id = _pad_token_id(uri, path, config)
    return Base(
        uri=uri,
        fingerprint=fingerprint(uri),
        model=model.to(device),
        head_modules=_head_modules(model, _unfilled(model, info), uri),
        model_kind=config.model_type,
    )


def _unmoved(module: nn.Module, mode: bool = True) -> nn.Module:
    """In place of `module.train`: stay in evaluation mode."""
    return module


def _in_its_precision(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Hand a model pixels in the precision of its weights; not every family sees to it itself."""
    pixels = kwargs.get("pixel_values")
    if pixels is not None:
        kwargs = kwargs | {"pixel_values": pixels.to(next(model.parameters()).dtype)}
    return args, kwargs


def _pad_token_id(uri: str, path: Path, config: Any) -> int:
    """The tokenizer's padding token; without a tokenizer the config's, or its end token."""
    text = config.get_text_config()
    if path.is_file() or any((path / name).is_file() for name in TOKENIZER_FILES):
        token = load_tokenizer(uri).pad_token_id
    else:
        token = text.eos_token_id if text.pad_token_id is None else text.pad_token_id
    if token is None:
        raise BaseModelError(
            f"base: {uri} has no tokenizer and its config no padding token; add its tokenizer files"
        )
    token = int(token[0] if isinstance(token, list) else token)
    if token >= text.vocab_size:
        raise BaseModelError(
            f"base: {uri} has padding token {token}, but its embedding holds {text.vocab_size} "
            "tokens; set pad_token in tokenizer_config.json to one of those"
        )
    return token


def fresh_head(base: Base, seed: int) -> dict[str, nn.Module]:
    """Name -> trainable copy of each head module, drawn by the model's own rule from `seed`.

    The weights are drawn on the CPU in float32, so that a seed means the same head on every device
    and in every precision, then cast to the resident module's dtype and device. The resident
    modules and torch's random state are left as they were.
    """
    heads: dict[str, nn.Module] = {}
    with seeded(seed), torch.no_grad():
        for name in base.head_modules:
            resident = base.model.get_submodule(name)
            parameter = next(resident.parameters())
            head = copy.deepcopy(resident).to(device="cpu", dtype=torch.float32)
            for tensor in head.parameters():
                # transformers skips a tensor that it marked as initialised
                vars(tensor).pop("_is_hf_initialized", None)
            _draw(head, base.model._init_weights)
            head.to(device=parameter.device, dtype=parameter.dtype)
            heads[name] = head.requires_grad_(True)
    return heads


def _draw(module: nn.Module, rule: Callable[[nn.Module], None]) -> None:
    """Apply an initialisation rule to a module's children, then to the module itself."""
    for child in module.children():
        _draw(child, rule)
    rule(module)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's generator for a while; no other generator is touched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
