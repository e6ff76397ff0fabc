"""MLflow's tables in SQLite, made once in a process of tests and copied from then on.

MLflow makes a new database by going through every migration that it has ever had, two seconds of a
CPU, and hundreds of tests want a database of their own.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

_BY = ("mlflow.store.db.utils", "mlflow.store.model_registry.sqlalchemy_store")
_NAME = "_initialize_tables"
_made: dict[str, sqlite3.Connection] = {}


def copy_where_made() -> None:
    """From now on a new database is a copy of the first one, where MLflow is imported."""
    for name in _BY:
        module = sys.modules.get(name)
        if module is not None and not hasattr(getattr(module, _NAME), "original"):
            setattr(module, _NAME, _copying(getattr(module, _NAME)))


def _copying(original: Callable[[Any], None]) -> Callable[[Any], None]:
    def initialize(engine: Any) -> None:
        if engine.dialect.name != "sqlite":
            original(engine)
            return
        with closing(engine.raw_connection()) as pooled:
            ours: sqlite3.Connection = pooled.driver_connection
            if "tables" in _made:
                _made["tables"].backup(ours)
                return
        original(engine)
        with closing(engine.raw_connection()) as pooled:
            _made["tables"] = sqlite3.connect(":memory:", check_same_thread=False)
            pooled.driver_connection.backup(_made["tables"])

    initialize.original = original  # type: ignore[attr-defined]
    return initialize
