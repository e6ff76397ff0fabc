"""GPUs by the names that Ray has for them (ray.util.accelerators), and the memory of each."""

from __future__ import annotations

from collections.abc import Mapping

from trainables.settings import bytes_of

MIB = 2**20
LEAST = 256 * MIB
"""What is less is a unit that was left out."""
GPU_BYTES: Mapping[str, int] = {
    name: mib * MIB
    for name, mib in {
        "P4": 7_600, "T4": 15_360, "P100": 16_276, "V100": 16_160, "L4": 23_034, "A10G": 23_028,
        "A100": 40_960, "A100-40G": 40_960, "L40S": 46_068, "A100-80G": 81_920, "H100": 81_559,
        "RTX-PRO-6000": 97_887, "H20": 97_871, "H200": 143_771, "B200": 183_359,
    }.items()
}  # fmt: skip
"""What nvidia-smi says of each. `A100` and `V100` are made in two sizes, and it is the smaller."""


def gpu_bytes(gpu: str) -> int:
    """Bytes of memory that a GPU has: one of `GPU_BYTES`, or a size such as 24GiB.

    Raises ValueError where it is neither.
    """
    if gpu in GPU_BYTES:
        return GPU_BYTES[gpu]
    try:
        size = bytes_of(gpu)
    except ValueError:
        raise ValueError(
            f"{gpu[:80]!r} is neither a GPU whose memory is known nor a size; write its size, such "
            f"as 24GiB, or one of {', '.join(GPU_BYTES)}"
        ) from None
    if size < LEAST:
        raise ValueError(f"{gpu[:80]!r} is {size:,} bytes, less than any GPU has; write 24GiB")
    return size
