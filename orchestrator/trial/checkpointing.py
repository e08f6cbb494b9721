"""Save an unfinished trial periodically, and resume it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from orchestrator.config import STAGE_VERSION, Json
from orchestrator.training import checkpoint
from orchestrator.training.checkpoint import Keeper, digest
from orchestrator.training.loop import Underway
from orchestrator.trial.context import Bench, State
from orchestrator.trial.measurement import Measured
from orchestrator.trial.progress import Standing, Training, from_saved, to_saved
from orchestrator.trial.recovery import Trunk, bare


class Journal:
    """The book of one walk's trainings and rounds.

    It goes on from a standing that an earlier process left: what it holds is not done again. `note`
    says why one was left aside.
    """

    def __init__(
        self,
        keeper: Keeper | None,
        walk: Mapping[str, Json],
        standing: Standing,
        *,
        seconds_between: float,
        note: str = "",
    ) -> None:
        self.standing = replace(standing, trainings=())
        self._before = list(standing.trainings)  # those that this process has not come to yet
        self._keeper, self._walk, self._note = keeper, walk, note
        self._seconds_between, self._since = seconds_between, time.monotonic()
        self._pruned: dict[int, State] = {}

    def begin(self, round: int, state: State) -> None:
        """A round begins from `state`."""
        if round == self.standing.round:
            return  # the walk is carried on within it
        dense = tuple(training for training in self.standing.trainings if training.stage == "dense")
        self.standing = replace(self.standing, round=round, top=state, trainings=dense)
        if self._due():
            self._keep(self.standing)

    def pruned(self, round: int, state: State) -> None:
        """A round has pruned, and trains next."""
        self._pruned[round] = bare(state)

    def trunk(self, key: str, rounds: int) -> Trunk | None:
        """What a control needs of the walk; None where an earlier process has pruned some of its rounds."""
        numbers = range(1, rounds + 1)
        whole = self._pruned.keys() == set(numbers)
        return Trunk(tuple(self._pruned[number] for number in numbers), key) if whole else None

    @property
    def last(self) -> State:
        """The state that was measured last; RuntimeError before there is one."""
        if self.standing.last is None:
            raise RuntimeError("the last state is asked for before one was measured")
        return self.standing.last

    def measured(self, measured: Measured) -> Measured:
        """A round has been measured; it comes back with what there is to say of it."""
        if self._note:
            measured, self._note = replace(measured, notes=(self._note, *measured.notes)), ""
        rounds = (*self.standing.rounds, measured)
        self.standing = replace(self.standing, rounds=rounds, last=measured.state)
        return measured

    def take(self, stage: str, round: int) -> Underway | None:
        """How far an earlier process came with the next training; None if it had not begun."""
        if self._before and (self._before[0].stage, self._before[0].round) == (stage, round):
            return self._before.pop(0).underway
        self._before.clear()
        return None

    def keep(self, stage: str, round: int, capture: Callable[[], Underway]) -> None:
        """An epoch has ended: keep where the walk stands, if it is time."""
        if self._due():
            self._keep(self._with(Training(stage, round, capture())))

    def finish(self, stage: str, round: int, underway: Underway) -> None:
        """A training has ended."""
        self.standing = self._with(Training(stage, round, underway))

    def _with(self, training: Training) -> Standing:
        return replace(self.standing, trainings=(*self.standing.trainings, training))

    def _due(self) -> bool:
        return self._keeper is not None and time.monotonic() - self._since >= self._seconds_between

    def _keep(self, standing: Standing) -> None:
        if self._keeper is not None:
            self._keeper.keep(to_saved(standing, self._walk))
            self._since = time.monotonic()  # a slow keeper does not hold up the walk all the time


def open_journal(
    keeper: Keeper | None,
    bench: Bench,
    *,
    key: str,
    dense: State | None,
    shared: Trunk | None = None,
    every_seconds: float | None = None,
) -> Journal:
    """The journal of the walk of a key, with what an earlier process left of it, if that fits.

    `dense` is the stored dense network that the walk starts from, or None where it is trained on the way;
    `shared` is what it need not walk itself.
    """
    between = checkpoint.SECONDS_BETWEEN if every_seconds is None else every_seconds
    if keeper is None:
        return Journal(None, {}, Standing(), seconds_between=between)
    walk = {
        "key": key,
        "stage_version": STAGE_VERSION,
        "torch": str(torch.__version__),
        "data": bench.data.digest,
        "dense": None if dense is None else digest(dense.weights),
        "rounds_shared": shared is not None,
    }
    standing, note, saved = Standing(), "", keeper.latest()
    if saved is not None:
        try:
            standing = from_saved(saved, walk, bench.outline())
        except ValueError as error:
            note = f"a checkpoint was left aside, {error}"
    return Journal(keeper, walk, standing, seconds_between=between, note=note)
