"""The commands init, list, show, data and doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import completion
from orchestrator.cli.options import JsonOption, uri
from orchestrator.cli.output import print_result
from orchestrator.system.console import print_line, print_text

app = typer.Typer()
data_app = typer.Typer(
    help="Fetch, verify, check, list or locate data sets. `digits` needs nothing.", no_args_is_help=True
)
app.add_typer(data_app, name="data")


KIND_HELP = (
    "spaces, models, datasets, techniques, criteria, granularities, schedules, recoveries, "
    "preparations, distillations or stops."
)


@app.command()
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="The folder; it is made if need be.")
    ] = Path(),
) -> None:
    """Write a space, a network and a .gitignore to start from."""
    from orchestrator.space.starter import write_starter

    for path in write_starter(folder):
        print_line(path)
    space = folder / "space.yaml"
    print_line(
        f"next: edit them, then `orchestrate plan {space}` and `orchestrate sweep {space}`", error=True
    )


@app.command("list")
def list_names(kind: Annotated[str, typer.Argument(help=KIND_HELP, autocompletion=completion.kinds)]) -> None:
    """List the names that a space file may use."""
    from orchestrator.space.names import KINDS, names, plugin_names

    if kind in KINDS and not plugin_names(kind):
        rows = list(names(kind).items())
    else:  # plug-ins describe themselves in their code, which imports torch
        from orchestrator.space import catalog

        rows = catalog.names(kind)
    width = max(len(name) for name, _ in rows)
    for name, about in rows:
        print_line(f"{name:<{width}}  {about}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Any name that `list` gives.", autocompletion=completion.known)],
) -> None:
    """Show a space's file, or what a method does with its options and their ranges."""
    from orchestrator.space.names import space_text

    text = space_text(name)
    if text is None:
        from orchestrator.space.catalog import describe

        text = describe(name)
    print_text(text.rstrip("\n"))


def _canonical(dataset: str) -> str:
    """Return the canonical text of a data set as a person writes it."""
    from orchestrator.errors import SpaceError
    from orchestrator.space.values import canonical_dataset

    try:
        return canonical_dataset(dataset)
    except ValueError as error:
        raise SpaceError(str(error)) from error


@data_app.command("fetch")
def data_fetch(
    name: Annotated[
        str,
        typer.Argument(
            help="mnist, fashion-mnist, cifar10, cifar100 or torchvision.NAME.",
            autocompletion=completion.datasets,
        ),
    ],
) -> None:
    """Download a data set and check it."""
    from orchestrator.data.files import fetch

    print_line(fetch(_canonical(name)))


@data_app.command("verify")
def data_verify(
    name: Annotated[str, typer.Argument(help="A data set.", autocompletion=completion.datasets)],
) -> None:
    """Check that a data set's files are there and whole."""
    from orchestrator.data.files import verify
    from orchestrator.errors import DataError

    if problems := verify(_canonical(name)):
        raise DataError("; ".join(problems))
    print_line(f"{name}: ok")


@data_app.command("check")
def data_check(
    dataset: Annotated[
        str,
        typer.Argument(
            help="A data set as in a space file: folder(path='photos').", autocompletion=completion.datasets
        ),
    ],
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Write samples of each class to this PNG.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read a data set: counts by class and split, broken and doubled images, mean and deviation."""
    from orchestrator.data import checking

    if sheet is not None:
        checking.check_sheet(sheet)  # before the images are read
    checked = checking.check(_canonical(dataset))
    if sheet is not None:
        checking.write_sheet(checked, sheet)
    print_result(checked, as_json=as_json)
    if checked.broken:
        raise typer.Exit(4)


@data_app.command("list")
def data_list() -> None:
    """List the data sets, and which of them are on this machine; their files are not checked."""
    from orchestrator.data.checking import states

    rows = list(states())
    width = max(len(name) for name, _, _ in rows)
    for name, state, about in rows:
        print_line(f"{name:<{width}}  {state:<12}  {about}")


@data_app.command("path")
def data_folder() -> None:
    """Print the folder of the data sets; ORCHESTRATE_DATA_DIR sets it."""
    from orchestrator.data.files import data_folder

    print_line(data_folder())


@app.command()
def doctor(
    deep: Annotated[bool, typer.Option("--deep", help="Start Ray as well, and stop it.")] = False,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove the temporary folders of your sweeps that were killed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check what works on this machine, and how to fix the rest; exit 4 if a sweep on digits cannot run."""
    from orchestrator.doctor import run_checks

    if clean:
        from orchestrator.execution.ray_cleanup import remove_dead

        removed = remove_dead()
        for folder in removed:
            print_line(f"removed {folder}", error=True)
        print_line(f"{len(removed)} temporary folders of killed sweeps removed", error=True)
    report = run_checks(uri(), deep=deep)
    print_result(report, as_json=as_json)
    raise typer.Exit(0 if report.works else 4)
