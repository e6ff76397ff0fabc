"""The tokens of a set that may be larger than memory: written once, then mapped.

Examples are streamed into a folder of flat arrays, which bears the name of what they are made of,
so that a later run, or another worker of the machine, takes it as it stands. It is written beside
its place and renamed, so what bears the name is whole; it is checked against its digests all the
same, and made again where a disk has damaged it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from spaces.errors import DataError

EXAMPLES_AT_ONCE = 1024
_DTYPES: Mapping[str, type[np.signedinteger[Any]]] = {
    "input_ids": np.int32,
    "targets": np.int8,
    "offsets": np.int64,
}
_SUMS = "sums.json"
_READ_AT_ONCE = 1 << 22  # bytes of which a digest is taken

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Flat:
    """Examples as flat arrays: example i has the tokens offsets[i] to offsets[i + 1].

    `input_ids` int32 [tokens]; `targets` int8 [tokens], 1 where a token bears loss; `offsets` int64
    [n + 1]. Written ones are read-only maps of their files.
    """

    input_ids: NDArray[np.int32]
    targets: NDArray[np.int8]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1


def key_of(hashes: Iterable[str], encoding: Mapping[str, object]) -> str:
    """The name of the tokens of some rows: SHA-256, in hex.

    `hashes` are the content hashes of the rows in their order, and `encoding` is all that decides
    their tokens (fingerprint of the base, template, longest length), as JSON has it.
    """
    digest = hashlib.sha256(json.dumps(encoding, sort_keys=True).encode())
    for each in hashes:
        digest.update(b"\n")
        digest.update(each.encode())
    return digest.hexdigest()


def written_tokens(
    folder: Path, key: str, examples: Iterable[tuple[list[int], list[bool]]]
) -> Flat:
    """The tokens and targets of `examples`, mapped from files of `folder` that bear the name `key`.

    Where they are there already and whole, `examples` is not touched. Else it is read once, and no
    more than `EXAMPLES_AT_ONCE` of it are held. Raises DataError where they cannot be written.
    """
    place = folder / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key}.lock"):
            if place.exists() and not _is_whole(place):
                logger.warning("%s is damaged; its tokens are made again", place)
                shutil.rmtree(place)
            if not place.exists():
                _write(folder, place, examples)
    except OSError as error:
        raise DataError(
            f"task.data: tokens cannot be written to {folder} ({error.strerror or error}); make "
            "room there, or put TMPDIR elsewhere"
        ) from error
    return Flat(*(_mapped(place / name, dtype) for name, dtype in _DTYPES.items()))


def _write(folder: Path, place: Path, examples: Iterable[tuple[list[int], list[bool]]]) -> None:
    beside = Path(tempfile.mkdtemp(prefix=f".{place.name[:16]}-", dir=folder))
    try:
        sums = _stream(beside, examples)
        (beside / _SUMS).write_text(json.dumps(sums))
        beside.rename(place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _stream(folder: Path, examples: Iterable[tuple[list[int], list[bool]]]) -> dict[str, str]:
    """Write the arrays a part at a time; the digest of each."""
    digests = {name: hashlib.sha256() for name in _DTYPES}
    waiting = iter(examples)
    end = 0
    with (
        (folder / "input_ids").open("wb") as ids,
        (folder / "targets").open("wb") as targets,
        (folder / "offsets").open("wb") as offsets,
    ):
        files = {"input_ids": ids, "targets": targets, "offsets": offsets}

        def put(name: str, values: Iterable[NDArray[Any]]) -> None:
            data = np.concatenate([np.zeros(0, _DTYPES[name]), *values]).tobytes()
            files[name].write(data)
            digests[name].update(data)

        put("offsets", [np.zeros(1, np.int64)])
        while part := list(islice(waiting, EXAMPLES_AT_ONCE)):
            put("input_ids", (np.asarray(each, np.int32) for each, _ in part))
            put("targets", (np.asarray(each, np.int8) for _, each in part))
            lengths = [len(each) for each, _ in part]
            assert lengths == [len(each) for _, each in part]
            put("offsets", [end + np.cumsum(lengths, dtype=np.int64)])
            end += sum(lengths)
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _is_whole(place: Path) -> bool:
    """Whether every array is as it was written."""
    try:
        sums = json.loads((place / _SUMS).read_bytes())
        return all(_sha256(place / name) == sums[name] for name in _DTYPES)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_READ_AT_ONCE):
            digest.update(data)
    return digest.hexdigest()


def _mapped(path: Path, dtype: type[Any]) -> NDArray[Any]:
    if path.stat().st_size == 0:  # there is nothing that could be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")
