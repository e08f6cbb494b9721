"""What a sweep would run, what the store has of it, and what the rest would cost."""

from __future__ import annotations

from orchestrator.comparing.summary import Preview
from orchestrator.config import Device, Precision
from orchestrator.launching.launch import check_can_stop, stop_rule
from orchestrator.launching.resources import of_machine
from orchestrator.planning.changes import Changes, changes
from orchestrator.planning.estimate import estimate
from orchestrator.planning.ingredients import missing_data
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
        from orchestrator.tracking import has_store, open_store  # MLflow takes a second

        tracker = open_store(uri, space.name) if has_store(uri) else None
    if tracker is not None:
        plan = so_far(plan, tracker, sweep_before(tracker, plan, stop))
    asked, plan, done, changed = len(plan.asked), expected(plan), set[str](), Changes()
    if tracker is not None:
        keys = {trial.key for trial in plan.trials}
        done = set(tracker.finished()) | stopped_keys(tracker, keys, stop)
        changed = changes(plan, tracker, done=done)
    cost = estimate(plan, finished=done, concurrency=of_machine(device).concurrent)
    to_run = {trial.config.dense.dataset for trial in plan.trials if trial.key not in done}
    return Preview(plan, cost, asked, changed, _unpruned(plan), missing_data(to_run))


def _unpruned(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Model -> what of it has weights and is not pruned, for the models that have such layers."""
    kinds = dict.fromkeys(
        (trial.config.dense.model, trial.config.dense.dataset, trial.config.prune.granularity)
        for trial in plan.trials
    )
    names: dict[str, dict[str, None]] = {}
    for model, dataset, granularity in kinds:
        found = unpruned_of((model, *shape_of(dataset)), granularity)
        names.setdefault(model, {}).update(dict.fromkeys(found))
    return {model: tuple(layers) for model, layers in names.items() if layers}
