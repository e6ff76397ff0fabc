"""Safetensors files that come from outside: checked before anything is allocated, then viewed.

The safetensors package refuses most of what is refused here, but hands out copies, reads only the
last of two tensors of one name, and lets a header cost many times its own size.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spaces.errors import shown
from spaces.files import strict_json

LARGEST_HEADER = 100_000_000
"""The safetensors format's own limit of its header, in bytes."""

Bytes = NDArray[np.uint8]

_LENGTH_SIZE = 8
START = _LENGTH_SIZE + 1
"""Bytes of a file from which the end of its header can be told."""
_METADATA = "__metadata__"
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}
_MOST_AXES = 32


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as a file holds it: what the header says of it, and a view of its bytes.

    Whether the bytes are as many as `shape` asks for is left to who knows `dtype`.
    """

    dtype: str
    shape: tuple[int, ...]
    data: Bytes


@dataclass(frozen=True, eq=False)
class TensorFile:
    """The tensors of a file, by name, and its metadata."""

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]


def parsed(data: bytes | Bytes) -> TensorFile:
    """The tensors that `data` holds, as views of it.

    The header is read only once its length is known to lie within the data. Every byte after it
    must belong to exactly one tensor. Raises ValueError with the reason, one line.
    """
    data = in_memory(data)
    start = header_end(data[:START], data.shape[0])
    header, metadata, spans = _described(data[_LENGTH_SIZE:start].tobytes(), data.shape[0])
    tensors = {
        name: StoredTensor(
            header[name]["dtype"], tuple(header[name]["shape"]), data[start + begin : start + end]
        )
        for name, (begin, end) in spans.items()
    }
    return TensorFile(tensors, metadata)


def header_end(first: bytes | Bytes, size: int) -> int:
    """Where the header of a file of `size` bytes ends, of which the `first` START are given.

    Raises ValueError where there is no header, one line.
    """
    first = in_memory(first)
    if size < _LENGTH_SIZE or first.shape[0] < _LENGTH_SIZE:
        raise ValueError(f"{size} bytes hold no header")
    length = int.from_bytes(first[:_LENGTH_SIZE].tobytes(), "little")
    if length > LARGEST_HEADER:
        raise ValueError(f"its header would be {length} bytes long, more than {LARGEST_HEADER}")
    if length > size - _LENGTH_SIZE:
        raise ValueError(f"its header would be {length} bytes long, the file is {size}")
    if length == 0 or first[_LENGTH_SIZE] != ord("{"):
        raise ValueError("its header does not start as an object")
    return _LENGTH_SIZE + length


def names_in(beginning: bytes, size: int) -> frozenset[str]:
    """The names of the tensors of a file of `size` bytes, from its bytes up to `header_end`.

    So a file that lies elsewhere is known to be whole before its tensors are fetched. Raises
    ValueError where its header is not whole, or the tensors are not as long as the file.
    """
    _, _, spans = _described(beginning[_LENGTH_SIZE:], size)
    return frozenset(spans)


def _described(
    header: bytes, size: int
) -> tuple[dict[str, Any], dict[str, str], dict[str, tuple[int, int]]]:
    """The entries, the metadata and the spans that a header tells, for a file of `size` bytes."""
    entries = strict_json.parsed(header, size)
    if not isinstance(entries, dict):
        raise ValueError("its header is not an object")
    metadata = _metadata(entries.pop(_METADATA, None))
    spans = {name: _span(name, entry) for name, entry in entries.items()}
    _check_cover(spans, size - _LENGTH_SIZE - len(header))
    return entries, metadata, spans


def _metadata(found: object) -> dict[str, str]:
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise ValueError("its metadata is not an object of texts")
    return found


def _span(name: str, entry: Any) -> tuple[int, int]:
    """Where a tensor's bytes begin and end, once its entry is known to be a tensor's."""
    if not isinstance(entry, dict) or entry.keys() != _ENTRY_KEYS:
        raise ValueError(f"tensor {shown(name)} is not described by dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(entry["dtype"], str):
        raise ValueError(f"the dtype of tensor {shown(name)} is no text")
    if not _are_sizes(shape) or len(shape) > _MOST_AXES:
        raise ValueError(f"the shape of tensor {shown(name)} is no list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"the offsets of tensor {shown(name)} are not a beginning and an end")
    return offsets[0], offsets[1]


def _are_sizes(found: object) -> bool:
    return isinstance(found, list) and all(type(n) is int and 0 <= n < 2**63 for n in found)


def _check_cover(spans: Mapping[str, tuple[int, int]], size: int) -> None:
    """Raise ValueError unless the spans cover `size` bytes, each exactly once."""
    covered = 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if end > size:
            raise ValueError(f"tensor {shown(name)} would end at byte {end} of {size}")
        if begin < covered:
            raise ValueError(f"tensor {shown(name)} overlaps another")
        if begin > covered:
            raise ValueError(f"bytes {covered} to {begin} of the tensors belong to none")
        covered = end
    if covered < size:
        raise ValueError(f"{size - covered} bytes follow the last tensor")


# Mapping ------------------------------------------------------------------------------------------


class _Pages:
    """Pages of a file in memory, for numpy to look at; given back when nothing looks any more."""

    def __init__(self, address: int, size: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (size,),
            "data": (address, True),
        }
        # Not at exit: arrays may still be read by what runs after us then.
        weakref.finalize(self, _libc().munmap, address, size).atexit = False


def mapped(path: Path) -> Bytes:
    """The bytes of a file as read-only memory that is shared with all its other readers.

    Nothing is copied, and the file may be removed or replaced by another. It must not be written to
    or cut in place: the bytes would change, and those cut off end the process (SIGBUS). No
    descriptor stays open, which is why this is not Python's own mmap: a process may hold many
    profiles. Where a file cannot be mapped it is read. Raises OSError where it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        size = os.fstat(descriptor).st_size
        address = address_of(descriptor, size)
    finally:
        os.close(descriptor)
    return in_memory(path.read_bytes()) if address is None else np.asarray(_Pages(address, size))


def in_memory(data: bytes | Bytes) -> Bytes:
    """Bytes as an array that views them."""
    return np.frombuffer(data, dtype=np.uint8)


def address_of(descriptor: int, size: int) -> int | None:
    """Address of a file's pages; None where they cannot be had."""
    if size == 0 or os.name != "posix":
        return None
    address = _libc().mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    return None if address is None or address == ctypes.c_void_p(-1).value else int(address)


@functools.cache
def _libc() -> Any:
    library = ctypes.CDLL(None)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,  # off_t, which is always 0 here
    ]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return library
