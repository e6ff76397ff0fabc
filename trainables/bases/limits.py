"""What a base can take: how long a row, which tokens; and whether its weights are numbers."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spaces.errors import BaseModelError, one_line, shown
from spaces.files import tensor_file
from trainables.bases.heads import Classes, is_within, number_of
from trainables.bases.location import locate, unloadable, weight_files
from trainables.bases.parts import UNBUILDABLE, skeleton, task_config
from trainables.bases.structure import passed_by_texts

_POSITION_TABLES = (
    "position_embeddings",
    "position_embedding",
    "embed_positions",
    "positions_embed",
    "wpe",
)
_AT_ONCE = 2**20  # values that are looked at together, so that they stay in a CPU's cache
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class TextLimits:
    """The longest row of a base of texts, in tokens, and how many tokens and types it embeds.

    A token's type says of which text of a pair it is. `end` is the token that every row must hold
    once: the classifiers of BART and T5 read a row there. None where the base sets no limit.
    """

    tokens: int | None
    vocabulary: int | None
    types: int | None
    end: int | None


def text_limits(uri: str, head: str) -> TextLimits:
    """The limits of a base, from its config alone. Raises BaseModelError as `skeleton` does."""
    config = task_config(uri, head, 2)
    model = skeleton(uri, head, config)
    longest = [getattr(config.get_text_config(), "max_position_embeddings", None)]
    elsewhere, types = passed_by_texts(model), []
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if last in _POSITION_TABLES and not is_within(name, elsewhere):
            longest.append(_positions(module))
        elif last == "token_type_embeddings" and isinstance(module, nn.Embedding):
            types.append(module.num_embeddings)
    try:
        embedding: Any = model.get_input_embeddings()
    except NotImplementedError:  # CANINE hashes characters
        embedding = None
    reads_end = config.is_encoder_decoder and hasattr(model, "classification_head")
    end = config.eos_token_id if reads_end else None
    return TextLimits(
        # XLNet says -1: its positions have no end
        tokens=min((n for n in longest if isinstance(n, int) and n > 0), default=None),
        vocabulary=getattr(embedding, "num_embeddings", None),
        types=min(types, default=None),
        end=end if isinstance(end, int) else None,
    )


def _positions(table: Any) -> int | None:
    """Tokens that a table of positions has rows for.

    The families of RoBERTa begin behind the row of the padding token, those of BART and OPT behind
    a fixed number of rows.
    """
    weight = getattr(table, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim != 2:
        return None
    padding, offset = getattr(table, "padding_idx", None), getattr(table, "offset", 0)
    return len(weight) - (offset if padding is None else padding + 1)


def check_pixels(uri: str, head: str, shape: tuple[int, ...]) -> None:
    """Raise BaseModelError where a base cannot take pixels of `shape`, [channels, height, width].

    The model is run on shapes alone; one whose way depends on values is not judged.
    """
    model = skeleton(uri, head, task_config(uri, head, 2)).eval()
    try:
        with torch.no_grad():
            model(pixel_values=torch.empty(1, *shape, device="meta"))
    except NotImplementedError:
        return
    except UNBUILDABLE as error:
        if "meta tensors" in str(error):
            return
        channels, height, width = shape
        raise BaseModelError(
            f"base: {uri} cannot take the {height} x {width} pixels of {channels} channels that "
            f"its image processor makes ({one_line(error)}); set the size in its "
            "preprocessor_config.json to that of its config.json"
        ) from error


def check_weights(uri: str, head: str, classes: Classes, dtype: str) -> None:
    """Raise BaseModelError where weights at hand are packed, not finite, or too large for `dtype`.

    Only what the model computes with is looked at, by the names that the files have for them; what
    transformers renames, and a base that is still to be fetched, a worker checks as it loads.
    """
    path = locate(uri, weights=False)
    if path.is_file():
        return
    try:
        files = [name for name in weight_files(path, uri) if name.endswith(".safetensors")]
    except BaseModelError:  # of the hub, not fetched yet
        return
    model = skeleton(uri, head, task_config(uri, head, number_of(classes)))
    names = weights_of(model).keys()
    prefix = f"{model.base_model_prefix}."
    for file in files:
        try:
            tensors = tensor_file.parsed(tensor_file.mapped(path / file)).tensors
        except (ValueError, OSError) as error:
            raise unloadable(uri, error) from error
        for name, stored in tensors.items():
            if names.isdisjoint((name, prefix + name, name.removeprefix(prefix))):
                continue
            if stored.dtype not in _FLOATS:
                raise BaseModelError(
                    f"base: {uri} is quantized ({name} is of {shown(stored.dtype)}), and packed "
                    "weights take no adapter here; use the model that it was made from"
                )
            if len(stored.data):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # pages that cannot be written to
                    values = torch.frombuffer(
                        stored.data, dtype=getattr(torch, _FLOATS[stored.dtype])
                    )
                if not is_finite(values, getattr(torch, dtype)):
                    raise not_finite(uri, name, getattr(torch, dtype))


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name -> tensor of all that the model computes with: parameters, and running statistics."""
    statistics = ("running_mean", "running_var")
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **{name: each for name, each in model.named_buffers() if name.endswith(statistics)},
    }


def is_finite(values: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether every value is a number that `dtype` holds."""
    if not values.numel():
        return True
    largest = torch.finfo(dtype).max
    for part in values.reshape(-1).split(_AT_ONCE) if values.device.type == "cpu" else [values]:
        # One pass without a copy; a NaN is the least and the largest of what it is among.
        low, high = (each.item() for each in torch.aminmax(part))  # a tensor would round `largest`
        if not (low >= -largest and high <= largest):
            return False
    return True


def not_finite(uri: str, name: str, dtype: torch.dtype) -> BaseModelError:
    """The error of a base with a parameter that is not finite."""
    precision = str(dtype).removeprefix("torch.")
    return BaseModelError(
        f"base: {uri} has a value in {name} that is no finite number in {precision}; "
        + ("set train.precision to bf16, or " if dtype == torch.float16 else "")
        + "use a sound copy of the weights"
    )
