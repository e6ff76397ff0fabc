"""What may be given to the functions of this package: sweeps, choices and profiles in any form."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from spaces.errors import ConfigError

if TYPE_CHECKING:
    from ranksweep.sweeps import StoredProfile
    from search.config.sweep import SweepConfig
    from spaces.choice import Choice
    from spaces.profile import Profile

    GivenChoice: TypeAlias = Choice | Mapping[str, Any] | str | os.PathLike[str]
    """A method with its keys, as they are or in a file."""
    GivenProfile: TypeAlias = StoredProfile | Profile | str | os.PathLike[str]
    """A profile, its file, or the start of its key in a store."""

Config = str | os.PathLike[str] | Mapping[str, Any]
"""A sweep: the path of its file, or what such a file says."""


def sweep_config(
    config: Config,
    overrides: Mapping[str, Any] | None,
    store: str | None,
    tracking: str | None,
) -> SweepConfig:
    """A sweep with every key checked; errors as `load_sweep` raises them."""
    from search.config.reading import sweep_of, with_files, with_values
    from search.config.yaml_file import read_mapping

    if isinstance(config, Mapping):
        raw, folder = plain(copy.deepcopy(dict(config))), Path()
    elif isinstance(config, str | os.PathLike):
        raw, folder = read_mapping(Path(config)), Path(config).parent
    else:
        raise ConfigError(
            f"config: a {type(config).__name__} is no sweep; give a mapping, or the path of a file"
        )
    raw = with_files(with_values(raw, plain(dict(overrides or {}))), folder)
    return sweep_of(raw, store=store, tracking=tracking)


def plain(value: Any) -> Any:
    """A value as YAML would give it: paths as texts, tuples as lists."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def choice_of(choice: GivenChoice) -> Choice:
    """A choice that is one, in plain values, or in a file. Raises ChoiceError, ConfigError."""
    from search.config.yaml_file import read_mapping
    from spaces.choice import Choice as Parsed
    from spaces.methods.registry import parse_choice

    if isinstance(choice, Parsed):
        return choice
    return parse_choice(
        plain(choice) if isinstance(choice, Mapping) else read_mapping(Path(choice))
    )


def profile_of(profile: GivenProfile, store: str | None) -> Profile:
    """A profile that is one, in a file, or of a store by the start of its key."""
    from ranksweep.sweeps import StoredProfile as Stored
    from search.config.reading import resolve_store
    from search.store.profiles import ProfileStore, load_profile
    from spaces.profile import Profile as Known

    if isinstance(profile, Known):
        return profile
    if isinstance(profile, Stored):
        return profile.profile
    return load_profile(os.fspath(profile), ProfileStore(resolve_store(store)))
