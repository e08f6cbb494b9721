"""Stages: the same bits again, memory that runs out, and what a state has cost."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import models
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.data import loading
from orchestrator.errors import CollapsedError
from orchestrator.training.checkpoint_packing import snapshot
from orchestrator.training.loop import EpochRecord
from orchestrator.training.lr_schedules import TrainingPhase
from orchestrator.trial import scoring, stages
from orchestrator.trial.context import NetworkState, TrialContext, make_context, seed_for

DENSE = DenseConfig("mlp(widths=[32, 16])", "digits", 64, 0, Train(epochs=2), Numerics(micro_batch=16_384))


def context(config: DenseConfig | TrialConfig = DENSE) -> TrialContext:
    return make_context(config, loading.load_dataset("digits"))


def trial(criterion: str, *, granularity: str = "weight", amount: float = 0.5) -> TrialConfig:
    return TrialConfig(DENSE, Prune(criterion, granularity, "global", "one_shot", amount), "none", "x")


def same(a: NetworkState, b: NetworkState) -> bool:
    pairs = [(a.weights, b.weights), (a.masks, b.masks)]
    return all(x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x) for x, y in pairs)


def test_seeds_of_neighbours_are_unrelated() -> None:
    found = {seed_for(seed, stage, n) for seed in range(4) for stage in ("dense", "init") for n in range(4)}
    assert len(found) == 32
    assert all(0 <= seed < 2**63 for seed in found)
    assert seed_for(1, "dense", 11) != seed_for(11, "dense", 1)


def test_a_dense_training_is_the_same_again_and_leaves_the_global_generator() -> None:
    torch.manual_seed(3)
    make_context(DENSE, loading.load_dataset("digits"))  # traces and counts are made once in a process
    before = torch.get_rng_state()
    first = stages.dense(context())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert same(first, stages.dense(context()))
    assert not same(first, stages.dense(context(replace(DENSE, seed=1))))


def test_a_network_is_compiled_once_a_training_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[int] = []
    monkeypatch.setattr(nn.Module, "compile", lambda net: compiled.append(id(net)))
    reference = stages.dense(context())
    assert not compiled
    numerics = replace(DENSE.numerics, compile=True)
    assert same(reference, stages.dense(context(replace(DENSE, numerics=numerics))))
    assert len(compiled) == 1


@pytest.mark.long
def test_a_compiled_network_learns_the_same() -> None:
    reference = stages.dense(context())
    state = stages.dense(context(replace(DENSE, numerics=replace(DENSE.numerics, compile=True))))
    assert state.weights.keys() == reference.weights.keys()
    for name, weight in reference.weights.items():
        torch.testing.assert_close(state.weights[name], weight, rtol=0, atol=1e-3)


def test_what_a_dense_training_costs() -> None:
    heard: list[tuple[str, int]] = []

    def report(stage: str, epoch: int, record: EpochRecord) -> None:
        heard.append((stage, epoch))

    state = stages.dense(make_context(DENSE, loading.load_dataset("digits"), on_epoch=report))
    assert heard == [("dense", 1), ("dense", 2)]
    assert (state.epochs, state.micro_batch, len(state.history)) == (2, 16_384, 2)
    # 2 per MAC; forward and both backward passes, without the gradient of the images.
    assert state.train_flops == 2 * 1257 * 2 * (3 * (2048 + 512 + 160) - 2048)
    assert state.train_seconds == sum(record.seconds for record in state.history) > 0


def test_pruning_leaves_its_input_and_zeroes_what_is_dead() -> None:
    on = context(trial("magnitude"))
    dense = stages.dense(on)
    before = {name: tensor.clone() for name, tensor in dense.weights.items()}
    state = stages.prune_round(on, dense, round=1)
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.weights.items())
    assert sum(int((~mask).sum()) for mask in state.masks.values()) == 1360
    for name, mask in state.masks.items():
        assert torch.equal(state.weights[name], torch.where(mask, before[name], 0.0))


@pytest.mark.parametrize("criterion", ["random", "snip", "magnitude"])
def test_pruning_is_the_same_again(criterion: str) -> None:
    on = context(trial(criterion))
    dense = stages.dense(on)
    first, again = (stages.prune_round(on, dense, round=1) for _ in range(2))
    assert same(first, again)


def test_random_pruning_is_seeded_by_seed_and_round() -> None:
    config = trial("random")
    on, other = context(config), context(replace(config, dense=replace(DENSE, seed=1)))
    state = NetworkState(snapshot(on.build()), micro_batch=64)
    found = [
        stages.prune_round(where, state, round=number).masks["hidden.0.weight"]
        for where, number in ((on, 1), (on, 2), (other, 1))
    ]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_groups_are_what_the_granularity_says() -> None:
    assert context().groups is None
    assert context(trial("magnitude")).groups is None
    units = context(trial("l2", granularity="unit")).groups
    channels = context(trial("l2", granularity="channel")).groups
    assert units is not None
    assert channels is not None
    assert [group.size for group in units] == [group.size for group in channels] == [32, 16]
    assert [len(group.members) for group in channels] == [2, 2]  # rows, and the columns that read them


class Narrow:
    """A machine whose memory holds `most` images; `alive` are the networks that have not been freed."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, most: int, error: Callable[[], BaseException]
    ) -> None:
        self.most, self.error, self.seen = most, error, list[int]()
        self.nets: list[weakref.ref[nn.Module]] = []
        self.alive: list[int] = []
        self.build = models.build
        monkeypatch.setattr(models, "build", self)

    def __call__(self, *args: object, **options: object) -> nn.Module:
        net = self.build(*args, **options)  # type: ignore[arg-type]
        gc.collect()
        self.alive.append(sum(ref() is not None for ref in self.nets))
        self.nets.append(weakref.ref(net))
        net.register_forward_pre_hook(self.check)
        return net

    def check(self, net: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.seen.append(len(inputs[0]))
        if len(inputs[0]) > self.most:
            raise self.error()


def on_cuda() -> BaseException:
    return torch.OutOfMemoryError("CUDA out of memory")


def on_the_cpu() -> BaseException:
    """torch's own error: there is no machine with 400 TB."""
    try:
        torch.empty(10**14)
    except RuntimeError as error:
        return error.with_traceback(None)
    raise AssertionError("400 TB were allocated")


def of_another_kind() -> BaseException:
    return RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.parametrize("error", [on_cuda, on_the_cpu, MemoryError])
def test_half_the_micro_batch_where_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch, error: Callable[[], BaseException]
) -> None:
    on = context()
    reference = stages.dense(on)
    machine = Narrow(monkeypatch, most=20, error=error)
    state = stages.dense(on)
    assert state.micro_batch == 16  # 64 and 32 do not fit
    assert [count for count in machine.seen if count > 20] == [64, 32]
    assert (state.epochs, state.train_flops, len(state.history)) == (2, reference.train_flops, 2)
    for name, weight in reference.weights.items():
        torch.testing.assert_close(state.weights[name], weight, rtol=0, atol=1e-3)


def test_what_did_not_fit_is_freed_before_the_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    on = context()
    machine = Narrow(monkeypatch, most=20, error=on_cuda)
    on_device = NetworkState(snapshot(on.build()), micro_batch=16_384)
    stages.train_more(on, on_device, TrainingPhase(1), stage="dense", round=0)
    assert machine.alive == [0] * len(machine.alive)


def test_one_image_at_a_time_is_the_last_try(monkeypatch: pytest.MonkeyPatch) -> None:
    few = loading.load_dataset("digits", samples_per_class=2)
    on = make_context(replace(DENSE, batch_size=1, train=Train(epochs=1)), few)
    Narrow(monkeypatch, most=1, error=on_cuda)  # the validation images come more at a time
    assert stages.dense(on).micro_batch == 1


def test_memory_that_does_not_hold_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    on = context()
    Narrow(monkeypatch, most=0, error=on_cuda)
    with pytest.raises(CollapsedError, match="one image"):
        stages.dense(on)


def test_other_runtime_errors_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    on = context()
    Narrow(monkeypatch, most=20, error=of_another_kind)
    with pytest.raises(RuntimeError, match="mat1"):
        stages.dense(on)


@pytest.mark.parametrize("criterion", ["magnitude", "l2", "random"])
def test_thirteen_amounts_share_one_dense_network(criterion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here, copies = context(), []
    dense = stages.dense(here, epochs=1)
    kept = {name: tensor.clone() for name, tensor in dense.weights.items()}
    monkeypatch.setattr(scoring, "deepcopy", copies.append)
    monkeypatch.setattr(stages, "snapshot", copies.append)
    monkeypatch.setattr(TrialContext, "build_module", copies.append)
    protected = Prune(criterion, "weight", "global", "one_shot", 0.5, protect=("output",))
    for number in range(13):
        config = replace(trial(criterion), prune=replace(protected, amount=0.07 * (number + 1)))
        pruned = stages.prune_round(replace(here, trial=config), dense, round=1)
        shared = {name for name in kept if pruned.weights[name].data_ptr() == dense.weights[name].data_ptr()}
        assert shared == {"output.weight"}
        for name, mask in pruned.masks.items():
            assert torch.equal(pruned.weights[name], kept[name] * mask)
    assert not copies
    assert all(torch.equal(tensor, kept[name]) for name, tensor in dense.weights.items())


def test_a_criterion_that_runs_the_network_runs_a_copy() -> None:
    here = context(trial("snip"))
    state = stages.initial(here)
    kept = {name: tensor.clone() for name, tensor in state.weights.items()}
    stages.prune_round(here, state, round=1)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in state.weights.items())
