"""How the files of a registered version make one folder that transformers reads."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import yaml

from search.schedules.triggers.whole_model import CONFIG, is_a_part
from trainables.bases.location import ADAPTER_CONFIG

MLMODEL = "MLmodel"
_MODEL, _COMPONENTS, _ADAPTER = "model/", "components/", "peft/"


def laid_out(names: Collection[str]) -> dict[str, str]:
    """Name in a folder of transformers -> the file of the version that belongs there.

    The version is one that `mlflow.transformers` has written (`model/` and `components/`), or holds
    a folder of transformers as it stands. Empty where it is neither.
    """
    root = _folder_of(MLMODEL, names)
    if root is not None:
        inside = {name.removeprefix(root): name for name in names if name.startswith(root)}
        if any(name.startswith(_ADAPTER) for name in inside):
            inner = {name.removeprefix(_ADAPTER): whole for name, whole in inside.items()}
            return {ADAPTER_CONFIG: inner[ADAPTER_CONFIG]} if ADAPTER_CONFIG in inner else {}
        if any(name.startswith(_MODEL) for name in inside):
            return _of_transformers_flavour(inside)
    root = _folder_of(CONFIG, names)
    if root is None:
        root = _folder_of(ADAPTER_CONFIG, names)
    if root is None:
        return {}
    found = {name.removeprefix(root): name for name in names if name.startswith(root)}
    return {name: whole for name, whole in found.items() if is_a_part(name) or "/" not in name}


def hub_reference(mlmodel: bytes) -> str | None:
    """The base of the hub that a version only refers to (`save_pretrained=False`); else None."""
    try:
        document: Any = yaml.safe_load(mlmodel)
        flavour = document["flavors"]["transformers"]
        repo, revision = flavour["source_model_name"], flavour["source_model_revision"]
    except (yaml.YAMLError, KeyError, TypeError):
        return None
    return f"hub:{repo}@{revision}" if repo and revision else None


def mlmodel_of(names: Collection[str]) -> str | None:
    """The file in which MLflow says what a version is; None where there is not one."""
    root = _folder_of(MLMODEL, names)
    return None if root is None else f"{root}{MLMODEL}"


def _of_transformers_flavour(inside: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, whole in sorted(inside.items()):
        if name.startswith(_MODEL):
            found[name.removeprefix(_MODEL)] = whole
    for name, whole in sorted(inside.items()):
        if name.startswith(_COMPONENTS):
            _, _, within = name.removeprefix(_COMPONENTS).partition("/")
            found.setdefault(within, whole)
    return found


def _folder_of(wanted: str, names: Collection[str]) -> str | None:
    """The one folder, with its slash, nearest to the root that holds a file of this name."""
    folders = [name.removesuffix(wanted) for name in names if f"/{name}".endswith(f"/{wanted}")]
    depth = min((folder.count("/") for folder in folders), default=0)
    nearest = [folder for folder in folders if folder.count("/") == depth]
    return nearest[0] if len(nearest) == 1 else None
