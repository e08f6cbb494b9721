"""Save the progress of an unfinished trial periodically, and resume it with the same bits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from orchestrator.config import Json
from orchestrator.keys import STAGE_VERSIONS
from orchestrator.training import checkpoint_packing
from orchestrator.training.checkpoint_packing import Checkpoint, CheckpointStore, pack, tensors_digest, unpack
from orchestrator.training.loop import EpochRecord, TrainerState
from orchestrator.trial.context import NetworkState, TrialContext
from orchestrator.trial.measurement import MeasuredRound, ResumedRound
from orchestrator.trial.metrics import Measurement
from orchestrator.trial.recovery import RoundMasks, masks_only

FORM = 4  # raise it when a checkpoint is written in another form: one of an older form is ignored


@dataclass(frozen=True, eq=False)
class TrainingProgress:
    """One training of a trial, finished or not."""

    stage: str
    round: int
    trainer_state: TrainerState


@dataclass(frozen=True, eq=False)
class TrialProgress:
    """How far a trial has come. In round 0 the dense network is trained and prepared.

    `round_start` is the state that the current round starts from, `last_measured` the state measured last,
    `rounds` the measured rounds, and `trainings` those of the current round, in their order.
    """

    round: int = 0
    round_start: NetworkState | None = None
    rounds: tuple[MeasuredRound | ResumedRound, ...] = ()
    last_measured: NetworkState | None = None
    trainings: tuple[TrainingProgress, ...] = ()

    def state_dict(self) -> dict[str, object]:
        """Return the progress as nested mappings, sequences and dataclasses of tensors and JSON values."""
        shared = self.last_measured is self.round_start  # as after a round that continues from the last one
        return {
            **vars(self),
            "rounds": [ResumedRound(row.measurement, row.history, row.notes) for row in self.rounds],
            "last_measured": "round_start" if shared else self.last_measured,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> TrialProgress:
        """Return the progress of a `state_dict` whose dataclasses have become mappings."""
        round_start, last = _network_state(state["round_start"]), state["last_measured"]
        rounds = [
            ResumedRound(Measurement(**row["measurement"]), _records(row["history"]), tuple(row["notes"]))
            for row in state["rounds"]
        ]
        trainings = [
            TrainingProgress(row["stage"], row["round"], _trainer_state(row["trainer_state"]))
            for row in state["trainings"]
        ]
        last_measured = round_start if last == "round_start" else _network_state(last)
        return cls(state["round"], round_start, tuple(rounds), last_measured, tuple(trainings))

    def check(self, network: nn.Module) -> None:
        """ValueError unless every state fits the network (which may be on `meta`) and is finite."""
        expected = {name: (tensor.shape, tensor.dtype) for name, tensor in network.state_dict().items()}
        states = [state for state in (self.round_start, self.last_measured) if state is not None]
        trainers = [training.trainer_state for training in self.trainings]
        all_weights = [*(state.weights for state in states), *(trainer.weights for trainer in trainers)]
        # An average has weights that are shared by layers once.
        all_weights += [{**trainer.weights, **trainer.average} for trainer in trainers]
        for weights in all_weights:
            if {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()} != expected:
                raise ValueError("its weights are not those of the network")
            if not all(tensor.isfinite().all() for tensor in weights.values()):
                raise ValueError("a weight is not finite")
        histories = [*(row.history for row in self.rounds), *(trainer.records for trainer in trainers)]
        records = [record for history in histories for record in history]
        if not all(math.isfinite(value) for record in records for value in vars(record).values()):
            raise ValueError("a loss is not finite")
        has_start, has_measured = self.round_start is not None, self.last_measured is not None
        if has_start != (self.round > 0) or has_measured != bool(self.rounds):
            raise ValueError("it is incomplete: a state is missing")


def _network_state(values: Mapping[str, Any] | None) -> NetworkState | None:
    return None if values is None else NetworkState(**{**values, "history": _records(values["history"])})


def _trainer_state(values: Mapping[str, Any]) -> TrainerState:
    hook_state = Checkpoint(**values["hook_state"])
    return TrainerState(**{**values, "records": _records(values["records"]), "hook_state": hook_state})


def _records(rows: list[dict[str, float]]) -> tuple[EpochRecord, ...]:
    return tuple(EpochRecord(**row) for row in rows)


class TrialCheckpointer:
    """Record the trainings and rounds of one trial, and save its progress every so many seconds.

    It starts from the `progress` of an earlier process: what that finished is not done again. `identity`
    says which trial it is of; a `note` is added to the round that is measured next.
    """

    def __init__(
        self,
        store: CheckpointStore | None,
        identity: Mapping[str, Json],
        progress: TrialProgress,
        *,
        every_seconds: float,
        note: str = "",
    ) -> None:
        self.progress = replace(progress, trainings=())
        self._earlier_trainings = list(progress.trainings)  # not yet asked for by this process
        self._store, self._identity, self._note = store, identity, note
        self._every_seconds, self._saved_at = every_seconds, time.monotonic()
        self._round_masks: dict[int, NetworkState] = {}

    def start_round(self, round: int, state: NetworkState) -> None:
        """Record that a round starts from `state`."""
        if round == self.progress.round:
            return  # resumed within this round
        # The dense training stays: whoever resumes within this round needs the dense network, too.
        dense = tuple(training for training in self.progress.trainings if training.stage == "dense")
        self.progress = replace(self.progress, round=round, round_start=state, trainings=dense)
        if self._is_due():
            self._save(self.progress)

    def add_pruned(self, round: int, state: NetworkState) -> None:
        """Record the masks of a round, before it trains."""
        self._round_masks[round] = masks_only(state)

    def round_masks(self, key: str, rounds: int) -> RoundMasks | None:
        """Return the masks of all rounds for a control; None if an earlier process pruned some of them."""
        numbers = range(1, rounds + 1)
        if self._round_masks.keys() != set(numbers):
            return None
        return RoundMasks(tuple(self._round_masks[number] for number in numbers), key)

    @property
    def last_measured(self) -> NetworkState:
        """The state that was measured last. RuntimeError before there is one."""
        if self.progress.last_measured is None:
            raise RuntimeError("no round has been measured yet")
        return self.progress.last_measured

    def add_measured(self, measured: MeasuredRound) -> MeasuredRound:
        """Record a measured round, and return it with the note of why a checkpoint was ignored, if any."""
        if self._note:
            measured, self._note = replace(measured, notes=(self._note, *measured.notes)), ""
        rounds = (*self.progress.rounds, measured)
        self.progress = replace(self.progress, rounds=rounds, last_measured=measured.state)
        return measured

    def resume(self, stage: str, round: int) -> TrainerState | None:
        """Return how far an earlier process came with the next training; None to start it anew."""
        earlier = self._earlier_trainings
        if earlier and (earlier[0].stage, earlier[0].round) == (stage, round):
            return earlier.pop(0).trainer_state
        earlier.clear()  # from here on this trial goes another way
        return None

    def maybe_save(self, stage: str, round: int, capture: Callable[[], TrainerState]) -> None:
        """Save the progress after an epoch, if it is time; only then is the trainer's state captured."""
        if self._is_due():
            self._save(self._with_training(stage, round, capture()))

    def finished(self, stage: str, round: int, trainer_state: TrainerState) -> None:
        """Record a finished training."""
        self.progress = self._with_training(stage, round, trainer_state)

    def _with_training(self, stage: str, round: int, state: TrainerState) -> TrialProgress:
        training = TrainingProgress(stage, round, state)
        return replace(self.progress, trainings=(*self.progress.trainings, training))

    def _is_due(self) -> bool:
        return self._store is not None and time.monotonic() - self._saved_at >= self._every_seconds

    def _save(self, progress: TrialProgress) -> None:
        if self._store is not None:
            self._store.save(pack({**self._identity, "form": FORM, **progress.state_dict()}))
            self._saved_at = time.monotonic()  # after it: a slow store does not take all of the time


def resume_or_start(
    store: CheckpointStore | None,
    context: TrialContext,
    *,
    key: str,
    dense: NetworkState | None,
    masks_from: RoundMasks | None = None,
    every_seconds: float | None = None,
) -> TrialCheckpointer:
    """Return the checkpointer of the trial `key`, from the latest checkpoint in the store if that fits.

    `dense` is the stored dense network that the trial starts from, None where the trial trains it;
    `masks_from` are the masks that it need not prune itself. Without a store nothing is saved.
    """
    every_seconds = checkpoint_packing.SECONDS_BETWEEN if every_seconds is None else every_seconds
    if store is None:
        return TrialCheckpointer(None, {}, TrialProgress(), every_seconds=every_seconds)
    identity = {
        "key": key,
        "stage_version": STAGE_VERSIONS["trial"],
        "torch": str(torch.__version__),
        "data": context.data.digest,
        "dense": None if dense is None else tensors_digest(dense.weights),
        "rounds_shared": masks_from is not None,
    }
    progress, note, saved = TrialProgress(), "", store.load_latest()
    if saved is not None:
        try:
            progress = load_progress(saved, identity, context.meta_module())
        except ValueError as error:
            note = f"a checkpoint was ignored: {error}"
    return TrialCheckpointer(store, identity, progress, every_seconds=every_seconds, note=note)


def load_progress(saved: Checkpoint, identity: Mapping[str, Json], network: nn.Module) -> TrialProgress:
    """Return the progress that a checkpoint holds. ValueError, with the reason, if it does not fit."""
    for name, value in {**identity, "form": FORM}.items():
        if saved.metadata.get(name) != value:
            raise ValueError(f"it is of another {name}")
    try:
        progress = TrialProgress.from_state_dict(unpack(saved))
        progress.check(network)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"it is incomplete: {error!r}") from error
    return progress
