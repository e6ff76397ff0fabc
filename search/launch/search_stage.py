"""The search and the confirmation of a launch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

from search.config.sweep import SweepConfig
from search.interrupts import Interrupts
from search.launch.begun import Begun
from search.launch.confirm import confirm_best
from search.launch.lm_eval import lm_eval_tasks, log_scores_of_base, scores_of_base
from search.launch.prepare import SweepInputs, fewer_trials
from search.launch.recall import Recall
from search.launch.recorder import Recorder
from search.launch.result import LaunchResult
from search.launch.resume import shared_settings
from search.launch.warm_weights import WarmFiles
from search.paths import SweepPaths, private_files
from search.progress import Progress
from search.queries.best_choice import BestChoice
from search.queries.fallen import fallen
from search.study.as_begun import space_as_begun
from search.study.earlier_sweeps import remember_history
from search.study.first_choices import first_choices
from search.study.left_open import end_what_was_left_open
from search.study.proposals import Proposals
from search.study.ranking import (
    WorthKeeping,
    best_of_each_method,
    pareto_front,
    warm_trials,
)
from search.study.shared import SharedStudy, check_settings, driver_of, ended_last_trial, own_seed
from search.study.standing import interrupted, settle
from search.study.steering import Steering
from search.study.study import (
    BEAT_SECONDS,
    GRACE_SECONDS,
    Study,
    choice_text,
    is_older,
    open_study,
    run_ids,
    states_of,
)
from search.study.unranked import unranked_arms
from search.study.warm_start import Earlier, announcement, earlier_choices, remember_earlier
from search.surrogate.history import announcement as learned_from
from search.surrogate.history import related_sweeps
from search.surrogate.observation import RelatedSweep
from search.tracking.also.feed import Feed
from search.tracking.also.listeners import listeners
from search.tracking.journal import Journal
from search.tracking.relay import Relay
from search.tracking.tracker import Tracker
from search.tracking.ui import ui_link
from search.tracking.weights import KeptWeights, WeightFiles
from search.tuning.searcher import StudySearcher
from search.tuning.trial import job_name
from search.tuning.tune import TuneOutcome, tune_search
from spaces.errors import JobError
from spaces.methods.registry import from_record
from spaces.plan import Plan
from spaces.planner import Planner
from spaces.profile import Profile
from spaces.search_space import SearchSpace
from trainables.resident.groups import ResidentWorkers

WHOLE = ("trials", "stop_when")
"""Ends of a search that has done what it was asked for: what it has found is confirmed."""


@dataclass
class SearchStage:
    """The stages of a launch that follow the profile, and what they share."""

    config: SweepConfig
    inputs: SweepInputs
    paths: SweepPaths
    tracker: Tracker
    view: Progress
    result: LaunchResult
    interrupts: Interrupts
    tracked_before: str | None = None
    """Where the launch before this one has tracked to."""

    def __post_init__(self) -> None:
        self._also: list[Feed] = []

    @cached_property
    def study(self) -> Study:
        """The sweep's study: in its folder, or where it is shared with other launches."""
        search = self.config.search
        shared = search.study is not None
        with private_files():
            return open_study(
                search.study or self.paths.study_uri,
                self.config.name,
                objectives=search.objectives,
                mode=search.mode,
                sampler=search.sampler,
                seed=own_seed(search.seed, self._driver) if shared else search.seed,
                beat_seconds=BEAT_SECONDS if shared else None,
                impatient=lambda: self.interrupts.heard,
            )

    @cached_property
    def space(self) -> SearchSpace:
        """What is searched, as the study's trials have it; says what that is beside its default."""
        space, kept = space_as_begun(self.inputs.space, self.study)
        for line in kept:
            self.view.message(line)
        if self.config.train.warms_up and is_older(self.study):
            self.view.message(
                "the trials that this sweep has had began their warm-up at rate 0; from here on "
                "the first step trains too"
            )
        return space

    @property
    def _driver(self) -> str:
        return driver_of(self.paths.sweep)

    # -- the search -----------------------------------------------------------------------------

    def search(self, profile: Profile, workers: ResidentWorkers) -> None:
        """All trials of the sweep, through Ray Tune and Optuna."""
        config, search = self.config, self.config.search
        started = time.monotonic()
        planner = self.inputs.planner(profile)
        shared = self._shared()

        def waits() -> bool:
            in_time = search.time_budget is None or time.monotonic() < started + search.time_budget
            return in_time and not self.interrupts.heard and workers.lost() is None

        steering = self._steering(planner, workers)
        searcher = self._searcher(planner, shared, steering, waits)
        self._say_what_is_left(searcher)
        self._take_stock()
        try:
            with self._heard(steering), self._recorded(shared, searcher, workers) as recorder:
                outcome = tune_search(
                    searcher=searcher,
                    queue=workers.queue,
                    scheduler=search.scheduler.model_dump(mode="json"),
                    max_concurrent_trials=config.cluster.groups + 1,
                    time_budget=search.time_budget,
                    storage_path=self.paths.tune,
                    name="search",
                    observer=recorder,
                    should_stop=workers.lost,
                    keep_weights=config.tracking.keep_weights != "none",
                    rows_seed=config.task.rows.seed,
                    interrupts=self.interrupts,
                )
                self._say_how_it_ended(outcome, searcher)
        finally:
            self.result.seconds["search"] = time.monotonic() - started

    def _shared(self) -> SharedStudy | None:
        """This launch's part in a study that others may have too; None where it is its own."""
        if self.config.search.study is None:
            return None
        check_settings(
            self.study,
            shared_settings(self.config, self.inputs),
            Begun.by(self.inputs).grounds,
        )
        return SharedStudy(self.study, self._driver, GRACE_SECONDS)

    def _steering(self, planner: Planner, workers: ResidentWorkers) -> Steering:
        """What users ask for while the search goes on."""
        config = self.config
        return Steering(
            self.study,
            str(self.paths.sweep.absolute()),
            driver=self._driver if config.search.study is not None else None,
            warm=WarmFiles(self.paths, planner, workers.queue, config.tracking.uri),
            say=self.view.message,
            more=self.view.one_more_trial,
        )

    @contextlib.contextmanager
    def _heard(self, steering: Steering) -> Iterator[None]:
        """While open, the study says that requests are heard."""
        try:
            yield
        finally:
            with contextlib.suppress(JobError):  # the database is away, as what is raised says
                steering.close()

    def _searcher(
        self,
        planner: Planner,
        shared: SharedStudy | None,
        steering: Steering,
        waits: Callable[[], bool],
    ) -> StudySearcher:
        """Who proposes: first what was cut off, the papers' defaults and what others have found."""
        config, space, search = self.config, self.space, self.config.search
        again = interrupted(self.study, shared.left_behind(at_start=True) if shared else None)
        first = first_choices(space, planner, search.arms) if search.warm_start else []
        learns = search.warm_start and search.sampler == "plan"
        history = self._history(planner) if learns else []
        # What a model learns from need not be trained again.
        earlier = self._earlier(planner) if search.warm_start and not history else []
        proposals = Proposals(
            self.study,
            space,
            planner,
            search,
            config.train,
            enqueue=[*again, *first, *(each.choice for each in earlier)],
            origins={choice_text(each.choice): each.run_id for each in earlier},
            shared=shared,
            steering=steering,
            history=history,
            say=self.view.message,
        )
        return StudySearcher(proposals, waits)

    def _earlier(self, planner: Planner) -> list[Earlier]:
        """What earlier sweeps have found, for a third of the trials at most."""
        find = partial(
            earlier_choices,
            self.config.tracking.uri,
            self.space,
            task_fingerprint=self.inputs.task.fingerprint,
            base_fingerprint=self.inputs.base_fingerprint,
            sweep_run_id=self.result.sweep_run_id,
            at_most=self.config.search.trials // 3,
        )
        found = remember_earlier(self.study, find)
        earlier = [each for each in found if self.config.search.takes(planner.params(each.choice))]
        if earlier:
            self.view.message(announcement(earlier))
        return earlier

    def _history(self, planner: Planner) -> list[RelatedSweep]:
        """What earlier sweeps of this task, or on this base, tell; says which they are."""
        find = partial(
            related_sweeps,
            self.config.tracking.uri,
            task_fingerprint=self.inputs.task.fingerprint,
            base_fingerprint=self.inputs.base_fingerprint,
            sweep_run_id=self.result.sweep_run_id,
            planner=planner,
        )
        history = remember_history(self.study, find)
        if history:
            self.view.message(learned_from(history))
        return history

    def _say_what_is_left(self, searcher: StudySearcher) -> None:
        arms = [arm.name for arm in self.inputs.space.arms(self.config.search.arms)]
        done, wanted = searcher.handed, searcher.wanted
        left = max(0, wanted - done)
        kept = f" ({done} of {wanted} are done)" if done else ""
        trials = f"{left} trial{'' if left == 1 else 's'}"
        confirm = self.config.confirm
        later = 0 if confirm is None else len(arms) * confirm.top * confirm.seeds
        self.view.stage("search", f"{trials}{kept} over {', '.join(arms)}", left, later)
        if not done and (fewer := fewer_trials(self.config, len(arms))) is not None:
            self.view.message(fewer)

    def _say_how_it_ended(self, outcome: TuneOutcome, searcher: StudySearcher) -> None:
        self.result.ended_by = outcome.ended_by
        if outcome.ended_by == "stopped":
            raise JobError(f"no workers are left: {outcome.reason}; go on with --resume")
        if outcome.reason:
            self.result.reason = outcome.reason
            self.view.message(
                f"the search ended after {searcher.handed} of {searcher.wanted} trials: "
                f"{outcome.reason}"
            )
        elif outcome.ended_by == "time_budget":
            budget = self.config.search.time_budget
            self.result.reason = f"search.time_budget: {budget:g} s are spent"
            self.view.message(self.result.reason)

    def _take_stock(self) -> None:
        self.result.states = states_of(self.study)
        self.result.best = best_of_each_method(self.study, self.config.objective)
        self.result.warm = warm_trials(self.study.get_trials(deepcopy=False))
        if len(self.config.search.objectives) > 1:
            self.result.front = pareto_front(self.study, self.config.objective)
        self.result.judge()

    @contextlib.contextmanager
    def _recorded(
        self, shared: SharedStudy | None, searcher: StudySearcher, workers: ResidentWorkers
    ) -> Iterator[Recorder]:
        """While open, trials go to the view and the journal; then to MLflow and the result."""
        config, study = self.config, self.study
        keeps = config.tracking.keep_weights
        worth = WorthKeeping(study, config.objective, spare=1 if config.search.repeats else 0)
        kept = KeptWeights(
            self.paths.weights,
            keeps,
            collect=lambda number: workers.collect(job_name(number)),
            best=worth,
        )

        def leader() -> BestChoice | None:
            if keeps != "best":  # else it has just been looked at, for the weights
                worth()
            return worth.leader

        def on_run(number: int, run_id: str) -> None:
            link = ui_link(self.tracker.uri, self.tracker.experiment_id, run_id)
            searcher.set_run_id(number, run_id, link)

        relay = self._relay(searcher.proposals.planner, on_run, recalls=True)
        try:
            yield Recorder(config, leader, relay, self.view, searcher, kept)
        finally:
            if shared is not None:
                shared.close()
            runs = self._closed(relay)
            if shared is None:
                settle(study)  # a trial is open still where the database's answer was lost
            runs = run_ids(study) | runs  # a run of long ago may have been lost since
            kept.drop_spare(worth.no_longer())
            self._log_weights(kept, runs)
            self._take_stock()
            ranked = {row.arm for row in self.result.best}
            arms = self.inputs.space.arms(config.search.arms)
            names = [arm.name for arm in arms]
            self.result.unranked = unranked_arms(self.study, names, ranked)
            for rows in (self.result.best, self.result.front):
                rows[:] = [replace(row, run_id=runs.get(row.number)) for row in rows]

    def _log_weights(self, kept: WeightFiles, runs: Mapping[int, str]) -> None:
        problem = kept.log(self.tracker, runs)
        if problem is not None:
            self.view.message(f"{problem}; weights are left in {kept.folder}, for --resume")

    def _relay(
        self,
        planner: Planner,
        on_run: Callable[[int, str], object] = lambda number, run_id: None,
        recalls: bool = False,
    ) -> Relay:
        """The way to MLflow, through the journal in the sweep's folder.

        Where it `recalls`, MLflow is first looked through for what it lacks of earlier launches.
        """
        assert self.result.sweep_run_id is not None
        journal = Journal(self.paths.journal)
        objective = self.config.search.objectives[0]

        def plan_of(choice: Mapping[str, Any]) -> Plan:
            return planner.plan(from_record(choice))

        end_what_was_left_open(journal, self.study, objective)
        if recalls and self.study.get_trials(deepcopy=False):
            Recall(
                journal,
                self.study,
                self.tracker,
                self.result.sweep_run_id,
                self.paths,
                self._driver,
                objective,
                self.config.task.metric,
                plan_of,
                self.view.message,
                self.tracked_before,
            ).tell_again()
        begun, say = Begun.of(self.paths), self.view.message
        mark = self.result.sweep_run_id if begun is None else begun.mark
        self._also = [
            Feed(journal, name, make, say)
            for name, make in listeners(self.config, self.paths, mark, say).items()
        ]
        return Relay(
            journal,
            self.tracker,
            self.result.sweep_run_id,
            plan_of=plan_of,
            say=self.view.message,
            on_run=on_run,
            shown_of=self._shown_of,
        )

    def _shown_of(self, test_rows: bytes) -> Mapping[str, str | bytes]:
        """What a person is shown of the test rows of a confirmation."""
        # Not at the top: it loads matplotlib, which a search has no use for.
        from search.reports.on_test import files_of_rows

        task = self.inputs.task
        members = {name: member.labels for name, member in task.suite.items()}
        return files_of_rows(test_rows, {"": task.labels, **members})

    def _closed(self, relay: Relay) -> dict[int, str]:
        """Have MLflow told the rest, while it answers.

        Returns the run ids of trials and, by their numbers below zero, of confirmations.
        """
        assert self.result.sweep_run_id is not None
        self.result.untold = relay.close(hurried=lambda: self.interrupts.hurried)
        if self.result.untold:
            self.tracker.patience = 0.0  # MLflow is away: what follows must not wait for it too
        for feed in self._also:
            feed.close(hurried=lambda: self.interrupts.hurried)
        runs = relay.journal.run_ids(self.result.sweep_run_id)
        runs |= relay.journal.confirmation_run_ids(self.result.sweep_run_id)
        relay.journal.close()
        return runs

    # -- the confirmation -----------------------------------------------------------------------

    def confirm(self, profile: Profile, workers: ResidentWorkers) -> None:
        """Retrain the best of each method with more seeds and measure them on test."""
        config, result = self.config, self.result
        if config.confirm is None or not result.best or result.ended_by not in WHOLE:
            return
        started = time.monotonic()
        if config.search.study is not None and not ended_last_trial(self.study, self._driver):
            self.view.message("confirm: left to the launch that has ended the last trial")
            return
        best = best_of_each_method(self.study, config.objective, config.confirm.top)
        chosen = [asdict(row) for row in best]
        planner = self.inputs.planner(profile)
        assert result.sweep_run_id is not None
        relay = self._relay(planner)
        kept = WeightFiles(self.paths.confirmed_weights, "confirmation")
        asked = lm_eval_tasks(config)
        try:
            # It waits for all that it has submitted, which must not go on for hours.
            with self.interrupts.followed_by(workers.cancel):
                if asked is not None:
                    result.lm_eval_of_base = scores_of_base(
                        asked, workers=workers, paths=self.paths, view=self.view
                    )
                result.confirmation = confirm_best(
                    chosen,
                    config=config,
                    plans=[planner.plan(row["choice"]) for row in chosen],
                    workers=workers,
                    relay=relay,
                    tracker=self.tracker,
                    sweep_run_id=result.sweep_run_id,
                    view=self.view,
                    kept=kept,
                )
            every = best_of_each_method(self.study, config.objective, top=config.search.trials)
            result.fallen = fallen(result.confirmation, every, config.objective)
        finally:
            runs = self._closed(relay)
            if asked is not None:  # once no worker waits for it
                log_scores_of_base(
                    asked,
                    result.lm_eval_of_base,
                    tracker=self.tracker,
                    sweep_run_id=result.sweep_run_id,
                    view=self.view,
                )
            self._log_weights(kept, {-number: runs[number] for number in runs if number < 0})
        result.seconds["confirm"] = time.monotonic() - started
