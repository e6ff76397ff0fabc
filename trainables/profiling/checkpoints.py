"""What is saved of a profile that is being computed, so that a crash costs little of it.

A checkpoint is a set of parts and a manifest that names them. A part is one safetensors file under
`parts/`, named by its SHA-256; what belongs to one worker has a part of its own. The manifest is
written last: until then the checkpoint before it is the one that counts, and its parts are removed
only after. Nothing is trusted that does not verify or that another computation has left.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import safetensors.torch
import torch

from spaces.errors import RanksweepError, StoreError
from trainables.engine.workers import Workers

CHECKPOINT_VERSION = 2
"""Raise it whenever what is saved means something else, or the computation goes another way."""

MANIFEST = "manifest.json"
PARTS = "parts"

Phase = Literal["initial phase", "static pass"]
Tensors = Mapping[str, torch.Tensor]
Message = Callable[[str], None]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_OF_A_RANK = re.compile(r"rank(\d+)/.*")


class Checkpoints(Protocol):
    """Where a job's checkpoints go: objects by name, below a prefix that is this profile's own.

    `ObjectStorage(uri).under(prefix)` is one. Whatever fails raises StoreError.
    """

    def get(self, name: str, /) -> bytes | None:
        """The bytes of an object; None when it is absent."""

    def put(self, name: str, content: bytes, /) -> None:
        """Write an object, over what is there: all of it or nothing."""

    def delete(self, name: str, /) -> bool:
        """Remove an object: False when it was not there."""

    def list(self, prefix: str, /) -> tuple[str, ...]:
        """The names of all objects under `prefix/`."""


def remove_checkpoints(checkpoints: Checkpoints) -> None:
    """Remove all that jobs have saved; call it once the profile is published. Raises StoreError."""
    checkpoints.delete(MANIFEST)
    for name in checkpoints.list(PARTS):
        checkpoints.delete(name)


@dataclass(frozen=True)
class Saved:
    """How far a saved job was.

    `step` counts the optimizer steps of the initial phase, or the micro-batches of the static pass
    over its present group of modules. `workers` is how many have saved it, `facts` what fits JSON,
    `parts` the SHA-256 of every part by its name.
    """

    phase: Phase
    step: int
    workers: int
    facts: Mapping[str, Any]
    parts: Mapping[str, str]


class JobCheckpoints:
    """One job's way to its checkpoints; every worker holds one, and all call it together.

    `identity` names the computation: what another one has left is passed over. `every` is the
    number of steps from one checkpoint to the next; without it, or without `storage`, nothing is
    saved nor read. `on_message` hears, from rank 0, what a user should know.
    """

    def __init__(
        self,
        storage: Checkpoints | None,
        *,
        identity: str,
        every: int | None,
        workers: Workers,
        on_message: Message,
    ) -> None:
        self._storage = storage if every is not None else None
        self._identity, self._every, self._workers = identity, every or 1, workers
        self._on_message = on_message
        self._parts: dict[str, str] = {}
        self._stale: set[str] = set()
        self._failing = False

    @property
    def active(self) -> bool:
        """Whether anything is saved at all."""
        return self._storage is not None

    def due(self, before: int, after: int) -> bool:
        """Whether a checkpoint is due between two numbers of steps done."""
        return self.active and before // self._every < after // self._every

    # Reading ------------------------------------------------------------------------------------

    def load(self) -> Saved | None:
        """Where to go on; None to begin at the beginning. Every part has been verified then."""
        if self._storage is None:
            return None
        saved, problem = self._workers.broadcast_object(
            self._manifest() if self._workers.rank == 0 else None
        )
        if saved is not None:
            if self._workers.rank == 0:
                self._stale |= set(saved.parts.values())
            problem = next(filter(None, self._workers.gather_objects(self._problem(saved))), None)
        if problem is not None:
            self._say(f"the checkpoint is not used: {problem}; the profile begins anew")
            return None
        if saved is not None:
            self._parts = dict(saved.parts)
        return saved  # type: ignore[no-any-return]

    def part(self, name: str) -> dict[str, torch.Tensor] | None:
        """The tensors of a part of the present checkpoint; None where it has no such part.

        Raises StoreError where it cannot be read or is damaged.
        """
        digest = self._parts.get(name)
        return None if digest is None else safetensors.torch.load(self._read(name, digest))

    def parts_of_others(self, saved: Saved, name: str) -> list[dict[str, torch.Tensor]]:
        """The parts `rank<j>/<name>` that fall to this worker: those of all j that leave its rank
        when divided by the number of workers."""
        mine = range(self._workers.rank, saved.workers, self._workers.size)
        found = (self.part(f"rank{j}/{name}") for j in mine)
        return [part for part in found if part is not None]

    def _manifest(self) -> tuple[Saved | None, str | None]:
        """What the manifest says, or why it cannot be used; (None, None) where there is none."""
        assert self._storage is not None
        try:
            encoded = self._storage.get(MANIFEST)
        except (RanksweepError, OSError) as error:
            return None, str(error)
        if encoded is None:
            return None, None
        try:
            manifest = json.loads(encoded)
            if manifest["sha256"] != digest_of(manifest["checkpoint"]):
                return None, f"{MANIFEST} does not have the SHA-256 that it names"
            checkpoint = manifest["checkpoint"]
            made_by = (checkpoint.pop("version"), checkpoint.pop("identity"))
            saved = Saved(**checkpoint)
            parts_are_named = all(map(_SHA256.fullmatch, saved.parts.values()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None, f"{MANIFEST} is damaged"
        if made_by != (CHECKPOINT_VERSION, self._identity):
            return None, "another computation has left it (settings, data, base or versions differ)"
        return (saved, None) if parts_are_named else (None, f"{MANIFEST} is damaged")

    def _problem(self, saved: Saved) -> str | None:
        """Why a part that this worker needs cannot be used; None where all verify."""
        for name, digest in saved.parts.items():
            owner = _OF_A_RANK.fullmatch(name)
            if owner and int(owner[1]) % self._workers.size != self._workers.rank:
                continue
            try:
                self._read(name, digest)
            except (RanksweepError, OSError) as error:
                return str(error)
        return None

    def _read(self, name: str, digest: str) -> bytes:
        assert self._storage is not None
        data = self._storage.get(_path(digest))
        if data is None or hashlib.sha256(data).hexdigest() != digest:
            what = "is missing" if data is None else "does not have the SHA-256 of its name"
            raise StoreError(f"{_path(digest)} ({name}) {what}")
        return data

    # Writing ------------------------------------------------------------------------------------

    def save(
        self,
        phase: Phase,
        step: int,
        facts: Mapping[str, Any],
        parts: Iterable[tuple[str, Tensors]],
        lasting: Mapping[str, Callable[[], Tensors]] | None = None,
    ) -> None:
        """Save how far the job is, in place of what was saved before.

        `parts` are written one by one as they come, by the worker that gives them; those of
        `lasting` only where the checkpoint before has none of that name. A store that fails is
        said, once, and costs nothing but the checkpoint. A collective; `parts` must not hold one.
        """
        if self._storage is None:
            return
        written: dict[str, str] = {}
        problem = None
        try:
            for name, make in (lasting or {}).items():
                written[name] = self._parts.get(name) or self._put(make())
            for name, tensors in parts:
                written[name] = self._put(tensors)
        except (RanksweepError, OSError) as error:
            problem = str(error)
        answers = self._workers.gather_objects((written, problem))
        problem = next((why for _, why in answers if why is not None), None)
        merged = {name: digest for part, _ in answers for name, digest in part.items()}
        if self._workers.rank == 0 and problem is None:
            problem = self._publish(Saved(phase, step, self._workers.size, facts, merged))
        problem = self._workers.broadcast_object(problem)
        self._stale |= set(written.values())
        if problem is None:
            self._parts = merged
            self._remove_stale()
        elif not self._failing:
            self._say(f"a checkpoint cannot be saved: {problem}; the profile goes on without")
        self._failing = problem is not None

    def _put(self, tensors: Tensors) -> str:
        assert self._storage is not None
        data = safetensors.torch.save(dict(tensors))
        digest = hashlib.sha256(data).hexdigest()
        self._storage.put(_path(digest), data)
        return digest

    def _publish(self, saved: Saved) -> str | None:
        """Write the manifest; returns why not."""
        assert self._storage is not None
        checkpoint = {
            "version": CHECKPOINT_VERSION,
            "identity": self._identity,
            **asdict(saved),
        }
        manifest = {"checkpoint": checkpoint, "sha256": digest_of(checkpoint)}
        try:
            self._storage.put(MANIFEST, json.dumps(manifest).encode())
        except (RanksweepError, OSError) as error:
            return str(error)
        return None

    def _remove_stale(self) -> None:
        assert self._storage is not None
        current = set(self._parts.values())
        for digest in self._stale - current:
            try:
                self._storage.delete(_path(digest))
            except (RanksweepError, OSError):
                return  # tried again after the next checkpoint
            self._stale.discard(digest)
        self._stale &= current

    def _say(self, line: str) -> None:
        if self._workers.rank == 0:
            self._on_message(line)


def _path(digest: str) -> str:
    return f"{PARTS}/{digest}.safetensors"


def digest_of(checkpoint: Mapping[str, Any]) -> str:
    """The SHA-256 that a manifest names of what it says."""
    return hashlib.sha256(json.dumps(checkpoint, sort_keys=True).encode()).hexdigest()


# --- what dropout draws from ---------------------------------------------------------------------


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of torch's generators that dropout on `device` draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: Tensors, device: torch.device) -> None:
    """Put what `rng_state` has given back."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
