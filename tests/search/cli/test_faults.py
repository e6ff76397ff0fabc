"""What an environment raises reaches a user as one line with a remedy, and never as a defect."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from search.cli import main as command_line
from search.cli.output import Result, prints_result
from tests.search.launches import environment


def made(kind: str, *arguments: Any) -> Exception:
    """An error by the name of its class."""
    module, _, name = kind.rpartition(".")
    error: Exception = getattr(importlib.import_module(module or "builtins"), name)(*arguments)
    return error


def of_system(number: int, *files: str) -> OSError:
    return OSError(number, os.strerror(number), *files)


ESCAPING: list[tuple[Callable[[], Exception], str]] = [
    (lambda: of_system(errno.EACCES, "/data/x"), "/data/x: Permission denied; check the permiss"),
    (lambda: of_system(errno.EROFS, "/data"), "/data: Read-only file system; work in a folder"),
    (lambda: of_system(errno.ENOSPC, "/data"), "/data: No space left on device; make room"),
    (lambda: of_system(errno.EDQUOT, "/data"), "make room within your quota"),
    (lambda: of_system(errno.EMFILE), "Too many open files; allow more open files"),
    (lambda: of_system(errno.EAGAIN), "allow more processes"),
    (lambda: of_system(errno.ENOMEM), "free some memory"),
    (lambda: of_system(errno.ENOLCK, "lock"), "lock: No locks available; work in a folder of a"),
    (lambda: of_system(errno.EADDRINUSE), "Address already in use; end what listens"),
    (lambda: of_system(errno.ENOENT, "/nonexistent"), "/nonexistent: No such file or directory; "),
    (lambda: of_system(errno.ESTALE, "/nfs/x"), "/nfs/x: Stale file handle; check that place"),
    (lambda: made("ConnectionRefusedError", 111, "Connection refused"), "Connection refused; "),
    (lambda: made("ssl.SSLError", 1, "CERTIFICATE_VERIFY_FAILED"), "CERTIFICATE_VERIFY_FAILED; "),
    (lambda: made("socket.gaierror", -2, "Name or service not known"), "service not known; "),
    (lambda: made("MemoryError"), "free some memory"),
    (lambda: made("ModuleNotFoundError", "No module named 'psycopg'"), "ranksweep doctor"),
    (lambda: UnicodeEncodeError("ascii", "ü", 0, 1, "no"), "LANG=C.UTF-8"),
    (lambda: made("KeyError", "getpwuid(): uid not found: 12345"), "set USER, and HOME"),
    (lambda: made("RuntimeError", "Could not determine home directory."), "set HOME"),
    (lambda: made("RuntimeError", "can't start new thread"), "ulimit -u"),
    (lambda: made("RuntimeError", "CUDA driver initialization failed"), "nvidia-smi"),
    (lambda: made("NotImplementedError", "no flock on this file system"), "has locks"),
    (lambda: made("sqlite3.OperationalError", "disk I/O error"), "disk I/O error; check the dat"),
    (lambda: made("sqlalchemy.exc.NoSuchModuleError", "postgres"), "check that the database runs"),
    (lambda: made("alembic.util.CommandError", "Can't locate revision"), "by another version"),
    (lambda: made("optuna.exceptions.StorageInternalError", "gone"), "the sweep's study"),
    (lambda: made("mlflow.exceptions.MlflowException", "gone"), "doctor --tracking"),
    (lambda: made("ray.exceptions.RaySystemError", "raylet died"), "Ray's newest logs"),
    (lambda: made("ray.exceptions.GetTimeoutError", "30 s"), "Ray's newest logs"),
    (lambda: made("botocore.exceptions.NoCredentialsError"), "credentials in the environment"),
    (lambda: made("requests.exceptions.ProxyError", "407"), "proxy variables"),
    (lambda: made("filelock.Timeout", "/data/lock"), "see who holds it"),
]


def ended(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Exit code and last line of a command that lets an error escape."""

    def app(**_: Any) -> None:
        raise error

    monkeypatch.setattr(command_line, "app", app)
    with pytest.raises(SystemExit) as exit_:
        command_line.main(["best"])
    return int(str(exit_.value.code)), capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("make", "told"), ESCAPING, ids=[told for _, told in ESCAPING])
def test_what_the_environment_raises_is_told_with_a_remedy(
    make: Callable[[], Exception],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, line = ended(make(), monkeypatch, capsys)
    assert code == 1
    assert line.startswith("error: ")
    assert told in line
    assert "failed unexpectedly" not in line


@pytest.mark.parametrize("error", [TypeError("no"), ZeroDivisionError(), KeyError("x")])
def test_a_defect_stays_a_defect(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = ended(error, monkeypatch, capsys)
    assert code == 1
    assert "failed unexpectedly" in line


def test_credentials_in_what_is_raised_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = made("requests.exceptions.ConnectionError", "https://me:hunter2@host/x is away")
    assert "hunter2" not in ended(error, monkeypatch, capsys)[1]


def test_this_machine_is_not_asked_for_by_a_proxy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "corp.example")
    monkeypatch.delenv("no_proxy", raising=False)
    ended(TypeError(), monkeypatch, capsys)
    assert os.environ["no_proxy"] == "corp.example,localhost,127.0.0.1,::1"
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"]
    monkeypatch.delenv("no_proxy")


def test_a_connection_that_is_closed_does_not_end_a_command_as_a_closed_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()

    @app.command()
    @prints_result
    def work(*, json_output: bool = False) -> Result:
        raise of_system(errno.EPIPE)

    monkeypatch.setattr(command_line, "app", app)
    with pytest.raises(SystemExit) as exit_:
        command_line.main([])
    assert exit_.value.code == 1
    assert "error: a connection was closed by its other side; " in capsys.readouterr().err


# -- stdout, stdin and stderr ----------------------------------------------------------------------


PRINTING = """
from search.cli import main as m
from search.cli.output import Result, prints_result
@m.app.command()
@prints_result
def much(*, json_output: bool = False) -> Result:
    return Result("x" * 9**6, ["x" * 9**6])
m.main()
"""


@pytest.mark.command
@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ('"$0" -c "$1" much | true; exit ${PIPESTATUS[0]}', 141, ""),
        ('"$0" -c "$1" much --json-output | true; exit ${PIPESTATUS[0]}', 141, ""),
        ('"$0" -c "$1" much >&-', 0, ""),
        ('"$0" -c "$1" much --json-output >/dev/full', 1, "No space left on device"),
        ('"$0" -m search.cli.main --no-such-option >&- 2>&-', 2, ""),
        ('"$0" -c "$1" much <&- >/dev/null', 0, ""),
    ],
)
def test_a_stdout_that_nobody_reads_is_no_defect(line: str, code: int, said: str) -> None:
    done = subprocess.run(
        ["bash", "-c", line, sys.executable, PRINTING],
        env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == bool(said), done.stderr
    assert said in done.stderr


@pytest.mark.command
def test_a_closed_stdout_is_not_taken_by_the_next_file_that_is_opened(tmp_path: Path) -> None:
    script = f"""
import os, sys
from search.cli import main as command_line
def app(**_):
    with open({str(tmp_path / "database")!r}, "w") as file:
        os.write(1, b"noise")
        file.write("data")
command_line.app = app
command_line.main([])
"""
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" >&-', sys.executable, script],
        env=environment(), timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert (tmp_path / "database").read_text() == "data"


@pytest.mark.command
def test_letters_that_a_terminal_lacks_do_not_end_a_command() -> None:
    script = "from search.cli import main as m; m.app = lambda **_: print('Größe'); m.main([])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**environment(), "PYTHONIOENCODING": "ascii"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "Gr\\xf6\\xdfe\n")
