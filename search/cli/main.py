"""The command line `ranksweep`: one line for every error, and the exit codes.

Exit codes: 0, 1 (failed, nothing found), 2 (bad usage or config, told on one line before anything
is started), 130 (Ctrl-C).
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import typer

# isort: off
# In the order in which --help lists their commands.
from search.cli import sweeps, rows, profiles, plans, results, doctor  # noqa: F401

# isort: on
from search.cli.app import EXIT_FAILED, app
from search.interrupts import EXIT_INTERRUPTED
from spaces.errors import RanksweepError

__all__ = ["app", "main"]

NO_BARS = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "TQDM_DISABLE": "1",
}
"""What libraries read at import: their bars would run through a command's own lines."""


def _complain(message: str) -> None:
    """One red line on stderr."""
    line = "error: " + " ".join(message.split())
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        line = f"\033[31m{line}\033[0m"
    print(line, file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    for name, value in NO_BARS.items():
        os.environ.setdefault(name, value)
    # Wherever it stands, also behind the command's name.
    given = [argument for argument in given if argument != "--debug"]
    sys.exit(_run(given, debug))


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
    except Exception as error:
        if debug:
            traceback.print_exc()
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
        command = context.command_path if context is not None else "ranksweep"
        _complain(f"{message.rstrip('.')}; see `{command} --help`")
    return error.exit_code


if __name__ == "__main__":
    main()
