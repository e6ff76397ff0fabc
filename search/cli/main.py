"""The command line `ranksweep`: one line for every error, and the exit codes.

Exit codes: 0, 1 (failed, nothing found), 2 (bad usage or config, told on one line before anything
is started), 130 (Ctrl-C), 141 (who reads stdout has closed it).
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence

import typer

from search.cli import (
    champion,
    doctor,
    explain,
    in_job,
    plans,
    predict,
    presets,
    profiles,
    report,
    results,
    rows,
    schedules,
    sweep_records,
    sweeps,
    trials,
    watch,
)
from search.cli.app import EXIT_FAILED, app
from search.cli.faults import fault_of_the_place
from search.interrupts import EXIT_INTERRUPTED
from spaces.errors import RanksweepError

__all__ = ["app", "main"]

# As --help lists them, whatever was imported first: a file registers its commands as it is read.
FILES = [
    file.__name__
    for file in (
        sweeps,
        watch,
        trials,
        rows,
        profiles,
        plans,
        results,
        report,
        predict,
        explain,
        champion,
        sweep_records,
        presets,
        schedules,
        doctor,
        in_job,
    )
]
app.registered_commands.sort(key=lambda command: FILES.index(command.callback.__module__))  # type: ignore[union-attr]

NO_BARS = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}
"""What libraries read at import: their bars would run through a command's own lines."""
EXIT_READER_GONE = 141
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def _complain(message: str) -> None:
    """One red line on stderr."""
    line = "error: " + " ".join(message.split())
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        line = f"\033[31m{line}\033[0m"
    print(line, file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    _open_what_is_closed()
    _reach_this_machine()
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    for name, value in NO_BARS.items():
        os.environ.setdefault(name, value)
    # Wherever it stands, also behind the command's name.
    given = [argument for argument in given if argument != "--debug"]
    sys.exit(_flushed(_run(given, debug)))


def _open_what_is_closed() -> None:
    """Give a process that was started with a closed stdin, stdout or stderr an empty one.

    Else the next file that is opened, such as a database, is written to by whoever prints.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that is not UTF-8 shows the rest, as it does on stderr.
        sys.stdout.reconfigure(errors="backslashreplace")


def _reach_this_machine() -> None:
    """Let no proxy be asked for what listens on this machine, such as an MLflow server."""
    if any(os.environ.get(name) for name in (*_PROXIES, *(name.upper() for name in _PROXIES))):
        named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        without = ",".join([*([named] if named else []), "localhost", "127.0.0.1", "::1"])
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = without


def _flushed(code: int) -> int:
    """Write out what is printed while an error of that can be told; returns the exit code."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _reader_is_gone()
    except OSError as error:
        _complain(f"stdout: {error.strerror}; what was to be shown is not")
        _leave_stdout()
        return EXIT_FAILED
    return code


def _reader_is_gone() -> int:
    """End as programs do whose reader, such as `head`, has read enough: without a word."""
    _leave_stdout()
    return EXIT_READER_GONE


def _leave_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _run(arguments: list[str], debug: bool) -> int:
    try:
        code = app(args=arguments, prog_name="ranksweep", standalone_mode=False)
    except RanksweepError as error:
        if debug:
            traceback.print_exc()
        _complain(str(error))
        return error.exit_code
    except typer.TyperException as error:
        return _usage_error(error)
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        return _reader_is_gone()
    except Exception as error:
        if debug:
            traceback.print_exc()
        if (fault := fault_of_the_place(error)) is not None:
            _complain(f"{fault} (--debug shows where)")
            return EXIT_FAILED
        _complain(
            f"ranksweep failed unexpectedly: {type(error).__name__}: {error} "
            "(a defect; --debug shows where)"
        )
        return EXIT_FAILED
    if code == EXIT_INTERRUPTED:
        _complain("interrupted")
    return code if isinstance(code, int) else 0


def _usage_error(error: typer.TyperException) -> int:
    """A wrong option or argument, on one line."""
    message = error.format_message()
    if message:  # empty where a command without arguments has shown its help
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "ranksweep"
        command = path.translate({ord("{"): None, ord("}"): None})  # around a group's argument
        _complain(f"{message.rstrip('.')}; see `{command} --help`")
    return error.exit_code


if __name__ == "__main__":
    main()
