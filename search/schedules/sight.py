"""One look of a schedule: which models are there, and which of them are to be swept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from search.schedules.identity import Fingerprints, claim_key, key_of_unfit, sweep_name
from search.schedules.memory import Memory, Swept
from search.schedules.schedule import Schedule
from search.schedules.trigger import Look, Sighting, Trigger
from search.store.claims import ClaimRecord, Claims
from spaces.errors import BaseModelError, DataError, RanksweepError, StoreError, one_line
from trainables.bases.location import is_of_hub

OWN_BASE = "sweep"
"""The trigger of a schedule that names no other place: its sweep's own base."""


@dataclass(frozen=True)
class Due:
    """A model to be swept.

    `names` are those that the schedule remembers it by. `unfit` says why it cannot be swept at all;
    `may_pass` whether that may change by itself, as where the hub is away.
    """

    sighting: Sighting
    key: str
    sweep: str
    names: tuple[str, ...]
    unfit: str | None = None
    may_pass: bool = False


@dataclass(frozen=True)
class Seen:
    """A model that a look has seen, what becomes of it, and why."""

    sighting: Sighting
    why: str
    """In a few words, such as `is to be swept`."""
    due: Due | None = None
    sweep: str | None = None
    record: ClaimRecord | None = None
    """What its claim says, where there is one."""


@dataclass(frozen=True)
class Sight:
    """What one look has seen: the models by trigger, what is not whole yet, what went wrong."""

    seen: tuple[Seen, ...] = ()
    waiting: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()

    @property
    def due(self) -> list[Due]:
        """The models to be swept, each once, whatever names it has."""
        due: dict[str, Due] = {}
        for each in self.seen:
            if each.due is not None:
                due.setdefault(each.due.key, each.due)
        return list(due.values())


class Eyes:
    """Looks for the models of a schedule, and knows by its memory which are new."""

    def __init__(self, memory: Memory, claims: Claims, fingerprints: Fingerprints) -> None:
        self._memory, self._claims, self._fingerprints = memory, claims, fingerprints
        self._again = False

    def look(
        self, schedule: Schedule, triggers: Sequence[Trigger], *, again: bool = False
    ) -> Sight:
        """What is there now; `again` takes what has failed for good as not yet tried.

        Raises StoreError; what else fails stands in `errors`."""
        self._again = again
        if not triggers:
            own = Sighting(OWN_BASE, schedule.config.base, schedule.config.base, "")
            seen_own, failed = self._judged([own], lambda each: self._judge(schedule, each, True))
            return Sight(seen_own, (), failed)
        seen: list[Seen] = []
        waiting: list[str] = []
        errors: list[str] = []
        for trigger in triggers:
            try:
                look = trigger.look(self._memory.of_trigger(trigger.name))
            except StoreError:
                raise
            except (RanksweepError, OSError) as error:
                errors.append(f"{trigger.name}: {one_line(error)}")
                continue
            waiting += [f"{trigger.name}: {each}" for each in look.waiting]
            of_trigger, failed = self._of_a_trigger(schedule, look)
            seen += of_trigger
            errors += failed
        return Sight(tuple(seen), tuple(waiting), tuple(errors))

    def remember(self, due: Due) -> None:
        """Note the claim on a model, for the looks after an edit of the sweep or its data.

        Raises StoreError.
        """
        for name in due.names:
            self._memory.claims(name, Swept(due.key, due.sweep), due.sighting.subject)

    def _of_a_trigger(
        self, schedule: Schedule, look: Look
    ) -> tuple[tuple[Seen, ...], tuple[str, ...]]:
        newest = max(look.found, key=lambda each: each.at, default=None)

        def judge(sighting: Sighting) -> Seen:
            by_data = schedule.settings.on.data and sighting == newest
            return self._judge(schedule, sighting, by_data)

        return self._judged(look.found, judge)

    @staticmethod
    def _judged(
        sightings: Sequence[Sighting], judge: Callable[[Sighting], Seen]
    ) -> tuple[tuple[Seen, ...], tuple[str, ...]]:
        seen: list[Seen] = []
        errors: list[str] = []
        for sighting in sightings:
            try:
                seen.append(judge(sighting))
            except StoreError:
                raise
            except (RanksweepError, OSError) as error:
                errors.append(f"{sighting.subject}: {one_line(error)}")
                seen.append(Seen(sighting, "cannot be judged now"))
        return tuple(seen), tuple(errors)

    def _judge(self, schedule: Schedule, sighting: Sighting, by_data: bool) -> Seen:
        """What becomes of one model; `by_data` says whether changed data is worth a sweep."""
        if not by_data and self._memory.is_over(sighting):
            return Seen(sighting, "has been swept")
        try:
            base = self._fingerprints.base(sighting.base)
        except BaseModelError as error:
            return self._judge_unfit(schedule, sighting, sighting.base, error)
        before = None if by_data else self._memory.swept(base)
        if before is not None and (seen := self._done_before(sighting, before)):
            self._memory.note_over(sighting, before)
            return seen
        config = schedule.config.model_copy(update={"base": sighting.base})
        try:
            task = self._fingerprints.task(config, sighting.base, base)
        except BaseModelError as error:
            return self._judge_unfit(schedule, sighting, base, error)
        except DataError as error:
            raise DataError(f"{schedule.sweep_file}: {error}") from error
        key = claim_key(base, task, config)
        # By both, for the newest model of a place is not the newest for ever.
        names = (base, f"{base}-{task}")
        due = Due(sighting, key, sweep_name(key, config), names)
        if by_data:
            before = self._memory.swept(names[1])
            if before is not None and (seen := self._done_before(sighting, before)):
                return seen
        if before is not None and before.key != key and self._runs(before):
            # The sweep or its data was edited meanwhile: what runs is run to its end.
            known = names if by_data else names[:1]
            return self._seen(replace(due, key=before.key, sweep=before.sweep, names=known))
        now = self._seen(due)
        if now.record is not None and now.record.state == "done":
            self.remember(due)  # which another schedule has swept
        return now

    def _done_before(self, sighting: Sighting, swept: Swept) -> Seen | None:
        """What is seen of a model whose sweep is done; None where it is not."""
        record = self._claims.record(swept.key)
        if record is None or record.state != "done":
            return None
        return Seen(sighting, "has been swept", None, swept.sweep, record)

    def _judge_unfit(
        self, schedule: Schedule, sighting: Sighting, base: str, error: BaseModelError
    ) -> Seen:
        """A model that is none is claimed too, so that its failure is told by one, and once."""
        key = key_of_unfit(base, schedule.config)
        due = Due(sighting, key, sweep_name(key, schedule.config), (key,), one_line(error))
        return self._seen(replace(due, may_pass=is_of_hub(sighting.base)))

    def _runs(self, swept: Swept) -> bool:
        record = self._claims.record(swept.key)
        held = self._claims.holder(swept.key) is not None
        return held and record is not None and not record.is_settled

    def _seen(self, due: Due) -> Seen:
        record = self._claims.record(due.key)
        if record is None:
            return Seen(due.sighting, "is to be swept", due, due.sweep)
        if record.state == "done":
            return Seen(due.sighting, "has been swept", None, due.sweep, record)
        if record.has_failed_for_good and not self._again:
            return Seen(due.sighting, "has failed for good", None, due.sweep, record)
        how = {
            "claimed": "is claimed",
            "running": "is being swept",
            "interrupted": "is to go on",
            "failed": "is to be tried again",
        }[record.state]
        return Seen(due.sighting, how, due, due.sweep, record)
