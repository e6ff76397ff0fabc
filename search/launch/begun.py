"""What a sweep was begun with: its base and its rows, which a launch that goes on must find again.

A study's trials can be compared where they were measured on the same rows and the same base. Paths
do not tell: files are corrected in place, and folders are moved.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

from search.config.sweep import SweepConfig
from search.launch.precision import dtype_without_probe
from search.launch.prepare import SweepInputs
from search.paths import SweepPaths, private_files
from spaces.errors import ConfigError


@dataclass(frozen=True)
class Begun:
    """Fingerprints of what a sweep was begun with, and the mark that its runs in MLflow carry.

    `rows` maps each split to what names its rows; `inputs` covers the training rows, the classes
    and how rows become the base's inputs. `dtype` is what the base is loaded in; None where an
    older ranksweep has written it.
    """

    base: str
    inputs: str
    rows: Mapping[str, str]
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    dtype: str | None = None

    @classmethod
    def by(cls, inputs: SweepInputs) -> Begun:
        """What a sweep that begins now is begun with, under a new mark."""
        task = inputs.task
        return cls(
            inputs.base_fingerprint,
            task.train_fingerprint,
            dict(task.rows),
            dtype=inputs.precision.dtype,
        )

    @classmethod
    def of(cls, paths: SweepPaths) -> Begun | None:
        """What the sweep's folder says; None where an older ranksweep has written it.

        Raises ConfigError where the file cannot be read.
        """
        try:
            return cls(**json.loads(paths.begun_file.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"name: {paths.begun_file} cannot be read ({error}), so that the sweep "
                f"{paths.name!r} cannot go on; launch under another name (--set name=...)"
            ) from None

    @property
    def grounds(self) -> dict[str, object]:
        """Without the mark: equal where the trials of two launches can stand in one study."""
        return {"base": self.base, "inputs": self.inputs, "rows": dict(self.rows)}

    def write(self, paths: SweepPaths) -> None:
        """Keep it in the sweep's folder."""
        with private_files():
            paths.begun_file.write_text(json.dumps(asdict(self), indent=2))


def dtype_as_begun(config: SweepConfig, paths: SweepPaths) -> str:
    """What the base of a sweep that goes on is loaded in: where the sweep leaves it open, what it
    was begun with. Raises ConfigError as `Begun.of` does."""
    begun = Begun.of(paths)
    if config.precision != "auto" or begun is None or begun.dtype is None:
        return dtype_without_probe(config)
    return begun.dtype


def refuse_other_data(before: Mapping[str, object], now: Mapping[str, object], name: str) -> None:
    """Raise ConfigError, naming what differs, where the `grounds` of a sweep are others now."""
    told = next(_differences(before, now), None)
    if told is not None:
        raise ConfigError(
            f"{told} than the sweep {name!r} was begun with, and its trials could not be compared; "
            "set it back, or launch under another name (--set name=...)"
        )


def _differences(before: Mapping[str, object], now: Mapping[str, object]) -> Iterator[str]:
    if before.get("base") != now["base"]:
        yield "base: its files are others"
    old, new = before.get("rows"), now["rows"]
    assert isinstance(new, Mapping)
    if isinstance(old, Mapping):
        changed = [split for split in {**old, **new} if old.get(split) != new.get(split)]
        if changed:
            have = "has" if len(changed) == 1 else "have"
            yield f"task.data: {' and '.join(changed)} {have} other rows"
    if before.get("inputs") != now["inputs"]:
        yield "task: other inputs are made of the rows"
