"""What a sweep would run, what the store has of it, and what the rest would cost."""

from __future__ import annotations

from orchestrator.comparing.summary import Preview
from orchestrator.config import Device, Precision
from orchestrator.launching.launch import stop_rule
from orchestrator.launching.resources import of_machine
from orchestrator.planning.changes import Changes, changes
from orchestrator.planning.estimate import estimate
from orchestrator.planning.ingredients import missing_data
from orchestrator.planning.plan import expected, make_plan
from orchestrator.planning.remainder import so_far, stopped_keys, sweep_before
from orchestrator.space import Space
from orchestrator.store.address import exists


def preview(space: Space, *, device: Device, precision: Precision, uri: str) -> Preview:
    """The plan, what the store has of it, and an estimate for the rest. Writes nothing."""
    plan, stop = make_plan(space, device=device, precision=precision), stop_rule(space)
    tracker = None
    if exists(uri):
        from orchestrator.tracking import Tracker  # MLflow takes a second

        tracker = Tracker(uri, space.name)
        plan = so_far(plan, tracker, sweep_before(tracker, plan, stop))
    asked, plan, done, changed = len(plan.asked), expected(plan), set[str](), Changes()
    if tracker is not None:
        keys = {trial.key for trial in plan.trials}
        done = set(tracker.finished()) | stopped_keys(tracker, keys, stop)
        changed = changes(plan, tracker, done=done)
    cost = estimate(plan, finished=done, concurrency=of_machine(device).concurrent)
    missing = missing_data({training.dataset for training in plan.dense})
    return Preview(plan, cost, asked, changed, missing)
