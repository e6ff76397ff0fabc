"""The sections of a sweep that a worker reads: `task`, `profile` and `train`."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from trainables.metrics import METRICS

KINDS = ("classification", "image_classification")
IMAGE_KINDS = ("image_classification",)
PLANNED_KINDS = ("regression", "multiple_choice", "causal", "generation")
FILE_SUFFIXES = (".parquet", ".csv", ".json", ".jsonl")
ALL_LINEAR = "all-linear"

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Percent = Annotated[float, Field(gt=0.0, le=100.0)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Schedule = Literal["linear", "cosine", "constant"]


def _as_list(value: object) -> object:
    """A single name where a list of names is expected is a list of one."""
    return [value] if isinstance(value, str) else value


Names = Annotated[
    tuple[str, ...], BeforeValidator(_as_list, json_schema_input_type=tuple[str, ...] | str)
]


def bytes_of(value: object) -> int:
    """A size such as 2GiB in bytes. Raises ValueError where it is none."""
    try:
        size = TypeAdapter(ByteSize).validate_python(value)
    except ValidationError:
        shown = str(value)[:80]
        raise ValueError(f"{shown!r} is not a size; write one such as 2GiB, or bytes") from None
    return int(size)


Size = Annotated[PositiveInt, BeforeValidator(bytes_of, json_schema_input_type=PositiveInt | str)]


class Settings(BaseModel):
    """A section of a sweep: frozen, and any key it does not know is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class DataSettings(Settings):
    """Where the rows are: local or packaged files, or a data set of the Hugging Face hub.

    A file is a path, or `package:import_name/sub/file`, and ends in `.parquet`, `.csv`, `.json` or
    `.jsonl`. With `hub`, `train`, `dev` and `test` are names of splits; where neither dev nor test
    is named, the split `validation` is divided by `task.split`.
    """

    train: str | None = None
    """File or split that trains; required without `hub`, with it `train` where nothing is said."""
    dev: str | None = None
    """File or split that steers the search; without it `task.split` says where dev comes from."""
    test: str | None = None
    """File or split that only the confirmation reads; may be left out."""
    hub: str | None = None
    """Name of a data set on the hub, such as `glue`."""
    name: str | None = None
    """Configuration (subset) of the hub data set, such as `rte`."""
    revision: str | None = None
    """Commit or tag of the hub data set; pin it for runs that can be repeated."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.hub is not None:
            return self
        for key in ("name", "revision"):
            if getattr(self, key) is not None:
                raise ValueError(f"{key} goes with hub only; name the data set in hub or drop it")
        if self.train is None:
            raise ValueError(
                "has neither train nor hub; give {train: FILE, dev: FILE} or {hub: NAME}"
            )
        for key in ("train", "dev", "test"):
            file = getattr(self, key)
            if file is not None and PurePosixPath(file).suffix not in FILE_SUFFIXES:
                raise ValueError(
                    f"{key} is {file!r}, not a data file; use one that ends in "
                    f"{', '.join(FILE_SUFFIXES)}"
                )
        return self


class RowsSettings(Settings):
    """How many rows of each split are kept: a seeded choice among its rows in content order."""

    train: PositiveInt | None = None
    """Training rows to keep; `null` keeps all."""
    dev: PositiveInt | None = None
    """Dev rows to keep; `null` keeps all."""
    test: PositiveInt | None = None
    """Test rows to keep; `null` keeps all."""
    seed: NonNegativeInt = 0
    """Seed of the choice of rows."""


class SplitSettings(Settings):
    """Where dev comes from when `task.data` has none."""

    source: Literal["test", "train"] = "test"
    """The split that dev is taken from: `test` (the papers' rule) or `train`."""
    dev_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Share of the source that becomes dev; the rest stays (the papers' 2:8)."""
    seed: NonNegativeInt = 0
    """Seed of the division; rows of the same content stay together."""


class TaskSettings(Settings):
    """A data set, how a row becomes an input, and the metric."""

    name: Annotated[str, Field(min_length=1)]
    """Name of the task, for people and for queries: what `best --task` asks for."""
    kind: str = "classification"
    """What is predicted: `classification` (of texts) or `image_classification`."""
    data: DataSettings
    """Where the rows are."""
    text: Annotated[Names, Field(validate_default=True)] = ()
    """One or two columns that hold the text, which every kind but `image_classification` needs; two
    are encoded as a pair."""
    image: Annotated[str | None, Field(validate_default=True)] = None
    """Column that holds the pictures, which `image_classification` needs: paths (relative to the
    data file), the bytes of PNG, JPEG or WebP, or `{bytes, path}` as `datasets` has it. The base's
    image processor makes the pixels."""
    label: str = "label"
    """Column that holds the class: a string, an integer or a boolean."""
    metric: str = "accuracy"
    """Metric of the dev and test splits: `accuracy`, `f1` (of the second class of two; macro beyond
    two), `macro_f1` or `matthews`."""
    max_length: PositiveInt = 128
    """Tokens at which a text is cut, special tokens included; pictures are not cut."""
    rows: RowsSettings = RowsSettings()
    """How many rows of each split are kept."""
    split: SplitSettings = SplitSettings()
    """Where dev comes from when `data` has none."""

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, kind: str) -> str:
        if kind in KINDS:
            return kind
        what = "is not available yet" if kind in PLANNED_KINDS else "is not a kind of task"
        raise ValueError(f"{kind!r} {what}; use {', '.join(KINDS)}")

    @field_validator("metric")
    @classmethod
    def _fitting_metric(cls, metric: str, info: ValidationInfo) -> str:
        kind = info.data.get("kind", "classification")
        fitting = [name for name, known in METRICS.items() if kind in known.kinds]
        if metric not in fitting:
            raise ValueError(f"{metric!r} does not measure {kind}; use one of {', '.join(fitting)}")
        return metric

    @field_validator("text")
    @classmethod
    def _texts_of_its_kind(cls, text: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        kind = info.data.get("kind")
        if kind is None:  # wrong itself, and said so
            return text
        if kind in IMAGE_KINDS:
            if text:
                raise ValueError(f"does not go with {kind}; name the column of pictures in image")
            return text
        if not text:
            raise ValueError("is required; name one column, or two for a pair of texts")
        if len(text) > 2:
            raise ValueError(f"names {len(text)} columns; name one, or two for a pair of texts")
        return text

    @field_validator("image")
    @classmethod
    def _image_of_its_kind(cls, image: str | None, info: ValidationInfo) -> str | None:
        kind = info.data.get("kind")
        if kind in IMAGE_KINDS and not image:
            raise ValueError("is required; name the column of pictures")
        if kind is not None and kind not in IMAGE_KINDS and image is not None:
            raise ValueError(
                f"does not go with {kind}; set kind: {IMAGE_KINDS[0]}, or name text instead"
            )
        return image

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        key = "image" if self.image is not None else "text"
        if self.label in self.inputs:
            raise ValueError(f"column {self.label!r} is both {key} and label; name two columns")
        return self

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that a row's input is made of."""
        return self.text if self.image is None else (self.image,)


class ProfileSettings(Settings):
    """The importance profile: PiLoRA's initial phase, then one static pass."""

    target_modules: Names = (ALL_LINEAR,)
    """Linear layers to adapt, by suffix as in PEFT: `output.dense` also takes
    `attention.output.dense`. `all-linear` takes every one outside the task's head."""
    rank: PositiveInt = 8
    """Rank of the LoRA that the initial phase trains."""
    epochs: PositiveInt = 1
    """Epochs of the initial phase."""
    score_every: PositiveInt = 10
    """Optimizer steps from one scored step to the next (the paper's K)."""
    calibration_batches: PositiveInt | Literal["all"] = 32
    """Micro-batches of the static pass, or `all`."""
    batch_size: PositiveInt = 16
    """Rows of one step over all workers."""
    top_percent: tuple[Percent, ...] = (1.0, 2.0, 5.0, 10.0)
    """Percentages k for which TASO's top-k% masks are counted, ascending; a choice's `top_percent`
    must be one of them."""
    seed: NonNegativeInt = 0
    """Seed of the head, the adapters and the order of the rows."""
    learning_rate: PositiveFloat = 2e-4
    """Peak learning rate of the initial phase."""
    alpha: PositiveFloat | None = None
    """LoRA's alpha in the initial phase; `null` means twice the rank."""
    lr_scheduler: Schedule = "linear"
    """Learning-rate schedule of the initial phase."""
    warmup_ratio: Fraction = 0.0
    """Share of the steps that warm up."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradient norm to clip at; `null` does not clip."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of the adapters and the head."""
    dropout: Fraction = 0.0
    """Dropout on the adapters' inputs."""
    base_dropout: bool = False
    """Whether the base's own dropout is on while profiling."""
    precision: Precision = "auto"
    """Precision of the base; `auto` is bf16 where the device computes it fast, else fp32. The base
    is loaded once, so it may not differ from `train.precision`."""
    checkpoint_every: PositiveInt | None = 200
    """Optimizer steps, or micro-batches of the static pass, from one checkpoint to the next: what a
    crash can cost; `null` saves none."""
    memory_limit: Size | None = None
    """Memory that a worker's process may come to hold in the static pass, such as `2GiB`; what does
    not fit is done in turns, a group of modules at a time. `null` sets no limit."""

    use: str | None = None
    """Key, or its first digits, of the profile to use in place of the sweep's own, even of another
    task or of a sibling base (`launch --profile KEY`); `null` uses the sweep's own."""

    NOT_OF_THE_RESULT: ClassVar[frozenset[str]] = frozenset(
        {"checkpoint_every", "memory_limit", "use"}
    )
    """Keys that change no profile: they are neither in its key nor in its metadata."""

    @field_validator("target_modules")
    @classmethod
    def _some_targets(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if not targets or not all(targets):
            raise ValueError("names no module; list suffixes such as [query, value] or all-linear")
        return targets

    @field_validator("top_percent")
    @classmethod
    def _ascending(cls, grid: tuple[float, ...]) -> tuple[float, ...]:
        if not grid:
            raise ValueError("is empty; list percentages such as [1, 2, 5, 10]")
        return tuple(sorted(set(grid)))

    @property
    def resolved_alpha(self) -> float:
        """alpha, or 2 x rank where it is not set."""
        return self.alpha if self.alpha is not None else 2.0 * self.rank


class TrainSettings(Settings):
    """How a trial trains its plan."""

    epochs: PositiveInt = 3
    """Epochs of a trial; its value is the dev metric after the last."""
    batch_size: PositiveInt = 16
    """Rows of one optimizer step over all workers and accumulation steps. On a CPU those of like
    length go through the base together, which spares padding and leaves loss and gradient what they
    are."""
    gradient_accumulation_steps: PositiveInt = 1
    """Forward passes that one optimizer step is divided into."""
    optimizer: Literal["adamw"] = "adamw"
    """The optimizer; there is this one."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of the adapters and the head."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradient norm to clip at; `null` does not clip."""
    lr_scheduler: Schedule = "linear"
    """Learning-rate schedule; it starts again with each stage of a plan."""
    warmup_ratio: Fraction = 0.06
    """Share of a stage's steps that warm up."""
    dropout: Fraction = 0.05
    """Dropout on the input of a module's trainable blocks."""
    precision: Precision = "auto"
    """Precision of the base, as `profile.precision`."""
    seed: NonNegativeInt = 0
    """Seed of the adapters, a fresh head and the order of the rows."""

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide into "
                f"{self.gradient_accumulation_steps} gradient_accumulation_steps; "
                "use a multiple of it"
            )
        return self
