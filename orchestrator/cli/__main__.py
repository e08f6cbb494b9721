"""`python -m orchestrator.cli` is the command, too."""

from orchestrator.__main__ import main

main()
