"""The papers' figures, from a sweep's own profile and trials."""

from __future__ import annotations

from collections.abc import Sequence

from search.queries.sweep_record import SweepRecord
from search.reports.panel import Absent, Panel
from search.reports.papers.core import CORE, core_panel
from search.reports.papers.keys import FIGURES, key_panel
from search.reports.papers.others import OtherProfile
from search.reports.papers.overlap import OVERLAP, overlap_panel
from search.reports.papers.ranks import RANKS, ranks_panel
from search.reports.papers.rows import IMPORTANCE, PATTERN, importance_panel, pattern_panel
from search.reports.profile_figures import profile_report
from spaces.profile import Profile

_NO_PROFILE = "the sweep's profile is not at hand (--store names the store that has it)"
_EMPTY = "the sweep's profile has no modules"
_UNREAD = "no trial of the sweep reads a profile, and it has none"


def paper_panels(
    record: SweepRecord, profile: Profile | None, others: Sequence[OtherProfile] = ()
) -> list[Panel | Absent]:
    """The figures of PiLoRA, TASO and Sensitivity-LoRA as this sweep has them, in that order.

    `profile` is the sweep's, None where it cannot be had; `others` are profiles of other tasks on
    its base. A figure without numbers is absent, and says why.
    """
    by_key = {figure.key: key_panel(record, figure) for figure in FIGURES}
    retention = by_key.pop("retention")
    trials = list(by_key.values())
    if profile is None or not profile.targets:
        why = _EMPTY if profile else _NO_PROFILE if record.run.profile_key else _UNREAD
        return [
            Absent(*IMPORTANCE, why),
            Absent(*PATTERN, why),
            *trials,
            Absent(*OVERLAP, why),
            Absent(*CORE, why),
            retention,
            Absent(*RANKS, why),
        ]
    report = profile_report(profile)
    return [
        importance_panel(profile, report),
        pattern_panel(profile, report),
        *trials,
        overlap_panel(profile, report, others),
        core_panel(profile, report, record.best),
        retention,
        ranks_panel(profile, report, record.best),
    ]
