"""Plans: what a choice means for a base, how many parameters it trains, and PEFT's config of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ranksweep.given import choice_of, profile_of
from spaces.errors import BaseModelError, ConfigError

if TYPE_CHECKING:
    import peft  # type: ignore[import-untyped]

    from ranksweep.given import GivenChoice, GivenProfile
    from spaces.plan import Plan
    from spaces.planner import Planner
    from trainables.bases.structure import MetaBase

Targets = str | Sequence[str]
"""Suffixes of module names, in a list or with commas between; or "all-linear"."""


def plan(
    choice: GivenChoice,
    *,
    profile: GivenProfile | None = None,
    base: str | None = None,
    targets: Targets | None = None,
    kind: str = "classification",
    store: str | None = None,
) -> Plan:
    """The plan that a choice means for a base.

    `choice` is a method with its keys, in a mapping such as {"method": "lora", "rank": 8}, or the
    path of a YAML file of it. The base is that of a `profile` (itself, its file, or its key in the
    `store`), or, for a choice that needs none, `base` with its `targets`: suffixes of module names,
    such as ["query", "value"], or "all-linear"; `kind` is the kind of task to put a head on for. Of
    a base the config alone is read.

    Raises ChoiceError for a choice or a plan that cannot be, ProfileError, StoreError and
    BaseModelError where what it is for cannot be had, and ConfigError for arguments that do not go
    together.
    """
    return _planner(profile, base, targets, kind, store).plan(choice_of(choice))


@dataclass(frozen=True)
class Count:
    """How many parameters a choice trains.

    `trainable_params` is [least, most], equal where `exact`; `percent` is that of the base's
    `base_params`. `modules` counts the target modules, and `length` says how many times the epochs
    of others a trial takes.
    """

    method: str
    base: str
    base_params: int
    modules: int
    trainable_params: tuple[int, int]
    percent: tuple[float, float]
    length: int

    @property
    def exact(self) -> bool:
        """Whether it is one number, whatever the profile."""
        return self.trainable_params[0] == self.trainable_params[1]


def count(
    choice: GivenChoice,
    *,
    base: str,
    targets: Targets,
    kind: str = "classification",
    profile: GivenProfile | None = None,
    store: str | None = None,
) -> Count:
    """Count the trainable parameters of a choice from the base's config: exactly by a `profile`,
    else over all profiles. Arguments and errors as of `plan`."""
    from spaces.planner import Planner
    from trainables.bases.structure import base_parameters

    parsed = choice_of(choice)
    of_base = _of_base(base, targets, kind)
    known = None if profile is None else profile_of(profile, store)
    least, most = Planner(of_base.targets, known, of_base.size).params_range(parsed)
    whole = base_parameters(base)
    return Count(
        method=parsed.method,
        base=base,
        base_params=whole,
        modules=len(of_base.targets),
        trainable_params=(least, most),
        percent=(100 * least / whole, 100 * most / whole),
        length=parsed.length,
    )


def peft_config(
    choice: GivenChoice,
    profile: GivenProfile | None = None,
    *,
    base: str | None = None,
    targets: Targets | None = None,
    kind: str = "classification",
    store: str | None = None,
) -> peft.LoraConfig:
    """PEFT's LoraConfig that trains what a choice means: ready for `peft.get_peft_model`.

    Arguments and errors as of `plan`; ChoiceError, with the reason, for a plan that a LoraConfig
    cannot hold: one of several stages, or of blocks on some rows or columns.
    """
    from peft import LoraConfig

    from trainables.adaptations.lora_config import lora_config_of

    made = _planner(profile, base, targets, kind, store).plan(choice_of(choice))
    told = lora_config_of(made)
    return LoraConfig(**{key: value for key, value in told.items() if key != "peft_type"})


def _planner(
    profile: GivenProfile | None,
    base: str | None,
    targets: Targets | None,
    kind: str,
    store: str | None,
) -> Planner:
    from spaces.planner import Planner as Made

    if (profile is None) == (base is None):
        raise ConfigError(
            "profile: give either a profile, or base and targets for a choice that needs none"
        )
    if profile is not None:
        if targets is not None:
            raise ConfigError("targets: goes with base; a profile knows its own modules")
        known = profile_of(profile, store)
        return Made(known.targets, known)
    if base is None or targets is None:
        raise ConfigError("targets: goes with base; list suffixes such as ['query', 'value']")
    of_base = _of_base(base, targets, kind)
    return Made(of_base.targets, size=of_base.size)


def _of_base(base: str, targets: Targets, kind: str) -> MetaBase:
    """The base without its weights, with its target modules and its size."""
    from trainables.bases.structure import meta_base
    from trainables.tasks.kinds.registry import kind_of

    parts = targets.split(",") if isinstance(targets, str) else targets
    patterns = tuple(part.strip() for part in parts if part.strip())
    if not patterns:
        raise ConfigError("targets: names no module; list suffixes such as ['query', 'value']")
    try:
        return meta_base(base, kind_of(kind).head, 2, patterns)
    except BaseModelError as error:
        raise ConfigError(str(error).replace("profile.target_modules", "targets")) from None
