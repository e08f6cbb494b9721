"""Options that several commands share, and a check of arguments, environment and working folder."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import completion
from orchestrator.config import MOST_DEVICES
from orchestrator.errors import UnusableError, UsageError
from orchestrator.formatting import is_encodable
from orchestrator.system.console import print_line
from pruning.user_code import stored_code

if TYPE_CHECKING:
    from orchestrator.space.space import Space


SETTINGS = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "ORCHESTRATE_DATA_DIR", "TMPDIR", "HOME")


def check_environment() -> None:
    """Raise UsageError for bytes that are no text, UnusableError for a working folder that is gone."""
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


class SpreadChoice(StrEnum):
    ci = "ci"
    std = "std"


class LatencyDeviceChoice(StrEnum):
    cpu = "cpu"
    cuda = "cuda"


class CostChoice(StrEnum):
    macs = "macs"
    bytes = "bytes"
    latency = "latency"
    parameters = "parameters"


SweepArgument = Annotated[
    str,
    typer.Argument(
        help="A space's name (its latest sweep) or a sweep's run id.",
        metavar="SWEEP",
        autocompletion=completion.sweeps,
    ),
]
NamesArgument = Annotated[
    list[str],
    typer.Argument(
        help="A space's name (its latest sweep), or the id of a sweep, a trial or a dense run.",
        metavar="SWEEP|RUN ...",
        autocompletion=completion.sweeps,
    ),
]
SpaceArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="SPACE",
        help="A named space (see `list spaces`) or a file; --space says the same.",
        show_default=False,
        autocompletion=completion.spaces,
    ),
]
SpaceOption = Annotated[
    str | None,
    typer.Option(
        "--space",
        help="A named space (see `list spaces`) or a file.",
        show_default=False,
        autocompletion=completion.spaces,
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
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Run the copy of the user's own file that the store keeps; it may do anything that you may.",
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
FastOption = Annotated[
    bool,
    typer.Option(
        "--fast", help="On a GPU: TF32, and the fastest kernels, which may give other bits each time."
    ),
]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Train what torch.compile makes of a network; needs a compiler.")
]
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
    typer.Option(min=0, max=100, help="Show the highest sparsity within so many points of dense accuracy."),
]
CompareToleranceOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=100,
        help="The highest sparsity within so many points of dense, alone; default: 1, and the means.",
        show_default=False,
    ),
]
LatexOption = Annotated[
    bool, typer.Option("--latex", help="A table for a paper (booktabs); a column for each thing varied.")
]
MarkdownOption = Annotated[bool, typer.Option("--markdown", help="The same table as Markdown.")]
SpreadOption = Annotated[
    SpreadChoice | None,
    typer.Option(
        "--pm",
        help="What follows ± with --latex and --markdown: ci, the interval, or std, the deviation of seeds.",
        show_default="ci",
    ),
]
GpusPerTrialOption = Annotated[
    float,
    typer.Option(
        min=0.01,
        max=float(MOST_DEVICES),
        help="0.25 puts four trials on one GPU; with 4 each trial shares its batches among four GPUs.",
    ),
]
SyncBatchNormOption = Annotated[
    bool, typer.Option("--sync-batch-norm", help="With several GPUs: batch norm over all of a batch.")
]
CalibrateOption = Annotated[
    Path | None,
    typer.Option(
        help="Step times of a GPU, as `make gpu-check` wrote them, for the estimate.",
        metavar="FILE",
        show_default=False,
    ),
]
MaxConcurrentOption = Annotated[int | None, typer.Option(min=1, help="Trials at once; default: what fits.")]
AddressOption = Annotated[
    str | None, typer.Option(envvar="RAY_ADDRESS", help="A Ray cluster to join instead of an own one.")
]
RetriesOption = Annotated[
    int, typer.Option(min=0, help="How often a trial is tried again whose worker dies.")
]
StackOption = Annotated[
    str,
    typer.Option(
        "--stack",
        metavar="auto|off|N",
        help="How many trainings of one shape may run as one, where their results have the same bits.",
        autocompletion=completion.stacks,
    ),
]
RetryFailedOption = Annotated[bool, typer.Option(help="Run diverged trials again as well.")]
LatencyOption = Annotated[
    bool, typer.Option("--latency", help="Time the networks afterwards, as `orchestrate latency` does.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


def uri() -> str:
    """Return the store: MLFLOW_TRACKING_URI, or the default one."""
    from orchestrator.storage.uri import default_uri

    return default_uri(Path.cwd())


def chosen_space(argument: str | None, option: str | None) -> str:
    """Return the space that a command names, once. UsageError for none, and for two."""
    if argument is not None and option is not None:
        raise UsageError(f"{argument} and --space {option} are two spaces; name one")
    if (name := argument if option is None else option) is None:
        raise UsageError("no space is named; give a file or one of `orchestrate list spaces`, as quickstart")
    return name


def check_one_of(**options: bool) -> None:
    """Raise UsageError where two of these options are given, which exclude each other."""
    formats = [f"--{name}" for name, is_given in options.items() if is_given]
    if len(formats) > 1:
        raise UsageError(f"{' and '.join(formats)} are several formats; give one")


def parse_batch_sizes(text: str) -> tuple[int, ...]:
    """Parse `1,256`; UsageError for anything but whole numbers from 1 up."""
    sizes = [int(size) if size.strip().isdecimal() else 0 for size in text.split(",")]
    if not all(sizes):
        raise UsageError(f"--batch {text[:80]}: give whole numbers from 1 up, such as 1,256")
    return tuple(dict.fromkeys(sizes))


def load(name: str, sets: list[str], source: str | None = None, *, trust_code: bool = False) -> Space:
    """Load a named space or a file with its --set and --from options, and print what is transferred."""
    from orchestrator.space.space import load_space

    space = load_space(name, sets)
    if source is None:
        return space
    from orchestrator.model_io.pretrained import transfer_messages, with_source_model

    with stored_code.trusting(trust_code):
        with_source = with_source_model(space, source, uri=uri())
    for line in transfer_messages(space, with_source):
        print_line(line, error=True)
    return with_source
