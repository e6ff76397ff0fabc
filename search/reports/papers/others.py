"""Profiles of other tasks on one base, as the store has them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from search.store.profiles import ProfileStore
from search.wording import printable
from spaces.errors import RanksweepError
from spaces.profile import Profile

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OtherProfile:
    """The profile of another task on the same base."""

    task: str
    profile: Profile


def other_profiles(store: ProfileStore, key: str, most: int = 4) -> list[OtherProfile]:
    """Profiles of other training rows on the base of the profile of `key`, the newest first.

    Of several profiles of one task's rows the newest alone, and `most` in all; one that cannot be
    read is left out with a warning. None where the store has no such key. Raises StoreError.
    """
    manifest = store.manifest(key)
    if manifest is None or not manifest.get("base_fingerprint"):
        return []
    found: list[OtherProfile] = []
    seen = {manifest.get("train_fingerprint")}
    every = sorted(store.list(), key=lambda each: str(each.get("published")), reverse=True)
    for each in every:
        if len(found) >= most:
            break
        rows = each.get("train_fingerprint")
        if each.get("base_fingerprint") != manifest["base_fingerprint"] or rows in seen:
            continue
        seen.add(rows)
        try:
            profile = store.get(str(each["key"]))
        except RanksweepError as error:
            _log.warning("the profile of task %s is left out: %s", each.get("task"), error)
            continue
        if profile is not None:
            found.append(OtherProfile(printable(each.get("task")), profile))
    return found
