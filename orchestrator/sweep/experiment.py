"""A sweep: what is in the store is reused, the rest goes through one Ray Tune experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.execution.placement_groups import PlacementGroupFactory

from orchestrator.errors import ClusterError, DiskFullError
from orchestrator.garbage import collected_again
from orchestrator.language.stops import Stop
from orchestrator.launching.interruption import has_begun, held, no_room, received, tell_no_room
from orchestrator.launching.outcome import Ended, Outcome, Past
from orchestrator.launching.point import Point, Settings
from orchestrator.launching.progress import Phase, SweepProgress
from orchestrator.launching.resources import Resources, fitted
from orchestrator.search import DIED, AtOnce, DagSearcher, InOrder, Source
from orchestrator.sweep.deaths import one_trial_each
from orchestrator.sweep.liveness import death
from orchestrator.sweep.places import living_nodes, own
from orchestrator.sweep.ready_workers import taken
from orchestrator.sweep.session_folder import session_folder
from orchestrator.sweep.task import trainable
from orchestrator.sweep.verdicts import Verdicts
from orchestrator.sweep.watch import Watch

__all__ = ["Resources", "run_points"]
Lost = Callable[[Point, str], None]  # hears of a point whose workers have all died, and why


def run_points(
    points: Sequence[Point],
    settings: Settings,
    resources: Resources,
    *,
    reused: int,
    reused_dense: int = 0,
    past: Sequence[Past] = (),
    source: Source | None = None,
    planned: int = 0,
    lost: Lost | None = None,
) -> Ended:
    """Run all points, parents before children, as many at a time as `resources` allow.

    In the cluster that this process has joined, or else in a Ray of our own. Trials are stopped as
    `settings` say, and compared with those of the `past`, too. A `source` gives more points as results
    come in, until there are `planned` trials. ClusterError where there is no room.
    """
    outcomes: list[Outcome] = []
    progress = _progress(points, reused=reused, reused_dense=reused_dense, planned=planned)
    first = resources.worth_starting(max(len(points), planned))

    def listen(outcome: Outcome) -> None:
        if outcome.reason.startswith(DiskFullError.__name__):
            tell_no_room(outcome.reason)
        if outcome.metrics is None and not outcome.stopped and (received() or no_room() or death()):
            return  # cut off is not failed
        outcomes.append(outcome)
        if source is not None:
            progress.trials.reused = reused + source.found
        progress.ended(outcome)
        if lost is not None and outcome.reason.startswith(DIED):
            lost(outcome.point, outcome.reason)

    with held(), progress:
        progress.news = "starting Ray"
        with nullcontext() if ray.is_initialized() else own(resources, ready=first):
            resources = fitted(resources, [node["Resources"] for node in living_nodes()])
            progress.concurrent, progress.news = resources.concurrent, "starting the first worker"
            if not received():
                watch = Watch(progress, _at_once(first, resources), resources)
                searcher = DagSearcher(points, listen, source, at_once=watch.at_once, died=watch.reason)
                has_begun()
                _fit(searcher, settings, resources, past, watch)
    return Ended(tuple(outcomes), received(), no_room())


def _at_once(first: int, resources: Resources) -> AtOnce:
    """In a cluster that was joined no worker of ours is started ahead, and all may run from the start."""
    return AtOnce(first if resources.address is None else resources.concurrent, resources.concurrent)


def _progress(points: Sequence[Point], *, reused: int, reused_dense: int, planned: int) -> SweepProgress:
    trials = sum(point.parent is not None for point in points)
    dense = Phase(reused_dense + len(points) - trials, reused=reused_dense)
    return SweepProgress(dense, Phase(max(planned, reused + trials), reused=reused))


def _fit(
    searcher: DagSearcher, settings: Settings, resources: Resources, past: Sequence[Past], watch: Watch
) -> None:
    shared, verdicts = resources.address is not None, None if settings.stop is None else Verdicts()
    work = tune.with_parameters(trainable, settings=settings, verdicts=verdicts, shared=shared)
    with session_folder() as folder:
        tuner = tune.Tuner(
            tune.with_resources(work, PlacementGroupFactory([resources.share])),
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
            with collected_again(), one_trial_each(), nullcontext() if shared else taken():
                tuner.fit()
            if verdicts is not None:
                verdicts.forget()
        except RuntimeError as error:  # Tune's own word, for instance where a cluster is gone
            if not isinstance(error.__cause__, RayError):
                raise
            reason = " ".join(str(error.__cause__).split())[:300]
            raise ClusterError(f"Ray ended the sweep: {reason}; the same command carries on") from error


def _scheduler(stop: Stop | None, verdicts: Verdicts | None, past: Sequence[Past]) -> InOrder:
    if stop is None or verdicts is None:
        return InOrder()
    from orchestrator.stopping import OptunaStopping  # and Optuna with it

    return OptunaStopping(stop, verdicts.tell, past)


class _StopWhenInterrupted(tune.Stopper):
    def __call__(self, trial_id: str, result: Mapping[str, object]) -> bool:
        return self.stop_all()

    def stop_all(self) -> bool:
        return bool(received() or no_room())
