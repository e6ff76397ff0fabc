"""Every local path that ranksweep writes or reads, and who may read what it writes."""

from __future__ import annotations

import os
import re
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from spaces.errors import ConfigError

STORE_SCHEMES = ("file", "s3", "gs", "az")
"""What the URI of a store may start with."""

LONGEST_NAME = 100
"""Characters of a sweep's name."""

BASE_PACKAGE = "ranksweep_base"
"""The package that a base which travels with a submitted sweep is found in."""

_SWEEP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class SweepPaths:
    """Where one working directory keeps its store, its tracking database and its sweeps.

    `root` is relative to the current directory unless absolute; `name` is the sweep's name, and
    None where no sweep is meant (the store and the tracking database are shared by all sweeps).

    Raises:
        ConfigError: the name could leave its folder or is not a portable file name.
    """

    root: Path = Path(".ranksweep")
    name: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None:
            check_sweep_name(self.name)

    @property
    def store_uri(self) -> str:
        """URI of the default store; relative to the current directory when the root is."""
        return store_uri(self.root / "store")

    @property
    def tracking_uri(self) -> str:
        """URI of the default tracking database."""
        return sqlite_uri(self.root / "mlflow.db")

    @property
    def sweep(self) -> Path:
        """Folder of the named sweep."""
        if self.name is None:
            raise ValueError("these paths name no sweep")
        return self.root / "sweeps" / self.name

    @property
    def sweep_file(self) -> Path:
        """The resolved sweep, as it was launched."""
        return self.sweep / "sweep.yaml"

    @property
    def begun_file(self) -> Path:
        """What the sweep was begun with: fingerprints of its base and rows, its mark in MLflow."""
        return self.sweep / "begun.json"

    @property
    def study_db(self) -> Path:
        """SQLite file of the sweep's Optuna study."""
        return self.sweep / "study.db"

    @property
    def study_uri(self) -> str:
        """URI of the sweep's Optuna study."""
        return sqlite_uri(self.study_db)

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
        return self.sweep / f"unpublished-{key}.safetensors"

    @property
    def journal(self) -> Path:
        """SQLite file of what befell the sweep's trials, and of what MLflow was not told yet."""
        return self.sweep / "journal.db"

    @property
    def weights(self) -> Path:
        """Folder of the weights of trials that MLflow has not been given yet."""
        return self.sweep / "weights"

    @property
    def warm(self) -> Path:
        """Folder of the weights that trials start from which a user has asked for."""
        return self.sweep / "warm"

    @property
    def confirmed_weights(self) -> Path:
        """Folder of the weights of confirmations that MLflow has not been given yet."""
        return self.sweep / "confirmed"

    @property
    def base_scores(self) -> Path:
        """lm-eval's scores of the untouched base, which a launch that goes on need not measure."""
        return self.sweep / "base_scores.json"

    @property
    def report(self) -> Path:
        """Folder of the report that its last launch has left."""
        return self.sweep / "report"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files, one folder a run in it."""
        return self.sweep / "tensorboard"

    @property
    def log(self) -> Path:
        """The sweep's log file."""
        return self.sweep / "launch.log"

    def absolute(self) -> SweepPaths:
        """The same paths from the file system's root, for a process that runs elsewhere."""
        return SweepPaths(self.root.absolute(), self.name)

    def make_sweep(self) -> None:
        """Create the sweep's folders, readable by their owner alone."""
        with private_files():
            self.tune.mkdir(parents=True, exist_ok=True)


def nearest_there(path: Path) -> Path:
    """The absolute path itself, or the nearest above it that is there and can be seen."""
    path = path.absolute()
    while not os.path.exists(path):  # not of Path, which raises below what may not be entered
        path = path.parent
    return path


def check_sweep_name(name: str) -> str:
    """The name itself, when it can be a file name everywhere.

    Raises:
        ConfigError: it is empty, too long, hidden, or holds anything but letters, digits, `.`,
            `_` and `-`.
    """
    if not _SWEEP_NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise ConfigError(
            f"name: {name[:120]!r} cannot name a sweep; use up to {LONGEST_NAME} letters, digits, "
            "'.', '_' and '-', the first a letter or a digit"
        )
    return name


def sqlite_uri(file: Path) -> str:
    """The URI of a SQLite database, as SQLAlchemy, MLflow and Optuna read it alike.

    SQLAlchemy takes `?` for the start of a query and `%41` for an A, and Optuna fills in what
    stands in braces; all else stands as it is.
    """
    quoted = _quoted(file)
    # MLflow makes the folders of what follows `sqlite:///` unread, and so one of another name.
    scheme = "sqlite" if quoted == str(file) else "sqlite+pysqlite"
    return f"{scheme}:///{quoted}"


def store_uri(folder: Path) -> str:
    """The URI of a store in a folder."""
    return f"file://{_quoted(folder)}"


def _quoted(path: Path) -> str:
    return re.sub(r"[%?#{}]", lambda match: f"%{ord(match[0]):02X}", str(path))


def artifacts_beside(tracking_db: Path) -> Path:
    """Folder of the artifacts that belong to a SQLite tracking database."""
    return tracking_db.parent / "mlartifacts"


class _PrivateUmask:
    """A umask of 077 that overlapping threads share; the last to leave puts the old one back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._before = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._depth == 0:
                self._before = os.umask(0o077)
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                os.umask(self._before)


_private_umask = _PrivateUmask()


def private_files() -> AbstractContextManager[None]:
    """While open, what this process creates is readable by its owner alone (umask 077).

    The mask belongs to the whole process, not to a thread.
    """
    return _private_umask
