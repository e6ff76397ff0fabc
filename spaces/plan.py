"""The plan: what a choice means for a base, as stages of blocks or as a baseline's tuner."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from spaces.errors import ChoiceError
from spaces.files import tensor_file
from spaces.target import TargetModule

SCHEMA_VERSION = 1

_METADATA_KEY = "ranksweep"

StageSteps = Literal["split", "full"]
"""How stages share a trial's steps: each trains an equal part of them, or each trains all."""


@dataclass(frozen=True, eq=False)
class Block:
    """A low-rank update scale * B A that writes only to `rows` and reads only from `cols`.

    B is [len(rows), rank], A is [rank, len(cols)]; the learning rate of both is multiplied by
    `lr_scale`.
    """

    rank: int
    rows: NDArray[np.int32]
    cols: NDArray[np.int32]
    scale: float
    lr_scale: float = 1.0

    @property
    def params(self) -> int:
        """Trainable numbers: rank * (rows + cols)."""
        return self.rank * (int(self.rows.shape[0]) + int(self.cols.shape[0]))


@dataclass(frozen=True)
class Tuner:
    """What trains in place of blocks: a baseline's settings, read by the worker."""

    name: str
    """The method's name."""
    settings: Mapping[str, int | float | str | bool]
    """The choice's own keys, and what the method derives from the target modules."""
    params: int
    """Trainable numbers, the task's head apart; at most so many where `least_params` is given."""
    least_params: int | None = None
    """At least so many, where a trial's training rows decide how many they are."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Stages, each a map module name -> blocks, for the weight matrices `targets`.

    A stage trains its blocks while those of earlier stages stay frozen and go on adding their
    update. A baseline's plan holds a tuner instead, and one stage without blocks. Build one with
    `Plan.of` or `Plan.of_tuner`.
    """

    stages: tuple[Mapping[str, tuple[Block, ...]], ...]
    targets: tuple[TargetModule, ...]
    tuner: Tuner | None = None
    stage_steps: StageSteps = "split"

    @classmethod
    def of(
        cls,
        stages: Iterable[Mapping[str, Sequence[Block]]],
        targets: Sequence[TargetModule],
        stage_steps: StageSteps = "split",
    ) -> Plan:
        """A checked plan; blocks that hold nothing are left out.

        Modules stand in the order of `targets`; a stage that is left without blocks stays as an
        empty map. A single stage trains all steps either way. Raises ChoiceError where a block is
        out of the bounds of its matrix or its indices are not sorted and unique.
        """
        known = {target.name: target for target in targets}
        ordered = []
        for number, stage in enumerate(stages):
            for name in stage:
                if name not in known:
                    raise ChoiceError(
                        f"stage{number}/{name}: not a target module; list it in the targets"
                    )
            modules = {}
            for name, target in known.items():
                kept = tuple(block for block in stage.get(name, ()) if _holds_something(block))
                for index, block in enumerate(kept):
                    _check_block(f"stage{number}/{name}/block{index}", block, target)
                if kept:
                    modules[name] = kept
            ordered.append(MappingProxyType(modules))
        return cls(
            tuple(ordered), tuple(targets), stage_steps=stage_steps if len(ordered) > 1 else "split"
        )

    @classmethod
    def of_tuner(cls, tuner: Tuner, targets: Sequence[TargetModule]) -> Plan:
        """A baseline's plan: one stage, in which the tuner trains in place of blocks.

        Raises ChoiceError where a setting cannot be written to a file or the count is negative.
        """
        for key, value in tuner.settings.items():
            plain = isinstance(value, bool | int | float | str)
            if not plain or (isinstance(value, float) and not isfinite(value)):
                raise ChoiceError(
                    f"tuner/{key}: {str(value)[:60]!r} is refused; write a finite number, true, "
                    "false or text"
                )
        if tuner.params < 0:
            raise ChoiceError(f"tuner/params: {tuner.params} is below 0; count them again")
        return cls((MappingProxyType({}),), tuple(targets), tuner)

    @property
    def length(self) -> int:
        """How many times the epochs of a trial it is trained for: once for each full stage."""
        return len(self.stages) if self.stage_steps == "full" else 1

    @property
    def trainable_params(self) -> int:
        """What must be stored: the sum over all stages of rank * (rows + cols), or the tuner's."""
        return sum(_stage_params(stage) for stage in self.stages) + self._tuner_params

    @property
    def peak_trainable_params(self) -> int:
        """What trains at one time: the largest stage's sum, or the tuner's."""
        largest_stage = max((_stage_params(stage) for stage in self.stages), default=0)
        return largest_stage + self._tuner_params

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical metadata and the index tensors, not of file bytes."""
        digest = hashlib.sha256(self._canonical_metadata().encode())
        for name, indices in self._tensors().items():
            digest.update(f"\n{name} {indices.shape[0]}\n".encode())
            digest.update(indices.astype("<i4", copy=False).tobytes())
        return digest.hexdigest()

    def summary(self) -> dict[str, Any]:
        """The plan without its indices, ready for JSON: parameter counts and each block's shape.

        `length` says of full stages how many times as long a trial is.
        """
        tuner = {} if self.tuner is None else {"tuner": _described_tuner(self.tuner)}
        return {
            "trainable_params": self.trainable_params,
            "peak_trainable_params": self.peak_trainable_params,
            **tuner,
            **self._described_length(),
            "stages": self._described_stages(with_sizes=True),
            "digest": self.digest,
        }

    def to_bytes(self) -> bytes:
        """The plan as a safetensors file: int32 `stage<i>/<module>/block<j>/rows` and `/cols`."""
        metadata = {_METADATA_KEY: self._canonical_metadata()}
        return bytes(safetensors.numpy.save(self._tensors(), metadata=metadata))

    def write(self, path: str | Path) -> None:
        """Write the plan as a safetensors file."""
        Path(path).write_bytes(self.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes, source: str = "plan") -> Plan:
        """Parse the bytes of a plan file; `source` names them in errors. Raises ChoiceError."""
        try:
            tensors = safetensors.numpy.load(data)
            metadata = json.loads(tensor_file.parsed(data).metadata[_METADATA_KEY])
            if metadata["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema version {metadata['schema_version']!r}")
            stage_steps = metadata.get("stage_steps", "split")
            if stage_steps not in get_args(StageSteps):
                raise ValueError(f"stage_steps {stage_steps!r}")
            targets = [_target(item) for item in metadata["targets"]]
            stages = [
                {
                    name: [
                        _block(tensors, f"stage{number}/{name}/block{index}", block)
                        for index, block in enumerate(blocks)
                    ]
                    for name, blocks in stage["modules"].items()
                }
                for number, stage in enumerate(metadata["stages"])
            ]
            tuner = _tuner(metadata["tuner"], stages) if "tuner" in metadata else None
        except Exception as error:  # whatever a file that is not a plan makes its parsers raise
            reason = str(error).replace("\n", " ") or type(error).__name__
            raise ChoiceError(f"{source}: not a plan file ({reason}); write it again") from error
        if tensors:
            raise ChoiceError(
                f"{source}: tensor {min(tensors)} belongs to no block; write it again"
            )
        if tuner is not None:
            return cls.of_tuner(tuner, targets)
        return cls.of(stages, targets, stage_steps)

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Read a plan file. Raises ChoiceError."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise ChoiceError(
                f"{path}: cannot be read ({error.strerror}); give the path of a plan file"
            ) from error
        return cls.from_bytes(data, str(path))

    def _tensors(self) -> dict[str, NDArray[np.int32]]:
        tensors = {}
        for number, stage in enumerate(self.stages):
            for name, blocks in stage.items():
                for index, block in enumerate(blocks):
                    prefix = f"stage{number}/{name}/block{index}"
                    # safetensors writes the memory of a strided view as it lies
                    tensors[f"{prefix}/rows"] = np.ascontiguousarray(block.rows)
                    tensors[f"{prefix}/cols"] = np.ascontiguousarray(block.cols)
        return tensors

    def _described_stages(self, with_sizes: bool) -> list[dict[str, Any]]:
        """The stages as plain data, without indices; `with_sizes` says how many each block has."""
        stages = []
        for stage in self.stages:
            modules: dict[str, list[dict[str, Any]]] = {name: [] for name in stage}
            for name, blocks in stage.items():
                for block in blocks:
                    sizes = {"rows": block.rows.shape[0], "cols": block.cols.shape[0]}
                    modules[name].append(
                        {
                            "rank": block.rank,
                            **(sizes if with_sizes else {}),
                            "scale": block.scale,
                            "lr_scale": block.lr_scale,
                        }
                    )
            stages.append({"modules": modules})
        return stages

    def _described_length(self) -> dict[str, Any]:
        """What is said of full stages alone: plans of others read as they always did."""
        if self.stage_steps == "split":
            return {}
        return {"stage_steps": self.stage_steps, "length": self.length}

    @property
    def _tuner_params(self) -> int:
        return 0 if self.tuner is None else self.tuner.params

    def _canonical_metadata(self) -> str:
        # json writes a float64 as its repr, the shortest text that reads back to the same number.
        metadata: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "targets": [
                {"name": target.name, "shape": list(target.shape), "names": list(target.names)}
                for target in self.targets
            ],
            "stages": self._described_stages(with_sizes=False),
        }
        if self.tuner is not None:
            metadata["tuner"] = _described_tuner(self.tuner)
        if self.stage_steps != "split":
            metadata["stage_steps"] = self.stage_steps
        return json.dumps(metadata, sort_keys=True, separators=(",", ":"), allow_nan=False)


def all_indices(size: int) -> NDArray[np.int32]:
    """Every index of a row or column axis of `size`, written out."""
    return np.arange(size, dtype=np.int32)


def _holds_something(block: Block) -> bool:
    return block.rank > 0 and block.rows.shape[0] > 0 and block.cols.shape[0] > 0


def _stage_params(stage: Mapping[str, tuple[Block, ...]]) -> int:
    return sum(block.params for blocks in stage.values() for block in blocks)


def _check_block(where: str, block: Block, target: TargetModule) -> None:
    for axis, indices, size in (
        ("rows", block.rows, target.shape[0]),
        ("cols", block.cols, target.shape[1]),
    ):
        if indices.dtype != np.int32 or indices.ndim != 1:
            raise ChoiceError(f"{where}/{axis}: not a list of int32; write the indices as int32")
        if indices[0] < 0 or indices[-1] >= size or np.any(indices[1:] <= indices[:-1]):
            raise ChoiceError(
                f"{where}/{axis}: indices not sorted, unique and within 0 to {size - 1}; sort them"
            )
    if block.rank > target.rank_limit:
        raise ChoiceError(
            f"{where}/rank: {block.rank} is above min(out, in) = {target.rank_limit}; lower it"
        )


def _target(item: Mapping[str, Any]) -> TargetModule:
    out_features, in_features = item["shape"]
    return TargetModule(item["name"], (out_features, in_features), tuple(item.get("names", ())))


def _block(tensors: dict[str, NDArray[Any]], prefix: str, described: Mapping[str, Any]) -> Block:
    return Block(
        rank=int(described["rank"]),
        rows=tensors.pop(f"{prefix}/rows"),
        cols=tensors.pop(f"{prefix}/cols"),
        scale=float(described["scale"]),
        lr_scale=float(described["lr_scale"]),
    )


def _described_tuner(tuner: Tuner) -> dict[str, Any]:
    # Told of those alone that have it: plans of others read as they always did.
    least = {} if tuner.least_params is None else {"least_params": tuner.least_params}
    return {
        "name": tuner.name,
        "settings": dict(sorted(tuner.settings.items())),
        "params": tuner.params,
        **least,
    }


def _tuner(described: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> Tuner:
    """The tuner of a plan file. Raises where it is none or stands beside blocks."""
    name, settings, params = (described[key] for key in ("name", "settings", "params"))
    least = described.get("least_params")
    if not isinstance(name, str) or not isinstance(settings, dict) or type(params) is not int:
        raise ValueError("tuner without a name, settings and a count of parameters")
    if least is not None and (type(least) is not int or not 0 <= least <= params):
        raise ValueError(f"a tuner of at least {least!r} and at most {params} parameters")
    if list(stages) != [{}]:
        raise ValueError("a tuner beside blocks or other stages")
    return Tuner(name, settings, params, least)
