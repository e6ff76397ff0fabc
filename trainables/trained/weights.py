"""What a finished trial leaves: the weights that, with its plan and its base, rebuild its function.

One safetensors file: the tensors of `Adaptation.weights()`, the task's head as
`head/<module>/<parameter>`, and the facts below as JSON under the metadata key `ranksweep`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import safetensors.torch
import torch
from torch import nn

from spaces.errors import UsageError
from spaces.files import tensor_file
from trainables.adaptations.adaptation import named_tensor
from trainables.tasks.own import refuse_own_code

SCHEMA_VERSION = 1
_METADATA_KEY = "ranksweep"


@dataclass(frozen=True)
class TrainedFacts:
    """What weights belong to. `labels` are the task's classes in the order of the head's outputs;
    `dtype` is the base's while they were trained."""

    base_uri: str
    base_fingerprint: str
    model_kind: str
    task_kind: str
    labels: tuple[str, ...]
    head_modules: tuple[str, ...]
    method: str
    dtype: str
    seed: int


@dataclass(frozen=True, eq=False)
class Trained:
    """The weights of one trial: the adaptation's, the head's (module -> parameter -> tensor)."""

    facts: TrainedFacts
    weights: Mapping[str, torch.Tensor]
    head: Mapping[str, Mapping[str, torch.Tensor]]

    def to_bytes(self) -> bytes:
        """The safetensors file."""
        tensors = dict(self.weights)
        for module, state in self.head.items():
            tensors |= {f"head/{module}/{name}": tensor for name, tensor in state.items()}
        facts = {"schema_version": SCHEMA_VERSION, **asdict(self.facts)}
        data: bytes = safetensors.torch.save(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            metadata={_METADATA_KEY: json.dumps(facts, sort_keys=True)},
        )
        return data

    def head_for(self, model: nn.Module) -> dict[str, nn.Module]:
        """Copies of the model's head modules that hold the trained values.

        Raises UsageError where a tensor is missing or of another shape.
        """
        heads = {}
        for module, state in self.head.items():
            heads[module] = copy.deepcopy(model.get_submodule(module))
            with torch.no_grad():
                for name, tensor in heads[module].state_dict().items():
                    tensor.copy_(named_tensor(state, name, tensor.shape))
        return heads


def read_trained(data: bytes, source: str = "weights", *, own_code: bool = False) -> Trained:
    """Parse the bytes of a trial's weights; `source` names them in errors. Raises UsageError, also
    for those of a kind of a user's own, whose code would be run, unless `own_code` is wanted."""
    try:
        tensors = safetensors.torch.load(data)
        facts = json.loads(tensor_file.parsed(data).metadata[_METADATA_KEY])
        if facts.pop("schema_version") != SCHEMA_VERSION:
            raise ValueError("another schema version")
        known = TrainedFacts(**{field.name: facts[field.name] for field in fields(TrainedFacts)})
    except Exception as error:  # whatever a file that is none makes its parsers raise
        reason = str(error).replace("\n", " ") or type(error).__name__
        raise UsageError(
            f"{source}: not the weights of a trial ({reason}); take them from its MLflow run"
        ) from error
    if not own_code:
        refuse_own_code([known.task_kind], source)
    listed = {"labels": tuple(known.labels), "head_modules": tuple(known.head_modules)}
    head: dict[str, dict[str, torch.Tensor]] = {name: {} for name in listed["head_modules"]}
    weights = {}
    for name, tensor in tensors.items():
        place, _, rest = name.partition("/")
        module, _, parameter = rest.rpartition("/")
        if place != "head":
            weights[name] = tensor
        elif module in head:
            head[module][parameter] = tensor
        else:
            raise UsageError(f"{source}: {name} belongs to no head module; take the file anew")
    return Trained(TrainedFacts(**{**asdict(known), **listed}), weights, head)
