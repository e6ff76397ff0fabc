"""A base whose linear layers hold their weights in 4 bits: NormalFloat (Dettmers et al., 2023).

They are bitsandbytes' layers. A weight is packed bytes there; what computes with it gets it in the
precision of the rest of the base.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import torch
import transformers

from spaces.errors import BaseModelError

Quantization = Literal["nf4"]


def check_installed(quantization: Quantization | None) -> None:
    """Raise BaseModelError where the package that a quantization needs is not here."""
    if quantization is not None and find_spec("bitsandbytes") is None:
        raise BaseModelError(
            f"base_quantization: {quantization} needs bitsandbytes on the driver and on every "
            "node; pip install 'ranksweep[nf4]'"
        )


def quantizing(dtype: torch.dtype, whole: list[str]) -> transformers.BitsAndBytesConfig:
    """How transformers loads all linear layers in NF4 but the modules named `whole`.

    The scales are quantized too; products are in `dtype`.
    """
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=whole,  # read for 4 bits too
    )


def is_packed(weight: torch.Tensor) -> bool:
    """Whether a weight is packed into bytes."""
    return hasattr(weight, "quant_state")


def unpacked(weight: Any) -> torch.Tensor:
    """A packed weight as [out, in], in the precision that it was loaded in."""
    from bitsandbytes.functional import dequantize_4bit

    found: torch.Tensor = dequantize_4bit(weight.data, weight.quant_state)
    return found
