"""What cases are made of: the fake device, a base on it, and a count of what it is asked to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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
    "detach", "_unsafe_view", "lift_fresh", "empty", "empty_like", "empty_strided",
    "_record_function_enter_new", "_record_function_exit",
}  # fmt: skip


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Everything that is made inside lies on the fake device, unless it is said to be elsewhere."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        yield


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
