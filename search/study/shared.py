"""Several drivers on one study: whose a trial is, whether its driver lives, who was first.

Each driver marks its trials and beats for them while they run. A trial that has not been beaten for
within the grace period has lost its driver; any other may settle it and train its choice again.

Optuna numbers trials one by one, whoever makes them, and each is made with all that it is to train.
A driver whose trial follows as many as the sweep has, or one that is the same training, gives it
back: of two drivers that ask at the same time, the one with the lower number keeps its trial.
"""

from __future__ import annotations

import hashlib
import json
import logging
import socket
import threading
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from search.config.database import reached
from search.study.private_optuna import beat, beat_seconds, trial_id, without_a_beat
from search.study.study import DRIVER
from spaces.errors import ConfigError, JobError

logger = logging.getLogger(__name__)

_SETTINGS = "ranksweep_settings"
GROUNDS = "ranksweep_grounds"
"""Attribute of a study: what base and rows its trials are of."""


def driver_of(folder: Path) -> str:
    """The name of the driver that runs a sweep in this folder of this machine, resumed or not."""
    return f"{socket.gethostname()}:{folder.absolute()}"


def own_seed(seed: int, driver: str) -> int:
    """A sampler's seed of this driver's own: two with the same seed would draw the same points."""
    return (seed + zlib.crc32(driver.encode())) % 2**32


def check_settings(
    study: optuna.Study, settings: Mapping[str, Any], grounds: Mapping[str, Any]
) -> None:
    """Write what the trials of a study have in common, or refuse a driver that would train others.

    `grounds` name the base and the rows, for those that come later.

    Raises:
        ConfigError: another driver has begun the study with other settings.
    """
    digest = refuse_other_settings(study.user_attrs, study.study_name, settings)
    study.set_user_attr(_SETTINGS, digest)
    study.set_user_attr(GROUNDS, dict(grounds))


def attributes_of(storage: str, name: str) -> dict[str, Any]:
    """What a study in this database says of itself; nothing where it is not there.

    Raises ConfigError where the database cannot be reached.
    """
    # a RuntimeError: the tables are of another version of Optuna
    with reached(storage, StorageInternalError, RuntimeError):
        try:
            return dict(optuna.load_study(study_name=name, storage=storage).user_attrs)
        except KeyError:
            return {}


def refuse_other_settings(
    attributes: Mapping[str, Any], name: str, settings: Mapping[str, Any]
) -> str:
    """Raise ConfigError where a study was begun with other settings; returns their digest."""
    text = json.dumps(settings, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if attributes.get(_SETTINGS, digest) != digest:
        raise ConfigError(
            f"search.study: its sweep {name!r} was begun with another base, task, "
            "space, search, train or deepspeed; use the same, or give this sweep another name"
        )
    return digest


def ended_last_trial(study: optuna.Study, driver: str) -> bool:
    """Whether the last trial to end was this driver's, so that what follows the search is too."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if DRIVER in trial.user_attrs]
    if any(not trial.state.is_finished() for trial in trials):
        return False
    last = max(trials, key=lambda trial: (trial.datetime_complete, trial.number), default=None)
    return last is None or last.user_attrs[DRIVER] == driver


class SharedStudy:
    """One driver's part in a study that `open_study` has opened with `beat_seconds`.

    Args:
        study: the study.
        driver: this driver's name; no other that lives has it.
        grace_seconds: as the study was opened with.
    """

    def __init__(self, study: optuna.Study, driver: str, grace_seconds: float) -> None:
        self.driver = driver
        self._study = study
        self._grace = grace_seconds
        self._interval = beat_seconds(study)
        self._mine: set[int] = set()
        self._unmarked_since: dict[int, float] = {}
        self._looked = -float("inf")
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="beat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop beating."""
        self._closed.set()
        self._thread.join()

    def beat_for(self, trial: optuna.trial.Trial) -> None:
        """Mark a trial that was just made as this driver's, and beat for it from now on."""
        self._mine.add(trial_id(trial))
        self._beat(trial_id(trial))
        trial.set_user_attr(DRIVER, self.driver)

    def beat_no_more_for(self, trial: optuna.trial.Trial) -> None:
        """Leave a trial that is about to end."""
        self._mine.discard(trial_id(trial))

    def left_behind(self, *, at_start: bool = False) -> set[int]:
        """Numbers of the trials left RUNNING by drivers that are dead.

        `at_start` counts among them what an earlier life of this driver has left. Asked more often
        than a beat, it looks no further and finds none.
        """
        now = time.monotonic()
        if not at_start and now < self._looked + self._interval:
            return set()
        self._looked = now
        stale = without_a_beat(self._study)
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        unmarked = [trial.number for trial in running if DRIVER not in trial.user_attrs]
        self._unmarked_since = {n: self._unmarked_since.get(n, now) for n in unmarked}
        return {
            trial.number
            for trial in running
            if trial_id(trial) not in self._mine
            and (
                trial_id(trial) in stale
                or (at_start and trial.user_attrs.get(DRIVER) == self.driver)
                or now > self._unmarked_since.get(trial.number, now) + self._grace
            )
        }

    def others_run(self) -> bool:
        """Whether another driver's trial runs, which may yet have to be trained again."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return any(trial_id(trial) not in self._mine for trial in running)

    def _beat_on(self) -> None:
        while not self._closed.wait(self._interval):
            for mine in tuple(self._mine):
                self._beat(mine)

    def _beat(self, of: int) -> None:
        try:
            beat(self._study, of)
        except (JobError, StorageInternalError, SQLAlchemyError) as error:
            logger.warning("no beat was written: %s", type(error).__name__)
