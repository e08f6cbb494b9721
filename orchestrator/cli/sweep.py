"""plan, sweep, status, deliver, rerun"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli import completion
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
from orchestrator.cli.output import print_summary
from orchestrator.errors import DiffersError
from orchestrator.system.console import print_json, print_line, resume_hint
from orchestrator.system.signals import handle_signals, received_signal

if TYPE_CHECKING:
    from orchestrator.config import Precision
    from orchestrator.execution.summary import Summary

app = typer.Typer()
START_SECONDS = 2.5  # for a sweep that is stopped as it starts


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
    from orchestrator.execution.options import resolve_device
    from orchestrator.execution.sweep import preview

    found = preview(
        load(space, sets, source), device=resolve_device(device.value), precision=precision.value, uri=uri()
    )
    if as_json:
        print_json(found.to_json())
        return
    for line in found.lines():
        print_line(line)


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
    with handle_signals(resume_hint(), start_seconds=START_SECONDS):
        summary = None
        with suppress(KeyboardInterrupt):
            summary = _swept(
                space,
                sets,
                source,
                device=device.value,
                precision=precision.value,
                gpus_per_trial=gpus_per_trial,
                max_concurrent=max_concurrent,
                address=None if address in ("", "local") else address,
                retry_failed=retry_failed,
                stop=stop,
                retries=retries,
            )
        if summary is not None:
            _tell(summary, as_json=as_json)
            if latency and not received_signal():
                _time(summary)
        if received_signal():
            print_line(resume_hint(), error=True)
            raise typer.Exit(128 + received_signal())
    raise typer.Exit(3 if summary is not None and summary.failed else 0)


def _swept(
    space: str,
    sets: list[str],
    source: str | None,
    *,
    device: str,
    precision: Precision,
    address: str | None,
    stop: str | None,
    **more: Any,  # the other fields of Options, each as its option is declared above
) -> Summary:
    """What the store answers at once, or else what running it comes to."""
    from orchestrator.execution.options import resolve_device

    found = resolve_device(device, address=address)
    if source is None and (done := _done(space, sets, device=found, precision=precision, stop=stop)):
        return done
    from orchestrator.execution.options import SweepOptions
    from orchestrator.execution.sweep import run_sweep

    options = SweepOptions(found, precision, address=address, stop=stop, **more)
    return run_sweep(load(space, sets, source), options, uri=uri())


def _tell(summary: Summary, *, as_json: bool) -> None:
    if as_json:
        print_json(summary.to_json())
    else:
        print_summary(summary)


def _time(summary: Summary) -> None:
    """Measure the latency of a sweep's networks."""
    from orchestrator.latency.runs import measure_sweep
    from orchestrator.tracking import Tracker

    with suppress(KeyboardInterrupt):
        measure_sweep(Tracker(uri(), summary.space), summary.sweep)


def _done(space: str, sets: list[str], *, device: str, precision: str, stop: str | None) -> Summary | None:
    """The summary of a sweep whose trials are all in the store, without a plan."""
    from orchestrator.execution.fast_path import cached_summary, read_request

    request = read_request(space, sets, device=device, precision=precision, stop=stop)
    return None if request is None else cached_summary(request, uri=uri())


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
    from orchestrator.execution.status import status as ask

    found = ask(sweep, uri=uri())
    if as_json:
        print_json(found.to_json())
        return
    for line in found.lines():
        print_line(line)


@app.command()
def deliver(as_json: JsonOption = False) -> None:
    """Results that wait on this machine for a store that was away: to the store, without a sweep."""
    with handle_signals(resume_hint()):
        from orchestrator.errors import StoreError
        from orchestrator.execution.late_results import deliver_late

        delivered = None
        with suppress(KeyboardInterrupt):
            delivered = deliver_late(uri())
        if delivered is None:  # what is not delivered yet waits as before
            print_line(resume_hint(), error=True)
            raise typer.Exit(128 + received_signal())
    if as_json:
        print_json(delivered.to_json())
    else:
        for line in delivered.lines():
            print_line(line)
    if problem := delivered.problem():
        raise StoreError(problem)


@app.command()
def rerun(
    run: Annotated[str, typer.Argument(help="The id of a dense run or a trial.")],
    check: Annotated[
        bool,
        typer.Option("--check", help="Compare bit for bit with what was recorded; exit 5 if it differs."),
    ] = False,
) -> None:
    """Do a recorded run again, exactly, from a dense network trained anew. Records nothing."""
    from orchestrator.model_io import rerun as module

    recorded = module.find_recorded_run(run, uri=uri())
    for warning in recorded.reproducibility_warnings():
        print_line(f"note: {warning}", error=True)
    new = module.rerun(recorded)
    print_line(f"{recorded.row.name}: {new.level}", error=True)
    if not check:
        for name, value in new.result.last.measurement.metrics("final").items():
            print_line(f"{name:<26} {value:.6g}")
        return
    same, facts = module.compare(recorded, new), module.environment_changes(recorded, new)
    for line in same.lines():
        print_line(line)
    for fact in facts or ["the same"]:
        print_line(f"environment: {fact}")
    if same.differences:
        raise DiffersError(f"the rerun differs from run {recorded.row.run_id}: {same.differences[0]}")
