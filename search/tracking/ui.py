"""Where MLflow's UI shows what was logged: links to it, and the view of a sweep that they open.

MLflow 3 has two kinds of pages and opens an experiment among those for generative AI, unless the
address or the browser's memory says otherwise; a tag of the experiment does not help. A list of
runs opens as a shared view says, which is a tag of the experiment: filter, order, columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from search.objective import Mode

VIEW = "mlflow.sharedViewState."
"""What the tag of a shared view begins with; its key follows."""
LOCAL_SERVER = "http://127.0.0.1:5000"
"""Where `mlflow server` listens unless it is told otherwise."""
_NAME_COLUMN = "attributes.`Run Name`"
_PAGES = {"workflowType": "machine_learning"}


def ui_link(
    tracking_uri: str,
    experiment_id: str,
    run_id: str | None = None,
    *,
    view: str | None = None,
) -> str | None:
    """The page of an experiment's runs, or of one run, in MLflow's UI, without credentials.

    `view` is the key of a shared view of the runs. None where the tracking URI is no http server.
    """
    server = urlsplit(tracking_uri)
    if server.scheme not in ("http", "https") or not server.hostname:
        return None
    host = server.netloc.rpartition("@")[2]
    root = urlunsplit((server.scheme, host, server.path.rstrip("/"), "", ""))
    page = f"{root}/#/experiments/{quote(experiment_id, safe='')}/runs"
    if run_id is not None:
        page += f"/{quote(run_id, safe='')}"
    shared = {} if view is None else {"viewStateShareKey": view}
    return f"{page}?{urlencode({**shared, **_PAGES})}"


def sweep_view(sweep: str, metric: str, mode: Mode, ranks: bool, at_ms: int) -> str:
    """The shared view of a sweep's runs: best first, with the few columns that matter.

    It is the text of a tag of the experiment, in MLflow's own form. `ranks` says whether its
    methods have a rank; `at_ms` is now, in milliseconds of Unix time.
    """
    columns = [
        "tags.`ranksweep.arm`",
        f"metrics.`{metric}`",
        f"metrics.`test_{metric}`",
        "metrics.`trainable_params`",
        *(["params.`rank`"] if ranks else []),
        "params.`learning_rate`",
        "metrics.`step_time`",
        "tags.`ranksweep.status`",
    ]
    state: Mapping[str, Any] = {
        "searchFilter": f"tags.`ranksweep.sweep` = '{sweep}'",
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": mode == "min",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "selectedColumns": columns,
        "columnOrder": [_NAME_COLUMN, *columns],
        "columnWidths": {_NAME_COLUMN: 330, **dict.fromkeys(columns, 120)},
    }
    return json.dumps(
        {
            "name": f"{sweep}: by {metric}",
            "createdAt": at_ms,
            "updatedAt": at_ms,
            "state": json.dumps(state),
        }
    )


def view_made_at(text: str) -> int:
    """When a shared view was made, in milliseconds of Unix time; 0 of one that does not say it."""
    try:
        return int(json.loads(text)["createdAt"])
    except (ValueError, TypeError, KeyError):
        return 0
