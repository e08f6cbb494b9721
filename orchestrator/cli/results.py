"""The commands compare, report, latency, bench, ui, export and register, on what was recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli import completion
from orchestrator.cli.options import (
    BaselineOption,
    CompareToleranceOption,
    CostChoice,
    IntervalChoice,
    IntervalOption,
    JsonOption,
    LatencyDeviceChoice,
    LatexOption,
    MarkdownOption,
    SpreadChoice,
    SpreadOption,
    SweepArgument,
    ToleranceOption,
    TrustOption,
    check_one_of,
    parse_batch_sizes,
    uri,
)
from orchestrator.cli.output import exit_on_signal, print_result, print_table
from orchestrator.errors import UsageError
from orchestrator.system.console import print_json, print_line, print_text
from pruning import stored_code

app = typer.Typer()
EXPORTED_ROWS = 30  # of the table of `compare` that names runs
NamesArgument = Annotated[
    list[str],
    typer.Argument(
        help="A space's name (its latest sweep), or the id of a sweep, a trial or a dense run.",
        metavar="SWEEP|RUN ...",
        autocompletion=completion.sweeps,
    ),
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's id, or models:/name@alias, models:/name/3.")
]
ExportedArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN|SWEEP",
        help="A run's id, models:/name@alias or models:/name/3; a sweep with --best.",
        autocompletion=completion.sweeps,
    ),
]
FormatOption = Annotated[
    str,
    typer.Option(
        help="onnx, pt2, safetensors, openvino or tflite.",
        autocompletion=lambda: ["onnx", "pt2", "safetensors", "openvino", "tflite"],
    ),
]
InputOption = Annotated[
    str,
    typer.Option(
        help="float32: pixels in [0, 1]; uint8: bytes.", autocompletion=lambda: ["float32", "uint8"]
    ),
]
OutputOption = Annotated[
    str,
    typer.Option(help="logits or probabilities.", autocompletion=lambda: ["logits", "probabilities"]),
]
NoScalingOption = Annotated[
    bool, typer.Option("--no-scaling", help="The bare network, which takes floats that are scaled already.")
]
QuantizeOption = Annotated[
    str,
    typer.Option(
        help="int8, auto (int8 where it is no slower) or fp16.",
        autocompletion=lambda: ["int8", "auto", "fp16"],
    ),
]
WholeOption = Annotated[
    bool,
    typer.Option("--whole", help="Keep dead units and channels, as zeros, where they could be cut out."),
]


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
        from orchestrator.analysis.run_ids import runs_table
        from orchestrator.analysis.tables import comparison_tables

        exports = runs_table(table, most_rows=EXPORTED_ROWS)
        for comparison in (*comparison_tables(table, options), *([] if exports is None else [exports])):
            print_table(comparison)


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
def latency(
    names: NamesArgument,
    batch: Annotated[str, typer.Option(help="Batch sizes.", metavar="N,N")] = "1,256",
    seconds_each: Annotated[
        float, typer.Option(min=0.01, help="For each form of a network at each batch size.")
    ] = 0.5,
    again: Annotated[bool, typer.Option("--again", help="Measure again what was measured before.")] = False,
    device: Annotated[
        LatencyDeviceChoice, typer.Option(help="cuda times by events, and records it under names of its own.")
    ] = LatencyDeviceChoice.cpu,
    trust_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Time recorded networks, dense, masked, cut out and sparse, on this CPU or a GPU, and record it."""
    from orchestrator.latency.recorded_networks import LatencyOptions, measure_named
    from orchestrator.latency.records import latency_records, latency_table

    options = LatencyOptions(parse_batch_sizes(batch), seconds_each, again, device.value)
    with exit_on_signal():  # what was measured by then is recorded
        with stored_code.trusting(trust_code):
            rows = measure_named(names, options, uri=uri())
        records = latency_records(rows, options.batches, device=options.device)
        if as_json:
            print_json(records)
        else:
            print_table(latency_table(records, device=options.device))


@app.command()
def bench(
    source: Annotated[str, typer.Argument(metavar="FILE.onnx|RUN", help="An exported file, or a network.")],
    threads: Annotated[int, typer.Option(min=1, help="Threads of ONNX Runtime.")] = 1,
    batch: Annotated[str, typer.Option(help="Batch sizes.", metavar="N,N")] = "1,32",
    seconds_each: Annotated[float, typer.Option(min=0.01, help="For each batch size.")] = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Time an exported network in ONNX Runtime on this CPU, in a process of its own; needs no store."""
    from orchestrator.latency.exported_files import bench as measure

    batches = parse_batch_sizes(batch)
    result = measure(source, threads=threads, batches=batches, seconds=seconds_each, uri=uri())
    print_result(result, as_json=as_json)


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the pages are served.")] = 5000,
) -> None:
    """Serve the MLflow pages of this store, on 127.0.0.1."""
    from orchestrator.report.mlflow_ui import serve

    serve(uri(), port=port)


@app.command()
def export(
    run: ExportedArgument,
    format: FormatOption = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder, or a file such as net.onnx; default: a folder named after the run, here."
        ),
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="The most accurate run of SWEEP on validation images.")
    ] = False,
    within: Annotated[
        str | None,
        typer.Option(help="With --best: the smallest within so many points of it, as 1%.", metavar="1%"),
    ] = None,
    input: InputOption = "float32",
    output: OutputOption = "logits",
    no_scaling: NoScalingOption = False,
    quantize: QuantizeOption = "",
    whole: WholeOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Write a recorded network with its scaling, a model card, a sample and a check, or as a single file."""
    from orchestrator.model_io.export import ExportOptions
    from orchestrator.shipping.folder import ship
    from orchestrator.shipping.selection import parse_within

    options = ExportOptions(format, quantize, whole, input, output, not no_scaling)
    tolerance = None if within is None else parse_within(within)
    path = None if out is None else out.absolute()
    with stored_code.trusting(trust_code):
        shipment = ship(run, options, out=path, best=best, within=tolerance, uri=uri())
    for line in shipment.lines():
        print_line(line)


@app.command()
def register(
    run: RunArgument,
    name: Annotated[str, typer.Option(help="The registered model; it is made if there is none.")],
    alias: Annotated[str | None, typer.Option(help="A name for this version, as champion.")] = None,
    trust_code: TrustOption = False,
) -> None:
    """Register a recorded network as a version of a model in MLflow's registry."""
    from orchestrator.model_io.register import register as register_run

    with stored_code.trusting(trust_code):
        version = register_run(run, name=name, alias=alias, uri=uri())
    for line in version.lines():
        print_line(line)
