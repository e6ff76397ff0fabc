"""What plans cost: every method's plan from the profile of a 7B and of a 70B base, and its file.

The profiles have the shapes of LLaMA2-7B (224 modules) and LLaMA2-70B (560 modules), with drawn
statistics: how a plan is derived depends on the shapes, hardly on the values. One process, one
thread, so that processor time is what a core to itself would take, whatever else runs.

The file is read twice: under the name of its content, mapped, as from a node's cache, and under
another name, copied. Both check every value, the first also the SHA-256.

    python benchmarks/plans.py --repeat 5
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from results import Run, measured, spread

from spaces.methods.registry import make_plan, parse_choice
from spaces.profile import ModuleProfile, Profile
from spaces.target import TargetModule

MIB = 2**20
GRID = (1.0, 2.0, 5.0, 10.0)
STEPS = 500
LIMITS_S = {"7B": 0.2, "70B": 2.0}
LARGEST_FILE = 60_000_000  # of a 7B base, in bytes

# Layers, hidden size, size of keys and values, intermediate size.
BASES = {"7B": (32, 4096, 4096, 11008), "70B": (80, 8192, 1024, 28672)}

CHOICES = (
    {"method": "lora"},
    {"method": "pilora"},
    {"method": "pilora", "partition": {"rule": "cumulative"}},
    {"method": "pilora", "partition": {"rule": "top"}},
    {"method": "pilora", "partition": {"rule": "random"}},
    {"method": "taso"},
    {"method": "taso", "scope": "model"},
    {"method": "taso", "importance": "gradient", "rounds": 4},
    {"method": "taso", "importance": "random"},
    {"method": "sensitivity"},
    {"method": "sensitivity", "allocation": "progressive"},
    {"method": "joint"},
    {"method": "joint", "partition": {"rule": "cumulative"}},
)


def targets_of(base: str) -> tuple[TargetModule, ...]:
    """The seven linear layers of every decoder layer of LLaMA2."""
    layers, hidden, keys, inner = BASES[base]
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    return tuple(
        TargetModule(f"model.layers.{layer}.{name}", shape)
        for layer in range(layers)
        for name, shape in shapes.items()
    )


def drawn_profile(targets: tuple[TargetModule, ...], seed: int = 0) -> Profile:
    """A whole profile whose rows and columns differ in importance as measured ones do."""
    rng = np.random.default_rng(seed)
    shares = np.array(GRID)[:, None] / 100

    def counts(size: int, other: int) -> np.ndarray:
        densities = np.clip(shares * rng.lognormal(0, 1, size), 0, 1)
        return (densities * other).astype(np.uint16)

    def importances(size: int) -> np.ndarray:
        return rng.lognormal(0, 1, size).astype(np.float32)

    modules = {}
    for target in targets:
        out, inner = target.shape
        modules[target.name] = ModuleProfile(
            hits=rng.binomial(STEPS, rng.random(out)).astype(np.int32),
            row_importance=importances(out),
            sensitivity_row_count=counts(out, inner),
            sensitivity_col_count=counts(inner, out),
            gradient_row_count=counts(out, inner),
            gradient_col_count=counts(inner, out),
            hessian_diag=importances(inner) * np.float32(1 + 9 * rng.random()),
        )
    return Profile(targets, STEPS, GRID, modules, {"base": "drawn", "task": "drawn"})


@dataclass(frozen=True)
class Times:
    """Seconds of several runs of one thing: by the clock, and of processor time."""

    clock: list[float]
    processor: list[float]

    @property
    def median(self) -> float:
        """Of processor time."""
        return statistics.median(self.processor)

    def verdict(self, limit: float) -> str:
        """What to say where the limit is passed, by processor time or by the clock alone."""
        if self.median >= limit:
            return "   MISSED"
        return "   over by the clock" if statistics.median(self.clock) >= limit else ""

    @property
    def figures(self) -> dict[str, dict[str, float]]:
        """For a record."""
        return {"clock_s": measured(self.clock), "processor_s": measured(self.processor)}

    def __str__(self) -> str:
        return f"{spread(self.clock, 3)} s, processor {spread(self.processor, 3)} s"


def timed(work: Callable[[], object], repeat: int) -> Times:
    """`repeat` runs, after one that does not count."""
    work()
    times = Times([], [])
    for _ in range(repeat):
        clock, processor = time.perf_counter(), time.process_time()
        work()
        times.processor.append(time.process_time() - processor)
        times.clock.append(time.perf_counter() - clock)
    return times


def plan_times(profile: Profile, repeat: int) -> dict[str, Times]:
    """Choice -> seconds to derive its plan from the profile."""
    times = {}
    for keys in CHOICES:
        choice = parse_choice(keys)
        rest = {key: value for key, value in keys.items() if key != "method"}
        name = " ".join(str(part) for part in (keys["method"], rest or ""))
        times[name.strip()] = timed(lambda c=choice: make_plan(c, profile.targets, profile), repeat)  # type: ignore[misc]
    return times


def reading(profile: Profile, repeat: int, folder: Path) -> tuple[int, dict[str, Times]]:
    """(bytes of the file, seconds to read it by way and, apart, to hash it)."""
    data = profile.to_bytes()
    named = folder / f"profile-{hashlib.sha256(data).hexdigest()}.safetensors"
    other = folder / "profile.safetensors"
    for path in (named, other):
        path.write_bytes(data)
    size = len(data)
    times = {"SHA-256 alone": timed(lambda: hashlib.sha256(data).hexdigest(), repeat)}
    times["mapped, SHA-256 with it"] = timed(lambda: Profile.read(named), repeat)
    times["copied, no SHA-256"] = timed(lambda: Profile.read(other), repeat)
    return size, times


def memory_of_its_own(path: Path) -> float:
    """MiB that a profile takes of this process while it is held, pages of its file apart."""
    gc.collect()
    before = _anonymous_memory()
    profile = Profile.read(path)
    after = _anonymous_memory()
    del profile
    return (after - before) / MIB


def _anonymous_memory() -> float:
    summary = Path("/proc/self/smaps_rollup").read_text()
    (kilobytes,) = re.findall(r"^Anonymous: +(\d+) kB$", summary, re.MULTILINE)
    return int(kilobytes) * 1024


def main(arguments: list[str] | None = None) -> None:
    """Measure, then print the figures and record the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=5, help="runs of each (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.repeat < 1:
        parser.error("--repeat must be at least 1")
    run = Run.begin()
    print(run)
    for base, limit in LIMITS_S.items():
        profile = drawn_profile(targets_of(base))
        times = plan_times(profile, options.repeat)
        print(f"\n{base}: {len(profile.targets)} modules; a plan in seconds, at most {limit}")
        for name, each in times.items():
            print(f"  {name:47} {each}{each.verdict(limit)}")
        slowest = max(times, key=lambda name: times[name].median)
        with tempfile.TemporaryDirectory() as folder:
            size, read = reading(profile, options.repeat, Path(folder))
            memory = {path.name: memory_of_its_own(path) for path in Path(folder).iterdir()}
        missed = "   MISSED" if base == "7B" and size >= LARGEST_FILE else ""
        print(f"  file: {size} bytes{missed}")
        for name, each in read.items():
            print(f"  {name:47} {each}")
        copied = memory.pop("profile.safetensors")
        (mapped,) = memory.values()
        print(f"  memory of its own: mapped {mapped:.0f} MiB, copied {copied:.0f} MiB")
        share = times[slowest].median / limit
        run.record(
            f"slowest of {len(times)} plans from a {base} profile, {len(profile.targets)} modules",
            times[slowest].figures | {"share_of_limit": share, "file_bytes": size},
            f"`{slowest}`: {times[slowest]}",
            f"**{share:.2f}** of {limit} s, by processor time; file {size:,} bytes",
        )
        hashing = read["SHA-256 alone"].median
        ways = {"mapped": read["mapped, SHA-256 with it"], "copied": read["copied, no SHA-256"]}
        run.record(
            f"reading the {base} file, mapped against copied",
            {
                "mapped": ways["mapped"].figures | {"memory_mib": mapped},
                "copied": ways["copied"].figures | {"memory_mib": copied},
                "sha256_s": hashing,
            },
            f"{ways['mapped']}, {hashing:.3f} s of it for SHA-256, against {ways['copied']} "
            "without SHA-256",
            f"memory of its own **{mapped:.0f} against {copied:.0f} MiB**",
        )
        del profile


if __name__ == "__main__":
    main()
