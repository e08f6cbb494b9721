"""What a sweep would run, what the store has of it, and what the rest would cost."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

from orchestrator.comparing.summary import Preview
from orchestrator.config import Device, Precision, method_name
from orchestrator.images.dataset_files import verify
from orchestrator.launching.launch import check_can_stop, stop_rule
from orchestrator.launching.resources import of_machine
from orchestrator.planning.estimate import estimate
from orchestrator.planning.plan import Plan, expected, make_plan
from orchestrator.planning.refusals import shape_of
from orchestrator.planning.remainder import so_far, stopped_keys, sweep_before
from orchestrator.space import Space
from orchestrator.store.address import exists
from orchestrator.walk.structure import unpruned_of


def preview(space: Space, *, device: Device, precision: Precision, uri: str) -> Preview:
    """The plan, what the store has of it, and an estimate for the rest. Writes nothing."""
    plan, stop = make_plan(space, device=device, precision=precision), stop_rule(space)
    check_can_stop(plan, stop)
    tracker = None
    if exists(uri):
        from orchestrator.tracking import Tracker  # MLflow takes a second

        tracker = Tracker(uri, space.name)
        plan = so_far(plan, tracker, sweep_before(tracker, plan, stop))
    asked, plan, done = len(plan.asked), expected(plan), set[str]()
    if tracker is not None:
        keys = {trial.key for trial in plan.trials}
        done = set(tracker.finished()) | stopped_keys(tracker, keys, stop)
    cost = estimate(plan, finished=done, concurrency=of_machine(device).concurrent)
    return Preview(plan, cost, asked, _unpruned(plan), _missing_data(plan, done))


def _unpruned(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Model -> what of it has weights and is never pruned, for the models that have such layers."""
    names = {}
    for config in plan.dense:
        with suppress(ValueError):  # a network that does not run has been excluded, with the reason
            names[config.model] = unpruned_of((config.model, *shape_of(config.dataset)))
    return {model: layers for model, layers in names.items() if layers}


def _missing_data(plan: Plan, done: Collection[str]) -> tuple[str, ...]:
    """The data sets that a sweep would look for in vain."""
    to_run = (trial.config.dense.dataset for trial in plan.trials if trial.key not in done)
    return tuple(name for name in dict.fromkeys(map(method_name, to_run)) if verify(name))
