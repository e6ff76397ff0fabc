"""The names of a store's objects."""

from __future__ import annotations

import re

from spaces.errors import StoreError

_PROFILE_KEY = re.compile(r"[0-9a-f]{64}")
_PROFILE_FILE = re.compile(r"profile-([0-9a-f]{64})\.safetensors")
_CLAIM_RECORD = re.compile(r"claims/([0-9a-f]{64})/record/([1-9][0-9]{0,8})\.json")
PROFILES = "profiles"
CLAIMS = "claims"
SCHEDULES = "schedules"
USAGE = "usage"
"""What no schedule may be called: its objects lie beside those of the schedules."""
QUARANTINE = "quarantine"


def check_profile_key(key: str) -> str:
    """The key itself, when it is one: 64 lower-case hexadecimal digits.

    Raises:
        StoreError: it is anything else.
    """
    if not _PROFILE_KEY.fullmatch(key):
        raise StoreError(
            f"profile: {key[:80]!r} is not a profile key; a key is 64 hexadecimal digits "
            "(`ranksweep profiles list` shows them)"
        )
    return key


def profile_prefix(key: str) -> str:
    """Prefix under which all objects of one profile lie."""
    return f"{PROFILES}/{check_profile_key(key)}"


def manifest_object(key: str) -> str:
    """Object key of a profile's manifest: its creation is the moment of publication."""
    return f"{profile_prefix(key)}/manifest.json"


def profile_file_name(sha256: str) -> str:
    """File name of a profile whose bytes have this SHA-256 (hexadecimal)."""
    return f"profile-{sha256}.safetensors"


def sha256_of_file_name(name: str) -> str | None:
    """The SHA-256 that a profile's file name promises; None when it is no such name."""
    match = _PROFILE_FILE.fullmatch(name)
    return match.group(1) if match else None


def profile_object(key: str, sha256: str) -> str:
    """Object key of a profile's safetensors file."""
    return f"{profile_prefix(key)}/{profile_file_name(sha256)}"


def checkpoint_prefix(key: str) -> str:
    """Prefix of what a profile job saves of its progress; removed once the profile is published."""
    return f"{profile_prefix(key)}/checkpoint"


def quarantine_prefix(key: str, occasion: str) -> str:
    """Prefix that the damaged objects of one profile are moved under, one per occasion."""
    return f"{QUARANTINE}/{check_profile_key(key)}/{occasion}"


def key_of_object(path: str) -> str | None:
    """The profile key in the object key of a manifest; None for every other object."""
    parts = path.split("/")
    if len(parts) == 3 and parts[0] == PROFILES and parts[2] == "manifest.json":
        return parts[1] if _PROFILE_KEY.fullmatch(parts[1]) else None
    return None


def claim_prefix(key: str) -> str:
    """Prefix under which all objects of one claim on a sweep lie."""
    if not _PROFILE_KEY.fullmatch(key):
        raise StoreError(
            f"claim: {key[:80]!r} is no key of a claim; a key has 64 hexadecimal digits"
        )
    return f"{CLAIMS}/{key}"


def claim_record(number: int) -> str:
    """Name, within a claim, of what the owner of this number says of it."""
    return f"record/{number}.json"


def claim_of_object(path: str) -> tuple[str, int] | None:
    """The key and the number of a claim's record; None for every other object."""
    match = _CLAIM_RECORD.fullmatch(path)
    return (match.group(1), int(match.group(2))) if match else None


def schedule_prefix(name: str) -> str:
    """Prefix of what the schedule of this name remembers."""
    return f"{SCHEDULES}/{name}"


def usage_prefix(day: str) -> str:
    """Prefix of what the sweeps of all schedules have used of GPUs on a day (UTC), such as
    `2026-11-30`."""
    return f"{SCHEDULES}/{USAGE}/{day}"
