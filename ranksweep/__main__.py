"""`python -m ranksweep` is the command."""

from ranksweep.command import main

main()
