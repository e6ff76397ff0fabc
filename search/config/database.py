"""The database of a study: its URL, and whether it can be reached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from search.redaction import redacted, redacted_text
from spaces.errors import ConfigError


def study_url(text: str) -> str:
    """The SQLAlchemy URL of a study, that of a SQLite file made absolute.

    Raises ConfigError where it is none, names no file, or its driver is not installed.
    """
    with reached(text):
        url = make_url(text)
        url.get_dialect().import_dbapi()
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise ConfigError("search.study: names no file; write sqlite:////directory/file.db")
        url = url.set(database=str(Path(url.database).absolute()))
    return url.render_as_string(hide_password=False)


def check_database(url: str) -> None:
    """Connect to a study's database once. Raises ConfigError, without its credentials."""
    with reached(url):
        engine = create_engine(url)
        engine.connect().close()
        engine.dispose()


@contextmanager
def reached(url: str, *failures: type[Exception]) -> Iterator[None]:
    """Raise what fails meanwhile as ConfigError, without the credentials of `url`.

    `failures` are what a database's failure is raised as beside SQLAlchemy's own errors.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"search.study: no driver for {redacted(url)} is installed; for PostgreSQL run "
            "`pip install 'ranksweep[postgres]'` and write postgresql+psycopg://..."
        ) from error
    except (ArgumentError, NoSuchModuleError):
        raise ConfigError(
            "search.study: is no SQLAlchemy URL of a database; write "
            "postgresql+psycopg://user@host/database or sqlite:////directory/file.db"
        ) from None
    except Exception as error:
        if not isinstance(error, (SQLAlchemyError, *failures)):
            raise
        reason = " ".join(redacted_text(str(error.__cause__ or error)).split())[:300]
        raise ConfigError(
            f"search.study: {redacted(url)} cannot be opened ({reason}); check that the database "
            "runs and that the URL names it"
        ) from None
