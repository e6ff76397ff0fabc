"""What is said of a key or a value that is refused: what is wrong with it, and what to write."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from spaces.errors import nearest

OTHER_NAMES = {
    "lr": "space.learning_rate",
    "learning_rate": "space.learning_rate",
    "r": "rank",
    "lora_r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "train.dropout",
    "lora_target": "profile.target_modules",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "max_epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "per_device_train_batch_size": "train.batch_size",
    "lr_scheduler_type": "train.lr_scheduler",
    "optim": "train.optimizer",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "dtype": "train.precision",
    "max_seq_length": "task.max_length",
    "dataset": "task.data",
    "model": "base",
    "model_name_or_path": "base",
    "n_trials": "search.trials",
    "num_trials": "search.trials",
    "num_samples": "search.trials",
}
"""What a setting may be called elsewhere -> the key that it has in a sweep or in a choice."""


def unknown_key(
    key: str, known: Iterable[str], elsewhere: Mapping[str, Sequence[str]] | None = None
) -> str:
    """What is said of a key that is none of the `known`: the key that is meant.

    `elsewhere` maps the keys of other sections to their paths.
    """
    known, name = list(known), key.strip().lower().replace("-", "_")
    path = OTHER_NAMES.get(name, name)
    outer, _, last = path.rpartition(".")
    foreign = next((char for char in key if not char.isascii()), None)
    telling = f"unknown key{f' with {character_name(foreign)} in it' if foreign else ''}"
    if last in known:
        return f"{telling}; did you mean '{last}'?"
    if outer:
        return f"{telling}; that is {path}"
    paths = (elsewhere or {}).get(last, ())
    if paths and not get_close_matches(last, known, n=1, cutoff=0.75):
        return f"{telling}; that is {' or '.join(paths)}"
    return f"{telling}; {nearest(last, known)}"


def odd_character(text: str) -> str | None:
    """The name of the first character of a text that cannot be seen; None where there is none."""
    return next((character_name(char) for char in text if not char.isprintable()), None)


def character_name(char: str) -> str:
    """A character as Unicode lists it, such as `U+00A0 NO-BREAK SPACE`."""
    return f"U+{ord(char):04X} {unicodedata.name(char, 'CONTROL CHARACTER')}"


WANTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
}
"""Kind of an error of pydantic's -> what the value should be."""


def written_right(kind: str, given: object) -> str:
    """What to write in place of a value of the wrong type; `kind` is one of `WANTED`."""
    if given is None:
        return "write one, or leave the key out where it has a default"
    if isinstance(given, list | tuple | dict):
        return "write one value"
    if kind == "string_type":
        return "put it in quotes"
    if kind == "bool_type":
        return "write true or false"
    if isinstance(given, bool):
        return "yes, no, on and off are read as true and false"
    if isinstance(given, str):
        return _without_quotes(given, whole=kind.startswith("int"))
    if kind.startswith("int") and isinstance(given, float) and given.is_integer():
        return f"write {int(given)}"
    return "write a plain number"


def _without_quotes(text: str, whole: bool) -> str:
    """How a text that may have been meant as a number is written as one."""
    # Of a fraction a comma may be the point.
    grouped = re.fullmatch(r"[-+]?[1-9]\d{0,2}(?:[,_' ]\d{3}){1,6}", text.strip())
    if whole and (grouped or re.fullmatch(r"[-+]?\d{1,20}", text.strip())):
        return f"write {int(re.sub(r'[^-0-9]', '', text))}, without quotes or separators"
    try:
        float(text)
    except ValueError:
        return "write a plain number"
    return "write it without quotes"
