"""How the points of a sweep are run: where, by which code, and what becomes of one that is given up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.config import Device, Precision
from orchestrator.errors import AwayError, ClusterError
from orchestrator.images.dataset_files import chosen_data_dir, path
from orchestrator.language.stops import Stop
from orchestrator.launching import resources, sources
from orchestrator.launching.outcome import Ended, Past
from orchestrator.launching.point import Point, Settings
from orchestrator.launching.resources import Resources
from orchestrator.store.address import chosen_state_dir
from orchestrator.store.settling import delivering
from orchestrator.tracking import RunRow, Tracker

if TYPE_CHECKING:
    from orchestrator.search import Source


@dataclass(frozen=True)
class Options:
    """How to run a sweep; none of it changes a result on one kind of device."""

    device: Device = "cpu"
    precision: Precision = "fp32"
    gpus_per_trial: float = 1.0
    max_concurrent: int | None = None
    address: str | None = None
    retry_failed: bool = False
    stop: str | None = None  # as --stop says it; None leaves it to the space
    retries: int = 2  # of a point whose worker died

    def resources(self) -> Resources:
        """What a trial holds, of the cluster of `address` or of this machine."""
        if self.address is None:
            found = resources.of_machine(self.device, gpus_per_trial=self.gpus_per_trial)
        else:
            found = resources.of_cluster(self.device, self.address, gpus_per_trial=self.gpus_per_trial)
        most = self.max_concurrent or found.concurrent
        return replace(found, concurrent=min(most, found.concurrent), retries=self.retries)

    def code(self) -> str:
        """What a worker must run: here what lies in the same place, on other nodes the same sources."""
        return sources.place() if self.address is None else sources.digest()

    def data_dir(self) -> str | None:
        """Where workers find data sets; every node of a cluster has its own place, unless one is set."""
        chosen = path() if self.address is None else chosen_data_dir()
        return None if chosen is None else str(chosen)


@contextmanager
def cluster(options: Options, tracker: Tracker, datasets: Sequence[str]) -> Iterator[None]:
    """The cluster of --address, joined and fit for the data sets; nothing where a sweep has its own Ray.

    ClusterError, or StoreError where its nodes do not reach the store.
    """
    if options.address is None:
        yield
        return
    from orchestrator.sweep.joining import joined_for
    from orchestrator.sweep.nodes import Needs

    needs = Needs(options.code(), tracker.uri, tracker.artifact_root, tuple(datasets), options.data_dir())
    with joined_for(options.resources(), needs):
        yield


def run(
    points: Sequence[Point],
    tracker: Tracker,
    sweep_run: str,
    options: Options,
    *,
    reused: int,
    reused_dense: int,
    stop: Stop | None,
    past: Sequence[Past],
    source: Source | None = None,
    planned: int = 0,
) -> Ended:
    """Run the points, each in a run below `sweep_run`, and those that the `source` gives later on."""
    from orchestrator.sweep import run_points

    settings = Settings(
        uri=tracker.uri,
        experiment=tracker.experiment,
        sweep_run=sweep_run,
        data_dir=options.data_dir(),
        code=options.code(),
        stop=stop,
        state_dir=chosen_state_dir(),
    )
    with delivering(tracker.uri), _closing(tracker, sweep_run):
        return run_points(
            points,
            settings,
            options.resources(),
            reused=reused,
            reused_dense=reused_dense,
            past=past,
            source=source,
            planned=planned,
            lost=partial(give_up, tracker, sweep_run),
        )


@contextmanager
def _closing(tracker: Tracker, sweep_run: str) -> Iterator[None]:
    """Where Ray itself is lost, its workers are, too: the runs that they leave are closed."""
    try:
        yield
    except ClusterError as error:
        with suppress(AwayError), tracker.reaching():
            tracker.close_children(sweep_run, str(error))
        raise


def give_up(tracker: Tracker, sweep_run: str, point: Point, reason: str) -> None:
    """Close the run that a dead worker has left as FAILED; a point whose worker had no run yet gets one."""
    with suppress(AwayError), tracker.reaching():
        left = [row.run_id for row in tracker.of_point(point.key) if _open_below(row, sweep_run)]
        if not left:
            kind, tags = "trial" if point.parent else "dense", {**(point.tags or {}), "point": point.key}
            left = [tracker.start(kind, point.name, parent=sweep_run, tags=tags).run_id]
        for run_id in left:
            tracker.close(run_id, reason, status="FAILED")


def _open_below(row: RunRow, sweep_run: str) -> bool:
    return row.status == "RUNNING" and row.tags.get("mlflow.parentRunId") == sweep_run
