"""How the points of a sweep are run: in which Ray, and what becomes of one that is given up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.errors import AwayError, ClusterError
from orchestrator.language.stops import Stop
from orchestrator.launching.interruption import closing_at_end
from orchestrator.launching.options import Options
from orchestrator.launching.outcome import Ended, Past
from orchestrator.launching.point import Point, Settings
from orchestrator.store.address import chosen_state_dir
from orchestrator.store.settling import delivering
from orchestrator.tracking import RunRow, Tracker, line_to

if TYPE_CHECKING:
    from orchestrator.search import Source


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
    from orchestrator.sweep.experiment import run_points

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

    def close(reason: str) -> None:
        line_to(tracker.uri).ask_anew()  # it may be back since a worker found it away
        with suppress(AwayError), tracker.reaching():
            tracker.close_children(sweep_run, reason)

    def close_sweep(reason: str) -> None:
        close(reason)
        with suppress(AwayError), tracker.reaching():
            tracker.close(sweep_run, reason, status="FAILED")

    with closing_at_end(close_sweep):
        try:
            yield
        except ClusterError as error:
            close(str(error))
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
