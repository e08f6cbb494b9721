"""One Tune experiment per sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.execution.placement_groups import PlacementGroupFactory

from orchestrator.config import EarlyStopping
from orchestrator.errors import ClusterError, DiskFullError
from orchestrator.execution.options import Resources, limit_to_nodes
from orchestrator.execution.progress import SweepProgress, TaskCounter
from orchestrator.execution.ray_liveness import death
from orchestrator.execution.ray_local import living_nodes, local_ray
from orchestrator.execution.ray_security import check_loopback
from orchestrator.execution.ray_session_folder import session_folder
from orchestrator.execution.searcher import DIED, ConcurrencyRamp, DagSearcher, LiveTrialScheduler, TaskSource
from orchestrator.execution.trainable import StopSignals, trainable
from orchestrator.execution.tune_patches import reuse_prestarted_workers, worker_loss_fails_one_trial
from orchestrator.system.memory import default_gc
from orchestrator.system.signals import (
    defer_signals,
    disk_full_reason,
    has_begun,
    received_signal,
    request_stop_disk_full,
)
from orchestrator.trial.task import PreviousTrial, SweepOutcome, Task, TaskResult, WorkerSettings

if TYPE_CHECKING:
    from ray.tune.experiment import Trial


class ProgressCallback(tune.Callback):
    """`deaths` counts, by a point's key, the workers that died with it and were replaced."""

    def __init__(self, progress: SweepProgress, at_once: ConcurrencyRamp, resources: Resources) -> None:
        self.progress, self.at_once, self.retries = progress, at_once, resources.retries
        self.checks_listeners = resources.address is None  # those of a cluster are its owner's
        self.deaths: Counter[str] = Counter()

    def on_step_end(self, iteration: int, trials: Sequence[Trial], **info: Any) -> None:  # ray's own
        self.progress.tick()

    def on_trial_start(self, iteration: int, trials: Sequence[Trial], trial: Trial, **info: Any) -> None:
        if self.checks_listeners:  # once more: now there is a worker
            check_loopback()
            self.checks_listeners = False
        self.at_once.begin()
        self.progress.started(_point(trial))

    def on_trial_recover(self, iteration: int, trials: Sequence[Trial], trial: Trial, **info: Any) -> None:
        if death():
            return  # and all workers with it
        point = _point(trial)
        self.deaths[point.key] += 1
        count = f"{self.deaths[point.key]} of {self.retries}"
        self.progress.print_line(f"{point.name}: its worker died; it is tried again ({count})")

    def reason(self, point: Task) -> str:
        """Why a point has ended whose last worker has died, too."""
        died = self.deaths[point.key] + 1
        return f"{DIED} {died} times" if died > 1 else DIED

    def __getstate__(self) -> dict[str, object]:  # Tune pickles what it is given
        """Nothing, as the searcher."""
        return {}


def _point(trial: Trial) -> Task:
    return Task.from_text(trial.config["point"])


__all__ = ["Resources", "run_experiment"]
Lost = Callable[[Task, str], None]  # hears of a point whose workers have all died, and why


def run_experiment(
    points: Sequence[Task],
    settings: WorkerSettings,
    resources: Resources,
    *,
    reused: int,
    reused_dense: int = 0,
    past: Sequence[PreviousTrial] = (),
    source: TaskSource | None = None,
    planned: int = 0,
    lost: Lost | None = None,
) -> SweepOutcome:
    """Run all points, parents before children, as many at a time as `resources` allow.

    In the cluster that this process has joined, or else in a Ray of our own. Trials are stopped as
    `settings` say, and compared with those of the `past`, too. A `source` gives more points as results
    come in, until there are `planned` trials. ClusterError where there is no room.
    """
    outcomes: list[TaskResult] = []
    progress = _progress(points, reused=reused, reused_dense=reused_dense, planned=planned)
    first = resources.initial_workers(max(len(points), planned))

    def listen(outcome: TaskResult) -> None:
        if outcome.reason.startswith(DiskFullError.__name__):
            request_stop_disk_full(outcome.reason)
        if (
            outcome.metrics is None
            and not outcome.stopped
            and (received_signal() or disk_full_reason() or death())
        ):
            return  # cut off is not failed
        outcomes.append(outcome)
        if source is not None:
            progress.trials.reused = reused + source.reused
        progress.ended(outcome)
        if lost is not None and outcome.reason.startswith(DIED):
            lost(outcome.task, outcome.reason)

    with defer_signals(), progress:
        progress.news = "starting Ray"
        with nullcontext() if ray.is_initialized() else local_ray(resources, ready=first):
            resources = limit_to_nodes(resources, [node["Resources"] for node in living_nodes()])
            progress.concurrent, progress.news = resources.concurrent, "starting the first worker"
            if not received_signal():
                watch = ProgressCallback(progress, _at_once(first, resources), resources)
                searcher = DagSearcher(points, listen, source, at_once=watch.at_once, died=watch.reason)
                has_begun()
                _fit(searcher, settings, resources, past, watch)
    return SweepOutcome(tuple(outcomes), received_signal(), disk_full_reason())


def _at_once(first: int, resources: Resources) -> ConcurrencyRamp:
    """In a cluster that was joined no worker of ours is started ahead, and all may run from the start."""
    return ConcurrencyRamp(first if resources.address is None else resources.concurrent, resources.concurrent)


def _progress(points: Sequence[Task], *, reused: int, reused_dense: int, planned: int) -> SweepProgress:
    trials = sum(point.parent is not None for point in points)
    dense = TaskCounter(reused_dense + len(points) - trials, reused=reused_dense)
    return SweepProgress(dense, TaskCounter(max(planned, reused + trials), reused=reused))


def _fit(
    searcher: DagSearcher,
    settings: WorkerSettings,
    resources: Resources,
    past: Sequence[PreviousTrial],
    watch: ProgressCallback,
) -> None:
    shared, verdicts = resources.address is not None, None if settings.stop is None else StopSignals()
    work = tune.with_parameters(trainable, settings=settings, verdicts=verdicts, shared=shared)
    with session_folder() as folder:
        tuner = tune.Tuner(
            tune.with_resources(work, PlacementGroupFactory([resources.per_trial])),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=_scheduler(settings.stop, verdicts, past),
                num_samples=-1,
                reuse_actors=True,
                max_concurrent_trials=resources.concurrent,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=str(folder),
                verbose=0,
                stop=_StopWhenInterrupted(),
                callbacks=[watch],
                failure_config=tune.FailureConfig(max_failures=resources.retries),
            ),
        )
        try:
            with (
                default_gc(),
                worker_loss_fails_one_trial(),
                nullcontext() if shared else reuse_prestarted_workers(),
            ):
                tuner.fit()
            if verdicts is not None:
                verdicts.clear()
        except RuntimeError as error:  # Tune's own word, for instance where a cluster is gone
            if not isinstance(error.__cause__, RayError):
                raise
            reason = " ".join(str(error.__cause__).split())[:300]
            raise ClusterError(f"Ray ended the sweep: {reason}; the same command carries on") from error


def _scheduler(
    stop: EarlyStopping | None, verdicts: StopSignals | None, past: Sequence[PreviousTrial]
) -> LiveTrialScheduler:
    if stop is None or verdicts is None:
        return LiveTrialScheduler()
    from orchestrator.execution.scheduler import OptunaStopping  # and Optuna with it

    return OptunaStopping(stop, verdicts.set, past)


class _StopWhenInterrupted(tune.Stopper):
    def __call__(self, trial_id: str, result: Mapping[str, object]) -> bool:
        return self.stop_all()

    def stop_all(self) -> bool:
        return bool(received_signal() or disk_full_reason())
