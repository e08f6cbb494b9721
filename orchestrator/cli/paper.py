"""The commands cite, bundle and watch: from a sweep to a paper, and to other people's machines."""

from __future__ import annotations

import typer

from orchestrator.cli.options import IntervalChoice, IntervalOption, SweepArgument, uri
from orchestrator.system.console import print_text

app = typer.Typer()


@app.command()
def cite(sweep: SweepArgument, interval: IntervalOption = IntervalChoice.t) -> None:
    """Print a methods paragraph with every setting as LaTeX, and BibTeX of what the sweep uses."""
    from orchestrator.report.citation import cite as write

    print_text(write(sweep, uri=uri(), method=interval.value))
