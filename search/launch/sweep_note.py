"""What a sweep's run in MLflow says of the sweep itself: its numbers, its description, its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from search.config.sweep import SweepConfig
from search.launch.prepare import SweepInputs
from search.launch.result import LaunchResult
from search.queries.best_choice import BestChoice
from search.queries.comparison import Confirmation
from search.queries.differences import mean_interval
from search.tracking.datasets import DatasetFacts, SourceType
from search.tracking.run_names import short_rate
from search.wording import figure
from trainables.tasks.settings import DataSettings, TaskSettings
from trainables.tasks.suite import member_settings
from trainables.tasks.task import Task

FIGURES = ("pareto-front", "comparison", "importance", "learning-curves")
"""Figures of the report that a description shows; the others are behind its link."""


def summary_metrics(config: SweepConfig, result: LaunchResult) -> dict[str, float]:
    """The sweep's own numbers, by the names that they have in MLflow."""
    metric = config.search.metric
    told = {f"trials.{state}": float(count) for state, count in result.states.items()}
    told["seconds"] = sum(result.seconds.values())
    if result.best:
        best = result.best[0]
        told[f"best_{metric}"] = best.value
        told["trainable_params"] = float(best.trainable_params)
    if not result.confirmation:
        return told
    first = result.confirmation[0]
    name = f"test_{first.metric}"
    told[name] = first.mean
    told["trainable_params"] = float(first.trainable_params)
    interval = mean_interval(first.values)
    if interval is not None and len(set(first.values)) > 1:  # seeds that agree tell none
        told[f"{name}_low"], told[f"{name}_high"] = interval
    lora = next((row for row in result.confirmation if row.arm == "lora"), None)
    if lora is not None and lora is not first:
        told[f"{name}_above_lora"] = first.mean - lora.mean
        if first.difference is not None:
            told[f"{name}_above_lora_low"], told[f"{name}_above_lora_high"] = first.difference
    return told


def sweep_note(
    config: SweepConfig,
    result: LaunchResult,
    experiment_id: str,
    report: Sequence[str] = (),
) -> str:
    """The description of a sweep's run, in Markdown: the answer, its tables, where to look.

    `report` has the paths of the run's artifacts that belong to its report; its figures are shown.
    """
    return "\n\n".join(part for part in _parts(config, result, experiment_id, report) if part)


def _parts(
    config: SweepConfig, result: LaunchResult, experiment_id: str, report: Sequence[str]
) -> Iterator[str]:
    yield _answer(config, result)
    yield _links(result.sweep_run_id, experiment_id, report)
    metric = config.search.metric
    if result.confirmation:
        yield f"**On test** ({metric}, {len(result.confirmation[0].values)} seeds)"
        yield _confirmed_table(result.confirmation)
        yield from result.fallen
    if result.best:
        yield f"**Best of each method on dev** ({metric})"
        yield _best_table(result.best, metric)
    yield _figures(result.sweep_run_id, report)
    yield f"```\n{_commands(config, result)}\n```"


def _answer(config: SweepConfig, result: LaunchResult) -> str:
    """The answer of the report; where none was written, how far the search has come."""
    if result.answer:
        return " ".join(result.answer)
    over = sum(result.states.values())
    said = f"{over} of {config.search.trials} trials are over."
    return said if result.reason is None else f"{said} {result.reason.rstrip('.')}."


def _links(run_id: str | None, experiment_id: str, report: Sequence[str]) -> str:
    """Within the UI that shows them, whatever its address."""
    if run_id is None:
        return ""
    pages, runs = "workflowType=machine_learning", f"#/experiments/{experiment_id}/runs"
    links = [f"[Its runs, best first]({runs}?viewStateShareKey={run_id}&{pages})"]
    if any(path.endswith("index.html") for path in report):
        links.append(f"[the report]({runs}/{run_id}/artifacts/report/index.html?{pages})")
    return " · ".join(links)


def _figures(run_id: str | None, report: Sequence[str]) -> str:
    if run_id is None:
        return ""
    return "\n\n".join(
        f"![{key.replace('-', ' ')}](get-artifact?path={path}&run_uuid={run_id})"
        for key in FIGURES
        for path in report
        if path.endswith(f"/{key}.png")
    )


def _best_table(rows: Sequence[BestChoice], metric: str) -> str:
    return _table(
        ("method", metric, "parameters", "learning rate", "trial"),
        [
            (
                row.arm,
                figure(row.value),
                f"{row.trainable_params:,}",
                _rate(row.choice),
                str(row.number),
            )
            for row in rows
        ],
    )


def _confirmed_table(rows: Sequence[Confirmation]) -> str:
    def beside(row: Confirmation) -> str:
        if row.difference is None:
            return "-"
        low, high = row.difference
        return f"{low:+.4f} to {high:+.4f}"

    return _table(
        ("method", "mean", "parameters", "difference from LoRA", "verdict"),
        [
            (
                row.arm,
                figure(row.mean),
                f"{row.trainable_params:,}",
                beside(row),
                row.verdict or "-",
            )
            for row in rows
        ],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _rate(choice: Mapping[str, object]) -> str:
    rate = choice.get("learning_rate")
    return short_rate(rate) if isinstance(rate, int | float) else "-"


def _commands(config: SweepConfig, result: LaunchResult) -> str:
    lines = [f"ranksweep best --task {config.task.name} --metric {config.search.metric}"]
    if result.confirmation:
        lines.append(f"ranksweep compare {config.name}")
    lines.append(f"ranksweep report {config.name} --out report")
    return "\n".join(lines)


# -- the rows -------------------------------------------------------------------------------------


def datasets_of(config: SweepConfig, inputs: SweepInputs) -> list[DatasetFacts]:
    """The splits of a sweep's task, and of the members of its suite, as MLflow's datasets."""
    tasks = [(config.task, inputs.task)]
    tasks += [(each, inputs.task.suite[each.name]) for each in member_settings(config.task)]
    return [found for settings, task in tasks for found in _splits(settings, task)]


def _splits(settings: TaskSettings, task: Task) -> Iterator[DatasetFacts]:
    for split, rows in task.splits.items():
        if (digest := task.rows.get(split)) is not None:
            source, source_type = _source(settings.data, split)
            name, counted = f"{settings.name} {split}", {"num_rows": len(rows)}
            yield DatasetFacts(name, digest, source, source_type, split, counted)


def _source(data: DataSettings, split: str) -> tuple[dict[str, str], SourceType]:
    """Where the rows of a split are from: those of dev and test may be a part of another split."""
    named = getattr(data, split) or getattr(data, "test" if split == "dev" else "train")
    if data.hub is None:
        return {"uri": str(named)}, "local"
    told = {"path": data.hub, "config_name": data.name, "revision": data.revision, "split": named}
    return {key: value for key, value in told.items() if value is not None}, "hugging_face"
