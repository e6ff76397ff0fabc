"""The precision that a sweep's base is loaded in, where the sweep leaves it open.

It is a part of the profile's key, so it must not change from one launch to the next: what a probe
has found on a machine is kept in the node's cache, and a sweep that goes on keeps what it was begun
with.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch.nn.functional import gelu, layer_norm, linear

from search.config.sweep import SweepConfig
from search.launch.cost import torch_threads
from search.launch.ray_environment import own_cpus
from spaces.target import TargetModule
from trainables.cache_folder import cache_folder, write_by_renaming

NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
LEAST_GAIN = 1.2
"""Where layers take so many times less in bf16 it is taken: a whole step gains nearly as much."""
LEAST_WIDTH = 256
"""Layers that read less are not worth the question."""
HARDWARE = frozenset({"avx512_bf16", "amx_bf16"})
"""What /proc/cpuinfo says of a CPU that multiplies bf16."""
PATIENCE_S = 60.0
"""How long a launch waits for the probe of another one."""
PROBE_SECONDS = 0.4
"""For so long each shape of layer is timed."""
LEAST_ROUNDS, MOST_ROUNDS = 3, 30
BUSY = 1.1
"""From so many times on, a machine has other work to do."""
PROBE_FLOPS = 1e10
"""Work of one timed layer at most; a larger one is timed on fewer tokens."""
RANK = 8

Shapes = Mapping[tuple[int, int], int]
"""[out, in] of a base's layers -> how many there are."""


@dataclass(frozen=True)
class Precision:
    """A torch dtype by its name, and what a user should know of it where it was chosen here."""

    dtype: str
    note: str | None = None


def precision_of(config: SweepConfig, targets: Sequence[TargetModule]) -> Precision:
    """The precision in which every worker loads the base, of which `targets` are adapted.

    The driver decides `auto`: bfloat16 on GPUs, unless it sees one that does not compute it; on
    this machine's CPUs where a probe says that they gain by it; else float32. Other machines' CPUs,
    and launches on several machines that share a study, are not asked.
    """
    dtype = dtype_without_probe(config)
    if config.precision == "auto" and dtype == "bfloat16":
        return Precision(dtype, "precision: bf16, which auto takes on GPUs")
    asked = config.precision == "auto" and dtype == "float32"
    shapes = Counter(target.shape for target in targets)
    here = config.cluster.address == "local" and config.search.study is None
    wide = max((inner for _, inner in shapes), default=0) >= LEAST_WIDTH
    if not (asked and here and wide and not config.cluster.on_gpu and computes_bf16()):
        return Precision(dtype)
    threads = max(1, min(int(config.cluster.resources_per_worker.get("CPU", 1)), own_cpus()))
    gain = _remembered_gain(shapes, threads)
    if gain is None or not gain >= LEAST_GAIN:  # nor where it is no number
        return Precision(dtype)
    return Precision(
        "bfloat16",
        f"precision: bf16, in which this CPU takes 1/{gain:.1f} of the time of fp32 for the base's "
        "layers; metrics differ a little from those in fp32, which train.precision: fp32 asks for",
    )


def dtype_without_probe(config: SweepConfig) -> str:
    """The precision by the sweep and its resources alone, as older versions decided it."""
    if config.precision != "auto":
        return NAMES[config.precision]
    if not config.cluster.on_gpu:
        return "float32"
    unfit = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(
        including_emulation=False
    )
    return "float32" if unfit else "bfloat16"


def computes_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware."""
    return bool(HARDWARE & set(_cpuinfo("flags").split()))


def bf16_gain(shapes: Shapes, threads: int) -> float:
    """How many times longer a base's layers take in fp32 than in bf16, on so many threads.

    Forward and backward through a frozen layer with an adapter, a normalisation and an activation
    behind it, by the quickest of many tries, both precisions in turn. Takes seconds. On a machine
    that is busy with other work a single thread stands for all, by its processor's time: threads
    that wait for each other would tell of that work.
    """
    gain, busy = _gain(shapes, time.thread_time, 1)
    if threads > 1 and busy < BUSY:
        gain, _ = _gain(shapes, time.perf_counter, threads)
    return gain


def _gain(shapes: Shapes, clock: Callable[[], float], threads: int) -> tuple[float, float]:
    """The gain by a clock, and how many times longer it all took by the clock on the wall."""
    seconds = dict.fromkeys((torch.float32, torch.bfloat16), 0.0)
    wall, spent = -time.perf_counter(), -clock()
    with torch_threads(threads):
        for shape, number in shapes.items():
            passes = {dtype: _pass(shape, dtype) for dtype in seconds}
            for dtype, quickest in _quickest(passes, clock).items():
                seconds[dtype] += number * quickest
    wall, spent = wall + time.perf_counter(), spent + clock()
    return seconds[torch.float32] / seconds[torch.bfloat16], wall / spent


def _pass(shape: tuple[int, int], dtype: torch.dtype) -> Callable[[], None]:
    out, inner = shape
    tokens = max(16, min(512, int(PROBE_FLOPS / (4 * out * inner))))
    weight = torch.randn(out, inner).to(dtype)
    down = torch.randn(RANK, inner).to(dtype).requires_grad_()
    up = torch.randn(out, RANK).to(dtype).requires_grad_()
    x = torch.randn(tokens, inner).to(dtype).requires_grad_()
    gradient = torch.ones(tokens, out, dtype=dtype)

    def run() -> None:
        y = linear(x, weight) + linear(linear(x, down), up)
        torch.autograd.backward(gelu(layer_norm(y, (out,))), gradient)

    return run


def _quickest(
    passes: Mapping[torch.dtype, Callable[[], None]], clock: Callable[[], float]
) -> dict[torch.dtype, float]:
    """Seconds of the quickest try of each; the first, which allocates, does not count."""
    found = dict.fromkeys(passes, math.inf)
    for run in passes.values():
        run()
    began, rounds = time.perf_counter(), 0
    while rounds < LEAST_ROUNDS or (
        rounds < MOST_ROUNDS and time.perf_counter() - began < PROBE_SECONDS
    ):
        rounds += 1
        for dtype, run in passes.items():
            started = clock()
            run()
            found[dtype] = min(found[dtype], clock() - started)
    return found


def _remembered_gain(shapes: Shapes, threads: int) -> float | None:
    """The gain as it was first found here for these shapes; None where it cannot be kept."""
    asked = {
        "cpu": _cpuinfo("model name"),
        "threads": threads,
        "torch": torch.__version__.partition("+")[0],
        "layers": sorted([*shape, number] for shape, number in shapes.items()),
    }
    name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    folder = cache_folder() / "precision"
    file = folder / f"{name[:32]}.json"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(f"{file}.lock", timeout=PATIENCE_S):
            if (known := _read(file)) is None:
                known = bf16_gain(shapes, threads)
                write_by_renaming(file, json.dumps({**asked, "gain": known}).encode())
            return known
    except (OSError, Timeout):
        return None


def _read(file: Path) -> float | None:
    try:
        return float(json.loads(file.read_text(encoding="utf-8"))["gain"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _cpuinfo(key: str) -> str:
    """What Linux says of the first CPU under a name; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    line = re.search(rf"^{key}\s*: (.*)$", text, re.MULTILINE)
    return "" if line is None else line[1]
