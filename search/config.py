"""The sweep file: what a user may ask of one launch, checked before anything is started."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from search.paths import SweepPaths, check_sweep_name
from spaces.errors import ConfigError, nearest
from spaces.search_space import SearchSpace
from spaces.target import TargetModule
from trainables.metrics import METRICS, metric_for
from trainables.private import redacted
from trainables.settings import ProfileSettings, Settings, TaskSettings, TrainSettings

DEFAULT_STORE = SweepPaths().store_uri
DEFAULT_TRACKING = SweepPaths().tracking_uri
STORE_VARIABLE = "RANKSWEEP_STORE"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
STORE_SCHEMES = ("file", "s3", "gs", "az")
PARAMS_OBJECTIVE = "trainable_params"

DECIDED_BY_TRIAL = {
    "optimizer": "train.optimizer",
    "scheduler": "train.lr_scheduler",
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.gradient_accumulation_steps",
    "gradient_accumulation_steps": "train.gradient_accumulation_steps",
    "gradient_clipping": "train.max_grad_norm",
    "fp16": "train.precision",
    "bf16": "train.precision",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
}


def _known_store(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    known = scheme in STORE_SCHEMES and rest if separator else uri.strip()
    if not known:
        raise ValueError(f"{redacted(uri)!r} is no store; use file://DIR, s3://, gs:// or az://")
    return uri


StoreUri = Annotated[str, AfterValidator(_known_store)]


class SchedulerSettings(Settings):
    """How Ray Tune stops trials that fall behind."""

    name: Literal["asha", "none"] = "asha"
    """`asha` stops the worse trials at rungs of epochs; `none` trains every trial to its end. A
    plan of several stages is not stopped before its last stage."""
    grace_epochs: PositiveInt = 1
    """Epochs of the first rung: no trial is stopped before. At most `train.epochs`."""
    reduction_factor: Annotated[FiniteFloat, Field(gt=1.0)] = 3
    """One trial of so many goes on past a rung."""


class RepeatSettings(Settings):
    """The end of a search spent on knowing the best choices better."""

    top: PositiveInt = 3
    """How many of the best choices found so far are trained again."""
    seeds: PositiveInt = 2
    """With how many other seeds each, from `train.seed` + 1000 on."""


class SearchSettings(Settings):
    """How the space is searched. A sweep fills in metric, mode, objectives and scheduler."""

    trials: PositiveInt = 24
    """Trials over all methods, those enqueued first included."""
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
    the method."""
    arms: tuple[str, ...] = ()
    """Keys whose every value gets trials and a confirmation of its own, as if it were a method: for
    ablations, such as `[partition.rule]`. Their values are lists, in `space.methods` or in a
    default space."""
    sampler: Literal["tpe", "random"] = "tpe"
    """How Optuna proposes a choice."""
    scheduler: SchedulerSettings = SchedulerSettings()
    """Early stopping; its name alone will do; default: `{name: asha}`, or `{name: none}` with two
    objectives."""
    warm_start: bool = True
    """Whether a LoRA as large as the largest of the papers' defaults and each method's default are
    tried first, and after them the best choices that the tracking server has of the same task or
    the same base."""
    repeats: RepeatSettings | None = None
    """`{top: 3, seeds: 2}` spends the last top * seeds trials on training the best choices so far
    with other seeds, and a choice is ranked by its mean; `null` trains each choice once."""
    study: Annotated[str, Field(min_length=1)] | None = None
    """SQLAlchemy URL of a database, such as `postgresql+psycopg://...`, where launches of one sweep
    from several machines or folders share its trials; `null` keeps it in the sweep's folder."""
    seed: NonNegativeInt = 0
    """Seed of the sampler."""

    @field_validator("study")
    @classmethod
    def _opens(cls, study: str | None) -> str | None:
        if study is None:
            return None
        from search.study import study_url

        return study_url(study)

    @field_serializer("study")
    def _without_credentials(self, study: str | None) -> str | None:
        # No file, run or log is given a password; two URLs that differ in it alone are the same.
        return None if study is None else redacted(study)


class ClusterSettings(Settings):
    """Where the resident workers run and what each may take."""

    address: Annotated[str, Field(min_length=1)] = "local"
    """`local` starts Ray on this machine and ends it again; `auto` or an address joins a running
    cluster."""
    groups: PositiveInt = 1
    """Groups of resident workers; each trains one trial at a time."""
    workers_per_group: PositiveInt = 1
    """Data-parallel workers of a group."""
    resources_per_worker: dict[str, NonNegativeFloat] = {"CPU": 1}  # noqa: RUF012 (pydantic copies it)
    """What a worker reserves of Ray, such as `{CPU: 4, GPU: 1}`; on a CPU a worker computes with
    that many threads."""
    max_failures: NonNegativeInt = 2
    """Deaths of a worker that one job survives."""
    lease_seconds: Annotated[float, Field(ge=1.0, le=86_400.0)] = 60.0
    """Seconds without a sign of life after which another launch takes over a profile's computation
    from this one."""


class TrackingSettings(Settings):
    """Where trials are logged."""

    uri: Annotated[str, Field(min_length=1)] = DEFAULT_TRACKING
    """`sqlite:///FILE.db`, or the URI of an MLflow server or database; default:
    `MLFLOW_TRACKING_URI`, else `sqlite:///.ranksweep/mlflow.db`."""
    experiment: Annotated[str, Field(min_length=1)] = "ranksweep"
    """MLflow experiment, created if absent; default: `task.name`."""
    keep_weights: Literal["best", "all", "none"] = "best"
    """Whose trained weights are kept as an artifact, for `export`: the best trial's of each method
    or arm (and those on the Pareto front of a search for two objectives), every complete trial's,
    or nobody's."""


class ConfirmSettings(Settings):
    """Retraining of the best of each method with more seeds, measured on test."""

    top: PositiveInt = 1
    """Choices of each method to confirm."""
    seeds: PositiveInt = 3
    """Seeds of each choice: `train.seed` + 1 and on."""


class SweepConfig(Settings):
    """One launch: a base, a task, a space and how to search it. Only base and task are required."""

    name: Annotated[str, AfterValidator(check_sweep_name)] = "sweep"
    """Name of the sweep and of its folder: letters, digits, `.`, `_`, `-`. A name is used once;
    default: `task.name`."""
    base: Annotated[str, Field(pattern=r"^(hub|path|package):.+")]
    """`hub:org/name@revision`, `path:DIR` or `package:import_name/sub/dir` (weights that an
    installed package ships). Weights are safetensors, or one `.gguf` file named in place of the
    folder; pickles and remote code are refused."""
    task: TaskSettings
    profile: ProfileSettings = ProfileSettings()
    space: dict[str, Any] | None = None
    """Domains of the learning rate and of each method's keys; `null` searches the five methods that
    are no baselines over their default spaces."""
    search: SearchSettings = SearchSettings()
    train: TrainSettings = TrainSettings()
    deepspeed: dict[str, Any] = {}  # noqa: RUF012 (pydantic copies it)
    """DeepSpeed's own settings, passed on as they are. What a trial decides (optimizer, scheduler,
    batch sizes, clipping, precision) is refused here; the error names the key of `train` to set
    instead. ZeRO 0, 1 and 2; in bf16 and fp16 stage 0 runs as stage 1, because DeepSpeed 0.19
    computes it wrongly."""
    cluster: ClusterSettings = ClusterSettings()
    store: StoreUri = DEFAULT_STORE
    """Where profiles are kept: `file://DIR`, `s3://`, `gs://` or `az://`; default:
    `RANKSWEEP_STORE`, else `file://.ranksweep/store`."""
    tracking: TrackingSettings = TrackingSettings()
    confirm: ConfirmSettings | None = ConfirmSettings()
    """What is retrained and measured on test at the end; `null` skips it; default:
    `{top: 1, seeds: 3}`, or `null` for a task without a test split."""

    @cached_property
    def search_space(self) -> SearchSpace:
        """`space`, parsed."""
        return SearchSpace.parse(self.space)

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
        return _fill_defaults(raw) if isinstance(raw, Mapping) else raw

    @field_validator("deepspeed")
    @classmethod
    def _not_the_trials_own(cls, deepspeed: dict[str, Any]) -> dict[str, Any]:
        for key in deepspeed:
            if key in DECIDED_BY_TRIAL:
                raise ValueError(
                    f"{key} is decided by the trial; remove it and set {DECIDED_BY_TRIAL[key]}"
                )
        zero = deepspeed.get("zero_optimization")
        if isinstance(zero, Mapping) and zero.get("stage", 0) not in (0, 1, 2):
            raise ValueError(
                f"zero_optimization.stage {zero['stage']} would divide the resident base, which "
                "stays whole on each worker; use 0, 1 or 2"
            )
        return deepspeed

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        metric_for(self.search.metric, self.task.kind, key="search.metric")
        if self.search.metric != self.task.metric:
            raise ConfigError(
                f"search.metric: {self.search.metric!r} is not what the task measures "
                f"({self.task.metric}); set task.metric, and leave search.metric out"
            )
        _check_objectives(self.search)
        _check_repeats(self.search)
        scheduler = self.search.scheduler
        if scheduler.name == "asha" and scheduler.grace_epochs > self.train.epochs:
            raise ConfigError(
                f"search.scheduler.grace_epochs: {scheduler.grace_epochs} is more than the "
                f"{self.train.epochs} epochs of a trial (train.epochs); lower it or use name: none"
            )
        _check_precisions(self.profile.precision, self.train.precision)
        self.search_space.fitted((), self.profile.top_percent).arms(self.search.arms)
        return self


def _fill_defaults(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults that depend on other keys; a null there counts as not given."""
    raw = {key: value for key, value in raw.items() if value is not None or key in NULLABLE}
    task = raw.get("task")
    name, metric = None, None
    if isinstance(task, TaskSettings):
        name, metric = task.name, task.metric
    elif isinstance(task, Mapping):
        name, metric = task.get("name"), task.get("metric", "accuracy")
    if isinstance(name, str):
        raw.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "sweep")
        tracking = raw.get("tracking", {})
        if isinstance(tracking, Mapping):
            given = {key: value for key, value in tracking.items() if value is not None}
            raw["tracking"] = {"experiment": name, **given}
    if not isinstance(raw.get("search", {}), SearchSettings):
        raw["search"] = _fill_search(raw.get("search", {}), metric)
    if "confirm" not in raw and isinstance(task, Mapping) and not _has_test(task):
        raw["confirm"] = None
    return raw


NULLABLE = ("space", "confirm")


def _fill_search(search: Any, task_metric: Any) -> Any:
    if not isinstance(search, Mapping):
        return search
    given = dict(search)
    if "scheduler" in given and given["scheduler"] is None:
        given["scheduler"] = {"name": "none"}
    elif isinstance(given.get("scheduler"), str):
        given["scheduler"] = {"name": given["scheduler"]}
    given = {key: value for key, value in given.items() if value is not None}
    objectives = given.get("objectives")
    if isinstance(objectives, str):
        given["objectives"] = objectives = [objectives]
    first = objectives[0] if isinstance(objectives, list | tuple) and objectives else None
    metric = given.setdefault("metric", first or task_metric)
    if metric is None:
        del given["metric"]
    elif isinstance(metric, str):
        given.setdefault("objectives", [metric])
        if metric in METRICS:
            given.setdefault("mode", METRICS[metric].mode)
    if isinstance(objectives, list | tuple) and len(objectives) > 1:
        given.setdefault("scheduler", {"name": "none"})
    return given


def _has_test(task: Mapping[str, Any]) -> bool:
    """Whether the task will have a test split, as far as its settings tell."""
    data = task.get("data")
    if not isinstance(data, Mapping):
        return True
    if data.get("test") is not None:
        return True
    return data.get("hub") is not None and data.get("dev") is None


def _check_precisions(profile: str, train: str) -> None:
    if profile != train and "auto" not in (profile, train):
        raise ConfigError(
            f"profile.precision: {profile} differs from train.precision {train}, but the base is "
            "loaded once; set both alike, or leave one auto"
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


# -- reading ---------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML in which 5e-5 is a number, and a key written twice is an error."""


# PyYAML follows YAML 1.1, where a float needs a dot; every other tool a user has reads 5e-5.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
        if isinstance(key, list | dict) or key in seen:
            what = "is no plain key" if isinstance(key, list | dict) else "is there twice"
            line = key_node.start_mark.line + 1
            raise ConfigError(f"{key}: {what} (line {line}); keep one plain key for each value")
        seen.add(key)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_duplicates)


def parse_yaml(text: str, source: str) -> Any:
    """The plain data of one YAML document; `source` names it in errors.

    Numbers such as 5e-5 are floats. Raises ConfigError for broken YAML and for duplicate keys.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "not a YAML document"
        raise ConfigError(f"{source}: is no valid YAML{line} ({problem}); correct it") from None


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; ConfigError where there is none."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not a text file; give a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        found = "empty" if data is None else f"a {type(data).__name__}"
        raise ConfigError(f"{path}: is {found}, not a mapping; write lines of `key: value`")
    return data


def apply_overrides(raw: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`raw` with each "a.b=value" put in; the value is read as YAML."""
    result = dict(raw)
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(
                f"--set {override}: is not KEY=VALUE; write for example train.epochs=3"
            )
        _put(result, keys, parse_yaml(text, f"--set {path.strip()}"))
    return result


def _put(mapping: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    inner = mapping
    for depth, key in enumerate(keys[:-1]):
        below = inner.get(key)
        if below is not None and not isinstance(below, Mapping):
            where = ".".join(keys[: depth + 1])
            raise ConfigError(
                f"--set {'.'.join(keys)}: {where} is not a mapping; set {where} as a whole"
            )
        inner[key] = dict(below or {})
        inner = inner[key]
    inner[keys[-1]] = value


def resolve_store(option: str | None = None, configured: str | None = None) -> str:
    """The store to use: the option, else the sweep's, else RANKSWEEP_STORE, else the default.

    Raises ConfigError for a URI of an unknown kind.
    """
    uri = option or configured or os.environ.get(STORE_VARIABLE) or DEFAULT_STORE
    try:
        return _known_store(uri)
    except ValueError as error:
        raise ConfigError(f"store: {error}") from None


def resolve_tracking(option: str | None = None, configured: str | None = None) -> str:
    """The tracking URI: the option, the sweep's, MLFLOW_TRACKING_URI or the default, in order."""
    return option or configured or os.environ.get(TRACKING_VARIABLE) or DEFAULT_TRACKING


def load_sweep(
    path: str | Path,
    overrides: Iterable[str] = (),
    *,
    store: str | None = None,
    tracking: str | None = None,
) -> SweepConfig:
    """Read a sweep file, put in the `--set` overrides and check every key.

    `store` and `tracking` are those of the command line; they win over the file. Raises ConfigError
    or ChoiceError, one line with the full path of the key.
    """
    path = Path(path)
    raw = apply_overrides(read_mapping(path), overrides)
    _locate_files(raw, path.parent)
    configured = raw.get("store")
    if configured is None or isinstance(configured, str):
        raw["store"] = resolve_store(store, configured)
    section = raw.get("tracking")
    if section is None or isinstance(section, Mapping):
        section = dict(section or {})
        section["uri"] = resolve_tracking(tracking, section.get("uri"))
        raw["tracking"] = section
    return parse_sweep(raw)


def parse_sweep(raw: Mapping[str, Any]) -> SweepConfig:
    """Check a sweep that is already plain data; errors as in `load_sweep`."""
    try:
        return SweepConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_one_line(error, raw)) from None


def _locate_files(raw: dict[str, Any], folder: Path) -> None:
    """Point relative paths that are missing here, but are beside the sweep file, to the latter.

    A base's path is made absolute, for workers run in a directory of their own.
    """

    def located(file: str) -> str:
        beside = folder / file
        return str(beside.resolve()) if not Path(file).exists() and beside.exists() else file

    base = raw.get("base")
    if isinstance(base, str) and base.startswith("path:"):
        path = Path(located(base.removeprefix("path:"))).expanduser()
        raw["base"] = f"path:{path.resolve()}" if path.exists() else base
    task = raw.get("task")
    data = task.get("data") if isinstance(task, Mapping) else None
    if isinstance(task, Mapping) and isinstance(data, Mapping) and data.get("hub") is None:
        files = {
            key: located(value)
            for key in ("train", "dev", "test")
            if isinstance(value := data.get(key), str) and not value.startswith("package:")
        }
        raw["task"] = {**task, "data": {**data, **files}}


# -- one line for what pydantic found --------------------------------------------------------------


def _one_line(error: ValidationError, raw: Mapping[str, Any]) -> str:
    """The first error as "a.b.c: reason", unknown keys before all else, and how many follow."""
    grouped: dict[str, list[str]] = {}
    given: dict[str, str] = {}
    unknown_first = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    for details in unknown_first:
        if details["type"] == "extra_forbidden":
            key, reason = _unknown_key(details["loc"])
        else:
            key, reason = _dotted(details["loc"], raw), _reason(details)
            given.setdefault(key, _given(details))
        grouped.setdefault(key, [])
        if reason not in grouped[key]:
            grouped[key].append(reason)
    key, reasons = next(iter(grouped.items()))
    more = f" (and {len(grouped) - 1} more)" if len(grouped) > 1 else ""
    where = f"{key}: " if key else ""
    return " ".join(f"{where}{' or '.join(reasons)}{given.get(key, '')}".split()) + more


def _unknown_key(loc: tuple[int | str, ...]) -> tuple[str, str]:
    *parents, key = loc
    dotted = ".".join(str(part) for part in (*parents, key))
    return dotted, f"unknown key; {nearest(str(key), _fields_at(parents))}"


def _fields_at(parents: Sequence[int | str]) -> list[str]:
    model: type[BaseModel] = SweepConfig
    for part in parents:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field is not None else None
        for candidate in (annotation, *get_args(annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return list(model.model_fields)


def _dotted(loc: tuple[int | str, ...], raw: Any) -> str:
    """The path as far as the user's own data has it: pydantic appends the branch of a union."""
    path = ""
    for part in loc:
        if isinstance(raw, Mapping) and isinstance(part, str):
            path += f".{part}" if path else part
            raw = raw.get(part)
        elif isinstance(raw, list | tuple) and isinstance(part, int) and part < len(raw):
            path += f"[{part}]"
            raw = raw[part]
        else:
            break
    return path


def _reason(details: Any) -> str:
    if details["type"] == "missing":
        return "is required; add it"
    message = str(details["msg"]).removeprefix("Value error, ")
    if details["type"] == "value_error":
        return message
    if details["type"] == "model_type":
        return "should be a mapping of its keys"
    return message.replace("Input should", "should")


def _given(details: Any) -> str:
    """What was given instead, where that says more than the message does."""
    given = repr(details["input"])
    wanted = details["type"] not in ("missing", "value_error") and len(given) <= 60
    return f", not {given}" if wanted else ""
