"""Which trials of a sweep compete when some are to be stopped early, and whether any can be.

Settings compete with settings, each seed for itself: the seeds of one setting are never compared with
each other, for the mean of those that are left would flatter it.
"""

from __future__ import annotations

from collections import Counter

from orchestrator.config import LATER, TrialConfig
from orchestrator.described import params
from orchestrator.language.stops import Stop, stops, trials_needed
from orchestrator.planning.plan import Plan, expected
from orchestrator.trial import measured_rounds


def group_of(config: TrialConfig, within: tuple[str, ...]) -> tuple[str, ...]:
    """The values that trials must share to be compared: those of the axes `within`, and the seed."""
    found = {**LATER, **params(config)}
    return (*(str(found[axis]) for axis in within), str(config.dense.seed))


def stop_refusal(plan: Plan, stop: Stop) -> str | None:
    """Why the rule can stop no trial of the plan, and what to do; None where it can."""
    configs = [trial.config for trial in expected(plan).trials]
    judged = [config for config in configs if measured_rounds(config) > 1]
    if configs and not judged:
        return (
            f"{stops.get(stop.text)} would stop nothing: trials are stopped between rounds, and each here "
            "has one; give a schedule of several, such as iterative(rounds=5), or --stop none"
        )
    largest = max(Counter(group_of(config, stop.within) for config in judged).values(), default=0)
    needed = trials_needed(stop.text)
    if not judged or largest >= needed:
        return None
    shared = ", ".join(axis for axis in stop.within if not axis.startswith("train."))
    fewer = f"n_startup_trials={largest - 1}, " if largest > 1 else ""
    return (
        f"{stops.get(stop.text)} would stop nothing: settings compete at one seed"
        f"{f' and equal {shared}' if shared else ''}, {needed} are needed, and there are {largest} at most; "
        f"give {fewer}more settings, fewer axes in stop_within, or --stop none"
    )
