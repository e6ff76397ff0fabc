"""A base's modules and their shapes, found in a loaded base or in its config and headers alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import huggingface_hub
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from spaces.errors import BaseModelError, nearest
from spaces.files import tensor_file
from spaces.target import BaseSize, TargetModule
from trainables.bases.location import hub_parts, is_of_hub, locate, unloadable, weight_files
from trainables.bases.parts import auto_class, load_config, quiet, task_config
from trainables.settings import ALL_LINEAR

_POOLER = "pooler"


def base_parameters(uri: str) -> int:
    """Parameters of a base as its config names it, a language model's head included, from that
    config alone: what the papers' percentages are of.

    Raises BaseModelError where there is no such base or transformers does not know it.
    """
    config = load_config(uri)
    named = next(iter(config.architectures or ()), "")
    model_class = getattr(transformers, named, None)
    try:
        with torch.device("meta"):
            if isinstance(model_class, type):
                model = model_class(config)
            else:
                model = transformers.AutoModel.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise BaseModelError(
            f"base: {uri} cannot be built ({reason}); use a model that transformers knows"
        ) from error
    return sum(parameter.numel() for parameter in model.parameters())


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
    config = task_config(uri, kind, num_labels)
    model = _skeleton(uri, kind, config)
    shapes = _checkpoint_shapes(uri)
    missing = _outside_backbone(model) if shapes is None else _missing(model, config, shapes, uri)
    head_modules = find_heads(model, missing, uri)
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


def find_heads(model: Any, missing: set[str], uri: str) -> tuple[str, ...]:
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
    path = locate(uri, weights=False)
    if path.is_file():
        return None
    try:
        files = [name for name in weight_files(path, uri) if name.endswith(".safetensors")]
    except BaseModelError:
        return _remote_shapes(uri) if is_of_hub(uri) else None
    shapes: dict[str, tuple[int, ...]] = {}
    for name in files:
        try:
            tensors = tensor_file.parsed(tensor_file.mapped(path / name)).tensors
        except (ValueError, OSError) as error:
            raise unloadable(uri, error) from error
        shapes |= {key: tensor.shape for key, tensor in tensors.items()}
    return shapes


def _remote_shapes(uri: str) -> dict[str, tuple[int, ...]] | None:
    """As `_checkpoint_shapes`, from the headers on the hub; None where it cannot be reached."""
    repo, _, revision = hub_parts(uri)
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
            raise unloadable(uri, error) from error
    return unfilled_parameters(model, info)


def unfilled_parameters(model: Any, info: Mapping[str, Any]) -> set[str]:
    """Parameters that loading reports as missing, or as of another shape than the checkpoint's."""
    mismatched = {entry[0] for entry in info["mismatched_keys"]}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return (set(info["missing_keys"]) | mismatched) & parameters
