"""What a network inherits: copied, fitted or drawn anew, worked by hand; masks that never come back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import models
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.data import loading
from orchestrator.trial import stages
from orchestrator.trial.context import NetworkState, make_context
from orchestrator.trial.run import run_trial
from orchestrator.trial.weight_transfer import (
    SourceModel,
    TensorMapping,
    classes_of,
    match_tensors,
    transfer_weights,
)
from pruning.dataflow import find_data_flow

LOW, HIGH = (
    "digits(classes=[0, 1, 2], samples_per_class=12)",
    "digits(classes=[7, 8, 9], samples_per_class=12)",
)
MODEL = "mlp(widths=[12, 8], bias=True)"  # an ancestor's masks may cover biases


def shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


def parameters(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in net.named_parameters()}


def net_of(model: str, shape: tuple[int, int, int] = (1, 8, 8), classes: int = 3) -> nn.Module:
    return models.build(model, input_shape=shape, num_classes=classes)


def given_to(
    net: nn.Module, ancestor: nn.Module, masks: dict[str, Tensor] | None = None
) -> tuple[TensorMapping, NetworkState]:
    """What `net` is after inheriting, and how."""
    found = match_tensors(
        net, shapes(ancestor), flow=find_data_flow(net), source_classes=None, target_classes=None
    )
    giver = SourceModel(ancestor.state_dict(), masks or {}, None)
    weights, kept = transfer_weights(dict(net.state_dict()), giver, found, parameters=parameters(net))
    return found, NetworkState(weights, kept)


# How tensors are fitted


def test_equal_networks_take_everything_batch_norm_statistics_too() -> None:
    ancestor, net = net_of("cnn(widths=[4])"), net_of("cnn(widths=[4])")
    ancestor(torch.rand(8, 1, 8, 8))  # moves the statistics
    found, state = given_to(net, ancestor)
    assert (found.adapted, found.replaced, found.inherited) == ({}, {}, "8 of 8 tensors")
    assert all(torch.equal(state.weights[name], value) for name, value in ancestor.state_dict().items())
    assert state.weights["blocks.0.norm.num_batches_tracked"] == 1


def test_another_number_of_classes_draws_the_head_anew() -> None:
    net = net_of("slp", classes=2)
    found, state = given_to(net, net_of("slp"))
    assert found.replaced == {
        "output.weight": "head: 3 classes to 2",
        "output.bias": "head: 3 classes to 2",
    }
    assert torch.equal(state.weights["output.weight"], net.state_dict()["output.weight"])


@pytest.mark.parametrize(
    ("theirs", "ours", "replaced"),
    [
        (("digits/0", "digits/1"), ("digits/0", "digits/1"), False),
        (("digits/0", "digits/1"), ("digits/1", "digits/0"), True),
        (("digits/0", "digits/1"), ("mnist/0", "mnist/1"), True),
        (None, ("digits/0", "digits/1"), False),
    ],
)
def test_as_many_but_other_classes_draw_it_anew_where_both_are_known(
    theirs: tuple[str, ...] | None, ours: tuple[str, ...], replaced: bool
) -> None:
    net = net_of("mlp(widths=[4])", classes=2)
    found = match_tensors(
        net, shapes(net), flow=find_data_flow(net), source_classes=theirs, target_classes=ours
    )
    assert found.replaced == ({"output.weight": "head: other classes"} if replaced else {})


def test_the_classes_of_a_data_set_have_its_name_and_their_order() -> None:
    assert classes_of("digits(classes=[7, 5])") == ("digits/7", "digits/5")
    assert classes_of("cifar10(samples_per_class=3)") == tuple(f"cifar10/{label}" for label in range(10))


def conv(channels: int, kernel: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 2, kernel, bias=False), nn.Flatten(), nn.Linear(2, 2))


def test_a_grey_stem_takes_colours_in_equal_parts() -> None:
    ancestor, mask = conv(1), torch.ones(2, 1, 3, 3, dtype=torch.bool)
    mask[1, 0, 2, 0] = False
    found, state = given_to(conv(3), ancestor, {"0.weight": mask})
    assert found.adapted == {"0.weight": "stem: 1 channel repeated to 3, by 3"}
    assert found.inherited == "3 of 3 tensors"
    for channel in range(3):
        assert torch.allclose(
            state.weights["0.weight"][:, channel], ancestor.get_parameter("0.weight")[:, 0] / 3
        )
        assert torch.equal(state.masks["0.weight"][:, channel], mask[:, 0])
    grey = torch.rand(1, 1, 3, 3)
    coloured = conv(3)
    coloured.load_state_dict(state.weights)
    assert torch.allclose(coloured(grey.repeat(1, 3, 1, 1)), ancestor(grey), atol=1e-6)


def test_a_coloured_stem_takes_grey_by_its_sum() -> None:
    ancestor = conv(3)
    with torch.no_grad():
        ancestor.get_parameter("0.weight")[:] = torch.arange(54.0).reshape(2, 3, 3, 3)
    mask = torch.zeros(2, 3, 3, 3, dtype=torch.bool)
    mask[0, 2] = True
    _, state = given_to(conv(1), ancestor, {"0.weight": mask})
    assert state.weights["0.weight"][0, 0, 0, 0] == 0 + 9 + 18
    assert state.weights["0.weight"][1, 0, 2, 2] == 35 + 44 + 53
    assert state.masks["0.weight"][0].all()
    assert not state.masks["0.weight"][1].any()


@pytest.mark.parametrize(
    ("before", "after"), [(conv(2), conv(3)), (conv(1, kernel=7), conv(1)), (conv(3, kernel=7), conv(1))]
)
def test_any_other_stem_is_drawn_anew_and_all_of_it_is_alive(before: nn.Module, after: nn.Module) -> None:
    dead = {"0.weight": torch.zeros_like(before.get_parameter("0.weight"), dtype=torch.bool)}
    found, state = given_to(after, before, dead)
    assert list(found.replaced) == ["0.weight"]
    assert found.replaced["0.weight"].startswith("stem: ")
    assert torch.equal(state.weights["0.weight"], after.get_parameter("0.weight"))
    assert state.masks["0.weight"].shape == after.get_parameter("0.weight").shape
    assert state.masks["0.weight"].all()


def test_a_first_linear_layer_for_another_size_is_drawn_anew_and_its_bias_stays() -> None:
    ancestor = net_of("mlp(widths=[4], bias=True)", (1, 8, 8))
    found, state = given_to(net_of("mlp(widths=[4], bias=True)", (1, 9, 9)), ancestor)
    assert found.replaced == {"hidden.0.weight": "stem: 4x64 to 4x81"}
    assert torch.equal(state.weights["hidden.0.bias"], ancestor.get_parameter("hidden.0.bias"))


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("mlp(widths=[4])", "mlp(widths=[5])", "hidden.0.weight is 4x64 in the ancestor, 5x64 here"),
        ("mlp(widths=[4, 6])", "mlp(widths=[4, 7])", "hidden.1.weight is 6x4 in the ancestor, 7x4 here"),
        ("mlp(widths=[4])", "mlp(widths=[4, 4])", "the ancestor has no hidden.1.weight"),
        (
            "mlp(widths=[4], bias=True)",
            "mlp(widths=[4])",
            "hidden.0.bias of the ancestor is not in this model",
        ),
    ],
)
def test_other_models_are_refused_in_one_line(before: str, after: str, said: str) -> None:
    net = net_of(after)
    with pytest.raises(ValueError, match=said) as caught:
        match_tensors(
            net, shapes(net_of(before)), flow=find_data_flow(net), source_classes=None, target_classes=None
        )
    assert str(caught.value).startswith("the models differ: ")
    assert "\n" not in str(caught.value)


# Trials from an ancestor


def dense(start: str, seed: int = 0, epochs: int = 2) -> DenseConfig:
    train, numerics = Train(epochs=epochs), Numerics(micro_batch=512)
    return DenseConfig(MODEL, HIGH, 32, seed, train, numerics, start, "a" * 64 if start != "scratch" else "")


def pruned_ancestor(share: float, seed: int = 0) -> SourceModel:
    """A network whose hidden weights are dead with this probability, its own classes known."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = net_of(MODEL)
        masks = {n: torch.rand(p.shape) >= share for n, p in net.named_parameters()}
    weights = {name: tensor * masks[name] for name, tensor in net.state_dict().items()}
    return SourceModel(weights, masks, classes_of(LOW))


IMAGES = loading.load_dataset("digits", classes=[7, 8, 9], samples_per_class=12)


class NoStore:
    def dense(self, config: DenseConfig) -> NetworkState | None:
        return None


def test_a_start_from_weights_is_the_ancestor_and_a_fresh_head() -> None:
    ancestor, fresh = pruned_ancestor(0.5), stages.initial(make_context(dense("scratch"), IMAGES))
    state = stages.initial(make_context(dense("weights"), IMAGES, source_model=ancestor))
    assert state.masks == {}
    assert torch.equal(state.weights["hidden.0.weight"], ancestor.weights["hidden.0.weight"])
    assert torch.equal(state.weights["output.weight"], fresh.weights["output.weight"])
    again = stages.initial(
        make_context(dense("weights"), IMAGES, source_model=ancestor), draw="reinit", round=1
    )
    assert not torch.equal(again.weights["hidden.0.weight"], state.weights["hidden.0.weight"])


def test_what_was_dead_grows_from_weights_and_stays_dead_under_masks() -> None:
    ancestor = pruned_ancestor(0.5)
    dead = ~ancestor.masks["hidden.0.weight"]
    free = stages.dense(make_context(dense("weights"), IMAGES, source_model=ancestor))
    bound = stages.dense(make_context(dense("masked"), IMAGES, source_model=ancestor))
    # Pixels that are blank in every image have no gradient: most of the dead move, not all.
    assert free.weights["hidden.0.weight"][dead].count_nonzero() > dead.sum() / 2
    assert not bound.weights["hidden.0.weight"][dead].any()
    assert torch.equal(bound.masks["hidden.0.weight"], ancestor.masks["hidden.0.weight"])
    assert bound.masks["output.weight"].all()


def test_a_training_without_its_ancestor_is_a_mistake_of_ours() -> None:
    with pytest.raises(RuntimeError, match="no source model was given"):
        stages.initial(make_context(dense("weights"), IMAGES))


def test_to_rewind_to_zero_is_to_go_back_to_what_was_inherited() -> None:
    ancestor = pruned_ancestor(0.3)
    context = make_context(dense("masked"), IMAGES, source_model=ancestor)
    assert torch.equal(stages.weights_at(context, 0)["hidden.1.weight"], ancestor.weights["hidden.1.weight"])
    # Epoch 1 of 2 is trained again from there, bit for bit.
    there = stages.dense(context, epochs=1).weights
    assert all(torch.equal(stages.weights_at(context, 1)[name], value) for name, value in there.items())


RECOVERIES = ("none", "finetune(epochs=1)", "rewind(to=0)", "reinit", "lr_rewind(epochs=1)")


@given(
    amount=st.floats(0, 1),
    share=st.sampled_from([0.0, 0.3, 0.9]),
    granularity=st.sampled_from(["weight", "unit", "channel"]),
    scope=st.sampled_from(["layer", "global"]),
    schedule=st.sampled_from(["one_shot", "iterative(rounds=2)"]),
    recover=st.sampled_from(RECOVERIES),
    when=st.sampled_from(["after", "init", "during"]),
)
def test_nothing_revives_whatever_is_asked_for(
    amount: float, share: float, granularity: str, scope: str, schedule: str, recover: str, when: str
) -> None:
    ancestor = pruned_ancestor(share)
    prune = Prune("l2", granularity, scope, schedule, amount)
    config = TrialConfig(dense("masked", epochs=1), prune, recover, "x", when)
    result = run_trial(config, IMAGES, store=NoStore(), source_model=ancestor)
    state, measured = result.last.state, result.last.measurement
    kept = {name: mask for name, mask in ancestor.masks.items() if not name.startswith("output.")}
    for name, mask in kept.items():
        assert not (state.masks[name] & ~mask).any()
    for name, mask in state.masks.items():
        assert not state.weights[name][~mask].any()
    # Of all prunable weights: what the ancestor lost counts, and what is asked for is of all of them.
    weights = [mask for mask in state.masks.values() if mask.dim() > 1]
    total, living = sum(mask.numel() for mask in weights), sum(int(mask.sum()) for mask in weights)
    assert measured.sparsity_chosen == 1 - living / total
    assert total == 12 * 64 + 8 * 12 + 3 * 8
    gone = sum(int((~mask).sum()) for mask in kept.values() if mask.dim() > 1)
    if granularity == "weight":
        assert measured.amount == measured.sparsity_chosen
    if granularity == "weight" and scope == "global" and schedule == "one_shot":
        assert total - living == max(gone, int(amount * total + 0.5))
