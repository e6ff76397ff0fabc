"""The store of profiles: content-verified, published by create-if-absent, on any object storage.

A profile's file is written first, under a name that holds its SHA-256; then its manifest is created
if absent, and that is the moment of publication. Every read verifies the SHA-256. What does not
verify is moved under `quarantine/` and counts as absent, so that it is computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import rfc8785

from search.store import keys
from search.store.node_cache import NodeCache
from search.store.objects import ObjectStorage
from spaces.errors import ConfigError, ProfileError, StoreError
from spaces.files.profile_file import SCHEMA_VERSION
from spaces.profile import Profile
from spaces.target import TargetModule

ALGORITHM_VERSION = 1
"""Raise it whenever the same settings on the same data would give another profile."""
WARMED_UP_VERSION = 2
"""That of profiles with warm-up, which has begun above a rate of 0 since version 2 of theirs."""

_log = logging.getLogger(__name__)
_HEX = re.compile(r"[0-9a-f]{4,64}")
_MANIFEST_VERSION = 1
_Read = TypeVar("_Read")


def profile_key(
    *,
    base_fingerprint: str,
    train_fingerprint: str,
    targets: Sequence[TargetModule],
    settings: Mapping[str, Any],
    seed: int,
    dtype: str,
    head: str | None = None,
    quantization: str | None = None,
) -> str:
    """Key of the profile that these inputs give: 64 hexadecimal digits.

    SHA-256 over the canonical JSON (RFC 8785) of schema and algorithm version, the fingerprints of
    the base and of the training rows, the resolved target modules (name and shape, in the base's
    order), the resolved profile settings, the seed, the dtype, for a base with a head of its own
    what is done with that `head`, and the `quantization` of a base that has one. The order of
    `settings` does not matter; `target_modules` and `seed` in it are left out, for their resolved
    forms stand beside.

    Raises:
        ValueError: a setting that JSON cannot hold (a NaN, an object).
    """
    resolved = {k: v for k, v in settings.items() if k not in ("target_modules", "seed")}
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "algorithm_version": (
            WARMED_UP_VERSION if resolved.get("warmup_ratio") else ALGORITHM_VERSION
        ),
        "base": base_fingerprint,
        "train": train_fingerprint,
        "targets": [{"name": t.name, "shape": list(t.shape)} for t in targets],
        "settings": resolved,
        "seed": seed,
        "dtype": dtype,
    }
    if head is not None:
        document["head"] = head
    if quantization is not None:
        document["quantization"] = quantization
    return hashlib.sha256(rfc8785.dumps(document)).hexdigest()


@dataclass(frozen=True)
class Verification:
    """What reading one profile back has shown. `detail` is one line, also where all is well."""

    key: str
    ok: bool
    detail: str


class _DamagedError(Exception):
    """What is published under a key cannot be used; the text says why.

    `manifest` is the manifest as it was read, `file` the name of the profile's file where known.
    """

    def __init__(self, why: str, manifest: bytes, file: str | None = None) -> None:
        super().__init__(why)
        self.manifest = manifest
        self.file = file


class _DanglingError(Exception):
    """A manifest points to a file that is not there."""


def _opened(sha256: str, download: Callable[[], bytes]) -> Profile:
    return Profile.from_bytes(download(), keys.profile_file_name(sha256))


def _verified_size(sha256: str, download: Callable[[], bytes]) -> int:
    """The size in bytes of what is a profile. Raises ProfileError where it is none."""
    data = download()
    Profile.from_bytes(data, keys.profile_file_name(sha256))
    return len(data)


class ProfileStore:
    """Profiles on object storage, one per key.

    `uri` is one that ObjectStorage takes; `name` is how it may be shown.

    Raises:
        ConfigError: a URI that names no store.
        StoreError: the store cannot be reached, read or written.
    """

    def __init__(self, uri: str) -> None:
        self.objects = ObjectStorage(uri)
        self.uri, self.name = self.objects.uri, self.objects.name
        self._cache = NodeCache.default()

    # Reading ----------------------------------------------------------------------------------

    def get(
        self, key: str, unfit: Callable[[Profile], str | None] = lambda _profile: None
    ) -> Profile | None:
        """The verified profile of a key; None when the store has none that can be used.

        A profile that does not verify, or of which `unfit` says why it cannot be the one, is moved
        to quarantine with a warning. A manifest that points to nothing is removed, so that the
        profile can be published again. One from a remote store is mapped from this node's cache.
        """
        try:
            profile = self._read(key, _opened if self.objects.is_local else self._cache.open)
            why = None if profile is None else unfit(profile)
            if why is not None and (found := self._read_manifest(key)) is not None:
                raise _DamagedError(why, found[1], found[0]["file"])
        except _DamagedError as damage:
            self._quarantine(key, damage)
            return None
        return profile

    def manifest(self, key: str) -> dict[str, Any] | None:
        """What the manifest of a key says; None when there is none that can be read."""
        try:
            found = self._read_manifest(key)
        except _DamagedError as damage:
            _log.warning(
                "profile %s in %s: %s; `ranksweep profiles verify` moves it to quarantine",
                key,
                self.name,
                damage,
            )
            return None
        return None if found is None else found[0]

    def list(self) -> list[dict[str, Any]]:
        """The readable manifests of the store, by key; profiles themselves are not read."""
        found = (self.manifest(key) for key in self.keys())
        return [manifest for manifest in found if manifest is not None]

    def keys(self) -> tuple[str, ...]:
        """The keys that have a manifest, sorted."""
        names = (keys.key_of_object(path) for path in self.objects.list(keys.PROFILES))
        return tuple(sorted(key for key in names if key is not None))

    def resolve(self, prefix: str) -> str:
        """The one key that starts with `prefix` (at least 4 hexadecimal digits).

        Raises:
            ConfigError: it is no beginning of a key.
            StoreError: no key, or more than one, starts so.
        """
        if not _HEX.fullmatch(prefix):
            raise ConfigError(
                f"profile: {prefix[:80]!r} is not a key; give at least 4 of its hexadecimal digits"
            )
        matches = [key for key in self.keys() if key.startswith(prefix)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise StoreError(
                f"profile: {len(matches)} keys in {self.name} start with {prefix}; give more digits"
            )
        raise StoreError(
            f"profile: no key in {self.name} starts with {prefix}; "
            "`ranksweep profiles list` shows what is there"
        )

    def verify(self, key: str | None = None) -> tuple[Verification, ...]:
        """Read one profile, or all of them, and check every byte.

        What does not verify is moved to quarantine, as with any other read. A key that the store
        does not have is reported as not ok.
        """
        checked = []
        for each in [key] if key is not None else self.keys():
            try:
                size = self._read(each, _verified_size)
            except _DamagedError as damage:
                self._quarantine(each, damage)
                checked.append(Verification(each, False, f"{damage}; moved to quarantine"))
                continue
            if size is None:
                listed = key is None  # it had a manifest a moment ago
                why = "its manifest pointed to nothing and was removed"
                checked.append(Verification(each, False, why if listed else "not in the store"))
            else:
                checked.append(Verification(each, True, f"{size} bytes"))
        return tuple(checked)

    # Writing ----------------------------------------------------------------------------------

    def put(self, key: str, profile: bytes, manifest: Mapping[str, Any]) -> bool:
        """Publish a profile's file under a key: True, or False when another was published first.

        Both outcomes are success: the key then has a profile. `manifest` is what readers may want
        to know without reading the file; the store adds key, file name, SHA-256, size in bytes and
        time of publication.
        """
        digest = hashlib.sha256(profile).hexdigest()
        target = keys.profile_object(key, digest)
        document = {
            **manifest,
            "manifest_version": _MANIFEST_VERSION,
            "key": key,
            "file": keys.profile_file_name(digest),
            "sha256": digest,
            "size": len(profile),
            "published": datetime.now(UTC).isoformat(timespec="seconds"),
            # So that no two launches write the same bytes, and each knows whether it was first.
            "publication": secrets.token_hex(8),
        }
        encoded = json.dumps(document, indent=2, sort_keys=True).encode()
        # Written over, not created: the name is that of the content, and a copy that a broken
        # disk left under it must not survive.
        self.objects.put(target, profile)
        return self.objects.create(keys.manifest_object(key), encoded)

    def remove(self, key: str) -> bool:
        """Remove all objects of a key, its manifest first; False when there are none."""
        removed = self.objects.delete(keys.manifest_object(key))
        for path in self.objects.list(keys.profile_prefix(key)):
            removed = self.objects.delete(path) or removed
        return removed

    # Inside -----------------------------------------------------------------------------------

    def _read(self, key: str, opened: Callable[[str, Callable[[], bytes]], _Read]) -> _Read | None:
        """What `opened` makes of the SHA-256 of a key's file and its download.

        None when absent; raises _DamagedError where it is no verified profile.
        """
        found = self._read_manifest(key)
        if found is None:
            return None
        manifest, encoded = found
        try:
            return opened(manifest["sha256"], lambda: self._download(key, *found))
        except _DanglingError:
            return None
        except ProfileError as error:
            raise _DamagedError(str(error), encoded, manifest["file"]) from error

    def _download(self, key: str, manifest: Mapping[str, Any], encoded: bytes) -> bytes:
        """The verified bytes that a manifest points to.

        A manifest that points to nothing is removed, with a warning; raises _DanglingError.
        """
        file = manifest["file"]
        data = self.objects.get(keys.profile_object(key, manifest["sha256"]))
        if data is None:
            _log.warning(
                "profile %s in %s: its manifest points to %s, which is not there; "
                "the manifest is removed and the profile counts as absent",
                key,
                self.name,
                file,
            )
            if self.objects.get(keys.manifest_object(key)) == encoded:
                self.objects.delete(keys.manifest_object(key))
            raise _DanglingError
        digest = hashlib.sha256(data).hexdigest()
        if digest != manifest["sha256"]:
            size = f"{len(data)} of {manifest.get('size', '?')} bytes"
            raise _DamagedError(f"{file} ({size}) has the SHA-256 {digest}", encoded, file)
        return data

    def _read_manifest(self, key: str) -> tuple[dict[str, Any], bytes] | None:
        """What a manifest says, and its bytes; None when absent; _DamagedError otherwise."""
        encoded = self.objects.get(keys.manifest_object(key))
        if encoded is None:
            return None
        try:
            manifest = json.loads(encoded)
        except ValueError as error:
            raise _DamagedError("manifest.json is not JSON", encoded) from error
        if not isinstance(manifest, dict) or not isinstance(manifest.get("file"), str):
            raise _DamagedError("manifest.json names no file", encoded)
        digest = keys.sha256_of_file_name(manifest["file"])
        if digest is None or manifest.get("sha256") != digest:
            raise _DamagedError("manifest.json names no profile's file", encoded)
        if manifest.get("key") != key:
            why = f"manifest.json is of the key {str(manifest.get('key'))[:80]}"
            raise _DamagedError(why, encoded, manifest["file"])
        return manifest, encoded

    def _quarantine(self, key: str, damage: _DamagedError) -> None:
        """Unpublish a key and move its objects away, so that it is computed and published anew."""
        manifest = keys.manifest_object(key)
        if self.objects.get(manifest) != damage.manifest:
            # Another reader has done this already, and the key may be published anew.
            return
        occasion = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        target = keys.quarantine_prefix(key, occasion)
        _log.warning(
            "profile %s in %s is damaged: %s; it is moved to %s and must be computed again",
            key,
            self.name,
            damage,
            target,
        )
        # The manifest first: without it nobody finds the rest. The file is copied and stays:
        # a publication writes over it, and another launch may publish at this moment.
        self.objects.move(manifest, f"{target}/manifest.json")
        moved = self.objects.get(f"{target}/manifest.json")
        if moved is not None and moved != damage.manifest:
            # The key was published anew since the look above: put back what is no damage.
            self.objects.create(manifest, moved)
            self.objects.delete(f"{target}/manifest.json")
            return
        if damage.file is not None:
            data = self.objects.get(f"{keys.profile_prefix(key)}/{damage.file}")
            if data is not None:
                self.objects.put(f"{target}/{damage.file}", data)


def load_profile(ref: str, store: ProfileStore) -> Profile:
    """The profile that `ref` names: a safetensors file, or a key of the store or its first digits.

    Raises:
        ProfileError: the file is wrong, or `ref` is neither a file nor a key.
        StoreError: no usable profile has that key.
    """
    path = Path(ref)
    if path.is_file():
        return Profile.read(path)
    if not _HEX.fullmatch(ref):
        raise ProfileError(
            f"profile: {ref} is neither a file nor a key; give a profile's safetensors file, or "
            "the first digits of a key that `ranksweep profiles list` shows"
        )
    key = store.resolve(ref)
    profile = store.get(key)
    if profile is None:
        raise StoreError(f"profile: {key} cannot be used any more; run `ranksweep profile` again")
    return profile
