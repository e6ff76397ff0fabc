"""What a launch did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from search.queries.best_choice import BestChoice
from search.queries.comparison import Confirmation
from search.study.ranking import WarmTrial
from trainables.tasks.constant_answer import ConstantAnswer
from trainables.tasks.task import Task


@dataclass
class LaunchResult:
    """What a launch did: seconds per stage, and the best trial of each method, best first."""

    name: str
    profile_key: str
    profile_cached: bool
    tracking_uri: str
    profile_kept_in: str | None = None
    """File of a profile that the store did not take."""
    sweep_run_id: str | None = None
    experiment_id: str | None = None
    """MLflow's id of the experiment that the sweep's run is in."""
    states: dict[str, int] = field(default_factory=dict)
    best: list[BestChoice] = field(default_factory=list)
    front: list[BestChoice] = field(default_factory=list)
    """Of a search with two objectives, the trials that no other beats in one without losing in the
    other, fewest parameters first."""
    warm: list[WarmTrial] = field(default_factory=list)
    """Trials that a user had started from the weights of others, which are ranked with none."""
    unranked: dict[str, str] = field(default_factory=dict)
    """Methods and arms of which no trial ran to its end, and why."""
    constant_answers: Mapping[str, ConstantAnswer] = field(default_factory=dict)
    """What a model that has learned nothing would be measured to be, on dev and on test."""
    nothing_learned: str | None = None
    """What to tell where no trial beats a constant answer on dev."""
    confirmation: list[Confirmation] | None = None
    fallen: list[str] = field(default_factory=list)
    """A line for each confirmed choice that does not hold what it was chosen for."""
    lm_eval_of_base: Mapping[str, float] = field(default_factory=dict)
    """lm-eval's scores of the untouched base, such as `piqa/acc`, where they were asked for."""
    ended_by: str | None = None
    reason: str | None = None
    """Why the search ended before all trials were out."""
    seconds: dict[str, float] = field(default_factory=dict)
    report: str | None = None
    """The page of its report, where one was written."""
    answer: Sequence[str] = ()
    """What the report says in three sentences: what was searched, what won, what to do next."""
    untold: int = 0
    """Records of trials that MLflow has not been told; --resume tells them."""

    @property
    def constant_metrics(self) -> dict[str, float]:
        """`constant_answers` as the sweep's run in MLflow has them."""
        return {
            f"constant_answer_{split}": each.value for split, each in self.constant_answers.items()
        }

    @property
    def failure(self) -> str | None:
        """What of a launch that went to its end has failed, in one line; None where nothing."""
        if not self.best:
            reason = (
                f" ({self.reason})" if self.reason else "; see their errors above and in MLflow"
            )
            return f"{self.name}: no trial ran to its end{reason}"
        if self.untold:
            return (
                f"{self.name}: {self.untold} records of its trials are not in MLflow; launch with "
                "--resume once it answers"
            )
        return None

    def judge(self) -> None:
        """Set `nothing_learned` by what is best now."""
        self.nothing_learned = None
        constant = self.constant_answers.get("dev")
        if constant is None or not self.best or constant.is_beaten_by(self.best[0].value):
            return
        self.nothing_learned = (
            f"nothing was learned: the best {constant.metric}, {self.best[0].value:.4g}, does not "
            f"beat a constant answer ({constant.in_words}); try a higher learning rate "
            "(space.learning_rate) and more epochs (train.epochs), and look whether the labels "
            "belong to their rows"
        )


def constant_answers(task: Task) -> dict[str, ConstantAnswer]:
    """The best constant answers for dev and test, where the metric has such; of a suite the mean of
    what its members have, where each has one."""
    found = {split: _constant(task, split) for split in ("dev", "test")}
    return {split: each for split, each in found.items() if each is not None}


def _constant(task: Task, split: str) -> ConstantAnswer | None:
    each = [
        one.its_kind.constant_answer(one, split)
        for one in task.measured
        if split in one.splits and one.metric not in one.own
    ]
    known = [answer for answer in each if answer is not None]
    if not known or len(known) < len(task.measured):
        return None
    if not task.suite:
        return known[0]
    value = fmean(answer.value for answer in known)
    return ConstantAnswer(split, task.metric, value, None, known[0].mode)
