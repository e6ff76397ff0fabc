"""The journal of a sweep: what MLflow is to be told of its trials and confirmations.

One SQLite file in the sweep's folder. The driver appends and never waits for MLflow; the relay
(search/tracking/relay.py) tells MLflow and puts aside what it has told. A driver that is killed
leaves the rest to the next launch of the sweep. What has been told stays: an MLflow that has lost
it, or another one, is told it again.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
import threading
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from search.paths import private_files
from search.redaction import redacted_text
from spaces.errors import RanksweepError

Kind = Literal["start", "look", "epoch", "end"]

#: Records that may wait, some 60 MB, and that are kept once they are told; beyond it a trial keeps
#: the newest of its epochs only.
MOST_RECORDS = 100_000

_TABLES = """
CREATE TABLE IF NOT EXISTS records (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    number INTEGER NOT NULL,
    kind TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS records_of_trial ON records (number, kind);
CREATE TABLE IF NOT EXISTS told (
    id INTEGER PRIMARY KEY,
    number INTEGER NOT NULL,
    kind TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS told_of_trial ON told (number, kind);
CREATE TABLE IF NOT EXISTS runs (
    number INTEGER PRIMARY KEY,
    token TEXT NOT NULL,
    epoch INTEGER NOT NULL DEFAULT 0,
    ended INTEGER NOT NULL DEFAULT 0,
    tries INTEGER NOT NULL DEFAULT 0,
    run_id TEXT,
    sweep_run_id TEXT
);
CREATE TABLE IF NOT EXISTS confirmations (
    run INTEGER PRIMARY KEY,
    number INTEGER NOT NULL,
    seed INTEGER NOT NULL,
    value REAL
);
CREATE TABLE IF NOT EXISTS test_rows (
    run INTEGER PRIMARY KEY,
    content BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS also (
    listener TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (listener, number)
);
"""

#: Records that a listener reads at one time.
RECORDS_AT_ONCE = 1000


class JournalError(RanksweepError):
    """The journal's file cannot be read or written."""


@dataclass(frozen=True)
class Record:
    """What befell a run at a moment (milliseconds of Unix time).

    `number` is that of a trial, or the one below zero that a confirmation has in the journal.
    """

    id: int
    number: int
    kind: Kind
    at_ms: int
    body: Mapping[str, Any]


@dataclass(frozen=True)
class RunInMlflow:
    """The MLflow run of a trial: its token and, once it is known, its id and the sweep's run.

    `tries` counts the calls that may have created it.
    """

    token: str
    tries: int
    run_id: str | None
    sweep_run_id: str | None


@dataclass(frozen=True)
class JournalRun:
    """A run of the journal: whose it is, and what MLflow calls it.

    `state` is how it has ended as far as MLflow was told; None where the rest waits, or where an
    older ranksweep has told it, which kept no record (`is_kept` False).
    """

    number: int
    token: str
    run_id: str | None
    sweep_run_id: str | None
    state: str | None
    is_kept: bool


class Journal:
    """What befell a sweep's trials, what of it MLflow has not been told, and the ids of their runs.

    A trial has one ``start``, any number of ``look`` and ``epoch`` and one ``end``; what comes
    twice is taken once. So has a confirmation, under the number that `new_confirmation` gives it,
    and each try at it a number of its own. One thread may append at a time, while another is the
    relay.

    Raises:
        JournalError: the file cannot be read or written, as on a full disk.
    """

    def __init__(self, path: Path, most_records: int = MOST_RECORDS) -> None:
        self._most = most_records
        # Each of the two has a connection, so that neither waits for more than the other's commit.
        self.driver, self._relay = _Connection(path), _Connection(path)
        with self.driver as database:
            # To move what was appended into the main file is work for the relay.
            database.execute("PRAGMA wal_autocheckpoint = 0")
            self._appended = int(database.execute("SELECT COUNT(*) FROM records").fetchone()[0])
            self._kept = int(database.execute("SELECT COUNT(*) FROM told").fetchone()[0])
            (lowest,) = database.execute(
                "SELECT MIN(number) FROM "
                "(SELECT number FROM runs UNION SELECT run FROM confirmations)"
            ).fetchone()
        self._unused = itertools.count(min(lowest or 0, 0) - 1, -1)
        self._taken = 0
        self.gave_up_epochs = False
        """Whether epochs were given up, as more records waited than may."""

    @property
    def waiting(self) -> int:
        """How many records MLflow has not been told of."""
        return self._appended - self._taken

    def close(self) -> None:
        """Close the file; what waits stays in it."""
        self.driver.close()
        self._relay.close()

    # What the driver does ---------------------------------------------------------------------

    def new_confirmation(self) -> int:
        """The number under which a confirmation is about to start: below zero, and new."""
        return next(self._unused)

    def start(
        self,
        number: int,
        body: Mapping[str, Any],
        at_ms: int,
        confirms: tuple[int, int] | None = None,
    ) -> None:
        """Append that a trial has started; a confirmation `confirms` a trial with a seed."""
        with self.driver as database:
            new = database.execute(
                "INSERT OR IGNORE INTO runs (number, token) VALUES (?, ?)",
                (number, uuid.uuid4().hex),
            ).rowcount
            if new:
                _append(database, number, "start", body, at_ms)
            if new and confirms is not None:
                database.execute(
                    "INSERT INTO confirmations (run, number, seed) VALUES (?, ?, ?)",
                    (number, *confirms),
                )
        self._appended += new

    def epoch(self, number: int, epoch: int, body: Mapping[str, Any], at_ms: int) -> None:
        """Append that a trial has ended an epoch (from 1)."""
        dropped = 0
        with self.driver as database:
            if self.waiting >= self._most:
                dropped = database.execute(
                    "DELETE FROM records WHERE number = ? AND kind = 'epoch'", (number,)
                ).rowcount
                self.gave_up_epochs |= dropped > 0
            new = database.execute(
                "UPDATE runs SET epoch = ? WHERE number = ? AND epoch < ? AND ended = 0",
                (epoch, number, epoch),
            ).rowcount
            if new:
                _append(database, number, "epoch", {**body, "epoch": epoch}, at_ms)
        self._appended += new - dropped

    def look(self, number: int, body: Mapping[str, Any], at_ms: int) -> None:
        """Append what a trial is after training on a share of the rows."""
        with self.driver as database:
            is_open = database.execute(
                "SELECT 1 FROM runs WHERE number = ? AND ended = 0", (number,)
            ).fetchone()
            if is_open:
                _append(database, number, "look", body, at_ms)
        self._appended += is_open is not None

    def end(
        self,
        number: int,
        body: Mapping[str, Any],
        at_ms: int,
        value: float | None = None,
        test_rows: bytes | None = None,
    ) -> None:
        """Append that a trial is over; the record holds the last `epoch` that was appended.

        `value` is what a confirmation has measured, `test_rows` the file of what it said of each
        test row.
        """
        with self.driver as database:
            ended = database.execute(
                "UPDATE runs SET ended = 1 WHERE number = ? AND ended = 0 RETURNING epoch",
                (number,),
            ).fetchall()
            for (epoch,) in ended:
                _append(database, number, "end", {**body, "epoch": epoch}, at_ms)
            if value is not None:
                database.execute(
                    "UPDATE confirmations SET value = ? WHERE run = ?", (value, number)
                )
            if test_rows is not None:
                database.execute(
                    "INSERT OR REPLACE INTO test_rows (run, content) VALUES (?, ?)",
                    (number, test_rows),
                )
        self._appended += len(ended)

    def left_open(self) -> dict[int, int]:
        """Trials that have started and not ended: number -> last epoch that was appended, or 0."""
        with self.driver as database:
            rows = database.execute("SELECT number, epoch FROM runs WHERE ended = 0")
            return dict(rows.fetchall())

    def confirmed(self) -> dict[tuple[int, int], float]:
        """(trial number, seed) -> value of every confirmation that has one, told or not."""
        with self.driver as database:
            rows = database.execute(
                "SELECT number, seed, value FROM confirmations WHERE value IS NOT NULL "
                "ORDER BY run DESC"
            )
            return {(number, seed): value for number, seed, value in rows.fetchall()}

    def confirmed_metrics(self) -> dict[tuple[int, int], dict[str, float]]:
        """(trial number, seed) -> metrics of every confirmation that has a value, told or not."""
        return self._confirmed("epoch", "metrics")

    def confirmed_tags(self) -> dict[tuple[int, int], dict[str, Any]]:
        """(trial number, seed) -> tags of every confirmation that has a value, told or not."""
        return self._confirmed("start", "tags")

    def _confirmed(self, kind: Kind, part: str) -> dict[tuple[int, int], dict[str, Any]]:
        """A part of what the records of a kind say of the confirmations that have a value."""
        found: dict[tuple[int, int], dict[str, Any]] = {}
        with self.driver as database:
            rows = database.execute(
                "SELECT c.number, c.seed, r.body FROM confirmations c JOIN "
                "(SELECT id, number, kind, body FROM told UNION ALL "
                "SELECT id, number, kind, body FROM records) r ON r.number = c.run "
                "WHERE c.value IS NOT NULL AND r.kind = ? ORDER BY c.run DESC, r.id",
                (kind,),
            )
            for number, seed, body in rows.fetchall():
                found.setdefault((number, seed), {}).update(json.loads(body)[part])
        return found

    def confirmation(self, run: int) -> tuple[int, int, float] | None:
        """Trial number, seed and value of the confirmation with this number of its own."""
        with self.driver as database:
            row = database.execute(
                "SELECT number, seed, value FROM confirmations WHERE run = ? AND value IS NOT NULL",
                (run,),
            ).fetchone()
        return None if row is None else (int(row[0]), int(row[1]), float(row[2]))

    def confirmed_rows(self) -> dict[tuple[int, int], bytes]:
        """(trial number, seed) -> what was said of each test row, of confirmations that told it."""
        with self.driver as database:
            rows = database.execute(
                "SELECT number, seed, content FROM confirmations JOIN test_rows USING (run) "
                "WHERE value IS NOT NULL ORDER BY run DESC"
            )
            return {(number, seed): content for number, seed, content in rows.fetchall()}

    def confirmation_run_ids(self, sweep_run_id: str) -> dict[int, str]:
        """Number in the journal -> id of its MLflow run, for this sweep's confirmations."""
        with self.driver as database:
            rows = database.execute(
                "SELECT number, run_id FROM runs WHERE sweep_run_id = ? AND number < 0",
                (sweep_run_id,),
            )
            return dict(rows.fetchall())

    def run_ids(self, sweep_run_id: str) -> dict[int, str]:
        """Trial number -> id of its MLflow run, for the trials that have one under this sweep."""
        with self.driver as database:
            rows = database.execute(
                "SELECT number, run_id FROM runs WHERE sweep_run_id = ? AND number >= 0",
                (sweep_run_id,),
            )
            return dict(rows.fetchall())

    # What a launch that goes on does, before the relay is at work --------------------------------

    def trial_runs(self) -> list[JournalRun]:
        """The runs of all trials and confirmations."""
        with self.driver as database:
            rows = database.execute(
                "SELECT number, token, run_id, sweep_run_id, "
                "(SELECT body FROM told WHERE told.number = runs.number AND kind = 'end'), "
                "EXISTS (SELECT 1 FROM told WHERE told.number = runs.number AND kind = 'start') OR "
                "EXISTS (SELECT 1 FROM records r WHERE r.number = runs.number AND kind = 'start') "
                "FROM runs"
            ).fetchall()
        return [
            JournalRun(
                number,
                token,
                run_id,
                sweep_run_id,
                state=None if end is None else json.loads(end)["state"],
                is_kept=bool(is_kept),
            )
            for number, token, run_id, sweep_run_id, end, is_kept in rows
        ]

    def tell_again(self, number: int) -> None:
        """Have MLflow told all of a trial again, in a run that is looked for by its token."""
        with self.driver as database:
            database.execute(
                "INSERT OR IGNORE INTO records (id, number, kind, at_ms, body) "
                "SELECT id, number, kind, at_ms, body FROM told WHERE number = ?", (number,)
            )  # fmt: skip
            moved = database.execute("DELETE FROM told WHERE number = ?", (number,)).rowcount
            database.execute(
                "UPDATE runs SET run_id = NULL, sweep_run_id = NULL, tries = 1 WHERE number = ?",
                (number,),
            )
        self._appended += moved
        self._kept -= moved

    def found(self, number: int, run_id: str, sweep_run_id: str) -> None:
        """Note that a trial's run is there, under this run of the sweep."""
        with self.driver as database:
            _note_run(database, number, run_id, sweep_run_id)

    def forget(self, number: int) -> None:
        """Know nothing more of a trial, which may be started anew; what a confirmation has measured
        stays."""
        with self.driver as database:
            gone = database.execute("DELETE FROM records WHERE number = ?", (number,)).rowcount
            for table in ("told", "runs", "also"):
                database.execute(f"DELETE FROM {table} WHERE number = ?", (number,))
            self._kept = int(database.execute("SELECT COUNT(*) FROM told").fetchone()[0])
        self._appended -= gone

    def drop_waiting(self, number: int) -> None:
        """Have MLflow told nothing more of a trial whose run somebody has deleted there."""
        with self.driver as database:
            gone = database.execute("DELETE FROM records WHERE number = ?", (number,)).rowcount
        self._appended -= gone

    # What those do who listen beside MLflow (search/tracking/also) ------------------------------

    def heard(self, listener: str, after: int) -> list[Record]:
        """What was appended behind the record of this id, told to MLflow or not, in order; without
        the runs that the listener has `heard_all` of. At most RECORDS_AT_ONCE."""
        with self.driver as database:
            rows = database.execute(
                "SELECT id, number, kind, at_ms, body FROM "
                "(SELECT * FROM told WHERE id > ?1 UNION ALL SELECT * FROM records WHERE id > ?1) "
                "WHERE number NOT IN (SELECT number FROM also WHERE listener = ?2) "
                "ORDER BY id LIMIT ?3",
                (after, listener, RECORDS_AT_ONCE),
            ).fetchall()
        return [
            Record(record, number, kind, at_ms, json.loads(body))
            for record, number, kind, at_ms, body in rows
        ]

    def heard_all(self, listener: str, number: int) -> None:
        """Note that a listener has heard of a run to its end."""
        with self.driver as database:
            database.execute("INSERT OR IGNORE INTO also VALUES (?, ?)", (listener, number))

    # What the relay does ----------------------------------------------------------------------

    def next_of(self, without: Collection[int]) -> list[Record]:
        """What waits of the trial whose record is the oldest, in order; none of these trials."""
        with self._relay as database:
            marks = ", ".join("?" * len(without))
            rows = database.execute(
                "SELECT id, number, kind, at_ms, body FROM records WHERE number = "
                f"(SELECT number FROM records WHERE number NOT IN ({marks}) ORDER BY id LIMIT 1) "
                "ORDER BY id",
                tuple(without),
            ).fetchall()
        return [
            Record(record, number, kind, at_ms, json.loads(body))
            for record, number, kind, at_ms, body in rows
        ]

    def run_of(self, number: int) -> RunInMlflow:
        """What is known of a trial's run."""
        with self._relay as database:
            row = database.execute(
                "SELECT token, tries, run_id, sweep_run_id FROM runs WHERE number = ?", (number,)
            ).fetchone()
        return RunInMlflow(*row)

    def test_rows_of(self, number: int) -> bytes | None:
        """The file of what a confirmation said of each test row; None of any other run."""
        with self._relay as database:
            row = database.execute(
                "SELECT content FROM test_rows WHERE run = ?", (number,)
            ).fetchone()
        return None if row is None else bytes(row[0])

    def about_to_create(self, number: int) -> None:
        """Note that from now on a trial's run may be there."""
        with self._relay as database:
            database.execute("UPDATE runs SET tries = tries + 1 WHERE number = ?", (number,))

    def created(self, number: int, run_id: str, sweep_run_id: str) -> None:
        """Note the run of a trial, and the sweep's run above it."""
        with self._relay as database:
            _note_run(database, number, run_id, sweep_run_id)

    def put_aside(self, records: Sequence[Record]) -> None:
        """Put what MLflow has been told of one trial with what it was told before."""
        ids = [(record.id,) for record in records]
        with self._relay as database:
            kept = database.executemany(
                "INSERT INTO told (id, number, kind, at_ms, body) "
                "SELECT id, number, kind, at_ms, body FROM records WHERE id = ?", ids
            ).rowcount  # fmt: skip
            gone = database.executemany("DELETE FROM records WHERE id = ?", ids).rowcount
            if self._kept >= self._most and records:
                of_trial = "FROM told WHERE number = ? AND kind = 'epoch'"
                kept -= database.execute(
                    f"DELETE {of_trial} AND id < (SELECT MAX(id) {of_trial})",
                    (records[0].number,) * 2,
                ).rowcount
        self._kept += kept
        self._taken += gone


class _Connection:
    """A connection to the file; entered, it is one transaction of one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            with private_files():
                self._database = sqlite3.connect(
                    path, timeout=10, isolation_level=None, check_same_thread=False
                )
                # With a log beside it an append waits for no disk; a killed process loses nothing.
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = NORMAL")
                self._database.executescript(_TABLES)
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def __enter__(self) -> sqlite3.Connection:
        self._lock.acquire()
        try:
            self._database.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            self._lock.release()
            raise self._broken(error) from error
        return self._database

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._database.execute("COMMIT")
        except sqlite3.Error as refused:
            error = refused
        finally:
            if self._database.in_transaction:  # a full disk may have ended it already
                self._database.execute("ROLLBACK")
            self._lock.release()
        if isinstance(error, sqlite3.Error):
            raise self._broken(error) from error

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def _broken(self, error: sqlite3.Error) -> JournalError:
        return JournalError(
            f"{self._path}: the journal cannot be used ({error}); check the free space and the "
            "folder's permissions"
        )


def _note_run(database: sqlite3.Connection, number: int, run_id: str, sweep_run_id: str) -> None:
    database.execute(
        "UPDATE runs SET run_id = ?, sweep_run_id = ? WHERE number = ?",
        (run_id, sweep_run_id, number),
    )


def _append(
    database: sqlite3.Connection, number: int, kind: Kind, body: Mapping[str, Any], at_ms: int
) -> None:
    database.execute(
        "INSERT INTO records (number, kind, at_ms, body) VALUES (?, ?, ?, ?)",
        (number, kind, at_ms, json.dumps(body)),
    )


def end_of_trial(
    state: str,
    error: str | None,
    metrics: Mapping[str, float],
    *,
    collapsed: bool = False,
    name: str | None = None,
) -> dict[str, Any]:
    """What the journal says of a trial that is over; `name` is what its run is called then."""
    return {
        "state": state,
        "error": None if error is None else redacted_text(error),
        "metrics": dict(metrics),
        **({"collapsed": True} if collapsed else {}),
        **({} if name is None else {"name": name}),
    }
