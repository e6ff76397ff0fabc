"""What a sweep rests on, found and checked before anything is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError

from search.config.sweep import ClusterSettings, SweepConfig, check_against_targets
from search.launch.precision import Precision, precision_of
from search.launch.ray_environment import own_cpus
from search.store.profiles import ProfileStore, profile_key
from spaces.errors import ConfigError, ProfileError, StoreError
from spaces.methods.registry import count_range
from spaces.planner import Planner
from spaces.profile import Profile
from spaces.search_space import SearchSpace
from spaces.target import BaseSize, TargetModule
from trainables.bases.heads import Head
from trainables.bases.limits import check_weights
from trainables.bases.location import fingerprint, pin
from trainables.bases.quantization import check_installed
from trainables.bases.structure import meta_base
from trainables.profiling.settings import ProfileSettings
from trainables.tasks.row_share import check_shares
from trainables.tasks.task import Task, build_task


@dataclass(frozen=True)
class SweepInputs:
    """A sweep's task, target modules, size and head of the base, fitted space and profile key.

    `base_uri` names a hub base by its commit; other bases as the sweep does. `precision` is what
    every worker loads it in. `borrowed` is the manifest of the profile that `profile.use` names;
    None where the profile is the sweep's own.
    """

    task: Task
    task_name: str
    base_uri: str
    base_fingerprint: str
    targets: tuple[TargetModule, ...]
    size: BaseSize
    head: Head
    space: SearchSpace
    precision: Precision
    key: str
    store: ProfileStore
    borrowed: Mapping[str, Any] | None = None

    def planner(self, profile: Profile | None) -> Planner:
        """Makes the plans of the sweep's trials by its profile."""
        return Planner(self.targets, profile, self.size)

    @property
    def profile_of(self) -> dict[str, str]:
        """The task, base and training rows that the profile is of: the sweep's, unless borrowed."""
        if self.borrowed is None:
            return {
                "task": self.task_name,
                "base": self.base_fingerprint,
                "base_uri": self.base_uri,
                "rows": self.task.train_fingerprint,
            }
        keys = {
            "task": "task",
            "base": "base_fingerprint",
            "base_uri": "base",
            "rows": "train_fingerprint",
        }
        return {tag: str(self.borrowed.get(key, "unknown")) for tag, key in keys.items()}


def prepare(config: SweepConfig, dtype: str | None = None) -> SweepInputs:
    """Read the data, the base's structure and the store, and check the sweep against them.

    `dtype` is that which a sweep was begun in that goes on; None where it is to be decided.
    Raises ConfigError, ChoiceError, BaseModelError, DataError or StoreError.
    """
    check_resources(config.cluster)
    check_installed(config.base_quantization)
    store = ProfileStore(config.store)
    store.objects.reach()
    task = build_task(config.task, config.base)
    lacking = task.lacking("test")
    if config.confirm is not None and lacking and task.suite:
        raise ConfigError(
            f"confirm: {', '.join(lacking)} of the suite has no test split to measure on; give "
            "each member data.test or set confirm: null"
        )
    if config.confirm is not None and lacking:
        raise ConfigError(
            "confirm: the task has no test split to measure on; give task.data.test or set "
            "confirm: null"
        )
    fidelity = config.search.fidelity
    if fidelity is not None:
        check_shares(task, fidelity.rows, config.train.batch_size, "search.fidelity.rows")
    base_uri = pin(config.base)
    patterns = config.profile.target_modules
    base = meta_base(base_uri, task.head, task.outputs, patterns)
    targets, size = base.targets, base.size
    if config.train.activation_checkpointing == "on" and not base.repeatable:
        raise ConfigError(
            "train.activation_checkpointing: transformers does not know of it for this base's "
            "family; set auto or off"
        )
    borrowed = _borrowed(config, store, targets)
    grid = config.profile.top_percent if borrowed is None else borrowed["top_percent_grid"]
    space = check_against_targets(config, targets, grid)
    for method in space.methods:  # a method that this base cannot take says so here
        count_range(space.default_choice(method), targets, size=size)
    precision = precision_of(config, targets) if dtype is None else Precision(dtype)
    _check_memory_limit(config, targets, size, precision.dtype)
    base_fingerprint = fingerprint(base_uri)
    key = (
        borrowed["key"]
        if borrowed is not None
        else profile_key_of(
            config,
            base_fingerprint,
            task.train_fingerprint,
            targets,
            base.head.in_key,
            dtype=precision.dtype,
        )
    )
    if borrowed is not None or store.manifest(key) is None:  # else they were sound when profiled
        check_weights(base_uri, task.head, task.outputs, precision.dtype)
    return SweepInputs(
        task=task,
        task_name=config.task.name,
        base_uri=base_uri,
        base_fingerprint=base_fingerprint,
        targets=targets,
        size=size,
        head=base.head,
        space=space,
        precision=precision,
        key=key,
        store=store,
        borrowed=borrowed,
    )


def _borrowed(
    config: SweepConfig, store: ProfileStore, targets: tuple[TargetModule, ...]
) -> dict[str, Any] | None:
    """The manifest of the profile that `profile.use` names, once it is known to fit the base."""
    if config.profile.use is None:
        return None
    try:
        key = store.resolve(config.profile.use)
        profile = store.get(key)
        manifest = store.manifest(key)
        if profile is None or manifest is None:
            raise StoreError(f"{key} cannot be used any more; `ranksweep profiles list` shows more")
        for target in targets:
            if target.name not in profile.modules:
                raise ProfileError(
                    f"{target.name} is not in it; narrow profile.target_modules, or take the "
                    "profile of a base with the same modules"
                )
        profile.require_targets(targets)
    except (ConfigError, StoreError, ProfileError) as error:
        raise ConfigError(f"profile.use: {str(error).removeprefix('profile: ')}") from error
    return {**manifest, "top_percent_grid": list(profile.top_percent_grid)}


def _check_memory_limit(
    config: SweepConfig, targets: Sequence[TargetModule], size: BaseSize, dtype: str
) -> None:
    """Refuse what cannot hold even the weights; what the batches take is known to the job alone."""
    limit = config.profile.memory_limit
    if limit is None:
        return
    bytes_each = 4 if dtype == "float32" else 2
    least = size.params * bytes_each + 4 * max(t.shape[0] * t.shape[1] for t in targets)
    if limit < least:
        raise ConfigError(
            f"profile.memory_limit: {limit:,} bytes are less than the base's weights and one "
            f"module's accumulator take; set well above {least / 2**20:,.0f} MiB, or null"
        )


def check_resources(cluster: ClusterSettings) -> None:
    """Refuse workers that this machine can never hold; a real cluster may yet add nodes."""
    if cluster.address != "local":
        return
    workers = cluster.groups * cluster.workers_per_group
    have = {"CPU": float(own_cpus())}
    if cluster.on_gpu:
        have["GPU"] = float(torch.cuda.device_count())
    for name, amount in cluster.resources_per_worker.items():
        if amount * workers > have.get(name, 0.0):
            raise ConfigError(
                f"cluster.resources_per_worker: {workers} x {amount:g} {name} are asked for, "
                f"this machine has {have.get(name, 0.0):g}; lower {name}, groups or "
                "workers_per_group, or join a cluster with cluster.address"
            )


def profile_key_of(
    config: SweepConfig,
    base_fingerprint: str,
    train_fingerprint: str,
    targets: Sequence[TargetModule],
    head: str | None = None,
    *,
    dtype: str,
) -> str:
    """The key under which the profile of a sweep is stored whose base is loaded in `dtype`."""
    return profile_key(
        base_fingerprint=base_fingerprint,
        train_fingerprint=train_fingerprint,
        targets=targets,
        settings=_of_the_result(config.profile),
        seed=config.profile.seed,
        dtype=dtype,
        head=head,
        quantization=config.base_quantization,
    )


def _of_the_result(settings: ProfileSettings) -> dict[str, Any]:
    """The settings that make a profile what it is; the dtype stands for the precision."""
    left_out = {"precision", *settings.NOT_OF_THE_RESULT}
    resolved = {"alpha": settings.resolved_alpha}
    return {**settings.model_dump(mode="json", exclude=left_out), **resolved}


def same_result(said: object, settings: ProfileSettings) -> bool:
    """Whether the settings that a profile says it was made with give what `settings` give.

    The names of target modules are left to their resolved form; a profile may say nothing.
    """
    if said is None:
        return True
    try:
        theirs = _of_the_result(ProfileSettings.model_validate(said))
    except ValidationError:
        return False
    left_open = {"target_modules": None}
    return theirs | left_open == _of_the_result(settings) | left_open


def fewer_trials(config: SweepConfig, arms: int) -> str | None:
    """What to say where a search has fewer trials than methods and arms; None where it has not."""
    search = config.search
    repeated = 0 if search.repeats is None else search.repeats.top * search.repeats.seeds
    if search.trials - repeated >= arms:
        return None
    without = f" without the {repeated} repetitions (search.repeats)" if repeated else ""
    return (
        f"search.trials: {search.trials}{without} is fewer than the {arms} methods and arms; some "
        "get no trial"
    )
