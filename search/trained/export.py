"""A trained trial on its way out: a PEFT checkpoint, a checkpoint of transformers, or its plan."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import yaml

from search.queries.trial_run import CHOICE, PLAN, TrialRun, find_trial
from search.trained.its_task import its_files, task_settings
from search.trained.readme import (
    Written,
    base_note,
    bullets,
    merged_code,
    origin,
    peft_code,
    scores,
    title,
)
from spaces.errors import ConfigError, RanksweepError, UsageError
from spaces.methods.registry import completed
from spaces.plan import Plan
from trainables.adaptations.adaptation import Adaptation
from trainables.adaptations.pruning import Pruned, pruned
from trainables.tasks.kinds.kind import Kind
from trainables.tasks.kinds.registry import kind_of
from trainables.tasks.kinds.usage import Tokenizing
from trainables.tasks.settings import TaskSettings
from trainables.trained.merged_checkpoint import write_merged_checkpoint
from trainables.trained.peft_checkpoint import write_peft_checkpoint
from trainables.trained.processor import write_processor
from trainables.trained.restored import load_its_base, restored

Form = Literal["peft", "merged", "plan"]
README = "README.md"


def export(
    tracking_uri: str,
    run_id: str,
    form: Form,
    out: Path,
    base_uri: str | None = None,
    *,
    as_searched: bool = False,
    own_code: bool = False,
    prune: float | None = None,
) -> dict[str, Any]:
    """Write a trial as a new folder `out`; returns what was written, ready for JSON.

    Of a trial whose choice was confirmed, the confirmation that is best on dev is written, unless
    it is wanted `as_searched`; a plan is the same for all. The folder appears when it is complete.
    `base_uri` is where the base is now, when it is no longer where the trial found it. Code of the
    task's own, of a kind or a metric, is imported only where `own_code` is wanted. `prune` leaves
    that share (above 0, at most 1) of the update's singular components, those of the largest
    values, and has what was cut told as `pruned`.

    Raises ConfigError for a folder that is in use or a run that is no trial, UsageError where the
    run has no weights, PEFT or transformers has no such form, code of the task's own is not
    wanted, or ranks cannot be cut, and BaseModelError where the base cannot be had or is another;
    RanksweepError for a full disk.
    """
    check_free(out)
    if prune is not None:
        _check_prune(prune, form)
    asked = find_trial(tracking_uri, run_id)
    run = asked if as_searched or form == "plan" else asked.confirmed_best()
    subject = Written(run, asked, run.confirmations())
    with _made_whole(out) as folder:
        cut: Pruned | None = None
        if form == "plan":
            about = _plan(subject, folder)
        else:
            write = {"peft": _peft, "merged": _merged}[form]
            about, cut = write(subject, folder, base_uri, own_code, prune)
        (folder / README).write_text(about)
        written = sorted(file for file in folder.rglob("*") if file.is_file())
        # safetensors keeps its files from others; who may read the folder may read them.
        for file in written:
            file.chmod((folder / README).stat().st_mode)
        files = [str(file.relative_to(folder)) for file in written]
    confirms = asked.run_id if run.run_id != asked.run_id else None
    return {
        "run_id": run.run_id,
        "confirms": confirms,
        "method": run.method,
        "to": form,
        "out": str(out),
        "files": files,
        **({} if cut is None else {"pruned": _told(cut)}),
    }


def _check_prune(share: float, form: Form) -> None:
    if not 0 < share <= 1:  # NaN too
        raise UsageError(f"--prune: {share:g} is no share of a whole; give one above 0, at most 1")
    if form == "plan":
        raise UsageError("--prune: a plan has no weights to prune; use --to peft or --to merged")


def _pruned(adaptation: Adaptation, share: float | None) -> Pruned | None:
    """The update that is left of a trial where it is to be pruned. Raises UsageError."""
    if share is None:
        return None
    try:
        parts = adaptation.parts()
    except UsageError as error:
        reason = str(error).removeprefix("method: ").partition(";")[0]
        raise UsageError(f"--prune: {reason}; export it without --prune") from error
    return pruned(parts, share)


def _told(cut: Pruned) -> dict[str, Any]:
    """What was cut, ready for JSON."""
    told = (field.name for field in fields(cut) if field.name != "factors")
    return {name: getattr(cut, name) for name in told}


def _cut_note(cut: Pruned) -> str:
    """What was cut, for the README."""
    return (
        f"It is pruned: of the {cut.ranks_before:,} singular components of the trained update the "
        f"{cut.ranks:,} with the largest values over all modules are left "
        f"({cut.params:,} numbers of {cut.params_before:,}); what is cut is {cut.error:.2%} of the "
        "update by its Frobenius norm. The scores above are those before it was cut."
    )


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


def _plan(written: Written, folder: Path) -> str:
    run = written.run
    plan, choice = run.plan(), completed(yaml.safe_load(run.artifact(CHOICE)))
    (folder / PLAN).write_bytes(plan.to_bytes())
    (folder / "plan.json").write_text(json.dumps(plan.summary(), indent=2) + "\n")
    (folder / CHOICE).write_text(yaml.safe_dump(choice, sort_keys=False))
    content = (
        "rows and columns of every block, int32\n  `stage<i>/<module>/block<j>/rows` and `/cols`; "
        "rank, scale and learning-rate factor of each are in\n  the metadata"
        if plan.tuner is None
        else "no blocks, for a baseline has none; its settings are in the metadata, as `tuner`"
    )
    return f"""\
# {title(run)}: the plan

What this trial trains, without what it has learned. Base: `{run.facts.base_uri or "?"}`.

- `plan.safetensors`: {content}
- `plan.json`: the same without the indices, and the numbers of parameters
- `choice.yaml`: the method and its settings, as `ranksweep plan --choice` takes them
{origin(written)}"""


def _peft(
    written: Written, folder: Path, base_uri: str | None, own_code: bool, prune: float | None
) -> tuple[str, Pruned | None]:
    run = written.run
    plan, trained = run.plan(), run.trained(own_code=own_code)
    kind, settings, tokenizing = _task(run, own_code)
    base = load_its_base(trained.facts, base_uri)
    with restored(trained, plan, base) as adaptation:
        cut = _pruned(adaptation, prune)
        update = None if cut is None else cut.factors
        config = write_peft_checkpoint(
            folder, adaptation, plan, base, trained.facts.task_kind, update
        )
    write_processor(base.uri, folder, tokenizing)
    usage = kind.usage(settings, trained.facts.labels, folder.name, base)
    notes = [usage.note, base_note(base)]
    if cut is not None:
        notes.append(_cut_note(cut))
    if head := ", ".join(config["modules_to_save"] or ()):
        notes.append(
            f"The task's head ({head}) is no low-rank update: it goes along whole, as "
            "modules_to_save. That the base lacks it, transformers tells while it loads."
        )
    if labels := ", ".join(trained.facts.labels):
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
    notes.append("Dropout and learning-rate factors of the training are not in it.")
    if trained.facts.dtype != "float32":
        notes.append(
            f"It was trained on the base in {trained.facts.dtype}; its own numbers are kept in "
            "float32."
        )
    code = peft_code(usage, base, trained.facts, folder.name)
    return _readme(written, "a checkpoint of PEFT", code, notes), cut


def _is_partial(plan: Plan) -> bool:
    """Whether some block leaves out rows or columns of its matrix."""
    shapes = {target.name: target.shape for target in plan.targets}
    return any(
        (len(block.rows), len(block.cols)) != shapes[name]
        for stage in plan.stages
        for name, blocks in stage.items()
        for block in blocks
    )


def write_merged(written: Written, folder: Path, base_uri: str | None, own_code: bool) -> str:
    """Write a trial merged into its base into a folder that is there; returns its README."""
    return _merged(written, folder, base_uri, own_code, None)[0]


def _merged(
    written: Written, folder: Path, base_uri: str | None, own_code: bool, prune: float | None
) -> tuple[str, Pruned | None]:
    run = written.run
    plan, trained = run.plan(), run.trained(own_code=own_code)
    kind, settings, tokenizing = _task(run, own_code)
    base = load_its_base(trained.facts, base_uri)
    labels = trained.facts.labels
    with restored(trained, plan, base) as adaptation:
        cut = _pruned(adaptation, prune)
        update = None if cut is None else cut.factors
        write_merged_checkpoint(folder, adaptation, base, labels, tokenizing, update)
    usage = kind.usage(settings, labels, folder.name, base)
    head = ", and the head is in its place" if base.head_modules else ""
    notes = [
        usage.note,
        f"The update is added to the base's weights{head}; no adapter is needed to use it, and no "
        "base.",
        f"The weights are {trained.facts.dtype}, as the base was trained on; each is rounded once.",
    ]
    if labels:
        notes.insert(
            2, f"Its outputs are, in order: {', '.join(labels)} (id2label in config.json)."
        )
    if cut is not None:
        notes.append(_cut_note(cut))
    code = merged_code(usage, trained.facts, folder.name)
    return _readme(written, "merged into its base", code, notes), cut


def _task(run: TrialRun, own_code: bool) -> tuple[Kind, TaskSettings, Tokenizing | None]:
    """The task of a trial, and what the tokenizer beside its model does by itself."""
    settings = task_settings(run, own_code=own_code)
    kind = kind_of(settings.kind)
    with its_files(run):
        return kind, settings, kind.tokenizing(settings)


def _readme(written: Written, what: str, code: str, notes: list[str]) -> str:
    return f"""\
# {title(written.run)}: {what}

{scores(written)}

```python
{code}
```

{bullets(notes)}
{origin(written)}"""
