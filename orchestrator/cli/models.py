"""The commands export and register."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import TrustOption, uri
from orchestrator.system.console import print_line
from pruning import kept_code

app = typer.Typer()

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's id, or models:/name@alias, models:/name/3.")
]


@app.command()
def export(
    run: RunArgument,
    format: Annotated[
        str,
        typer.Option(help="pt2, onnx or safetensors.", autocompletion=lambda: ["pt2", "onnx", "safetensors"]),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The file, or a folder for it; default: named after the run, in this folder."),
    ] = None,
    quantize: Annotated[
        str,
        typer.Option(help="int8, with onnx: smaller, not always faster.", autocompletion=lambda: ["int8"]),
    ] = "",
    whole: Annotated[
        bool,
        typer.Option("--whole", help="Keep dead units and channels, as zeros, where they could be cut out."),
    ] = False,
    trust_code: TrustOption = False,
) -> None:
    """Write a recorded network to a file, compared with the network itself; FILE.json describes it."""
    from orchestrator.model_io.export import export as write

    path = (out or Path.cwd()).absolute()
    with kept_code.trusting(trust_code):
        exported = write(run, format=format, out=path, quantization=quantize, whole=whole, uri=uri())
    for line in exported.lines():
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

    with kept_code.trusting(trust_code):
        version = register_run(run, name=name, alias=alias, uri=uri())
    for line in version.lines():
        print_line(line)
