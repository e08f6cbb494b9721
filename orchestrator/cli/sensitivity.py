"""The command sensitivity: which layers a network can spare, as a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import JsonOption, TrustOption, check_one_of, uri
from orchestrator.cli.output import exit_on_signal, print_table
from orchestrator.cli.results import NamesArgument
from orchestrator.system.console import print_json, print_line, print_text
from pruning import stored_code

app = typer.Typer()
CriterionOption = Annotated[
    str | None,
    typer.Option(help="As in a space file; default: the trials', of a dense run magnitude.", metavar="TEXT"),
]
GranularityOption = Annotated[
    str | None,
    typer.Option(help="weight, unit, channel or head; default: the trials', of a dense run weight."),
]
OutOption = Annotated[Path | None, typer.Option(help="A picture: svg, png or pdf.", metavar="FILE")]


@app.command()
def sensitivity(
    names: NamesArgument,
    criterion: CriterionOption = None,
    granularity: GranularityOption = None,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV on stdout.")] = False,
    out: OutOption = None,
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
