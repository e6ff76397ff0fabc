"""What users ask of a sweep that runs, as its driver hears it.

The driver looks into the study every couple of seconds at most. What it is asked to train it
judges at once, and begins when a place is free; what it is asked to stop it stops.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container

import optuna

from search.study.requests import (
    LISTENS_EVERY_S,
    Answer,
    Request,
    answer,
    answers_of,
    listen,
    listen_no_more,
    listeners_of,
    requests_of,
)
from search.study.study import INTERRUPTED, REQUEST, ended_as
from search.study.trial import OpenTrial
from search.study.warm_clone import NoWarmWeights, Source, WarmWeights

logger = logging.getLogger(__name__)

#: How often the study is asked for requests.
LOOK_S = 2.0
BY_USER = "stopped by `ranksweep trials stop`"


class Steering:
    """The requests in a study, for one driver of it.

    Args:
        study: the study.
        folder: that of the sweep, for whoever wants to know who listens.
        driver: the driver's name where others have the same study; else None.
        warm: has the weights that clones start from.
        say: is told in a line what a user may want to know.
        more: is called when a trial begins that is none of `search.trials`.
        clock: gives seconds.
    """

    def __init__(
        self,
        study: optuna.Study,
        folder: str,
        *,
        driver: str | None = None,
        warm: WarmWeights | None = None,
        say: Callable[[str], object] = logger.info,
        more: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._study, self._folder, self._driver = study, folder, driver
        self.warm = warm or NoWarmWeights()
        self._say, self._more, self._clock = say, more, clock
        self._looked = self._listened = -float("inf")
        self._requests: list[Request] = []
        self._answers: dict[str, Answer] = {}
        self._judged: set[str] = set()
        self._others: set[str] = set()

    def look(self) -> bool:
        """Read what the study says now, if it is time to; whether anything is new."""
        now = self._clock()
        if now >= self._listened + LISTENS_EVERY_S:
            self._listened = now
            listen(self._study, self._folder)
        if now < self._looked + LOOK_S:
            return False
        self._looked = now
        attributes = self._study.user_attrs
        self._requests, self._answers = requests_of(attributes), answers_of(attributes)
        fresh = (each for each in listeners_of(attributes) if each.is_fresh())
        self._others = {f"{each.host}:{each.folder}" for each in fresh}
        return any(request.id not in self._answers for request in self._requests)

    def close(self) -> None:
        """Say that nobody listens here any more, and drop what no trial starts from again."""
        self.warm.close(over_requests(self._study))
        listen_no_more(self._study, self._folder)

    def to_stop(self) -> list[Request]:
        """The requests to stop a trial that have no answer."""
        return [
            each for each in self._requests if each.kind == "stop" and each.id not in self._answers
        ]

    def to_train(self, begun: Container[str]) -> list[Request]:
        """What is to be trained, the oldest request first: neither refused nor `begun`."""
        return [
            each
            for each in self._requests
            if each.kind != "stop" and each.id not in begun and not self._is_refused(each)
        ]

    def is_judged(self, request: Request) -> bool:
        """Whether this driver has accepted the request before."""
        return request.id in self._judged

    def is_left_to_another(self, request: Request, source: Source) -> bool:
        """Whether the driver that has trained the source of a warm clone lives, and is another."""
        is_own = self._driver is None or source.driver in (None, self._driver)
        return request.warm and not is_own and source.driver in self._others

    def accept(self, request: Request, reason: str = "") -> None:
        """Tell who asks that it is done, or will be."""
        self._judged.add(request.id)
        if request.id not in self._answers:
            self._answer(request, Answer(accepted=True, reason=reason))
            self._say(f"asked by {request.by}: {request.in_words}{reason and f' ({reason})'}")

    def refuse(self, request: Request, reason: str) -> None:
        """Tell who asks why it is not done."""
        self._answer(request, Answer(accepted=False, reason=reason))
        self._say(f"asked by {request.by}: {request.in_words}; refused: {reason}")

    def refuse_where_over(self, request: Request) -> None:
        """Refuse to stop a trial that this driver does not have, unless another has it."""
        trials = self._study.get_trials(deepcopy=False)
        number = -1 if request.number is None else request.number
        if not 0 <= number < len(trials):
            self.refuse(request, f"there is no trial {number}")
        elif (state := ended_as(trials[number])) is not None:
            self.refuse(request, f"trial {number} has ended ({state})")

    def has_begun(self, begun: OpenTrial, request: str) -> None:
        """A trial was begun for the request of this id."""
        self._more()
        asked = next((each for each in self._requests if each.id == request), None)
        if asked is not None:
            self._say(f"trial {begun.number}: {asked.in_words}, as {asked.by} has asked")

    def _is_refused(self, request: Request) -> bool:
        said = self._answers.get(request.id)
        return said is not None and not said.accepted

    def _answer(self, request: Request, said: Answer) -> None:
        self._answers[request.id] = said
        answer(self._study, request, said)


def over_requests(study: optuna.Study) -> set[str]:
    """Ids of the requests whose trial has ended, and is not trained again."""
    return {
        trial.user_attrs[REQUEST]
        for trial in study.get_trials(deepcopy=False)
        if REQUEST in trial.user_attrs
        and trial.state.is_finished()
        and INTERRUPTED not in trial.user_attrs
    }
