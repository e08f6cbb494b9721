"""What a command is started with: its words, the environment's settings and the working folder, as text."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import completion
from orchestrator.errors import UnusableError, UsageError
from orchestrator.formatting import is_encodable
from orchestrator.system.console import print_line

if TYPE_CHECKING:
    from orchestrator.space.space import Space


SETTINGS = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "ORCHESTRATE_DATA_DIR", "TMPDIR", "HOME")


def check_outside() -> None:
    """UsageError for bytes that are no text, UnusableError for a working folder that is not there."""
    for word in sys.argv[1:]:
        if not is_encodable(word):
            raise UsageError(f"{word!r:.200} is no text in this machine's encoding; write it as UTF-8")
    for name in SETTINGS:
        if not is_encodable(value := os.environ.get(name, "")):
            raise UsageError(f"{name} is {value!r:.200}, no text in this machine's encoding; use UTF-8")
    try:
        folder = os.getcwd()
    except OSError as error:
        raise UnusableError(f"the working folder cannot be used: {error.strerror}; go to another") from error
    if not is_encodable(folder):
        raise UnusableError(f"the working folder is {folder!r:.200}, no text in UTF-8; go to another")


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
    from orchestrator.storage.uri import default_uri

    return default_uri(Path.cwd())


def load(name: str, sets: list[str], source: str | None = None) -> Space:
    """A named space or a file, as --set changes it, with what --from names; what that gives is told."""
    from orchestrator.space.space import load_space

    given = load_space(name, sets)
    if source is None:
        return given
    from orchestrator.model_io.pretrained import transfer_messages, with_source_model

    found = with_source_model(given, source, uri=uri())
    for line in transfer_messages(given, found):
        print_line(line, error=True)
    return found
