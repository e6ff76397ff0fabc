"""Arrays in files, which go from process to process as the name of the file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spaces.errors import JobError

_elsewhere: dict[str, str] = {}


class Mapped(np.memmap[Any, Any]):
    """A part of an array in a file, which goes to another process as the name of the file."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        if (start := self.start()) is None:
            return np.array(self).__reduce_ex__(protocol)
        return opened, (str(self.filename), self.dtype.str, start, len(self))

    def start(self) -> int | None:
        """Where in its file it begins, in elements; None where it is no part of one."""
        mapped = getattr(self, "_mmap", None)
        if mapped is None or self.ndim != 1 or not self.flags.c_contiguous:
            return None
        file = np.frombuffer(mapped, np.uint8).__array_interface__["data"][0]
        return int((self.__array_interface__["data"][0] - file) // self.itemsize)


def opened(file: str, dtype: str, start: int, count: int) -> NDArray[Any]:
    """So many elements of a file, which `lies_elsewhere` may have said is in another place.

    Raises JobError where there is no such file, or it is shorter.
    """
    place = _elsewhere.get(file, file)
    if count == 0:  # nothing cannot be mapped
        return np.empty(0, dtype)
    try:
        whole = Mapped(place, dtype=dtype, mode="r")
    except (OSError, ValueError) as error:
        raise JobError(
            f"task.data: the tokens in {place} cannot be read ({error}); launch again, and they "
            "are made anew"
        ) from error
    if len(whole) < start + count:
        raise JobError(f"task.data: the tokens in {place} are cut off; remove their folder")
    return whole[start : start + count]


def lies_elsewhere(file: str, place: str) -> None:
    """Say where on this node a file of another one lies."""
    _elsewhere[file] = place


def files_of(arrays: Iterable[Any]) -> set[str]:
    """The files that some of these are mapped from."""
    return {
        str(each.filename)
        for each in arrays
        if isinstance(each, Mapped) and each.start() is not None
    }
