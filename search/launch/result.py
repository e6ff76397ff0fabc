"""What a launch did."""

from __future__ import annotations

from dataclasses import dataclass, field

from search.queries.comparison import Confirmation
from search.study.ranking import BestChoice


@dataclass
class LaunchResult:
    """What a launch did: seconds per stage, and the best trial of each method, best first."""

    name: str
    profile_key: str
    profile_cached: bool
    tracking_uri: str
    profile_kept_in: str | None = None
    """File of a profile that the store did not take."""
    sweep_run_id: str | None = None
    states: dict[str, int] = field(default_factory=dict)
    best: list[BestChoice] = field(default_factory=list)
    unranked: list[str] = field(default_factory=list)
    """Methods and arms of which no trial ran to its end."""
    confirmation: list[Confirmation] | None = None
    ended_by: str | None = None
    reason: str | None = None
    """Why the search ended before all trials were out."""
    seconds: dict[str, float] = field(default_factory=dict)
    untold: int = 0
    """Records of trials that MLflow has not been told; --resume tells them."""
