"""The commands cite, bundle and watch: from a sweep to a paper, and to other people's machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import IntervalChoice, IntervalOption, SweepArgument, uri
from orchestrator.system.console import print_line, print_text

app = typer.Typer()


@app.command()
def cite(sweep: SweepArgument, interval: IntervalOption = IntervalChoice.t) -> None:
    """Print a methods paragraph with every setting as LaTeX, and BibTeX of what the sweep uses."""
    from orchestrator.report.citation import cite as write

    print_text(write(sweep, uri=uri(), method=interval.value))


@app.command()
def bundle(
    sweep: SweepArgument,
    out: Annotated[
        Path | None, typer.Option(help="Where it is written; default: SPACE.zip here.", metavar="FILE.zip")
    ] = None,
) -> None:
    """Write a sweep into one file that `rerun` makes again: space, plan, versions, code, results, masks."""
    from orchestrator.report.bundle import write_bundle

    for line in write_bundle(sweep, uri=uri(), out=out).lines():
        print_line(line)


@app.command()
def watch(
    sweep: SweepArgument,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where the page is served; 0 takes a free one.")
    ] = 0,
    every: Annotated[float, typer.Option(min=1.0, max=3600.0, help="Seconds between two pages.")] = 10.0,
) -> None:
    """Serve the report of a sweep on 127.0.0.1, made anew while the sweep runs."""
    from orchestrator.execution.watch import watch as serve

    serve(sweep, uri=uri(), port=port, every=every)
