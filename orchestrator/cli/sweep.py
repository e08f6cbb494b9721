"""The commands plan, sweep, status, deliver and rerun."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import completion
from orchestrator.cli.options import (
    AddressOption,
    CalibrateOption,
    CompileOption,
    DeviceChoice,
    DeviceOption,
    FastOption,
    FromOption,
    GpusPerTrialOption,
    JsonOption,
    LatencyOption,
    MaxConcurrentOption,
    PrecisionChoice,
    PrecisionOption,
    RetriesOption,
    RetryFailedOption,
    SetOption,
    SpaceArgument,
    SpaceOption,
    StackOption,
    StopOption,
    SyncBatchNormOption,
    TrustOption,
    chosen_space,
    load,
    uri,
)
from orchestrator.cli.output import exit_on_signal, print_result, print_summary
from orchestrator.errors import DiffersError
from orchestrator.system.console import print_json, print_line
from pruning.user_code import stored_code

if TYPE_CHECKING:
    from orchestrator.execution.options import SweepOptions
    from orchestrator.execution.summary import Summary
    from orchestrator.system.signals import SignalHandler

app = typer.Typer()
START_SECONDS = 2.5  # in which a sweep that is stopped while it starts may end by itself


@app.command()
def plan(
    name: SpaceArgument = None,
    space: SpaceOption = None,
    sets: SetOption = [],  # noqa: B006  typer copies it
    source: FromOption = None,
    trust_code: TrustOption = False,
    device: DeviceOption = DeviceChoice.auto,
    precision: PrecisionOption = PrecisionChoice.fp32,
    gpus_per_trial: GpusPerTrialOption = 1.0,
    sync_batch_norm: SyncBatchNormOption = False,
    fast: FastOption = False,
    compile: CompileOption = False,
    stack: StackOption = "auto",
    calibrate: CalibrateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a sweep would run: trials, shared trainings, what the store has, and an estimate."""
    from orchestrator.execution.options import SweepOptions, parse_stack, resolve_device
    from orchestrator.execution.sweep import preview
    from orchestrator.planning.step_times import NO_CALIBRATION, load_calibration

    most_stacked = parse_stack(stack)
    calibration = NO_CALIBRATION if calibrate is None else load_calibration(calibrate)
    # A plan for another machine's GPU needs none here.
    is_elsewhere = calibrate is not None and device is DeviceChoice.cuda
    options = SweepOptions(
        "cuda" if is_elsewhere else resolve_device(device.value),
        precision.value,
        gpus_per_trial=gpus_per_trial,
        fast=fast,
        compile=compile,
        stack=most_stacked,
        sync_batch_norm=sync_batch_norm,
    )
    options.check_devices(was_chosen=device is not DeviceChoice.auto)
    loaded = load(chosen_space(name, space), sets, source, trust_code=trust_code)
    result = preview(loaded, options, uri=uri(), calibration=calibration)
    print_result(result, as_json=as_json)


@app.command()
def sweep(
    name: SpaceArgument = None,
    space: SpaceOption = None,
    sets: SetOption = [],  # noqa: B006  typer copies it
    source: FromOption = None,
    trust_code: TrustOption = False,
    device: DeviceOption = DeviceChoice.auto,
    precision: PrecisionOption = PrecisionChoice.fp32,
    gpus_per_trial: GpusPerTrialOption = 1.0,
    sync_batch_norm: SyncBatchNormOption = False,
    fast: FastOption = False,
    compile: CompileOption = False,
    max_concurrent: MaxConcurrentOption = None,
    address: AddressOption = None,
    retries: RetriesOption = 2,
    retry_failed: RetryFailedOption = False,
    stop: StopOption = None,
    stack: StackOption = "auto",
    latency: LatencyOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a space. Run again, it carries on: what is in the store is not run twice."""
    space = chosen_space(name, space)
    with exit_on_signal(start_seconds=START_SECONDS) as signals:
        from orchestrator.execution.options import (
            SweepOptions,
            parse_stack,
            resolve_cluster_device,
            resolve_device,
        )

        address = None if address in ("", "local") else address
        options = SweepOptions(
            resolve_device(device.value)
            if address is None
            else resolve_cluster_device(device.value, address, signals),
            precision.value,
            gpus_per_trial=gpus_per_trial,
            max_concurrent=max_concurrent,
            address=address,
            retry_failed=retry_failed,
            stop=stop,
            retries=retries,
            fast=fast,
            compile=compile,
            stack=parse_stack(stack),
            sync_batch_norm=sync_batch_norm,
        )
        options.check_devices(was_chosen=device is not DeviceChoice.auto)
        summary = _run(space, sets, source, options, signals, trust_code=trust_code)
        print_json(summary.to_json()) if as_json else print_summary(summary)
        if latency and not signals.received:
            _measure_latency(summary)
    raise typer.Exit(3 if summary.failed else 0)


def _run(
    space: str,
    sets: list[str],
    source: str | None,
    options: SweepOptions,
    signals: SignalHandler,
    *,
    trust_code: bool,
) -> Summary:
    """Return the cached summary of a finished sweep, or else run the sweep."""
    if source is None:
        from orchestrator.execution.cached_summary import cached_summary, read_request

        request = read_request(space, sets, options)
        if request is not None and (summary := cached_summary(request, uri=uri())) is not None:
            return summary
    from orchestrator.execution.sweep import run_sweep

    loaded = load(space, sets, source, trust_code=trust_code)
    return run_sweep(loaded, options, uri=uri(), signals=signals)


def _measure_latency(summary: Summary) -> None:
    """Measure the latency of a sweep's networks."""
    from orchestrator.latency.recorded_networks import measure_sweep
    from orchestrator.tracking import Tracker

    measure_sweep(Tracker(uri(), summary.space), summary.sweep)


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
    """Show how far a sweep is, here or in another terminal, from the store alone."""
    from orchestrator.execution.status import status as load_status

    print_result(load_status(sweep, uri=uri()), as_json=as_json)


@app.command()
def deliver(as_json: JsonOption = False) -> None:
    """Deliver results that wait on this machine for a store that could not be reached, without a sweep."""
    with exit_on_signal():  # what is not delivered by then waits as before
        from orchestrator.errors import StoreError
        from orchestrator.execution.pending_results import deliver_late

        delivered = deliver_late(uri())
        print_result(delivered, as_json=as_json)
        if problem := delivered.problem():
            raise StoreError(problem)


@app.command()
def rerun(
    run: Annotated[
        str,
        typer.Argument(
            help="The id of a dense run or a trial, or a file of `orchestrate bundle`.",
            metavar="RUN|FILE.zip",
        ),
    ],
    check: Annotated[
        bool,
        typer.Option("--check", help="Compare bit for bit with what was recorded; exit 5 if it differs."),
    ] = False,
    trust_code: TrustOption = False,
) -> None:
    """Repeat a recorded run exactly, recording nothing, or a bundled sweep, and say what differs."""
    if run.lower().endswith(".zip"):
        _rerun_bundle(Path(run), trust_code=trust_code)
        return
    from orchestrator.model_io import rerun as reruns

    with stored_code.trusting(trust_code):
        recorded = reruns.find_recorded_run(run, uri=uri())
    for warning in recorded.reproducibility_warnings():
        print_line(f"note: {warning}", error=True)
    if recorded.dense.numerics.devices == 1:
        new = reruns.rerun(recorded)
    else:
        from orchestrator.execution.device_workers import devices_here

        with exit_on_signal() as signals, devices_here(recorded.config, signals) as run_training:
            new = reruns.rerun(recorded, run_training=run_training)
    print_line(f"{recorded.row.name}: {new.level}", error=True)
    if not check:
        for name, value in new.result.last.measurement.metrics("final").items():
            print_line(f"{name:<26} {value:.6g}")
        return
    comparison, facts = reruns.compare(recorded, new), reruns.environment_changes(recorded, new)
    for line in comparison.lines():
        print_line(line)
    for fact in facts or ["the same"]:
        print_line(f"environment: {fact}")
    if comparison.differences:
        raise DiffersError(f"the rerun differs from run {recorded.row.run_id}: {comparison.differences[0]}")


def _rerun_bundle(path: Path, *, trust_code: bool) -> None:
    """Make a bundled sweep again in the store, and compare; DiffersError where results differ."""
    from orchestrator.execution import bundle_rerun

    bundle_rerun.check_is_bundle(path)
    with exit_on_signal(start_seconds=START_SECONDS) as signals:
        with stored_code.trusting(trust_code):
            bundle = bundle_rerun.load_bundle(path)
        summary = bundle_rerun.remake(bundle, uri=uri(), signals=signals)
        print_line(summary.line(), error=True)
        if signals.received:
            return
        comparison = bundle_rerun.compare(bundle, summary, uri=uri())
    for line in comparison.lines():
        print_line(line)
    if not comparison.is_equal:
        first = (comparison.differences or [f"{comparison.missing[0]} was not made again"])[0]
        raise DiffersError(f"the sweep of {path} differs: {first}")
