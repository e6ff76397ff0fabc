"""A frozen pre-trained model in memory, with a head for a task.

A GGUF file is unpacked when it is loaded. No code of a base is ever run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from spaces.errors import BaseModelError
from trainables.bases.heads import Classes, Head, Unfilled, head_of, is_within, number_of
from trainables.bases.limits import is_finite, not_finite, weights_of
from trainables.bases.location import (
    TOKENIZER_FILES,
    fingerprint,
    local_arguments,
    locate,
    unloadable,
)
from trainables.bases.parts import UNBUILDABLE, auto_class, load_tokenizer, quiet, task_config
from trainables.bases.quantization import (
    Quantization,
    check_installed,
    is_packed,
    quantizing,
    unpacked,
)
from trainables.bases.structure import kept_whole

_UNLOADABLE = (*UNBUILDABLE, OSError, ImportError, SafetensorError)


@dataclass(frozen=True)
class Base:
    """A loaded base: in evaluation mode, every parameter frozen.

    `head` says which modules are the task's head, and what it starts from; `model_kind` is the
    family of the model (bert, llama, ...).
    """

    uri: str
    fingerprint: str
    model: Any
    head: Head
    model_kind: str

    @property
    def head_modules(self) -> tuple[str, ...]:
        """Names of the topmost modules that train as the task's head."""
        return self.head.modules


def load_base(
    uri: str,
    head: str,
    classes: Classes,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    quantization: Quantization | None = None,
) -> Base:
    """Load a base with a `head` (HEADS names them) for `classes`, in `dtype` on `device`.

    Every tensor goes from the mapped file to the device by itself, in its precision: in main memory
    there are never more than a few of them. A head that the checkpoint holds stays as it is in the
    model; what trains is what `fresh_head` makes of it. With `quantization` the linear layers hold
    their weights packed. Loading leaves the random state of torch on
    the CPU as it was. Raises BaseModelError where the base cannot be loaded or holds a value that
    is not finite.
    """
    path = locate(uri)
    folder, kwargs = local_arguments(path)
    if path.is_file():
        # Packed layers take no adapter: their weights are bytes.
        kwargs["quantization_config"] = transformers.GgufConfig(dequantize=True)
    else:
        kwargs["use_safetensors"] = True
    if quantization is not None:
        check_installed(quantization)
        kwargs["quantization_config"] = quantizing(dtype, kept_whole(uri, head, classes))
    config = task_config(uri, head, number_of(classes))
    model_class = auto_class(head)
    with quiet(), seeded(0):
        try:
            model, info = model_class.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                device_map={"": torch.device(device)},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **kwargs,
            )
        except _UNLOADABLE as error:
            raise unloadable(uri, error) from error
        its_head = head_of(model, Unfilled.of(model, info), uri, head, classes)
    model.requires_grad_(False)
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # In training mode it would overwrite the base's running statistics.
            module.train = MethodType(_unmoved, module)  # type: ignore[method-assign]
    if model.main_input_name == "pixel_values":
        model.register_forward_pre_hook(_in_its_precision, with_kwargs=True)
    else:
        # A decoder's classifier finds the last token of a row by the padding token, so it must be
        # the one that rows are padded with.
        model.config.get_text_config().pad_token_id = _pad_token_id(uri, path, config)
    _check_finite(model, its_head, uri, dtype)
    return Base(uri, fingerprint(uri), model, its_head, config.model_type)


def _check_finite(model: nn.Module, head: Head, uri: str, dtype: torch.dtype) -> None:
    """Raise BaseModelError where a weight of the base is not finite in its precision."""
    drawn = head.modules if head.order is None else ()
    for name, tensor in weights_of(model).items():
        values = unpacked(tensor) if is_packed(tensor) else tensor.detach()
        if not is_within(name, drawn) and not is_finite(values, dtype):
            raise not_finite(uri, name, dtype)


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
    held = getattr(text, "vocab_size", None)  # CANINE embeds every character
    if held is not None and token >= held:
        raise BaseModelError(
            f"base: {uri} has padding token {token}, but its embedding holds {held} "
            "tokens; set pad_token in tokenizer_config.json to one of those"
        )
    return token


def fresh_head(base: Base, seed: int) -> dict[str, nn.Module]:
    """Name -> trainable copy of each head module, as a job starts with it.

    A head of the base's own starts as the base holds it, its outputs in the order of the task's
    classes, whatever the seed. Any other is drawn by the model's own rule from `seed`: on the CPU
    in float32, so that a seed means the same head on every device and in every precision, then cast
    to the resident module's dtype and device. The resident modules and torch's random state are
    left as they were.
    """
    if base.head.order is not None:
        return _own_head(base, base.head.order)
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


def _own_head(base: Base, order: Sequence[int]) -> dict[str, nn.Module]:
    heads: dict[str, nn.Module] = {}
    with torch.no_grad():
        for name in base.head.modules:
            head = copy.deepcopy(base.model.get_submodule(name))
            for place, tensor in head.named_parameters(remove_duplicate=False):
                if f"{name}.{place}" in base.head.outputs:
                    tensor.copy_(tensor[list(order)])
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
