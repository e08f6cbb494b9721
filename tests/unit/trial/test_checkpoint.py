"""Checkpoints: a walk that is killed anywhere and carried on ends with the bits of one that is not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.data import loading
from orchestrator.errors import DivergedError
from orchestrator.training import checkpoint_packing
from orchestrator.training.checkpoint_packing import Checkpoint, pack, unpack
from orchestrator.training.loop import EpochRecord, TrainingLoop
from orchestrator.training.losses import Labels
from orchestrator.training.optimizers import OPTIMIZERS
from orchestrator.trial import checkpointing, during_training
from orchestrator.trial.checkpointing import TrialCheckpointer, TrialProgress, load_progress
from orchestrator.trial.context import NetworkState, make_context
from orchestrator.trial.measurement import MeasuredRound, ResumedRound
from orchestrator.trial.run import Round, TrialResult, run_dense, run_trial

MLP, CNN = "mlp(widths=[16, 8])", "cnn(widths=[4, 8])"
ADAM = Train(epochs=3, lr=3e-3, schedule="cosine", warmup_epochs=1, augment="crop_flip")
SGD = Train(epochs=3, optimizer="sgd", lr=0.05, momentum=0.9, nesterov=True, schedule="step", clip_norm=1.0)
digits = cache(partial(loading.load_dataset, "digits", samples_per_class=20))


def dense_config(model: str = MLP, recipe: Train = ADAM, seed: int = 0) -> DenseConfig:
    return DenseConfig(model, "digits", 50, seed, recipe, Numerics(micro_batch=4096))


def weights(schedule: str, criterion: str = "magnitude") -> Prune:
    return Prune(criterion, "weight", "global", schedule, 0.875)


def units(schedule: str, granularity: str = "unit") -> Prune:
    return Prune("l2", granularity, "layer", schedule, 0.5)


SPARSE = Prune("random", "weight", "erk", "one_shot", 0.8)
WAITS = Prune("l2", "unit", "layer", "mean_norm(fraction=0.95, tolerance=0.02)", 0.9)
MOVES = Prune("movement", "weight", "global", "cubic(rounds=3)", 0.75)
EMPTY = Prune("l2", "channel", "layer", "threshold(value=1e-9, unit='absolute')", 1.0)
LASSO = "group_lasso(strength=0.05, epochs=2, warmup=0.5)"
DENSE = dense_config(MLP, SGD)
AVERAGE = replace(
    SGD,
    schedule="one_cycle",
    augment="resized_crop(scale=0.5) + flip + cutout(size=2)",
    mixup=0.4,
    label_smoothing=0.1,
    ema=0.8,
)
TICKET = TrialConfig(dense_config(), weights("iterative(rounds=3)"), "rewind(to=1)", "x")
REINIT = TrialConfig(dense_config(MLP, replace(SGD, epochs=2)), weights("iterative(rounds=3)"), "reinit", "x")
WALKS = {
    **{name: dense_config(MLP, replace(SGD, optimizer=name, nesterov=name == "sgd")) for name in OPTIMIZERS},
    "plain sgd": dense_config(MLP, replace(SGD, momentum=0.0, nesterov=False)),
    "augmented": dense_config(),
    "batch norm": dense_config(CNN, SGD),
    "channels last": TrialConfig(
        dense_config(CNN, replace(ADAM, channels_last=True)),
        units("one_shot", "channel"),
        "finetune(epochs=1)",
        "x",
    ),
    "one cycle, drawn operations": dense_config(
        MLP,
        replace(
            ADAM, schedule="one_cycle", warmup_epochs=0, augment="randaugment(magnitude=5) + cutout(size=3)"
        ),
    ),
    "mixed, smooth, average": dense_config(CNN, AVERAGE),
    "average, rewound": TrialConfig(
        dense_config(CNN, AVERAGE), weights("iterative(rounds=2)"), "rewind(to=1)", "x", distill="soft_labels"
    ),
    "average, channels last": TrialConfig(
        dense_config(CNN, replace(AVERAGE, channels_last=True)),
        units("one_shot", "channel"),
        "finetune(epochs=2)",
        "x",
        prepare=LASSO,
    ),
    "average during": TrialConfig(
        dense_config(CNN, AVERAGE), units("cubic(rounds=2)"), "lr_rewind(epochs=1)", "x", when="during"
    ),
    "average, movement during": TrialConfig(
        dense_config(MLP, replace(AVERAGE, epochs=4)), MOVES, "none", "x", when="during"
    ),
    "average, rigl": TrialConfig(dense_config(MLP, AVERAGE), SPARSE, "rigl(interval=3)", "x", when="init"),
    "average, set": TrialConfig(dense_config(CNN, AVERAGE), SPARSE, "set", "x", when="init"),
    "nothing": TrialConfig(dense_config(), weights("iterative(rounds=3)"), "none", "x"),
    "refit": TrialConfig(dense_config(), units("iterative(rounds=2)"), "refit(images=50)", "x"),
    "finetune": TrialConfig(dense_config(CNN), units("one_shot", "channel"), "finetune(epochs=3)", "x"),
    "finetune on the cut network": TrialConfig(
        dense_config(CNN, SGD), units("iterative(rounds=2)", "channel"), "finetune(epochs=2, on='cut')", "x"
    ),
    "average, channels last, rewound on the cut network": TrialConfig(
        dense_config(CNN, replace(AVERAGE, channels_last=True)),
        units("one_shot"),
        "rewind(to=1, on='cut')",
        "x",
        distill="soft_labels",
    ),
    "cut input features": TrialConfig(
        dense_config("slp", replace(ADAM, ema=0.9)), units("one_shot"), "finetune(epochs=3, on='cut')", "x"
    ),
    "reinit on the cut network": TrialConfig(
        dense_config(MLP, replace(SGD, epochs=2)), units("iterative(rounds=2)"), "reinit(on='cut')", "x"
    ),
    "lottery ticket": TICKET,
    "lr_rewind": TrialConfig(dense_config(MLP, SGD), weights("cubic(rounds=2)"), "lr_rewind(epochs=2)", "x"),
    "reinit": REINIT,
    "group lasso": TrialConfig(dense_config(MLP, SGD), EMPTY, "finetune(epochs=2)", "x", prepare=LASSO),
    "cubic during": TrialConfig(
        dense_config(CNN), units("cubic(rounds=2)"), "finetune(epochs=1)", "x", when="during"
    ),
    "settled during": TrialConfig(
        dense_config(CNN, replace(SGD, epochs=5)), WAITS, "none", "x", when="during"
    ),
    "movement during": TrialConfig(
        dense_config(MLP, replace(SGD, epochs=4)), MOVES, "finetune(epochs=1)", "x", when="during"
    ),
    "rigl": TrialConfig(dense_config(MLP, SGD), SPARSE, "rigl(interval=3)", "x", when="init"),
    "rigl, taught": TrialConfig(
        dense_config(), SPARSE, "rigl(interval='epoch')", "x", when="init", distill="soft_labels"
    ),
    "set": TrialConfig(dense_config(CNN), SPARSE, "set(interval=2)", "x", when="init"),
    "SAP, taught": TrialConfig(
        dense_config(), weights("pq_index(rounds=2)"), "finetune(epochs=2)", "x", distill="soft_labels"
    ),
    "at init": TrialConfig(
        dense_config(), weights("iterative(rounds=3)", "snip"), "rewind", "x", when="init"
    ),
}


TRAINER = "trainings/0/trainer_state"  # where a checkpoint has the tensors of its first training


class Killed(BaseException):
    """The end of a process."""


Event = tuple[str, int]  # a stage and its epoch, or "round" and its number


@dataclass
class MemoryStore:
    """A checkpoint store in memory, of what could lie in files: bytes and text."""

    files: tuple[bytes, str] | None = None
    times: int = 0

    def load_latest(self) -> Checkpoint | None:
        return None if self.files is None else Checkpoint(load(self.files[0]), json.loads(self.files[1]))

    def save(self, saved: Checkpoint) -> None:
        text = json.dumps(saved.metadata, allow_nan=False, sort_keys=True)
        self.files, self.times = (save(dict(saved.tensors)), text), self.times + 1

    def change(self, about: Mapping[str, Any], tensors: Mapping[str, Tensor | None]) -> None:
        """Overwrite entries of what is kept; a tensor that is None goes."""
        saved = self.load_latest()
        assert saved is not None
        merged = {**saved.tensors, **tensors}
        self.save(Checkpoint({n: t for n, t in merged.items() if t is not None}, {**saved.metadata, **about}))


@dataclass
class Process:
    """One process: what it hears, until it is killed at one of these events."""

    kill_at: int | None = None
    stop_at: int | None = None
    heard: list[Event] = field(default_factory=list)

    def hear(self, event: Event) -> None:
        self.heard.append(event)
        if len(self.heard) - 1 == self.kill_at:
            raise Killed

    def epoch(self, stage: str, epoch: int, record: EpochRecord) -> None:
        self.hear((stage, epoch))

    def round(self, round: Round) -> str:
        self.hear(("round", round.number))
        return "enough" if round.number == self.stop_at else ""

    def run(
        self,
        config: DenseConfig | TrialConfig,
        kept: MemoryStore | None = None,
        *,
        every: float = 0.0,
        held: bool = True,
    ) -> TrialResult:
        if isinstance(config, DenseConfig):
            return run_dense(config, digits(), on_epoch=self.epoch, checkpoints=kept, every_seconds=every)
        store = Shelf() if held else Empty()
        return run_trial(
            config,
            digits(),
            store=store,
            on_epoch=self.epoch,
            on_round=self.round,
            checkpoints=kept,
            every_seconds=every,
        )

    @property
    def epochs(self) -> list[Event]:
        return [event for event in self.heard if event[0] != "round"]

    @property
    def rounds(self) -> list[Event]:
        return [event for event in self.heard if event[0] == "round"]


@cache
def dense(config: DenseConfig) -> NetworkState:
    return run_dense(config, digits()).last.state


class Shelf:
    def dense(self, config: DenseConfig) -> NetworkState | None:
        return dense(config)


class Empty:
    def dense(self, config: DenseConfig) -> NetworkState | None:
        return None


@cache
def whole(config: DenseConfig | TrialConfig, held: bool = True) -> tuple[TrialResult, list[Event]]:
    """A walk that nothing interrupts and nothing keeps."""
    process = Process()
    return process.run(config, held=held), process.heard


def killed(config: DenseConfig | TrialConfig, at: int, *, held: bool = True) -> MemoryStore:
    kept = MemoryStore()
    with pytest.raises(Killed):
        Process(kill_at=at).run(config, kept, held=held)
    return kept


def timeless(values: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(values).items() if not name.endswith("seconds")}


def recorded(one: MeasuredRound | ResumedRound) -> object:
    return timeless(one.measurement), [timeless(record) for record in one.history], one.notes


def tensors_equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Every bit, and the order."""
    as_bytes: Callable[[Tensor], Tensor] = lambda tensor: tensor.reshape(-1).view(torch.uint8)  # noqa: E731
    return list(a) == list(b) and all(torch.equal(as_bytes(a[name]), as_bytes(b[name])) for name in a)


def assert_same(result: TrialResult, reference: TrialResult) -> None:
    for one, other in ((result.last, reference.last),):
        assert tensors_equal(one.state.weights, other.state.weights)
        assert tensors_equal(one.state.masks, other.state.masks)
        assert (one.layers, one.cut) == (other.layers, other.cut)
        assert torch.equal(one.confusion, other.confusion)
        spent = ("epochs", "train_flops", "train_flops_effective", "micro_batch")
        assert [getattr(one.state, name) for name in spent] == [getattr(other.state, name) for name in spent]
    assert list(map(recorded, result.rounds)) == list(map(recorded, reference.rounds))
    assert result.stopped_because == reference.stopped_because
    assert timeless(result.ipa) == timeless(reference.ipa)


# ---- killed anywhere


@pytest.mark.parametrize("name", WALKS)
def test_killed_at_any_event_it_ends_with_the_same_bits(name: str) -> None:
    config = WALKS[name]
    reference, events = whole(config)
    assert len(events) > 1
    for at, event in enumerate(events):
        kept, after = killed(config, at), Process()
        assert_same(after.run(config, kept), reference)
        # No epoch is trained again, and every round is heard of once more.
        assert after.epochs == [event for event in events[at + 1 :] if event[0] != "round"], event
        assert after.rounds == [event for event in events if event[0] == "round"], event


@pytest.mark.parametrize(
    "name", ["adam", "lottery ticket", "reinit", "group lasso", "settled during", "movement during"]
)
def test_killed_after_every_epoch_it_ends_with_the_same_bits(name: str) -> None:
    config, kept = WALKS[name], MemoryStore()
    reference, events = whole(config)
    for _ in [event for event in events if event[0] != "round"]:
        process = Process()
        process.epoch = lambda *_: (_ for _ in ()).throw(Killed)  # type: ignore[method-assign]
        with pytest.raises(Killed):
            process.run(config, kept)
    last = Process()
    assert_same(last.run(config, kept), reference)
    assert last.epochs == []


@pytest.mark.parametrize("name", ["adam", "lottery ticket", "reinit", "refit", "settled during"])
def test_every_checkpoint_is_a_step_further(name: str) -> None:
    """Each process is killed by its first checkpoint, and still the walk comes to its end."""

    class Last(MemoryStore):
        def save(self, saved: Checkpoint) -> None:
            super().save(saved)
            raise Killed

    config, kept = WALKS[name], Last()
    # One at every epoch's end, and one at the beginning of every round after the training.
    expected = {"adam": 3, "lottery ticket": 3 * 2 + 3, "reinit": 5 * 2 + 3, "refit": 2, "settled during": 5}
    for _ in range(expected[name]):
        with pytest.raises(Killed):
            Process().run(config, kept)
    assert_same(Process().run(config, kept), whole(config)[0])
    assert kept.times == expected[name]


def test_a_checkpoint_of_a_cut_network_has_whole_weights_and_the_optimizer_of_the_cut_one() -> None:
    config = WALKS["finetune on the cut network"]
    saved = killed(config, 0).load_latest()
    assert saved is not None
    name = "blocks.0.conv.weight"
    (weights,) = [t for key, t in saved.tensors.items() if key == f"{TRAINER}/weights/{name}"]
    (start,) = [t for key, t in saved.tensors.items() if key == f"round_start/weights/{name}"]
    momentum = saved.tensors[f"{TRAINER}/optimizer/0/momentum_buffer"]
    assert weights.shape == start.shape == (4, 1, 3, 3)
    assert len(momentum) == int(weights.flatten(1).any(1).sum()) < 4


def test_layers_that_are_waited_for_are_pruned_in_the_end() -> None:
    """What `settled during` is here for: nothing goes in its first three epochs but in one layer."""
    kept = killed(WALKS["settled during"], 2)
    saved = kept.load_latest()
    assert saved is not None
    dead = {name: int((~mask).sum()) for name, mask in saved.tensors.items() if mask.dtype == torch.bool}
    assert dead[f"{TRAINER}/hook_state/tensors/blocks.0.conv.weight"] == 2 * 9
    assert dead[f"{TRAINER}/hook_state/tensors/blocks.1.conv.weight"] == 0
    masks = whole(WALKS["settled during"])[0].last.state.masks
    assert int((~masks["blocks.0.conv.weight"]).sum()) == 3 * 9
    assert int((~masks["blocks.1.conv.weight"]).sum()) > 0


def test_what_cannot_remember_is_trained_from_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    config = WALKS["cubic during"]
    reference, events = whole(config)
    extras = during_training._make_hooks
    monkeypatch.setattr(during_training, "_make_hooks", lambda *given: replace(extras(*given), stateful=None))
    for at in (1, 3):  # in its second epoch, and in the one of the recovery
        after = Process()
        assert_same(after.run(config, killed(config, at)), reference)
        assert after.heard == events


def test_trainings_of_one_name_come_back_in_their_order() -> None:
    saved = killed(DENSE, 1).load_latest()
    assert saved is not None
    identity = {name: saved.metadata[name] for name in ("key", "stage_version", "torch", "data", "dense")}
    (first,) = load_progress(saved, identity, make_context(DENSE, digits()).meta_module()).trainings
    second = replace(first, trainer_state=replace(first.trainer_state, micro_batch=1))
    checkpointer = TrialCheckpointer(
        None, identity, TrialProgress(trainings=(first, second)), every_seconds=0.0
    )
    assert checkpointer.resume("dense", 0) is first.trainer_state
    assert checkpointer.resume("dense", 0) is second.trainer_state
    assert checkpointer.resume("dense", 0) is None


def test_after_a_training_of_another_name_all_is_new() -> None:
    saved = killed(DENSE, 1).load_latest()
    assert saved is not None
    identity = {name: saved.metadata[name] for name in ("key", "stage_version", "torch", "data", "dense")}
    trainings = load_progress(saved, identity, make_context(DENSE, digits()).meta_module()).trainings
    checkpointer = TrialCheckpointer(None, identity, TrialProgress(trainings=trainings), every_seconds=0.0)
    assert checkpointer.resume("dense", 1) is None
    assert checkpointer.resume("dense", 0) is None


@given(kills=st.lists(st.integers(0, 6), max_size=6), every=st.integers(0, 4))
@settings(max_examples=15)
def test_any_row_of_kills_and_any_clock_end_with_the_same_bits(kills: list[int], every: int) -> None:
    reference, _ = whole(TICKET)
    kept, now = MemoryStore(), 0.0

    def later(*_: object) -> None:
        nonlocal now
        now += 1.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointing.time, "monotonic", lambda: now)
        for at in [*kills, None]:
            process = Process(kill_at=at)
            hear = process.hear
            patch.setattr(process, "hear", lambda event, hear=hear: (later(), hear(event)))
            try:
                result = process.run(TICKET, kept, every=every)
            except Killed:
                continue
            assert_same(result, reference)


ANOTHER = """
import os, pathlib, signal, sys
sys.path += map(str, pathlib.Path.cwd().parents[1:3])  # of helpers and of the project
from test_checkpoint import *

class FileStore(MemoryStore):
    def save(self, saved):
        super().save(saved)
        pathlib.Path(sys.argv[1], "tensors").write_bytes(self.files[0])
        pathlib.Path(sys.argv[1], "about").write_text(self.files[1])

torch.set_num_threads(1)
kept, at = FileStore(), int(sys.argv[2])
if (about := pathlib.Path(sys.argv[1], "about")).exists():
    kept.files = about.with_name("tensors").read_bytes(), about.read_text()
try:
    process = Process(kill_at=at)
    weights = process.run(TICKET, kept).last.state.weights
    print(checkpoint_packing.tensors_digest(weights), len(process.epochs))
except Killed:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_another_process_carries_on_what_sigkill_ended(tmp_path: Path) -> None:
    """With nothing in its caches: it has to train the epoch that weights are rewound to anew."""

    def run(at: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", ANOTHER, str(tmp_path), str(at)]
        return subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300, check=False
        )

    assert run(4).returncode == -signal.SIGKILL
    done = run(-1)
    assert done.returncode == 0, done.stderr
    reference, events = whole(TICKET)
    left = [event for event in events[5:] if event[0] != "round"]
    assert done.stdout.split() == [
        checkpoint_packing.tensors_digest(reference.last.state.weights),
        str(len(left)),
    ]


def test_a_dense_training_on_the_way_is_carried_on_and_done_once() -> None:
    config = replace(TICKET, dense=dense_config(MLP, SGD))
    reference, events = whole(config, False)
    assert events[:3] == [("dense", 1), ("dense", 2), ("dense", 3)]
    for at in range(len(events)):
        after = Process()
        assert_same(after.run(config, killed(config, at, held=False), held=False), reference)
        assert after.epochs == [event for event in events[at + 1 :] if event[0] != "round"]


# ---- a nested state as tensors and JSON

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
TENSORS = st.lists(st.floats(width=32, allow_nan=False), max_size=3).map(torch.tensor)
NAMES = st.text("ab./", min_size=1, max_size=3)
STATES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(NAMES, inner | TENSORS, max_size=3)
        | st.dictionaries(NAMES, TENSORS, max_size=3)
    ),
    max_leaves=10,
)


def as_bits(value: Any) -> Any:
    """Comparable: tensors as type and bytes, mappings of tensors alone in their order."""
    if isinstance(value, Tensor):
        return str(value.dtype), value.numpy().tobytes()
    if isinstance(value, dict):
        pairs = [(name, as_bits(item)) for name, item in value.items()]
        ordered = all(isinstance(item, Tensor) for item in value.values())
        return pairs if ordered else sorted(pairs, key=lambda pair: pair[0])
    return [as_bits(item) for item in value] if isinstance(value, list) else value


@given(state=st.dictionaries(st.sampled_from(["state", "round", "history"]), STATES))
def test_a_nested_state_comes_back_from_bytes_and_text(state: dict[str, Any]) -> None:
    saved = pack(state)
    if len(saved.tensors) < len(saved.metadata["tensors"]):
        return  # two paths with one name in a file, such as a/b: a, b and a, which no state of a trial has
    store = MemoryStore()
    store.save(saved)
    loaded = store.load_latest()
    assert loaded is not None
    assert as_bits(unpack(loaded)) == as_bits(state)


# ---- what a carried-on walk has cost


def test_seconds_are_the_sum_over_the_pieces() -> None:
    _, events = whole(TICKET)
    kept = killed(TICKET, 3)
    first = kept.load_latest()
    assert first is not None
    result = Process().run(TICKET, kept)
    rows = first.metadata["rounds"]
    assert [asdict(one.measurement) for one in result.rounds[: len(rows)]] == [r["measurement"] for r in rows]
    epochs = [record.seconds for one in result.rounds for record in one.history]
    assert len(epochs) == len(events) - 3
    spent = dense(TICKET.dense).train_seconds + sum(epochs)
    assert result.last.measurement.train_seconds == pytest.approx(spent, rel=1e-12)


# ---- the clock


@pytest.mark.parametrize("slow", [0.0, 30.0])
def test_it_is_kept_once_a_minute_has_gone_by(monkeypatch: pytest.MonkeyPatch, slow: float) -> None:
    """Epochs of 25 s; a minute counts from the end of the last checkpoint."""
    now, after = 1000.0, list[int]()
    monkeypatch.setattr(checkpointing.time, "monotonic", lambda: now)

    class Slow(MemoryStore):
        def save(self, saved: Checkpoint) -> None:
            nonlocal now
            now += slow
            after.append(len(saved.metadata["trainings"][0]["trainer_state"]["records"]))

    def epoch(stage: str, epoch: int, record: EpochRecord) -> None:
        nonlocal now
        now += 25.0

    # The clock is read at an epoch's end, before its 25 s are added here.
    run_dense(dense_config(recipe=Train(epochs=10)), digits(), on_epoch=epoch, checkpoints=Slow())
    assert after == [4, 7, 10]


def test_below_a_minute_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("copied")

    monkeypatch.setattr(checkpointing, "pack", never)
    monkeypatch.setattr("orchestrator.training.loop.TrainingLoop.state_dict", never)
    kept = MemoryStore()
    assert checkpoint_packing.SECONDS_BETWEEN == 60.0
    assert_same(run_dense(dense_config(), digits(), checkpoints=kept), whole(dense_config())[0])
    assert kept.times == 0


# ---- rounds of an earlier process, and a verdict on them


@pytest.mark.parametrize("config", [TICKET, REINIT], ids=["lottery ticket", "reinit"])
@pytest.mark.parametrize("at", [1, 2])
def test_a_verdict_on_an_old_round_ends_the_walk_where_it_stood(config: TrialConfig, at: int) -> None:
    reference, events = whole(config)
    measured = 2
    inside = events.index(("round", 3)) - 1  # within the third round
    process = Process(stop_at=at)
    result = process.run(config, killed(config, inside))
    assert process.heard == [("round", n) for n in range(1, at + 1)]
    assert (len(result.rounds), result.stopped_because) == (measured, "enough")
    rounds = reference.rounds[:measured]
    last = rounds[-1]
    assert isinstance(last, MeasuredRound)
    assert_same(result, replace(reference, rounds=rounds, last=last, stopped_because="enough"))


def test_no_verdict_ends_a_walk_in_its_last_round() -> None:
    reference, events = whole(TICKET)
    result = Process(stop_at=3).run(TICKET, killed(TICKET, len(events) - 2))
    assert_same(result, reference)


# ---- what does not fit


@pytest.mark.parametrize(
    ("about", "tensors", "why"),
    [
        ({"key": dense_config(seed=1).key()}, {}, "it is of another key"),
        ({"stage_version": 0}, {}, "it is of another stage_version"),
        ({"torch": "1.0"}, {}, "it is of another torch"),
        ({"data": "x"}, {}, "it is of another data"),
        ({"form": 0}, {}, "it is of another form"),
        ({"form": 2}, {}, "it is of another form"),
        (
            {},
            {f"{TRAINER}/weights/output.weight": None},
            f"it is incomplete: KeyError('{TRAINER}/weights/output.weight')",
        ),
        ({}, {f"{TRAINER}/optimizer/0/momentum_buffer": None}, "it is incomplete: KeyError("),
        ({}, {f"{TRAINER}/generator": None}, "it is incomplete: KeyError("),
        ({}, {f"{TRAINER}/global_generators/cpu": None}, "it is incomplete: KeyError("),
        ({}, {f"{TRAINER}/weights/output.weight": torch.zeros(1)}, "it is incomplete: a tensor has another"),
        ({}, {f"{TRAINER}/weights/output.weight": torch.full((10, 8), torch.nan)}, "a weight is not finite"),
        ({"trainings": [{"stage": "dense"}]}, {}, "it is incomplete: KeyError('trainer_state')"),
        ({"rounds": None}, {}, "it is incomplete: TypeError("),
        ({"round": 1}, {}, "it is incomplete: a state is missing"),
    ],
)
def test_what_does_not_fit_is_left_aside_with_a_note(
    about: dict[str, Any], tensors: dict[str, Tensor | None], why: str
) -> None:
    reference, events = whole(DENSE)
    kept, after = killed(DENSE, 1), Process()
    kept.change(about, tensors)
    result = after.run(DENSE, kept)
    assert after.heard == events  # all of it
    note, *others = result.last.notes
    assert note.startswith(f"a checkpoint was ignored: {why}")
    bare = replace(result.last, notes=tuple(others))
    assert_same(replace(result, rounds=(bare,), last=bare), reference)


def test_one_of_another_network_is_left_aside() -> None:
    kept = killed(dense_config("mlp(widths=[8, 8])", SGD), 1)
    kept.change({"key": DENSE.key()}, {})
    result = Process().run(DENSE, kept)
    assert result.last.notes[0] == "a checkpoint was ignored: its weights are not those of the network"


def test_one_on_another_dense_network_is_left_aside() -> None:
    other = MemoryStore()

    class Other:
        def dense(self, config: DenseConfig) -> NetworkState | None:
            return dense(dense_config(seed=1))

    with pytest.raises(Killed):
        run_trial(
            TICKET,
            digits(),
            store=Other(),
            on_epoch=Process(kill_at=1).epoch,
            checkpoints=other,
            every_seconds=0.0,
        )
    result = Process().run(TICKET, other)
    assert result.rounds[0].notes[0] == "a checkpoint was ignored: it is of another dense"
    assert tensors_equal(result.last.state.weights, whole(TICKET)[0].last.state.weights)


def test_what_is_left_aside_is_replaced_by_what_is_whole() -> None:
    kept = killed(TICKET, 3)
    kept.change({"stage_version": 0}, {})
    with pytest.raises(Killed):
        Process(kill_at=4).run(TICKET, kept)
    after = Process()
    result = after.run(TICKET, kept)
    assert after.epochs == [event for event in whole(TICKET)[1][5:] if event[0] != "round"]
    assert result.rounds[0].notes[0] == "a checkpoint was ignored: it is of another stage_version"
    assert not any("ignored" in note for one in result.rounds[1:] for note in one.notes)


# ---- a training that diverges


def test_a_training_that_diverged_is_kept_from_before_and_diverges_again() -> None:
    config = dense_config("slp", Train(epochs=6, optimizer="sgd", lr=1e3, weight_decay=1.0))
    kept, first, again = MemoryStore(), Process(), Process()
    with pytest.raises(DivergedError) as told:
        first.run(config, kept)
    assert kept.times == len(first.heard) == 3
    with pytest.raises(DivergedError, match=str(told.value)):
        again.run(config, kept)
    assert again.heard == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_records_that_are_not_finite_are_left_aside(value: float) -> None:
    kept = killed(DENSE, 1)
    saved = kept.load_latest()
    assert saved is not None
    (training,) = saved.metadata["trainings"]
    training["trainer_state"]["records"][0]["train_loss"] = value
    kept.files = (save(dict(saved.tensors)), json.dumps(saved.metadata))
    after = Process()
    assert after.run(DENSE, kept).last.notes[0] == "a checkpoint was ignored: a loss is not finite"
    assert after.heard == whole(DENSE)[1]


# ---- memory that runs out


class Narrow:
    """A machine whose memory holds `most` training images at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.most, self.tries = most, list[int]()
        accumulate = TrainingLoop._accumulate

        def checked(loop: Any, part: Tensor, labels: Labels, batch: int) -> tuple[Tensor, Tensor]:
            self.tries.append(len(part))
            if len(part) > self.most:
                raise MemoryError
            found: tuple[Tensor, Tensor] = accumulate(loop, part, labels, batch)
            return found

        monkeypatch.setattr("orchestrator.training.loop.TrainingLoop._accumulate", checked)


@pytest.mark.parametrize("name", ["sgd", "lottery ticket", "settled during", "average during"])
def test_a_halved_micro_batch_is_carried_on(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    config = WALKS[name]
    if isinstance(config, TrialConfig):
        dense(config.dense)
    Narrow(monkeypatch, most=20)
    reference = Process()
    expected = reference.run(config)
    assert expected.last.state.micro_batch == 12  # 50 and 25 do not fit
    kept = killed(config, 1)
    machine, after = Narrow(monkeypatch, most=20), Process()
    assert_same(after.run(config, kept), expected)
    assert max(machine.tries) <= 12  # nothing that does not fit is tried again


@pytest.mark.parametrize("name", ["sgd", "settled during"])
def test_memory_that_runs_out_after_all_starts_the_training_anew(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = WALKS[name]
    kept = killed(config, 1)
    Narrow(monkeypatch, most=30)
    after = Process()
    result = after.run(config, kept)
    assert after.epochs == whole(config)[1][: len(after.epochs)] != []
    assert_same(result, Process().run(config))
    assert result.last.state.micro_batch == 25
