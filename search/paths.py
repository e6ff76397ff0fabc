"""Every local path and every object key that ranksweep writes or reads, in one place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from spaces.errors import ConfigError, StoreError
from trainables.private import private_files

_SWEEP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PROFILE_KEY = re.compile(r"[0-9a-f]{64}")
_PROFILE_FILE = re.compile(r"profile-([0-9a-f]{64})\.safetensors")

PROFILES = "profiles"
QUARANTINE = "quarantine"


@dataclass(frozen=True)
class SweepPaths:
    """Where one working directory keeps its store, its tracking database and its sweeps.

    `root` is relative to the current directory unless absolute; `name` is the sweep's name, and
    None where no sweep is meant (the store and the tracking database are shared by all sweeps).

    Raises:
        ConfigError: the name could leave its folder or is not a portable file name.
    """

    root: Path | str = ".ranksweep"
    name: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        if self.name is not None:
            check_sweep_name(self.name)

    @property
    def base(self) -> Path:
        """The root as a path."""
        return Path(self.root)

    @property
    def store(self) -> Path:
        """Folder of the default store."""
        return self.base / "store"

    @property
    def store_uri(self) -> str:
        """URI of the default store; relative to the current directory when the root is."""
        return f"file://{self.store}"

    @property
    def tracking_db(self) -> Path:
        """SQLite file of the default tracking database."""
        return self.base / "mlflow.db"

    @property
    def tracking_uri(self) -> str:
        """URI of the default tracking database."""
        return f"sqlite:///{self.tracking_db}"

    @property
    def artifacts(self) -> Path:
        """Folder of the artifacts of runs tracked in the default database."""
        return artifacts_beside(self.tracking_db)

    @property
    def sweep(self) -> Path:
        """Folder of the named sweep."""
        if self.name is None:
            raise ValueError("these paths name no sweep")
        return self.base / "sweeps" / self.name

    @property
    def sweep_file(self) -> Path:
        """The resolved sweep, as it was launched."""
        return self.sweep / "sweep.yaml"

    @property
    def study_db(self) -> Path:
        """SQLite file of the sweep's Optuna study."""
        return self.sweep / "study.db"

    @property
    def study_uri(self) -> str:
        """URI of the sweep's Optuna study."""
        return f"sqlite:///{self.study_db}"

    @property
    def tune(self) -> Path:
        """Folder that Ray Tune and Ray Train keep their own state in."""
        return self.sweep / "tune"

    @property
    def lock(self) -> Path:
        """File that the launch of the sweep holds a lock on, with its process id."""
        return self.sweep / "lock"

    def unpublished_profile(self, key: str) -> Path:
        """File of a profile that the store did not take when it was computed."""
        return self.sweep / f"unpublished-{check_profile_key(key)}.safetensors"

    @property
    def journal(self) -> Path:
        """SQLite file of what MLflow has not been told yet of the sweep's trials."""
        return self.sweep / "journal.db"

    @property
    def weights(self) -> Path:
        """Folder of the weights of trials that MLflow has not been given yet."""
        return self.sweep / "weights"

    def trial_weights(self, number: int) -> Path:
        """File of the weights of one trial, under the name that it has in MLflow."""
        return self.weights / f"{number:05d}" / "weights.safetensors"

    @property
    def log(self) -> Path:
        """The sweep's log file."""
        return self.sweep / "launch.log"

    def absolute(self) -> SweepPaths:
        """The same paths from the file system's root, for a process that runs elsewhere."""
        return SweepPaths(self.base.absolute(), self.name)

    def make_sweep(self) -> None:
        """Create the sweep's folders, readable by their owner alone."""
        with private_files():
            self.tune.mkdir(parents=True, exist_ok=True)


def check_sweep_name(name: str) -> str:
    """The name itself, when it can be a file name everywhere.

    Raises:
        ConfigError: it is empty, too long, hidden, or holds anything but letters, digits, `.`,
            `_` and `-`.
    """
    if not _SWEEP_NAME.fullmatch(name):
        raise ConfigError(
            f"name: {name[:120]!r} cannot name a sweep; use up to 100 letters, digits, '.', '_' "
            "and '-', the first a letter or a digit"
        )
    return name


def artifacts_beside(tracking_db: Path) -> Path:
    """Folder of the artifacts that belong to a SQLite tracking database."""
    return tracking_db.parent / "mlartifacts"


# Object keys of the store ---------------------------------------------------------------------


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
