"""Weights & Biases hears of a sweep's runs: a run each, in a group of the sweep's name.

Nothing else goes there: not what the launch prints, its arguments, its code or its machine.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import wandb
from wandb.sdk.lib import wbauth

from search.tracking.also.listener import ToldRun
from search.tracking.facts import Point

Mode = Literal["online", "offline", "disabled"]


class Wandb:
    """Logs into the project `project`, the files below `folder`/wandb.

    `mark` is what no other sweep has: from it come the ids of runs, so that a run that is told
    again is the same one. Where W&B cannot be reached, it is given up within half a minute.
    """

    def __init__(
        self, folder: Path, project: str, sweep: str, mark: str, say: Callable[[str], object]
    ) -> None:
        self._folder, self._project, self._sweep, self._mark = folder, project, sweep, mark
        self._say = say
        self._runs: dict[int, tuple[wandb.Run, itertools.count[int]]] = {}

    @cached_property
    def _mode(self) -> Mode:
        """What WANDB_MODE asks for; offline, which is said, where nobody has logged in."""
        asked = os.environ.get("WANDB_MODE", "online")
        if asked == "disabled":
            return "disabled"
        if asked in ("offline", "dryrun"):
            return "offline"
        server = wandb.setup().settings.base_url
        if wbauth.authenticate_session(host=server, source="", prompt=False, update_session=False):
            return "online"
        self._say(
            "tracking.also: nobody has logged in to wandb, so it works offline; afterwards "
            f"`wandb login`, and `wandb sync {self._folder}/wandb/offline-run-*` uploads it all"
        )
        return "offline"

    def start(self, run: ToldRun, at_ms: int) -> None:
        run_id = f"{self._mark}{run.key:+d}"
        if self._mode == "offline":
            self._remove_unsent(run_id)
        self._folder.mkdir(parents=True, exist_ok=True)
        opened = wandb.init(
            project=self._project,
            dir=str(self._folder),
            id=run_id,
            name=run.name,
            group=self._sweep,
            job_type=run.kind,
            tags=sorted({run.arm, str(run.choice.get("method", run.arm))}),
            config=run.params,
            mode=self._mode,
            reinit="create_new",
            resume="allow" if self._mode == "online" else None,
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                save_code=False,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
                init_timeout=20,
                login_timeout=5,
                finish_timeout=10,
                x_graphql_retry_max=3,
                x_graphql_timeout_seconds=10,
                stop_fn=_stays,
            ),
        )
        opened.define_metric("*", step_metric="step")
        self._runs[run.key] = opened, itertools.count()

    def log(self, run: ToldRun, points: Sequence[Point]) -> None:
        opened, count = self._runs[run.key]
        for step, group in itertools.groupby(points, key=lambda point: point.step):
            values: dict[str, Any] = {point.key: point.value for point in group}
            # W&B takes rows in rising order alone, and those that it has it takes no second time.
            opened.log({"step": step, **values}, step=next(count))

    def end(self, run: ToldRun, state: str, error: str | None) -> None:
        opened, _ = self._runs.pop(run.key)
        opened.summary["state"] = state
        if error is not None:
            opened.summary["error"] = error
        opened.finish(exit_code=1 if state == "failed" else 0)

    def close(self) -> None:
        for opened, _ in self._runs.values():
            opened.summary["state"] = "interrupted"
            opened.finish(exit_code=1)

    def _remove_unsent(self, run_id: str) -> None:
        """Take away what an earlier launch wrote of a run that is told again."""
        for folder in (self._folder / "wandb").glob(f"offline-run-*-{run_id}"):
            if not any(folder.glob("*.synced")):
                shutil.rmtree(folder)


def _stays() -> None:
    """What a click on Stop in W&B does: nothing, for by default it would end the launch."""
