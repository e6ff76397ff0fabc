"""A trained trial on its way out: a PEFT checkpoint, a checkpoint of transformers, or its plan."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from search.queries.trial_run import CHOICE, PLAN, TrialRun, find_trial
from search.redaction import redacted
from search.tracking.facts import choice_tag
from search.tracking.mlflow import absolute_uri
from spaces.errors import ConfigError, RanksweepError
from spaces.plan import Plan
from trainables.bases.loading import Base
from trainables.bases.location import from_pretrained_arguments
from trainables.bases.parts import auto_class, load_config
from trainables.trained.merged_checkpoint import write_merged_checkpoint
from trainables.trained.peft_checkpoint import write_peft_checkpoint
from trainables.trained.restored import load_its_base, restored
from trainables.trained.weights import TrainedFacts

Form = Literal["peft", "merged", "plan"]
README = "README.md"
_WHERE = "The folder is named as from the one that it lies in; from elsewhere, give its path."


def export(
    tracking_uri: str, run_id: str, form: Form, out: Path, base_uri: str | None = None
) -> dict[str, Any]:
    """Write a trial as a new folder `out`; returns what was written, ready for JSON.

    The folder appears when it is complete. `base_uri` is where the base is now, when it is no
    longer where the trial found it. Raises ConfigError for a folder that is in use or a run that is
    no trial, UsageError where the run has no weights or PEFT or transformers has no such form, and
    BaseModelError where the base cannot be had or is another; RanksweepError for a full disk.
    """
    check_free(out)
    run = find_trial(tracking_uri, run_id)
    with _made_whole(out) as folder:
        about = {"peft": _peft, "merged": _merged, "plan": _plan}[form](run, folder, base_uri)
        (folder / README).write_text(about)
        written = sorted(file for file in folder.rglob("*") if file.is_file())
        # safetensors keeps its files from others; who may read the folder may read them.
        for file in written:
            file.chmod((folder / README).stat().st_mode)
        files = [str(file.relative_to(folder)) for file in written]
    return {"run_id": run_id, "method": run.method, "to": form, "out": str(out), "files": files}


def check_free(out: Path) -> None:
    """Raise ConfigError where a folder could not be made at `out` without touching something."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        what = "is not empty" if out.is_dir() else "is no folder"
        raise ConfigError(f"--out: {out} {what}; name a folder that is not there yet")


@contextmanager
def _made_whole(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` where nothing is raised."""
    place = out.resolve()  # "." has no name
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"--out: {out} cannot be made ({reason}); name another") from error
    try:
        folder = aside / place.name
        folder.mkdir()
        yield folder
        check_free(out)  # another export may have been quicker
        if place.exists():  # somebody may be in it: it is filled, not replaced
            for file in folder.iterdir():
                file.rename(place / file.name)
        else:
            folder.rename(place)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RanksweepError(
            f"--out: {out} could not be written ({reason}); make room or name another place"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


# -- the three forms -------------------------------------------------------------------------------


def _plan(run: TrialRun, folder: Path, base_uri: str | None) -> str:
    plan, choice = run.plan(), run.artifact(CHOICE)
    (folder / PLAN).write_bytes(plan.to_bytes())
    (folder / "plan.json").write_text(json.dumps(plan.summary(), indent=2) + "\n")
    (folder / CHOICE).write_bytes(choice)
    content = (
        "rows and columns of every block, int32\n  `stage<i>/<module>/block<j>/rows` and `/cols`; "
        "rank, scale and learning-rate factor of each are in\n  the metadata"
        if plan.tuner is None
        else "no blocks, for a baseline has none; its settings are in the metadata, as `tuner`"
    )
    return f"""\
# {_title(run)}: the plan

What this trial trains, without what it has learned. Base: `{run.facts.base_uri or "?"}`.

- `plan.safetensors`: {content}
- `plan.json`: the same without the indices, and the numbers of parameters
- `choice.yaml`: the method and its settings, as `ranksweep plan --choice` takes them
{_origin(run)}"""


def _peft(run: TrialRun, folder: Path, base_uri: str | None) -> str:
    plan, trained = run.plan(), run.trained()
    base = load_its_base(trained.facts, base_uri)
    with restored(trained, plan, base) as adaptation:
        config = write_peft_checkpoint(folder, adaptation, plan, base, trained.facts.task_kind)
    notes = []
    if head := ", ".join(config["modules_to_save"] or ()):
        notes.append(
            f"The task's head ({head}) is no low-rank update: it goes along whole, as "
            "modules_to_save. That the base lacks it, transformers tells while it loads."
        )
    labels = ", ".join(trained.facts.labels)
    notes.append(f"Its outputs are, in order: {labels}. PEFT has no place for their names.")
    if plan.tuner is not None and plan.tuner.name not in ("rslora", "dora", "ia3"):
        notes.append(f"It is a plain LoRA that computes what {run.method} has trained.")
    if len(plan.stages) > 1:
        notes.append(f"The {len(plan.stages)} stages of the plan are stacked along the rank.")
    if _is_partial(plan):
        notes.append(
            "Blocks on some rows or columns are widened with zeros, which training it further "
            "would train too."
        )
    notes.append(_WHERE)
    notes.append("Dropout and learning-rate factors of the training are not in it.")
    if trained.facts.dtype != "float32":
        notes.append(
            f"It was trained on the base in {trained.facts.dtype}; its own numbers are kept in "
            "float32."
        )
    return f"""\
# {_title(run)}: a checkpoint of PEFT

```python
{_loading_code(base, trained.facts, folder.name)}
```

{_bullets(notes)}
{_origin(run)}"""


def _is_partial(plan: Plan) -> bool:
    """Whether some block leaves out rows or columns of its matrix."""
    shapes = {target.name: target.shape for target in plan.targets}
    return any(
        (len(block.rows), len(block.cols)) != shapes[name]
        for stage in plan.stages
        for name, blocks in stage.items()
        for block in blocks
    )


def _merged(run: TrialRun, folder: Path, base_uri: str | None) -> str:
    plan, trained = run.plan(), run.trained()
    base = load_its_base(trained.facts, base_uri)
    with restored(trained, plan, base) as adaptation:
        write_merged_checkpoint(folder, adaptation, base, trained.facts.labels)
    loader = auto_class(trained.facts.task_kind).__name__
    notes = [
        "The update is added to the base's weights, and the head is in its place; no adapter is "
        "needed to use it.",
        f"Its outputs are, in order: {', '.join(trained.facts.labels)} (id2label in config.json).",
        _WHERE,
        f"The weights are {trained.facts.dtype}, as the base was trained on; each is rounded once.",
    ]
    return f"""\
# {_title(run)}: merged into its base

```python
from transformers import {loader}

model = {loader}.from_pretrained({folder.name!r})
```

{_bullets(notes)}
{_origin(run)}"""


# -- what the README says --------------------------------------------------------------------------


def _loading_code(base: Base, facts: TrainedFacts, folder: str) -> str:
    """Lines of Python that load the checkpoint in `folder`."""
    name, arguments = from_pretrained_arguments(base.uri)
    given = {"num_labels": repr(len(facts.labels)), "dtype": repr(facts.dtype)}
    names = dict(enumerate(facts.labels))
    given |= {"id2label": repr(names), "label2id": repr({name: i for i, name in names.items()})}
    if base.head.resized:
        given["ignore_mismatched_sizes"] = "True"
    given |= {key: repr(value) for key, value in arguments.items()}
    text = base.model.config.get_text_config()
    padding = getattr(text, "pad_token_id", None)
    if padding != getattr(load_config(base.uri).get_text_config(), "pad_token_id", None):
        given["pad_token_id"] = repr(padding)  # where a decoder finds the end of a row
    imported = [auto_class(facts.task_kind).__name__]
    if "gguf_file" in given:
        given["quantization_config"] = "GgufConfig(dequantize=True)"
        imported.append("GgufConfig")
    options = "".join(f"    {key}={value},\n" for key, value in given.items())
    return (
        f"from peft import PeftModel\nfrom transformers import {', '.join(sorted(imported))}\n\n"
        f"base = {imported[0]}.from_pretrained(\n    {name!r},\n{options})\n"
        f"model = PeftModel.from_pretrained(base, {folder!r})"
    )


def _title(run: TrialRun) -> str:
    return f"{run.facts.task or 'a task'} by {run.method}"


def _origin(run: TrialRun) -> str:
    told = {
        "run": run.run_id,
        "tracking": redacted(absolute_uri(run.recorded.uri)),
        "sweep": run.facts.sweep,
        "base": run.facts.base_uri,
        "base fingerprint": run.facts.base,
        "plan digest": run.facts.plan_digest,
        "choice": choice_tag(run.facts.choice or {}),
    }
    lines = [f"| {key} | `{value}` |" for key, value in told.items() if value]
    return "\n".join(["", "| from | |", "|---|---|", *lines, ""])


def _bullets(notes: list[str]) -> str:
    return "\n".join(f"- {note}" for note in notes)
