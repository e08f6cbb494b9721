"""A space as a plan: every trial once, shared trainings, exclusions with reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.config import (
    ADDED_LATER,
    DenseConfig,
    Device,
    EarlyStopping,
    Numerics,
    Precision,
    TrialConfig,
)
from orchestrator.errors import SpaceError
from orchestrator.planning.choices import iter_grid
from orchestrator.planning.constraints import model_conflict
from orchestrator.planning.equality import plain_key
from orchestrator.planning.expansion import Exclusion, Params, PlannedTrial, SampledPoint, expand
from orchestrator.planning.fingerprints import refresh
from orchestrator.space.pruners import pruners, trials_needed
from orchestrator.space.space import Space
from orchestrator.trial.params import params
from orchestrator.trial.run import measured_rounds

__all__ = [
    "Exclusion",
    "Plan",
    "PlannedTrial",
    "SearchPoint",
    "extended",
    "make_plan",
    "with_expected_points",
]
DRAWN_AGAIN = "drawn again"


@dataclass(frozen=True)
class SearchPoint:
    """A point that a search asked for: what was chosen, by axis or METHOD.OPTION, and its trials' keys."""

    params: Params
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """`dense`: the trainings that the trials share, each once, in the order in which they are needed.

    `asked`: the points of a search, in their order, each with a trial for every seed; a grid has none.
    `exhausted`: no other point could be found. That of tpe grows while results come in.
    """

    space: Space
    trials: tuple[PlannedTrial, ...]
    dense: tuple[DenseConfig, ...]
    excluded: tuple[Exclusion, ...]
    asked: tuple[SearchPoint, ...] = ()
    numerics: Numerics = Numerics()  # noqa: RUF009  frozen
    exhausted: bool = False

    @property
    def complete(self) -> bool:
        """Whether there is no further point to ask for."""
        return self.exhausted or len(self.asked) >= self.space.search.points


def make_plan(
    space: Space, *, device: Device = "cpu", precision: Precision = "fp32", threads: int = 1
) -> Plan:
    """The plan of a space; no data set is needed. SpaceError where a model fits none of the data sets.

    A search by `random` is drawn whole; one by `tpe` is empty, and grows while results come in.
    """
    _check_models(space)
    refresh()
    numerics = Numerics(device, precision, threads)
    if space.search.method == "grid":
        found = expand(space, iter_grid(space), numerics)
        return Plan(space, found.trials, found.dense, found.excluded, numerics=numerics)
    plan = Plan(space, (), (), (), numerics=numerics)
    return plan if space.search.method == "tpe" else _drawn(plan, space.search.points)


def with_expected_points(plan: Plan, *, points: int | None = None) -> Plan:
    """What a plan may come to: the points that a search has yet to ask for are drawn at random.

    No more than there are to be, or than `points` if that is given.
    """
    if plan.space.search.method != "tpe" or plan.exhausted:
        return plan
    search = plan.space.search.model_copy(update={"method": "random"})
    loose = replace(plan, space=plan.space.model_copy(update={"search": search}))
    return replace(_drawn(loose, points or search.points), space=plan.space)


def extended(plan: Plan, draws: Sequence[SampledPoint]) -> Plan:
    """The plan with the points that were drawn; exhausted where one could not be."""
    found = [draw.expansion for draw in draws if draw.expansion is not None]
    points = [
        SearchPoint(draw.params, tuple(trial.key for trial in draw.expansion.trials))
        for draw in draws
        if draw.expansion is not None
    ]
    dense = dict.fromkeys((*plan.dense, *(one for expansion in found for one in expansion.dense)))
    longer = replace(
        plan,
        trials=(*plan.trials, *(trial for expansion in found for trial in expansion.trials)),
        dense=tuple(dense),
        excluded=_with_refused(plan.excluded, draws),
        asked=(*plan.asked, *points),
    )
    return longer if len(found) == len(draws) else _exhausted(longer)


def _exhausted(plan: Plan) -> Plan:
    missing = Exclusion("no other point was found", plan.space.search.points - len(plan.asked))
    return replace(plan, excluded=(*plan.excluded, missing), exhausted=True)


def _with_refused(excluded: tuple[Exclusion, ...], draws: Sequence[SampledPoint]) -> tuple[Exclusion, ...]:
    """One entry for all draws that could not be run: with continuous axes hardly two reasons are equal."""
    refused = [reason for draw in draws for reason in draw.refused]
    if not refused:
        return excluded
    before = next((item for item in excluded if item.reason.startswith(DRAWN_AGAIN)), None)
    if before is None:
        return (*excluded, Exclusion(f"{DRAWN_AGAIN}, as for {refused[0]}", len(refused)))
    more = Exclusion(before.reason, before.count + len(refused))
    return tuple(more if item is before else item for item in excluded)


def _drawn(plan: Plan, points: int) -> Plan:
    """The plan with as many points as there are to be, as far as the space has them."""
    from orchestrator.planning.sampling import next_point  # optuna is for searches alone

    taken = {plain_key(trial.config) for trial in plan.trials}
    draws: list[SampledPoint] = []
    while len(plan.asked) + len(draws) < points and (not draws or draws[-1].expansion is not None):
        number = len(plan.asked) + len(draws)
        draw = next_point(plan.space, plan.numerics, number=number, seen=(), taken=taken)
        taken.update(plain_key(trial.config) for trial in (draw.expansion.trials if draw.expansion else ()))
        draws.append(draw)
    return extended(plan, draws)


def _check_models(space: Space) -> None:
    for model in space.axes.model:
        refusals = [model_conflict(model, dataset) for dataset in space.axes.dataset]
        if all(refusals):
            raise SpaceError(f"{space.name}: {refusals[0]}")


def group_of(config: TrialConfig, within: tuple[str, ...]) -> tuple[str, ...]:
    """The values that trials must share to be compared: those of the axes `within`, and the seed."""
    found = {**ADDED_LATER, **params(config)}
    return (*(str(found[axis]) for axis in within), str(config.dense.seed))


def early_stopping_conflict(plan: Plan, stop: EarlyStopping) -> str | None:
    """Why the rule can stop no trial of the plan, and what to do; None where it can."""
    configs = [trial.config for trial in with_expected_points(plan).trials]
    judged = [config for config in configs if measured_rounds(config) > 1]
    if configs and not judged:
        return (
            f"{pruners.get(stop.text)} would stop nothing: trials are stopped between rounds, and each here "
            "has one; give a schedule of several, such as iterative(rounds=5), or --stop none"
        )
    largest = max(Counter(group_of(config, stop.group_by) for config in judged).values(), default=0)
    needed = trials_needed(stop.text)
    if not judged or largest >= needed:
        return None
    shared = ", ".join(axis for axis in stop.group_by if not axis.startswith("train."))
    fewer = f"n_startup_trials={largest - 1}, " if largest > 1 else ""
    return (
        f"{pruners.get(stop.text)} would stop nothing: settings compete at one seed"
        f"{f' and equal {shared}' if shared else ''}, {needed} are needed, and there are {largest} at most; "
        f"give {fewer}more settings, fewer axes in stop_within, or --stop none"
    )
