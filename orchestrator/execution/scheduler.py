"""Optuna's pruners as a Tune scheduler."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState
from ray.tune.schedulers import TrialScheduler

from orchestrator.config import EarlyStopping, TrialConfig
from orchestrator.execution.searcher import STOPPED, SUCCEEDED, LiveTrialScheduler, metrics_of
from orchestrator.planning.plan import group_of
from orchestrator.space.pruners import pruners
from orchestrator.trial.task import PreviousTrial, Task
from pruning.phases import DELTA, PAST_COMPRESSIBLE, PATIENCE, check_phases, phases
from pruning.scalars import real_number

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

INDEX = "pq_index:"  # and the step
DENSE = "dense_val_accuracy"
optuna.logging.set_verbosity(optuna.logging.WARNING)


class PQIndexPruner(BasePruner):
    """Stops an iterative trial that is past its compressible phase and worse than its dense network.

    The phase comes from the turning points of the trial's own PQ index (`pruning.phases`, with `delta`
    and `patience`); worse is more than `tolerance` of validation accuracy. `record_round` gives a
    trial what is read here. Where the index never turns, nothing is stopped.
    """

    def __init__(self, *, delta: float = DELTA, patience: int = PATIENCE, tolerance: float = 0.01) -> None:
        check_phases(delta=delta, patience=patience)
        share = real_number(tolerance)
        if share is None or not 0 <= share <= 1:
            raise ValueError(f"tolerance: expected a number in [0, 1] but got {tolerance!r}")
        self.delta, self.patience, self.tolerance = delta, patience, share

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return bool(self.reason(trial))

    def phase(self, trial: FrozenTrial) -> str:
        """The phase of the trial's last round, from all of its indices so far."""
        return phases(_indices(trial), delta=self.delta, patience=self.patience)[-1]

    def reason(self, trial: FrozenTrial) -> str:
        """Why the trial is to be stopped; empty where it goes on. ValueError for what was not reported."""
        if not trial.intermediate_values:
            return ""
        if DENSE not in trial.user_attrs:
            raise ValueError(f"expected the user attribute {DENSE!r} but got none; see record_round")
        phase, loss = self.phase(trial), self._loss(trial)
        if phase not in PAST_COMPRESSIBLE or loss <= self.tolerance:
            return ""
        return f"{phase}, and {loss:.4f} below the dense network's validation accuracy"

    def _loss(self, trial: FrozenTrial) -> float:
        return float(trial.user_attrs[DENSE]) - _last(trial)


def _last(trial: FrozenTrial) -> float:
    return trial.intermediate_values[max(trial.intermediate_values)]


def _indices(trial: FrozenTrial) -> list[float]:
    """The PQ indices in the order of their steps. ValueError where the last step has none."""
    found = {
        int(name.removeprefix(INDEX)): float(value)
        for name, value in trial.user_attrs.items()
        if name.startswith(INDEX)
    }
    if trial.last_step not in found:
        raise ValueError(f"expected the user attribute '{INDEX}{trial.last_step}' but got none")
    return [found[step] for step in sorted(found)]


def record_round(
    trial: optuna.Trial, step: int, *, val_accuracy: float, pq_index: float, dense_val_accuracy: float
) -> None:
    """Report one round to Optuna with what `PQIndexPruner` reads. Step 0 may hold the dense network's index.

    `trial.set_user_attr("pq_index:0", index)` does that.
    """
    trial.set_user_attr(DENSE, dense_val_accuracy)
    trial.set_user_attr(f"{INDEX}{step}", pq_index)
    trial.report(val_accuracy, step)


class HyperbandPruner(BasePruner):
    """Optuna's HyperbandPruner, with "auto" taken for the last round of the first finished trials.

    Optuna adds one to it, since its steps count from 0; rounds count from 1.
    """

    def __init__(self, *, max_resource: int | str, **options: Any) -> None:  # ints, as Optuna names them
        self._options = options
        self._auto = max_resource == "auto"
        self._pruner = optuna.pruners.HyperbandPruner(max_resource=max_resource, **options)

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        if self._auto:
            finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            rounds = [one.last_step for one in finished if one.last_step is not None]
            if not rounds:
                return False
            self._auto = False
            self._pruner = optuna.pruners.HyperbandPruner(max_resource=max(rounds), **self._options)
        return bool(self._pruner.prune(study, trial))


def make_pruner(text: str) -> BasePruner:
    """The pruner of a text form, `median(n_startup_trials=2)`. ValueError for what `stops` does not know."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        pruner: BasePruner = pruners.get(text)(_make)
    return pruner


def _make(name: str, *args: Any, **options: Any) -> BasePruner:  # whatever the class takes
    own = {"PQIndexPruner": PQIndexPruner, "HyperbandPruner": HyperbandPruner}
    pruner: BasePruner = (own.get(name) or getattr(optuna.pruners, name))(*args, **options)
    return pruner


class Studies:
    """One Optuna study for each group of trials; trials go by their keys."""

    def __init__(self, stop: EarlyStopping) -> None:
        self.stop = stop
        self._groups: dict[tuple[str, ...], optuna.Study] = {}
        self._open: dict[str, tuple[optuna.Study, optuna.Trial]] = {}

    def report_round(self, key: str, config: TrialConfig, values: Mapping[str, float]) -> str:
        """Report a trial's round; why the trial is to be stopped, or nothing.

        At its last round a trial has nothing left to save: it is not stopped there.
        """
        study, trial = self._open.get(key) or self._ask(key, config)
        number = int(values["round"])
        trial.set_user_attr(f"{INDEX}0", values["dense_pq_index"])
        record_round(
            trial,
            number,
            val_accuracy=values["val_accuracy"],
            pq_index=values["pq_index"],
            dense_val_accuracy=values[DENSE],
        )
        if number >= values["rounds"] or not trial.should_prune():
            return ""
        return f"round {number}: {self._why(study, trial)}"

    def end(self, key: str, *, value: float | None, stopped: bool = False) -> None:
        """A trial has ended: with a validation accuracy, stopped, or failed. Others are not known here."""
        if key not in self._open:
            return
        study, trial = self._open.pop(key)
        if stopped:
            study.tell(trial, state=TrialState.PRUNED)
        elif value is None:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, value)

    def replay(self, past: PreviousTrial) -> None:
        """Take up a trial that ended before, so that a sweep that is carried on compares with it, too."""
        key = past.config.key()
        for values in past.rounds:
            self.report_round(key, past.config, values)
        self.end(key, value=past.val_accuracy, stopped=past.val_accuracy is None)

    def _ask(self, key: str, config: TrialConfig) -> tuple[optuna.Study, optuna.Trial]:
        group = group_of(config, self.stop.group_by)
        if group not in self._groups:
            # No parameter is drawn from the sampler; a seed keeps it from the system's randomness.
            sampler = optuna.samplers.RandomSampler(seed=0)
            pruner = make_pruner(self.stop.text)
            self._groups[group] = optuna.create_study(sampler=sampler, pruner=pruner, direction="maximize")
        study = self._groups[group]
        self._open[key] = study, study.ask()
        return self._open[key]

    def _why(self, study: optuna.Study, trial: optuna.Trial) -> str:
        frozen = next(found for found in study.get_trials(deepcopy=False) if found.number == trial.number)
        if isinstance(study.pruner, PQIndexPruner):
            return study.pruner.reason(frozen)
        return f"validation accuracy {_last(frozen):.4f}, by {self.stop}"


class OptunaStopping(LiveTrialScheduler):
    """Tune's scheduler: every round goes to `Studies`, every verdict to `tell(key, reason)`.

    It never answers STOP: a worker then gets the SystemExit that an interruption gives it, too, and Tune
    ends the processes of the last trials without waiting until they have closed their runs. The worker
    is held in its report until this returns; it reads the verdict then, and ends by itself.
    """

    _supports_buffered_results = False  # a verdict must be there before the worker goes on

    def __init__(
        self, stop: EarlyStopping, tell: Callable[[str, str], None], past: Sequence[PreviousTrial] = ()
    ) -> None:
        super().__init__()
        self._studies = Studies(stop)
        self._tell = tell
        for trial in past:
            self._studies.replay(trial)

    def on_trial_result(
        self, tune_controller: TuneController, trial: Trial, result: Mapping[str, Any]
    ) -> str:
        point = Task.from_text(trial.config["point"])
        if isinstance(point.config, TrialConfig) and "round" in result:
            reason = self._studies.report_round(point.key, point.config, result)
            if reason:
                self._tell(point.key, reason)
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(
        self, tune_controller: TuneController, trial: Trial, result: Mapping[str, Any]
    ) -> None:
        key = Task.from_text(trial.config["point"]).key
        value = metrics_of(result).get("final/val_accuracy") if result.get(SUCCEEDED) else None
        self._studies.end(key, value=value, stopped=STOPPED in result)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """Its worker died; it may be tried again, and then has its rounds before it, not its verdict."""
        key = Task.from_text(trial.config["point"]).key
        self._studies.end(key, value=None)
        self._tell(key, "")

    def on_trial_remove(self, tune_controller: TuneController, trial: Trial) -> None:
        self.on_trial_error(tune_controller, trial)

    def __getstate__(self) -> dict[str, object]:  # Tune pickles what it is given
        """Nothing, as the searcher: a sweep is carried on from the store."""
        return {}
