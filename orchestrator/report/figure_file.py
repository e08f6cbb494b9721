"""Draw the figure of a sweep, and write it to a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.analysis.figure import FORMATS, make_figure, render
from orchestrator.analysis.figure_data import DEFAULT_OPTIONS, FigureOptions
from orchestrator.analysis.results import find_sweep, results_frame
from orchestrator.errors import UsageError, unknown_name
from orchestrator.storage.uri import default_uri
from orchestrator.system.files import check_can_write, naming_file, replace_file
from orchestrator.tracking import open_store

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(
    sweep: str,
    *,
    x: str = "sparsity",
    y: str = "accuracy",
    by: str = "",
    facet: str = "",
    style: str = "paper",
    seeds: bool = False,
    uri: str | None = None,
) -> Figure:
    """Return the figure of a sweep as matplotlib's: means over seeds with 95% intervals, a panel a network.

    `x` is a key of X_AXES, `y` of Y_AXES; `by` are columns of `results`, joined by commas, whose values get
    a line each, and `facet` is one whose values get a panel each. StoreError for a sweep that is not there.
    """
    tracker = open_store(default_uri(Path.cwd(), uri), sweep)
    columns = tuple(column.strip() for column in by.split(",") if column.strip())
    options = FigureOptions(x, y, columns, facet, style, seeds)
    return make_figure(results_frame(tracker, find_sweep(tracker, sweep)), options)


def write_figure(sweep: str, options: FigureOptions = DEFAULT_OPTIONS, *, uri: str, out: Path | None) -> Path:
    """Write the figure of a sweep, by default to SWEEP.pdf in the working folder, and return its path.

    Raises UsageError for an unknown ending or a file that cannot be written, StoreError without such a sweep.
    """
    path = (out or Path(Path(f"{sweep}.pdf").name)).absolute()
    format = path.suffix.removeprefix(".").lower()
    if format not in FORMATS:
        raise UsageError(f"--out {path}: {unknown_name('format', format, FORMATS)}")
    check_can_write(path)
    drawn = figure(
        sweep,
        x=options.x,
        y=options.y,
        by=",".join(options.by),
        facet=options.facet,
        style=options.style,
        seeds=options.seeds,
        uri=uri,
    )
    with naming_file(path):
        replace_file(path, render(drawn, format))
    return path
