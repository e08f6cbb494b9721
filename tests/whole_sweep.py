"""A sweep recorded without Ray, as a real one is: of two trials and their dense training in a second."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from orchestrator.execution.options import SweepOptions
from orchestrator.execution.sweep_artifacts import publish_results, reproduce_command
from orchestrator.execution.worker import run_task
from orchestrator.planning.plan import make_plan
from orchestrator.planning.plan_file import PLAN
from orchestrator.planning.resume import digest, plan_text, remaining_tasks
from orchestrator.space.space import Space, load_space
from orchestrator.storage.runs import COMMAND
from orchestrator.storage.uri import outbox_folder
from orchestrator.system import provenance
from orchestrator.tracking import ActiveRun, Tracker, breaker_for, initialise
from orchestrator.tracking.lease import acquire_lease
from orchestrator.tracking.source_models import upload_source_model
from orchestrator.trial.task import SweepOutcome, Task, WorkerSettings

NAME = "weight-vs-unit"
SETS = ("seed=0", "train.epochs=1", "amount=0,0.5", "technique=weight", "model=mlp(widths=[16])")
TRIALS = 2
NOBODY = "http://127.0.0.1:9"  # where nobody listens


@dataclass(frozen=True)
class Begun:
    """A sweep whose run is open, and whose points have not been run yet."""

    uri: str
    run: ActiveRun
    points: tuple[Task, ...]
    name: str = NAME

    @property
    def tracker(self) -> Tracker:
        return Tracker(self.uri, self.name)

    def settings(self, uri: str, state_dir: Path) -> WorkerSettings:
        return WorkerSettings(
            uri, self.name, self.run.run_id, None, provenance.install_path(), state_dir=str(state_dir)
        )

    def leave_waiting(self, state_dir: Path, points: tuple[Task, ...] | None = None) -> None:
        """Run points while the store is away: their results wait for it, on this machine."""
        with patch.dict(os.environ, {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}):  # nobody will answer later
            for point in self.points if points is None else points:
                run_task(point, self.settings(NOBODY, state_dir))
        breaker_for(NOBODY).reset()
        place = outbox_folder(self.uri)
        place.parent.mkdir(parents=True, exist_ok=True)
        outbox_folder(NOBODY, str(state_dir)).rename(place)


def small_space() -> Space:
    return load_space(NAME, SETS)


def begin(uri: str, space: Space | None = None) -> Begun:
    """Everything that a sweep records before its first trial."""
    initialise(uri)
    space = space or small_space()
    plan = make_plan(space, device="cpu", precision="fp32")
    tracker = Tracker(uri, space.name)
    run = acquire_lease(tracker, digest(plan, None), name=space.name)
    tracker.set_tag(run.run_id, COMMAND, reproduce_command(space, SweepOptions()))
    tracker.upload(run.run_id, {"space.yaml": space.text})
    if space.source_model is not None:
        upload_source_model(tracker, tracker.get_run(run.run_id), space.source_model)
    tracker.replace_text(tracker.get_run(run.run_id), PLAN, plan_text(plan))
    points, _ = remaining_tasks(plan, tracker, retry_failed=False)
    return Begun(uri, run, tuple(points), space.name)


def record_sweep(uri: str, state_dir: Path, space: Space | None = None) -> str:
    """A finished one; the id of a trial's run."""
    space = space or small_space()
    begun = begin(uri, space)
    for point in begun.points:
        run_task(point, begun.settings(uri, state_dir))
    publish_results(begun.tracker, begun.tracker.get_run(begun.run.run_id), space, SweepOutcome(()))
    begun.run.end("FINISHED")
    (row, *_) = begun.tracker.search("attributes.status = 'FINISHED' and tags.kind = 'trial'")
    return row.run_id
