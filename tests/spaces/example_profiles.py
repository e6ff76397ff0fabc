"""Targets and profiles that the tests of spaces share; every profile is drawn, none is measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spaces.profile import ModuleProfile, Profile
from spaces.target import BaseSize, TargetModule

GRID = (1.0, 2.0, 5.0, 10.0)

SMALL = (
    TargetModule("layers.0.query", (12, 8)),
    TargetModule("layers.0.dense", (8, 20), ("layers.0.dense", "layers.1.dense")),
    TargetModule("layers.1.query", (12, 8)),
    TargetModule("layers.1.output.dense", (9, 9)),
    TargetModule("layers.1.up", (30, 10)),
    TargetModule("layers.1.down_proj", (10, 30)),
    TargetModule("layers.2.narrow", (5, 40)),
)

SIZE = BaseSize(params=5_000, bias_params=120)
"""Of the base that the small targets belong to."""


def drawn_profile(
    targets: Sequence[TargetModule] = SMALL, seed: int = 0, steps: int = 10, levels: int = 0
) -> Profile:
    """A profile of random statistics; with `levels` they take so few values that ties abound."""
    rng = np.random.default_rng(seed)

    def counts(limit: int, shape: tuple[int, ...]) -> np.ndarray:
        top = min(limit, levels) if levels else limit
        return rng.integers(0, top + 1, shape)

    def importances(size: int) -> np.ndarray:
        values = rng.integers(0, levels, size) if levels else rng.random(size) ** 3
        return values.astype(np.float32)

    modules = {}
    for target in targets:
        out, inner = target.shape
        rows, cols = (len(GRID), out), (len(GRID), inner)
        modules[target.name] = ModuleProfile(
            hits=(rng.integers(0, levels + 1, out) * steps // levels).astype(np.int32)
            if levels
            else counts(steps, (out,)).astype(np.int32),
            row_importance=importances(out),
            sensitivity_row_count=counts(inner, rows),
            sensitivity_col_count=counts(out, cols),
            gradient_row_count=counts(inner, rows),
            gradient_col_count=counts(out, cols),
            hessian_diag=importances(inner) * np.float32(1 + 4 * rng.random()),
        )
    return Profile(tuple(targets), steps, GRID, modules, {"base": "drawn", "task": "drawn"})


def qwen_2_5_3b() -> tuple[TargetModule, ...]:
    """Every linear layer of Qwen2.5-3B: hidden 2048, key and value 256, intermediate 11008."""
    shapes = {
        "self_attn.q_proj": (2048, 2048),
        "self_attn.k_proj": (256, 2048),
        "self_attn.v_proj": (256, 2048),
        "self_attn.o_proj": (2048, 2048),
        "mlp.gate_proj": (11008, 2048),
        "mlp.up_proj": (11008, 2048),
        "mlp.down_proj": (2048, 11008),
    }
    return tuple(
        TargetModule(f"model.layers.{layer}.{name}", shape)
        for layer in range(36)
        for name, shape in shapes.items()
    )
