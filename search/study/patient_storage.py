"""Optuna's storage that waits for its database: one that is away for a while must not end a sweep.

A server that is started again, a file that another process has locked, a disk that is full until
somebody makes room: each call is one transaction, and is done again until it succeeds.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from search.redaction import redacted_text
from spaces.errors import JobError

logger = logging.getLogger(__name__)

PATIENCE_S = 600.0
LONGEST_PAUSE_S = 5.0

_AWAY = (OperationalError, InterfaceError, DisconnectionError, PoolTimeoutError)


class PatientStorage(RDBStorage):  # type: ignore[misc]
    """An RDBStorage whose every call is tried for `PATIENCE_S` seconds, and said so once a time.

    Raises JobError, one line, when the database has not answered by then, or as soon as
    `impatient` says that nobody wants to wait; every later call then fails at once.
    """

    patience: float = PATIENCE_S
    impatient: Callable[[], bool] = staticmethod(lambda: False)
    _gave_up: str | None = None

    def _patiently(self, work: Callable[[], Any]) -> Any:
        if self._gave_up is not None:
            raise JobError(self._gave_up)
        began, pause, failed = time.monotonic(), 0.05, False
        while True:
            try:
                result = work()
            except UpdateFinishedTrialError:
                if not failed:
                    raise
                result = True  # it was told before: only the database's answer was lost
            except (StorageInternalError, *_AWAY) as error:
                reason = _reason(error)
                if reason is None:
                    raise
                if not failed:
                    failed = True
                    logger.warning("the study's database does not answer (%s); waiting", reason)
                self._check_patience(time.monotonic() - began, reason)
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
                continue
            if failed:
                logger.warning("the study's database answers again")
            return result

    def _check_patience(self, waited: float, reason: str) -> None:
        if waited < self.patience and not self.impatient():
            return
        self._gave_up = (
            f"the study's database has not answered for {waited:.0f} s ({reason}); see to it and "
            "launch again with --resume"
        )
        raise JobError(self._gave_up)


def _reason(error: Exception) -> str | None:
    """Why the database did not answer, on one line; None where it did, and refused."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if not isinstance(cause, _AWAY):
        return None
    text = str(cause.orig if isinstance(cause, DBAPIError) else cause)
    return redacted_text(" ".join(text.split()))[:200]


def patiently(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of an RDBStorage as one that waits for the database."""

    @functools.wraps(method)
    def patient(self: PatientStorage, *arguments: Any, **named: Any) -> Any:
        return self._patiently(functools.partial(method, self, *arguments, **named))

    return patient


#: What Optuna's cache asks of the storage behind it that reads or writes the database.
CALLS = (
    "create_new_study",
    "delete_study",
    "get_all_studies",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "set_study_user_attr",
    "set_study_system_attr",
    "_create_new_trial",
    "_get_trials",
    "_get_best_trial_id",
    "get_trial",
    "get_trial_id_from_study_id_trial_number",
    "_set_trial_param",
    "set_trial_state_values",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "record_heartbeat",
    "_get_stale_trial_ids",
)
for _name in CALLS:
    setattr(PatientStorage, _name, patiently(getattr(RDBStorage, _name)))
