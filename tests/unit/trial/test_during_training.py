"""Pruning while training: rounds on the ends of epochs, layers that settle, memory that runs out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import models
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.data import loading
from orchestrator.trial import during_training, stages
from orchestrator.trial.context import NetworkState, TrialContext, make_context
from orchestrator.trial.during_training import prune_during_training
from orchestrator.trial.run import TrialResult, run_trial
from pruning.mask_selection import target_count
from pruning.masking import Masks

ADAM = Train(epochs=4)
MOMENTUM = Train(epochs=4, optimizer="sgd", lr=0.05, momentum=0.9, weight_decay=1e-3)
MLP, CNN = "mlp(widths=[32, 16])", "cnn(widths=[8, 16])"
digits = cache(partial(loading.load_dataset, "digits"))


def context(model: str = MLP, recipe: Train = ADAM) -> TrialContext:
    config = DenseConfig(model, "digits", 64, 0, recipe, Numerics(micro_batch=4096))
    return make_context(config, digits())


def trial(on: TrialContext, prune: Prune, recover: str = "none") -> TrialConfig:
    return TrialConfig(on.config, prune, recover, "x", when="during")


def cubic(granularity: str, amount: float = 0.8, rounds: int = 3, scope: str = "layer") -> Prune:
    criterion = "magnitude" if granularity == "weight" else "l2"
    return Prune(criterion, granularity, scope, f"cubic(rounds={rounds})", amount)


def settled(tolerance: float, granularity: str = "unit", amount: float = 0.9, fraction: float = 0.9) -> Prune:
    schedule = f"mean_norm(fraction={fraction}, tolerance={tolerance})"
    return Prune("l2", granularity, "layer", schedule, amount)


def run(on: TrialContext, prune: Prune) -> NetworkState:
    return prune_during_training(replace(on, trial=trial(on, prune)))


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, tuple[str, ...], Masks]]:
    """(round, layers that were waited for, masks) of every choice."""
    seen: list[tuple[int, tuple[str, ...], Masks]] = []

    def noted(
        on: TrialContext,
        net: nn.Module,
        masks: Masks,
        *,
        round: int,
        protect: tuple[str, ...],
        accumulated: Mapping[str, Tensor] | None,
    ) -> Masks:
        chosen = stages.choose_masks(on, net, masks, round=round, protect=protect, accumulated=accumulated)
        seen.append((round, protect, chosen))
        return chosen

    monkeypatch.setattr(during_training, "choose_masks", noted)
    return seen


def walk(on: TrialContext, prune: Prune, recover: str = "none") -> TrialResult:
    class Shelf:
        def dense(self, config: DenseConfig) -> NetworkState | None:
            return stages.initial(on)  # what is measured as dense is of no interest here

    return run_trial(trial(on, prune, recover), on.data, store=Shelf())


def dead_are_zero(state: NetworkState) -> bool:
    return not any(state.weights[name][~mask].any() for name, mask in state.masks.items())


# ---- fixed schedules


@pytest.mark.parametrize("recipe", [ADAM, MOMENTUM], ids=["adam", "momentum"])
@pytest.mark.parametrize("model", [MLP, CNN])
@pytest.mark.parametrize("granularity", ["weight", "unit", "channel"])
def test_cubic_lands_on_the_amount_with_zeros_where_it_pruned(
    granularity: str, model: str, recipe: Train
) -> None:
    measured = walk(context(model, recipe), cubic(granularity)).last
    sizes = {
        (MLP, "weight"): (2048, 512, 160),
        (CNN, "weight"): (72, 1152, 160),
        (MLP, "unit"): (32, 16),
        (MLP, "channel"): (32, 16),
        (CNN, "unit"): (8, 16),
        (CNN, "channel"): (8, 16),
    }[model, granularity]
    gone = sum(target_count(0.8, size) for size in sizes)
    assert measured.measurement.amount == pytest.approx(gone / sum(sizes), abs=1e-12)
    assert not any(note.startswith("asked for") for note in measured.notes)
    assert dead_are_zero(measured.state)
    assert any((~mask).any() for mask in measured.state.masks.values())
    assert measured.measurement.epochs == 4
    assert len(measured.state.history) == 4


def test_rounds_fall_on_the_ends_of_epochs_and_masks_only_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    on = context(recipe=Train(epochs=8))
    run(on, cubic("weight", rounds=3, scope="global"))
    # Three rounds within three quarters of eight epochs: after epochs 2, 4 and 6.
    assert [round for round, _, _ in seen] == [1, 2, 3]
    # amount (1 - (1 - t / 3)^3) of 2720 weights: 0.8 x 19/27, 0.8 x 26/27, 0.8.
    gone = [sum(int((~mask).sum()) for mask in masks.values()) for _, _, masks in seen]
    assert gone == [1531, 2095, 2176]
    for (_, _, earlier), (_, _, later) in pairwise(seen):
        assert not any((mask & ~earlier[name]).any() for name, mask in later.items())


def test_every_epoch_costs_what_is_alive_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs dense, then two under the masks of each round; two passes in the first layer, else three."""
    seen = watched(monkeypatch)
    state = run(context(recipe=Train(epochs=8)), cubic("weight", rounds=3, scope="global"))
    passes = {"hidden.0.weight": 2, "hidden.1.weight": 3, "output.weight": 3}
    dense = 2 * 2048 + 3 * 512 + 3 * 160
    alive = [sum(passes[name] * int(mask.sum()) for name, mask in masks.items()) for _, _, masks in seen]
    assert state.train_flops_effective == 2 * 1257 * 2 * (dense + sum(alive))
    assert state.train_flops == 2 * 1257 * 8 * dense


@pytest.mark.parametrize(
    ("epochs", "rounds", "ends"),
    [
        (8, 3, {2: 1, 4: 2, 6: 3}),
        (4, 3, {1: 1, 2: 2, 3: 3}),
        (4, 6, {1: 2, 2: 4, 3: 6}),
        (1, 10, {1: 10}),
        (2, 10, {1: 6, 2: 10}),
    ],
)
def test_when_rounds_are_due(
    epochs: int, rounds: int, ends: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: dict[int, int] = {}
    after_epoch = during_training.EpochPruner.after_epoch

    def noted(self: during_training.EpochPruner, net: nn.Module, epoch: int) -> Mapping[str, Tensor] | None:
        before = self.round
        masks = after_epoch(self, net, epoch)
        if self.round > before:
            done[epoch] = self.round
        return masks

    monkeypatch.setattr(during_training.EpochPruner, "after_epoch", noted)
    run(context(recipe=Train(epochs=epochs)), cubic("weight", rounds=rounds))
    assert done == ends


@pytest.mark.parametrize("recipe", [ADAM, MOMENTUM], ids=["adam", "momentum"])
def test_what_was_pruned_at_first_is_not_revived_by_what_the_optimizer_remembers(recipe: Train) -> None:
    on = context(recipe=recipe)
    state = run(on, cubic("weight", rounds=1, amount=0.5))
    # One round, after the third of four epochs: a whole epoch of steps follows.
    assert dead_are_zero(state)
    assert sum(int((~mask).sum()) for mask in state.masks.values()) == 1360
    dense = stages.dense(on)
    living = state.masks["output.weight"]
    assert not torch.equal(state.weights["output.weight"][living], dense.weights["output.weight"][living])


def test_it_is_one_training_from_the_initial_weights_and_the_same_again() -> None:
    on = context()
    first, again = run(on, cubic("weight")), run(on, cubic("weight"))
    assert all(torch.equal(first.weights[name], weight) for name, weight in again.weights.items())
    assert all(torch.equal(first.masks[name], mask) for name, mask in again.masks.items())
    assert (first.epochs, first.train_flops) == (4, stages.dense(on).train_flops)


def test_a_recovery_follows_the_training() -> None:
    result = walk(context(), cubic("weight"), "finetune(epochs=2)")
    assert len(result.rounds) == 1
    assert result.last.measurement.epochs == 4 + 2
    assert dead_are_zero(result.last.state)


def test_a_protected_layer_stays_whole() -> None:
    state = run(context(), replace(cubic("weight"), protect=("output",)))
    assert "output.weight" not in state.masks
    assert state.weights["output.weight"].all()


# ---- layers that settle


@pytest.mark.parametrize("model", [MLP, CNN])
@pytest.mark.parametrize("granularity", ["weight", "unit", "channel"])
def test_with_a_large_tolerance_every_layer_is_pruned_once_it_was_seen_twice(
    granularity: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched(monkeypatch)
    on = context(model)
    state = run(on, settled(1e9, granularity, fraction=1.0))
    # After the first epoch there is nothing to compare with; then one look per epoch.
    assert len(seen) == 3
    assert all(waiting == () for _, waiting, _ in seen)
    # Channels also mask the columns that read them.
    assert dead_are_zero(state)
    rows = [mask for name, mask in state.masks.items() if mask.dim() > 1]
    assert all((~mask).any() for mask in rows if len(mask) != 10)
    for (_, _, earlier), (_, _, later) in pairwise(seen):
        assert not any((mask & ~earlier[name]).any() for name, mask in later.items())


@pytest.mark.parametrize("granularity", ["weight", "unit", "channel"])
def test_with_a_tiny_tolerance_the_network_stays_dense(granularity: str) -> None:
    on = context()
    measured = walk(on, settled(1e-12, granularity)).last
    dense = stages.dense(on)
    # The stage's name seeds the batches: the same training but for their order.
    assert (measured.measurement.sparsity, measured.measurement.amount) == (0.0, 0.0)
    assert measured.measurement.macs_effective == measured.measurement.macs_dense
    assert measured.notes == ()
    assert not measured.cut
    assert measured.state.epochs == dense.epochs
    assert all(weight.all() for weight in measured.state.weights.values())


@pytest.mark.parametrize("granularity", ["weight", "unit", "channel"])
def test_only_layers_that_have_settled_are_pruned(granularity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    on = context()
    norm = during_training._mean_norms
    count = 0

    def norms(net: nn.Module, groups: object) -> dict[str, float]:
        # The first layer settles with the second epoch, the others never do.
        nonlocal count
        count += 1
        names = list(norm(net, groups))  # type: ignore[arg-type]
        return {name: 1.0 if place == 0 else 2.0**count for place, name in enumerate(names)}

    monkeypatch.setattr(during_training, "_mean_norms", norms)
    measured = walk(on, settled(0.05, granularity)).last
    state = measured.state
    assert [round for round, _, _ in seen] == [2, 3, 4]
    assert all("hidden.1" in waiting and "hidden.0" not in waiting for _, waiting, _ in seen)
    assert (~state.masks["hidden.0.weight"]).any()
    others = state.masks["hidden.1.weight"]
    if granularity == "channel":  # its columns read the first layer; its rows are whole
        others = others[:, others.any(0)]
    assert others.all()
    weights = [mask for mask in state.masks.values() if mask.dim() > 1]
    competing = {"weight": 2048 + 512 + 160, "unit": 2048 + 512, "channel": 2048 + 512 + 160}[granularity]
    assert sum(mask.numel() for mask in weights) == competing
    dead = sum(int((~mask).sum()) for mask in weights)  # of all weights, those that read units among them
    assert measured.measurement.sparsity_chosen == 1 - (2720 - dead) / 2720


def test_a_protected_layer_that_settles_alone_prunes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0

    def norms(net: nn.Module, groups: object) -> dict[str, float]:
        nonlocal count
        count += 1
        return {"hidden.0": 2.0**count, "hidden.1": 2.0**count, "output": 1.0}

    monkeypatch.setattr(during_training, "_mean_norms", norms)
    state = run(context(), replace(settled(0.05, "weight"), protect=("output",)))
    assert all(mask.all() for mask in state.masks.values())


@pytest.mark.parametrize("model", [MLP, CNN])
def test_mean_norms_by_hand(model: str) -> None:
    net = context(model).build()
    layers = [layer for layer in net.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    expected = [
        sum(float(row.square().sum()) ** 0.5 for row in layer.weight.detach()) / len(layer.weight)
        for layer in layers
    ]
    assert list(during_training._mean_norms(net, None).values()) == pytest.approx(expected, rel=1e-5)
    units = replace(context(model), trial=trial(context(model), settled(1.0))).groups
    assert list(during_training._mean_norms(net, units).values()) == pytest.approx(expected[:-1], rel=1e-5)


def test_the_amount_is_a_ceiling() -> None:
    free, capped = (walk(context(), settled(1e9, amount=amount)).last for amount in (0.95, 0.125))
    assert free.measurement.amount > 0.125
    # 4 of 32 and 2 of 16.
    assert capped.measurement.amount == 0.125


# ---- memory that runs out


@pytest.mark.parametrize(
    "prune",
    [cubic("weight"), settled(1e9, fraction=0.9), replace(cubic("weight"), criterion="movement")],
    ids=["cubic", "mean_norm", "movement"],
)
def test_where_memory_runs_out_all_begins_anew(prune: Prune, monkeypatch: pytest.MonkeyPatch) -> None:
    on = context()
    half = replace(on, config=replace(on.config, numerics=Numerics(micro_batch=32)))
    wanted = run(half, prune)
    build, passes = models.build, 0

    def refuse(net: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal passes
        passes += net.training
        # In the third epoch of 20 batches, after the first rounds: the state that is thrown away has masks.
        if net.training and len(inputs[0]) > 32 and passes > 50:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def narrow(*args: object, **options: object) -> nn.Module:
        net = build(*args, **options)  # type: ignore[arg-type]
        net.register_forward_pre_hook(refuse)
        return net

    seen = watched(monkeypatch)
    monkeypatch.setattr(models, "build", narrow)
    state = run(on, prune)
    assert state.micro_batch == 32
    rounds = [round for round, _, _ in seen]
    again = rounds.index(rounds[0], 1)
    assert 0 < again < len(rounds)  # the first rounds twice
    # What is due anew starts from a whole network: nothing of the first try counts.
    assert rounds[again:][:again] == rounds[:again]
    assert all(torch.equal(state.masks[name], mask) for name, mask in wanted.masks.items())
    assert all(torch.equal(state.weights[name], weight) for name, weight in wanted.weights.items())
    assert (state.epochs, len(state.history)) == (4, 4)
