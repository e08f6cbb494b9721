"""list, show, data: what there is to choose from."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer()
data_app = typer.Typer(
    help="Fetch, verify or locate data sets. `digits` needs nothing.", no_args_is_help=True
)
app.add_typer(data_app, name="data")


KIND_HELP = (
    "spaces, models, datasets, techniques, criteria, granularities, schedules, recoveries, "
    "preparations or distillations."
)


@app.command("list")
def list_names(kind: Annotated[str, typer.Argument(help=KIND_HELP)]) -> None:
    """The names that a space file may use."""
    from orchestrator.catalogue import names

    found = names(kind)
    width = max(len(name) for name, _ in found)
    for name, about in found:
        typer.echo(f"{name:<{width}}  {about}")


@app.command()
def show(name: Annotated[str, typer.Argument(help="Any name that `list` gives.")]) -> None:
    """All about a name: a space's file, or a method's options, their ranges and what it does."""
    from orchestrator.catalogue import entry

    typer.echo(entry(name).rstrip("\n"))


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="mnist, fashion-mnist, cifar10 or cifar100.")],
) -> None:
    """Download a data set and check it."""
    from orchestrator.data import fetch

    typer.echo(fetch(name))


@data_app.command("verify")
def data_verify(name: Annotated[str, typer.Argument(help="A data set.")]) -> None:
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
