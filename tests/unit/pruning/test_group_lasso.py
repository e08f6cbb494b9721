"""Group lasso: every formula by hand, by autograd, or by a general optimizer."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import models
from pruning.channels import shrink, trace
from pruning.granularity import unit_groups
from pruning.group_lasso import (
    GROUP_SCALES,
    KINDS,
    LassoGroups,
    add_subgradient,
    find_zero_units,
    make_lasso_groups,
    penalty,
    proximal_step,
    regularizers,
)
from pruning.masking import Group, Member, full_masks, mask_units

IMAGE = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def by_hand() -> nn.Sequential:
    """Rows [3, 4], [0, 0], [6, 8] and then columns [1, 1], [0, 3], [0, 0]: round norms."""
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    net[0].weight.data = torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]])
    net[2].weight.data = torch.tensor([[1.0, 0.0, 0.0], [1.0, 3.0, 0.0]])
    return net


def conv_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(4),
        nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 4),
    )  # fmt: skip


def lasso_of(net: nn.Module, kind: str, image: Tensor = IMAGE) -> LassoGroups:
    return make_lasso_groups(net, kind, groups=trace(net, image))


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def slices(net: nn.Module, lasso: LassoGroups) -> list[Tensor]:
    """The weights of each lasso group, one by one: the loop that the module itself does without."""
    parameters = dict(net.named_parameters())
    found: list[list[Tensor]] = [[] for _ in lasso.sizes]
    for part in lasso.slices:
        moved = parameters[part.name].detach().movedim(part.dim, 0)
        for position, root in zip(part.index.tolist(), part.root.tolist(), strict=True):
            found[root].append(moved[position].flatten())
    return [torch.cat(parts) for parts in found]


# What is one group


def test_the_groups_of_each_kind_by_hand() -> None:
    net = conv_net()
    # Without a trace: 3 filters and 5 rows; then 12 and 5 columns.
    assert make_lasso_groups(net, "filter").sizes.tolist() == [9] * 3 + [12] * 5
    assert make_lasso_groups(net, "channel").sizes.tolist() == [5] * 12 + [4] * 5
    # With it the 4 cells of a channel's flattened map go together: 4 x 5 weights.
    assert lasso_of(net, "filter").sizes.tolist() == [9] * 3 + [12] * 5
    assert lasso_of(net, "channel").sizes.tolist() == [20] * 3 + [4] * 5
    assert lasso_of(net, "group").sizes.tolist() == [9 + 20] * 3 + [12 + 4] * 5


@pytest.mark.parametrize("kind", ["filter", "channel"])
def test_rows_do_not_overlap_nor_do_columns(kind: str) -> None:
    net = conv_net()
    seen = {name: torch.zeros(parameter.shape) for name, parameter in net.named_parameters()}
    for part in lasso_of(net, kind).slices:
        seen[part.name].index_add_(
            part.dim, part.index, seen[part.name].index_select(part.dim, part.index) + 1
        )
    assert max(int(count.max()) for count in seen.values()) == 1
    assert all(
        int(count.max()) == 0 for name, count in seen.items() if name.startswith("1.") or "bias" in name
    )


def test_what_a_trace_leaves_out_is_not_penalised() -> None:
    net = conv_net()
    lasso = make_lasso_groups(net, "filter", groups=trace(net, IMAGE)[1:])
    assert {part.name for part in lasso.slices} == {"5.weight"}


def test_without_a_hidden_layer_the_channels_are_the_input_features() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert make_lasso_groups(net, "channel").sizes.tolist() == [10] * 64
    with pytest.raises(ValueError, match="finds no weights"):
        make_lasso_groups(net, "filter")


def test_unknown_words_and_missing_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="kind is 'filters'; it must be filter"):
        make_lasso_groups(by_hand(), "filters")
    with pytest.raises(ValueError, match="needs groups"):
        make_lasso_groups(by_hand(), "group")
    with pytest.raises(ValueError, match="group_scale is 'size'; it must be sqrt or none"):
        penalty(by_hand(), make_lasso_groups(by_hand(), "filter"), group_scale="size")
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    with pytest.raises(ValueError, match=r"2\.weight is no parameter of its own"):
        make_lasso_groups(tied, "channel")


# The penalty and its subgradient


def test_the_penalty_by_hand() -> None:
    net = by_hand()
    filters, channels = make_lasso_groups(net, "filter"), make_lasso_groups(net, "channel")
    assert penalty(net, filters, group_scale="none").item() == pytest.approx(5 + 0 + 10)
    assert penalty(net, filters, group_scale="sqrt").item() == pytest.approx(2**0.5 * 15)
    assert penalty(net, channels, group_scale="none").item() == pytest.approx(2**0.5 + 3)
    joint = lasso_of(net, "group", torch.rand(1, 2))  # row and column of each unit, 4 weights
    assert penalty(net, joint, group_scale="none").item() == pytest.approx(27**0.5 + 3 + 10)
    assert penalty(net, joint).item() == pytest.approx(2 * (27**0.5 + 3 + 10))


def test_the_subgradient_by_hand() -> None:
    net = by_hand()
    net[0].weight.grad = torch.ones(3, 2)
    add_subgradient(net, make_lasso_groups(net, "filter"), strength=10.0, group_scale="none")
    assert torch.allclose(net[0].weight.grad, torch.tensor([[7.0, 9.0], [1.0, 1.0], [7.0, 9.0]]))
    assert net[2].weight.grad is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group_scale", GROUP_SCALES)
def test_the_subgradient_is_that_of_autograd(kind: str, group_scale: str) -> None:
    net = conv_net()
    net[5].weight.data[2] = 0.0
    net[7].weight.data[:, 2] = 0.0  # the whole unit 2: no NaN there
    lasso = lasso_of(net, kind)
    expected = deepcopy(net)
    (0.3 * penalty(expected, lasso, group_scale=group_scale)).backward()
    add_subgradient(net, lasso, strength=0.3, group_scale=group_scale)
    for (name, one), two in zip(net.named_parameters(), expected.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None), name
        if one.grad is not None and two.grad is not None:
            assert torch.allclose(one.grad, two.grad, atol=1e-6), name
            assert torch.isfinite(one.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_penalty_is_that_of_a_loop(kind: str) -> None:
    net = conv_net()
    lasso = lasso_of(net, kind)
    parts = slices(net, lasso)
    assert [len(part) for part in parts] == lasso.sizes.tolist()
    expected = sum(len(part) ** 0.5 * float(part.double().norm()) for part in parts)
    assert penalty(net, lasso).item() == pytest.approx(expected, rel=1e-5)


# The proximal step


def test_the_proximal_step_by_hand() -> None:
    net = by_hand()
    proximal_step(net, make_lasso_groups(net, "filter"), step=6.0, group_scale="none")
    # 5 is below 6 and gone; 0 stays; 10 shrinks to 4.
    assert torch.equal(net[0].weight[:2], torch.zeros(2, 2))
    assert torch.allclose(net[0].weight[2], torch.tensor([2.4, 3.2]))
    net = by_hand()
    proximal_step(net, make_lasso_groups(net, "filter"), step=1.0, group_scale="sqrt")
    kept = 1 - 2**0.5 / 5
    assert torch.allclose(net[0].weight[0], torch.tensor([3 * kept, 4 * kept]))


def test_no_step_changes_no_bit() -> None:
    net = conv_net()
    before = state(net)
    proximal_step(net, lasso_of(net, "group"), step=0.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    with pytest.raises(ValueError, match="step is -1"):
        proximal_step(net, lasso_of(net, "group"), step=-1.0)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10_000), step=st.floats(0.001, 0.5))
def test_the_proximal_step_is_the_argmin(kind: str, seed: int, step: float) -> None:
    """argmin_x ||x - w||^2 / 2 + step sum_g s_g ||x_g||, of groups apart: those of one hidden layer."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    lasso = lasso_of(net.float(), kind, torch.rand(1, 2))
    net = net.double()
    before = slices(net, lasso)
    proximal_step(net, lasso, step=step)
    for old, new in zip(before, slices(net, lasso), strict=True):
        w, rate = old.numpy(), step * len(old) ** 0.5

        def objective(x: np.ndarray, w: np.ndarray = w, rate: float = rate) -> float:
            return float(((x - w) ** 2).sum() / 2 + rate * np.sqrt((x**2).sum()))

        found = minimize(objective, w, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-13})
        assert objective(new.numpy()) <= found.fun + 1e-9
        assert bool((new == 0).all()) == (rate >= np.linalg.norm(w))


def test_overlapping_groups_take_every_factor_from_the_weights_before() -> None:
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    for layer, value in zip((0, 2, 4), (3.0, 4.0, 12.0), strict=True):
        net[layer].weight.data.fill_(value)
    # Unit of layer 0: (3, 4), norm 5. Unit of layer 2: (4, 12), norm 12.649.
    proximal_step(net, lasso_of(net, "group", torch.rand(1, 1)), step=1.0, group_scale="none")
    first, second = 1 - 1 / 5, 1 - 1 / 160**0.5
    for layer, value in zip((0, 2, 4), (3 * first, 4 * first * second, 12 * second), strict=True):
        assert net[layer].weight.item() == pytest.approx(value, rel=1e-6)


def test_frozen_layers_biases_and_norms_stay() -> None:
    net = conv_net()
    net[5].weight.requires_grad_(False)
    before = state(net)
    lasso = lasso_of(net, "group")
    proximal_step(net, lasso, step=0.05)
    add_subgradient(net, lasso, strength=1.0)
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed == {"0.weight", "7.weight"}
    assert net[5].weight.grad is None


# What is dead


def test_dead_units_by_hand() -> None:
    net = by_hand()
    (group,) = trace(net, torch.rand(1, 2))
    assert find_zero_units(net, [group])[group.name].tolist() == [False, True, False]
    assert find_zero_units(net, [group], tolerance=0.5)[group.name].tolist() == [
        False,
        True,
        False,
    ]  # 5 of 10
    assert find_zero_units(net, [group], tolerance=0.51)[group.name].tolist() == [True, True, False]
    assert find_zero_units(net, [group], side="in")[group.name].tolist() == [False, False, True]
    assert find_zero_units(net, unit_groups(net))["0"].tolist() == [False, True, False]
    with pytest.raises(ValueError, match="no 'in' side"):
        find_zero_units(net, unit_groups(net), side="in")
    with pytest.raises(ValueError, match="tolerance is 1"):
        find_zero_units(net, [group], tolerance=1)


def test_a_unit_is_dead_when_every_layer_that_makes_it_is() -> None:
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    for part, rows in (("a", [[0.0, 0.0], [0.0, 0.0]]), ("b", [[0.0, 0.0], [1.0, 0.0]])):
        net[part].weight.data = torch.tensor(rows)
    both = torch.arange(2)
    makers = (Member("a", "out", both, both), Member("b", "out", both, both))
    for members in (makers, makers[::-1]):
        assert find_zero_units(net, [Group("a", 2, members)])["a"].tolist() == [True, False]


def test_input_features_go_by_columns_and_flattened_cells_together() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    net[1].weight.data[:, 5] = 0.0
    (group,) = trace(net, IMAGE)
    assert find_zero_units(net, [group])[group.name].nonzero().flatten().tolist() == [5]
    net = conv_net()
    group = trace(net, IMAGE)[0]
    net[5].weight.data[:, :4] = 0.0  # the 4 cells of channel 0
    net[5].weight.data[:, 4:7] = 0.0  # 3 of the 4 of channel 1
    assert find_zero_units(net, [group], side="in")[group.name].tolist() == [True, False, False]


# The hook


def trained(text: str, *, steps: int, lr: float = 0.1) -> nn.Module:
    torch.manual_seed(3)
    net = models.build("mlp(widths=[12, 8])", input_shape=(1, 4, 4), num_classes=3)
    images = torch.randn(32, 1, 4, 4)
    labels = torch.arange(32) % 3
    hook = regularizers.get(text)(net, groups=trace(net, images[:1]))
    optimizer = torch.optim.SGD(net.parameters(), lr)
    for step in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        hook.before_step(progress=step / steps)
        optimizer.step()
        hook.after_step(lr, progress=step / steps)
    return net


def test_the_proximal_mode_empties_units_that_can_be_cut_exactly() -> None:
    net = trained("group_lasso(strength=0.02)", steps=60)
    image = torch.randn(5, 1, 4, 4)
    groups = trace(net, image)
    dead = find_zero_units(net, groups)
    assert all(0 < int(found.sum()) < len(found) for found in dead.values())
    masks = full_masks(net, groups)
    for group in groups:
        masks = mask_units(group, ~dead[group.name], masks)
    small = shrink(net, masks, image, groups=groups)
    assert torch.allclose(small(image), net(image), atol=1e-6)


def test_the_subgradient_mode_shrinks_but_leaves_no_exact_zero() -> None:
    plain, net = (trained(f"group_lasso(strength={s}, mode='subgradient')", steps=60) for s in (0.0, 0.02))
    groups = trace(net, torch.randn(1, 1, 4, 4))
    assert not any(found.any() for found in find_zero_units(net, groups).values())
    lasso = make_lasso_groups(net, "group", groups=groups)
    assert penalty(net, lasso).item() < 0.8 * penalty(plain, lasso).item()


def test_each_mode_acts_in_its_own_place_only() -> None:
    net = by_hand()
    groups = trace(net, torch.rand(1, 2))
    before = state(net)
    proximal = regularizers.get("group_lasso(strength=0.1)")(net, groups=groups)
    proximal.before_step()
    assert net[0].weight.grad is None
    regularizers.get("group_lasso(mode='subgradient')")(net, groups=groups).after_step(0.1)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert proximal.penalty().item() == pytest.approx(0.1 * 2 * (27**0.5 + 3 + 10))
    proximal.after_step(0.5)  # step 0.5 x 0.1, scale sqrt(4), on norms sqrt(27), 3, 10
    assert net[0].weight[2, 0].item() == pytest.approx(6 * (1 - 0.05 * 2 / 10))


def test_the_warm_up_rises_from_zero_and_needs_to_know_when() -> None:
    net = by_hand()
    hook = regularizers.get("group_lasso(kind='filter', strength=0.2, warmup=0.5)")(net, groups=None)
    assert [hook.strength_at(at) for at in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.1, 0.2, 0.2]
    with pytest.raises(ValueError, match="give progress"):
        hook.after_step(0.1)
    assert regularizers.get("group_lasso(kind='filter', strength=0.2)")(net, groups=None).strength_at() == 0.2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("group_lasso(kind='row')", "must be filter or channel or group"),
        ("group_lasso(mode='proximal_')", "must be proximal"),
        ("group_lasso(group_scale='size')", "must be sqrt or none"),
        ("group_lasso(strength=-1)", r"must be in \[0, inf\)"),
        ("group_lasso(warmup=2)", r"must be in \[0, 1\]"),
        ("group_laso", "did you mean group_lasso"),
    ],
)
def test_bad_options_are_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        regularizers.get(text)


def test_every_regularizer_says_what_it_is() -> None:
    for name in regularizers:
        assert regularizers.get(name).traits["summary"]
        assert regularizers.get(name).function.__doc__


class Counted(TorchDispatchMode):
    """The number of operations that a device runs: views and questions of types are none."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func not in VIEWS
        return func(*args, **(kwargs or {}))


aten = torch.ops.aten
VIEWS = {aten.view.default, aten.detach.default, aten.split_with_sizes.default, aten.promote_types.default}


@pytest.mark.parametrize("mode", ["proximal", "subgradient"])
def test_a_step_takes_two_operations_a_slice_and_twenty_for_all(mode: str) -> None:
    counts = []
    for depth in (2, 10):
        net = nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(6, 6), nn.ReLU())))
        for weight in net.parameters():
            weight.grad = torch.zeros_like(weight)
        regularizer = regularizers.get({"method": "group_lasso", "mode": mode})(net, groups=unit_groups(net))
        regularizer.before_step()  # what is made once
        regularizer.after_step(0.1)
        with Counted() as counted:
            regularizer.before_step()
            regularizer.after_step(0.1)
        counts.append((counted.count, len(regularizer.lasso.slices)))
    (few, short), (many, long) = counts
    assert (many - few) / (long - short) == 2
    assert few - 2 * short <= 20
