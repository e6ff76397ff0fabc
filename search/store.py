"""The store of profiles: content-verified, published by create-if-absent, on any object storage.

A profile's file is written first, under a name that holds its SHA-256; then its manifest is created
if absent, and that is the moment of publication. Every read verifies the SHA-256. What does not
verify is moved under `quarantine/` and counts as absent, so that it is computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

import rfc8785
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import LocalStore, from_url

from search import paths
from spaces.errors import ConfigError, ProfileError, StoreError, nearest
from spaces.profile import SCHEMA_VERSION, Profile
from spaces.target import TargetModule

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

ALGORITHM_VERSION = 1
"""Raise it whenever the same settings on the same data would give another profile."""

SCHEMES = ("file", "s3", "gs", "az")

_log = logging.getLogger(__name__)
_HEX = re.compile(r"[0-9a-f]{4,64}")
_MANIFEST_VERSION = 1


def profile_key(
    *,
    base_fingerprint: str,
    train_fingerprint: str,
    targets: Sequence[TargetModule],
    settings: Mapping[str, Any],
    seed: int,
    dtype: str,
) -> str:
    """Key of the profile that these inputs give: 64 hexadecimal digits.

    SHA-256 over the canonical JSON (RFC 8785) of schema and algorithm version, the fingerprints of
    the base and of the training rows, the resolved target modules (name and shape, in the base's
    order), the resolved profile settings, the seed and the dtype. The order of `settings` does not
    matter; `target_modules` and `seed` in it are left out, for their resolved forms stand beside.

    Raises:
        ValueError: a setting that JSON cannot hold (a NaN, an object).
    """
    resolved = {k: v for k, v in settings.items() if k not in ("target_modules", "seed")}
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "algorithm_version": ALGORITHM_VERSION,
        "base": base_fingerprint,
        "train": train_fingerprint,
        "targets": [{"name": t.name, "shape": list(t.shape)} for t in targets],
        "settings": resolved,
        "seed": seed,
        "dtype": dtype,
    }
    return hashlib.sha256(rfc8785.dumps(document)).hexdigest()


@dataclass(frozen=True)
class Verification:
    """What reading one profile back has shown. `detail` is one line, also where all is well."""

    key: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class ProbeStep:
    """One thing a store must be able to do, and whether it can; `detail` says why not."""

    name: str
    ok: bool
    detail: str = ""


class _DamagedError(Exception):
    """What is published under a key cannot be used; the text says why.

    `manifest` is the manifest as it was read, `file` the name of the profile's file where known.
    """

    def __init__(self, why: str, manifest: bytes, file: str | None = None) -> None:
        super().__init__(why)
        self.manifest = manifest
        self.file = file


class ProfileStore:
    """Profiles on object storage, one per key.

    `uri` is `file://dir` (relative to the current directory, or `file:///dir`), a bare path, or
    `s3://`, `gs://`, `az://` with bucket and prefix; credentials come from the environment as the
    provider defines it. A local store's folders are created 0700 and its files under umask 077, at
    the first write; a folder that is there already keeps its mode.

    Raises:
        ConfigError: a URI that names no store.
        StoreError: the store cannot be reached, read or written.
    """

    def __init__(self, uri: str) -> None:
        self._folder = _local_folder(uri)
        self.uri = uri if self._folder is None else f"file://{self._folder}"
        """The store's URI, absolute for a local store. It may hold credentials: show `name`."""
        self.name = paths.redacted(self.uri)
        """The store's URI as it may be shown."""
        self._opened: ObjectStore | None = None
        if self._folder is None:
            self._opened = self._open_remote()

    # Reading ----------------------------------------------------------------------------------

    def get(self, key: str) -> Profile | None:
        """The verified profile of a key; None when the store has none that can be used.

        A profile that does not verify is moved to quarantine with a warning. A manifest that
        points to nothing is removed, so that the profile can be published again.
        """
        try:
            found = self._read(key)
        except _DamagedError as damage:
            self._quarantine(key, damage)
            return None
        return None if found is None else found[1]

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
        names = (paths.key_of_object(path) for path in self._list(paths.PROFILES))
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
                found = self._read(each)
            except _DamagedError as damage:
                self._quarantine(each, damage)
                checked.append(Verification(each, False, f"{damage}; moved to quarantine"))
                continue
            if found is None:
                checked.append(Verification(each, False, "not in the store"))
            else:
                checked.append(Verification(each, True, f"{len(found[0])} bytes"))
        return tuple(checked)

    def export_file(self, key: str, path: Path) -> Path:
        """Write the verified file of a profile to `path` (into it, when that is a folder).

        Returns the file written. Raises StoreError when the store has no such profile.
        """
        try:
            found = self._read(key)
        except _DamagedError as damage:
            self._quarantine(key, damage)
            found = None
        if found is None:
            raise StoreError(f"profile: {key} is not in {self.name}; run `ranksweep profile` first")
        data = found[0]
        if path.is_dir():
            path = path / paths.profile_file_name(hashlib.sha256(data).hexdigest())
        try:
            path.write_bytes(data)
        except OSError as error:
            raise StoreError(
                f"profile: cannot write {path}: {error.strerror}; name another file"
            ) from error
        return path

    # Writing ----------------------------------------------------------------------------------

    def put(self, key: str, profile: bytes, manifest: Mapping[str, Any]) -> bool:
        """Publish a profile's file under a key: True, or False when another was published first.

        Both outcomes are success: the key then has a profile. `manifest` is what readers may want
        to know without reading the file; the store adds key, file name, SHA-256, size in bytes and
        time of publication.
        """
        digest = hashlib.sha256(profile).hexdigest()
        target = paths.profile_object(key, digest)
        document = {
            **manifest,
            "manifest_version": _MANIFEST_VERSION,
            "key": key,
            "file": paths.profile_file_name(digest),
            "sha256": digest,
            "size": len(profile),
            "published": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        encoded = json.dumps(document, indent=2, sort_keys=True).encode()
        # Written over, not created: the name is that of the content, and a copy that a broken
        # disk left under it must not survive.
        self._put(target, profile)
        return self._create(paths.manifest_object(key), encoded)

    def remove(self, key: str) -> bool:
        """Remove all objects of a key, its manifest first; False when there are none."""
        removed = self._delete(paths.manifest_object(key))
        for path in self._list(paths.profile_prefix(key)):
            removed = self._delete(path) or removed
        return removed

    def probe(self) -> tuple[ProbeStep, ...]:
        """Try on a throwaway object what the store must be able to do; it is removed again.

        Stops at the first step that fails, for the later ones rest on it.
        """
        path = paths.probe_object(secrets.token_hex(16))
        content = secrets.token_bytes(16)
        steps: list[ProbeStep] = []
        try:
            created = self._create(path, content)
            steps.append(ProbeStep("write", created, "" if created else "the object was there"))
            again = self._create(path, b"another")
            steps.append(
                ProbeStep(
                    "create if absent",
                    not again,
                    "an object that is there was created again" if again else "",
                )
            )
            read = self._fetch(path)
            steps.append(ProbeStep("read", read == content, "" if read == content else "differs"))
            listed = path in self._list(paths.PROBES)
            steps.append(ProbeStep("list", listed, "" if listed else "the object is not listed"))
            removed = self._delete(path) and self._fetch(path) is None
            steps.append(ProbeStep("remove", removed, "" if removed else "the object is there"))
        except StoreError as error:
            done = {step.name for step in steps}
            order = ("write", "create if absent", "read", "list", "remove")
            failed = next(name for name in order if name not in done)
            steps.append(ProbeStep(failed, False, str(error)))
            if failed != "write":
                try:
                    self._delete(path)
                except StoreError:
                    steps.append(ProbeStep("remove", False, f"{path} is left behind"))
        return tuple(steps)

    # Inside -----------------------------------------------------------------------------------

    def _read(self, key: str) -> tuple[bytes, Profile] | None:
        """The verified bytes and profile of a key; None when absent; _DamagedError otherwise."""
        found = self._read_manifest(key)
        if found is None:
            return None
        manifest, encoded = found
        file = manifest["file"]
        data = self._fetch(paths.profile_object(key, manifest["sha256"]))
        if data is None:
            _log.warning(
                "profile %s in %s: its manifest points to %s, which is not there; "
                "the manifest is removed and the profile counts as absent",
                key,
                self.name,
                file,
            )
            if self._fetch(paths.manifest_object(key)) == encoded:
                self._delete(paths.manifest_object(key))
            return None
        digest = hashlib.sha256(data).hexdigest()
        if digest != manifest["sha256"]:
            size = f"{len(data)} of {manifest.get('size', '?')} bytes"
            raise _DamagedError(f"{file} ({size}) has the SHA-256 {digest}", encoded, file)
        try:
            return data, Profile.from_bytes(data, file)
        except ProfileError as error:
            raise _DamagedError(str(error), encoded, file) from error

    def _read_manifest(self, key: str) -> tuple[dict[str, Any], bytes] | None:
        """What a manifest says, and its bytes; None when absent; _DamagedError otherwise."""
        encoded = self._fetch(paths.manifest_object(key))
        if encoded is None:
            return None
        try:
            manifest = json.loads(encoded)
        except ValueError as error:
            raise _DamagedError("manifest.json is not JSON", encoded) from error
        if not isinstance(manifest, dict) or not isinstance(manifest.get("file"), str):
            raise _DamagedError("manifest.json names no file", encoded)
        digest = paths.sha256_of_file_name(manifest["file"])
        if digest is None or manifest.get("sha256") != digest:
            raise _DamagedError("manifest.json names no profile's file", encoded)
        return manifest, encoded

    def _quarantine(self, key: str, damage: _DamagedError) -> None:
        """Unpublish a key and move its objects away, so that it is computed and published anew."""
        manifest = paths.manifest_object(key)
        if self._fetch(manifest) != damage.manifest:
            # Another reader has done this already, and the key may be published anew.
            return
        occasion = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        target = paths.quarantine_prefix(key, occasion)
        _log.warning(
            "profile %s in %s is damaged: %s; it is moved to %s and must be computed again",
            key,
            self.name,
            damage,
            target,
        )
        # The manifest first: without it nobody finds the rest.
        self._move(manifest, f"{target}/manifest.json")
        if damage.file is not None:
            self._move(f"{paths.profile_prefix(key)}/{damage.file}", f"{target}/{damage.file}")

    def _fetch(self, path: str) -> bytes | None:
        store = self._open(to_write=False)
        if store is None:
            return None
        with self._failing_as("read", path):
            try:
                return bytes(store.get(path).bytes())
            except FileNotFoundError:
                return None

    def _put(self, path: str, content: bytes) -> None:
        store = self._open(to_write=True)
        with self._failing_as("write", path), paths.private_files():
            store.put(path, content)

    def _create(self, path: str, content: bytes) -> bool:
        """Create an object if it is absent: False when it is there already."""
        store = self._open(to_write=True)
        with self._failing_as("write", path), paths.private_files():
            try:
                store.put(path, content, mode="create")
            except (AlreadyExistsError, PreconditionError):
                return False
        return True

    def _delete(self, path: str) -> bool:
        """Remove one object: False when the store can tell that it was not there."""
        store = self._open(to_write=False)
        if store is None or self._fetch_size(path) is None:
            return False
        with self._failing_as("remove", path):
            try:
                store.delete(path)
            except FileNotFoundError:
                return False
        return True

    def _fetch_size(self, path: str) -> int | None:
        store = self._open(to_write=False)
        if store is None:
            return None
        with self._failing_as("read", path):
            try:
                return int(store.head(path)["size"])
            except FileNotFoundError:
                return None

    def _move(self, source: str, target: str) -> None:
        store = self._open(to_write=True)
        with self._failing_as("move", source), paths.private_files():
            try:
                store.rename(source, target)
            except FileNotFoundError:
                # Another reader has moved it away first.
                return

    def _list(self, prefix: str) -> tuple[str, ...]:
        store = self._open(to_write=False)
        if store is None:
            return ()
        with self._failing_as("list", prefix):
            try:
                return tuple(meta["path"] for chunk in store.list(prefix) for meta in chunk)
            except FileNotFoundError:
                return ()

    def _open(self, *, to_write: bool) -> Any:
        """The object store; None for a local one that is not there and is not to be written."""
        if self._opened is not None:
            return self._opened
        folder = cast(Path, self._folder)
        if not to_write and not folder.exists():
            return None
        with self._failing_as("open", ""):
            with paths.private_files():
                folder.mkdir(parents=True, exist_ok=True)
            # Folders that a removal leaves empty go with it.
            self._opened = LocalStore(prefix=folder, automatic_cleanup=True)
        return self._opened

    def _open_remote(self) -> ObjectStore:
        client: ClientConfig = {"timeout": "120s", "connect_timeout": "5s"}
        if _plain_http_endpoint():
            client["allow_http"] = True
        retry: RetryConfig = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}
        try:
            return from_url(self.uri, client_options=client, retry_config=retry)
        except (BaseError, ValueError) as error:
            raise ConfigError(
                f"store: {self.name} cannot be opened: {self._reason(error)}; "
                "use file://, s3://, gs:// or az:// with a bucket"
            ) from error

    @contextmanager
    def _failing_as(self, verb: str, path: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            remedy = (
                "check the folder's permissions and the free space"
                if self._folder is not None
                else "check the address, the credentials in the environment and the network"
            )
            place = f"{self.name}/{path}".rstrip("/")
            raise StoreError(
                f"store: cannot {verb} {place}: {self._reason(error)}; {remedy}"
            ) from error

    def _reason(self, error: Exception) -> str:
        """The first line of an error, without anything secret of the URI."""
        lines = str(error).strip().splitlines()
        text = paths.redacted_text(lines[0].rstrip(" .;:{")) if lines else type(error).__name__
        parts = urlsplit(self.uri)
        secret = [parts.query, parts.username, parts.password]
        for value in secret:
            if value:
                text = text.replace(value, "***")
        return text


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


def _local_folder(uri: str) -> Path | None:
    """The absolute folder of a local store; None for a remote one; ConfigError for neither."""
    if not uri.strip():
        raise ConfigError("store: no URI is given; use file://, s3://, gs:// or az://")
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Path(uri).expanduser().absolute()
    if scheme == "file":
        if not rest.strip("/"):
            raise ConfigError(f"store: {uri} names no folder; use file://DIR or file:///DIR")
        return Path(unquote(rest)).expanduser().absolute()
    if scheme not in SCHEMES:
        raise ConfigError(
            f"store: no storage has the scheme '{scheme}://'; {nearest(scheme, SCHEMES)}"
        )
    return None


def _plain_http_endpoint() -> bool:
    """Whether the user has named an S3 endpoint without TLS, as one beside the cluster may be."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return any(os.environ.get(name, "").startswith("http://") for name in names)
