"""What the installed DeepSpeed takes of its own section of a sweep.

DeepSpeed reads most of its config key by key and passes over a key that it does not know. So it is
given a mapping that notes what is asked of it: what nobody asks for is not known. Some parts of the
config are pydantic models, which say themselves what is wrong.

As a program this file reads a section as JSON from stdin, and its last line is why the section is
refused, as JSON. So a launch need not load DeepSpeed, and with it MLflow, into the driver.
"""

from __future__ import annotations

import json
import sys
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping
from difflib import get_close_matches
from typing import Any, get_args

import torch
from pydantic import BaseModel, ValidationError

from spaces.refusals import unknown_key
from trainables.engine.accelerator import follow


def refusal_of(section: Mapping[str, Any]) -> str | None:
    """Why DeepSpeed does not take a section: the key and the reason; None where it takes it."""
    follow(torch.device("cpu"))  # a GPU of this machine may be another's
    from deepspeed.runtime.config import DeepSpeedConfig

    asked = _Asked({**section, "train_micro_batch_size_per_gpu": 1})
    try:
        DeepSpeedConfig(asked)
    except ValidationError as error:
        return _said_by_a_model(error, asked)
    except Exception as error:  # DeepSpeed has no error of its own for what it cannot read
        if section.get(asked.last, "") is None:
            return f"{asked.last}: is nothing (null); write its keys, or leave it out"
        reason = " ".join(str(error).split())[:200].rstrip(".")
        return f"{asked.last}: DeepSpeed does not take it ({reason}); correct it"
    return asked.refusal()


class _Asked(dict[str, Any]):
    """A mapping that notes what is asked of it, and of the mappings in it."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__({k: _Asked(v) if isinstance(v, dict) else v for k, v in given.items()})
        self.defaults: dict[str, Any] = {}
        """Every key that was asked for -> what stands in for it."""
        self._there: list[str] = []

    @property
    def last(self) -> str:
        """The last key that was asked for and is there."""
        return self._there[-1] if self._there else ""

    def _note(self, key: str, default: Any = None) -> None:
        if self.defaults.get(key) is None:
            self.defaults[key] = default
        if super().__contains__(key):
            self._there.append(key)

    def refusal(self, where: str = "") -> str | None:
        """The first key that nobody asked for, or whose value is not of its default's type."""
        if not self.defaults:  # handed on whole, to a model that has read it
            return None
        for key, value in super().items():
            if key not in self.defaults:
                return f"{where}{key}: {_unknown(key, self.defaults)}"
            if isinstance(value, _Asked):
                if inner := value.refusal(f"{where}{key}."):
                    return inner
            elif wanted := _wanted(value, self.defaults[key]):
                return f"{where}{key}: should be {wanted}, not {value!r}"
        return None

    def __copy__(self) -> _Asked:
        copy = _Asked({})
        dict.update(copy, super().items())
        copy.defaults, copy._there = self.defaults, self._there
        return copy

    def __deepcopy__(self, memo: object) -> dict[str, Any]:
        return {**self}

    def __contains__(self, key: object) -> bool:
        self._note(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self._note(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._note(key, default)
        return super().get(key, default)

    # Who goes over all keys, as `f(**mapping)` does, knows what to do with each.

    def __iter__(self) -> Iterator[str]:
        for key in super().__iter__():
            self._note(key)
            yield key

    def keys(self) -> Any:
        return KeysView(self)

    def items(self) -> Any:
        return ItemsView(self)


def _unknown(key: str, known: Iterable[str]) -> str:
    """What is said of an unknown key: DeepSpeed has too many to list those that are not alike."""
    near = [each for each in known if key in each] or get_close_matches(key, known, n=1)
    return unknown_key(key, near) if near else "unknown key, none of DeepSpeed's; remove it"


def _wanted(value: object, default: object) -> str | None:
    """What a value should be where it is of another type than what stands in for it."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, int | float):
        right = isinstance(value, int | float) and not isinstance(value, bool)
        return None if right else "a number"
    if isinstance(default, str):
        return None if isinstance(value, str) else "text"
    return None


def _said_by_a_model(error: ValidationError, asked: _Asked) -> str:
    found = error.errors(include_url=False)[0]
    loc = [str(part) for part in found["loc"]]
    # A model stands for one part of the config, or holds several parts under their own names.
    path = ".".join(loc if loc and loc[0] in asked else [asked.last, *loc])
    if found["type"] == "extra_forbidden":
        return f"{path}: {_unknown(loc[-1], _fields(error.title, loc[:-1]))}"
    reason = str(found["msg"]).removeprefix("Value error, ").replace("Input should", "should")
    return f"{path}: {reason}, not {str(found['input'])[:60]!r}"


def _fields(title: str, parents: list[str]) -> list[str]:
    """The fields of the model that pydantic names, or of a model inside it."""
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    model = next((m for m in DeepSpeedConfigModel.__subclasses__() if m.__name__ == title), None)
    for parent in parents:
        field = model.model_fields.get(parent) if model is not None else None
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        model = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
    return [] if model is None else list(model.model_fields)


if __name__ == "__main__":
    print(f"\n{json.dumps(refusal_of(json.load(sys.stdin)))}")
