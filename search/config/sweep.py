"""The sweep file: what a user may ask of one launch, checked before anything is started."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    field_serializer,
    field_validator,
    model_validator,
)

from search.config.deepspeed_section import refusal_of_deepspeed
from search.config.defaults import fill_defaults, usual_repeats
from search.config.gpus import GPU_BYTES, gpu_bytes
from search.config.published import PublishedSettings
from search.objective import Objective
from search.paths import STORE_SCHEMES, SweepPaths, check_sweep_name
from search.redaction import redacted
from spaces.errors import ConfigError
from spaces.search_space import SearchSpace
from spaces.target import TargetModule
from trainables.bases.naming import scheme_and_place
from trainables.engine.section import divides_base
from trainables.profiling.settings import ProfileSettings
from trainables.settings import Name, Seed, Settings
from trainables.tasks.kinds.registry import check_metric, mode_of
from trainables.tasks.own import is_own
from trainables.tasks.settings import TaskSettings
from trainables.training.lm_eval_settings import LmEvalSettings
from trainables.training.settings import TrainSettings

DEFAULT_STORE = SweepPaths().store_uri
DEFAULT_TRACKING = SweepPaths().tracking_uri
PARAMS_OBJECTIVE = "trainable_params"
"""The second objective of a Pareto search."""


def known_store(uri: str) -> str:
    """The URI itself, when it can name a store. Raises ValueError, without its credentials."""
    scheme, separator, rest = uri.partition("://")
    known = scheme in STORE_SCHEMES and rest if separator else uri.strip()
    if not known:
        raise ValueError(f"{redacted(uri)!r} is no store; use file://DIR, s3://, gs:// or az://")
    return uri


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("names one twice; name each once")
    return names


StoreUri = Annotated[str, AfterValidator(known_store)]


def known_address(address: str) -> str:
    """The address itself, when it can be a Ray's: local, auto or HOST:PORT. Raises ValueError."""
    if address in ("local", "auto"):
        return address
    if "://" in address:
        raise ValueError(
            f"a launch cannot run through {redacted(address)!r}; use HOST:PORT of the cluster's "
            "head (its port is 6379 unless another was given) from a machine of its network, or "
            "send the launch there with --submit"
        )
    host, _, port = address.rpartition(":")
    if not host or not (port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError(f"{address!r} is no address; use local, auto or HOST:PORT")
    return address


RayAddress = Annotated[str, AfterValidator(known_address)]


class SchedulerSettings(Settings):
    """How Ray Tune stops trials that fall behind."""

    name: Literal["asha", "none"] = "asha"
    """`asha` stops at rungs of epochs, or of rows with `search.fidelity`, the trials that are worse
    than others of their own method or arm, whose best always goes on; `none` trains every trial to
    its end. A plan of several stages is not stopped before its last stage."""
    grace_epochs: PositiveInt = 1
    """Epochs of the first rung: no trial is stopped before. At most `train.epochs`; does not go
    with `search.fidelity`."""
    reduction_factor: Annotated[FiniteFloat, Field(gt=1.0)] = 3
    """One trial of so many goes on past a rung."""


class RepeatSettings(Settings):
    """The end of a search spent on knowing the best choices better."""

    top: PositiveInt = 3
    """How many of the best choices found so far are trained again: the best first, then the best
    LoRA. One that falls with another seed makes room for the next."""
    seeds: PositiveInt = 2
    """With how many other seeds each, from `train.seed` + 1000 on."""


class FidelitySettings(Settings):
    """Cheap looks: trials begin on a share of the training rows, and the better ones go on."""

    rows: tuple[Annotated[FiniteFloat, Field(gt=0.0, le=1.0)], ...] = (0.1, 0.3, 1.0)
    """Shares of the training rows, two or more, rising and ending in 1. A trial is trained anew at
    each, and the scheduler stops those that fall behind in between. Each has at least one batch and
    a row of every class."""

    @field_validator("rows")
    @classmethod
    def _rising(cls, rows: tuple[float, ...]) -> tuple[float, ...]:
        if len(rows) < 2 or rows[-1] != 1.0 or any(a >= b for a, b in pairwise(rows)):
            raise ValueError(
                f"{[*rows]} are no two or more shares that rise and end in 1; write such as "
                "[0.1, 0.3, 1.0], or fidelity: null to train each trial on all rows"
            )
        return rows


class StopWhenSettings(Settings):
    """When more trials are not worth their cost."""

    improvement_below: Annotated[FiniteFloat, Field(gt=0.0)] = 0.2
    """Ends the search once the next `trials` trials are expected to improve on the best by less
    than this, in standard deviations of the noise between seeds."""
    trials: PositiveInt = 10
    """Of how many trials more the improvement is expected."""


class SearchSettings(Settings):
    """How the space is searched. A sweep fills in metric, mode, objectives and scheduler."""

    trials: PositiveInt = 24
    """Trials over all methods, those enqueued first included; default: 24, or with `sampler: grid`
    its points and the repeats."""
    time_budget: Annotated[FiniteFloat, Field(gt=0.0)] | None = None
    """Seconds of search after which trials that run are cancelled and none starts; the confirmation
    is then skipped. `null` sets no limit."""
    metric: str = "accuracy"
    """What is searched by, the task's metric on dev after a trial's last epoch; default:
    `task.metric`."""
    mode: Literal["max", "min"] = "max"
    """Better direction; default: the metric's own."""
    objectives: tuple[str, ...] = ("accuracy",)
    """`[metric]`, or `[metric, trainable_params]` for a Pareto search; default: `[metric]`."""
    max_params: PositiveInt | None = None
    """Trainable parameters that a plan may have at most, the task's head not counted. They are
    counted before a trial exists: a larger plan is never asked for, and the sampler is told so.
    `null` sets no limit."""
    allocation: Literal["equal", "free"] = "equal"
    """`equal` gives each next trial to the method with the fewest; `free` lets the sampler choose
    the method, and `plan` sees to it that LoRA has half of an equal part, and each other method a
    quarter; default: `free` with `sampler: plan`, else `equal`."""
    arms: tuple[str, ...] = ()
    """Keys whose every value gets trials and a confirmation of its own, as if it were a method: for
    ablations, such as `[partition.rule]`. Their values are lists, in `space.methods` or in a
    default space."""
    sampler: Literal["plan", "tpe", "random", "grid"] = "plan"
    """How a choice is proposed: `plan` by a model of what plans are worth, which all methods of
    blocks share; `tpe` and `random` are Optuna's; `grid` tries every combination of the values that
    the space lists, so that each arm gets the same learning rates."""
    scheduler: SchedulerSettings = SchedulerSettings()
    """Early stopping; its name alone will do; default: `{name: asha}`, or `{name: none}` with two
    objectives and no `fidelity`."""
    fidelity: FidelitySettings | None = None
    """`{rows: [0.1, 0.3, 1.0]}` begins trials on a tenth of the training rows, and the better ones
    of each method or arm go on with more; only those on all rows are ranked. `null` trains each on
    all."""
    stop_when: StopWhenSettings | None = None
    """`{improvement_below: 0.2, trials: 10}` ends the search before `trials` are out, when little
    more is to be expected; what it has found is repeated and confirmed as ever. `null` hands out
    them all."""
    warm_start: bool = True
    """Whether a LoRA as large as the largest of the papers' defaults and each method's default are
    tried first, and after them the best choices that the tracking server has of the same task or
    the same base; with `sampler: plan` its model learns from all trials of such sweeps instead."""
    repeats: RepeatSettings | None = None
    """`{top: 3, seeds: 2}` spends the last top * seeds trials on training the best choices so far
    with other seeds, and a choice is ranked by what it holds over its seeds; `null` trains each
    choice once; default: `{top: 2, seeds: 3}`, below 24 trials `{top: 2, seeds: 2}`, and `null`
    below 12, with `sampler: grid`, or where a method or an arm would be left without a trial."""
    study: Annotated[str, Field(min_length=1)] | None = None
    """SQLAlchemy URL of a database, such as `postgresql+psycopg://...`, where launches of one sweep
    from several machines or folders share its trials; `null` keeps it in the sweep's folder."""
    seed: Seed = 0
    """Seed of the sampler."""

    @property
    def objective(self) -> Objective:
        """The metric that is searched for, and the direction that is better."""
        return Objective(self.metric, self.mode)

    def takes(self, params: float) -> bool:
        """Whether a plan may have so many trainable parameters."""
        return self.max_params is None or params <= self.max_params

    @field_validator("study")
    @classmethod
    def _opens(cls, study: str | None) -> str | None:
        if study is None:
            return None
        from search.config.database import study_url

        return study_url(study)

    @field_serializer("study")
    def _without_credentials(self, study: str | None) -> str | None:
        # No file, run or log is given a password; two URLs that differ in it alone are the same.
        return None if study is None else redacted(study)


class ClusterSettings(Settings):
    """Where the resident workers run and what each may take."""

    address: RayAddress = "local"
    """`local` starts Ray on this machine and ends it again; `auto` or `HOST:PORT` joins a running
    cluster."""
    groups: PositiveInt = 1
    """Groups of resident workers; each trains one trial at a time."""
    workers_per_group: PositiveInt = 1
    """Data-parallel workers of a group."""
    resources_per_worker: dict[str, NonNegativeFloat] = {"CPU": 1}  # noqa: RUF012 (pydantic copies it)
    """What a worker reserves of Ray, such as `{CPU: 4, GPU: 1}`; on a CPU a worker computes with
    that many threads. With `GPU: 0.5` two groups of one worker share a GPU; more than one is
    refused, as a worker computes on one."""
    gpu: str | None = None
    """The GPU of a worker, for the memory plan of `--dry-run`: one of Ray's types, such as `A10G`,
    `L4`, `A100-80G` or `H100`, or a size such as `24GiB`. On a cluster (`address`) the workers then
    go to GPUs of that type alone. `null` takes what the driver has."""
    max_failures: NonNegativeInt = 2
    """Deaths of a worker that one job survives."""
    lease_seconds: Annotated[float, Field(ge=1.0, le=86_400.0)] = 60.0
    """Seconds without a sign of life after which another launch takes over a profile's computation
    from this one."""

    @model_validator(mode="after")
    def _one_gpu_a_worker(self) -> Self:
        gpus = self.resources_per_worker.get("GPU", 0.0)
        if gpus > 1:
            raise ValueError(
                f"resources_per_worker.GPU: {gpus:g} would leave all but one of them idle, for a "
                "worker computes on one GPU; use GPU: 1, and more workers_per_group or groups"
            )
        if 0 < gpus < 1 and self.workers_per_group > 1:
            raise ValueError(
                f"workers_per_group: {self.workers_per_group} workers with {gpus:g} GPU each could "
                "share a GPU, and NCCL takes no two ranks of a group on one; use GPU: 1, or groups "
                "of one worker"
            )
        return self

    @property
    def on_gpu(self) -> bool:
        """Whether workers ask for a GPU."""
        return self.resources_per_worker.get("GPU", 0) > 0

    @property
    def accelerator_type(self) -> str | None:
        """The type of GPU that a cluster is to place the workers on; None for any."""
        return self.gpu if self.address != "local" and self.gpu in GPU_BYTES else None

    @field_validator("gpu")
    @classmethod
    def _known_gpu(cls, gpu: str | None) -> str | None:
        if gpu is not None:
            gpu_bytes(gpu)
        return gpu


def _run_tags(tags: dict[str, str]) -> dict[str, str]:
    if len(tags) > 20:
        raise ValueError(f"{len(tags)} are too many; keep 20 at most")
    for key, value in tags.items():
        if not re.fullmatch(r"[A-Za-z0-9_\-.:/ ]{1,250}", key) or key != key.strip():
            raise ValueError(
                f"{key[:80]!r} is no name of a tag; use letters, digits, _, -, ., :, / and spaces"
            )
        if key.startswith(("mlflow.", "ranksweep.")):
            raise ValueError(f"{key[:80]!r} is a name of MLflow's or ranksweep's own; use another")
        if not 0 < len(value) <= 5000 or "\0" in value:
            raise ValueError(f"{key[:80]!r} has no text or more than 5,000 characters")
    return tags


class TrackingSettings(Settings):
    """Where trials are logged."""

    uri: Annotated[str, Field(min_length=1)] = DEFAULT_TRACKING
    """`sqlite:///FILE.db`, or the URI of an MLflow server or database; default:
    `MLFLOW_TRACKING_URI`, else `sqlite:///.ranksweep/mlflow.db`."""
    experiment: Name = "ranksweep"
    """MLflow experiment, created if absent; default: `task.name`."""
    keep_weights: Literal["best", "all", "none"] = "best"
    """Whose trained weights are kept as an artifact, for `export`: the best trial's of each method
    or arm (and those on the Pareto front of a search for two objectives), every complete trial's,
    or nobody's. `best` and `all` keep those of every confirmation too, but for `full`, whose
    weights are as large as the base: `best` keeps its first seed's."""
    system_metrics: bool = False
    """Log what the launch's own machine does meanwhile, every ten seconds, into the sweep's run:
    processors, memory, disk, network and, where `nvidia-ml-py` is installed, its GPUs. Other nodes
    of a cluster are not looked at."""
    also: Annotated[tuple[Literal["tensorboard", "wandb"], ...], AfterValidator(_each_once)] = ()
    """Who hears of the trials and confirmations beside MLflow. `tensorboard`: event files in
    `.ranksweep/sweeps/NAME/tensorboard/`. `wandb`: a run each, the sweep their group; offline in
    `.ranksweep/sweeps/NAME/wandb/` where `WANDB_MODE` says so or nobody has logged in. Each is an
    extra: `ranksweep[tensorboard]`, `ranksweep[wandb]`."""

    tags: Annotated[dict[str, str], AfterValidator(_run_tags)] = {}  # noqa: RUF012 (pydantic copies it)
    """Tags of your own, `{team: search, ticket: "1234"}`, on every run that the launch makes: at
    most 20, by which queries choose with `--tag` and MLflow's page too. Names are of letters,
    digits, `_`, `-`, `.`, `:`, `/` and spaces, and do not begin with `mlflow.` or `ranksweep.`."""


class ConfirmSettings(Settings):
    """Retraining of the best of each method with more seeds, measured on test."""

    top: PositiveInt = 1
    """Choices of each method to confirm."""
    seeds: PositiveInt = 5
    """Seeds of each choice: `train.seed` + 1 and on, the same for all choices."""
    lm_eval: LmEvalSettings | None = None
    """Measures every confirmed seed and the untouched base with lm-eval too, for scores that others
    recognise; `null` leaves it out."""


def _named_base(uri: str) -> str:
    scheme_and_place(uri)
    return uri


class SweepConfig(Settings):
    """One launch: a base, a task, a space and how to search it. Only base and task are required."""

    name: Annotated[str, AfterValidator(check_sweep_name)] = "sweep"
    """Name of the sweep and of its folder: letters, digits, `.`, `_`, `-`. A name is used once.
    That of a task in other letters ends in digits of its hash; default: `task.name`."""
    base: Annotated[str, AfterValidator(_named_base)]
    """`hub:org/name@revision`, `path:DIR` or `package:import_name/sub/dir` (weights that an
    installed package ships). Weights are safetensors, or one `.gguf` file named in place of the
    folder; pickles, remote code, quantized weights and an adapter beside the weights are
    refused."""
    base_quantization: Literal["nf4"] | None = None
    """`nf4` loads the base's linear layers in 4 bits (NormalFloat, by bitsandbytes: an extra,
    `ranksweep[nf4]`), where every worker has a GPU; adapters and head stay in `train.precision`.
    The profile is that of the base in 4 bits. Does not go with ZeRO 3. `null` loads the weights as
    they are."""
    task: TaskSettings
    profile: ProfileSettings = ProfileSettings()
    space: dict[str, Any] | None = None
    """Domains of the learning rate and of each method's keys; `null` searches the five methods that
    are no baselines over their default spaces."""
    search: SearchSettings = SearchSettings()
    train: TrainSettings = TrainSettings()
    deepspeed: dict[str, Any] = {}  # noqa: RUF012 (pydantic copies it)
    """DeepSpeed's own settings, passed on once DeepSpeed itself has been asked whether it knows the
    keys and takes their values. What a trial decides (optimizer, scheduler,
    batch sizes, clipping, precision) is refused here; the error names the key of `train` to set
    instead. ZeRO 0, 1 and 2; in bf16 and fp16 stage 0 runs as stage 1, because DeepSpeed 0.19
    computes it wrongly. Stage 3 divides the base among the workers of a group, for bases too large
    for one GPU (`offload_param: {device: cpu}` keeps it in main memory); a trial's own parameters
    are then whole on each."""
    cluster: ClusterSettings = ClusterSettings()
    store: StoreUri = DEFAULT_STORE
    """Where profiles are kept: `file://DIR`, `s3://`, `gs://` or `az://`; default:
    `RANKSWEEP_STORE`, else `file://.ranksweep/store`."""
    tracking: TrackingSettings = TrackingSettings()
    confirm: ConfirmSettings | None = ConfirmSettings()
    """What is retrained and measured on test at the end; `null` skips it; default:
    `{top: 1, seeds: 5}`, or `null` for a task without a test split."""
    published: PublishedSettings | None = None
    """What a paper prints for this experiment; `compare` sets it beside what was measured here."""

    @cached_property
    def search_space(self) -> SearchSpace:
        """`space`, parsed; as a grid where one is walked."""
        space = SearchSpace.parse(self.space)
        return space.as_grid() if self.search.sampler == "grid" else space

    @property
    def objective(self) -> Objective:
        """The metric that is searched for, and the direction that is better."""
        return self.search.objective

    @property
    def usual_repeats(self) -> RepeatSettings | None:
        """`search.repeats` where the sweep says nothing of it."""
        search = self.search
        arms = self.search_space.fitted((), self.profile.top_percent).arms(search.arms)
        found = usual_repeats(search.trials, search.sampler, len(arms))
        return None if found is None else RepeatSettings.model_validate(found)

    @property
    def pareto(self) -> bool:
        """Whether the number of trainable parameters is a second objective."""
        return len(self.search.objectives) > 1

    @property
    def precision(self) -> str:
        """The precision that the base is loaded in: the workers load it once, for all jobs."""
        return self.train.precision if self.train.precision != "auto" else self.profile.precision

    def resolved(self) -> dict[str, Any]:
        """Every setting with its default filled in, as plain data ready for YAML or JSON."""
        return self.model_dump(mode="json")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, raw: Any) -> Any:
        return fill_defaults(raw, cls.model_fields) if isinstance(raw, Mapping) else raw

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if refused := refusal_of_deepspeed(self.deepspeed):
            raise ConfigError(f"deepspeed{refused}")
        space = self.search_space.fitted((), self.profile.top_percent)
        space.arms(self.search.arms)
        if self.search.sampler == "grid":
            object.__setattr__(self, "search", _as_a_grid(self.search, space))
        elif "repeats" not in self.search.model_fields_set:
            search = self.search.model_copy(update={"repeats": self.usual_repeats})
            object.__setattr__(self, "search", search)
        _check_metric(self.search.metric, self.task)
        _check_mode(self.search.metric, self.search.mode)
        _check_objectives(self.search)
        _check_repeats(self.search)
        _check_stop_when(self.search)
        _check_scheduler(self.search, self.train.epochs)
        _check_precisions(self.profile.precision, self.train.precision)
        _check_base(self)
        _check_gpu(self.cluster)
        return self


def _as_a_grid(search: SearchSettings, space: SearchSpace) -> SearchSettings:
    """The settings of a search that walks a grid: as many trials as it has points."""
    points = len(space.grid(search.arms))
    repeats = search.repeats.top * search.repeats.seeds if search.repeats is not None else 0
    given = search.model_fields_set
    if "trials" in given and search.trials != points + repeats:
        raise ConfigError(
            f"search.trials: {search.trials}, but the grid has {points} points"
            f"{f' and {repeats} repeats' if repeats else ''}; leave trials out"
        )
    for key, other in (("allocation", "free"), ("warm_start", True)):
        if key in given and getattr(search, key) == other:
            raise ConfigError(
                f"search.{key}: does not go with sampler: grid, which tries what the space lists "
                "and nothing else; leave it out"
            )
    return search.model_copy(update={"trials": points + repeats, "warm_start": False})


def _check_metric(metric: str, task: TaskSettings) -> None:
    if not task.suite:
        check_metric(metric, task.kind, key="search.metric")
    if metric != task.metric:
        raise ConfigError(
            f"search.metric: {metric!r} is not what the task measures ({task.metric}); set "
            "task.metric, and leave search.metric out"
        )


def _check_mode(metric: str, mode: str) -> None:
    if is_own(metric):  # its owner knows
        return
    if (known := mode_of(metric)) not in (None, mode):
        raise ConfigError(
            f"search.mode: {mode!r} would search for the worst, for {metric} is better where it is "
            f"{'more' if known == 'max' else 'less'}; leave search.mode out"
        )


def _check_objectives(search: SearchSettings) -> None:
    if search.objectives[:1] != (search.metric,):
        raise ConfigError(
            f"search.objectives: {list(search.objectives)} does not start with the metric "
            f"{search.metric!r}; write [{search.metric}] or [{search.metric}, {PARAMS_OBJECTIVE}]"
        )
    if search.objectives[1:] not in ((), (PARAMS_OBJECTIVE,)):
        raise ConfigError(
            f"search.objectives: {list(search.objectives)} is not [{search.metric}] or "
            f"[{search.metric}, {PARAMS_OBJECTIVE}]; write one of the two"
        )


def _check_repeats(search: SearchSettings) -> None:
    if search.repeats is None:
        return
    spent = search.repeats.top * search.repeats.seeds
    if spent >= search.trials:
        raise ConfigError(
            f"search.repeats: {search.repeats.top} choices with {search.repeats.seeds} seeds take "
            f"{spent} of the {search.trials} trials (search.trials); leave some to find them"
        )


def _check_stop_when(search: SearchSettings) -> None:
    if search.stop_when is not None and search.sampler == "grid":
        raise ConfigError(
            "search.stop_when: does not go with sampler: grid, which tries all that the space "
            "lists; leave one of the two out"
        )


def _check_scheduler(search: SearchSettings, epochs: int) -> None:
    scheduler = search.scheduler
    if search.fidelity is not None:
        if scheduler.name == "none":
            raise ConfigError(
                "search.scheduler: none lets every trial train to its end, and search.fidelity "
                "would only train it more than once; leave scheduler out, or fidelity"
            )
        if scheduler.grace_epochs != 1:
            raise ConfigError(
                "search.scheduler.grace_epochs: is of rungs over epochs, and with search.fidelity "
                "they are over rows; leave it out"
            )
    elif scheduler.name == "asha" and scheduler.grace_epochs > epochs:
        raise ConfigError(
            f"search.scheduler.grace_epochs: {scheduler.grace_epochs} is more than the {epochs} "
            "epochs of a trial (train.epochs); lower it or use name: none"
        )


def _check_precisions(profile: str, train: str) -> None:
    if profile != train and "auto" not in (profile, train):
        raise ConfigError(
            f"profile.precision: {profile} differs from train.precision {train}, but the base is "
            "loaded once; set both alike, or leave one auto"
        )


CHANGES_WEIGHTS = ("dora", "gora", "full", "bitfit")
"""Methods that read or train the weights of all layers at once, as Parameters that are there."""


def _check_base(config: SweepConfig) -> None:
    """Raise ConfigError where a method, or the workers, cannot have the base as it is asked for."""
    divided = divides_base(config.deepspeed)
    key, how = "base_quantization", str(config.base_quantization)
    if config.base_quantization is not None:
        if divided:
            raise ConfigError(
                f"{key}: {how} does not go with deepspeed.zero_optimization.stage: 3, for packed "
                "weights cannot be divided; leave one of them out"
            )
        if not config.cluster.on_gpu:
            raise ConfigError(
                f"{key}: {how} computes on GPUs alone; give each worker one "
                "(cluster.resources_per_worker: {GPU: 1}), or leave it out"
            )
    elif divided:
        key, how = "deepspeed.zero_optimization.stage", "3"
    else:
        return
    for method in CHANGES_WEIGHTS:
        if method in config.search_space.methods:
            raise ConfigError(
                f"{key}: {how} does not go with {method}, which takes the base's weights as they "
                "are; leave it out of space.methods, or leave the key out"
            )


def _check_gpu(cluster: ClusterSettings) -> None:
    if cluster.gpu is not None and not cluster.on_gpu:
        raise ConfigError(
            f"cluster.gpu: {cluster.gpu} is named, but a worker asks for none; add GPU: 1 to "
            "cluster.resources_per_worker, or leave gpu out"
        )


def check_against_targets(
    config: SweepConfig,
    targets: Sequence[TargetModule],
    top_percent_grid: Sequence[float] | None = None,
) -> SearchSpace:
    """Check what only the base's target modules can tell; returns the space fitted to them.

    `top_percent_grid` is that of the profile that the trials will read, where it is not the sweep's
    own.

    Raises ConfigError where `profile.rank` is above what a module can take, and ChoiceError where a
    rank that the user wrote into the space cannot fit.
    """
    for target in targets:
        if config.profile.rank > min(target.shape):
            raise ConfigError(
                f"profile.rank: {config.profile.rank} is above what {target.name} of shape "
                f"{target.shape[0]} x {target.shape[1]} can take; use at most {min(target.shape)}"
            )
    return config.search_space.fitted(targets, top_percent_grid or config.profile.top_percent)
