"""plan, sweep, status, rerun: what runs, or would."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator import completion
from orchestrator.cli.options import (
    DeviceChoice,
    DeviceOption,
    FromOption,
    JsonOption,
    PrecisionChoice,
    PrecisionOption,
    SetOption,
    SpaceOption,
    StopOption,
    load,
    uri,
)
from orchestrator.console import carry_on, print_summary
from orchestrator.errors import DiffersError
from orchestrator.launching.interruption import listening, received

if TYPE_CHECKING:
    from orchestrator.comparing.summary import Summary

app = typer.Typer()


@app.command()
def plan(
    space: SpaceOption,
    sets: SetOption = [],  # noqa: B006  typer copies it
    source: FromOption = None,
    device: DeviceOption = DeviceChoice.auto,
    precision: PrecisionOption = PrecisionChoice.fp32,
    as_json: JsonOption = False,
) -> None:
    """What a sweep would run: trials, shared trainings, what the store has, and an estimate."""
    from orchestrator.launching.launch import preview
    from orchestrator.launching.machine import resolve_device

    found = preview(
        load(space, sets, source), device=resolve_device(device.value), precision=precision.value, uri=uri()
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
    source: FromOption = None,
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
    retries: Annotated[
        int, typer.Option(min=0, help="How often a trial is tried again whose worker dies.")
    ] = 2,
    retry_failed: Annotated[bool, typer.Option(help="Run diverged trials again as well.")] = False,
    stop: StopOption = None,
    latency: Annotated[
        bool, typer.Option("--latency", help="Time the networks afterwards, as `orchestrate latency` does.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a space. Run again, it carries on: what is in the store is not run twice."""
    with listening(carry_on()):
        try:
            from orchestrator.launching.machine import resolve_device

            joined = None if address in ("", "local") else address
            found = resolve_device(device.value, address=joined)
            summary = None
            if source is None:
                summary = _done(space, sets, device=found, precision=precision.value, stop=stop)
            if summary is None:
                from orchestrator.launching.launch import launch
                from orchestrator.launching.running import Options

                options = Options(
                    found,
                    precision.value,
                    gpus_per_trial,
                    max_concurrent,
                    joined,
                    retry_failed,
                    stop,
                    retries,
                )
                summary = launch(load(space, sets, source), options, uri=uri())
        except KeyboardInterrupt:
            summary = None
        if summary is not None and as_json:
            typer.echo(json.dumps(summary.to_json(), indent=1))
        elif summary is not None:
            print_summary(summary)
        if latency and summary is not None and not received():
            from orchestrator.measuring.latency_runs import measure_sweep
            from orchestrator.tracking import Tracker

            with suppress(KeyboardInterrupt):
                measure_sweep(Tracker(uri(), summary.space), summary.sweep)
        if received():
            print(carry_on(), file=sys.stderr)
            raise typer.Exit(128 + received())
    raise typer.Exit(3 if summary is not None and summary.failed else 0)


def _done(space: str, sets: list[str], *, device: str, precision: str, stop: str | None) -> Summary | None:
    """The summary of a sweep whose trials are all in the store, without a plan."""
    from orchestrator.launching.request import answered, read_request

    request = read_request(space, sets, device=device, precision=precision, stop=stop)
    return None if request is None else answered(request, uri=uri())


@app.command()
def status(
    sweep: Annotated[
        str | None,
        typer.Argument(
            help="A space's name (its latest sweep) or a sweep's run id; default: the latest.",
            autocompletion=completion.sweeps,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """How far a sweep is, here or in another terminal, from the store alone."""
    from orchestrator.launching.status import status as ask

    found = ask(sweep, uri=uri())
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
    from orchestrator.carrying import rerun as module

    recorded = module.find(run, uri=uri())
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
