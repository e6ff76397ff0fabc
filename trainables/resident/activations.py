"""Whether a worker's base keeps its activations or computes its layers again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from trainables.engine.workers import Workers

ROOM = 0.95
"""The share of a device's memory that a plan may fill: an allocator leaves gaps."""


@dataclass(frozen=True)
class Activations:
    """`train.activation_checkpointing`, and the bytes that a worker's jobs come to hold beside the
    base where all activations are kept; None where nobody has planned for it."""

    setting: Literal["auto", "on", "off"] = "auto"
    beside_base: int | None = None

    def recomputed(self, model: nn.Module, workers: Workers) -> bool:
        """Whether the layers of a loaded base are to be computed again. A collective: where one
        worker's device has too little room, all do so."""
        # Here, for the driver, which knows this file too, has no use for what it loads.
        from trainables.layers.recomputed import repeatable_layers

        needed = self.setting == "on"
        if self.setting == "auto" and self.beside_base is not None:
            needed = self.beside_base > ROOM * _free_bytes(workers.device)
        return any(workers.gather_objects(needed)) and bool(repeatable_layers(model))


def _free_bytes(device: torch.device) -> float:
    """Bytes of a GPU that are free or held by nothing but torch; without end on a CPU."""
    if device.type != "cuda":
        return float("inf")
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(free + unused)
