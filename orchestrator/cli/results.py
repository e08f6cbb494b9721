"""The commands compare, report, figure, ui, watch, cite and bundle: the results of sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import (
    BaselineOption,
    CompareToleranceOption,
    CostChoice,
    IntervalChoice,
    IntervalOption,
    JsonOption,
    LatexOption,
    MarkdownOption,
    NamesArgument,
    SpreadChoice,
    SpreadOption,
    SweepArgument,
    ToleranceOption,
    check_one_of,
    uri,
)
from orchestrator.cli.output import print_table
from orchestrator.errors import UsageError
from orchestrator.system.console import print_json, print_line, print_text

if TYPE_CHECKING:
    from pandas import DataFrame

    from orchestrator.analysis.setting_means import ComparisonOptions

app = typer.Typer()
EXPORTED_ROWS = 30  # of the table of `compare` that names runs


@app.command()
def compare(
    sweeps: NamesArgument,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV on stdout.")] = False,
    as_latex: LatexOption = False,
    as_markdown: MarkdownOption = False,
    spread: SpreadOption = None,
    baseline: BaselineOption = None,
    tolerance: CompareToleranceOption = None,
    interval: IntervalOption = IntervalChoice.t,
    pareto: Annotated[
        CostChoice | None, typer.Option(help="The Pareto front of accuracy against this cost, alone.")
    ] = None,
) -> None:
    """Compare settings: means and 95% intervals over seeds, differences, limits and Pareto fronts."""
    check_one_of(json=as_json, csv=as_csv, latex=as_latex, markdown=as_markdown)
    if spread is not None and not (as_latex or as_markdown):
        raise UsageError(f"--pm {spread.value} is for --latex and --markdown; give one of them")
    from orchestrator.analysis.paired import read_baseline
    from orchestrator.analysis.pareto import check_measured
    from orchestrator.analysis.results import combine_earlier_networks, combine_sweeps
    from orchestrator.analysis.setting_means import ComparisonOptions, comparison_records

    table = combine_sweeps(sweeps, uri=uri())
    if pareto is not None:
        check_measured(table, pareto.value)
    options = ComparisonOptions(
        interval.value,
        None if baseline is None else read_baseline(baseline, table),
        None if tolerance is None else tolerance / 100,
        None if pareto is None else pareto.value,
        combine_earlier_networks(table, uri=uri()),
    )
    if as_latex or as_markdown:
        from orchestrator.analysis.latex import latex, paper_markdown
        from orchestrator.analysis.paper_tables import paper_tables

        shown = paper_tables(table, options, (spread or SpreadChoice.ci).value)
        print_text(latex(shown) if as_latex else paper_markdown(shown))
    elif as_json or as_csv:
        _print_records(comparison_records(table, options.with_default_tolerance()), as_json=as_json)
    else:
        _print_tables(table, options)


def _print_tables(results: DataFrame, options: ComparisonOptions) -> None:
    """Print the tables of a comparison, and the one that says how each row is exported."""
    from orchestrator.analysis.run_ids import runs_table
    from orchestrator.analysis.tables import comparison_tables

    exports = runs_table(results, most_rows=EXPORTED_ROWS)
    for table in (*comparison_tables(results, options), *([] if exports is None else [exports])):
        print_table(table)


def _print_records(records: list[dict[str, Any]], *, as_json: bool) -> None:  # cells of any type
    """Print records as JSON, or else as CSV."""
    if as_json:
        print_json(records, default=float)
        return
    import pandas

    print_text(pandas.DataFrame(records).to_csv(index=False).rstrip("\n"))


@app.command()
def report(
    sweep: SweepArgument,
    out: Annotated[
        Path | None,
        typer.Option(help="html, or pdf where Chromium is; default: SPACE.html here.", metavar="FILE"),
    ] = None,
    baseline: BaselineOption = None,
    tolerance: ToleranceOption = 1.0,
    interval: IntervalOption = IntervalChoice.t,
) -> None:
    """Write a sweep as one HTML file that needs no network: charts, tables, and what it was run with."""
    from orchestrator.report.page import write_report

    path = write_report(
        sweep, uri=uri(), out=out, baseline=baseline, tolerance=tolerance / 100, method=interval.value
    )
    print_line(path)


@app.command()
def figure(
    sweep: SweepArgument,
    x: Annotated[
        str, typer.Option(help="amount, sparsity, macs, macs_physical, parameters, bytes or latency.")
    ] = "sparsity",
    y: Annotated[str, typer.Option(help="accuracy, top5, worst_class or loss.")] = "accuracy",
    by: Annotated[str, typer.Option(help="A line for each value: columns, joined by commas.")] = "",
    facet: Annotated[str, typer.Option(help="A panel for each value of a column, as model.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="pdf, svg or png; default: SWEEP.pdf here.", metavar="FILE")
    ] = None,
    style: Annotated[str, typer.Option(help="paper (columns of ICML, text of NeurIPS) or talk.")] = "paper",
    seeds: Annotated[bool, typer.Option("--seeds", help="A point for each seed, no intervals.")] = False,
) -> None:
    """Draw a sweep for a paper or a talk, as vectors."""
    from orchestrator.analysis.figure_data import FigureOptions
    from orchestrator.report.figure_file import write_figure

    columns = tuple(column.strip() for column in by.split(",") if column.strip())
    options = FigureOptions(x, y, columns, facet, style, seeds)
    print_line(write_figure(sweep, options, uri=uri(), out=out))


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the pages are served.")] = 5000,
) -> None:
    """Serve the MLflow pages of this store, on 127.0.0.1."""
    from orchestrator.report.mlflow_ui import serve

    serve(uri(), port=port)


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
