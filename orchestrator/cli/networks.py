"""The commands latency, bench, sensitivity, export and register: recorded networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import completion
from orchestrator.cli.options import (
    JsonOption,
    LatencyDeviceChoice,
    NamesArgument,
    TrustOption,
    check_one_of,
    parse_batch_sizes,
    uri,
)
from orchestrator.cli.output import exit_on_signal, print_result, print_table
from orchestrator.system.console import print_json, print_line, print_text
from pruning.user_code import stored_code

app = typer.Typer()
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
CriterionOption = Annotated[
    str | None,
    typer.Option(help="As in a space file; default: the trials', of a dense run magnitude.", metavar="TEXT"),
]
GranularityOption = Annotated[
    str | None,
    typer.Option(help="weight, unit, channel or head; default: the trials', of a dense run weight."),
]
PictureOption = Annotated[Path | None, typer.Option(help="A picture: svg, png or pdf.", metavar="FILE")]


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
def sensitivity(
    names: NamesArgument,
    criterion: CriterionOption = None,
    granularity: GranularityOption = None,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV on stdout.")] = False,
    out: PictureOption = None,
    trust_code: TrustOption = False,
) -> None:
    """Remove parts of one layer at a time from dense networks: loss and accuracy on validation images."""
    check_one_of(json=as_json, csv=as_csv)
    from orchestrator.analysis.sensitivity import (
        group_sensitivities,
        sensitivity_records,
        sensitivity_table,
    )
    from orchestrator.report.sensitivity_measurement import (
        Choice,
        check_picture,
        find_sensitivities,
        write_picture,
    )

    path = None if out is None else check_picture(out)
    with exit_on_signal(), stored_code.trusting(trust_code):  # what was measured by then is stored
        networks = find_sensitivities(
            names,
            Choice(criterion, granularity),
            uri=uri(),
            on_progress=lambda line: print_line(line, error=True),
        )
        groups = group_sensitivities(networks)
        if as_json:
            print_json(sensitivity_records(networks))
        elif as_csv:
            import pandas

            print_text(pandas.DataFrame(sensitivity_records(networks)).to_csv(index=False).rstrip("\n"))
        else:
            for group in groups:
                print_table(sensitivity_table(group))
        if path is not None:
            print_line(write_picture(groups, path), error=as_json or as_csv)


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
