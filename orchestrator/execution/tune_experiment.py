"""One Tune experiment per sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.execution.placement_groups import PlacementGroupFactory

from orchestrator.config import EarlyStopping
from orchestrator.errors import ClusterError, DiskFullError
from orchestrator.execution.dag_searcher import (
    DIED,
    TASKS,
    ConcurrencyRamp,
    DagSearcher,
    LiveTrialScheduler,
    TaskSource,
)
from orchestrator.execution.progress import SweepProgress, TaskCounter
from orchestrator.execution.ray_cleanup import death, session_folder
from orchestrator.execution.ray_start import check_loopback, living_nodes, local_ray
from orchestrator.execution.resources import Resources, limit_to_nodes
from orchestrator.execution.trainable import StopSignals, trainable
from orchestrator.execution.tune_patches import reuse_prestarted_workers, worker_loss_fails_one_trial
from orchestrator.planning.stacks import task_group
from orchestrator.system.memory import default_gc
from orchestrator.system.signals import SignalHandler
from orchestrator.trial.task import (
    PreviousTrial,
    SweepOutcome,
    Task,
    TaskResult,
    WorkerSettings,
    load_tasks,
)

if TYPE_CHECKING:
    from ray.tune.experiment import Trial


class ProgressCallback(tune.Callback):
    """Pass Tune's events on to the progress bar, and count the workers that died."""

    def __init__(self, progress: SweepProgress, ramp: ConcurrencyRamp, resources: Resources) -> None:
        self.progress, self.ramp, self.retries = progress, ramp, resources.retries
        self.checks_listeners = resources.address is None  # those of a cluster are its owner's
        self.deaths: Counter[str] = Counter()  # Tune's id of a trial -> workers that died with it
        self.trial_ids: dict[str, str] = {}  # key of a task -> the trial that ran it last

    def on_step_end(self, iteration: int, trials: Sequence[Trial], **info: Any) -> None:  # ray's own
        self.progress.tick()

    def on_trial_start(self, iteration: int, trials: Sequence[Trial], trial: Trial, **info: Any) -> None:
        if self.checks_listeners:  # after the check at Ray's start: now there is a worker
            check_loopback()
            self.checks_listeners = False
        self.ramp.on_start()
        tasks = load_tasks(trial.config[TASKS])
        self.trial_ids |= {task.key: trial.trial_id for task in tasks}
        self.progress.on_start(tasks)

    def on_trial_recover(self, iteration: int, trials: Sequence[Trial], trial: Trial, **info: Any) -> None:
        if death():
            return  # Ray itself died, and all workers with it
        first, *others = load_tasks(trial.config[TASKS])
        self.deaths[trial.trial_id] += 1
        count = f"{self.deaths[trial.trial_id]} of {self.retries}"
        again = f"and {len(others)} more: their worker died; they are" if others else "its worker died; it is"
        self.progress.print_line(f"{first.name}{' ' if others else ': '}{again} tried again ({count})")

    def death_reason(self, task: Task) -> str:
        """Return why a task has ended whose last worker has died, too."""
        count = self.deaths[self.trial_ids.get(task.key, "")] + 1
        return f"{DIED} {count} times" if count > 1 else DIED

    def __getstate__(self) -> dict[str, object]:  # Tune pickles its callbacks
        """Leave everything out, as the searcher does."""
        return {}


__all__ = ["Resources", "run_experiment"]
OnTaskLost = Callable[[Task, str], None]  # of a task whose workers have all died, with the reason


@dataclass
class ResultCollector:
    """The results of a sweep as they come in, and who hears of each.

    `reused` counts the trials that the store had at the start.
    """

    progress: SweepProgress
    signals: SignalHandler
    reused: int
    source: TaskSource | None
    on_task_lost: OnTaskLost | None
    results: list[TaskResult] = field(default_factory=list)

    def on_result(self, result: TaskResult) -> None:
        """Keep and show a result, unless its task was cut off, which is no failure."""
        if result.reason.startswith(DiskFullError.__name__):
            self.signals.request_stop(result.reason)
        if result.state == "failed" and (self.signals.is_stopping or death()):
            return
        self.results.append(result)
        if self.source is not None:
            self.progress.trials.reused = self.reused + self.source.reused
        self.progress.on_result(result)
        if self.on_task_lost is not None and result.reason.startswith(DIED):
            self.on_task_lost(result.task, result.reason)


def run_experiment(
    tasks: Sequence[Task],
    settings: WorkerSettings,
    resources: Resources,
    signals: SignalHandler,
    *,
    reused: int,
    reused_dense: int = 0,
    previous_trials: Sequence[PreviousTrial] = (),
    source: TaskSource | None = None,
    planned_trials: int = 0,
    on_task_lost: OnTaskLost | None = None,
) -> SweepOutcome:
    """Run all tasks, parents before children, as many at a time as `resources` allow.

    They run in the cluster that this process has joined, or else in a Ray of our own. Trials are stopped as
    `settings` say, and compared with `previous_trials`, too. A `source` gives more tasks as results come
    in, until there are `planned_trials`. ClusterError if not even one trial fits.
    """
    counters = _count_tasks(tasks, reused=reused, reused_dense=reused_dense, planned_trials=planned_trials)
    progress = SweepProgress(*counters, signals)
    collector = ResultCollector(progress, signals, reused, source, on_task_lost)
    workers = resources.initial_workers(max(len(tasks), planned_trials))
    with signals.deferring(), progress:
        progress.status_message = "starting Ray"
        with nullcontext() if ray.is_initialized() else local_ray(resources, signals, ready=workers):
            resources = limit_to_nodes(resources, [node["Resources"] for node in living_nodes()])
            progress.concurrent, progress.status_message = resources.concurrent, "starting the first worker"
            if not signals.received:
                # In a cluster no worker of ours is started ahead: all may run from the start.
                workers = workers if resources.address is None else resources.concurrent
                ramp = ConcurrencyRamp(workers, resources.concurrent)
                callback = ProgressCallback(progress, ramp, resources)
                searcher = DagSearcher(
                    tasks,
                    collector.on_result,
                    source,
                    ramp=ramp,
                    death_reason=callback.death_reason,
                    most_stacked=resources.most_stacked,
                    group_of=lambda task: task_group(task.config, competes=settings.stop is not None),
                )
                signals.mark_started()
                _fit(searcher, settings, resources, previous_trials, callback, signals)
    return SweepOutcome(tuple(collector.results), signals.received, signals.disk_full_reason)


def _count_tasks(
    tasks: Sequence[Task], *, reused: int, reused_dense: int, planned_trials: int
) -> tuple[TaskCounter, TaskCounter]:
    """Return the counters of dense trainings and of trials."""
    trials = sum(task.parent is not None for task in tasks)
    dense = TaskCounter(reused_dense + len(tasks) - trials, reused=reused_dense)
    return dense, TaskCounter(max(planned_trials, reused + trials), reused=reused)


def _fit(
    searcher: DagSearcher,
    settings: WorkerSettings,
    resources: Resources,
    previous_trials: Sequence[PreviousTrial],
    callback: ProgressCallback,
    signals: SignalHandler,
) -> None:
    in_cluster = resources.address is not None
    stop_signals = None if settings.stop is None else StopSignals()
    work = tune.with_parameters(
        trainable, settings=settings, stop_signals=stop_signals, in_cluster=in_cluster
    )
    with session_folder(signals) as folder:
        tuner = tune.Tuner(
            tune.with_resources(work, PlacementGroupFactory([resources.per_device] * resources.devices)),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=_make_scheduler(settings.stop, stop_signals, previous_trials),
                num_samples=-1,  # the searcher says when no task is left
                reuse_actors=True,  # a new worker takes 5 s of imports
                max_concurrent_trials=resources.concurrent,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=_make_run_config(folder, resources, callback, signals),
        )
        try:
            with (
                default_gc(),
                worker_loss_fails_one_trial(),
                # In a cluster no worker of ours was started ahead.
                nullcontext() if in_cluster else reuse_prestarted_workers(),
            ):
                tuner.fit()
            if stop_signals is not None:
                stop_signals.clear()
        except RuntimeError as error:  # Tune's own, for instance when a cluster is gone
            if not isinstance(error.__cause__, RayError):
                raise
            reason = " ".join(str(error.__cause__).split())[:300]
            raise ClusterError(f"Ray ended the sweep: {reason}; the same command carries on") from error


def _make_run_config(
    folder: Path, resources: Resources, callback: ProgressCallback, signals: SignalHandler
) -> tune.RunConfig:
    return tune.RunConfig(
        name="sweep",
        storage_path=str(folder),
        verbose=0,  # the progress is ours
        stop=_StopWhenInterrupted(signals),
        callbacks=[callback],
        failure_config=tune.FailureConfig(max_failures=resources.retries),
    )


def _make_scheduler(
    stop: EarlyStopping | None, stop_signals: StopSignals | None, previous_trials: Sequence[PreviousTrial]
) -> LiveTrialScheduler:
    if stop is None or stop_signals is None:
        return LiveTrialScheduler()
    from orchestrator.execution.early_stopping import OptunaStopping  # and Optuna with it

    return OptunaStopping(stop, stop_signals.set, previous_trials)


class _StopWhenInterrupted(tune.Stopper):
    def __init__(self, signals: SignalHandler) -> None:
        self.signals = signals

    def __call__(self, trial_id: str, result: Mapping[str, object]) -> bool:
        return self.stop_all()

    def stop_all(self) -> bool:
        return self.signals.is_stopping
