"""The methods there are, and the way from a choice to a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spaces.choice import Choice, validated
from spaces.errors import ChoiceError, ProfileError, nearest
from spaces.methods import joint, lora, pilora, sensitivity, taso
from spaces.methods.baselines import (
    adalora,
    bitfit,
    bottleneck,
    dora,
    eva,
    full,
    gora,
    ia3,
    lora_dash,
    lora_xs,
    para,
    sora,
    two_factors,
    vera,
)
from spaces.plan import Plan, Tuner
from spaces.profile import Profile
from spaces.target import BaseSize, TargetModule, largest_of_each, largest_rank, no_largest_values


def _without_a_profile(choice: Choice) -> bool:
    return False


def _every_key_is_read(values: Mapping[str, Any]) -> frozenset[str]:
    return frozenset()


def _as_they_are(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(values)


@dataclass(frozen=True)
class Blocks:
    """How a choice becomes a plan of blocks; the functions take one of the method's own."""

    plan: Callable[[Any, Sequence[TargetModule], Profile | None], Plan]
    count_range: Callable[[Any, Sequence[TargetModule], float | None], tuple[int, int]]
    needs_profile: Callable[[Any], bool] = _without_a_profile


TunerOf = Callable[[Any, Sequence[TargetModule], BaseSize | None], Tuner]
"""How a baseline's choice becomes a tuner; no baseline reads a profile."""


@dataclass(frozen=True)
class Method:
    """One way to share adaptation capacity out.

    The last three are for a search, which knows no choice yet: they take flat keys, as
    `partition.threshold`, and their values.
    """

    choice_class: type[Choice]
    default_space: Mapping[str, Any]
    """Key -> domain, as a sweep would write it. A learning_rate among them stands in place of the
    one that methods share."""
    made_of: Blocks | TunerOf
    """Blocks for what ranksweep searches on its own, a tuner for a baseline."""
    unread_keys: Callable[[Mapping[str, Any]], frozenset[str]] = _every_key_is_read
    """Keys that do not matter, given the values of others."""
    reconciled: Callable[[Mapping[str, Any]], dict[str, Any]] = _as_they_are
    """The values with those that contradict another moved to the nearest that it allows."""
    largest_values: Callable[
        [Sequence[TargetModule], Mapping[str, Sequence[Any]]], dict[str, int]
    ] = largest_rank
    """Key -> largest value that every module can take, given the values that other keys may
    have."""

    @property
    def name(self) -> str:
        """What a choice writes under `method`."""
        return str(self.choice_class.model_fields["method"].default)

    @property
    def baseline(self) -> bool:
        """Whether it is there to be compared with, and searched only where a sweep names it."""
        return not isinstance(self.made_of, Blocks)


_METHODS = (
    Method(lora.LoraChoice, lora.DEFAULT_SPACE, Blocks(lora.plan, lora.count_range)),
    Method(
        pilora.PiloraChoice,
        pilora.DEFAULT_SPACE,
        Blocks(pilora.plan, pilora.count_range, pilora.needs_profile),
        pilora.unread_keys,
        pilora.reconciled,
    ),
    Method(
        taso.TasoChoice,
        taso.DEFAULT_SPACE,
        Blocks(taso.plan, taso.count_range, taso.needs_profile),
        taso.unread_keys,
    ),
    Method(
        sensitivity.SensitivityChoice,
        sensitivity.DEFAULT_SPACE,
        Blocks(sensitivity.plan, sensitivity.count_range, sensitivity.needs_profile),
        sensitivity.unread_keys,
        sensitivity.reconciled,
        sensitivity.largest_values,
    ),
    Method(
        joint.JointChoice,
        joint.DEFAULT_SPACE,
        Blocks(joint.plan, joint.count_range, joint.needs_profile),
        joint.unread_keys,
        sensitivity.reconciled,
        sensitivity.largest_values,
    ),
    Method(two_factors.RsloraChoice, two_factors.SCALED_SPACE, two_factors.tuner),
    Method(dora.DoraChoice, dora.DEFAULT_SPACE, dora.tuner),
    Method(two_factors.PissaChoice, two_factors.DEFAULT_SPACE, two_factors.tuner),
    Method(
        adalora.AdaloraChoice,
        adalora.DEFAULT_SPACE,
        adalora.tuner,
        reconciled=adalora.reconciled,
        largest_values=largest_of_each("rank", "initial_rank"),
    ),
    Method(ia3.Ia3Choice, ia3.DEFAULT_SPACE, ia3.tuner),
    Method(vera.VeraChoice, vera.DEFAULT_SPACE, vera.tuner, largest_values=no_largest_values),
    Method(lora_xs.LoraXsChoice, lora_xs.DEFAULT_SPACE, lora_xs.tuner),
    Method(bottleneck.BottleneckChoice, bottleneck.DEFAULT_SPACE, bottleneck.tuner),
    Method(bitfit.BitfitChoice, bitfit.DEFAULT_SPACE, bitfit.tuner),
    Method(full.FullChoice, full.DEFAULT_SPACE, full.tuner),
    Method(two_factors.MiloraChoice, two_factors.DEFAULT_SPACE, two_factors.tuner),
    Method(
        lora_dash.LoraDashChoice,
        lora_dash.DEFAULT_SPACE,
        lora_dash.tuner,
        largest_values=largest_of_each("rank", "directions"),
    ),
    Method(two_factors.DyloraChoice, two_factors.SCALED_SPACE, two_factors.tuner),
    Method(sora.SoraChoice, sora.DEFAULT_SPACE, sora.tuner),
    Method(eva.EvaChoice, eva.DEFAULT_SPACE, eva.tuner, largest_values=eva.largest_values),
    Method(gora.GoraChoice, gora.DEFAULT_SPACE, gora.tuner),
    Method(para.ParaChoice, para.DEFAULT_SPACE, para.tuner),
)

METHODS: Mapping[str, Method] = {method.name: method for method in _METHODS}


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


def from_record(mapping: Mapping[str, Any]) -> Choice:
    """The choice that a record of this or of an older version stands for. Raises ChoiceError."""
    return parse_choice(completed(mapping))


def completed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded choice's values with those that it lacks and that have another default now."""
    method = METHODS.get(record.get("method", ""))
    if method is None:
        return dict(record)
    fields = method.choice_class.model_fields
    changed = {
        key: value
        for key, value in method.choice_class.RECORDED_WITHOUT.items()
        if fields[key].default != value
    }
    return {**changed, **record}


def recorded(choice: Mapping[str, Any]) -> dict[str, Any]:
    """A choice's plain values as any version would have recorded it: equal where choices are.

    What older versions did not know is left out where it is as it was then.
    """
    method = METHODS.get(choice.get("method", ""))
    then = method.choice_class.RECORDED_WITHOUT if method else {}
    return {key: value for key, value in choice.items() if not (key in then and then[key] == value)}


def needs_profile(choice: Choice) -> bool:
    """Whether the plan of a choice depends on the profile."""
    made_of = METHODS[choice.method].made_of
    return isinstance(made_of, Blocks) and made_of.needs_profile(choice)


def make_plan(
    choice: Choice,
    targets: Sequence[TargetModule],
    profile: Profile | None,
    size: BaseSize | None = None,
) -> Plan:
    """What a choice means for the weight matrices `targets`: the same input gives the same plan.

    `size` is that of the base, which `bitfit` and `full` need. Raises ChoiceError where a rank is
    above min(out, in) of a module, a budget cannot be met or the base is one that the method cannot
    take; ProfileError where the profile is missing, of another base, or lacks a module, a tensor or
    the top_percent that is read.
    """
    if profile is None and needs_profile(choice):
        raise ProfileError(f"method: this {choice.method} choice needs a profile; give one")
    if profile is not None:
        profile.require_targets(tuple(targets))
    made_of = METHODS[choice.method].made_of
    if isinstance(made_of, Blocks):
        return made_of.plan(choice, targets, profile)
    return Plan.of_tuner(made_of(choice, targets, size), targets)


def count_range(
    choice: Choice,
    targets: Sequence[TargetModule],
    dominant_fraction: float | None = None,
    size: BaseSize | None = None,
) -> tuple[int, int]:
    """Least and most trainable parameters that the choice can take without looking at a profile.

    Equal where they do not depend on it, nor on the training rows. `dominant_fraction` (0 to 1)
    fixes how many rows of every module are dominant. Raises ChoiceError as make_plan does.
    """
    if dominant_fraction is not None and not 0 <= dominant_fraction <= 1:
        raise ChoiceError(
            f"dominant_fraction: {dominant_fraction!r} is outside 0 to 1; give a share of the rows"
        )
    made_of = METHODS[choice.method].made_of
    if isinstance(made_of, Blocks):
        return made_of.count_range(choice, targets, dominant_fraction)
    tuner = made_of(choice, targets, size)
    least = tuner.params if tuner.least_params is None else tuner.least_params
    return least, tuner.params
