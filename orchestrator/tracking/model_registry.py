"""Read and create models and versions in MLflow's model registry."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from mlflow.entities import LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException

from orchestrator.errors import StoreError, unknown_name
from orchestrator.storage.runs import RunRecord
from orchestrator.tracking.client import Tracker

if TYPE_CHECKING:
    from torch import Tensor, nn

MODELS = "models:/"
PROGRAM = Path("data", "model.pt2")  # where mlflow.pytorch saves an exported program
VARIABLE = "MLFLOW_TRACKING_URI"


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model; `artifact_uri` is that of its logged model."""

    name: str
    version: str
    run_id: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    artifact_uri: str


def load_version(tracker: Tracker, name: str, *, version: str = "", alias: str = "") -> ModelVersion:
    """Return a version by its number or its alias. StoreError, which lists what exists, for any other."""
    client = tracker.client
    with tracker.translating_errors():
        try:
            if alias:
                entry = client.get_model_version_by_alias(name, alias)
            else:
                entry = client.get_model_version(name, version)
        except MlflowException as error:
            raise StoreError(_unknown_version(tracker, name, alias or version)) from error
        if not str(entry.source).startswith(f"{MODELS}m-"):
            raise StoreError(
                f"{name} version {entry.version} was not made by `orchestrate register`, and other forms of "
                f"a model are never opened; its run is {entry.run_id or 'not known'}"
            )
        model = client.get_logged_model(str(entry.source).removeprefix(MODELS))
    return ModelVersion(
        name,
        str(entry.version),
        entry.run_id or "",
        entry.tags,
        model.params or {},
        {metric.key: metric.value for metric in model.metrics or ()},
        str(model.artifact_location),
    )


def _unknown_version(tracker: Tracker, name: str, version: str) -> str:
    client = tracker.client
    names = [model.name for model in client.search_registered_models()]
    if not names:
        return f"no model is registered yet, {name!r} neither; `orchestrate register` makes one"
    if name not in names:
        return f"{unknown_name('registered model', name, names)}; `orchestrate register` makes one"
    versions = [str(entry.version) for entry in client.search_model_versions(f"name = '{name}'")]
    allowed = [*versions, *client.get_registered_model(name).aliases]
    return f"{name}: {unknown_name('version or alias', version, allowed)}"


def find_version(tracker: Tracker, name: str, tags: Mapping[str, str]) -> str | None:
    """Return the latest version of a registered model that has all of these tags, or None."""
    with tracker.translating_errors():
        versions = tracker.client.search_model_versions(f"name = '{name}'")
    numbers = [int(entry.version) for entry in versions if tags.items() <= entry.tags.items()]
    return str(max(numbers)) if numbers else None


@contextmanager
def create_logged_model(tracker: Tracker, row: RunRecord, name: str) -> Iterator[str]:
    """Yield the id of a new logged model of a run: READY at the end of the block, FAILED if it raises.

    The model gets the run's params and final metrics.
    """
    client = tracker.client
    with tracker.translating_errors():
        experiment_id = client.get_run(row.run_id).info.experiment_id
        model = client.create_logged_model(experiment_id, name, row.run_id, params=dict(row.params))
    try:
        yield model.model_id
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    now = int(time.time() * 1000)
    finals = {key: value for key, value in row.metrics.items() if key.startswith("final/")}
    with tracker.translating_errors():
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(row.run_id, [LoggedModelOutput(model.model_id, step=0)])
        client.log_batch(
            row.run_id,
            [Metric(key, value, now, 0, model_id=model.model_id) for key, value in finals.items()],
        )


def save_program(folder: Path, net: nn.Module, images: Tensor, *, row: RunRecord, model_id: str) -> Path:
    """Save a network as MLflow's pytorch model, an exported program (pt2), in a new folder; return its path.

    `images`: an example of two or more images, (N, C, H, W): export takes a batch size of 1 for fixed.
    """
    import mlflow.pytorch  # takes seconds, and no other use of a store needs it
    import torch
    from mlflow.models import Model

    mlflow.pytorch.save_model(
        net,
        folder,
        mlflow_model=Model(run_id=row.run_id, model_id=model_id, model_uuid=model_id),
        input_example=images.numpy(),
        serialization_format="pt2",
        pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", "numpy"],
    )
    return folder / PROGRAM


def upload_model_files(tracker: Tracker, model_id: str, folder: Path) -> None:
    """Upload the files of a logged model."""
    with tracker.translating_errors():
        tracker.client.log_model_artifacts(model_id, str(folder))


def add_version(
    tracker: Tracker, name: str, model_id: str, *, run_id: str, tags: Mapping[str, str], description: str
) -> str:
    """Create a version of a registered model, and the model if it is missing; return the version's number."""
    client, source = tracker.client, f"{MODELS}{model_id}"
    with tracker.translating_errors():
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        with _default_tracking_uri(tracker.uri):
            entry = client.create_model_version(
                name, source, run_id, dict(tags), description=description, model_id=model_id
            )
    return str(entry.version)


def set_alias(tracker: Tracker, name: str, alias: str, version: str) -> None:
    """Give the alias to this version, and take it from any other."""
    with tracker.translating_errors():
        tracker.client.set_registered_model_alias(name, alias, version)


@contextmanager
def _default_tracking_uri(uri: str) -> Iterator[None]:
    """Within the block, the store is the process's default one.

    MLflow 3.17 searches the default store for a version's source, whatever store its client has: it would
    create a new one in the working directory, and not find the model there.
    """
    variable = os.environ.get(VARIABLE)
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None is allowed, and resets it
        os.environ.pop(VARIABLE, None)  # `set_tracking_uri` sets it
        os.environ |= {VARIABLE: variable} if variable else {}
