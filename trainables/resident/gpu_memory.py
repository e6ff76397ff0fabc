"""How the workers' processes take memory of a GPU, said before CUDA starts in them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
SETTING = "expandable_segments:True"


class GpuMemory(WorkerGroupCallback):  # type: ignore[misc]
    """Has every worker of a group take memory in segments that can grow, unless its environment
    says something of it.

    Trials differ in ranks and modules, and batches in length: what one leaves between blocks of a
    fixed size another cannot use. Ray calls this before the process group makes CUDA start, which
    reads the environment then and never again.
    """

    def before_init_train_context(self, workers: Sequence[Any]) -> dict[str, list[Any]]:
        """Set the variable in the workers' processes."""

        def set_where_unsaid() -> None:
            if not any(name in os.environ for name in NAMES):
                os.environ[NAMES[0]] = SETTING

        ray.get([worker.execute_async(set_where_unsaid) for worker in workers])
        return {}
