"""Interpolative decomposition: against numpy and scipy, on networks that can be refitted exactly, and not."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import models
from pruning.activation_criteria import group_pivot_scores, pivot_scores
from pruning.activations import CHUNK_SIZE
from pruning.channels import shrink, trace
from pruning.criteria import ScoringContext, criteria
from pruning.granularity import unit_groups
from pruning.interpolative_decomposition import interpolation_matrix, refit
from pruning.masking import Group, Masks, apply_masks, full_masks, mask_units, parameter_dims


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def of_rank(rows: int, columns: int, rank: int, *, seed: int = 0) -> Tensor:
    return draw(rows, rank, seed=seed).double() @ draw(rank, columns, seed=seed + 1).double()


def without(net: nn.Module, groups: tuple[Group, ...], dead: Mapping[str, list[int]]) -> Masks:
    masks = full_masks(net, groups)
    for group in groups:
        alive = torch.ones(group.size, dtype=torch.bool)
        alive[dead.get(group.name, [])] = False
        masks = mask_units(group, alive, masks)
    return masks


def masked(net: nn.Module, masks: Masks, new: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A copy with the masks applied, and then the refitted weights."""
    twin = deepcopy(net).eval()
    apply_masks(twin, masks)
    for name, weight in (new or {}).items():
        twin.get_parameter(name).data.copy_(weight)
    return twin


def error(net: nn.Module, dense: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        return float((net(images) - dense.eval()(images)).square().mean())


def mlp_of_twins(seed: int = 0) -> nn.Sequential:
    """Neurons 3, 4, 5 of the first layer are 2, 1/2, 3 times its 0, 1, 2; the next one's 2 is 4 x its 0."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    for layer, unit, of, times in ((0, 3, 0, 2.0), (0, 4, 1, 0.5), (0, 5, 2, 3.0), (2, 2, 0, 4.0)):
        net[layer].weight.data[unit] = times * net[layer].weight.data[of]
        net[layer].bias.data[unit] = times * net[layer].bias.data[of]
    return net


def conv_of_twins(seed: int = 0) -> nn.Sequential:
    """Channels 2 and 3 are twice channels 0 and 1 behind norm, ReLU and pool; flattened at last, 4 cells."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    nn.init.uniform_(net[1].weight, 0.5, 1.5)
    nn.init.normal_(net[1].bias)
    net[0].weight.data[2:], net[0].bias.data[2:] = net[0].weight.data[:2], net[0].bias.data[:2]
    net[1].weight.data[2:], net[1].bias.data[2:] = 2 * net[1].weight.data[:2], 2 * net[1].bias.data[:2]
    net[4].weight.data[2:], net[4].bias.data[2:] = 2 * net[4].weight.data[:2], 2 * net[4].bias.data[:2]
    return net.eval()


# Choosing: the scores


def test_pivot_scores_by_hand() -> None:
    # Norms 1, 5, 3: first (0, 5). What is left of (1, 0) and (3, 0) beside it is whole: then (3, 0), then 0.
    scores = pivot_scores(torch.tensor([[1.0, 0.0, 3.0], [0.0, 5.0, 0.0]]))
    assert torch.allclose(scores, torch.tensor([0.0, 5.0, 3.0], dtype=torch.float64), atol=1e-12)


@given(rows=st.integers(1, 30), columns=st.integers(1, 12), rank=st.integers(1, 12), seed=st.integers(0, 999))
def test_the_k_highest_are_the_first_k_pivots(rows: int, columns: int, rank: int, seed: int) -> None:
    z = of_rank(rows, columns, min(rank, rows, columns), seed=seed)
    scores = pivot_scores(z)
    assert scores.dtype == torch.float64
    order = scores.argsort(descending=True)
    assert bool((scores[order].diff() < 0).all())
    # Each column that is chosen is the farthest from the span of those before it, up to rounding.
    left = z.numpy().copy()
    for k, column in enumerate(order.tolist()):
        norms = np.linalg.norm(left, axis=0)
        assert norms[column] >= norms.max() * (1 - 1e-7) - 1e-9
        assert float(scores[column]) == pytest.approx(norms[column], rel=1e-6, abs=1e-9)
        chosen = z.numpy()[:, order[: k + 1].numpy()]
        left = z.numpy() - chosen @ np.linalg.lstsq(chosen, z.numpy(), rcond=1e-12)[0]


def test_scores_of_equal_orthogonal_columns_and_of_nothing_never_tie() -> None:
    for z in (torch.eye(40), 1.5 * torch.eye(40), torch.zeros(3, 40), 1e-30 * torch.eye(40)):
        assert len(pivot_scores(z).unique()) == 40


def test_scores_agree_with_scipy_on_the_whole_matrix() -> None:
    z = draw(200, 15, seed=4)
    r, order = scipy.linalg.qr(z.double().numpy(), mode="r", pivoting=True)
    assert pivot_scores(z).argsort(descending=True).tolist() == order.tolist()
    assert np.allclose(pivot_scores(z)[torch.from_numpy(order).long()], np.abs(np.diag(r)))


def test_bad_activations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        pivot_scores(torch.ones(4))
    with pytest.raises(ValueError, match="not finite"):
        pivot_scores(torch.tensor([[1.0, torch.nan]]))


# Correcting: T


def test_interpolation_is_numpy_s_least_squares() -> None:
    z = draw(50, 8, seed=2).double()
    kept = torch.tensor([6, 1, 3])
    t = interpolation_matrix(z, kept)
    expected = np.linalg.lstsq(z[:, kept].numpy(), z.numpy(), rcond=None)[0]
    assert np.allclose(t.numpy(), expected)
    assert torch.equal(t[:, kept], torch.eye(3, dtype=torch.float64))
    bools = torch.zeros(8, dtype=torch.bool)
    bools[kept] = True
    assert torch.allclose(interpolation_matrix(z, bools), t[kept.argsort()])


def test_interpolation_of_the_first_pivots_is_the_paper_s_form() -> None:
    z = draw(40, 7, seed=9).double()
    k = 4
    r, order = scipy.linalg.qr(z.numpy(), mode="r", pivoting=True)
    inner = np.concatenate([np.eye(k), np.linalg.solve(r[:k, :k], r[:k, k:])], 1)
    expected = np.empty_like(inner)
    expected[:, order] = inner
    kept = pivot_scores(z).argsort(descending=True)[:k]
    assert np.allclose(interpolation_matrix(z, kept).numpy(), expected)


@given(columns=st.integers(2, 12), rank=st.integers(1, 6), seed=st.integers(0, 999))
def test_interpolation_is_exact_where_the_rank_is_kept(columns: int, rank: int, seed: int) -> None:
    z = of_rank(30, columns, min(rank, columns), seed=seed)
    kept = pivot_scores(z).argsort(descending=True)[: min(rank, columns)]
    assert torch.allclose(z[:, kept] @ interpolation_matrix(z, kept), z, atol=1e-6 * float(z.abs().max()))


@given(columns=st.integers(2, 12), k=st.integers(1, 11), seed=st.integers(0, 999))
def test_the_error_is_within_the_bound_of_rank_revealing_qr(columns: int, k: int, seed: int) -> None:
    """||Z - Z_kept T||_2 <= sqrt(1 + k (n - k)) sigma_k+1 is of strong RRQR; plain pivoting: twice."""
    k = min(k, columns - 1)
    z = draw(40, columns, seed=seed).double() * 10.0 ** -torch.arange(columns)
    kept = pivot_scores(z).argsort(descending=True)[:k]
    sigma = torch.linalg.svdvals(z)
    left = float(torch.linalg.matrix_norm(z - z[:, kept] @ interpolation_matrix(z, kept), 2))
    rounding = 1e-6 * float(sigma[0])  # directions weaker than float32's eps are left out
    assert float(sigma[k]) - 1e-12 <= left <= 2 * (1 + k * (columns - k)) ** 0.5 * float(sigma[k]) + rounding


def test_columns_that_depend_on_each_other_get_no_huge_weights() -> None:
    z = draw(60, 3, seed=1).double()
    z = torch.cat([z, z[:, :1] + 1e-9 * draw(60, 1, seed=2), z[:, :1] + z[:, 1:2]], 1)
    t = interpolation_matrix(z, torch.tensor([0, 1, 3]))
    assert float(t.abs().max()) < 10
    assert torch.allclose(z[:, [0, 1, 3]] @ t[:, [4]], z[:, [4]], atol=1e-5)


# Scores of a network


def test_scores_of_a_network_are_those_of_what_its_readers_get() -> None:
    net = conv_of_twins()
    images = draw(CHUNK_SIZE + 6, 1, 8, 8)  # two batches
    groups = trace(net, images[:1])
    with torch.no_grad():
        pooled, flat = net[:4](images), net[:8](images)
    rows = {
        "0": pooled.movedim(1, -1).reshape(-1, 4),
        "4": flat.reshape(-1, 4, 4).transpose(1, 2).reshape(-1, 4),
    }
    scores = group_pivot_scores(net, groups, images)
    assert list(scores) == ["0", "4"]
    for name, z in rows.items():
        singular = torch.linalg.svdvals(z.double())
        assert torch.allclose(scores[name], pivot_scores(z), rtol=1e-4, atol=1e-4 * float(singular[0]))
        assert (scores[name] > 1e-3 * scores[name].max()).tolist() == [
            False,
            False,
            True,
            True,
        ]  # the longer twins


def test_several_readers_are_stacked() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            out: Tensor = self.c(self.b(h) + h.relu())
            return out

    torch.manual_seed(0)
    net, images = Forked(), draw(20, 4)
    groups = trace(net, images[:1])
    with torch.no_grad():
        h = net.a(images)
        z = torch.cat([h, net.b(h) + h.relu()])
    (group,) = groups  # a and b, which are added up; b and c read a
    assert torch.allclose(group_pivot_scores(net, groups, images)[group.name], pivot_scores(z), rtol=1e-4)


def scene(net: nn.Module, masks: Masks, images: Tensor | None) -> ScoringContext:
    parameters = dict(net.named_parameters())
    weights = {name: parameters[name].detach() * mask for name, mask in masks.items() if mask.dim() > 1}
    sample = None if images is None else (images, torch.zeros(len(images), dtype=torch.long))
    return ScoringContext(net, weights, masks, torch.Generator().manual_seed(0), sample)


@pytest.mark.parametrize("granularity", ["unit", "channel"])
def test_the_criterion_gives_every_row_its_unit_s_score(granularity: str) -> None:
    net, images = conv_of_twins(), draw(12, 1, 8, 8)
    traced = trace(net, images[:1])
    groups = traced if granularity == "channel" else unit_groups(net)
    masks = full_masks(net, groups)
    plain = criteria.get("pivoted_qr(relative=False)")(scene(net, masks, images))
    relative = criteria.get("pivoted_qr")(scene(net, masks, images))
    for group in groups:
        name, _ = parameter_dims(group.members[0])[0]
        expected = group_pivot_scores(net, traced, images)[group.name]
        assert torch.equal(plain[name], expected.reshape(-1, 1, 1, 1).expand_as(plain[name]))
        assert torch.allclose(relative[name][:, 0, 0, 0], expected / expected.max())
    assert all(score.dtype == torch.float64 for score in plain.values())


def test_the_criterion_looks_at_the_masked_network() -> None:
    net, images = conv_of_twins(), draw(12, 1, 8, 8)
    groups = trace(net, images[:1])
    masks = without(net, groups, {"0": [2]})
    scores = criteria.get("pivoted_qr")(scene(net, masks, images))["0.weight"][:, 0, 0, 0]
    assert float(scores[2]) < 1e-12
    assert float(scores[0]) > 1e-3  # twice itself no longer stands in for it


def test_the_criterion_scores_input_features_and_needs_images() -> None:
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(9, 3)), draw(20, 1, 3, 3)
    masks = full_masks(net, unit_groups(net))
    scores = criteria.get("pivoted_qr(relative=False)")(scene(net, masks, images))["1.weight"]
    assert torch.allclose(scores, pivot_scores(images.flatten(1)).expand(3, 9))
    with pytest.raises(ValueError, match="'pivoted_qr' needs sample"):
        criteria.get("pivoted_qr")(scene(net, masks, None))


# Refit


@pytest.mark.parametrize("sequential", [True, False])
def test_neurons_that_others_can_stand_in_for_leave_no_trace(sequential: bool) -> None:
    net, images = mlp_of_twins(), draw(80, 9)
    groups = trace(net, images[:1])
    masks = without(net, groups, {"0": [0, 4, 2], "2": [0]})
    new = refit(net, masks, groups, images, dense=net, sequential=sequential)
    assert set(new) == {"2.weight", "4.weight"}
    assert not new["2.weight"][:, [0, 4, 2]].any()
    assert not new["2.weight"][0].any()  # its row is dead, and stays so
    fresh = draw(30, 9, seed=5)
    twin = masked(net, masks, new)
    assert torch.allclose(twin(fresh), net(fresh), atol=1e-5)
    assert error(masked(net, masks), net, fresh) > 1e-4
    small = shrink(twin, masks, images[:1], groups=groups)
    assert torch.allclose(small(fresh), net(fresh), atol=1e-5)


def test_the_new_weights_by_hand() -> None:
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    net[0].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])  # the third is twice the first
    net[2].weight.data = torch.tensor([[10.0, 1.0, 100.0]])
    images = draw(50, 2)
    groups = trace(net, images[:1])
    new = refit(net, without(net, groups, {"0": [2]}), groups, images, dense=net)
    assert torch.allclose(new["2.weight"], torch.tensor([[210.0, 1.0, 0.0]]))
    new = refit(net, without(net, groups, {"0": [0]}), groups, images, dense=net)
    assert torch.allclose(new["2.weight"], torch.tensor([[0.0, 1.0, 105.0]]))


@pytest.mark.parametrize("sequential", [True, False])
def test_filters_leave_no_trace_through_norm_pool_and_flatten(sequential: bool) -> None:
    net, images = conv_of_twins(), draw(80, 1, 8, 8)
    groups = trace(net, images[:1])
    masks = without(net, groups, {"0": [0, 3], "4": [1, 2]})
    new = refit(net, masks, groups, images, dense=net, sequential=sequential)
    assert {name: weight.shape for name, weight in new.items()} == {
        "4.weight": net[4].weight.shape,
        "8.weight": net[8].weight.shape,
    }
    fresh = draw(20, 1, 8, 8, seed=6)
    small = shrink(masked(net, masks, new), masks, images[:1], groups=groups)
    assert torch.allclose(small(fresh), net(fresh), atol=1e-5)


def test_the_order_in_which_a_member_lists_its_positions_is_free() -> None:
    net, images = conv_of_twins(), draw(30, 1, 8, 8)
    groups = trace(net, images[:1])
    mixed = tuple(
        Group(
            group.name,
            group.size,
            tuple(replace(m, index=m.index.flip(0), root=m.root.flip(0)) for m in group.members),
        )
        for group in groups
    )
    masks = without(net, groups, {"0": [0], "4": [1, 2]})
    one, two = (refit(net, masks, given, images, dense=net) for given in (groups, mixed))
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)


def test_what_the_criterion_keeps_can_be_refitted_exactly() -> None:
    net, images = conv_of_twins(seed=3), draw(80, 1, 8, 8)
    groups = trace(net, images[:1])
    scores = group_pivot_scores(net, groups, images)
    dead = {name: score.argsort()[:2].tolist() for name, score in scores.items()}
    masks = without(net, groups, dead)
    new = refit(net, masks, groups, images, dense=net)
    assert torch.allclose(masked(net, masks, new)(images), net(images), atol=1e-5)


def test_the_input_features_of_a_single_layer() -> None:
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), draw(40, 1, 2, 3)
    images[:, 0, 1, 2] = images[:, 0, 0, 0] - 2 * images[:, 0, 0, 1]
    groups = trace(net, images[:1])
    masks = without(net, groups, {"1": [0]})
    new = refit(net, masks, groups, images, dense=net)
    twin = masked(net, masks, new)
    assert torch.allclose(twin(images), net(images), atol=1e-5)
    assert torch.allclose(shrink(twin, masks, images[:1], groups=groups)(images), net(images), atol=1e-5)


def test_one_layer_that_reads_two_groups() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 3), nn.Linear(6, 4), nn.Linear(7, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.c(torch.cat([self.b(x), self.a(x)], 1).relu())
            return out

    torch.manual_seed(0)
    net, images = Joined(), draw(60, 6)
    for layer in (net.a, net.b):
        layer.weight.data[2], layer.bias.data[2] = 3 * layer.weight.data[0], 3 * layer.bias.data[0]
    groups = trace(net, images[:1])
    masks = without(net, groups, {"a": [0], "b": [2]})
    new = refit(net, masks, groups, images, dense=net)
    assert torch.allclose(masked(net, masks, new)(images), net(images), atol=1e-5)


@pytest.mark.parametrize("model", ["mlp(widths=[40, 30, 20], bias=True)", "cnn(widths=[12, 16, 20])"])
def test_refit_lowers_the_error_and_going_front_to_back_lowers_it_more(model: str) -> None:
    errors = []
    for seed in range(6):
        torch.manual_seed(seed)
        net = models.build(model, input_shape=(1, 8, 8), num_classes=10).eval()
        images, fresh = draw(256, 1, 8, 8, seed=seed), draw(128, 1, 8, 8, seed=seed + 100)
        groups = trace(net, images[:1])
        scores = group_pivot_scores(net, groups, images)
        dead = {group.name: scores[group.name].argsort()[: group.size // 2].tolist() for group in groups}
        masks = without(net, groups, dead)
        fits = [refit(net, masks, groups, images, dense=net, sequential=s) for s in (True, False)]
        errors.append([error(masked(net, masks, new), net, fresh) for new in (*fits, {})])
    sequential, apart, none = torch.tensor(errors).T
    assert bool((sequential < none).all())
    assert bool((apart < none).all())
    assert float(sequential.mean()) < float(apart.mean()) < 0.7 * float(none.mean())


def test_the_ridge_is_that_of_generalized_cross_validation_written_out() -> None:
    torch.manual_seed(0)
    net, images = nn.Sequential(nn.Linear(5, 24), nn.Tanh(), nn.Linear(24, 3)), draw(30, 5)
    groups = trace(net, images[:1])
    new = refit(net, without(net, groups, {"0": list(range(8))}), groups, images, dense=net)
    z = net[:2](images).detach().double().numpy()
    x, y = z[:, 8:], z[:, :8]
    fits = {}
    for ridge in np.linalg.norm(x, 2) ** 2 * 10.0 ** np.arange(-14, 2.5, 0.5):
        t = np.linalg.solve(x.T @ x + ridge * np.eye(16), x.T @ y)
        freedom = np.trace(x @ np.linalg.solve(x.T @ x + ridge * np.eye(16), x.T))
        fits[((y - x @ t) ** 2).sum() / (1 - freedom / 30) ** 2] = t
    best = torch.from_numpy(fits[min(fits)]).float()
    old = net[2].weight.detach()
    assert torch.allclose(new["2.weight"][:, 8:], old[:, 8:] + old[:, :8] @ best.T, atol=1e-5)


@pytest.mark.parametrize("images", [10, 100, 110, 300])
def test_few_images_do_no_harm(images: int) -> None:
    torch.manual_seed(0)
    net, sample = (
        models.build("mlp(widths=[200])", input_shape=(1, 8, 8), num_classes=10),
        draw(images, 1, 8, 8),
    )
    groups = trace(net, sample[:1])
    masks = without(net, groups, {"hidden.0": list(range(100))})
    fresh = draw(200, 1, 8, 8, seed=1)
    new = refit(net, masks, groups, sample, dense=net)
    assert error(masked(net, masks, new), net, fresh) < 1.02 * error(masked(net, masks), net, fresh)


def test_inputs_stay_as_they_were_and_masks_of_weights_are_kept() -> None:
    net, images = conv_of_twins().train(), draw(20, 1, 8, 8)
    net[0].weight.requires_grad_(False)
    groups = trace(net, images[:1])
    masks = without(net, groups, {"0": [1]})
    masks["4.weight"][0, 0, 0, 0] = False
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    old_masks, old_images = {name: mask.clone() for name, mask in masks.items()}, images.clone()
    new = refit(net, masks, groups, images, dense=net)
    criteria.get("pivoted_qr")(scene(net, masks, images))
    assert list(new) == ["4.weight"]
    assert new["4.weight"].dtype == torch.float32
    assert not new["4.weight"][~masks["4.weight"]].any()
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(torch.equal(old_masks[name], mask) for name, mask in masks.items())
    assert torch.equal(old_images, images)
    assert net.training
    assert [p.requires_grad for p in net.parameters()][:2] == [False, True]
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_masks_of_units_do_for_traced_groups_and_nothing_dead_changes_nothing() -> None:
    net, images = mlp_of_twins(), draw(60, 9)
    groups = trace(net, images[:1])
    units = without(net, unit_groups(net), {"0": [5]})
    new = refit(net, units, groups, images, dense=net)
    assert torch.allclose(masked(net, units, new)(images), net(images), atol=1e-5)
    assert refit(net, full_masks(net, None), groups, images, dense=net) == {}
    whole = without(net, groups, {"2": [0, 1, 2, 3]})
    assert refit(net, whole, groups, images, dense=net) == {}  # nobody is left to stand in


class Dense(nn.Module):
    """Two layers that read the first: as DenseNet's concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 2, 3, padding=1)
        self.last = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x).relu()
        out: Tensor = self.last(torch.cat([a, self.second(a).relu()], 1).mean((2, 3)))
        return out


def test_a_group_with_several_readers_is_refused_by_name_only_when_it_lost_units() -> None:
    torch.manual_seed(0)
    net, images = Dense(), draw(30, 1, 4, 4)
    groups = trace(net, images[:1])
    with pytest.raises(ValueError, match=r"first: 2 layers read its channels \(second, last"):
        refit(net, without(net, groups, {"first": [1]}), groups, images, dense=net)
    masks = without(net, groups, {"second": [1]})
    new = refit(net, masks, groups, images, dense=net)
    assert torch.equal(new["last.weight"][:, :3], net.last.weight[:, :3])
    assert error(masked(net, masks, new), net, images) < error(masked(net, masks), net, images)


def test_what_cannot_be_refitted_is_said() -> None:
    net, images = mlp_of_twins(), draw(20, 9)
    groups = trace(net, images[:1])
    masks = without(net, groups, {"0": [0]})
    with pytest.raises(ValueError, match="take the groups of trace"):
        refit(net, masks, unit_groups(net), images, dense=net)
    with pytest.raises(ValueError, match="no images"):
        refit(net, masks, groups, images[:0], dense=net)
    with pytest.raises(ValueError, match=r"0\.weight: its shape is \[6, 9\] in net and \[5, 9\] in dense"):
        refit(net, masks, groups, images, dense=shrink(net, masks, images[:1], groups=groups))
    with pytest.raises(ValueError, match="not finite"):
        refit(net, masks, groups, images * torch.inf, dense=net)
