"""The commands plan and count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from search.cli.app import ChoiceFile, JsonOption, StoreOption, app
from search.cli.output import Result, count_range_text, prints_result, share_text, write_out
from search.cli.profiles import profile_of
from spaces.errors import BaseModelError, ConfigError

if TYPE_CHECKING:
    from spaces.plan import Plan
    from spaces.target import BaseSize, TargetModule
    from trainables.adaptations.other_trainers import OtherTrainer


@app.command()
@prints_result
def plan(
    *,
    choice_file: ChoiceFile,
    profile_ref: Annotated[
        str | None,
        typer.Option("--profile", metavar="FILE|KEY", help="A profile: its file or its key."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="The base, for a choice without a profile."),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option("--targets", metavar="a,b,c", help="With --base: suffixes, or all-linear."),
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", metavar="KIND", help="With --base: kind of task.")
    ] = "classification",
    form: Annotated[
        Literal["peft", "axolotl", "llamafactory", "trl"] | None,
        typer.Option("--as", help="Give the LoRA that the choice means as that tool's own keys."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Write PLAN.safetensors, or the tool's file, here."
        ),
    ] = None,
    store: StoreOption = None,
    json_output: JsonOption = False,
) -> Result:
    """Derive the plan that a choice means for a profiled base."""
    from search.config.yaml_file import read_mapping
    from spaces.methods.registry import parse_choice
    from spaces.planner import Planner

    if (profile_ref is None) == (base is None):
        raise ConfigError(
            "--profile: give either a profile, or --base and --targets for a choice that needs none"
        )
    if (base is None) != (targets is None):
        raise ConfigError(
            "--targets: goes with --base; list suffixes such as query,value (a profile knows its "
            "own modules)"
        )
    choice = parse_choice(read_mapping(choice_file))
    if profile_ref is not None:
        loaded = profile_of(profile_ref, store)
        planner = Planner(loaded.targets, loaded)
    else:
        assert base is not None
        assert targets is not None
        found, size = _targets_of(base, kind, targets)
        planner = Planner(found, size=size)
    made = planner.plan(choice)
    if form == "peft":
        return _lora_config(made, out)
    if form is not None:
        return _trainer_config(made, form, choice.learning_rate, out)
    if out is not None:
        write_out(out, made.to_bytes())
    return Result(
        made.summary(), [_plan_table(made), *_longer(made.length), f"digest {made.digest}"]
    )


def _longer(length: int) -> list[str]:
    """A line where a trial is longer than others."""
    return [f"a trial takes {length} times the epochs of others"] if length > 1 else []


def _lora_config(made: Plan, out: Path | None) -> Result:
    """The LoraConfig of a plan, written or printed; printed, it is JSON in any case."""
    from trainables.adaptations.lora_config import lora_config_of

    config = lora_config_of(made)
    text = json.dumps(config, indent=2)
    if out is None:
        return Result(config, [text])
    write_out(out, f"{text}\n".encode())
    return Result(config, [f"wrote {out}"])


def _trainer_config(
    made: Plan, trainer: OtherTrainer, learning_rate: float, out: Path | None
) -> Result:
    """A plan as a trainer's YAML, written or printed.

    What its keys cannot say it is given as an untrained adapter beside the file, where it can go
    on with one.
    """
    import yaml

    from trainables.adaptations.lora_config import lora_config_of
    from trainables.adaptations.other_trainers import (
        ADAPTER_KEYS,
        keys_of_adapter,
        lacking,
        trainer_keys,
    )

    config, wrote = lora_config_of(made), []
    lacks = lacking(trainer, config)
    if lacks is None:
        keys = trainer_keys(trainer, config, learning_rate)
    elif trainer not in ADAPTER_KEYS or "use_dora" in config or "init_lora_weights" in config:
        raise ConfigError(
            f"--as {trainer}: {lacks}; use --as peft, and give the LoraConfig to "
            "get_peft_model, or to TRL's SFTTrainer(..., peft_config=...)"
        )
    elif out is None:
        raise ConfigError(
            f"--as {trainer}: {lacks}; give --out FILE.yaml, and an untrained adapter is written "
            "beside it, for the file to name"
        )
    else:
        from trainables.trained.untrained_adapter import write_untrained_adapter

        folder = out.with_name(f"{out.stem}-adapter").absolute()
        if folder.exists():
            raise ConfigError(f"--out: {folder} is there already; remove it or name another file")
        write_untrained_adapter(folder, config, made)
        keys = keys_of_adapter(trainer, config, str(folder), learning_rate)
        wrote = [f"wrote {folder}"]
    text = yaml.safe_dump(keys, sort_keys=False, width=1000)
    if out is None:
        return Result(keys, [text.rstrip()])
    write_out(out, text.encode())
    return Result(keys, [*wrote, f"wrote {out}"])


def _targets_of(base: str, kind: str, targets: str) -> tuple[tuple[TargetModule, ...], BaseSize]:
    """The modules of a base that suffixes name, and its size, from its config alone."""
    from trainables.bases.structure import meta_base

    patterns = tuple(part.strip() for part in targets.split(",") if part.strip())
    if not patterns:
        raise ConfigError("--targets: names no module; list suffixes such as query,value")
    try:
        found = meta_base(base, kind, 2, patterns)
    except BaseModelError as error:
        raise ConfigError(str(error).replace("profile.target_modules", "--targets")) from None
    return found.targets, found.size


def _plan_table(made: Plan) -> Table:
    shapes = {target.name: target.shape for target in made.targets}
    table = Table(
        title=f"{made.trainable_params:,} parameters, {made.peak_trainable_params:,} at one time",
        title_justify="left",
    )
    for name in ("stage", "modules", "rank", "rows", "cols", "params"):
        table.add_column(name, justify="right")
    for number, stage in enumerate(made.stages):
        blocks = [block for each in stage.values() for block in each]
        first = {name: each[0] for name, each in stage.items()}
        ranks = [block.rank for block in blocks]
        table.add_row(
            str(number),
            f"{len(stage)} of {len(made.targets)}",
            count_range_text(min(ranks, default=0), max(ranks, default=0)),
            share_text(sum(len(b.rows) for b in first.values()), sum(shapes[n][0] for n in first)),
            share_text(sum(len(b.cols) for b in first.values()), sum(shapes[n][1] for n in first)),
            f"{sum(block.params for block in blocks):,}",
        )
    return table


@app.command()
@prints_result
def count(
    *,
    base: Annotated[
        str,
        typer.Option("--base", metavar="BASE", help="hub:org/name, path:DIR or package:name/dir."),
    ],
    targets: Annotated[
        str,
        typer.Option("--targets", metavar="a,b,c", help="Suffixes of module names, or all-linear."),
    ],
    choice_file: ChoiceFile,
    kind: Annotated[
        str,
        typer.Option("--kind", metavar="KIND", help="Kind of task to put a head on for."),
    ] = "classification",
    dominant_fraction: Annotated[
        float | None,
        typer.Option(
            "--dominant-fraction", metavar="F", help="Share of the rows taken to be dominant."
        ),
    ] = None,
    profile_ref: Annotated[
        str | None,
        typer.Option("--profile", metavar="FILE|KEY", help="Count exactly, by this profile."),
    ] = None,
    store: StoreOption = None,
    json_output: JsonOption = False,
) -> Result:
    """Count the trainable parameters of a choice from the base's config; no weights are read."""
    from search.config.yaml_file import read_mapping
    from spaces.methods.registry import parse_choice
    from spaces.planner import Planner
    from trainables.bases.structure import base_parameters

    choice = parse_choice(read_mapping(choice_file))
    if dominant_fraction is not None and profile_ref is not None:
        raise ConfigError("--dominant-fraction: contradicts --profile; give one of the two")
    if dominant_fraction is not None and not 0 <= dominant_fraction <= 1:
        raise ConfigError(f"--dominant-fraction: {dominant_fraction} is no share; use 0 to 1")
    loaded = profile_of(profile_ref, store) if profile_ref is not None else None
    found, size = _targets_of(base, kind, targets)
    whole = base_parameters(base)
    least, most = Planner(found, loaded, size).params_range(choice, dominant_fraction)
    exact = least == most
    percents = [100 * least / whole, 100 * most / whole]
    table = Table("method", "modules", "params", "% of the base")
    shares = " to ".join(f"{percent:.3f}" for percent in percents[: 1 if exact else 2])
    table.add_row(choice.method, str(len(found)), count_range_text(least, most), shares)
    document = {
        "method": choice.method,
        "base": base,
        "base_params": whole,
        "modules": len(found),
        "exact": exact,
        "trainable_params": least if exact else [least, most],
        "percent": percents[0] if exact else percents,
    }
    if choice.length > 1:
        document["length"] = choice.length
    return Result(document, [table, *_longer(choice.length)])
