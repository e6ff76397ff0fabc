"""The README of an exported folder: how it is used, how good it is, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from statistics import fmean, stdev

from search.queries.trial_run import TrialRun
from search.redaction import redacted
from search.tracking.facts import RunFacts, choice_tag, of_members
from search.tracking.mlflow import absolute_uri
from trainables.bases.loading import Base
from trainables.bases.location import from_pretrained_arguments, hub_parts, is_of_hub, locate
from trainables.bases.parts import auto_class, load_config
from trainables.tasks.kinds.registry import kind_of
from trainables.tasks.kinds.usage import Usage
from trainables.trained.weights import TrainedFacts


@dataclass(frozen=True)
class Written:
    """What an exported folder holds: whose run it is, and what stands behind it.

    `asked` is the run that was named, where `run` is the one that confirms it best; `confirmed` are
    the confirmations of its choice.
    """

    run: TrialRun
    asked: TrialRun
    confirmed: Sequence[RunFacts]


# -- how good it is --------------------------------------------------------------------------------


def scores(written: Written) -> str:
    """A table of the metric on dev and test, of this model and of its choice over all seeds; and of
    a suite's members, one each."""
    metric = written.run.objective.metric
    of_all = of_members(written.run.facts.metrics)
    members = (name.removeprefix("test_") for name in of_all if not name.startswith("dev_"))
    names = [metric, *members]
    tables = ["\n".join(_table_of(written, name)) for name in names]
    return "\n\n".join([*tables, _which(written)])


def _table_of(written: Written, metric: str) -> list[str]:
    lines = [f"| {metric} | dev | test |", "|---|---|---|"]
    seed = "" if written.run.facts.seed is None else f" (seed {written.run.facts.seed})"
    own = [_over_seeds([_value(written.run.facts, split, metric)]) for split in ("dev", "test")]
    lines.append(f"| this model{seed} | {' | '.join(own)} |")
    if written.confirmed:
        over = [
            _over_seeds([_value(run, split, metric) for run in written.confirmed])
            for split in ("dev", "test")
        ]
        seeds = len(written.confirmed)
        name = "1 seed" if seeds == 1 else f"mean of {seeds} seeds, and their deviation"
        lines.append(f"| {name} | {' | '.join(over)} |")
    return lines


def _value(run: RunFacts, split: str, metric: str) -> float | None:
    """What a run has measured: a trial on dev alone, a confirmation on both."""
    if run.kind == "confirm":
        return run.metrics.get(f"{split}_{metric}")
    return run.metrics.get(metric) if split == "dev" else None


def _over_seeds(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "-"
    return f"{fmean(known):.4f}" + (f" ± {stdev(known):.4f}" if len(known) > 1 else "")


def _which(written: Written) -> str:
    if written.run.facts.kind == "confirm":
        if written.run.run_id == written.asked.run_id:
            return "It is one of the seeds that confirm a choice of the search."
        metric = written.run.objective.metric
        return (
            f"It is the seed with the best {metric} on dev of those that confirm the choice of "
            f"trial {written.asked.run_id}, whatever they measure on test."
        )
    if written.confirmed:
        return "It is the trial as it was searched: itself it was never measured on test."
    return "It was measured on dev, by which the search chose it, and not on test."


# -- how it is used --------------------------------------------------------------------------------


def peft_code(usage: Usage, base: Base, facts: TrainedFacts, folder: str) -> str:
    """Lines of Python that put the adapter in `folder` on its base and predict."""
    name, arguments = from_pretrained_arguments(base.uri)
    place, imports = repr(name), ["from peft import PeftModel"]
    if base.uri.startswith("package:"):
        package, _, inside = base.uri.removeprefix("package:").partition("/")
        inside = inside.removesuffix(f"/{arguments.get('gguf_file')}")
        place = f"str(files({package!r}) / {inside!r})"
        imports.insert(0, "from importlib.resources import files")
    given = {"dtype": repr(facts.dtype)}
    if base.head_modules:
        given = _of_head(base, facts) | given
    given |= {key: repr(value) for key, value in arguments.items()}
    loader = _loader(facts)
    names = [loader]
    if "gguf_file" in given:
        given["quantization_config"] = "GgufConfig(dequantize=True)"
        names.append("GgufConfig")
    options = "".join(f"    {key}={value},\n" for key, value in given.items())
    loading = (
        f"base = {loader}.from_pretrained(\n    {place},\n{options})\n"
        f"model = PeftModel.from_pretrained(base, {folder!r})"
    )
    return _code(usage, folder, imports, names, loading)


def _of_head(base: Base, facts: TrainedFacts) -> dict[str, str]:
    """The arguments that make room on the base for the task's head."""
    given = {"num_labels": repr(len(facts.labels) or 1)}
    if facts.labels:
        labels = dict(enumerate(facts.labels))
        ids = {name: i for i, name in labels.items()}
        given |= {"id2label": repr(labels), "label2id": repr(ids)}
    if base.head.resized:
        given["ignore_mismatched_sizes"] = "True"
    padding = getattr(base.model.config.get_text_config(), "pad_token_id", None)
    if padding != getattr(load_config(base.uri).get_text_config(), "pad_token_id", None):
        given["pad_token_id"] = repr(padding)  # where a decoder finds the end of a row
    return given


def merged_code(usage: Usage, facts: TrainedFacts, folder: str) -> str:
    """Lines of Python that load the model in `folder` and predict."""
    loader = _loader(facts)
    loading = f"model = {loader}.from_pretrained({folder!r})"
    return _code(usage, folder, [], [loader], loading)


def _loader(facts: TrainedFacts) -> str:
    """The class of transformers that puts the task's head on a base."""
    return str(auto_class(kind_of(facts.task_kind).head).__name__)


def _code(
    usage: Usage, folder: str, imports: Sequence[str], names: Sequence[str], loading: str
) -> str:
    plain = sorted({"import torch", *(each for each in usage.imports if each[:6] == "import")})
    others = [*imports, *(each for each in usage.imports if each[:6] != "import")]
    head = [f"# from the folder that {folder!r} lies in; from elsewhere, give its path"]
    head += [
        *plain,
        *others,
        f"from transformers import {', '.join(sorted([*names, *usage.names]))}",
    ]
    return "\n".join(head) + f"\n\n{loading}\n{usage.code}"


# -- where it comes from ---------------------------------------------------------------------------


def base_note(base: Base) -> str:
    """What the base is, said so that it can be found from another machine."""
    print_ = f"Its content has the fingerprint {base.fingerprint}."
    if is_of_hub(base.uri):
        repo, file, revision = hub_parts(base.uri)
        what = f"`{repo}`" + (f", file `{file}`," if file else "")
        return (
            f"The base is {what} of the Hugging Face hub, at revision `{revision or 'main'}`. "
            + print_
        )
    if base.uri.startswith("package:"):
        package = base.uri.removeprefix("package:").partition("/")[0]
        found = packages_distributions().get(package)
        pip = f"{found[0]}=={version(found[0])}" if found else package
        return (
            f"The base `{base.uri}` comes with the Python package {package}: `pip install {pip}` "
            f"on another machine. {print_}"
        )
    return (
        f"The base is a folder of one's own, {_described(base)}. On another machine put the place "
        f"of a copy in its stead, also as base_model_name_or_path in adapter_config.json. {print_}"
    )


def _described(base: Base) -> str:
    path = locate(base.uri)
    parameters = sum(p.numel() for p in base.model.base_model.parameters())
    said = f"`{path.name}`: {base.model_kind}, {parameters:,} parameters without the task's head"
    config = path / "config.json"
    origin = json.loads(config.read_text()).get("_name_or_path") if config.is_file() else None
    if origin:
        said += f"; its config.json says that it was made from `{origin}`"
    return said


def title(run: TrialRun) -> str:
    """The task and the method."""
    return f"{run.facts.task or 'a task'} by {run.method}"


def origin(written: Written) -> str:
    """A table of the run and what names its base, plan and choice."""
    run = written.run
    told = {
        "run": run.run_id,
        "confirms": written.asked.run_id if written.asked.run_id != run.run_id else None,
        "tracking": redacted(absolute_uri(run.recorded.uri)),
        "sweep": run.facts.sweep,
        "base": run.facts.base_uri,
        "base fingerprint": run.facts.base,
        "plan digest": run.facts.plan_digest,
        "choice": choice_tag(run.facts.choice or {}),
    }
    lines = [f"| {key} | `{value}` |" for key, value in told.items() if value]
    return "\n".join(["", "| from | |", "|---|---|", *lines, ""])


def bullets(notes: Sequence[str]) -> str:
    """Notes as a list."""
    return "\n".join(f"- {note}" for note in notes)
