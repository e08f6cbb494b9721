"""A sweep: what is in the store is reused, the rest goes through one Ray Tune experiment."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import monotonic
from types import FrameType
from typing import Any

# Read by ray as it is imported: loopback only, no telemetry, no second SIGINT handler, no log files; and no
# memory monitor, whose killing of a worker would end the whole experiment instead of one trial.
os.environ.update(
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AUTH_MODE="disabled",
    RAY_memory_monitor_refresh_ms="0",
    RAY_AIR_NEW_OUTPUT="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    TUNE_DISABLE_SIGINT_HANDLER="1",
    TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
    TUNE_GLOBAL_CHECKPOINT_S="1000000",
    TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S="1000000",
)

import ray
from ray import tune
from ray._private import ray_constants
from ray.tune.execution.placement_groups import PlacementGroupFactory

from orchestrator.outcome import Ended, Outcome, Past
from orchestrator.point import Point, Settings
from orchestrator.progress import SweepProgress
from orchestrator.search import STOPPED, SUCCEEDED, DagSearcher
from orchestrator.stopping import OptunaStopping
from orchestrator.stops import Stop
from orchestrator.verdicts import Verdicts
from orchestrator.worker import run_point

# Where ray was imported before this module, it has read none of that, and would listen to the network.
ray_constants.ENABLE_RAY_CLUSTER = False
SECONDS_BETWEEN_BEATS = 1.0
_interrupted: list[int] = []  # signals received; Tune pickles what it is given, so this stays here


@dataclass(frozen=True)
class Resources:
    """What one trial holds; `concurrent` trials at once at the most."""

    cpus: int
    gpus: int
    gpus_per_trial: float
    concurrent: int
    address: str | None = None


def run_points(
    points: Sequence[Point],
    settings: Settings,
    resources: Resources,
    *,
    reused: int,
    past: Sequence[Past] = (),
) -> Ended:
    """Run all points, parents before children, as many at a time as `resources` allow.

    Trials are stopped as `settings` say, and compared with those of the `past`, too.
    """
    outcomes: list[Outcome] = []
    total = reused + len(points)
    with _ray(resources), _signals(), SweepProgress(total, reused=reused) as progress:

        def listen(outcome: Outcome) -> None:
            if outcome.metrics is not None or outcome.stopped or not _interrupted:  # cut off is not failed
                outcomes.append(outcome)
                failed = outcome.metrics is None and not outcome.stopped
                progress.ended(failed=failed, stopped=outcome.stopped, best=_best(outcomes))

        _fit(DagSearcher(points, listen), settings, resources, past)
    return Ended(tuple(outcomes), _interrupted[0] if _interrupted else 0)


def _best(outcomes: Sequence[Outcome]) -> str:
    found = [o for o in outcomes if o.metrics and o.point.parent]
    if not found:
        return ""
    best = max(found, key=lambda o: o.metrics["final/val_accuracy"] if o.metrics else 0.0)
    return f", best {best.metrics['final/val_accuracy']:.3f} ({best.point.name})" if best.metrics else ""


def _fit(searcher: DagSearcher, settings: Settings, resources: Resources, past: Sequence[Past]) -> None:
    scheduler, verdicts = _stopping(settings.stop, past)
    trainable = tune.with_parameters(_trainable, settings=settings, verdicts=verdicts)
    share = {"CPU": 1.0} | ({"GPU": resources.gpus_per_trial} if resources.gpus else {})
    with tempfile.TemporaryDirectory(prefix="orchestrate-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, PlacementGroupFactory([share])),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=-1,
                reuse_actors=True,
                max_concurrent_trials=resources.concurrent,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=folder,
                verbose=0,
                stop=_StopWhenInterrupted(),
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
        tuner.fit()


def _stopping(
    stop: Stop | None, past: Sequence[Past]
) -> tuple[OptunaStopping | None, Any]:  # an actor has ray's own type
    """The scheduler, None being Tune's own, and the actor through which its verdicts reach the workers."""
    if stop is None:
        return None, None
    verdicts = ray.remote(num_cpus=0)(Verdicts).remote()
    return OptunaStopping(stop, partial(_tell, verdicts), past), verdicts


def _tell(verdicts: Any, key: str, reason: str) -> None:
    ray.get(verdicts.tell.remote(key, reason))  # waited for: the worker asks next


def _trainable(config: Mapping[str, str], settings: Settings, verdicts: Any) -> None:
    """Run one point in a worker and tell Tune how it ended."""
    point, last, verdict = Point.from_text(config["point"]), monotonic(), ""

    def beat(values: dict[str, float]) -> None:
        nonlocal last
        if monotonic() - last > SECONDS_BETWEEN_BEATS:
            last = monotonic()
            tune.report({SUCCEEDED: 0, **values})

    def judge(values: dict[str, float]) -> str:
        nonlocal last, verdict
        last = monotonic()
        tune.report({SUCCEEDED: 0, **values})  # returns once the scheduler has judged
        verdict = "" if verdicts is None else str(ray.get(verdicts.of.remote(point.key)))
        return verdict

    try:
        metrics = run_point(point, settings, beat=beat, judge=judge)
    # The boundary of a worker: whatever a trial raises is in its run already, and the sweep goes on.
    except Exception as error:  # noqa: BLE001
        tune.report({SUCCEEDED: 0, "reason": f"{type(error).__name__}: {error}"})
    else:
        tune.report({SUCCEEDED: 1, **metrics} if metrics else {SUCCEEDED: 0, STOPPED: verdict})


class _StopWhenInterrupted(tune.Stopper):
    def __call__(self, trial_id: str, result: Mapping[str, object]) -> bool:
        return bool(_interrupted)

    def stop_all(self) -> bool:
        return bool(_interrupted)


@contextmanager
def _signals() -> Iterator[None]:
    """The first SIGINT or SIGTERM lets the sweep end by itself, the second ends it at once."""

    def note(number: int, frame: FrameType | None) -> None:
        if _interrupted:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        _interrupted.append(number)
        print("stopping; once more to stop at once", file=sys.stderr)

    _interrupted.clear()
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _ray(resources: Resources) -> Iterator[None]:
    """A Ray of our own on loopback, quiet, whose workers do not see the folder we stand in."""
    for name in ("ray", "ray.tune", "ray.tune.execution.tune_controller"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="orchestrate-cwd-") as empty:
        own = resources.address is None
        ray.init(
            address=resources.address or "local",
            num_cpus=resources.cpus if own else None,
            num_gpus=resources.gpus if own else None,
            include_dashboard=False if own else None,
            runtime_env={"working_dir": empty, "env_vars": {"OMP_NUM_THREADS": "1"}},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        try:
            yield
        finally:
            ray.shutdown()
