"""The progress of a trial as tensors and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple, dataclass

import torch
from torch import Tensor, nn

from orchestrator.config import Json
from orchestrator.training.checkpoint import Checkpoint
from orchestrator.training.loop import EpochRecord, TrainerState
from orchestrator.trial.context import NetworkState
from orchestrator.trial.measurement import MeasuredRound, ResumedRound
from orchestrator.trial.metrics import Measurement

FORM = 2  # raise it when a checkpoint is written in another form: older ones are not carried on
Parts = Mapping[tuple[str, str], dict[str, Tensor]]  # (where, what), such as (top, masks)


@dataclass(frozen=True, eq=False)
class UnfinishedTraining:
    """A training of a walk: one that has ended, or one under way."""

    stage: str
    round: int
    trainer_state: TrainerState


@dataclass(frozen=True, eq=False)
class TrialProgress:
    """Where a walk stands. In round 0 the dense network is trained and prepared.

    `top` is the state that the round starts from, `last` the one measured last, of `rounds`. `trainings`
    are those of this round, in their order.
    """

    round: int = 0
    round_start: NetworkState | None = None
    rounds: tuple[MeasuredRound | ResumedRound, ...] = ()
    last_measured: NetworkState | None = None
    trainings: tuple[UnfinishedTraining, ...] = ()


def to_saved(standing: TrialProgress, walk: Mapping[str, Json]) -> Checkpoint:
    """A copy to be kept; `walk` says which walk it is of."""
    tensors = {
        f"{where}/{what}/{name}": tensor.detach().clone(memory_format=torch.contiguous_format)
        for (where, what), part in _parts(standing)
        for name, tensor in part.items()
    }
    about = {
        **walk,
        "form": FORM,
        "tensors": _forms(tensors),
        "round": standing.round,
        "top": _spent(standing.round_start),
        "last": "top" if standing.last_measured is standing.round_start else _spent(standing.last_measured),
        "rounds": [
            {"measurement": asdict(one.measurement), "history": _rows(one.history), "notes": list(one.notes)}
            for one in standing.rounds
        ],
        "trainings": [_training_about(training) for training in standing.trainings],
    }
    return Checkpoint(tensors, about)


def _parts(standing: TrialProgress) -> Iterator[tuple[tuple[str, str], Mapping[str, Tensor]]]:
    other = None if standing.last_measured is standing.round_start else standing.last_measured
    for where, state in (("top", standing.round_start), ("last", other)):
        if state is not None:
            yield (where, "weights"), state.weights
            yield (where, "masks"), state.masks
    for number, training in enumerate(standing.trainings):
        yield (str(number), "weights"), training.trainer_state.weights
        yield (str(number), "optimizer"), training.trainer_state.optimizer
        yield (str(number), "generator"), {"": training.trainer_state.generator}
        yield (str(number), "global"), training.trainer_state.global_generators
        yield (str(number), "memory"), training.trainer_state.hook_state.tensors


def _forms(tensors: Mapping[str, Tensor]) -> list[Json]:
    """Names, types and shapes in their order, which files do not keep: ties in pruning go by it."""
    return [[name, str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()]


def _spent(state: NetworkState | None) -> Json:
    if state is None:
        return None
    names = ("epochs", "train_seconds", "train_flops", "micro_batch")
    return {name: getattr(state, name) for name in names}


def _rows(history: tuple[EpochRecord, ...]) -> Json:
    return [list(astuple(record)) for record in history]


def _training_about(training: UnfinishedTraining) -> Json:
    return {
        "stage": training.stage,
        "round": training.round,
        "records": _rows(training.trainer_state.records),
        "micro_batch": training.trainer_state.micro_batch,
        "memory": training.trainer_state.hook_state.metadata,
    }


def from_saved(saved: Checkpoint, walk: Mapping[str, Json], outline: nn.Module) -> TrialProgress:
    """Where the walk stood. ValueError, with what does not fit, for anything that is not whole and of it."""
    about = saved.metadata
    for name, value in {**walk, "form": FORM}.items():
        if about.get(name) != value:
            raise ValueError(f"it is of another {name}")
    try:
        parts = _taken_apart(saved)
        top = _state(about["top"], "top", parts)
        last = top if about["last"] == "top" else _state(about["last"], "last", parts)
        standing = TrialProgress(
            about["round"],
            top,
            tuple(_recalled(row) for row in about["rounds"]),
            last,
            tuple(_training(row, str(n), parts) for n, row in enumerate(about["trainings"])),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is not whole: {error!r}") from error
    _check(standing, outline)
    return standing


def _taken_apart(saved: Checkpoint) -> Parts:
    named = {name: saved.tensors[name] for name, _, _ in saved.metadata["tensors"]}
    if _forms(named) != [list(form) for form in saved.metadata["tensors"]]:
        raise ValueError("it is not whole: a tensor has another type or shape")
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    for path, tensor in named.items():
        where, what, name = path.split("/", 2)
        parts.setdefault((where, what), {})[name] = tensor
    return parts


def _state(spent: Json, where: str, parts: Parts) -> NetworkState | None:
    return (
        None
        if spent is None
        else NetworkState(parts[where, "weights"], parts.get((where, "masks"), {}), **spent)
    )


def _recalled(row: Json) -> ResumedRound:
    return ResumedRound(Measurement(**row["measurement"]), _history(row["history"]), tuple(row["notes"]))


def _history(rows: Json) -> tuple[EpochRecord, ...]:
    return tuple(EpochRecord(*row) for row in rows)


def _training(row: Json, where: str, parts: Parts) -> UnfinishedTraining:
    underway = TrainerState(
        _history(row["records"]),
        row["micro_batch"],
        parts[where, "weights"],
        parts.get((where, "optimizer"), {}),
        parts[where, "generator"][""],
        parts[where, "global"],
        Checkpoint(parts.get((where, "memory"), {}), row["memory"]),
    )
    return UnfinishedTraining(row["stage"], row["round"], underway)


def _check(standing: TrialProgress, outline: nn.Module) -> None:
    """ValueError unless everything fits the network and is finite."""
    forms = {name: (tensor.shape, tensor.dtype) for name, tensor in outline.state_dict().items()}
    underway = [training.trainer_state for training in standing.trainings]
    states = [state for state in (standing.round_start, standing.last_measured) if state is not None]
    for weights in (*(state.weights for state in states), *(one.weights for one in underway)):
        if {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()} != forms:
            raise ValueError("its weights are not those of the network")
        if not all(tensor.isfinite().all() for tensor in weights.values()):
            raise ValueError("a weight is not finite")
    records = [record for one in (*standing.rounds, *standing.trainings) for record in _epochs(one)]
    if not all(math.isfinite(value) for record in records for value in astuple(record)):
        raise ValueError("a loss is not finite")
    if (standing.round_start is None) != (standing.round == 0) or (standing.last_measured is None) != (
        not standing.rounds
    ):
        raise ValueError("it is not whole: a state is missing")


def _epochs(one: MeasuredRound | ResumedRound | UnfinishedTraining) -> tuple[EpochRecord, ...]:
    return one.trainer_state.records if isinstance(one, UnfinishedTraining) else one.history
