"""What a confirmation said of the test rows, as a person looks at it: tables and one picture.

The texts of the rows are not in it: a row is named by its place in the split.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from trainables.tasks.measured_rows import (
    ClassRows,
    MeasuredRows,
    RowStatistics,
    SuiteRows,
    read_measured_rows,
)

Files = dict[str, str | bytes]
DPI = 110
MOST_DRAWN = 60
"""Classes of the largest confusion matrix that is drawn; its table has them all."""
MOST_ROWS = 200_000
"""Rows of the longest table of predictions."""
_NUMBERED = 20  # classes up to which each cell has its number
_RATES = ("pearson", "spearman")


def files_of_rows(content: bytes, labels: Mapping[str, Sequence[str]]) -> Files:
    """Path -> content of what is shown of the file of measured rows.

    `labels` has the classes of a task by index under "", or those of each member of a suite under
    its name; a member's files lie in a folder of its name. A task of classes has `confusion.png`,
    `confusion.json`, `per_class.csv` and `predictions.csv`, every other `predictions.csv` and
    `distribution.png`.
    """
    rows = read_measured_rows(content)
    if not isinstance(rows, SuiteRows):
        return _files(rows, labels.get("", ()))
    return {
        f"{member}/{name}": data
        for member, each in rows.members.items()
        for name, data in _files(each, labels.get(member, ())).items()
    }


def _files(rows: MeasuredRows, labels: Sequence[str]) -> Files:
    if isinstance(rows, ClassRows):
        return _of_classes(rows, labels)
    return _of_statistics(rows) if isinstance(rows, RowStatistics) else {}


# -- classes --------------------------------------------------------------------------------------


def confusion(rows: ClassRows) -> NDArray[np.int64]:
    """How many rows of each class (lines) are predicted to be of each (columns)."""
    matrix = np.zeros((rows.classes, rows.classes), np.int64)
    np.add.at(matrix, (rows.labels, rows.predictions), 1)
    return matrix


def _of_classes(rows: ClassRows, labels: Sequence[str]) -> Files:
    names = [labels[i] if i < len(labels) else str(i) for i in range(rows.classes)]
    matrix = confusion(rows)
    files: Files = {
        "confusion.json": json.dumps({"classes": names, "rows": matrix.tolist()}),
        "per_class.csv": _per_class(matrix, names),
        "predictions.csv": _predicted(rows, names),
    }
    if rows.classes <= MOST_DRAWN:
        files["confusion.png"] = _picture(lambda: _drawn_matrix(matrix, names))
    return files


def _per_class(matrix: NDArray[np.int64], names: Sequence[str]) -> str:
    """Precision, recall and F1 of each class; empty where they are not defined."""
    hits, true, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    lines = [
        (
            name,
            int(true[i]),
            int(predicted[i]),
            int(hits[i]),
            _share(hits[i], predicted[i]),
            _share(hits[i], true[i]),
            _share(2 * hits[i], true[i] + predicted[i]),
        )
        for i, name in enumerate(names)
    ]
    head = ("class", "rows", "predicted", "right", "precision", "recall", "f1")
    return _csv(head, lines)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.6g}" if whole else ""


def _predicted(rows: ClassRows, names: Sequence[str]) -> str:
    """A line for each row; with a probability for each class where the scores were kept."""
    head = ["row", "label", "prediction", "right"]
    lines: list[list[object]] = [
        [i, names[label], names[said], str(label == said).lower()]
        for i, (label, said) in enumerate(zip(rows.labels, rows.predictions, strict=True))
    ][:MOST_ROWS]
    if rows.logits is not None:
        head += [f"p({name})" for name in names]
        shifted = np.exp(rows.logits - rows.logits.max(axis=1, keepdims=True))
        shares = shifted / shifted.sum(axis=1, keepdims=True)
        for line, each in zip(lines, shares, strict=False):
            line += [f"{share:.6g}" for share in each]
    return _csv(head, lines)


def _drawn_matrix(matrix: NDArray[np.int64], names: Sequence[str]) -> Figure:
    """Shares of each class's rows as shades, with the counts where there is room for them."""
    count = len(names)
    side = min(max(2.2 + 0.5 * count, 3.6), 16.0)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.add_subplot()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(shown, ax=axes, label="share of the class's rows", shrink=0.8)
    if count <= _NUMBERED:
        for i, j in np.ndindex(matrix.shape):
            ink = "white" if shares[i, j] > 0.55 else "black"
            axes.text(j, i, f"{matrix[i, j]:,}", ha="center", va="center", color=ink, fontsize=8)
    short = [name if len(name) <= 20 else f"{name[:19]}…" for name in names]
    axes.set_xticks(range(count), short, rotation=45 if count > 2 else 0, fontsize=8)
    axes.set_yticks(range(count), short, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    right, rows = int(np.trace(matrix)), int(matrix.sum())
    axes.set_title(f"test: {right:,} of {rows:,} rows are right", loc="left", fontsize=10)
    return figure


# -- every other kind -----------------------------------------------------------------------------


def _of_statistics(rows: RowStatistics) -> Files:
    head, columns = _columns(rows)
    told = {"label": rows.right, "prediction": rows.answers}
    known = {name: each for name, each in told.items() if each is not None}
    numbers = {} if known and rows.metric in _RATES else dict(zip(head, columns, strict=True))
    table = {"row": range(len(rows)), **known, **numbers}
    lines = [
        [f"{cell:.9g}" if isinstance(cell, float) else cell for cell in line]
        for line in islice(zip(*table.values(), strict=True), MOST_ROWS)
    ]
    return {
        "predictions.csv": _csv(list(table), lines),
        "distribution.png": _picture(lambda: _drawn_rows(rows.metric, head, columns)),
    }


def _columns(rows: RowStatistics) -> tuple[list[str], list[NDArray[np.float64]]]:
    """What can be read in a row's statistics (docs/files.md, test_rows.safetensors)."""
    numbers = rows.statistics
    match rows.metric:
        case "spearman":
            return ["label", "prediction"], [numbers[:, 0], numbers[:, 1]]
        case "pearson":  # both were moved by the mean label
            names = ["label_less_mean_label", "prediction_less_mean_label"]
            return names, [numbers[:, 1], numbers[:, 2]]
        case "loss" | "perplexity":
            targets = numbers[:, 1]
            return ["loss", "targets"], [numbers[:, 0] / np.maximum(targets, 1), targets]
        case _ if numbers.shape[1] == 2:
            return [rows.metric], [numbers[:, 0]]
        case _:
            names = [f"statistic_{k}" for k in range(numbers.shape[1])]
            return names, list(numbers.T)


def _drawn_rows(metric: str, head: Sequence[str], columns: Sequence[NDArray[np.float64]]) -> Figure:
    """Label against prediction where both are known, else how a row's value is distributed."""
    figure = Figure(figsize=(6.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if metric in _RATES:
        axes.scatter(columns[0], columns[1], s=8, alpha=0.5, color="#0072b2", linewidths=0)
        axes.axline((0, 0), slope=1, color="0.5", linewidth=1)
        axes.set_xlabel(head[0].replace("_", " "))
        axes.set_ylabel(head[1].replace("_", " "))
    else:
        values = columns[0]
        values = values[np.isfinite(values)]
        axes.hist(values, bins=min(40, max(10, len(values) // 20)), color="#0072b2")
        axes.set_xlabel(f"{head[0].replace('_', ' ')} of a row")
        axes.set_ylabel("rows")
    axes.set_title(f"test: {len(columns[0]):,} rows, {metric}", loc="left", fontsize=10)
    return figure


# -- files ----------------------------------------------------------------------------------------


def _csv(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(head)
    table.writerows(lines)
    return written.getvalue()


def _picture(draw: Callable[[], Figure]) -> bytes:
    figure = draw()
    FigureCanvasAgg(figure)
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=DPI, metadata={"Software": None})
    return held.getvalue()
