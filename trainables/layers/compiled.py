"""What low-rank updates and dropout do on a CPU, compiled (trainables/layers/low_rank.c).

It is built where the package is installed if there is a C compiler with OpenMP. Without it torch's
own operations do the same (trainables/layers/small_products.py), from other random numbers.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from trainables.layers.small_products import Dropped, Gradients, LowRank

_BUILDS = {"AVX512": ("avx512", "avx2"), "AVX2": ("avx2",)}
"""By what torch calls the processor, the best first."""

_INTERFACE = 1
"""Of the library as it is called here; a build of another one is left from other sources."""

_MOST_RANKS = 32
"""Of all updates together; beyond it torch's products of whole matrices are as fast."""

_FOLDER = Path(__file__).parent
"""Builds lie beside this file; one that another copy of the package has is of its sources."""

_POINTER, _INT64 = ctypes.c_void_p, ctypes.c_int64


class _Update(ctypes.Structure):
    """One low-rank update as the library reads it."""

    _fields_ = (
        ("A", _POINTER),
        ("B", _POINTER),
        ("dropped", _POINTER),
        ("grad_A", _POINTER),
        ("grad_B", _POINTER),
        ("rank", _INT64),
        ("drops", _INT64),
        ("scale", ctypes.c_float),
    )


@cache
def library() -> ctypes.CDLL | None:
    """The best build for this processor; None where none was made or none can be loaded."""
    return next(filter(None, map(build, builds())), None)


def builds() -> tuple[str, ...]:
    """Names of the builds that this processor can run, the best first, made or not."""
    return _BUILDS.get(torch.backends.cpu.get_cpu_capability(), ())


@cache
def build(name: str) -> ctypes.CDLL | None:
    """One build, loaded; None where it was not made of these sources or cannot be loaded."""
    found = next(_FOLDER.glob(f"_low_rank_{name}.*"), None)
    if found is None:
        return None
    try:
        loaded = ctypes.CDLL(str(found))
        interface = ctypes.c_int.in_dll(loaded, "low_rank_interface").value
    except (OSError, ValueError):
        return None
    return _declared(loaded) if interface == _INTERFACE else None


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    sizes, threads = (_INT64, _INT64, _INT64), ctypes.c_int
    updates, tensors = (_INT64, _POINTER), (_POINTER, _POINTER)
    loaded.low_rank_forward.argtypes = (_POINTER, *sizes, _POINTER, *updates, *tensors, threads)
    loaded.low_rank_backward.argtypes = (*tensors, _POINTER, *sizes, *updates, _POINTER, threads)
    loaded.drawn.argtypes = (_INT64, ctypes.c_double, ctypes.c_uint64, _POINTER, _INT64)
    loaded.drawn.restype = _INT64
    return loaded


def takes(x: torch.Tensor, ranks: int) -> bool:
    """Whether this tensor's products with updates of so many ranks in all are made here."""
    alike = x.dtype == torch.float32 and x.is_cpu
    return alike and 0 < ranks <= _MOST_RANKS and library() is not None


def forward(
    x: torch.Tensor,
    out: int,
    bias: torch.Tensor | None,
    updates: Sequence[LowRank],
    dropped: Dropped,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `small_products.forward`; x is contiguous."""
    read = _Read(updates, dropped)
    bias = None if bias is None else bias.contiguous()
    y = x.new_empty(len(x), out)
    inner = x.new_empty(len(x), sum(len(update.A) for update in updates))
    _call(
        "low_rank_forward",
        *(_at(x), *x.shape, out, _at(bias), len(updates), read.updates),
        *(_at(inner), _at(y), torch.get_num_threads()),
    )
    return y, inner


def backward(
    grad: torch.Tensor,
    x: torch.Tensor | None,
    inner: torch.Tensor,
    updates: Sequence[LowRank],
    dropped: Dropped,
    needed: Sequence[bool],
) -> Gradients:
    """As `small_products.backward`; grad and x are contiguous."""
    read = _Read(updates, dropped)
    grad_x = grad.new_empty(len(grad), updates[0].A.shape[1]) if needed[0] else None
    grads: list[torch.Tensor | None] = []
    for i, update in enumerate(updates):
        grad_A = torch.empty(update.A.shape) if needed[2 * i + 1] else None
        grad_B = torch.empty(update.B.shape) if needed[2 * i + 2] else None
        read.updates[i].grad_A, read.updates[i].grad_B = _at(grad_A), _at(grad_B)
        grads += [grad_A, grad_B]
    _call(
        "low_rank_backward",
        *(_at(grad), _at(x), _at(inner), len(grad), updates[0].A.shape[1], grad.shape[1]),
        *(len(updates), read.updates, _at(grad_x), torch.get_num_threads()),
    )
    return Gradients(grad_x, grads)


class _Read:
    """The updates as the library reads them, and the tensors that must live as long."""

    def __init__(self, updates: Sequence[LowRank], dropped: Dropped) -> None:
        self.updates = (_Update * len(updates))()
        self.kept: list[torch.Tensor | None] = []
        for to, update, entries in zip(self.updates, updates, dropped, strict=True):
            A, B = update.A.contiguous(), update.B.contiguous()
            to.A, to.B, to.dropped = _at(A), _at(B), _at(entries)
            to.rank, to.drops = len(A), 0 if entries is None else len(entries)
            to.scale = update.kept_scale
            self.kept += [A, B, entries]


def _at(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _call(name: str, *arguments: object) -> None:
    if getattr(library(), name)(*arguments):
        raise MemoryError("no memory is left for the small products of the adapters")


def dropped_entries(number: int, probability: float) -> torch.Tensor:
    """As `dropout.dropped_entries`, seeded from torch's generator of the CPU."""
    drawn = library().drawn  # type: ignore[union-attr]
    expected = number * probability
    room = min(number, int(expected + 8 * math.sqrt(expected)) + 64)
    entries = torch.empty(room, dtype=torch.int64)
    seed, count = torch.empty((), dtype=torch.int64), -1
    while count < 0:  # more than there is room for come up once in 10^14 draws
        per_log = 1 / math.log1p(-probability)
        count = drawn(number, per_log, int(seed.random_()), entries.data_ptr(), room)
    return entries[:count]
