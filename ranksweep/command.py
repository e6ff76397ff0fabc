"""The command `ranksweep`."""

from __future__ import annotations


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    from search.cli.main import main as command

    command()
