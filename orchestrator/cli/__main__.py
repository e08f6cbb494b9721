"""Run the command with `python -m orchestrator.cli`."""

from orchestrator.__main__ import main

main()
