"""Sparse training with regrowth: the paper written out as a plain loop, the count at every step, the cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from trained import Trained, digits

from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.data.batches import count_batches, iter_batches
from orchestrator.errors import DivergedError
from orchestrator.planning.constraints import order_conflict
from orchestrator.training.optimizers import make_optimizer
from orchestrator.trial import stages
from orchestrator.trial.context import NetworkState, TrialContext, make_context, seed_for
from orchestrator.trial.macs import Profile
from orchestrator.trial.metrics import dense_gradient_flops, train_flops, train_flops_effective
from orchestrator.trial.recovery import recoveries
from orchestrator.trial.run import TrialResult, run_trial
from orchestrator.trial.sparse_training import MaskUpdates, Regrower
from pruning.masking import Masks
from pruning.regrowth import Regrowth

MLP, CNN = "mlp(widths=[32, 16])", "cnn(widths=[8, 16])"
LAYERS = ("hidden.0.weight", "hidden.1.weight", "output.weight")
MOMENTUM = Train(epochs=4, optimizer="sgd", lr=0.05, momentum=0.9, weight_decay=1e-3)
ADAM = Train(epochs=4)
ERK = Prune("random", "weight", "erk", "one_shot", 0.8)
STEPS = 20  # batches of 64 in an epoch of 1257 images


def context(model: str = MLP, recipe: Train = MOMENTUM, prune: Prune = ERK) -> TrialContext:
    config = DenseConfig(model, "digits", 64, 0, recipe, Numerics(micro_batch=4096))
    trial = TrialConfig(config, prune, "rewind", "x", when="init")
    return replace(make_context(config, digits()), trial=trial)


def sparse_start(on: TrialContext) -> NetworkState:
    return stages.prune_round(on, stages.initial(on), round=1)


def walk(on: TrialContext, recover: str) -> TrialResult:
    assert on.trial is not None
    return run_trial(replace(on.trial, recover=recover), on.data, store=Trained())


def counts(masks: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.items()}


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Masks, bool]]:
    """(steps so far, masks in force, whether they are new) of every step of a training."""
    seen: list[tuple[int, Masks, bool]] = []
    step = Regrower.step

    def noted(self: Regrower, *arguments: object) -> Masks | None:
        masks = step(self, *arguments)  # type: ignore[arg-type]
        seen.append((self.steps - 1, self.masks, masks is not None))
        return masks

    monkeypatch.setattr(Regrower, "step", noted)
    return seen


# ---- the papers


def rigl_by_the_paper(on: TrialContext, *, interval: int, drop_fraction: float, until: float) -> nn.Module:
    """Algorithm 1 of Evci et al. with SGD, on the same batches; masks are attributes of the parameters."""
    state, recipe = sparse_start(on), on.config.train
    net, train = on.build_module(state), on.data.train
    masks = {name: mask.clone() for name, mask in state.masks.items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    generator = torch.Generator().manual_seed(seed_for(0, "rigl", 1))
    total, t = recipe.epochs * STEPS, 0
    end = until * total
    for _ in range(recipe.epochs):
        for batch in iter_batches(len(train), 64, generator):
            optimizer.zero_grad()
            functional.cross_entropy(net(train.images[batch]), train.labels[batch]).backward()
            if t % interval == 0 and t < end:
                decayed = drop_fraction / 2 * (1 + torch.cos(torch.tensor(torch.pi * t / end)).item())
                for name, parameter in net.named_parameters():
                    if name in masks and not masks[name].all():
                        _rigl_layer(parameter, masks[name], decayed, optimizer)
            else:
                optimizer.step()
            with torch.no_grad():
                for name, mask in masks.items():
                    net.get_parameter(name).mul_(mask)
            t += 1
    net.masks = masks  # type: ignore[assignment]
    return net


@torch.no_grad()
def _rigl_layer(parameter: nn.Parameter, mask: Tensor, fraction: float, optimizer: torch.optim.SGD) -> None:
    assert parameter.grad is not None
    flat = mask.view(-1)
    before = flat.clone()
    count = int(fraction * int(flat.sum()))
    alive = flat.nonzero().flatten()
    smallest = parameter.flatten()[alive].abs().argsort(stable=True)[:count]
    flat[alive[smallest]] = False
    free = (~flat).nonzero().flatten()
    largest = parameter.grad.flatten()[free].abs().argsort(stable=True, descending=True)[:count]
    flat[free[largest]] = True
    grown = (flat & ~before).view_as(mask)
    parameter[grown] = 0.0
    if momentum := optimizer.state.get(parameter):
        momentum["momentum_buffer"][grown] = 0.0


@pytest.mark.parametrize("model", [MLP, CNN])
def test_rigl_trains_as_the_paper_says(model: str) -> None:
    on = context(model)
    options = {"interval": 7, "drop_fraction": 0.4, "until": 0.6}
    trained = recoveries.get({"method": "rigl", **options})(on, sparse_start(on), round=1)
    expected = rigl_by_the_paper(on, interval=7, drop_fraction=0.4, until=0.6)
    for name, mask in expected.masks.items():  # type: ignore[operator,union-attr]
        assert torch.equal(trained.masks[name], mask), name
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(trained.weights[name], tensor, rtol=1e-5, atol=1e-6)
    start = sparse_start(on)
    assert any(not torch.equal(trained.masks[name], mask) for name, mask in start.masks.items())


@pytest.mark.parametrize(
    ("recover", "steps"),
    [
        ("rigl(interval=16, until=0.75)", [0, 16, 32, 48]),  # of 80 steps; 60 is the end
        ("rigl(interval=20, until=0.75)", [0, 20, 40]),
        ("rigl(interval='epoch', until=1.0)", [0, 20, 40, 60]),
        ("rigl(interval=1000)", [0]),
        ("rigl(until=0.0)", []),
        ("set", [19, 39, 59]),  # after the last step of every epoch but the last
        ("set(interval=30)", [29, 59]),
        ("set(interval=20, until=0.5)", [19]),
    ],
)
def test_when_masks_change_and_that_counts_do_not(
    recover: str, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched(monkeypatch)
    on = context()
    state = recoveries.get(recover)(on, sparse_start(on), round=1)
    start = sparse_start(on)
    assert [step for step, _, is_new in seen if is_new] == steps
    assert len(seen) == 4 * STEPS
    assert all(counts(masks) == counts(start.masks) for _, masks, _ in seen)
    assert counts(state.masks) == counts(start.masks)
    assert list(state.masks) == list(start.masks) == list(LAYERS)
    assert not any(state.weights[name][~mask].any() for name, mask in state.masks.items())


@pytest.mark.parametrize("recipe", [MOMENTUM, ADAM, replace(ADAM, optimizer="adamw")], ids=str)
@pytest.mark.parametrize("replaces_step", [True, False])
def test_what_grows_starts_at_zero_with_no_memory_and_the_others_keep_theirs(
    recipe: Train, replaces_step: bool
) -> None:
    """One update, after nine steps or ten of the optimizer, in which one row takes the place of another."""
    torch.manual_seed(0)
    net = nn.Linear(8, 4)
    alive = torch.zeros(4, 8, dtype=torch.bool)
    alive[:2] = True

    def swap(weight: Tensor, gradient: Tensor, mask: Tensor, step: int, generator: object) -> Regrowth:
        return Regrowth(mask.roll(1, 0), mask.roll(1, 0) & ~mask)

    optimizer = make_optimizer(recipe, net)
    updates = MaskUpdates(swap, interval=10, end=11, replaces_step=replaces_step)
    regrower = Regrower({"weight": alive}, updates, seed_of=lambda step: step)
    regrower.steps = 1
    inputs, new_masks = torch.randn(16, 8), None
    while new_masks is None:
        net.zero_grad()
        net(inputs).square().sum().backward()
        before = net.weight.detach().clone()
        memory = {name: each.clone() for name, each in optimizer.state.get(net.weight, {}).items()}
        new_masks = regrower.step(net, optimizer, 16)
    grown = alive.roll(1, 0) & ~alive
    assert torch.equal(new_masks["weight"], alive.roll(1, 0))
    assert not net.weight[grown].any()
    shaped = {n: each for n, each in optimizer.state[net.weight].items() if each.shape == grown.shape}
    assert shaped
    for name, each in shaped.items():
        assert not each[grown].any(), name
        assert each[~grown].all()
        if replaces_step:  # nothing else has changed
            assert torch.equal(each[~grown], memory[name][~grown])
    if replaces_step:
        assert torch.equal(net.weight[~grown], before[~grown])
    else:  # the optimizer has stepped, too
        assert (net.weight[~grown] != before[~grown]).all()
    assert regrower.dense_images == (16 if replaces_step else 0)


# ---- the trial


@pytest.mark.parametrize("recover", ["rigl(interval=10)", "set"])
@pytest.mark.parametrize("criterion", ["random", "snip", "magnitude"])
def test_a_trial_lands_on_its_amount_from_any_criterion(recover: str, criterion: str) -> None:
    scope = "erk" if criterion == "random" else "global"
    result = walk(context(prune=replace(ERK, criterion=criterion, scope=scope)), recover)
    measured = result.last.measurement
    assert measured.amount == measured.sparsity == pytest.approx(0.8, abs=1e-12)
    assert (measured.epochs, len(result.rounds)) == (4, 1)
    assert not [note for note in result.last.notes if "asked for" in note]


def test_the_masks_of_the_record_are_those_of_the_end() -> None:
    on = context()
    result = walk(on, "rigl(interval=10)")
    assert counts(result.last.state.masks) == counts(sparse_start(on).masks)
    assert not torch.equal(result.last.state.masks[LAYERS[0]], sparse_start(on).masks[LAYERS[0]])


@pytest.mark.parametrize("recover", ["rigl(interval=10)", "set"])
def test_the_same_again_and_another_seed_is_another_training(recover: str) -> None:
    on = context()
    first, again = walk(on, recover).last.state, walk(on, recover).last.state
    for one, other in ((first.weights, again.weights), (first.masks, again.masks)):
        assert all(torch.equal(one[name], tensor) for name, tensor in other.items())
    other_seed = walk(replace(on, trial=replace(on.trial, dense=replace(on.config, seed=1))), recover)  # type: ignore[type-var]
    assert not torch.equal(other_seed.last.state.masks[LAYERS[0]], first.masks[LAYERS[0]])


def test_with_nothing_pruned_it_is_plain_training() -> None:
    on = context(prune=replace(ERK, amount=0.0))
    state = recoveries.get("rigl(interval=1)")(on, sparse_start(on), round=1)
    assert all(mask.all() for mask in state.masks.values())
    assert state.train_flops_effective == state.train_flops == train_flops(on.cost, 4 * 1257)


def test_weights_that_are_no_numbers_end_the_trial() -> None:
    on = context()
    start = sparse_start(on)
    start.weights["hidden.0.weight"][start.masks["hidden.0.weight"]] = torch.nan
    with pytest.raises(DivergedError, match=r"hidden\.0\.weight after 0 steps: the weights contain NaN"):
        recoveries.get("rigl")(on, start, round=1)


# ---- the cost


def test_training_flops_by_hand() -> None:
    """3 f_S a step, 2 f_S + f_D where RigL looks at all weights; the first layer needs no input gradient."""
    on = context()
    living = [counts(sparse_start(on).masks)[name] for name in LAYERS]
    sizes = [64 * 32, 32 * 16, 16 * 10]
    sparse = 2 * (2 * living[0] + 3 * living[1] + 3 * living[2]) * 4 * 1257
    dense = 2 * (2 * sizes[0] + 3 * sizes[1] + 3 * sizes[2]) * 4 * 1257
    looks = 2 * (sum(sizes) - sum(living)) * 3 * 64  # at steps 0, 20 and 40: whole batches
    for recover, flops in (
        ("rigl(interval=20)", sparse + looks),
        ("set", sparse),
        ("rewind", sparse),
    ):
        measured = walk(on, recover).last.measurement
        assert (measured.train_flops, measured.train_flops_effective) == (dense, flops), recover


def test_on_the_average_rigl_costs_what_the_papers_appendix_says() -> None:
    """(3 f_S n + 2 f_S + f_D) / (n + 1) a step, for a layer whose inputs have gradients as well."""
    cost = Profile(
        {"layer": 1000},
        {},
        {},
        1000,
        weights={"layer": "layer.weight"},
        train_macs=3000,
        layer_train_macs={"layer": 3000},
    )
    masks = {"layer.weight": torch.arange(1000).reshape(10, 100) < 300}
    f_d, f_s, n = 2 * 1000, 2 * 300, 100
    flops = train_flops_effective(cost, masks, n + 1) + dense_gradient_flops(cost, masks, 1)
    assert flops == 3 * f_s * n + 2 * f_s + f_d
    with_teacher = train_flops_effective(cost, masks, 1, has_teacher=True)
    assert with_teacher == 3 * f_s + f_d


# ---- what it is for


@pytest.mark.parametrize("recover", ["rigl", "set"])
def test_where_it_cannot_be_used_it_is_refused(recover: str) -> None:
    text = str(recoveries.get(recover))
    conflict = partial(order_conflict, prepare="none", recover=text)
    assert conflict(ERK, "init") is None
    for when in ("after", "during"):
        assert "it needs when: init" in str(conflict(ERK, when))  # type: ignore[arg-type]
    for granularity in ("unit", "channel", "nm(n=2, m=4)"):
        reason = str(conflict(replace(ERK, granularity=granularity, scope="layer"), "init"))
        assert "it needs granularity weight" in reason
    assert "not scope unit" in str(conflict(replace(ERK, scope="unit"), "init"))


@pytest.mark.parametrize("recover", ["rigl", "set"])
def test_units_do_not_grow_again(recover: str) -> None:
    on = context(prune=Prune("l2", "unit", "layer", "one_shot", 0.5))
    with pytest.raises(ValueError, match=f"{recover} drops and grows single weights"):
        recoveries.get(recover)(on, sparse_start(on), round=1)


@pytest.mark.parametrize(("value", "shown"), [(0, "0"), ("week", "'week'"), (True, "True"), (1.5, "1.5")])
def test_an_interval_that_is_none(value: object, shown: str) -> None:
    with pytest.raises(
        ValueError, match=f"interval.*{shown} is no interval; give a number of optimizer steps"
    ):
        recoveries.get({"method": "rigl", "interval": value})


@pytest.mark.parametrize(("size", "batch"), [(1, 1), (1, 5), (10, 5), (11, 5), (12, 5), (3, 1), (6, 5)])
def test_batches_are_counted_as_they_come(size: int, batch: int) -> None:
    drawn = list(iter_batches(size, batch, torch.Generator().manual_seed(0)))
    assert count_batches(size, batch) == len(drawn)
