"""Options that several commands share, and what they stand for."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator import completion
from orchestrator.console import print_line

if TYPE_CHECKING:
    from orchestrator.space import Space


class DeviceChoice(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class PrecisionChoice(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"


class IntervalChoice(StrEnum):
    t = "t"
    bootstrap = "bootstrap"


class CostChoice(StrEnum):
    macs = "macs"
    bytes = "bytes"
    latency = "latency"
    parameters = "parameters"


SpaceOption = Annotated[
    str,
    typer.Option(
        "--space", help="A named space (see `list spaces`) or a file.", autocompletion=completion.spaces
    ),
]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        help="KEY=V1,V2: replace an axis or a field; repeatable.",
        metavar="KEY=V1,V2",
        autocompletion=completion.sets,
    ),
]
FromOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="Start from a network: a run's id, models:/name@alias, a folder, a .safetensors or .pth file.",
        metavar="MODEL",
        show_default=False,
    ),
]
DeviceOption = Annotated[DeviceChoice, typer.Option(help="auto takes a GPU where there is one.")]
StopOption = Annotated[
    str | None,
    typer.Option(
        help="Stop hopeless trials: median, percentile, halving, hyperband, threshold, patient, wilcoxon or "
        "pq_index, with options as in a space file; none overrides the space's.",
        metavar="PRUNER",
        autocompletion=completion.stops,
    ),
]
PrecisionOption = Annotated[PrecisionChoice, typer.Option(help="bf16 trains under autocast.")]
IntervalOption = Annotated[IntervalChoice, typer.Option(help="How 95% intervals are made.")]
BaselineOption = Annotated[
    str | None,
    typer.Option(
        help="Paired differences to it, by seed: a technique, AXIS=VALUE[, AXIS=VALUE], or dense.",
        metavar="TEXT",
    ),
]
ToleranceOption = Annotated[
    float,
    typer.Option(
        min=0, max=100, help="The highest sparsity within so many points of dense accuracy is told."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


def uri() -> str:
    """The store: MLFLOW_TRACKING_URI, or the default one."""
    from orchestrator.store.address import default_uri

    return default_uri(Path.cwd())


def load(name: str, sets: list[str], source: str | None = None) -> Space:
    """A named space or a file, as --set changes it, with what --from names; what that gives is told."""
    from orchestrator.space import load_space

    given = load_space(name, sets)
    if source is None:
        return given
    from orchestrator.transfer.descent import descended, told

    found = descended(given, source, uri=uri())
    for line in told(given, found):
        print_line(line, error=True)
    return found
