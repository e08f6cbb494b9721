"""`python -m orchestrator.cli` is the command."""

from orchestrator.cli import main

main()
