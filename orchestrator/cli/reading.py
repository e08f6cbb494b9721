"""compare, ui: what came of it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from orchestrator.cli.options import JsonOption, uri
from orchestrator.console import print_table

app = typer.Typer()


@app.command()
def compare(
    sweeps: Annotated[
        list[str], typer.Argument(help="A space's name (its latest sweep) or a sweep's run id.")
    ],
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV on stdout.")] = False,
) -> None:
    """Mean and 95% interval over seeds of every setting of a sweep."""
    import pandas

    from orchestrator.compare import compared, tables
    from orchestrator.records import results

    found = [results(name, uri=uri()) for name in sweeps]
    # A trial of two sweeps is one: counted twice, it would narrow the intervals.
    # One that a sweep stopped early may be whole in another.
    table = pandas.concat(found, ignore_index=True)
    table = table.sort_values("status", key=lambda status: status != "finished", kind="stable")
    table = table.drop_duplicates("key", ignore_index=True)
    if as_json:
        typer.echo(json.dumps(compared(table), indent=1, default=float))
    elif as_csv:
        typer.echo(pandas.DataFrame(compared(table)).to_csv(index=False), nl=False)
    else:
        for part in tables(table):
            print_table(part)


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the pages are served.")] = 5000,
) -> None:
    """The MLflow pages of this store, on 127.0.0.1."""
    from orchestrator.pages import serve

    serve(uri(), port=port)
