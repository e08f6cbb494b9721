"""The command line: text in, text out. Results on stdout, everything else on stderr.

Heavy imports stand inside the commands, so that help and completion answer at once.
"""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from orchestrator.console import print_summary, print_table
from orchestrator.errors import DiffersError, OrchestrateError

if TYPE_CHECKING:
    pass

app = typer.Typer(
    help="Sweeps of neural-network pruning: plan, run, record, compare.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(
    help="Fetch, verify or locate data sets. `digits` needs nothing.", no_args_is_help=True
)
app.add_typer(data_app, name="data")


class DeviceChoice(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class PrecisionChoice(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"


SpaceOption = Annotated[str, typer.Option("--space", help="A named space (see `list spaces`) or a file.")]
SetOption = Annotated[
    list[str],
    typer.Option("--set", help="KEY=V1,V2: replace an axis or a field; repeatable.", metavar="KEY=V1,V2"),
]
DeviceOption = Annotated[DeviceChoice, typer.Option(help="auto takes a GPU where there is one.")]
StopOption = Annotated[
    str | None,
    typer.Option(
        help="Stop hopeless trials: median, percentile, halving, hyperband, threshold, patient, wilcoxon or "
        "pq_index, with options as in a space file; none overrides the space's.",
        metavar="PRUNER",
    ),
]
PrecisionOption = Annotated[PrecisionChoice, typer.Option(help="bf16 trains under autocast.")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


@app.callback()
def top(
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks for errors, too.")] = False,
) -> None:
    if debug:
        os.environ["ORCHESTRATE_DEBUG"] = "1"


@app.command()
def plan(
    space: SpaceOption,
    sets: SetOption = [],  # noqa: B006  typer copies it
    device: DeviceOption = DeviceChoice.auto,
    precision: PrecisionOption = PrecisionChoice.fp32,
    as_json: JsonOption = False,
) -> None:
    """What a sweep would run: trials, shared trainings, what the store has, and an estimate."""
    from orchestrator.launch import preview, resolve_device

    found = preview(
        _space(space, sets), device=resolve_device(device.value), precision=precision.value, uri=_uri()
    )
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
        return
    for line in found.lines():
        typer.echo(line)


@app.command()
def sweep(
    space: SpaceOption,
    sets: SetOption = [],  # noqa: B006  typer copies it
    device: DeviceOption = DeviceChoice.auto,
    precision: PrecisionOption = PrecisionChoice.fp32,
    gpus_per_trial: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="0.25 puts four trials on one GPU.")
    ] = 1.0,
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, help="Trials at once; default: what fits.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(envvar="RAY_ADDRESS", help="A Ray cluster to join instead of an own one.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option(help="Run diverged trials again as well.")] = False,
    stop: StopOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a space. Run again, it carries on: what is in the store is not run twice."""
    from orchestrator.launch import Options, launch, resolve_device

    options = Options(
        resolve_device(device.value),
        precision.value,
        gpus_per_trial,
        max_concurrent,
        address,
        retry_failed,
        stop,
    )
    summary = launch(_space(space, sets), options, uri=_uri())
    if as_json:
        typer.echo(json.dumps(summary.to_json(), indent=1))
    else:
        print_summary(summary, space, sets, stop)
    if summary.ended.signal:
        raise typer.Exit(128 + summary.ended.signal)
    raise typer.Exit(3 if summary.failed else 0)


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

    found = [results(name, uri=_uri()) for name in sweeps]
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
def status(
    sweep: Annotated[
        str | None,
        typer.Argument(help="A space's name (its latest sweep) or a sweep's run id; default: the latest."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """How far a sweep is, here or in another terminal, from the store alone."""
    from orchestrator.status import status as ask

    found = ask(sweep, uri=_uri())
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
        return
    for line in found.lines():
        typer.echo(line)


@app.command()
def rerun(
    run: Annotated[str, typer.Argument(help="The id of a dense run or a trial.")],
    check: Annotated[
        bool,
        typer.Option("--check", help="Compare bit for bit with what was recorded; exit 5 if it differs."),
    ] = False,
) -> None:
    """Do a recorded run again, exactly, from a dense network trained anew. Records nothing."""
    from orchestrator import rerun as module

    recorded = module.find(run, uri=_uri())
    for reservation in recorded.reservations():
        print(f"note: {reservation}", file=sys.stderr)
    new = module.again(recorded)
    print(f"{recorded.row.name}: {new.level}", file=sys.stderr)
    if not check:
        for name, value in new.result.last.measurement.metrics("final").items():
            typer.echo(f"{name:<26} {value:.6g}")
        return
    same, facts = module.compare(recorded, new), module.environment_differences(recorded, new)
    for line in same.lines():
        typer.echo(line)
    for fact in facts or ["the same"]:
        typer.echo(f"environment: {fact}")
    if same.differences:
        raise DiffersError(f"the rerun differs from run {recorded.row.run_id}: {same.differences[0]}")


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the pages are served.")] = 5000,
) -> None:
    """The MLflow pages of this store, on 127.0.0.1."""
    from orchestrator.pages import serve

    serve(_uri(), port=port)


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


def main() -> None:
    """The entry point: errors of the user end in one line and their exit code."""
    try:
        raise SystemExit(typer.main.get_command(app).main(standalone_mode=False) or 0)
    except OrchestrateError as error:
        if os.environ.get("ORCHESTRATE_DEBUG"):
            raise
        _fail(str(error), error.exit_code)
    except typer.exceptions.TyperException as error:
        if not error.format_message():  # no command was given, and the help is printed
            raise SystemExit(error.exit_code) from None
        _fail(f"{error.format_message()} See `orchestrate --help`.", error.exit_code)
    except typer.Abort:
        _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of a pipe had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None


def _fail(message: str, exit_code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(exit_code)


def _uri() -> str:
    from orchestrator.address import default_uri

    return default_uri(Path.cwd())


def _space(name: str, sets: list[str]) -> Any:  # a Space; its module is heavy
    from orchestrator.space import load_space

    return load_space(name, sets)


if __name__ == "__main__":
    main()
