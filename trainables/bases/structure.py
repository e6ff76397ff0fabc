"""A base's modules and their shapes, found in a loaded base or in its config and headers alone."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import huggingface_hub
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from spaces.errors import BaseModelError, nearest
from spaces.files import tensor_file
from spaces.target import BaseSize, TargetModule
from trainables.bases.heads import (
    Classes,
    Head,
    Unfilled,
    head_of,
    is_within,
    number_of,
    outside_backbone,
    unfilled_by,
)
from trainables.bases.location import hub_parts, is_of_hub, locate, unloadable, weight_files
from trainables.bases.parts import (
    UNBUILDABLE,
    head_class,
    load_config,
    skeleton,
    task_config,
    unbuildable,
)
from trainables.layers.recomputed import repeatable_layers
from trainables.settings import ALL_LINEAR


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
            if isinstance(model_class, type) and issubclass(model_class, PreTrainedModel):
                model = model_class(config)
            else:
                model = transformers.AutoModel.from_config(config, trust_remote_code=False)
    except (*UNBUILDABLE, ImportError) as error:
        raise unbuildable(uri, error) from error
    return sum(parameter.numel() for parameter in model.parameters())


def meta_linear_layers(uri: str, head: str, classes: Classes) -> tuple[TargetModule, ...]:
    """Every linear layer of a base outside its head, found without loading a weight."""
    model, its_head = meta_model(uri, head, classes)
    linears = _linear_layers(model, its_head.modules)
    return _grouped(linears, linears)


@dataclass(frozen=True)
class MetaBase:
    """What is known of a base without its weights: target modules, size, the task's head, and
    whether its layers can be computed again (activation checkpointing)."""

    targets: tuple[TargetModule, ...]
    size: BaseSize
    head: Head
    repeatable: bool


def meta_base(uri: str, head: str, classes: Classes, patterns: Sequence[str]) -> MetaBase:
    """The target modules of a base, its size and its head, found without loading a weight.

    They are those that `resolve_targets`, `base_size` and `head_of` find in the loaded base. Raises
    BaseModelError as these and `task_config` do.
    """
    model, its_head = meta_model(uri, head, classes)
    targets = resolve_targets(model, its_head.modules, patterns)
    size = base_size(model, its_head.modules)
    return MetaBase(targets, size, its_head, bool(repeatable_layers(model)))


def kept_whole(uri: str, head: str, classes: Classes) -> list[str]:
    """The modules of a base that are not quantized: its head for the task, and the next token's.

    Raises BaseModelError as `meta_base` does.
    """
    model, its_head = meta_model(uri, head, classes)
    return [*its_head.modules, *_next_token_head(model)]


def meta_model(uri: str, head: str, classes: Classes) -> tuple[Any, Head]:
    """A base with its head on the meta device, and which head it is for the task. Raises
    BaseModelError as `task_config` and `head_of` do."""
    config = task_config(uri, head, number_of(classes))
    model = skeleton(uri, head, config)
    shapes = _checkpoint_shapes(uri)
    if shapes is not None:
        unfilled = unfilled_by(model, config, shapes, uri)
    else:
        lacking = set() if head_class(head).writes else outside_backbone(model)
        unfilled = Unfilled(frozenset(lacking), {})
    return model, head_of(model, unfilled, uri, head, classes)


def base_size(model: nn.Module, head_modules: Sequence[str]) -> BaseSize:
    """How many parameters a model has outside its head, and how many of them are biases."""
    sizes = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if not is_within(name, head_modules)
    }
    biases = sum(size for name, size in sizes.items() if name.endswith("bias"))
    return BaseSize(params=sum(sizes.values()), bias_params=biases)


def resolve_targets(
    model: nn.Module, head_modules: Sequence[str], patterns: Sequence[str]
) -> tuple[TargetModule, ...]:
    """The linear layers of `model` that `patterns` name, in the model's order, the head left out.

    PEFT's suffix rule: a module is named where its name is a pattern or ends in "." + pattern;
    `all-linear` names every one. What a text does not go through, such as the vision tower of a
    model of texts and pictures, is left out. Shapes are [out, in], also where the weight is stored
    transposed (GPT-2's Conv1D). One weight of several layers is one TargetModule with several
    names. Raises BaseModelError for a pattern that names no such layer, or fused experts.
    """
    linears = _linear_layers(model, head_modules)
    _check_experts(model, head_modules, linears, patterns)
    matched = {pattern: _named(linears, pattern) for pattern in patterns}
    for pattern, names in matched.items():
        if not names:
            raise BaseModelError(_unknown_target(model, head_modules, linears, pattern))
    return _grouped(linears, {name for names in matched.values() for name in names})


def _grouped(linears: Mapping[str, Any], chosen: Container[str]) -> tuple[TargetModule, ...]:
    """The weights of the layers, those with a chosen name, with all the names of each."""
    layers_of: dict[int, list[str]] = {}
    for name, module in linears.items():
        layers_of.setdefault(id(module.weight), []).append(name)
    return tuple(
        TargetModule(names[0], _out_in(linears[names[0]]), tuple(names))
        for names in layers_of.values()
        if any(name in chosen for name in names)
    )


def _linear_layers(model: nn.Module, head_modules: Sequence[str]) -> dict[str, Any]:
    """Name -> module of every nn.Linear or Conv1D that is adapted, shared ones by each name."""
    # MultiheadAttention reads the weight of its output layer without calling the layer, so an
    # adapter on that layer would never run.
    uncalled = nn.modules.linear.NonDynamicallyQuantizableLinear
    left_out = (*head_modules, *passed_by_texts(model), *_next_token_head(model))
    return {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear | Conv1D)
        and not isinstance(module, uncalled)
        and not is_within(name, left_out)
    }


def _next_token_head(model: nn.Module) -> tuple[str, ...]:
    """The head that gives the next token, which no method adapts; it may share the embedding."""
    found = getattr(model, "get_output_embeddings", lambda: None)()
    return tuple(
        name for name, each in model.named_modules() if found is not None and each is found
    )


def passed_by_texts(model: nn.Module) -> tuple[str, ...]:
    """The modules of a model of texts that a text does not go through: those of other inputs.

    A model that joins several, such as Gemma 3, holds one for texts, one for pictures, and what
    leads from the pictures' to the texts'.
    """
    if getattr(model, "main_input_name", None) != "input_ids":
        return ()
    passed = []
    for name, module in model.named_modules():
        models = [each for each in module.children() if isinstance(each, PreTrainedModel)]
        of_texts = [each for each in models if "text" in each.input_modalities]
        if of_texts and len(of_texts) < len(models):
            prefix = f"{name}." if name else ""
            passed += [
                prefix + child for child, each in module.named_children() if each not in of_texts
            ]
    return tuple(passed)


def _check_experts(
    model: nn.Module,
    head_modules: Sequence[str],
    linears: Mapping[str, Any],
    patterns: Sequence[str],
) -> None:
    """Raise BaseModelError where a pattern means experts whose weights are one tensor.

    They are no linear layers: what is attached to layers would pass them by without a word.
    """
    fused = _fused_experts(model, head_modules)
    for pattern in patterns:
        if named := _named(fused, pattern):
            suffixes = {name.rpartition(".")[2] for name in linears} - {"gate", "router"}
            usable = sorted(each for each in suffixes if not _named(fused, each))
            raise BaseModelError(
                f"profile.target_modules: {pattern!r} takes in {named[0]}, the weights of all "
                f"experts in one tensor, which take no adapter here; name linear layers by "
                f"themselves: {', '.join(usable)}"
            )


def _fused_experts(model: nn.Module, head_modules: Sequence[str]) -> list[str]:
    """Names of the parameters [experts, rows, columns] outside the head."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 3
        and min(parameter.shape) > 1
        and "expert" in f"{name} {type(model.get_submodule(name.rpartition('.')[0]))}".lower()
        and not is_within(name, head_modules)
    ]


def _named(names: Iterable[str], pattern: str) -> list[str]:
    if pattern == ALL_LINEAR:
        return list(names)
    return [name for name in names if name == pattern or name.endswith(f".{pattern}")]


def _out_in(module: Any) -> tuple[int, int]:
    """[out, in] of a linear layer; a Conv1D stores [in, out]."""
    # Not of the weight, which may be divided among workers or packed.
    return (
        (module.out_features, module.in_features)
        if isinstance(module, nn.Linear)
        else (module.nf, module.nx)
    )


def _unknown_target(
    model: nn.Module, head_modules: Sequence[str], linears: Mapping[str, Any], pattern: str
) -> str:
    """One line on why a pattern names no target."""
    key = f"profile.target_modules: {pattern!r}"
    if not linears:
        return f"{key} names no module of this base, which has no linear layer; use another base"
    for name in _named((name for name, _ in model.named_modules()), pattern):
        if is_within(name, head_modules):
            return f"{key} names only the task's head, which trains whole; leave it out"
        if name in _next_token_head(model):
            return f"{key} names the head of the next token, which stays as it is; leave it out"
        if is_within(name, passed_by_texts(model)):
            return f"{key} names {name}, which a text does not go through; leave it out"
        kind = type(model.get_submodule(name)).__name__
        return f"{key} names {name} ({kind}), which is not a linear layer; name linear layers"
    depth = pattern.count(".") + 1
    suffixes = sorted({".".join(name.split(".")[-depth:]) for name in linears})
    return f"{key} names no module of this base; {nearest(pattern, suffixes)}"


def _checkpoint_shapes(uri: str) -> dict[str, tuple[int, ...]] | None:
    """Name -> shape of every tensor of a base's safetensors files, from their headers.

    None where there is no safetensors file at hand (GGUF, a config alone, a hub out of reach):
    then the checkpoint is taken to hold the whole base and no head but that of the next token.
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
