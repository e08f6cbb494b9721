"""The command compress: the most accurate network within a budget, searched for, chosen and exported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import (
    DeviceChoice,
    DeviceOption,
    FromOption,
    MaxConcurrentOption,
    SetOption,
    TrustOption,
    load,
    uri,
)
from orchestrator.cli.output import exit_on_signal
from orchestrator.errors import OrchestrateError, UsageError
from orchestrator.system.console import print_line
from pruning.user_code import own_code, stored_code

if TYPE_CHECKING:
    from orchestrator.execution.compress_search import Request
    from orchestrator.space.space import Space

app = typer.Typer()


ModelOption = Annotated[str, typer.Option(help="A model as in a space file.")]
DataOption = Annotated[str, typer.Option(help="A data set as in a space file.")]
BudgetOption = Annotated[
    list[str],
    typer.Option(
        "--budget",
        help="At most so much: macs<=50%, bytes<=100kB, latency<=2ms; repeatable.",
        metavar="TEXT",
    ),
]
WithinOption = Annotated[
    str | None,
    typer.Option(help="At most so many points below the dense network, as 1%.", metavar="1%"),
]
TrialsOption = Annotated[int, typer.Option(min=1, max=10_000, help="Points of the search.")]
SeedsOption = Annotated[int, typer.Option(min=1, max=100, help="Runs of each point.")]
EpochsOption = Annotated[int, typer.Option(min=1, help="Of the dense training, and of fine-tuning.")]
OutOption = Annotated[
    Path | None, typer.Option(help="A new folder; default: one named after the model and the data, here.")
]


@app.command()
def compress(
    model: ModelOption,
    data: DataOption,
    source: FromOption = None,
    budgets: BudgetOption = [],  # noqa: B006  typer copies it
    within: WithinOption = None,
    trials: TrialsOption = 60,
    seeds: SeedsOption = 1,
    epochs: EpochsOption = 10,
    sets: SetOption = [],  # noqa: B006  typer copies it
    out: OutOption = None,
    trust_code: TrustOption = False,
    device: DeviceOption = DeviceChoice.auto,
    max_concurrent: MaxConcurrentOption = None,
) -> None:
    """Find the most accurate network within a budget, and export it as a folder that is ready to use."""
    from orchestrator.shipping.budgets import parse_budgets, space_text
    from orchestrator.shipping.selection import parse_within

    parsed = parse_budgets(budgets)
    tolerance = None if within is None else parse_within(within)
    if not parsed and tolerance is None:
        raise UsageError("nothing is asked for; give --budget 'macs<=50%', or --within 1%, or both")
    text = space_text(
        model=model,
        dataset=data,
        budgets=parsed,
        trials=trials,
        seeds=seeds,
        epochs=epochs,
        starts_from_model=source is not None,
    )
    folder = Path.cwd() / _folder_name(model, data) if out is None else out.absolute()
    _check_folder(folder)
    with exit_on_signal() as signals:
        from orchestrator.execution.compress_search import Request
        from orchestrator.execution.compress_search import compress as search
        from orchestrator.execution.options import SweepOptions, resolve_device

        _check_names(model, data)
        request = Request(parsed, tolerance)
        with _space_file(folder.name, text) as file:
            space = _load_for(request, file, sets, source, trust_code=trust_code)
        options = SweepOptions(resolve_device(device.value), "fp32", max_concurrent=max_concurrent)
        compression = search(space, options, request, uri=uri(), signals=signals)
        if compression is None:
            return
        with stored_code.trusting(trust_code):
            for line in chain(compression.lines(), compression.export(folder)):
                print_line(line)


def _load_for(request: Request, file: str, sets: list[str], source: str | None, *, trust_code: bool) -> Space:
    """Load the space. BudgetError where no network of it can meet the request."""
    from orchestrator.execution.compress_search import check_budgets

    space = load(file, sets, source, trust_code=trust_code)
    check_budgets(space, request)
    return space


def _folder_name(model: str, data: str) -> str:
    return re.sub(r"[^\w.-]+", "-", f"compress-{model}-{data}").strip("-")[:100]


@contextmanager
def _space_file(name: str, text: str) -> Iterator[str]:
    """Write the space file here, where paths in it are relative to; where it is refused it is removed.

    UsageError where another file is there.
    """
    file = Path.cwd() / f"{name}.yaml"
    if (was_there := file.exists()) and file.read_text(encoding="utf-8") != text:
        raise UsageError(f"{file} asks for something else; remove it, or choose another folder with --out")
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from error
    try:
        yield str(file)
    except OrchestrateError:
        if not was_there:
            file.unlink()
        raise


def _check_folder(folder: Path) -> None:
    """Raise UsageError, before anything is trained, for a folder that cannot be made or written in."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise UsageError(f"--out {folder}: {existing} is a file; name a new folder")
    try:
        with TemporaryDirectory(dir=existing):
            pass
    except OSError as error:
        reason = f"{existing} cannot be written: {error.strerror}"
        raise UsageError(f"--out {folder}: {reason}; name another folder") from error


def _check_names(model: str, data: str) -> None:
    """Raise UsageError for a model or data set that a space file would refuse."""
    from orchestrator.space.values import canonical_dataset, canonical_model

    for option, value, canonical in (
        ("--model", model, canonical_model),
        ("--data", data, canonical_dataset),
    ):
        try:
            with own_code.relative_to(Path.cwd()):
                canonical(value)
        except ValueError as error:
            raise UsageError(f"{option}: {error}") from error
