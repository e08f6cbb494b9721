"""Find, or measure and store, the sensitivities of recorded dense networks: `orchestrate sensitivity`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from orchestrator.analysis.figure import render
from orchestrator.analysis.results import RUN_ID, find_sweep
from orchestrator.analysis.sensitivity import NetworkSensitivity, SensitivityGroup, make_sensitivity_figure
from orchestrator.config import Prune, TrialConfig
from orchestrator.data.files import data_folder
from orchestrator.data.loading import load_data
from orchestrator.errors import DeviceError, StoreError, UsageError, unknown_name
from orchestrator.model_io.load import saved_model
from orchestrator.model_io.rerun import find_recorded_run
from orchestrator.planning.fingerprints import trial_code
from orchestrator.planning.plan_file import PLAN, load_planned_rows
from orchestrator.space.values import canonical_method
from orchestrator.storage.runs import RunRecord
from orchestrator.system.determinism import deterministic, torch_threads
from orchestrator.system.files import check_can_write, naming_file, replace_file
from orchestrator.tracking import Tracker, open_store
from orchestrator.tracking.sensitivities import StoredSensitivities
from orchestrator.trial.context import make_context
from orchestrator.trial.sensitivity import Sensitivity, find_sensitivity, question_of
from pruning.criteria import criteria
from pruning.granularity import granularities
from pruning.registry import Registry

FORMATS = ("svg", "png", "pdf")


@dataclass(frozen=True)
class Choice:
    """The criterion and the granularity that are asked for, in any form; None: those of the trials."""

    criterion: str | None = None
    granularity: str | None = None


def find_sensitivities(
    names: Sequence[str], choice: Choice, *, uri: str, on_progress: Callable[[str], None]
) -> list[NetworkSensitivity]:
    """Return the sensitivities of the dense networks of sweeps and runs, measured and stored where need be.

    Of a sweep and a trial by the criterion and granularity of the trials, protected layers aside. UsageError
    where these cannot be measured, StoreError without such a sweep or run.
    """
    tracker = open_store(uri)
    measured: dict[str, NetworkSensitivity] = {}
    for row in _runs(tracker, names):
        config = _asked(row, choice, uri=uri)
        digest = question_of(config).digest
        if digest not in measured:
            measured[digest] = _find(tracker, config, on_progress)
    return list(measured.values())


def _runs(tracker: Tracker, names: Sequence[str]) -> list[RunRecord]:
    """Return the runs of names: one for each dense network and each way in which a sweep prunes it."""
    runs: dict[tuple[str, ...], RunRecord] = {}
    for name in names:
        row = tracker.get_run(name) if RUN_ID.fullmatch(name) else None
        if row is not None and row.tags.get("kind") in ("dense", "trial"):
            runs[(row.run_id,)] = row
            continue
        plan = load_planned_rows(tracker.read_text(find_sweep(tracker, name), PLAN))
        finished = tracker.find_all_finished({str(planned["key"]) for planned in plan})
        for planned in plan:
            if (trial := finished.get(str(planned["key"]))) is not None:
                ways = (trial.params.get(axis, "") for axis in ("criterion", "granularity", "protect"))
                options = sorted(f"{k}={v}" for k, v in trial.params.items() if k.startswith("criterion."))
                runs.setdefault((str(planned["dense_key"]), *ways, *options), trial)
    if not runs:
        raise StoreError(f"no trial of {', '.join(names)} has finished: there is no network to measure")
    return list(runs.values())


def _asked(row: RunRecord, choice: Choice, *, uri: str) -> TrialConfig:
    """Return the configuration that asks for what is wanted of a run's dense network."""
    config = find_recorded_run(row.run_id, uri=uri).config
    if isinstance(config, TrialConfig) and choice == Choice():
        return config
    dense = config.dense if isinstance(config, TrialConfig) else config
    default = Prune("magnitude", "weight", "layer", "one_shot", 0.0)  # of a dense run, as of a space
    recorded = config.prune if isinstance(config, TrialConfig) else default
    prune = replace(
        default,
        criterion=_method(choice.criterion, recorded.criterion, "criterion", criteria),
        granularity=_method(choice.granularity, recorded.granularity, "granularity", granularities),
        protect=recorded.protect,
    )
    code = trial_code(prune, recover="none", prepare="none", distill="none")
    return TrialConfig(dense, prune, "none", "", trial_code=code)


def _method(text: str | None, recorded: str, axis: str, registry: Registry) -> str:
    if text is None:
        return recorded
    try:
        return canonical_method(text, registry)
    except ValueError as error:
        raise UsageError(f"--{axis}: {error}") from error


def _find(tracker: Tracker, config: TrialConfig, on_progress: Callable[[str], None]) -> NetworkSensitivity:
    row = tracker.find_finished(config.dense.key())
    if row is None:
        raise StoreError(f"the dense network {config.dense.key()[:16]} is not in the store; sweep again")
    if config.dense.start == "masked":
        raise UsageError(f"the dense network of run {row.run_id} is pruned already: start masked")
    if config.prune.granularity.startswith("nm"):
        raise UsageError("granularity nm removes a fixed part of every row: no tenth of a layer can go alone")
    store = StoredSensitivities(tracker)
    answer = store.sensitivity(question_of(config))
    if answer is None:
        on_progress(f"measuring {row.name}: {config.prune.criterion}, {config.prune.granularity}")
        answer = _measure(tracker, row, config, store)
    return NetworkSensitivity(row.run_id, config.dense, answer)


def _measure(
    tracker: Tracker, row: RunRecord, config: TrialConfig, store: StoredSensitivities
) -> Sensitivity:
    numerics = config.dense.numerics
    if numerics.device == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"run {row.run_id} was made on a GPU, and torch sees no CUDA device here")
    data = load_data(config.dense.dataset, str(data_folder()), numerics.device)
    state = saved_model(tracker, row).state()
    context = replace(make_context(config, data), dense_state=state)
    try:
        with (
            torch_threads(numerics.threads),
            deterministic(numerics.device, tf32=numerics.tf32, fast=numerics.fast),
        ):
            return find_sensitivity(context, store)
    except ValueError as error:
        raise UsageError(f"{config.prune.criterion}, {config.prune.granularity}: {error}") from error


def check_picture(out: Path) -> Path:
    """Return the absolute path of a picture.

    UsageError for another ending than those of pictures, and for a file that cannot be written.
    """
    path = out.absolute()
    if (format := path.suffix.removeprefix(".").lower()) not in FORMATS:
        raise UsageError(f"--out {path}: {unknown_name('format', format, FORMATS)}")
    check_can_write(path)
    return path


def write_picture(groups: Sequence[SensitivityGroup], path: Path) -> Path:
    """Draw the groups into a file, and return its path. UsageError where it cannot be written."""
    with naming_file(path):
        replace_file(path, render(make_sensitivity_figure(groups), path.suffix.removeprefix(".").lower()))
    return path
