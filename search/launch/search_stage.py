"""The search and the confirmation of a launch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from search.config.sweep import SweepConfig
from search.interrupts import Interrupts
from search.launch.confirm import confirm_best
from search.launch.prepare import Prepared, fewer_trials
from search.launch.recorder import SweepObserver, end_what_was_left_open
from search.launch.result import LaunchResult
from search.launch.resume import SEARCH_MAY_CHANGE
from search.paths import SweepPaths, private_files
from search.progress import Progress
from search.study.first_choices import first_choices
from search.tracking.journal import Journal
from search.tracking.relay import Replay
from search.tracking.tracker import Tracker
from search.tracking.weights import KeptWeights
from spaces.choice import Choice
from spaces.errors import JobError
from spaces.methods.registry import make_plan, parse_choice
from spaces.profile import Profile

if TYPE_CHECKING:
    import optuna

    from search.study.shared import SharedStudy
    from search.study.warm_start import Earlier
    from search.tuning.searcher import StudySearcher
    from trainables.resident.groups import ResidentWorkers


@dataclass
class SearchStage:
    """The three stages of a launch, and what they share."""

    config: SweepConfig
    prepared: Prepared
    paths: SweepPaths
    tracker: Tracker
    view: Progress
    result: LaunchResult
    interrupts: Interrupts

    def search(self, profile: Profile, workers: ResidentWorkers) -> None:
        """All trials of the sweep, through Ray Tune and Optuna."""
        from search.study.ranking import best_of_each_method
        from search.study.study import states_of
        from search.tuning.tune import tune_search

        config, search = self.config, self.config.search
        started = time.monotonic()
        study = self._study()
        shared = self._shared(study)
        searcher = self._searcher(study, shared, profile, workers, started)
        self._say_what_is_left(searcher)
        self.result.states = states_of(study)
        self.result.best = best_of_each_method(study, search.mode)
        try:
            with self._recorded(study, shared, searcher, profile, workers) as observer:
                outcome = tune_search(
                    searcher=searcher,
                    queue=workers.queue,
                    targets=self.prepared.targets,
                    profile=profile,
                    train=config.train.model_dump(mode="json"),
                    epochs=config.train.epochs,
                    scheduler=search.scheduler.model_dump(mode="json"),
                    metric=search.metric,
                    mode=search.mode,
                    max_concurrent_trials=config.cluster.groups + 1,
                    time_budget=search.time_budget,
                    storage_path=self.paths.tune,
                    name="search",
                    observer=observer,
                    should_stop=workers.lost,
                    size=self.prepared.size,
                    keep_weights=config.tracking.keep_weights != "none",
                    interrupts=self.interrupts,
                )
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
                    self.result.reason = f"search.time_budget: {search.time_budget:g} s are spent"
                    self.view.message(self.result.reason)
        finally:
            self.result.seconds["search"] = time.monotonic() - started

    def _searcher(
        self,
        study: optuna.Study,
        shared: SharedStudy | None,
        profile: Profile,
        workers: ResidentWorkers,
        started: float,
    ) -> StudySearcher:
        """Who proposes: first what was cut off, the papers' defaults and what others have found."""
        from search.study.standing import interrupted
        from search.study.study import choice_text
        from search.tuning.searcher import StudySearcher

        prepared, search = self.prepared, self.config.search

        def waits() -> bool:
            in_time = search.time_budget is None or time.monotonic() < started + search.time_budget
            return in_time and not self.interrupts.heard and workers.lost() is None

        again = interrupted(study, shared.left_behind(at_start=True) if shared else None)
        first = first_choices(prepared, profile, search.arms) if search.warm_start else []
        earlier = self._earlier(study, profile) if search.warm_start else []
        return StudySearcher(
            study,
            prepared.space,
            targets=prepared.targets,
            profile=profile,
            metric=search.metric,
            objectives=search.objectives,
            mode=search.mode,
            epochs=self.config.train.epochs,
            trials=search.trials,
            max_params=search.max_params,
            allocation=search.allocation,
            enqueue=[*again, *first, *(each.choice for each in earlier)],
            origins={choice_text(each.choice): each.run_id for each in earlier},
            size=prepared.size,
            arms=search.arms,
            seed=self.config.train.seed,
            repeats=(search.repeats.top, search.repeats.seeds) if search.repeats else None,
            shared=shared,
            waits=waits,
            say=self.view.message,
        )

    def _say_what_is_left(self, searcher: StudySearcher) -> None:
        search = self.config.search
        arms = [arm.name for arm in self.prepared.space.arms(search.arms)]
        done = searcher.handed
        left = max(0, search.trials - done)
        kept = f" ({done} of {search.trials} are done)" if done else ""
        trials = f"{left} trial{'' if left == 1 else 's'}"
        self.view.stage("search", f"{trials}{kept} over {', '.join(arms)}")
        if not done and search.trials < len(arms):
            self.view.message(fewer_trials(self.config, len(arms)))

    @contextlib.contextmanager
    def _recorded(
        self,
        study: optuna.Study,
        shared: SharedStudy | None,
        searcher: StudySearcher,
        profile: Profile,
        workers: ResidentWorkers,
    ) -> Iterator[SweepObserver]:
        """While open, trials go to the view and the journal; then to MLflow and the result."""
        from search.study.ranking import WorthKeeping, best_of_each_method
        from search.study.standing import settle
        from search.study.study import run_ids, states_of
        from search.tuning.trial import job_name

        config, prepared, mode = self.config, self.prepared, self.config.search.mode
        sweep_run_id = self.result.sweep_run_id
        assert sweep_run_id is not None
        kept = KeptWeights(
            self.paths,
            config.tracking.keep_weights,
            collect=lambda number: workers.collect(job_name(number)),
            best=WorthKeeping(study, mode),
        )
        journal = Journal(self.paths.journal)
        end_what_was_left_open(journal, study, config.search.objectives[0])
        replay = Replay(
            journal,
            self.tracker,
            sweep_run_id,
            plan_of=lambda choice: make_plan(
                parse_choice(choice), prepared.targets, profile, prepared.size
            ),
            say=self.view.message,
            on_run=searcher.set_run_id,
        )
        observer = SweepObserver(
            config, self.result.best, journal, replay, self.view, searcher, kept
        )
        try:
            yield observer
        finally:
            if shared is not None:
                shared.close()
            if observer.close(hurried=lambda: self.interrupts.hurried):
                self.tracker.patience = 0.0  # MLflow is away: what follows must not wait for it too
            runs = journal.run_ids(sweep_run_id)
            journal.close()
            if shared is None:
                settle(study)  # a trial is open still where the database's answer was lost
            runs |= run_ids(study)
            problem = kept.log(self.tracker, lambda: runs)
            if problem is not None:
                self.view.message(
                    f"{problem}; weights are left in {self.paths.weights}, for --resume"
                )
            self.result.states = states_of(study)
            self.result.best = best_of_each_method(study, mode)
            ranked = {row.arm for row in self.result.best}
            arms = self.prepared.space.arms(config.search.arms)
            self.result.unranked = [arm.name for arm in arms if arm.name not in ranked]
            self.result.best = [
                replace(row, run_id=row.run_id or runs.get(row.number)) for row in self.result.best
            ]

    def confirm(self, profile: Profile, workers: ResidentWorkers) -> None:
        """Retrain the best of each method with more seeds and measure them on test."""
        from search.study.ranking import best_of_each_method
        from search.study.shared import closes

        config, result = self.config, self.result
        if config.confirm is None or not result.best or result.ended_by != "trials":
            return
        started, study = time.monotonic(), self._study()
        if config.search.study is not None and not closes(study, self._driver):
            self.view.message("confirm: left to the launch that has ended the last trial")
            return
        chosen = [
            asdict(row)
            for row in best_of_each_method(study, config.search.mode, config.confirm.top)
        ]
        plans = [
            make_plan(
                parse_choice(row["choice"]), self.prepared.targets, profile, self.prepared.size
            )
            for row in chosen
        ]
        assert result.sweep_run_id is not None
        confirmed = confirm_best(
            chosen,
            config=config,
            plans=plans,
            workers=workers,
            tracker=self.tracker,
            sweep_run_id=result.sweep_run_id,
            view=self.view,
        )
        result.confirmation = confirmed
        result.seconds["confirm"] = time.monotonic() - started

    def _earlier(self, study: optuna.Study, profile: Profile) -> list[Earlier]:
        """What earlier sweeps have found, for a third of the trials at most."""
        from search.study.warm_start import earlier_choices, noted, told

        config, prepared = self.config, self.prepared
        find = partial(
            earlier_choices,
            config.tracking.uri,
            prepared.space,
            task_fingerprint=prepared.task.fingerprint,
            base_fingerprint=prepared.base_fingerprint,
            sweep_run_id=self.result.sweep_run_id,
            at_most=config.search.trials // 3,
        )
        limit, prepared = config.search.max_params, self.prepared

        def fits(choice: Choice) -> bool:
            plan = make_plan(choice, prepared.targets, profile, prepared.size)
            return limit is None or plan.trainable_params <= limit

        earlier = [each for each in noted(study, find) if fits(each.choice)]
        if earlier:
            self.view.message(told(earlier))
        return earlier

    @property
    def _driver(self) -> str:
        from search.study.shared import driver_of

        return driver_of(self.paths.sweep)

    def _shared(self, study: optuna.Study) -> SharedStudy | None:
        """This launch's part in a study that others may have too; None where it is its own."""
        from search.study.shared import SharedStudy, check_settings
        from search.study.study import GRACE_SECONDS

        if self.config.search.study is None:
            return None
        resolved = self.config.resolved()
        free = ("study", *SEARCH_MAY_CHANGE)
        check_settings(
            study,
            {
                "task": self.prepared.task.fingerprint,
                "base": self.prepared.base_fingerprint,
                "profile": self.prepared.key,
                "search": {k: v for k, v in resolved["search"].items() if k not in free},
                **{key: resolved[key] for key in ("space", "train", "deepspeed")},
            },
        )
        return SharedStudy(study, self._driver, GRACE_SECONDS)

    def _study(self) -> optuna.Study:
        from search.study.shared import own_seed
        from search.study.study import BEAT_SECONDS, open_study

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
