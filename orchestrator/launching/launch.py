"""From a space to its results: what is to be run is known before MLflow and Ray are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.errors import SpaceError, UsageError
from orchestrator.language.stops import Stop, stops
from orchestrator.language.values import method
from orchestrator.launching.ahead import ahead
from orchestrator.planning.competition import stop_refusal
from orchestrator.planning.plan import Plan, expected, make_plan
from orchestrator.space import Space

if TYPE_CHECKING:
    from orchestrator.comparing.summary import Summary
    from orchestrator.launching.options import Options


def launch(space: Space, options: Options, *, uri: str) -> Summary:
    """Run what the store does not hold yet. DataError and StoreError come before any training."""
    plan = make_plan(space, device=options.device, precision=options.precision)
    _check_something_to_run(plan)
    stop = stop_rule(space, options.stop)
    check_can_stop(plan, stop)
    with ahead(plan, options, uri=uri):
        from orchestrator.launching.carrying_out import carry_out  # and MLflow with it

        return carry_out(plan, options, stop, uri=uri)


def _check_something_to_run(plan: Plan) -> None:
    """SpaceError for a space without a trial; for a search that asks as it goes, without a first point."""
    plan = expected(plan, points=1)
    if not plan.trials:
        reason = plan.excluded[0].reason
        raise SpaceError(f"{plan.space.name}: no trial is left: {reason}; see `orchestrate plan`")


def check_can_stop(plan: Plan, stop: Stop | None) -> None:
    """SpaceError where the rule could stop no trial of the plan: what is asked for would not happen."""
    reason = None if stop is None else stop_refusal(plan, stop)
    if reason is not None:
        raise SpaceError(f"{plan.space.name}: {reason}")


def stop_rule(space: Space, wanted: str | None = None) -> Stop | None:
    """How a sweep stops trials: as `wanted` says, else as its space does; `none` is not at all.

    UsageError, with the nearest names, for what is no way of stopping.
    """
    if wanted is None:
        return None if space.stop is None else Stop(space.stop, space.stop_within)
    try:
        return None if wanted.strip() == "none" else Stop(method(wanted, stops), space.stop_within)
    except ValueError as error:
        raise UsageError(f"--stop {wanted[:80]}: {error}") from error
