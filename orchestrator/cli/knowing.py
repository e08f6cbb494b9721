"""list, show, data, doctor: what there is to choose from, and whether it works here."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from orchestrator import completion
from orchestrator.cli.options import JsonOption, uri

app = typer.Typer()
data_app = typer.Typer(
    help="Fetch, verify or locate data sets. `digits` needs nothing.", no_args_is_help=True
)
app.add_typer(data_app, name="data")


KIND_HELP = (
    "spaces, models, datasets, techniques, criteria, granularities, schedules, recoveries, "
    "preparations, distillations or stops."
)


@app.command("list")
def list_names(kind: Annotated[str, typer.Argument(help=KIND_HELP, autocompletion=completion.kinds)]) -> None:
    """The names that a space file may use."""
    from orchestrator.language.names import KINDS, names, others

    if kind in KINDS and not others(kind):
        found = list(names(kind).items())
    else:  # what another package brings is told by its code, which wants torch
        from orchestrator.language import catalogue

        found = catalogue.names(kind)
    width = max(len(name) for name, _ in found)
    for name, about in found:
        typer.echo(f"{name:<{width}}  {about}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Any name that `list` gives.", autocompletion=completion.known)],
) -> None:
    """All about a name: a space's file, or a method's options, their ranges and what it does."""
    from orchestrator.language.names import space_text

    text = space_text(name)
    if text is None:
        from orchestrator.language.catalogue import entry

        text = entry(name)
    typer.echo(text.rstrip("\n"))


@data_app.command("fetch")
def data_fetch(
    name: Annotated[
        str,
        typer.Argument(help="mnist, fashion-mnist, cifar10 or cifar100.", autocompletion=completion.datasets),
    ],
) -> None:
    """Download a data set and check it."""
    from orchestrator.data import fetch

    typer.echo(fetch(name))


@data_app.command("verify")
def data_verify(
    name: Annotated[str, typer.Argument(help="A data set.", autocompletion=completion.datasets)],
) -> None:
    """Check that a data set's files are there and whole."""
    from orchestrator.data import verify
    from orchestrator.errors import DataError

    if problems := verify(name):
        raise DataError("\n".join(problems))
    typer.echo(f"{name}: ok")


@data_app.command("path")
def data_path() -> None:
    """The folder where data sets lie; ORCHESTRATE_DATA_DIR sets it."""
    from orchestrator.data import path

    typer.echo(path())


@app.command()
def doctor(
    deep: Annotated[bool, typer.Option("--deep", help="Start Ray as well, and stop it.")] = False,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove the temporary folders of your sweeps that were killed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """What works here and what does not, each with what to do; exit 4 if a sweep on digits would not run."""
    from orchestrator.doctor import examine

    if clean:
        from orchestrator.sweep.session_folder import remove_dead

        removed = remove_dead()
        for folder in removed:
            print(f"removed {folder}", file=sys.stderr)
        print(f"{len(removed)} temporary folders of killed sweeps removed", file=sys.stderr)
    report = examine(uri(), deep=deep)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1))
    else:
        for line in report.lines():
            typer.echo(line)
    raise typer.Exit(0 if report.works else 4)
