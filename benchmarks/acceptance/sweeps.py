"""Whole sweeps by `ranksweep launch`, on MiniLM from its package and drawn sentences."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from conditions import BASE, TARGET_MODULES

from acceptance.ground import Found, Ground

GOOD, BAD = ("good", "fine", "great"), ("bad", "poor", "awful")
WORDS = (*GOOD, *BAD, "film", "plot", "scene", "actor", "a", "the")
ROWS = {"train": 64, "dev": 32}


def cpu_worker(ground: Ground) -> Found:
    """Trials done by a worker that asks for no GPU, where there is one."""
    return _swept(ground, "cpu", 1, 1, {"CPU": 1})


def gpu_1(ground: Ground) -> Found:
    """Trials done by a worker that has the GPU to itself."""
    return _swept(ground, "whole", 4, 1, _with_gpu(ground, 1))


def gpu_half(ground: Ground) -> Found:
    """Trials done by two groups that share the GPU."""
    return _swept(ground, "halves", 4, 2, _with_gpu(ground, 0.5))


def _with_gpu(ground: Ground, share: float) -> dict[str, float]:
    return {"CPU": 1} if ground.rehearsal else {"CPU": 2, "GPU": share}


def _swept(
    ground: Ground, name: str, trials: int, groups: int, resources: dict[str, float]
) -> Found:
    """How many trials of a sweep, whose profile is part of it, are complete."""
    folder = ground.folder / name
    folder.mkdir()
    (folder / "sweep.yaml").write_text(
        yaml.safe_dump(_sweep(folder, name, trials, groups, resources))
    )
    command = [sys.executable, "-m", "search.cli.main", "launch", "sweep.yaml", "--json"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ranksweep launch ended with {done.returncode}; see above")
    result = json.loads(done.stdout)
    seconds = ", ".join(f"{stage} {took:.0f} s" for stage, took in result["seconds"].items())
    return Found(result["states"].get("complete", 0), seconds)


def _sweep(
    folder: Path, name: str, trials: int, groups: int, resources: dict[str, float]
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    for split, rows in ROWS.items():
        drawn = [rng.choice(WORDS, 9) for _ in range(rows)]
        table = {
            "sentence": [" ".join(words) for words in drawn],
            "label": [int(np.isin(w, GOOD).sum() > np.isin(w, BAD).sum()) for w in drawn],
        }
        pq.write_table(pa.table(table), folder / f"{split}.parquet")
    return {
        "name": name,
        "base": BASE,
        "task": {
            "name": "drawn",
            "data": {split: str(folder / f"{split}.parquet") for split in ROWS},
            "text": ["sentence"],
            "max_length": 32,
        },
        "profile": {"target_modules": list(TARGET_MODULES), "calibration_batches": 2},
        "space": {"methods": ["lora", "joint"]},
        "search": {"trials": trials, "scheduler": {"name": "none"}, "repeats": None},
        "train": {"epochs": 1},
        "cluster": {"groups": groups, "resources_per_worker": resources},
        "confirm": None,
    }
