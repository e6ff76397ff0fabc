"""Plans for one base: what a choice means for its target modules, by its profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spaces.choice import Choice
from spaces.methods.registry import count_range, make_plan, parse_choice
from spaces.plan import Plan
from spaces.profile import Profile
from spaces.target import BaseSize, TargetModule


@dataclass(frozen=True)
class Planner:
    """Makes plans and counts them. `profile` may be left out for choices that need none, `size`
    for all but those that train the base's own parameters."""

    targets: tuple[TargetModule, ...]
    profile: Profile | None = None
    size: BaseSize | None = None

    def plan(self, choice: Choice | Mapping[str, Any]) -> Plan:
        """The plan of a choice, parsed or in plain values. Raises ChoiceError, ProfileError."""
        parsed = choice if isinstance(choice, Choice) else parse_choice(choice)
        return make_plan(parsed, self.targets, self.profile, self.size)

    def params(self, choice: Choice | Mapping[str, Any]) -> int:
        """How many parameters the plan of a choice trains. Raises ChoiceError, ProfileError."""
        return self.plan(choice).trainable_params

    def params_range(
        self, choice: Choice, dominant_fraction: float | None = None
    ) -> tuple[int, int]:
        """Least and most that it may be: without a profile over all profiles, and by one exactly.

        `dominant_fraction` is that of `count_range`. Raises ChoiceError, ProfileError.
        """
        if self.profile is None:
            return count_range(choice, self.targets, dominant_fraction, self.size)
        exact = self.params(choice)
        return exact, exact
