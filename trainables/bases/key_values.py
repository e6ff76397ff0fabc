"""What a base keeps of every token while it writes on: keys and values."""

from __future__ import annotations

from typing import Any

import torch


def key_value_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes that keys and values of one token take in all layers of a base of this config, 0 where
    it says no heads, as one with a recurrent state does."""
    text = config.get_text_config()
    layers, heads = (
        getattr(text, key, None) or 0 for key in ("num_hidden_layers", "num_attention_heads")
    )
    if not (layers and heads):
        return 0
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    kept = getattr(text, "num_key_value_heads", None) or heads
    return 2 * int(layers) * int(kept) * int(width) * dtype.itemsize
