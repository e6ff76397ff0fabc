"""Jobs, what they result in, and the events that tell how they go.

They travel pickled between the driver, the queue and the workers, and are read where nothing heavy
is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from trainables.profiling.settings import ProfileSettings
from trainables.training.lm_eval_tasks import LmEvalTasks
from trainables.training.settings import TrainSettings

if TYPE_CHECKING:
    from trainables.profiling.checkpoints import Checkpoints

Result = TypeVar("Result")


@dataclass(frozen=True)
class TrialResult:
    """What a trial was measured to be; `ready_at` and `first_step_at` are Unix times, before the
    first forward pass that trains and after the first step.

    A job that is measured on test has its test metric under the metric's name, that of dev as
    `dev_<metric>`, and `test_rows`, the file of what it said of each test row.
    """

    metrics: Mapping[str, float]
    head_params: int
    ready_at: float
    first_step_at: float
    test_rows: bytes | None = None
    lm_eval: Mapping[str, float] = field(default_factory=dict)
    """lm-eval's scores, such as `piqa/acc`, where they were asked for."""
    lm_eval_error: str | None = None
    """Why there are none of them; the rest holds all the same."""


@dataclass(frozen=True)
class BaseResult:
    """What the untouched base was measured to be: lm-eval's scores."""

    lm_eval: Mapping[str, float]


@dataclass(frozen=True)
class ProfileResult:
    """A profile's file as bytes, and the seconds that the worker took."""

    profile: bytes
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Job(Generic[Result]):
    """Work for one group of resident workers; the queue names it where it has no `job_id`."""

    kind: ClassVar[str]
    """What it is called where it fails."""
    takes_less_memory: ClassVar[str]
    """What a user can do where it does not fit."""

    job_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrialJob(Job[TrialResult]):
    """Train one plan (its file as bytes) and measure it on dev, a confirmation on test as well.

    With `keep_weights` the queue is left the trial's weights, as a file's bytes; then `lm_eval`
    measures what was trained. `warm` is such a file, of which the job starts where it names what
    the plan trains. It trains on the share `rows` of the training rows, chosen by `rows_seed`
    (trainables/tasks/row_share.py).
    """

    kind: ClassVar[str] = "trial"
    takes_less_memory: ClassVar[str] = (
        "lower train.batch_size or raise train.gradient_accumulation_steps"
    )

    plan: bytes
    learning_rate: float
    seed: int
    train: TrainSettings
    split: Literal["dev", "test"] = "dev"
    method: str = ""
    keep_weights: bool = False
    lm_eval: LmEvalTasks | None = None
    warm: bytes | None = None
    rows: float = 1.0
    rows_seed: int = 0


@dataclass(frozen=True, kw_only=True)
class BaseJob(Job[BaseResult]):
    """Measure the base as it is, before anything is trained."""

    kind: ClassVar[str] = "the base's measuring"
    takes_less_memory: ClassVar[str] = "lower confirm.lm_eval.batch_size"

    lm_eval: LmEvalTasks


@dataclass(frozen=True, kw_only=True)
class ProfileJob(Job[ProfileResult]):
    """Compute the profile; `checkpoints` is where it is saved on the way."""

    kind: ClassVar[str] = "profile"
    takes_less_memory: ClassVar[str] = (
        "lower profile.batch_size or, in the static pass, profile.memory_limit, turn on "
        "train.activation_checkpointing, or use GPUs with more memory"
    )

    settings: ProfileSettings
    checkpoints: Checkpoints | None = None


@dataclass(frozen=True)
class Started:
    """A group has taken the job."""


LOSSES = "losses"
"""What Tune's reports and the journal call `Epoch.losses`."""


@dataclass(frozen=True)
class Epoch:
    """A trial has trained so many epochs; `metrics` is the report of the last.

    `losses` has its training loss within the epoch: pairs of the optimizer steps that the job has
    done and the mean loss of a target since the pair before.
    """

    epoch: int
    metrics: Mapping[str, float]
    losses: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class Steps:
    """How many of its optimizer steps a running job has done, and the last one's learning rate."""

    done: int
    total: int
    learning_rate: float | None


@dataclass(frozen=True)
class ProfileSteps:
    """A profile has done so many steps of a phase; one that trains nothing has no learning rate."""

    phase: str
    done: int
    total: int
    learning_rate: float | None = None


@dataclass(frozen=True)
class Message:
    """A line for the user."""

    text: str


@dataclass(frozen=True)
class Requeued:
    """The job's worker died; it starts again at its beginning."""


@dataclass(frozen=True)
class Done:
    """The job's last event: it has succeeded."""

    result: TrialResult | ProfileResult | BaseResult


@dataclass(frozen=True)
class Failed:
    """The job's last event: it has failed, with the error in one line."""

    error: str


@dataclass(frozen=True)
class Cancelled:
    """The job's last event: the driver has stopped it."""


Ending = Done | Failed | Cancelled
Event = Started | Epoch | ProfileSteps | Message | Requeued | Ending
AnyJob = Job[Any]


@dataclass(frozen=True)
class GroupFacts:
    """What a group that is up says of itself: rank 0's process, how many workers it has, and
    whether they compute the base's layers again in place of keeping their activations."""

    host: str
    pid: int = 0
    workers: int = 1
    recomputes: bool = False
