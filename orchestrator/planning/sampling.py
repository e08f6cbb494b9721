"""Sample the next point of a search with Optuna, reproducibly from the points before it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers._base import _CONSTRAINTS_KEY  # type: ignore[attr-defined]  # there is no public name
from optuna.trial import TrialState

from orchestrator.config import Numerics
from orchestrator.planning.equality import plain_key
from orchestrator.planning.expansion import Expansion, Params, SampledPoint, expand
from orchestrator.space.space import Lists, Space, select
from orchestrator.space.values import Choice, Range, Value, listed_values

MAX_DRAWS = 1000  # for one point, until one is new and can be run
MODEL_DRAWS = 20  # of these by tpe's model, which may insist on a planned point; the others are random
VIOLATIONS = "violations"
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
    """A sampled point and its state; of a complete one the `objectives`, in the order of the space's.

    `violations`: by how much it misses each constraint; 0 or less where it keeps to it.
    """

    params: Params
    state: State
    objectives: tuple[float, ...] | None = None
    violations: tuple[float, ...] = ()


def next_point(
    space: Space,
    numerics: Numerics,
    *,
    number: int,
    observed: Sequence[ObservedPoint],
    planned_keys: Collection[Hashable],
    gpu_bytes: int | None = None,
) -> SampledPoint:
    """Return point `number`, counted from 0: one whose trials can be run, and are not planned yet.

    `planned_keys` are those of `plain_key`: a point that equals a planned one is not new.
    `gpu_bytes` are as in `Plan`.
    """
    conflicts: list[str] = []
    study = make_study(space, observed)
    expand_lists = partial(expand, space, numerics=numerics, gpu_bytes=gpu_bytes)
    for attempt in range(MAX_DRAWS):
        params, expansion = _draw(space, expand_lists, study, number=number, attempt=attempt)
        if not expansion.trials:
            conflicts.append(expansion.excluded[0].reason)
        elif not any(plain_key(trial.config) in planned_keys for trial in expansion.trials):
            return SampledPoint(params, expansion, tuple(conflicts))
        if not params:
            break  # no axis has a choice: every draw is the same
    return SampledPoint({}, None, tuple(conflicts))


def make_study(space: Space, observed: Sequence[ObservedPoint]) -> optuna.Study:
    """Return an in-memory Optuna study of a search; a stopped point is PRUNED, a failed one FAIL."""
    directions = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}
    study = optuna.create_study(directions=[directions[way] for way in space.search.objectives.values()])
    study.add_trials([_frozen_trial(space, point) for point in observed])
    return study


def _frozen_trial(space: Space, point: ObservedPoint) -> optuna.trial.FrozenTrial:
    choices = {**space.choices(), **space.axes.options}
    return optuna.trial.create_trial(
        state=STATES[point.state],
        params=dict(point.params),
        distributions={name: make_distribution(choices[name]) for name in point.params},
        values=None if point.objectives is None else list(point.objectives),
        user_attrs={VIOLATIONS: list(point.violations)},
        # Where Optuna's samplers look for what `constraints_func` returned when a trial was told.
        system_attrs={_CONSTRAINTS_KEY: list(point.violations)} if point.violations else {},
    )


def _draw(
    space: Space,
    expand_lists: Callable[[Lists], Expansion],
    study: optuna.Study,
    *,
    number: int,
    attempt: int,
) -> tuple[Params, Expansion]:
    seed_text = f"{space.search.seed} {number} {attempt}"
    study.sampler = _make_sampler(space, seed_text, use_model=attempt < MODEL_DRAWS)
    trial = study.ask()
    params: dict[str, Value] = {}

    def choose(name: str, choice: Choice) -> Value:
        params[name] = _suggest(trial, name, choice)
        return params[name]

    expansion = expand_lists(select(space, choose))
    # The draw is closed as failed: the next point has a study of its own, made from observed points.
    study.tell(trial, state=TrialState.FAIL)
    return params, expansion


def _make_sampler(space: Space, seed_text: str, *, use_model: bool) -> optuna.samplers.BaseSampler:
    seed = int.from_bytes(hashlib.sha256(seed_text.encode()).digest()[:4], "big")
    if space.search.method == "random" or not use_model:
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # `group`: axes that every point has share one density, the options of each method have another.
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=space.search.startup,
            multivariate=True,
            group=True,
            constant_liar=True,
            constraints_func=_violations if space.search.constraints else None,
        )


def _violations(trial: optuna.trial.FrozenTrial) -> Sequence[float]:
    violations: Sequence[float] = trial.user_attrs[VIOLATIONS]
    return violations


def make_distribution(choice: Choice) -> BaseDistribution:
    """Return the Optuna distribution of a list or a range."""
    if not isinstance(choice, Range):
        return CategoricalDistribution(choice)
    if choice.is_integer:
        return IntDistribution(int(choice.low), int(choice.last), log=choice.log, step=int(choice.step or 1))
    return FloatDistribution(choice.low, choice.last, log=choice.log, step=choice.step)


def _suggest(trial: optuna.Trial, name: str, choice: Choice) -> Value:
    d = make_distribution(choice)
    if isinstance(d, IntDistribution):
        return trial.suggest_int(name, d.low, d.high, log=d.log, step=d.step)
    if isinstance(d, FloatDistribution) and isinstance(choice, Range):
        return choice.nearest(trial.suggest_float(name, d.low, d.high, log=d.log, step=d.step))
    return trial.suggest_categorical(name, listed_values(choice))
