"""What `ranksweep profiles show` tells of a profile: what it is of, and the numbers of its figures.

`search.cli.profile_view` draws them on a terminal, `search.reports.profile_pictures` as PNG.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.wording import printable
from spaces.errors import RanksweepError
from spaces.methods.pilora import Partition, dominant_rows
from spaces.methods.sensitivity import SensitivityChoice, allocated_ranks
from spaces.profile import FIELDS, Profile

JSON_BINS = 16
_LONGEST_SUFFIX = 6


# The numbers of the figures ---------------------------------------------------------------------


@dataclass(frozen=True)
class ModuleFigures:
    """What the figures show of one module; None for what the profile does not tell.

    `layer` and `kind` are its place in the base: modules that differ in the layer's number alone
    have one kind.
    """

    name: str
    layer: str
    kind: str
    rows: int
    rank: int | None = None
    """By Sensitivity-LoRA with its default choice."""
    dominant: int | None = None
    """Dominant rows by PiLoRA's default partition: hit on more than half of the scored steps."""
    row_importance: NDArray[np.float32] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class ProfileReport:
    """The numbers behind the figures of a profile, in the base's module order."""

    modules: tuple[ModuleFigures, ...]
    scored_steps: int
    left_out: Mapping[str, int]
    """Tensor -> how many modules lack it; a profile made by hand may leave some out."""
    absent: Mapping[str, str]
    """Figure -> why it cannot be drawn."""

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """The layers in the base's order."""
        return tuple(dict.fromkeys(module.layer for module in self.modules))

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of modules in the base's order."""
        return tuple(dict.fromkeys(module.kind for module in self.modules))

    @cached_property
    def cells(self) -> dict[tuple[str, str], list[ModuleFigures]]:
        """The modules of every layer and kind: one, or several such as the experts of a layer."""
        found: dict[tuple[str, str], list[ModuleFigures]] = {}
        for module in self.modules:
            found.setdefault((module.layer, module.kind), []).append(module)
        return found

    @property
    def total_rank(self) -> int:
        """Of all modules together."""
        return sum(self.layer_ranks().values())

    def layer_ranks(self) -> dict[str, int]:
        """Layer -> the ranks of its modules together."""
        sums = dict.fromkeys(self.layers, 0)
        for module in self.modules:
            sums[module.layer] += module.rank or 0
        return sums

    def ranks(self) -> dict[tuple[str, str], float]:
        """(layer, kind) -> rank, the mean where there are several modules."""
        return {
            place: float(np.mean(ranks))
            for place, modules in self.cells.items()
            if (ranks := [module.rank for module in modules if module.rank is not None])
        }

    def importances(self, bins: int) -> dict[tuple[str, str], NDArray[np.float64]]:
        """(layer, kind) -> mean row importance of each of `bins` runs of rows, float64 [bins]."""
        return {
            place: np.mean([binned(rows, bins) for rows in given], axis=0)
            for place, modules in self.cells.items()
            if (given := [m.row_importance for m in modules if m.row_importance is not None])
        }

    def dominant(self) -> dict[str, DominantRows]:
        """Kind -> its dominant rows."""
        known = [module for module in self.modules if module.dominant is not None]
        return {
            kind: DominantRows.of([module for module in known if module.kind == kind])
            for kind in dict.fromkeys(module.kind for module in known)
        }

    def as_dict(self) -> dict[str, Any]:
        """The numbers as JSON can hold them; a figure that cannot be drawn says why (`absent`)."""
        drawn: dict[str, Callable[[], dict[str, Any]]] = {
            "rank_budget": self._rank_budget_json,
            "row_importance": self._row_importance_json,
            "dominant_rows": self._dominant_rows_json,
        }
        return {
            name: {"absent": self.absent[name]} if name in self.absent else make()
            for name, make in drawn.items()
        }

    def _rank_budget_json(self) -> dict[str, Any]:
        return {
            "choice": SensitivityChoice().model_dump(mode="json"),
            "total": self.total_rank,
            "modules": [
                {**_place(module), "rank": module.rank}
                for module in self.modules
                if module.rank is not None
            ],
        }

    def _row_importance_json(self) -> dict[str, Any]:
        return {
            "bins": JSON_BINS,
            "modules": [
                {
                    **_place(module),
                    "rows": module.rows,
                    "mean": float(np.mean(module.row_importance, dtype=np.float64)),
                    "largest": float(np.max(module.row_importance)),
                    "by_bin": binned(module.row_importance, JSON_BINS).tolist(),
                }
                for module in self.modules
                if module.row_importance is not None
            ],
        }

    def _dominant_rows_json(self) -> dict[str, Any]:
        return {
            "partition": Partition().model_dump(mode="json"),
            "kinds": [
                {
                    "kind": kind,
                    "modules": rows.modules,
                    "rows": rows.rows,
                    "dominant_rows": rows.dominant,
                    "share": rows.share,
                    "least": rows.least,
                    "most": rows.most,
                }
                for kind, rows in self.dominant().items()
            ],
            "modules": [
                {**_place(module), "rows": module.rows, "dominant_rows": module.dominant}
                for module in self.modules
                if module.dominant is not None
            ],
        }


@dataclass(frozen=True)
class DominantRows:
    """The dominant rows of the modules of one kind."""

    modules: int
    rows: int
    dominant: int
    shares: tuple[float, ...]
    """Of each module."""

    @classmethod
    def of(cls, modules: Sequence[ModuleFigures]) -> DominantRows:
        counts = [(module.dominant or 0, module.rows) for module in modules]
        return cls(
            modules=len(modules),
            rows=sum(rows for _, rows in counts),
            dominant=sum(dominant for dominant, _ in counts),
            shares=tuple(dominant / rows for dominant, rows in counts),
        )

    @property
    def share(self) -> float:
        """Of all rows of the kind."""
        return self.dominant / self.rows

    @property
    def least(self) -> float:
        """Share of the module with the smallest."""
        return min(self.shares)

    @property
    def most(self) -> float:
        """Share of the module with the largest."""
        return max(self.shares)


def profile_report(profile: Profile) -> ProfileReport:
    """The numbers of a profile's figures, whatever tensors it leaves out."""
    absent: dict[str, str] = {}
    ranks: Sequence[int | None] = [None] * len(profile.targets)
    try:
        ranks = allocated_ranks(SensitivityChoice(), profile.targets, profile)
    except RanksweepError as error:
        absent["rank_budget"] = str(error)
    dominant, why = _dominant_counts(profile)
    if not any(count is not None for count in dominant):
        absent["dominant_rows"] = why
    modules = tuple(
        ModuleFigures(
            name=printable(target.name),
            layer=layer,
            kind=kind,
            rows=target.shape[0],
            rank=rank,
            dominant=count,
            row_importance=profile.modules[target.name].row_importance,
        )
        for target, (layer, kind), rank, count in zip(
            profile.targets,
            places([target.name for target in profile.targets]),
            ranks,
            dominant,
            strict=True,
        )
    )
    if all(module.row_importance is None for module in modules):
        absent["row_importance"] = "no module has row_importance; profile the base again"
    if not modules:
        absent = dict.fromkeys(("rank_budget", "row_importance", "dominant_rows"), "no modules")
    lacking = {
        name: sum(getattr(module, name) is None for module in profile.modules.values())
        for name in FIELDS
    }
    left_out = {name: count for name, count in lacking.items() if count}
    return ProfileReport(modules, profile.scored_steps, left_out, absent)


def profile_summary(
    profile: Profile, manifest: Mapping[str, Any] | None, report: ProfileReport
) -> dict[str, Any]:
    """What a profile is of: its manifest, or where a file has none what the file itself says."""
    known = profile.metadata if manifest is None else manifest
    summary: dict[str, Any] = {name: known[name] for name in ("base", "task") if name in known}
    summary |= {
        "modules": len(profile.targets),
        "scored_steps": profile.scored_steps,
        "top_percent_grid": list(profile.top_percent_grid),
        **(manifest or {}),
    }
    if report.left_out:
        summary["left_out"] = dict(report.left_out)
    return summary


def _dominant_counts(profile: Profile) -> tuple[list[int | None], str]:
    """Dominant rows of every module, None where that is not known, and why it is not."""
    counts: list[int | None] = []
    why = ""
    for place, target in enumerate(profile.targets):
        try:
            counts.append(len(dominant_rows(Partition(), target, profile, (0, place))))
        except RanksweepError as error:
            counts.append(None)
            why = why or str(error)
    return counts, why


def binned(values: NDArray[Any], bins: int) -> NDArray[np.float64]:
    """Means of `bins` runs of `values` [n] as equal in length as can be, float64 [bins].

    Where there are fewer values than bins, a value fills several of them.
    """
    starts = np.arange(bins) * values.shape[0] // bins
    lengths = np.diff(np.append(starts, values.shape[0]))
    sums = np.add.reduceat(values.astype(np.float64), starts)
    means: NDArray[np.float64] = sums / np.maximum(lengths, 1)
    return means


def places(names: Sequence[str]) -> list[tuple[str, str]]:
    """Layer and kind of every module, told by its name.

    The first number in a name is its layer, what stands behind it the kind, with `*` for further
    numbers (experts, blocks of a stage); the kind is shortened to what tells it from the others.
    Layers of several stacks (encoder, decoder) also carry what tells these apart. A module without
    a number has the layer `-`.
    """
    split = [_split(printable(name)) for name in names]
    stacks = _stack_labels({stack for stack, number, _ in split if number})
    kinds = _kind_labels({kind for _, _, kind in split})
    return [
        (f"{stacks[stack]} {number}".strip() if number else "-", kinds[kind])
        for stack, number, kind in split
    ]


def _split(name: str) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """What stands before the layer's number, the number (empty without one), and the kind."""
    parts = tuple(name.split("."))
    for place, part in enumerate(parts):
        if part.isdecimal():
            behind = tuple("*" if each.isdecimal() else each for each in parts[place + 1 :])
            return parts[:place], part, behind or parts[max(place - 1, 0) : place] or ("*",)
    return (), "", parts


def _stack_labels(stacks: set[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """The components of each stack that not all of them begin or end with; nothing for only one."""
    if len(stacks) < 2:
        return dict.fromkeys(stacks, "")
    begin = _common_length(stacks)
    end = _common_length([stack[begin:][::-1] for stack in stacks])
    return {stack: ".".join(stack[begin : len(stack) - end] or stack[-1:]) for stack in stacks}


def _common_length(stacks: Iterable[tuple[str, ...]]) -> int:
    """With how many components all of them begin alike."""
    alike = takewhile(lambda parts: len(set(parts)) == 1, zip(*stacks, strict=False))
    return sum(1 for _ in alike)


def _kind_labels(kinds: set[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """The last components of each kind that no other kind ends with; else all of them."""
    lengths = range(1, _LONGEST_SUFFIX + 1)
    ends = Counter(kind[-length:] for kind in kinds for length in lengths if length <= len(kind))
    return {
        kind: ".".join(
            next((kind[-n:] for n in lengths if n <= len(kind) and ends[kind[-n:]] == 1), kind)
        )
        for kind in kinds
    }


def _place(module: ModuleFigures) -> dict[str, str]:
    return {"module": module.name, "layer": module.layer, "kind": module.kind}
