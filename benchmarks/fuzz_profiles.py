"""Hostile profile files: what becomes of mutated ones, counted.

Whole profile files are drawn and mutated, one to three mutations an input: structured ones change a
field of the header, an offset, a value of the metadata or numbers in a tensor and leave the rest in
order; raw ones flip bits, cut, splice and repeat bytes. Each input must end in one of two ways:

- refused: ProfileError, one line;
- accepted: then the safetensors package reads the same tensors from it, writing it and reading it
  again gives the same profile, and every choice gives a plan or a RanksweepError.

Anything else is a defect: another exception, a warning of numpy, memory beyond `MEMORY`, or more
than `PATIENCE_S`. Exit code 1 where there is one.

    python benchmarks/fuzz_profiles.py --inputs 200000
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import re
import resource
import signal
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from results import Run

from spaces.errors import ProfileError, RanksweepError
from spaces.methods.registry import make_plan, parse_choice
from spaces.profile import FIELDS, ModuleProfile, Profile
from spaces.target import TargetModule

MEMORY = 1 << 30  # bytes of address space beyond what the process has when it begins
PATIENCE_S = 10
LARGEST_PLANNED = 1_000_000  # rows and columns; beyond, one method's plan is enough

CHOICES = tuple(
    parse_choice(keys)
    for keys in (
        {"method": "lora", "rank": 1},
        {"method": "pilora", "rank": 2},
        {"method": "pilora", "rank": 2, "partition": {"rule": "cumulative", "threshold": 0.7}},
        {"method": "pilora", "rank": 1, "partition": {"rule": "top"}},
        {"method": "pilora", "rank": 1, "partition": {"rule": "random"}},
        {"method": "taso"},
        {"method": "taso", "scope": "model", "importance": "gradient", "retention": 0.5},
        {"method": "taso", "importance": "random", "rounds": 2},
        {"method": "sensitivity", "mean_rank": 2},
        {"method": "sensitivity", "mean_rank": 2, "allocation": "progressive"},
        {"method": "sensitivity", "mean_rank": 3, "weighting": "equal", "signal": "local"},
        {"method": "joint", "mean_rank": 2},
        {"method": "dora"},
        {"method": "vera"},
    )
)

Mutation = Callable[[bytearray, random.Random, list[bytes]], bytearray]


class _TooSlowError(Exception):
    """An input took longer than `PATIENCE_S`."""


# Whole files ----------------------------------------------------------------------------------


def drawn_files() -> list[bytes]:
    """Profile files of a few kinds, counted from real masks; some leave tensors out."""
    targets = (
        TargetModule("layers.0.query", (12, 8)),
        TargetModule("layers.0.dense", (8, 20), ("layers.0.dense", "layers.1.dense")),
        TargetModule("layers.1.narrow", (3, 40)),
    )
    computed = {"versions": {"torch": "2.13.0"}, "settings": {"rank": 8, "top_percent": [5.0]}}
    whole = [_drawn(targets, (1.0, 5.0, 10.0), seed, computed) for seed in range(3)]
    one = _drawn(targets[:1], (10.0,), 3, {"base": "by hand"})
    partial = Profile(
        targets,
        one.scored_steps,
        (),
        {"layers.0.query": ModuleProfile(hits=one.require("layers.0.query", "hits"))},
        {},
    )
    return [profile.to_bytes() for profile in (*whole, one, partial)]


def _drawn(
    targets: tuple[TargetModule, ...], grid: tuple[float, ...], seed: int, more: dict[str, Any]
) -> Profile:
    rng = np.random.default_rng(seed)
    modules = {}
    for target in targets:
        out, inner = target.shape
        counts = {}
        for kind in ("sensitivity", "gradient"):
            ranks = rng.permutation(out * inner).reshape(out, inner)
            masks = np.stack([ranks < k / 100 * out * inner for k in grid])
            counts[f"{kind}_row_count"] = masks.sum(axis=2)
            counts[f"{kind}_col_count"] = masks.sum(axis=1)
        modules[target.name] = ModuleProfile(
            hits=rng.integers(0, 11, out),  # type: ignore[arg-type]
            row_importance=rng.lognormal(0, 1, out).astype(np.float32),
            hessian_diag=rng.lognormal(0, 1, inner).astype(np.float32),
            **counts,
        )
    return Profile(targets, 10, grid, modules, more)


# Mutations ------------------------------------------------------------------------------------

_SIZES = (0, 1, 2, 3, 7, 8, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64, -1, -8)
_NUMBERS = (0.0, -0.0, 0.5, 1.0, 10.0, 100.0, 100.5, -1.0, 1e-320, 1e38, 1e308)
_TEXTS = ("", "m", "hits", "layers.0.query", "a\nb", "\ud800", "\0", "/", "x" * 3_000, "é", "../x")
_BITS = (
    b"\0\0\xc0\x7f",  # NaN
    b"\x01\0\x80\x7f",  # signalling NaN
    b"\0\0\x80\x7f",  # infinity
    b"\0\0\x80\xff",
    b"\xff\xff\x7f\x7f",  # largest
    b"\x01\0\0\0",  # least, or one
    b"\0\0\0\x80",  # -0, or the least integer
    b"\xff\xff\xff\xff",  # NaN, or -1
    b"\0\0\0\0",
    b"\x0b\0\0\0",
)
_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8",
           "BOOL", "F8_E4M3", "C64", "f32", "")  # fmt: skip


def hostile(rng: random.Random, depth: int = 0) -> Any:
    """A value that JSON can hold and a profile mostly should not."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind in (1, 2):
        return rng.choice(_SIZES)
    if kind == 3:
        return rng.choice((*_NUMBERS, float("nan"), float("inf")))
    if kind in (4, 5):
        return rng.choice(_TEXTS)
    if kind == 6:
        return {rng.choice(_TEXTS): hostile(rng, depth + 1) for _ in range(rng.randrange(3))}
    if kind == 7:
        deep: Any = hostile(rng, depth + 1)
        for _ in range(rng.choice((1, 5, 40, 200))):
            deep = [deep]
        return deep
    return [hostile(rng, depth + 1) for _ in range(rng.randrange(4))]


def split(data: bytearray) -> tuple[dict[str, Any], dict[str, Any], bytearray] | None:
    """(header without the profile's metadata, that metadata, tensors); None where it is no file."""
    try:
        end = 8 + struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:end])
        metadata = json.loads(header["__metadata__"]["ranksweep"])
        if not isinstance(metadata, dict):
            return None
        return header, metadata, data[end:]
    except Exception:  # an earlier mutation has spoilt it
        return None


def joined(header: dict[str, Any], metadata: dict[str, Any], tensors: bytearray) -> bytearray:
    """The file of these parts, whatever they hold."""
    header = {**header, "__metadata__": {"ranksweep": json.dumps(metadata)}}
    text = json.dumps(header).encode()
    return bytearray(struct.pack("<Q", len(text)) + text + tensors)


def _tensor_names(header: dict[str, Any]) -> list[str]:
    return [name for name, entry in header.items()
            if name != "__metadata__" and isinstance(entry, dict)]  # fmt: skip


def change_entry(data: bytearray, rng: random.Random, others: list[bytes]) -> bytearray:
    """A tensor's dtype, shape, offsets or name, or the tensor itself."""
    parts = split(data)
    if parts is None or not _tensor_names(parts[0]):
        return flip_bits(data, rng, others)
    header, metadata, tensors = parts
    names = _tensor_names(header)
    name, other = rng.choice(names), rng.choice(names)
    entry = header[name]
    action = rng.randrange(11)
    if action == 0:
        entry["dtype"] = rng.choice(_DTYPES)
    elif action == 1:
        entry["shape"] = [rng.choice(_SIZES) for _ in range(rng.randrange(4))]
    elif action == 2 and entry.get("shape"):
        entry["shape"] = entry["shape"][::-1]
    elif action == 3:
        entry["data_offsets"] = [rng.choice(_SIZES), rng.choice(_SIZES)]
    elif action == 4:
        edge = rng.randrange(2)
        entry["data_offsets"][edge] += rng.choice((-8, -4, -2, -1, 1, 2, 4, 8, len(tensors)))
    elif action == 5:
        offsets = header[other]["data_offsets"]
        header[other]["data_offsets"], entry["data_offsets"] = entry["data_offsets"], offsets
    elif action == 6:
        header[name], header[other] = header[other], header[name]
    elif action == 7:
        del header[name]
    elif action == 8:
        field = rng.choice((*FIELDS, *_TEXTS))
        header[f"{name.rpartition('/')[0]}/{field}"] = header.pop(name)
    elif action == 9:
        entry[rng.choice(("dtype", "shape", "data_offsets", "more"))] = hostile(rng)
    else:
        header[name] = hostile(rng)
    return joined(header, metadata, tensors)


def change_metadata(data: bytearray, rng: random.Random, others: list[bytes]) -> bytearray:
    """A value of the metadata, or one of a listed module."""
    parts = split(data)
    if parts is None:
        return cut(data, rng, others)
    header, metadata, tensors = parts
    modules = metadata.get("modules")
    action = rng.randrange(6)
    if action == 0 or not isinstance(modules, list) or not modules:
        metadata[rng.choice((*metadata, "more"))] = hostile(rng)
    elif action == 1:
        metadata.pop(rng.choice(tuple(metadata)))
    elif action == 2:
        modules[rng.randrange(len(modules))] = hostile(rng)
    elif action == 3:
        modules.append(rng.choice(modules))
    elif action == 4:
        metadata["top_percent_grid"] = [rng.choice((1.0, 5.0, 10.0, *_NUMBERS)) for _ in range(3)]
    else:
        module = rng.choice(modules)
        if isinstance(module, dict):
            module[rng.choice(("name", "shape", "names"))] = rng.choice(
                (hostile(rng), [rng.choice(_SIZES), rng.choice(_SIZES)], rng.choice(_TEXTS))
            )
    return joined(header, metadata, tensors)


def repeat_key(data: bytearray, rng: random.Random, others: list[bytes]) -> bytearray:
    """A key of the header or of the metadata a second time."""
    parts = split(data)
    if parts is None or not parts[0]:
        return repeat(data, rng, others)
    header, _, tensors = parts
    name = rng.choice(tuple(header))
    text = json.dumps(header)[:-1] + f",{json.dumps(name)}:{json.dumps(header[name])}}}"
    return bytearray(struct.pack("<Q", len(text)) + text.encode() + tensors)


def change_values(data: bytearray, rng: random.Random, others: list[bytes]) -> bytearray:
    """Numbers in the tensors, some of which are none."""
    end = 8 + int.from_bytes(data[:8], "little")
    if not 8 <= end < len(data) - 4:
        return flip_bits(data, rng, others)
    for _ in range(rng.choice((1, 1, 2, 30))):
        at = end + rng.randrange((len(data) - end) // 4) * 4
        data[at : at + 4] = rng.choice((*_BITS, rng.randbytes(4)))
    return data


def change_one_tensor(data: bytearray, rng: random.Random, others: list[bytes]) -> bytearray:
    """All numbers of one tensor, to one value or to others that the dtype can hold."""
    parts = split(data)
    if parts is None or not _tensor_names(parts[0]):
        return change_values(data, rng, others)
    header, metadata, tensors = parts
    begin, end = header[rng.choice(_tensor_names(header))]["data_offsets"]
    size = len(tensors[begin:end])
    pattern = rng.choice((b"\0\0\0\0", b"\x01\0\0\0", b"\x01\0\x01\0", rng.choice(_BITS)))
    small = bytes(rng.randrange(3) if n % 2 == 0 else 0 for n in range(size))
    tensors[begin:end] = rng.choice(((pattern * size)[:size], small))
    return joined(header, metadata, tensors)


def change_importances(data: bytearray, rng: random.Random, others: list[bytes]) -> bytearray:
    """All numbers of some float32 tensors, to any that float32 holds from zero to its largest."""
    parts = split(data)
    if parts is None:
        return flip_bits(data, rng, others)
    header, metadata, tensors = parts
    for entry in (header[name] for name in _tensor_names(header)):
        if entry["dtype"] == "F32" and rng.random() < 0.7:
            begin, end = entry["data_offsets"]
            least, most = sorted(rng.choice((0, 1, 2**23, 2**30, 0x7F7FFFFF)) for _ in range(2))
            count = len(tensors[begin:end]) // 4
            drawn = [rng.choice((0, rng.randint(least, most))) for _ in range(count)]
            tensors[begin:end] = struct.pack(f"<{len(drawn)}I", *drawn)
    return joined(header, metadata, tensors)


def change_length(data: bytearray, rng: random.Random, others: list[bytes]) -> bytearray:
    """The length of the header."""
    length = int.from_bytes(data[:8], "little")
    other = rng.choice((*_SIZES, length + 1, length - 1, len(data), len(data) - 8, 100_000_001))
    data[:8] = (other % 2**64).to_bytes(8, "little")
    return data


def flip_bits(data: bytearray, rng: random.Random, others: list[bytes]) -> bytearray:
    """One bit, or several."""
    for _ in range(rng.choice((1, 1, 1, 4, 32))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def cut(data: bytearray, rng: random.Random, others: list[bytes]) -> bytearray:
    """The end, or a piece."""
    begin = rng.randrange(len(data) + 1)
    del data[begin : rng.choice((len(data), begin + rng.randrange(1, 65)))]
    return data


def splice(data: bytearray, rng: random.Random, others: list[bytes]) -> bytearray:
    """The beginning of one file and the end of another."""
    other = rng.choice(others)
    at = rng.randrange(len(data) + 1)
    return data[:at] + other[rng.choice((at, rng.randrange(len(other)))) :]


def repeat(data: bytearray, rng: random.Random, others: list[bytes]) -> bytearray:
    """A piece a second time, or other bytes put in."""
    at = rng.randrange(len(data) + 1)
    piece = rng.choice((data[at : at + rng.randrange(1, 65)], rng.randbytes(rng.randrange(1, 9))))
    data[at:at] = piece
    return data


MUTATIONS: tuple[Mutation, ...] = (
    change_entry, change_entry, change_metadata, change_metadata, repeat_key, change_values,
    change_values, change_one_tensor, change_one_tensor, change_importances, change_importances,
    change_length, flip_bits, flip_bits, cut,
    splice, repeat,
)  # fmt: skip


def mutated(data: bytearray, rng: random.Random, others: list[bytes]) -> bytearray:
    """One mutation more; bits are flipped where an earlier one has left nothing to work on."""
    try:
        return rng.choice(MUTATIONS)(data, rng, others)
    except (IndexError, KeyError, RecursionError, TypeError, ValueError):
        return flip_bits(data, rng, others)


# Outcomes -------------------------------------------------------------------------------------


def outcome(data: bytes) -> str:
    """How reading an input ends: "accepted", or the reason why it is refused.

    Raises whatever else comes of it.
    """
    try:
        profile = Profile.from_bytes(data, "input")
    except ProfileError as error:
        text = str(error)
        if "\n" in text or not text.startswith("input: ") or len(text) > 1_500:
            raise AssertionError(f"no good line: {text!r}") from error
        return reason(text.removeprefix("input: "))
    _check_peer(profile, data)
    _check_round_trip(profile)
    _check_plans(profile)
    return "accepted"


def reason(text: str) -> str:
    """A refusal without what differs from input to input."""
    if text.startswith("not a whole safetensors file ("):
        inner = text.removeprefix("not a whole safetensors file (")
        return f"header: {_general(inner.partition('); write')[0])}"
    if text.startswith("metadata 'ranksweep' is not JSON that is read ("):
        return "metadata is no plain JSON"
    where, _, what = text.partition(": ")
    kind = "tensor" if "/" in where or not where.startswith(("mod", "sch", "sco", "top")) else where
    return f"{re.sub(r'[0-9]+', 'N', kind)}: {_general(what.partition(';')[0])}"


def _general(text: str) -> str:
    text = re.sub(r"(tensor|the key|dtype of tensor) .*? (would|overlaps|is|are|stands)",
                  r"\1 X \2", text)  # fmt: skip
    text = re.sub(r"^.*line \d+ column \d+.*", "no JSON", text)
    text = re.sub(r"'.*'|\[.*\]|(?<![A-Za-z\d])-?\d[\d.e+]*|(?<=dtype )\S+", "X", text)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _check_peer(profile: Profile, data: bytes) -> None:
    """The safetensors package must read from an accepted file the bytes that were viewed."""
    stored = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    held = {
        f"{name}/{field}": getattr(module, field)
        for name, module in profile.modules.items()
        for field in FIELDS
        if getattr(module, field) is not None
    }
    assert stored.keys() == held.keys()
    kinds = {"I32": "<i4", "U16": "<u2", "F32": "<f4"}
    for name, entry in stored.items():
        assert list(held[name].shape) == entry["shape"]
        if entry["dtype"] in kinds:
            raw = np.frombuffer(bytes(entry["data"]), kinds[entry["dtype"]])
            np.testing.assert_array_equal(raw.astype(held[name].dtype), held[name].ravel())


def _check_round_trip(profile: Profile) -> None:
    data = profile.to_bytes()
    again = Profile.from_bytes(data, "written again")
    assert again.to_bytes() == data
    assert again.targets == profile.targets
    assert again.scored_steps == profile.scored_steps
    assert again.top_percent_grid == profile.top_percent_grid
    assert again.metadata == profile.metadata
    for name, module in profile.modules.items():
        for field in FIELDS:
            left, right = getattr(module, field), getattr(again.modules[name], field)
            assert (left is None) == (right is None)
            if left is not None:
                assert left.dtype == right.dtype
                np.testing.assert_array_equal(left, right)


def _check_plans(profile: Profile) -> None:
    indices = sum(sum(target.shape) for target in profile.targets)
    for choice in CHOICES if indices <= LARGEST_PLANNED else CHOICES[:1]:
        try:
            plan = make_plan(choice, profile.targets, profile)
        except RanksweepError as error:
            if "\n" in str(error):
                raise AssertionError(f"no good line: {error}") from error
        else:
            assert plan.trainable_params >= 0
            assert len(plan.digest) == 64


# The run --------------------------------------------------------------------------------------


def fuzz(inputs: int, seed: int, keep: Path | None) -> tuple[collections.Counter[str], float]:
    """(inputs by outcome, seconds of the slowest); defects are told on stderr as they come."""
    whole = drawn_files()
    for file in whole:
        assert outcome(file) == "accepted"
    counts: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    for number in range(inputs):
        rng = random.Random(f"{seed}/{number}")
        data = bytearray(rng.choice(whole))
        for _ in range(rng.choice((1, 1, 2, 3))):
            data = mutated(data, rng, whole)
        started = time.perf_counter()
        signal.alarm(PATIENCE_S)
        try:
            counts[outcome(bytes(data))] += 1
        except Exception as error:
            signal.alarm(0)
            where = traceback.extract_tb(error.__traceback__)[-1]
            counts[f"DEFECT {type(error).__name__}"] += 1
            print(f"input {number}: {type(error).__name__} at {where.filename}:{where.lineno}: "
                  f"{str(error)[:200]}", file=sys.stderr, flush=True)  # fmt: skip
            if keep is not None:
                (keep / f"defect-{seed}-{number}.safetensors").write_bytes(data)
        finally:
            signal.alarm(0)
        slowest = max(slowest, time.perf_counter() - started)
    return counts, slowest


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def _give_up(*_: object) -> None:
    raise _TooSlowError(f"more than {PATIENCE_S} s")


def main(arguments: list[str] | None = None) -> None:
    """Fuzz, print how many inputs ended in which way and record the row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=200_000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write inputs that are defects")
    options = parser.parse_args(arguments)
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    run = Run.begin()
    warnings.simplefilter("error")
    signal.signal(signal.SIGALRM, _give_up)
    _limit_memory()
    started = time.process_time()
    counts, slowest = fuzz(options.inputs, options.seed, options.keep)
    defects = sum(count for name, count in counts.items() if name.startswith("DEFECT"))
    accepted = counts.pop("accepted", 0)
    for name, count in counts.most_common(40):
        print(f"{count:9,}  {name}")
    print(f"{sum(dict(counts.most_common()[40:]).values()):9,}  {max(len(counts) - 40, 0)} others")
    refused, seconds = options.inputs - accepted - defects, time.process_time() - started
    run.record(
        "hostile profile files",
        {
            "inputs": options.inputs,
            "accepted": accepted,
            "refused": refused,
            "defects": defects,
            "reasons": len(counts),
            "slowest_s": slowest,
            "processor_s": seconds,
        },
        f"{options.inputs:,} inputs: {accepted:,} accepted, {refused:,} refused with one line",
        f"**{defects} defects**; slowest input {slowest:.2f} s by the clock, {seconds:.0f} s of "
        "processor time in all",
    )
    raise SystemExit(1 if defects else 0)


if __name__ == "__main__":
    main()
