"""Optuna's storage that waits for its database: one that is away for a while must not end a sweep.

A server that is started again, a file that another process has locked, a disk that is full until
somebody makes room: each call is one transaction, and is done again until it succeeds.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential

from search.redaction import redacted_text
from search.study.private_optuna import STORAGE_CALLS
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
        tries = Retrying(
            retry=retry_if_exception(lambda error: _reason(error) is not None),
            wait=wait_exponential(0.05, LONGEST_PAUSE_S),
            before_sleep=self._wait_or_give_up,
            reraise=True,
        )
        try:
            result = tries(work)
        except UpdateFinishedTrialError:
            if tries.statistics["attempt_number"] == 1:
                raise
            result = True  # it was told before: only the database's answer was lost
        if tries.statistics["attempt_number"] > 1:
            logger.warning("the study's database answers again")
        return result

    def _wait_or_give_up(self, state: RetryCallState) -> None:
        assert state.outcome is not None
        reason, waited = _reason(state.outcome.exception()), state.seconds_since_start or 0.0
        if state.attempt_number == 1:
            logger.warning("the study's database does not answer (%s); waiting", reason)
        if waited >= self.patience or self.impatient():
            self._gave_up = (
                f"the study's database has not answered for {waited:.0f} s ({reason}); see to it "
                "and launch again with --resume"
            )
            raise JobError(self._gave_up)


def _reason(error: BaseException | None) -> str | None:
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


for _name in STORAGE_CALLS:
    setattr(PatientStorage, _name, patiently(getattr(RDBStorage, _name)))
