"""What this machine does while a sweep runs, into the sweep's run: MLflow's own monitor."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from spaces.errors import ConfigError

logger = logging.getLogger(__name__)


def check_system_metrics() -> None:
    """Raise ConfigError where what MLflow reads them with is not installed."""
    if find_spec("psutil") is None:
        raise ConfigError(
            "tracking.system_metrics: psutil is not installed, which reads them; pip install "
            "psutil, or set it to false"
        )


@contextmanager
def system_metrics(tracking_uri: str, run_id: str) -> Iterator[None]:
    """While open, log the machine's metrics as `system/...` every ten seconds; those of a launch
    that goes on follow the last. It ends early, and says so in the log, where MLflow is away."""
    # They write of every start and end.
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=tracking_uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
