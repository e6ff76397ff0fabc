"""Where MLflow's UI shows what was logged."""

from __future__ import annotations

from urllib.parse import quote, urlsplit, urlunsplit


def ui_link(tracking_uri: str, experiment_id: str, run_id: str | None = None) -> str | None:
    """The page of an experiment's runs, or of one run, in MLflow's UI, without credentials.

    None where the tracking URI is no http server.
    """
    server = urlsplit(tracking_uri)
    if server.scheme not in ("http", "https") or not server.hostname:
        return None
    host = server.netloc.rpartition("@")[2]
    root = urlunsplit((server.scheme, host, server.path.rstrip("/"), "", ""))
    page = f"{root}/#/experiments/{quote(experiment_id, safe='')}/runs"
    if run_id is not None:
        page += f"/{quote(run_id, safe='')}"
    return f"{page}?workflowType=machine_learning"
