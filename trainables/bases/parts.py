"""A base's tokenizer, image processor and config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging

from spaces.errors import BaseModelError, nearest, one_line
from trainables.bases.location import (
    GENERATION_CONFIG,
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
    return padded_tokenizer(uri)[0]


def padded_tokenizer(uri: str) -> tuple[Any, bool]:
    """The tokenizer of a base, and whether its end token was chosen for it to pad with.

    Raises BaseModelError as `load_tokenizer` does.
    """
    path = locate(uri, weights=False)
    if path.is_dir() and not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise BaseModelError(f"base: {uri} has no tokenizer; add its tokenizer files")
    folder, kwargs = local_arguments(path)
    with _reading(f"base: {uri} has no tokenizer that can be read", "add its tokenizer files"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **kwargs)
    if tokenizer.pad_token_id is not None:
        return tokenizer, False
    if tokenizer.eos_token is None:
        raise BaseModelError(
            f"base: {uri} has a tokenizer with neither a padding nor an end token; set "
            "pad_token in tokenizer_config.json"
        )
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, True


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


def load_generation_config(uri: str) -> Any:
    """The generation config that a base's model has when it is loaded: its own, or else what its
    config says. Raises BaseModelError as `load_config` does, and where it cannot be read."""
    path = locate(uri, weights=False)
    if not (path / GENERATION_CONFIG).is_file():
        return transformers.GenerationConfig.from_model_config(load_config(uri))
    folder, kwargs = local_arguments(path)
    with _reading(f"base: {uri} has a {GENERATION_CONFIG} that cannot be read", "correct it"):
        return transformers.GenerationConfig.from_pretrained(folder, **kwargs)


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


@dataclass(frozen=True)
class HeadClass:
    """What transformers puts on a base: the name of an auto class.

    `problem_type` is what its config then says. A head that `writes` gives logits of the next
    token: it is the base's own, and stays as it is.
    """

    auto_class: str
    problem_type: str | None = None
    writes: bool = False


HEADS: Mapping[str, HeadClass] = {
    "classification": HeadClass(
        "AutoModelForSequenceClassification", "single_label_classification"
    ),
    "image_classification": HeadClass(
        "AutoModelForImageClassification", "single_label_classification"
    ),
    "regression": HeadClass("AutoModelForSequenceClassification", "regression"),
    "causal": HeadClass("AutoModelForCausalLM", writes=True),
}
"""The heads that a kind of task may ask for, by name."""


def head_class(head: str) -> HeadClass:
    """The head of that name. Raises BaseModelError where there is none."""
    if head not in HEADS:
        raise BaseModelError(f"task.kind: no head is known for {head!r}; {nearest(head, HEADS)}")
    return HEADS[head]


def task_config(uri: str, head: str, num_labels: int) -> Any:
    """The config of a base for a task with that head and `num_labels` outputs.

    Raises BaseModelError as `load_config` does, for a base that is quantized, and for one that
    reads its text both ways where it should write.
    """
    config = load_config(uri)
    asked = head_class(head)
    _check_plain(uri, config)
    if asked.writes:
        _check_writes(uri, config)
    else:
        config.num_labels = num_labels
        config.problem_type = asked.problem_type
    if config.architectures is None:
        config.architectures = []  # transformers looks for a class's name in it
    return config


def _check_writes(uri: str, config: Any) -> None:
    """Raise BaseModelError where a base does not predict the next token from those before it."""
    reads = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    both_ways = reads and not getattr(config, "is_decoder", False)
    if both_ways or config.is_encoder_decoder:
        what = "is an encoder with a decoder" if config.is_encoder_decoder else "reads both ways"
        raise BaseModelError(
            f"base: {uri} ({config.model_type}) {what}, and this kind of task needs a decoder, "
            "which writes on; use one such as Llama, Qwen or GPT-2, or another task.kind"
        )


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


def skeleton(uri: str, head: str, config: Any) -> Any:
    """The base's model with its head on the meta device: shapes and names, no weights.

    Raises BaseModelError where transformers has no such model.
    """
    with quiet(), torch.device("meta"):
        try:
            return auto_class(head).from_config(config, trust_remote_code=False)
        except ImportError as error:
            raise BaseModelError(
                f"base: {uri} needs what is not installed ({one_line(error)}); install it, or use "
                "a base of another family"
            ) from error
        except UNBUILDABLE as error:
            if "Unrecognized configuration class" not in str(error):
                raise unbuildable(uri, error) from error
            raise BaseModelError(
                f"base: {uri} ({config.model_type}) has no head for {head} in transformers; use a "
                "base of another family"
            ) from error


def unbuildable(uri: str, error: Exception) -> BaseModelError:
    """The error of a base of whose config no model can be made, because of `error`."""
    return BaseModelError(
        f"base: {uri} cannot be built from its config ({one_line(error)}); correct its "
        "config.json, or use a model that transformers knows"
    )


def auto_class(head: str) -> Any:
    """The transformers class that puts a head of that name on a base."""
    return getattr(transformers, head_class(head).auto_class)
