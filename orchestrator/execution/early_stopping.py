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
from orchestrator.execution.dag_searcher import METRICS, STOPPED, TASKS, LiveTrialScheduler, outcomes_of
from orchestrator.planning.plan import group_of
from orchestrator.space.stopping_rules import pruners
from orchestrator.trial.task import PreviousTrial, load_tasks
from pruning.hyperparameters import to_float
from pruning.pq_index import DELTA, PAST_COMPRESSIBLE, PATIENCE, check_phase_options, find_phases

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

INDEX = "pq_index:"  # and the step
DENSE = "dense_val_accuracy"
optuna.logging.set_verbosity(optuna.logging.WARNING)


class PQIndexPruner(BasePruner):
    """Stop an iterative trial that is past its compressible phase and worse than its dense network.

    The phase comes from the turning points of the trial's PQ index (`pruning.pq_index`, with `delta` and
    `patience`); worse is more than `tolerance` of validation accuracy. `record_round` stores what this
    reads. If the index never turns, nothing is stopped.
    """

    def __init__(self, *, delta: float = DELTA, patience: int = PATIENCE, tolerance: float = 0.01) -> None:
        check_phase_options(delta=delta, patience=patience)
        share = to_float(tolerance)
        if share is None or not 0 <= share <= 1:
            raise ValueError(f"tolerance: expected a number in [0, 1] but got {tolerance!r}")
        self.delta, self.patience, self.tolerance = delta, patience, share

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return bool(self.reason(trial))

    def phase(self, trial: FrozenTrial) -> str:
        """Return the phase of the trial's last round, from all of its indices so far."""
        return find_phases(_indices(trial), delta=self.delta, patience=self.patience)[-1]

    def reason(self, trial: FrozenTrial) -> str:
        """Return why the trial is to be stopped, or nothing if it goes on.

        ValueError if `record_round` has not reported its rounds.
        """
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
    """Return the PQ indices in the order of their steps. ValueError if the last step has none."""
    indices = {
        int(name.removeprefix(INDEX)): float(value)
        for name, value in trial.user_attrs.items()
        if name.startswith(INDEX)
    }
    if trial.last_step not in indices:
        raise ValueError(f"expected the user attribute '{INDEX}{trial.last_step}' but got none")
    return [indices[step] for step in sorted(indices)]


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
            rounds = [ended.last_step for ended in finished if ended.last_step is not None]
            if not rounds:
                return False
            self._auto = False
            self._pruner = optuna.pruners.HyperbandPruner(max_resource=max(rounds), **self._options)
        return bool(self._pruner.prune(study, trial))


def make_pruner(text: str) -> BasePruner:
    """Return the pruner of a text form, `median(n_startup_trials=2)`. ValueError for an unknown one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        pruner: BasePruner = pruners.get(text)(_make)
    return pruner


def _make(name: str, *args: Any, **options: Any) -> BasePruner:  # whatever the class takes
    classes = {"PQIndexPruner": PQIndexPruner, "HyperbandPruner": HyperbandPruner}
    pruner: BasePruner = (classes.get(name) or getattr(optuna.pruners, name))(*args, **options)
    return pruner


class Studies:
    """One Optuna study for each group of trials; trials go by their keys."""

    def __init__(self, stop: EarlyStopping) -> None:
        self.stop = stop
        self._groups: dict[tuple[str, ...], optuna.Study] = {}
        self._open: dict[str, tuple[optuna.Study, optuna.Trial]] = {}

    def report_round(self, key: str, config: TrialConfig, values: Mapping[str, float]) -> str:
        """Report a round of a trial, and return why it is to be stopped, or nothing.

        A trial is not stopped at its last round: that would save nothing.
        """
        study, trial = self._open.get(key) or self._start_trial(key, config)
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
        return f"round {number}: {self._reason(study, trial)}"

    def end(self, key: str, *, value: float | None, stopped: bool = False) -> None:
        """End a trial: with a validation accuracy, stopped, or failed. An unknown key is ignored."""
        if key not in self._open:  # a dense training, or a trial that ended before its first round
            return
        study, trial = self._open.pop(key)
        if stopped:
            study.tell(trial, state=TrialState.PRUNED)
        elif value is None:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, value)

    def replay(self, trial: PreviousTrial) -> None:
        """Report all rounds of a trial that ended before, so that a resumed sweep compares with it, too."""
        key = trial.config.key()
        for values in trial.rounds:
            self.report_round(key, trial.config, values)
        self.end(key, value=trial.val_accuracy, stopped=trial.val_accuracy is None)

    def _start_trial(self, key: str, config: TrialConfig) -> tuple[optuna.Study, optuna.Trial]:
        group = group_of(config, self.stop.group_by)
        if group not in self._groups:
            # No parameter is drawn from the sampler; a seed keeps it from the system's randomness.
            sampler = optuna.samplers.RandomSampler(seed=0)
            pruner = make_pruner(self.stop.text)
            self._groups[group] = optuna.create_study(sampler=sampler, pruner=pruner, direction="maximize")
        study = self._groups[group]
        self._open[key] = study, study.ask()
        return self._open[key]

    def _reason(self, study: optuna.Study, trial: optuna.Trial) -> str:
        frozen = study.get_trials(deepcopy=False)[trial.number]
        if isinstance(study.pruner, PQIndexPruner):
            return study.pruner.reason(frozen)
        return f"validation accuracy {_last(frozen):.4f}, by {self.stop}"


class OptunaStopping(LiveTrialScheduler):
    """A Tune scheduler that passes every round to `Studies`, and every decision to `send_signal`.

    `send_signal(key, reason)` with an empty reason takes a decision back. The scheduler never answers STOP:
    a worker would then get the SystemExit that an interruption gives it, and Tune would end the processes
    of the last trials without waiting until they have closed their runs. Instead the worker, which waits
    in its report until this returns, reads the signal and ends by itself.
    """

    _supports_buffered_results = False  # a signal must be there before the worker goes on

    def __init__(
        self,
        stop: EarlyStopping,
        send_signal: Callable[[str, str], None],
        previous_trials: Sequence[PreviousTrial] = (),
    ) -> None:
        super().__init__()
        self._studies = Studies(stop)
        self._send_signal = send_signal
        for trial in previous_trials:
            self._studies.replay(trial)

    def on_trial_result(
        self, tune_controller: TuneController, trial: Trial, result: Mapping[str, Any]
    ) -> str:
        if "round" in result:
            task = next(task for task in load_tasks(trial.config[TASKS]) if task.key == result["task"])
            if isinstance(task.config, TrialConfig):
                reason = self._studies.report_round(task.key, task.config, result)
                if reason:
                    self._send_signal(task.key, reason)
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(
        self, tune_controller: TuneController, trial: Trial, result: Mapping[str, Any]
    ) -> None:
        for key, outcome in outcomes_of(result).items():
            value = outcome.get(METRICS, {}).get("final/val_accuracy")
            self._studies.end(key, value=value, stopped=STOPPED in outcome)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """Forget trials whose worker died: they may be tried again, and then have all rounds before them."""
        for task in load_tasks(trial.config[TASKS]):
            self._studies.end(task.key, value=None)
            self._send_signal(task.key, "")

    def on_trial_remove(self, tune_controller: TuneController, trial: Trial) -> None:
        self.on_trial_error(tune_controller, trial)

    def __getstate__(self) -> dict[str, object]:  # Tune pickles its scheduler
        """Leave everything out, as the searcher does: a sweep is resumed from the store."""
        return {}
