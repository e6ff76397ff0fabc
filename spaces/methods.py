"""The methods there are, and the way from a choice to a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spaces import joint, lora, pilora, sensitivity, taso
from spaces.choice import Choice, validated
from spaces.errors import ChoiceError, ProfileError, nearest
from spaces.plan import Plan
from spaces.profile import Profile
from spaces.target import TargetModule, largest_rank


@dataclass(frozen=True)
class Method:
    """One way to share adaptation capacity out; its functions take a choice of `choice_class`.

    The last three are for a search, which knows no choice yet: they take flat keys, as
    `partition.threshold`, and their values.
    """

    name: str
    choice_class: type[Choice]
    default_space: Mapping[str, Any]
    """Key -> domain, as a sweep would write it."""
    needs_profile: Callable[[Any], bool]
    plan: Callable[[Any, Sequence[TargetModule], Profile | None], Plan]
    count_range: Callable[[Any, Sequence[TargetModule], float | None], tuple[int, int]]
    unread_keys: Callable[[Mapping[str, Any]], frozenset[str]]
    """Keys that do not matter, given the values of others."""
    reconciled: Callable[[Mapping[str, Any]], dict[str, Any]]
    """The values with those that contradict another lowered to what it allows."""
    largest_values: Callable[[Sequence[TargetModule], Mapping[str, Sequence[Any]]], dict[str, int]]
    """Key -> largest value that every module can take, given the values that other keys may
    have."""


def _every_key_is_read(values: Mapping[str, Any]) -> frozenset[str]:
    return frozenset()


def _as_they_are(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(values)


METHODS: Mapping[str, Method] = {
    "lora": Method(
        name="lora",
        choice_class=lora.LoraChoice,
        default_space=lora.DEFAULT_SPACE,
        needs_profile=lora.needs_profile,
        plan=lora.plan,
        count_range=lora.count_range,
        unread_keys=_every_key_is_read,
        reconciled=_as_they_are,
        largest_values=largest_rank,
    ),
    "pilora": Method(
        name="pilora",
        choice_class=pilora.PiloraChoice,
        default_space=pilora.DEFAULT_SPACE,
        needs_profile=pilora.needs_profile,
        plan=pilora.plan,
        count_range=pilora.count_range,
        unread_keys=pilora.unread_keys,
        reconciled=pilora.reconciled,
        largest_values=largest_rank,
    ),
    "taso": Method(
        name="taso",
        choice_class=taso.TasoChoice,
        default_space=taso.DEFAULT_SPACE,
        needs_profile=taso.needs_profile,
        plan=taso.plan,
        count_range=taso.count_range,
        unread_keys=_every_key_is_read,
        reconciled=_as_they_are,
        largest_values=largest_rank,
    ),
    "sensitivity": Method(
        name="sensitivity",
        choice_class=sensitivity.SensitivityChoice,
        default_space=sensitivity.DEFAULT_SPACE,
        needs_profile=sensitivity.needs_profile,
        plan=sensitivity.plan,
        count_range=sensitivity.count_range,
        unread_keys=sensitivity.unread_keys,
        reconciled=sensitivity.reconciled,
        largest_values=sensitivity.largest_values,
    ),
    "joint": Method(
        name="joint",
        choice_class=joint.JointChoice,
        default_space=joint.DEFAULT_SPACE,
        needs_profile=joint.needs_profile,
        plan=joint.plan,
        count_range=joint.count_range,
        unread_keys=joint.unread_keys,
        reconciled=sensitivity.reconciled,
        largest_values=sensitivity.largest_values,
    ),
}


def method_named(name: object, where: str = "method") -> Method:
    """The method of that name. Raises ChoiceError naming the nearest, with the key `where`."""
    if not isinstance(name, str):
        raise ChoiceError(
            f"{where}: {str(name)[:60]!r} is no method; use one of {', '.join(METHODS)}"
        )
    if name not in METHODS:
        raise ChoiceError(f"{where}: {name[:60]!r} is no method; {nearest(name, METHODS)}")
    return METHODS[name]


def parse_choice(mapping: object, where: str = "") -> Choice:
    """A choice from plain values, as YAML gives them; only `method` is required.

    Raises ChoiceError, one line, with the key under `where`; an unknown key names the nearest.
    """
    prefix = f"{where}." if where else ""
    if not isinstance(mapping, Mapping):
        raise ChoiceError(
            f"{where or 'choice'}: {str(mapping)[:60]!r} is not a mapping; write method and its "
            "hyperparameters"
        )
    for key in mapping:
        if not isinstance(key, str):
            raise ChoiceError(f"{prefix}{key!r}: a key that is not text; write it as a name")
    if "method" not in mapping:
        raise ChoiceError(f"{prefix}method: missing; use one of {', '.join(METHODS)}")
    method = method_named(mapping["method"], f"{prefix}method")
    return validated(method.choice_class, mapping, where)


def needs_profile(choice: Choice) -> bool:
    """Whether the plan of a choice depends on the profile."""
    return METHODS[choice.method].needs_profile(choice)


def make_plan(choice: Choice, targets: Sequence[TargetModule], profile: Profile | None) -> Plan:
    """What a choice means for the weight matrices `targets`: the same three give the same plan.

    Raises ChoiceError where a rank is above min(out, in) of a module or a budget cannot be met,
    ProfileError where the profile is missing, of another base, or lacks a module, a tensor or the
    top_percent that is read.
    """
    if profile is None and needs_profile(choice):
        raise ProfileError(f"method: this {choice.method} choice needs a profile; give one")
    if profile is not None:
        profile.require_targets(tuple(targets))
    return METHODS[choice.method].plan(choice, targets, profile)


def count_range(
    choice: Choice, targets: Sequence[TargetModule], dominant_fraction: float | None = None
) -> tuple[int, int]:
    """Least and most trainable parameters that the choice can take without looking at a profile.

    Equal where they do not depend on it. `dominant_fraction` (0 to 1) fixes how many rows of every
    module are dominant. Raises ChoiceError as make_plan does.
    """
    if dominant_fraction is not None and not 0 <= dominant_fraction <= 1:
        raise ChoiceError(
            f"dominant_fraction: {dominant_fraction!r} is outside 0 to 1; give a share of the rows"
        )
    return METHODS[choice.method].count_range(choice, targets, dominant_fraction)
