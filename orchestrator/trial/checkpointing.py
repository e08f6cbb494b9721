"""Save an unfinished trial periodically, and resume it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from orchestrator.config import STAGE_VERSION, Json
from orchestrator.training import checkpoint
from orchestrator.training.checkpoint import CheckpointStore, tensors_digest
from orchestrator.training.loop import TrainerState
from orchestrator.trial.context import NetworkState, TrialContext
from orchestrator.trial.measurement import MeasuredRound
from orchestrator.trial.progress import TrialProgress, UnfinishedTraining, from_saved, to_saved
from orchestrator.trial.recovery import RoundMasks, masks_only


class TrialCheckpointer:
    """The book of one walk's trainings and rounds.

    It goes on from a standing that an earlier process left: what it holds is not done again. `note`
    says why one was left aside.
    """

    def __init__(
        self,
        keeper: CheckpointStore | None,
        walk: Mapping[str, Json],
        standing: TrialProgress,
        *,
        seconds_between: float,
        note: str = "",
    ) -> None:
        self.standing = replace(standing, trainings=())
        self._before = list(standing.trainings)  # those that this process has not come to yet
        self._keeper, self._walk, self._note = keeper, walk, note
        self._seconds_between, self._since = seconds_between, time.monotonic()
        self._pruned: dict[int, NetworkState] = {}

    def begin(self, round: int, state: NetworkState) -> None:
        """A round begins from `state`."""
        if round == self.standing.round:
            return  # the walk is carried on within it
        dense = tuple(training for training in self.standing.trainings if training.stage == "dense")
        self.standing = replace(self.standing, round=round, round_start=state, trainings=dense)
        if self._due():
            self._keep(self.standing)

    def pruned(self, round: int, state: NetworkState) -> None:
        """A round has pruned, and trains next."""
        self._pruned[round] = masks_only(state)

    def round_masks(self, key: str, rounds: int) -> RoundMasks | None:
        """What a control needs of the walk; None where an earlier process has pruned some of its rounds."""
        numbers = range(1, rounds + 1)
        whole = self._pruned.keys() == set(numbers)
        return RoundMasks(tuple(self._pruned[number] for number in numbers), key) if whole else None

    @property
    def last(self) -> NetworkState:
        """The state that was measured last; RuntimeError before there is one."""
        if self.standing.last_measured is None:
            raise RuntimeError("the last state is asked for before one was measured")
        return self.standing.last_measured

    def measured(self, measured: MeasuredRound) -> MeasuredRound:
        """A round has been measured; it comes back with what there is to say of it."""
        if self._note:
            measured, self._note = replace(measured, notes=(self._note, *measured.notes)), ""
        rounds = (*self.standing.rounds, measured)
        self.standing = replace(self.standing, rounds=rounds, last_measured=measured.state)
        return measured

    def resume(self, stage: str, round: int) -> TrainerState | None:
        """How far an earlier process came with the next training; None if it had not begun."""
        if self._before and (self._before[0].stage, self._before[0].round) == (stage, round):
            return self._before.pop(0).trainer_state
        self._before.clear()
        return None

    def maybe_save(self, stage: str, round: int, capture: Callable[[], TrainerState]) -> None:
        """An epoch has ended: keep where the walk stands, if it is time."""
        if self._due():
            self._keep(self._with(UnfinishedTraining(stage, round, capture())))

    def finished(self, stage: str, round: int, underway: TrainerState) -> None:
        """A training has ended."""
        self.standing = self._with(UnfinishedTraining(stage, round, underway))

    def _with(self, training: UnfinishedTraining) -> TrialProgress:
        return replace(self.standing, trainings=(*self.standing.trainings, training))

    def _due(self) -> bool:
        return self._keeper is not None and time.monotonic() - self._since >= self._seconds_between

    def _keep(self, standing: TrialProgress) -> None:
        if self._keeper is not None:
            self._keeper.save(to_saved(standing, self._walk))
            self._since = time.monotonic()  # a slow keeper does not hold up the walk all the time


def resume_or_start(
    keeper: CheckpointStore | None,
    bench: TrialContext,
    *,
    key: str,
    dense: NetworkState | None,
    shared: RoundMasks | None = None,
    every_seconds: float | None = None,
) -> TrialCheckpointer:
    """The journal of the walk of a key, with what an earlier process left of it, if that fits.

    `dense` is the stored dense network that the walk starts from, or None where it is trained on the way;
    `shared` is what it need not walk itself.
    """
    between = checkpoint.SECONDS_BETWEEN if every_seconds is None else every_seconds
    if keeper is None:
        return TrialCheckpointer(None, {}, TrialProgress(), seconds_between=between)
    walk = {
        "key": key,
        "stage_version": STAGE_VERSION,
        "torch": str(torch.__version__),
        "data": bench.data.digest,
        "dense": None if dense is None else tensors_digest(dense.weights),
        "rounds_shared": shared is not None,
    }
    standing, note, saved = TrialProgress(), "", keeper.load_latest()
    if saved is not None:
        try:
            standing = from_saved(saved, walk, bench.meta_module())
        except ValueError as error:
            note = f"a checkpoint was left aside, {error}"
    return TrialCheckpointer(keeper, walk, standing, seconds_between=between, note=note)
