"""The section `task` of a sweep."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from trainables.settings import Name, Names, Seed, Settings
from trainables.tasks.kinds.registry import KINDS, check_metric, kind_of, metric_of_first
from trainables.tasks.language.extraction import Extract
from trainables.tasks.language.generation_settings import GenerationSettings
from trainables.tasks.language.options import LabelForm, OptionsFrom

FILE_SUFFIXES = (".parquet", ".csv", ".tsv", ".tab", ".json", ".jsonl")


def _written(value: object) -> object:
    """A class as it is written: YAML reads some as numbers or booleans."""
    return str(value) if isinstance(value, bool | int | float) else value


class DataSettings(Settings):
    """Where the rows are: local or packaged files, or a data set of the Hugging Face hub.

    A file is a path, or `package:import_name/sub/file`, and ends in `.parquet`, `.csv`, `.tsv`,
    `.tab`, `.json` or `.jsonl`, or is a folder that `save_to_disk` wrote. With `hub`, `train`,
    `dev` and `test` are names of splits; where neither dev nor test is named, the split
    `validation` is divided by `task.split`.
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
        return self


class RowsSettings(Settings):
    """How many rows of each split are kept: a seeded choice that takes its share, and at least one
    row, of every class."""

    train: PositiveInt | None = None
    """Training rows to keep; `null` keeps all."""
    dev: PositiveInt | None = None
    """Dev rows to keep; `null` keeps all."""
    test: PositiveInt | None = None
    """Test rows to keep; `null` keeps all."""
    seed: Seed = 0
    """Seed of the choice of rows."""


class SplitSettings(Settings):
    """Where dev comes from when `task.data` has none."""

    source: Literal["test", "train"] = "test"
    """The split that dev is taken from: `test` (the papers' rule) or `train`."""
    dev_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Share of the source that becomes dev; the rest stays (the papers' 2:8)."""
    seed: Seed = 0
    """Seed of the division; rows of the same content stay together, and where chance would leave a
    class out of one side, each class gives its share."""


class TaskSettings(Settings):
    """A data set, how a row becomes an input, and the metric."""

    name: Name
    """Name of the task, for people and for queries: what `best --task` asks for."""
    kind: str = "classification"
    """What is predicted: `classification` (of texts), `image_classification`, `regression` (a
    number for a text); and with a base that writes `multiple_choice` (the likeliest option),
    `causal` (text that goes on: how likely it is) or `generation` (what the base writes)."""
    data: DataSettings
    """Where the rows are."""
    template: Annotated[str | None, Field(validate_default=True)] = None
    """The text, or the prompt, as it is composed from columns, such as `"{passage} Question:
    {question}?"`, in place of `text` or `prompt`; `{{` and `}}` stand for braces."""
    text: Annotated[Names, Field(validate_default=True)] = ()
    """One or two columns that hold the text of a `classification` or `regression`; two are encoded
    as a pair. Of `causal` one column of running text, of which every token bears loss."""
    image: Annotated[str | None, Field(validate_default=True)] = None
    """Column that holds the pictures, which `image_classification` needs: paths (relative to the
    data file), the bytes of PNG, JPEG or WebP, or `{bytes, path}` as `datasets` has it. The base's
    image processor makes the pixels."""
    prompt: Annotated[str | None, Field(validate_default=True)] = None
    """Column that holds what a base writes on from."""
    completion: Annotated[str | None, Field(validate_default=True)] = None
    """Column that holds the answer to a prompt, whose tokens and an end token bear loss. Of
    `generation` a value may be a list of accepted answers, of which the first is trained."""
    messages: Annotated[str | None, Field(validate_default=True)] = None
    """Column that holds conversations, lists of `{role, content}`; what the assistant says bears
    loss, and of `generation` its last turn is what is to be written."""
    map: Annotated[str | dict[str, str | None] | None, Field(validate_default=True)] = None
    """`alpaca` (columns instruction, input and output) or `sharegpt` (a column conversations of
    `{from, value}`), in place of columns; `{format: alpaca, instruction: COLUMN}` where a column
    has another name."""
    chat_template: Annotated[str | None, Field(validate_default=True)] = None
    """Jinja template that renders messages, or a file of it (`.jinja`, `.jinja2`, `.j2`), which is
    read when the sweep is; default: that of the base's tokenizer."""
    delimiter: Annotated[str | None, Field(validate_default=True)] = None
    """What stands between prompt and answer. Default: nothing after a column `prompt` that has a
    `completion`, as in TRL; else a space, unless the prompt ends or the answer begins with white
    space."""
    options: Annotated[OptionsFrom | None, Field(validate_default=True)] = None
    """The options of `multiple_choice`: a list of texts, a column that holds lists of texts (or
    `{text, label}`, as the hub has it), or `{columns: [a, b]}`, a column each."""
    label: str = "label"
    """Column that holds the class: a string, a number or a boolean, each as it is written; the
    number of a regression; or which option is right."""
    label_form: Annotated[LabelForm, Field(validate_default=True)] = "auto"
    """How `label` says which option is right: by its `text`, its `letter`, its `index` from 0, its
    `number` from 1, or its `name` among those of `options`; `auto` finds out by all rows."""
    extract: Annotated[Extract | None, Field(validate_default=True)] = None
    """Regular expression that finds the answer in what is written, and in its reference: `{pattern,
    take, ignore, ignore_case}`, or the pattern alone."""
    generation: GenerationSettings = GenerationSettings()
    """How a base writes where it is measured on that."""
    suite: tuple[dict[str, Any], ...] = ()
    """Sets that the task is measured on in place of its own dev and test, each a `name` and those
    keys of the task that differ, such as `{name: boolq, data: {test: boolq.jsonl}}`. The search
    goes by the mean of their metrics."""
    metric: Annotated[str, Field(validate_default=True)] = ""
    """Metric of the dev and test splits. Of a classification `accuracy`, `f1` (of the positive
    class of two; macro beyond two), `macro_f1` (mean over the classes that a row has or is
    predicted to have), `matthews` or `roc_auc` (beyond two classes the mean of each class against
    the rest); of a regression `pearson`, `spearman` or `mse`; of multiple choice `accuracy` (by
    log-likelihoods as they are), `accuracy_per_token` or `accuracy_per_byte`; of `causal` `loss` or
    `perplexity`; of `generation` `exact_match`, `accuracy` or `f1` (of the word written), `bleu` (0
    to 100), `rouge1`, `rouge2`, `rougeL`, `loss` or `perplexity`. `my_module:my_metric` is a
    function of your own, of (answers, references); default: the first of the kind's. Of a suite it
    names the mean, is that of each member that it fits and that gives none of its own, and is by
    default that of the first."""
    positive_class: Annotated[str | None, BeforeValidator(_written)] = None
    """Which of two classes `f1` counts as positive; default: the second, in numeric order or else
    by code point."""
    max_length: PositiveInt = 128
    """Tokens at which a text is cut, special tokens included; pictures are not cut. More than the
    base has positions for is refused, and so little that no text is left."""
    rows: RowsSettings = RowsSettings()
    """How many rows of each split are kept."""
    split: SplitSettings = SplitSettings()
    """Where dev comes from when `data` has none."""

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, kind: str) -> str:
        kind_of(kind)
        return kind

    @field_validator("metric")
    @classmethod
    def _fitting_metric(cls, metric: str, info: ValidationInfo) -> str:
        kind = info.data.get("kind")
        if kind is None:  # wrong itself, and said so
            return metric
        if suite := info.data.get("suite"):
            return metric or metric_of_first(suite, kind)
        if not metric:
            return kind_of(kind).metrics[0]
        check_metric(metric, kind)
        return metric

    @field_validator(
        "template", "text", "image", "prompt", "completion", "messages", "map", "chat_template",
        "delimiter", "options", "label_form", "extract", "generation", "positive_class",
    )  # fmt: skip
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        name, key = info.data.get("kind"), str(info.field_name)
        if name is None:  # wrong itself, and said so
            return value
        kind = kind_of(name)
        if key not in kind.keys:
            if value and value != cls.model_fields[key].default:
                raise ValueError(f"does not go with {name}; {_instead(key, name)}")
        elif (wrong := kind.refusal(key, value, info.data)) is not None:
            raise ValueError(wrong)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        kind = kind_of(self.kind)
        kind.check(self)
        if "label" in kind.keys and self.label in (inputs := kind.input_columns(self)):
            raise ValueError(
                f"column {self.label!r} is both {inputs[self.label]} and label; name two columns"
            )
        if self.suite:
            from trainables.tasks.suite import check_suite

            check_suite(self)
        return self


def _instead(key: str, kind: str) -> str:
    """What to do about a key that does not go with a kind."""
    with_it = " or ".join(name for name, each in KINDS.items() if key in each.keys)
    mine = kind_of(kind).keys
    its_own = next(each for each in ("text", "image", "prompt") if each in mine)
    names_input = key in ("text", "image", "prompt", "messages", "map")
    return f"set kind: {with_it}, or {f'name {its_own} instead' if names_input else 'drop it'}"
