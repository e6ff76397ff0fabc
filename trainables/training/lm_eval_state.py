"""What lm-eval changes of the process that it runs in, put back."""

from __future__ import annotations

import io
import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import datasets
import numpy as np
import torch

_LOGGERS = ("lm_eval", "datasets", "evaluate", "transformers")
_ONE_PROCESS = "DISABLE_MULTIPROC"
"""Set, lm-eval resamples in this process: a fork of one that has threads of torch's can hang."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """While open, nothing is printed or shown; afterwards the random states are as they were."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    bars, one_process = datasets.are_progress_bars_disabled(), os.environ.get(_ONE_PROCESS)
    python, arrays = random.getstate(), np.random.get_state()
    # Asked of others, a GPU that this process does not use would be made ready.
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with (
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
        torch.random.fork_rng(devices),
    ):
        try:
            for name in _LOGGERS:
                logging.getLogger(name).setLevel(logging.CRITICAL)
            datasets.disable_progress_bars()
            os.environ[_ONE_PROCESS] = "1"
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            if not bars:
                datasets.enable_progress_bars()
            if one_process is None:
                del os.environ[_ONE_PROCESS]
            else:
                os.environ[_ONE_PROCESS] = one_process
