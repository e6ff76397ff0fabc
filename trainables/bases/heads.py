"""The head of a base for a task: which modules it is, and what it starts from.

A checkpoint of a bare model has no head, and a fresh one is drawn. One that was trained to classify
has a head of its own: where its classes are the task's by name, the head starts from it, its
outputs in the task's order; else a fresh one is drawn in its place. Either way the head trains.
"""

from __future__ import annotations

import copy
import inspect
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

from spaces.errors import BaseModelError, shown
from trainables.bases.location import locate, unloadable
from trainables.bases.parts import UNBUILDABLE, head_class, quiet, skeleton

_POOLER = "pooler"

Classes = int | Sequence[str]
"""A task's classes by name, or how many they are where no name is to be matched."""


def number_of(classes: Classes) -> int:
    """How many classes there are."""
    return classes if isinstance(classes, int) else len(classes)


@dataclass(frozen=True)
class Unfilled:
    """Parameters that a checkpoint does not fill: it lacks them, or has others of that name.

    `mismatched` has the shape that the checkpoint holds in place of the model's.
    """

    missing: frozenset[str]
    mismatched: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, model: nn.Module, info: Mapping[str, Any]) -> Unfilled:
        """From what transformers tells of a loading."""
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        mismatched = {
            name: tuple(shape) for name, shape, *_ in info["mismatched_keys"] if name in parameters
        }
        missing = (set(info["missing_keys"]) & parameters) - mismatched.keys()
        return cls(frozenset(missing), mismatched)

    @property
    def names(self) -> set[str]:
        """Names of all of them."""
        return {*self.missing, *self.mismatched}


@dataclass(frozen=True)
class Head:
    """The modules that train as a task's head, by the names of the topmost ones.

    `order` [classes] says from which output of the base's own head each class of the task starts;
    None where the head is drawn. `resized`: the checkpoint holds one of another number of outputs.
    `outputs` are the parameters that have a row for each class. `about` tells a user which head it
    is. `in_key` is what a profile's key says of it; None where the head is drawn and is what the
    checkpoint lacks, no more.
    """

    modules: tuple[str, ...]
    about: str
    order: tuple[int, ...] | None = None
    resized: bool = False
    outputs: tuple[str, ...] = ()
    in_key: str | None = None


def head_of(model: Any, unfilled: Unfilled, uri: str, head: str, classes: Classes) -> Head:
    """The head that `model`, whose checkpoint leaves `unfilled` what it leaves, has for a task.

    `head` names it among trainables/bases/parts.py HEADS. Raises BaseModelError where weights of
    the base itself are missing; where it writes, that of the next token is one of them, and it must
    be able to give the logits of some tokens alone.
    """
    if head_class(head).writes:
        if unfilled.names:
            raise _lacking(model, unfilled.names, uri, min(unfilled.names))
        if "logits_to_keep" not in inspect.signature(model.forward).parameters:
            raise BaseModelError(
                f"base: {uri} ({model.config.model_type}) gives the logits of every token, where "
                "this kind of task asks for those of some (logits_to_keep); use a base such as "
                "Llama, Qwen or GPT-2, or another task.kind"
            )
        return Head((), "the base's own, of the next token; it stays as it is")
    lacking = find_heads(model, unfilled.names, uri)
    outside = _topmost(model, outside_backbone(model))
    own = [name for name in _parameters_within(model, outside) if name not in unfilled.missing]
    outputs = _output_parameters(model, uri, head) if own or not outside else ()
    if not outputs or unfilled.missing.issuperset(outputs):
        return Head(lacking, f"a fresh one ({', '.join(lacking)}); the base has none")
    more = [name for name in (*lacking, *_owners(outputs)) if not is_within(name, outside)]
    modules = tuple(name for name, _ in model.named_modules() if name in {*outside, *more})
    order, about = _start(model, unfilled, modules, outputs, uri, head, classes)
    if order is None:
        about = f"a fresh one ({', '.join(modules)}); {about}"
        resized = bool(unfilled.mismatched)
        in_key = None if modules == lacking else "fresh"
        return Head(modules, about, resized=resized, in_key=in_key)
    about = f"the base's own ({', '.join(modules)}); {about}"
    return Head(modules, about, order, outputs=outputs, in_key="own")


def find_heads(model: Any, missing: set[str], uri: str) -> tuple[str, ...]:
    """The topmost modules all of whose parameters are `missing` from the checkpoint.

    Raises BaseModelError where weights of the base itself are missing, other than its pooler's:
    that checkpoint is damaged or of another model, and training it as a head would hide it.
    """
    heads = _topmost(model, missing)
    backbone = model.base_model_prefix
    for name in sorted(missing):
        fresh = is_within(name, heads)
        inside = is_within(name, [backbone]) and not is_within(name, [f"{backbone}.{_POOLER}"])
        if inside or not fresh:
            raise _lacking(model, missing, uri, name)
    return tuple(heads)


def _lacking(model: Any, missing: set[str], uri: str, name: str) -> BaseModelError:
    return BaseModelError(
        f"base: {uri} lacks {len(missing)} weights of a {type(model).__name__}, such as "
        f"{name}; use the complete checkpoint of that model"
    )


def _topmost(model: nn.Module, parameters: set[str]) -> list[str]:
    """The topmost modules all of whose parameters are among `parameters`."""
    found: list[str] = []
    for name, module in model.named_modules():
        if not name or is_within(name, found):
            continue
        own = [f"{name}.{p}" for p, _ in module.named_parameters(remove_duplicate=False)]
        if own and parameters.issuperset(own):
            found.append(name)
    return found


def outside_backbone(model: Any) -> set[str]:
    """Parameters that a checkpoint of the bare base lacks: all that the base does not hold."""
    if hasattr(model, model.base_model_prefix):
        return {
            name
            for name, _ in model.named_parameters(remove_duplicate=False)
            if not is_within(name, [model.base_model_prefix])
        }
    # A part of a larger model, such as CLIP's vision tower: what the larger one does not fill.
    with quiet(), torch.device("meta"):
        try:
            bare = transformers.AutoModel.from_config(model.config, trust_remote_code=False)
        except UNBUILDABLE:
            return set()
    shapes = {name: tuple(tensor.shape) for name, tensor in bare.state_dict().items()}
    return unfilled_by(model, model.config, shapes, type(model).__name__).names


def unfilled_by(
    model: Any, config: Any, shapes: Mapping[str, tuple[int, ...]], uri: str
) -> Unfilled:
    """What of `model` a checkpoint with tensors of these `shapes` does not fill.

    The tensors are loaded as shapes alone, so that transformers' own renaming of keys decides.
    """
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with quiet():
        try:
            _, info = type(model).from_pretrained(
                None,
                config=config,
                state_dict=state,
                device_map={"": "meta"},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise unloadable(uri, error) from error
    return Unfilled.of(model, info)


def is_within(name: str, modules: Sequence[str]) -> bool:
    """Whether a module or parameter is one of `modules` or lies in one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _parameters_within(model: nn.Module, modules: Sequence[str]) -> list[str]:
    names = (name for name, _ in model.named_parameters(remove_duplicate=False))
    return [name for name in names if is_within(name, modules)]


def _owners(parameters: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in parameters))


def _output_parameters(model: Any, uri: str, head: str) -> tuple[str, ...]:
    """The parameters that have a row for each class: those that grow with a class more."""
    config = copy.deepcopy(model.config)
    config.num_labels = config.num_labels + 1
    larger = dict(skeleton(uri, head, config).named_parameters(remove_duplicate=False))
    return tuple(
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name in larger and larger[name].shape != parameter.shape
    )


# -- the base's own head ---------------------------------------------------------------------------


def _start(
    model: Any,
    unfilled: Unfilled,
    modules: Sequence[str],
    outputs: Sequence[str],
    uri: str,
    head: str,
    classes: Classes,
) -> tuple[tuple[int, ...] | None, str]:
    """The order in which the task's classes take the base's outputs, or None; and why."""
    path = locate(uri, weights=False)
    said = json.loads((path / "config.json").read_bytes()) if path.is_dir() else {}
    problem = head_class(head).problem_type
    made_as = said.get("architectures") or []
    if made_as and type(model).__name__ not in made_as:
        return None, f"the base's own is that of a {shown(str(made_as[0]))}"
    if said.get("problem_type") not in (None, problem):
        return None, f"the base's own is for {shown(str(said['problem_type']))}"
    if sizes := [unfilled.mismatched[name][0] for name in outputs if name in unfilled.mismatched]:
        return None, f"the base's own has {sizes[0]} outputs, the task {number_of(classes)} classes"
    if incomplete := sorted(unfilled.names & set(_parameters_within(model, modules))):
        return None, f"the base's own lacks {incomplete[0]}"
    if problem == "regression":
        return _of_numbers(said)
    return _of_classes(said, classes)


def _of_classes(said: Mapping[str, Any], classes: Classes) -> tuple[tuple[int, ...] | None, str]:
    """The start of a classification: the base's own outputs where the classes have their names."""
    if isinstance(classes, int):
        return None, "the base's own is of classes without a name here"
    theirs = _own_classes(said, len(classes))
    order = None if theirs is None else matched(theirs, classes)
    if order is not None:
        return order, f"its classes are the task's by name: {_listed(classes)}"
    if theirs is None or theirs == _default_names(len(theirs)):
        return None, "the base's own does not name its classes in config.json"
    return None, f"the base's own is of {_listed(theirs)}, the task of {_listed(classes)}"


def _of_numbers(config: Mapping[str, Any]) -> tuple[tuple[int, ...] | None, str]:
    """The start of a regression, of one output: the base's own where it says that it is one."""
    if config.get("problem_type") is None:
        return None, "the base's own does not say that it is of a regression"
    return (0,), "it is of a regression too"


def _own_classes(config: Mapping[str, Any], number: int) -> list[str] | None:
    """The classes of a checkpoint's head in the order of its outputs, as its config names them.

    None where it names none, or two names for one output. transformers' default names count where
    there are no others.
    """
    forward, backward = config.get("id2label"), config.get("label2id")
    named = []
    if isinstance(forward, dict):
        named.append({str(index): str(name) for index, name in forward.items()})
    if isinstance(backward, dict):
        named.append({str(index): str(name) for name, index in backward.items()})
    places = [str(i) for i in range(number)]
    default = dict(zip(places, _default_names(number), strict=True))
    told = [names for names in named if names.keys() == set(places)]
    told = [names for names in told if names != default] or told
    if not told or any(names != told[0] for names in told):
        return None
    return [told[0][place] for place in places]


def _default_names(number: int) -> list[str]:
    """What transformers calls classes that nobody has named."""
    return [f"LABEL_{index}" for index in range(number)]


def matched(theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, ...] | None:
    """The place among `theirs` of each of `ours`, case, spaces and Unicode form apart.

    None where they are not the same names, or two of one side are alike.
    """
    places = {_plain(name): i for i, name in enumerate(theirs)}
    wanted = [_plain(name) for name in ours]
    if len(places) != len(theirs) or len(wanted) != len(theirs) or set(wanted) != places.keys():
        return None
    return tuple(places[name] for name in wanted)


def _plain(name: str) -> str:
    return "".join(unicodedata.normalize("NFKC", name).split()).casefold()


def _listed(names: Sequence[str]) -> str:
    listed = ", ".join(shown(name, 20) for name in names[:5])
    return f"{listed} and {len(names) - 5} more" if len(names) > 5 else listed
