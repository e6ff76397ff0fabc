"""A checkpoint of transformers as a model of MLflow, which its servers and `load_model` take."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainables.bases.parts import quiet

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

ColumnType = Literal["string", "double", "long", "any"]
MODEL = "model"
"""Folder of a run's artifacts that holds its model."""
_REQUIRED = ("mlflow", "torch", "transformers")
_SAVED_AGAIN = ("config.json", "model")
_OF_THE_HUB = ("LICENSE.txt", "model_card.md", "model_card_data.yaml")


@dataclass(frozen=True)
class Served:
    """How a checkpoint is served.

    `pipeline` is the task of transformers' pipelines that `mlflow.transformers.load_model` makes of
    it, `dtype` the torch dtype it is loaded in. `inputs` and `outputs` are the columns of its
    signature and their types; no outputs are said where every model has others. `loader` is the
    module that loads it as a Python function where the pipeline does not give the task's own
    answers, and `packages` are what that needs; `options` are given to the pipeline by a Python
    function of MLflow's own.
    """

    pipeline: str
    dtype: Any
    inputs: Mapping[str, ColumnType]
    outputs: Mapping[str, ColumnType]
    loader: str | None = None
    packages: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def write_model(checkpoint: Path, out: Path, served: Served, run_id: str) -> None:
    """Write the model of MLflow into a new folder `out`; nothing is sent anywhere."""
    import mlflow.transformers
    from huggingface_hub import ModelCard
    from mlflow.models import Model

    packages = (*_REQUIRED, *served.packages)
    with _untold(), quiet():
        mlflow.transformers.save_model(
            transformers_model=_loaded(checkpoint, served),
            path=str(out),
            task=served.pipeline,
            torch_dtype=served.dtype,
            mlflow_model=Model(artifact_path=MODEL, run_id=run_id),
            signature=_signature(served),
            model_config=dict(served.options) or None,
            pip_requirements=[f"{name}=={version(name)}" for name in packages],
            model_card=ModelCard("---\nlicense: other\n---\n"),  # else the hub is asked for one
        )
    for name in _OF_THE_HUB:
        (out / name).unlink(missing_ok=True)
    # Byte for byte: saved again, files lose what transformers does not know of them.
    for file in checkpoint.iterdir():
        if file.is_file() and not file.name.startswith(_SAVED_AGAIN):
            shutil.copyfile(file, out / MODEL / file.name)
    _name_what_is_served(out, served)


def _loaded(checkpoint: Path, served: Served) -> dict[str, Any]:
    """The parts of the pipeline: MLflow does not take the folder itself of every kind."""
    import transformers

    loaders = {
        "text-classification": transformers.AutoModelForSequenceClassification,
        "image-classification": transformers.AutoModelForImageClassification,
        "text-generation": transformers.AutoModelForCausalLM,
    }
    loader = loaders[served.pipeline]
    model = loader.from_pretrained(checkpoint, dtype=served.dtype, use_safetensors=True)
    if served.pipeline == "image-classification":
        processor = transformers.AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
        return {"model": model, "image_processor": processor}
    return {"model": model, "tokenizer": transformers.AutoTokenizer.from_pretrained(checkpoint)}


def _signature(served: Served) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    def schema(columns: Mapping[str, ColumnType]) -> Schema | None:
        types = {name: AnyType() if kind == "any" else kind for name, kind in columns.items()}
        return Schema([ColSpec(kind, name) for name, kind in types.items()]) if types else None

    return ModelSignature(inputs=schema(served.inputs), outputs=schema(served.outputs))


def _name_what_is_served(out: Path, served: Served) -> None:
    """Say in MLmodel what loads it, and not where on this machine it was made."""
    from mlflow import pyfunc
    from mlflow.models import Model

    file = out / "MLmodel"
    model = Model.load(file)
    model.flavors["transformers"]["source_model_name"] = MODEL
    if served.loader is not None:
        model.flavors.pop("python_function", None)
        pyfunc.add_to_model(
            model,
            loader_module=served.loader,
            data=MODEL,  # where MLflow puts the checkpoint
            conda_env="conda.yaml",
            python_env="python_env.yaml",
        )
    model.save(str(file))


@contextmanager
def _untold() -> Iterator[None]:
    """While open, MLflow does not tell how it goes about it: what it lacks is not wanted."""
    logger = logging.getLogger("mlflow")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
