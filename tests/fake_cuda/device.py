"""What cases are made of: the fake device, a base on it, and a count of what it is asked to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig

SHAPES_OF_7B = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
    "vocab_size": 32000,
}  # fmt: skip
_NO_LAUNCH = {
    "detach", "_unsafe_view", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty",
    "_record_function_enter_new", "_record_function_exit",
}  # fmt: skip

# A build for the CPU lacks the device's own kernel for this and takes it to pieces.
_KERNELS = torch.library.Library("aten", "IMPL")
_KERNELS.impl("silu_backward", lambda grad, x: torch.empty_like(grad), "CUDA")


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Everything that is made inside lies on the fake device, unless it is said to be elsewhere."""
    with fake_tensors(), torch.device("cuda"):
        yield


@contextmanager
def fake_tensors() -> Iterator[None]:
    """What is made inside is fake, and lies where it is said to.

    Attention is one launch each way, as on a device; its generator has a state, which is None.
    """
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch("torch.nn.functional.scaled_dot_product_attention", _flash_attention),
        mock.patch("torch.cuda.get_rng_state", return_value=None),
        mock.patch("torch.cuda.set_rng_state", return_value=None),
    ):
        yield


def _flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """What a device takes where nothing is padded."""
    attend = torch.ops.aten._scaled_dot_product_flash_attention
    out: torch.Tensor = attend(query, key, value, dropout_p, is_causal, scale=scale)[0]
    return out


def llama(layers: int, **shapes: int) -> nn.Module:
    """A frozen Llama in bfloat16, of a 7B's width where `shapes` do not say otherwise."""
    config = LlamaConfig(num_hidden_layers=layers, **{**SHAPES_OF_7B, **shapes})
    model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.requires_grad_(False).eval()


class Launches(TorchDispatchMode):
    """Counts the operators that launch a kernel on the device, by name: views launch none.

    `to_host` counts those that the host waits for, to have a tensor of the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()
        self.to_host = 0

    @property
    def number(self) -> int:
        """All of them."""
        return sum(self.of.values())

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace != "prim" and not func.is_view and name not in _NO_LAUNCH:
            self.of[name] += 1
        if isinstance(result, torch.Tensor) and result.device.type == "cpu":
            self.to_host += any(isinstance(arg, torch.Tensor) and arg.is_cuda for arg in args)
        return result
