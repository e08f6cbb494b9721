"""The commands compare, report, latency and ui."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import completion
from orchestrator.cli.options import (
    BaselineOption,
    CostChoice,
    IntervalChoice,
    IntervalOption,
    JsonOption,
    ToleranceOption,
    TrustOption,
    uri,
)
from orchestrator.cli.output import print_table
from orchestrator.system.console import print_json, print_line, print_text, resume_hint
from orchestrator.system.signals import handle_signals, received_signal
from pruning import kept_code

app = typer.Typer()


@app.command()
def compare(
    sweeps: Annotated[
        list[str],
        typer.Argument(
            help="A space's name (its latest sweep), or the id of a sweep, a trial or a dense run.",
            metavar="SWEEP|RUN ...",
            autocompletion=completion.sweeps,
        ),
    ],
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV on stdout.")] = False,
    baseline: BaselineOption = None,
    tolerance: ToleranceOption = 1.0,
    interval: IntervalOption = IntervalChoice.t,
    pareto: Annotated[
        CostChoice | None, typer.Option(help="The Pareto front of accuracy against this cost.")
    ] = None,
) -> None:
    """Compare settings: means and 95% intervals over seeds, differences, limits and Pareto fronts."""
    from orchestrator.analysis.comparison import ComparisonOptions, comparison_records
    from orchestrator.analysis.paired import read_baseline
    from orchestrator.analysis.results import combine_earlier_networks, combine_sweeps

    table = combine_sweeps(sweeps, uri=uri())
    options = ComparisonOptions(
        interval.value,
        None if baseline is None else read_baseline(baseline, table),
        tolerance / 100,
        None if pareto is None else pareto.value,
        combine_earlier_networks(table, uri=uri()),
    )
    if as_json:
        print_json(comparison_records(table, options), default=float)
    elif as_csv:
        import pandas

        print_text(pandas.DataFrame(comparison_records(table, options)).to_csv(index=False).rstrip("\n"))
    else:
        from orchestrator.analysis.tables import comparison_tables

        for comparison in comparison_tables(table, options):
            print_table(comparison)


@app.command()
def report(
    sweep: Annotated[
        str,
        typer.Argument(
            help="A space's name (its latest sweep) or a sweep's run id.",
            metavar="SWEEP",
            autocompletion=completion.sweeps,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where it is written; default: SPACE.html here.", metavar="FILE.html")
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
def latency(
    names: Annotated[
        list[str],
        typer.Argument(
            help="A space's name (its latest sweep), or the id of a sweep, a trial or a dense run.",
            metavar="SWEEP|RUN ...",
            autocompletion=completion.sweeps,
        ),
    ],
    batch: Annotated[str, typer.Option(help="Batch sizes.", metavar="N,N")] = "1,256",
    seconds_each: Annotated[
        float, typer.Option(min=0.01, help="For each form of a network at each batch size.")
    ] = 0.5,
    again: Annotated[bool, typer.Option("--again", help="Measure again what was measured before.")] = False,
    trust_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Time recorded networks on this CPU, dense, masked, cut out and sparse, and record it in their runs."""
    from orchestrator.latency.runs import (
        LatencyOptions,
        latency_records,
        latency_table,
        measure_named,
        parse_batch_sizes,
    )

    options = LatencyOptions(parse_batch_sizes(batch), seconds_each, again)
    with handle_signals(resume_hint()):
        try:
            with kept_code.trusting(trust_code):
                records = latency_records(measure_named(names, options, uri=uri()), options.batches)
        except KeyboardInterrupt:  # what was measured is recorded
            print_line(resume_hint(), error=True)
            raise typer.Exit(128 + received_signal()) from None
    if as_json:
        print_json(records)
    else:
        print_table(latency_table(records))


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the pages are served.")] = 5000,
) -> None:
    """Serve the MLflow pages of this store, on 127.0.0.1."""
    from orchestrator.report.mlflow_ui import serve

    serve(uri(), port=port)
