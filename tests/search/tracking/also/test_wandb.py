"""What W&B keeps of a sweep offline is what was recorded, and nothing besides."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("wandb")

from wandb.proto.wandb_internal_pb2 import Record

from search.tracking.also.listener import Listener
from search.tracking.also.wandb import Wandb
from search.tracking.journal import Journal
from tests.search.tracking.also.told import end, epoch, look, start, told

KEY = "0123456789abcdef0123456789abcdef01234567"
BLOCK, HEADER = 32768, 7

pytestmark = pytest.mark.server  # W&B starts a process of its own


def records(file: Path) -> Iterator[Record]:
    """The records of a .wandb file: LevelDB's log format behind a header of seven bytes."""
    data, at, whole = file.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        at += HEADER
        whole += data[at : at + length]
        at += length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def kept(folder: Path) -> dict[str, dict[str, Any]]:
    """Name of a run -> what its one file holds."""
    runs: dict[str, dict[str, Any]] = {}
    for file in folder.glob("wandb/offline-run-*/run-*.wandb"):
        found: dict[str, Any] = {"rows": [], "summary": {}}
        for record in records(file):
            if record.HasField("run"):
                run = record.run
                config = {item.key: json.loads(item.value_json) for item in run.config.update}
                found |= {"group": run.run_group, "job": run.job_type, "config": config}
                name = run.display_name
            elif record.HasField("history"):
                row = {
                    item.key or item.nested_key[0]: json.loads(item.value_json)
                    for item in record.history.item
                }
                found["rows"].append({k: v for k, v in row.items() if not k.startswith("_")})
            elif record.HasField("summary"):
                for item in record.summary.update:
                    key = item.key or item.nested_key[0]
                    found["summary"][key] = json.loads(item.value_json)
            elif record.HasField("exit"):
                found["exit"] = record.exit.exit_code
        assert name not in runs, f"{name} is there twice"
        runs[name] = found
    return runs


def test_offline_files_hold_each_run_once_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    said: list[str] = []

    def make() -> Listener:
        return Wandb(tmp_path, "movie", "sweep-one", "a1b2", said.append)

    def begin(journal: Journal) -> None:
        start(journal, 0, 1)
        look(journal, 0, 2)
        epoch(journal, 0, 1, 3, 0.5)
        end(journal, 0, 4, "pruned", "stopped after epoch 1 of 2")
        start(journal, 1, 5)
        epoch(journal, 1, 1, 6, 0.25)

    assert told(tmp_path, make, begin) == []
    assert told(tmp_path, make, lambda journal: end(journal, 1, 9, "failed", "cut off")) == []

    runs = kept(tmp_path)
    assert set(runs) == {"trial-0-narrow", "trial-1-narrow"}
    pruned, failed = runs["trial-0-narrow"], runs["trial-1-narrow"]
    assert (pruned["group"], pruned["job"]) == ("sweep-one", "trial")
    assert pruned["config"]["partition.threshold"] == 0.1
    rows = [{k: v for k, v in row.items() if k != "epoch"} for row in pruned["rows"]]
    assert rows == [
        {"step": 0, "trainable_params": 320.0},
        {"step": 0, "look_0.1": 0.4},
        {"step": 1, "accuracy": 0.5},
    ]
    assert (pruned["summary"]["state"], pruned["exit"]) == ("pruned", 0)
    assert [row["accuracy"] for row in failed["rows"] if "accuracy" in row] == [0.25]
    assert (failed["summary"]["error"], failed["exit"]) == ("cut off", 1)
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or KEY.encode() not in file.read_bytes(), file
    assert said == []
