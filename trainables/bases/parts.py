"""A base's tokenizer, image processor and config."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers.utils import logging

from spaces.errors import BaseModelError, nearest, one_line
from trainables.bases.location import (
    IMAGE_PROCESSOR_FILES,
    TOKENIZER_FILES,
    local_arguments,
    locate,
)

# What transformers raises at files that it cannot make sense of.
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    ImportError,
    AttributeError,
    StrictDataclassError,
)

# What the models of transformers raise at configs that make no sense.
UNBUILDABLE = (ValueError, KeyError, TypeError, AttributeError, AssertionError, RuntimeError)


def load_tokenizer(uri: str) -> Any:
    """The tokenizer of a base; a decoder's that has no padding token pads with its end token.

    Raises BaseModelError where there is none, or none that transformers can read.
    """
    path = locate(uri, weights=False)
    if path.is_dir() and not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise BaseModelError(f"base: {uri} has no tokenizer; add its tokenizer files")
    folder, kwargs = local_arguments(path)
    with _reading(f"base: {uri} has no tokenizer that can be read", "add its tokenizer files"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **kwargs)
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
    path = locate(uri, weights=False)
    if path.is_file() or not any((path / name).is_file() for name in IMAGE_PROCESSOR_FILES):
        raise BaseModelError(
            f"base: {uri} has no image processor; add its {IMAGE_PROCESSOR_FILES[0]}, or use a "
            "base that reads pictures"
        )
    folder, kwargs = local_arguments(path)
    problem = f"base: {uri} has an image processor that cannot be read"
    with _reading(problem, "use one that transformers knows without remote code"):
        return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", **kwargs)


def load_config(uri: str) -> Any:
    """The transformers config of a base; its weights are not needed.

    Raises BaseModelError where there is none, or none that transformers knows without running code.
    """
    folder, kwargs = local_arguments(locate(uri, weights=False))
    problem = f"base: {uri} has a config that cannot be read"
    with _reading(problem, "use a model that transformers knows without remote code"):
        return transformers.AutoConfig.from_pretrained(folder, **kwargs)


@contextmanager
def _reading(problem: str, remedy: str) -> Iterator[None]:
    """Raise BaseModelError where transformers cannot read what is read meanwhile."""
    with quiet():
        try:
            yield
        except _UNREADABLE as error:
            raise BaseModelError(f"{problem} ({one_line(error)}); {remedy}") from error


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


def task_config(uri: str, kind: str, num_labels: int) -> Any:
    """The config of a base for a task of `kind` with `num_labels` classes.

    Raises BaseModelError as `load_config` does, and for a base that is quantized.
    """
    config = load_config(uri)
    auto_class(kind)
    _check_plain(uri, config)
    config.num_labels = num_labels
    config.problem_type = "single_label_classification"
    if config.architectures is None:
        config.architectures = []  # transformers looks for a class's name in it
    return config


def _check_plain(uri: str, config: Any) -> None:
    """Raise BaseModelError where a config asks for weights that no adapter can be put on."""
    for part in (config, config.get_text_config()):
        # compression_config is an older name of compressed-tensors
        for key in ("quantization_config", "compression_config"):
            if (found := getattr(part, key, None)) is not None:
                method = found.get("quant_method") if isinstance(found, dict) else None
                raise BaseModelError(
                    f"base: {uri} is quantized ({method or key}), and its packed weights take no "
                    "adapter here; use the model that it was made from"
                )
    if (named := getattr(config, "transformers_weights", None)) is not None:
        raise BaseModelError(
            f"base: {uri} has a config that takes its weights from {named!r:.80} "
            "(transformers_weights); rename that file to model.safetensors and drop the key"
        )


def skeleton(uri: str, kind: str, config: Any) -> Any:
    """The base's model with its head on the meta device: shapes and names, no weights.

    Raises BaseModelError where transformers has no such model.
    """
    with quiet(), torch.device("meta"):
        try:
            return auto_class(kind).from_config(config, trust_remote_code=False)
        except ImportError as error:
            raise BaseModelError(
                f"base: {uri} needs what is not installed ({one_line(error)}); install it, or use "
                "a base of another family"
            ) from error
        except UNBUILDABLE as error:
            if "Unrecognized configuration class" not in str(error):
                raise unbuildable(uri, error) from error
            raise BaseModelError(
                f"base: {uri} ({config.model_type}) has no head for {kind} in transformers; use a "
                "base of another family"
            ) from error


def unbuildable(uri: str, error: Exception) -> BaseModelError:
    """The error of a base of whose config no model can be made, because of `error`."""
    return BaseModelError(
        f"base: {uri} cannot be built from its config ({one_line(error)}); correct its "
        "config.json, or use a model that transformers knows"
    )


def auto_class(kind: str) -> Any:
    """The transformers class that puts a head for a task of `kind` on a base."""
    heads = {
        "classification": transformers.AutoModelForSequenceClassification,
        "image_classification": transformers.AutoModelForImageClassification,
    }
    if kind not in heads:
        raise BaseModelError(f"task.kind: no head is known for {kind!r}; {nearest(kind, heads)}")
    return heads[kind]
