"""Whether a base computes rows that are packed into one as it computes them apart."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from trainables.bases.parts import skeleton, task_config

_LINES = ((5, 8, 4), (9, 6, 2))  # tokens of the rows of two lines of 17, few enough for any base
_TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}


@torch.no_grad()
def packs_exactly(model: Any) -> bool:
    """Whether a loaded causal language model gives rows that are packed the logits of rows apart.

    Packed are rows one after another in lines, told apart by position_ids that begin anew at each
    row, without attention mask and cache. It is tried on short rows of random tokens in two lines,
    in the model's dtype and on its device, in evaluation mode. The error of the logits, in the
    norm, must be within the rounding of the dtype, and below a quarter of what it is where each row
    sees those before it, lest half precision hides that one does. Bases with a recurrent state or
    without position_ids fail, and are to be padded; so does flash attention, which transformers
    packs in a single line alone (`_is_packed_sequence`), and a base that cannot take the lines.
    """
    if not _takes_positions(model) or not _has_room(model):
        return False
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (len(_LINES), sum(_LINES[0])), generator=generator)
    ids = ids.to(model.device)
    position_ids = torch.stack([torch.cat([*map(torch.arange, line)]) for line in _LINES])
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        apart = torch.stack(
            [
                torch.cat([_logits(model, row[None])[0] for row in tokens.split(line)])
                for tokens, line in zip(ids, _LINES, strict=True)
            ]
        )
        unbroken = _logits(model, ids)
        packed = _logits(model, ids, position_ids=position_ids.to(model.device))
    except Exception:  # whatever a base makes of what it was not built for
        return False
    finally:
        for module, mode in modes:
            module.training = mode
    error, leak = float((packed - apart).norm()), float((unbroken - apart).norm())
    return error <= _TOLERANCES.get(model.dtype, 0.0) * float(apart.norm()) and error < leak / 4


def may_pack(uri: str, head: str) -> bool:
    """Whether a base that is not loaded is likely to: what is known from its config alone."""
    model = skeleton(uri, head, task_config(uri, head, 1))
    return _takes_positions(model) and not getattr(model, "_is_stateful", False)


def _has_room(model: Any) -> bool:
    """Whether the positions of a base go as far as a line: beyond them a GPU does not recover."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return not isinstance(positions, int) or positions < 0 or positions >= sum(_LINES[0])


def _takes_positions(model: Any) -> bool:
    return {"position_ids", "use_cache"} <= inspect.signature(model.forward).parameters.keys()


def _logits(model: Any, ids: torch.Tensor, **given: torch.Tensor) -> torch.Tensor:
    """Logits float64 [lines, tokens, vocabulary], on the CPU."""
    logits: torch.Tensor = model(input_ids=ids, use_cache=False, **given).logits
    return logits.double().cpu()
