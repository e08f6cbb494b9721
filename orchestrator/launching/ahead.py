"""What can be done before it is known what the store holds: the data are looked for, and Ray is started."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from orchestrator.config import DenseConfig
from orchestrator.images.dataset_files import check
from orchestrator.launching.options import Options
from orchestrator.launching.progress import waiting
from orchestrator.planning.plan import Plan
from orchestrator.store.address import exists
from pruning.registry import parse


@contextmanager
def ahead(plan: Plan, options: Options, *, uri: str) -> Iterator[None]:
    """Where there is no store yet all is to be run: Ray starts while MLflow is imported and makes one.

    Nothing where there is a store, or a cluster to join. DataError before anything is written.
    """
    if exists(uri) or options.address is not None:
        yield
        return
    check_data(needed_data(plan, plan.dense))
    from orchestrator.sweep.places import own

    most = len(plan.trials) or plan.space.points
    with ThreadPoolExecutor(1) as beside, ExitStack() as ray:
        with waiting("starting Ray, making the store"):
            store = beside.submit(_make_store, uri)
            resources = options.resources()
            ray.enter_context(own(resources, ready=resources.worth_starting(most)))
            store.result()
        yield


def _make_store(uri: str) -> None:
    from orchestrator import tracking
    from orchestrator.sweep import experiment  # noqa: F401  all that a sweep imports later on

    tracking.initialise(uri)


def needed_data(plan: Plan, trainings: Iterable[DenseConfig]) -> list[str]:
    """The names of the data sets that are needed; of a search that asks as it goes, all that it may."""
    searched = plan.space.search.method == "tpe"
    texts = plan.space.axes.dataset if searched else [training.dataset for training in trainings]
    return sorted({parse(text)[0] for text in texts})


def check_data(datasets: Iterable[str]) -> None:
    for name in datasets:
        check(name)
