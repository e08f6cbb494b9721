"""Optuna's samplers: the next point of a search, given the points before it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from orchestrator.config import Numerics
from orchestrator.planning.choices import select
from orchestrator.planning.equality import plain_key
from orchestrator.planning.expansion import Expansion, Params, SampledPoint, expand
from orchestrator.space.space import Space
from orchestrator.space.values import Choice, Range, Value, listed_values

MOST_DRAWS = 1000  # for one point, until one is new and can be run
MODEL_DRAWS = 20  # of these by tpe's model, which may insist on a point that is there already
State = Literal["complete", "stopped", "failed", "running"]
STATES = {
    "complete": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
}
optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class ObservedPoint:
    """A point that was asked for; `objectives` in the order of the space's, for a complete one."""

    params: Params
    state: State
    objectives: tuple[float, ...] | None = None


def next_point(
    space: Space, numerics: Numerics, *, number: int, seen: Sequence[ObservedPoint], taken: Collection[str]
) -> SampledPoint:
    """Point `number`, from 0, after those `seen`: one whose trials can be run, and none of them `taken`.

    `taken` are keys of plain configurations: a point equal by definition to one before is no new one.
    """
    refused: list[str] = []
    past = study(space, seen)
    for attempt in range(MOST_DRAWS):
        params, found = _drawn(space, numerics, past, number=number, attempt=attempt)
        if not found.trials:
            refused.append(found.excluded[0].reason)
        elif not any(plain_key(trial.config) in taken for trial in found.trials):
            return SampledPoint(params, found, tuple(refused))
        if not params:
            break  # there is nothing to choose
    return SampledPoint({}, None, tuple(refused))


def study(space: Space, seen: Sequence[ObservedPoint]) -> optuna.Study:
    """An Optuna study of a search, in memory; a stopped point is PRUNED, one that failed is FAIL."""
    ways = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}
    directions = [ways[way] for way in space.search.objectives.values()]
    found = optuna.create_study(directions=directions)
    found.add_trials([_trial(space, point) for point in seen])
    return found


def _trial(space: Space, point: ObservedPoint) -> optuna.trial.FrozenTrial:
    choices = {**space.choices(), **space.axes.options}
    return optuna.trial.create_trial(
        state=STATES[point.state],
        params=dict(point.params),
        distributions={name: distribution(choices[name]) for name in point.params},
        values=None if point.objectives is None else list(point.objectives),
    )


def _drawn(
    space: Space, numerics: Numerics, past: optuna.Study, *, number: int, attempt: int
) -> tuple[Params, Expansion]:
    past.sampler = _sampler(space, f"{space.search.seed} {number} {attempt}", by_model=attempt < MODEL_DRAWS)
    trial = past.ask()
    params: dict[str, Value] = {}

    def pick(name: str, choice: Choice) -> Value:
        params[name] = _suggested(trial, name, choice)
        return params[name]

    found = expand(space, select(space, pick), numerics)
    past.tell(trial, state=TrialState.FAIL)  # of this study no more is heard: the next one is built anew
    return params, found


def _sampler(space: Space, text: str, *, by_model: bool) -> optuna.samplers.BaseSampler:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    if space.search.method == "random" or not by_model:
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # `group`: what every point has is drawn from one density, the options of each method from another.
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=space.search.startup,
            multivariate=True,
            group=True,
            constant_liar=True,
        )


def distribution(choice: Choice) -> BaseDistribution:
    """What Optuna draws from for a list or a range."""
    if not isinstance(choice, Range):
        return CategoricalDistribution(choice)
    if choice.is_integer:
        return IntDistribution(int(choice.low), int(choice.last), log=choice.log, step=int(choice.step or 1))
    return FloatDistribution(choice.low, choice.last, log=choice.log, step=choice.step)


def _suggested(trial: optuna.Trial, name: str, choice: Choice) -> Value:
    one = distribution(choice)
    if isinstance(one, IntDistribution):
        return trial.suggest_int(name, one.low, one.high, log=one.log, step=one.step)
    if isinstance(one, FloatDistribution) and isinstance(choice, Range):
        return choice.nearest(trial.suggest_float(name, one.low, one.high, log=one.log, step=one.step))
    return trial.suggest_categorical(name, listed_values(choice))
