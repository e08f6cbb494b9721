"""Every multiply-add is counted, by layer: against torch's own counter, and by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from traced import channel_groups

import models
import pruning
from orchestrator.trial.macs import Profile, profile
from orchestrator.trial.metrics import effective_macs, train_flops
from pruning.eval_mode import eval_mode

Shape = tuple[int, int, int]
IMAGE = (3, 8, 8)


class Network(nn.Module):
    """Layers by name, and a function of them and of the images."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, images: Tensor) -> Tensor:
        return self.run(self, images)


def with_parameter(*shape: int) -> Callable[[Network], Network]:
    def add(net: Network) -> Network:
        net.kernel = nn.Parameter(torch.rand(shape))
        return net

    return add


def conv1d() -> Network:
    return Network(
        lambda net, x: net.out(net.conv(x.flatten(2)).relu().mean(2)),
        conv=nn.Conv1d(3, 6, 5, stride=2),
        out=nn.Linear(6, 10),
    )


def conv3d() -> Network:
    return Network(
        lambda net, x: net.out(net.conv(x[:, None]).relu().mean((2, 3, 4))),
        conv=nn.Conv3d(1, 4, (2, 3, 3)),
        out=nn.Linear(4, 10),
    )


def transposed() -> Network:
    return Network(
        lambda net, x: net.out(net.up(net.conv(x).relu()).mean((2, 3))),
        conv=nn.Conv2d(3, 4, 3, stride=2),
        up=nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
        out=nn.Linear(6, 10),
    )


def functional_conv() -> Network:
    return with_parameter(5, 3, 3, 3)(
        Network(
            lambda net, x: net.out(functional.conv2d(x, net.kernel, padding=1).relu().mean((2, 3))),
            out=nn.Linear(5, 10),
        )
    )


def functional_linear() -> Network:
    return with_parameter(10, 192)(Network(lambda net, x: functional.linear(x.flatten(1), net.kernel)))


def attention(*, weights: bool) -> Network:
    def run(net: Network, x: Tensor) -> Tensor:
        tokens = net.embed(x).flatten(2).transpose(1, 2)
        return net.out(net.mix(tokens, tokens, tokens, need_weights=weights)[0].mean(1))

    return Network(
        run,
        embed=nn.Conv2d(3, 8, 2, stride=2),
        mix=nn.MultiheadAttention(8, 2, batch_first=True),
        out=nn.Linear(8, 10),
    )


def encoder() -> Network:
    return Network(
        lambda net, x: net.out(net.block(x.flatten(2).transpose(1, 2).repeat(1, 1, 2)).mean(1)),
        block=nn.TransformerEncoderLayer(6, 2, 12, batch_first=True),
        out=nn.Linear(6, 10),
    )


def einsum() -> Network:
    return Network(
        lambda net, x: net.out(torch.einsum("ncij,ncjk->nik", net.conv(x), x).flatten(1)),
        conv=nn.Conv2d(3, 3, 1),
        out=nn.Linear(64, 10),
    )


def grouped() -> Network:
    return Network(
        lambda net, x: net.out(net.depth(net.groups(net.conv(x)).relu()).mean((2, 3))),
        conv=nn.Conv2d(3, 8, 3),
        groups=nn.Conv2d(8, 4, 3, groups=2),
        depth=nn.Conv2d(4, 4, 3, groups=4, padding=1),
        out=nn.Linear(4, 10),
    )


def twice() -> Network:
    return Network(
        lambda net, x: net.out(net.again(net.again(x).relu()).mean((2, 3))),
        again=nn.Conv2d(3, 3, 3, padding=1),
        out=nn.Linear(3, 10),
    )


def weight_elsewhere() -> Network:
    """The weight of `conv` is used by a function, as if it had been called."""
    return Network(
        lambda net, x: net.out(functional.conv2d(x, net.conv.weight).relu().mean((2, 3))),
        conv=nn.Conv2d(3, 5, 3, bias=False),
        out=nn.Linear(5, 10),
    )


def recurrent(kind: type[nn.RNNBase]) -> Network:
    return Network(
        lambda net, x: net.out(net.memory(x.flatten(2).transpose(1, 2))[0][:, -1]),
        memory=kind(3, 5, batch_first=True),
        out=nn.Linear(5, 10),
    )


def bilinear() -> Network:
    return Network(
        lambda net, x: net.out(net.pair(x.mean((2, 3)), x.amax((2, 3)))),
        pair=nn.Bilinear(3, 3, 7),
        out=nn.Linear(7, 10),
    )


def vectors() -> Network:
    """Products with one vector, and a batched sum of products."""

    def run(net: Network, x: Tensor) -> Tensor:
        shift = (x.flatten(2) @ net.kernel).sum()
        return net.out(torch.addbmm(shift, x[0], x[0].mT).flatten()[None])

    return with_parameter(64)(Network(run, out=nn.Linear(64, 10)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "conv1d": conv1d,
    "conv3d": conv3d,
    "transposed": transposed,
    "functional conv": functional_conv,
    "functional linear": functional_linear,
    "attention": lambda: attention(weights=True),
    "einsum": einsum,
    "grouped": grouped,
    "twice": twice,
    "weight elsewhere": weight_elsewhere,
    "gru": lambda: recurrent(nn.GRU),
    "rnn": lambda: recurrent(nn.RNN),
}
MODELS = [
    ("slp", (1, 28, 28)),
    ("slp", (3, 5, 7)),
    ("mlp", (1, 28, 28)),
    ("mlp(widths=[16, 8], bias=True)", (3, 8, 8)),
    ("cnn", (1, 8, 8)),
    ("cnn(widths=[8, 16, 4])", (3, 12, 10)),
    pytest.param("densenet121", (1, 8, 8), marks=pytest.mark.slow),
    pytest.param("densenet121", (3, 32, 32), marks=[pytest.mark.slow, pytest.mark.long]),
    pytest.param("densenet121", (3, 64, 96), marks=[pytest.mark.slow, pytest.mark.long]),
]


def flops(net: nn.Module, shape: Shape) -> int:
    with eval_mode(net), FlopCounterMode(display=False) as counter:
        net(torch.rand(1, *shape))
    return int(counter.get_total_flops())


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]()


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_are_half_of_torchs_flops(name: str) -> None:
    net = network(name)
    cost = profile(net, IMAGE)
    assert cost.total_macs == sum(cost.macs.values()) + sum(cost.other_macs.values())
    assert 2 * cost.total_macs == flops(net, IMAGE) > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_training_flops_are_torchs(name: str) -> None:
    net = network(name).eval()  # without dropout's kernels; the products are the same
    cost = profile(net, IMAGE)
    with FlopCounterMode(display=False) as counter:
        net(torch.rand(1, *IMAGE)).sum().backward()
    # torch counts a weight's gradient as if nothing were grouped; it costs what a forward pass does.
    surplus = {"grouped": 2 * (9216 // 4 + 3 * 576), "transposed": 2 * 972}.get(name, 0)
    assert train_flops(cost, 1) == counter.get_total_flops() - surplus
    assert train_flops(cost, 5, has_teacher=True) == 5 * (train_flops(cost, 1) + 2 * cost.total_macs)


@pytest.mark.parametrize(("name", "shape"), MODELS)
def test_every_model_before_and_after_the_cut(name: str, shape: Shape) -> None:
    torch.manual_seed(0)
    net = models.build(name, input_shape=shape, num_classes=10)
    images = torch.rand(2, *shape)
    groups = channel_groups(name, shape)
    masks = pruning.prune(
        net, amount=0.5, criterion="l2", granularity="channel", scope="layer", groups=groups
    )
    small = pruning.shrink(net, masks, images, groups=groups)
    for here in (net, small):
        cost = profile(here, shape)
        assert 2 * cost.total_macs == flops(here, shape)
        assert (dict(cost.other_macs), cost.notes) == ({}, ())  # fvcore says the same of every layer
    assert profile(small, shape).total_macs < profile(net, shape).total_macs


def rows(cost: Profile) -> dict[str, int]:
    return {**cost.macs, **cost.other_macs}


def test_rows_by_hand() -> None:
    """A layer that can be pruned has its own row; all else is named by its module and operator."""
    conv = "aten.convolution"
    assert rows(profile(network("conv1d"), IMAGE)) == {"conv": 30 * 6 * 3 * 5, "out": 60}
    assert rows(profile(network("functional conv"), IMAGE)) == {
        "out": 50,
        f"(other) {conv}": 64 * 5 * 3 * 9,
    }
    assert rows(profile(network("transposed"), IMAGE)) == {
        "conv": 9 * 4 * 3 * 9,
        "out": 60,
        "up": 9 * 4 * 3 * 9,  # every pixel of the input is spread over 3 x 3, 3 channels
    }
    assert rows(profile(network("grouped"), IMAGE)) == {
        "conv": 36 * 8 * 3 * 9,
        "groups": 16 * 4 * 4 * 9,
        "depth": 16 * 4 * 1 * 9,
        "out": 40,
    }
    assert rows(profile(network("twice"), IMAGE)) == {"again": 2 * 64 * 3 * 3 * 9, "out": 30}
    assert rows(profile(network("weight elsewhere"), IMAGE)) == {"conv": 36 * 5 * 3 * 9, "out": 50}
    assert rows(profile(network("attention"), IMAGE)) == {
        "embed": 16 * 8 * 12,
        "mix.out_proj": 16 * 8 * 8,
        "out": 80,
        "(other) mix: aten.mm": 16 * 8 * 24,
        "(other) mix: aten.bmm": 2 * 16 * 16 * 8,
    }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_attention_is_counted_on_its_fast_paths_as_well(training: bool, frozen: bool) -> None:
    """Fused kernels do what the plain products do: FlopCounterMode sees nothing of them on a CPU."""
    plain, fused = profile(network("attention"), IMAGE), attention(weights=False).train(training)
    cost = profile(fused.requires_grad_(not frozen), IMAGE)
    assert cost.total_macs == plain.total_macs
    assert any("which FlopCounterMode does not count" in note for note in cost.notes)
    block = encoder().train(training).requires_grad_(not frozen)
    products = 64 * (6 * 18 + 6 * 6 + 2 * 6 * 12) + 2 * 64 * 64 * 6
    assert profile(block, IMAGE).total_macs == products + 60


def test_operators_that_torchs_counter_does_not_know() -> None:
    """One per weight and row for a bilinear layer; the four gates of an LSTM at every step."""
    pair = profile(bilinear(), IMAGE)
    assert rows(pair) == {"out": 70, "(other) pair: aten._trilinear": 63}
    memory = profile(recurrent(nn.LSTM), IMAGE)
    (row,) = memory.other_macs.values()
    assert row == 64 * 4 * 5 * (3 + 5)
    gated = profile(vectors(), IMAGE)
    assert rows(gated) == {"out": 640, "(other) aten.mv": 3 * 64, "(other) aten.addbmm": 3 * 8 * 8 * 8}
    for cost, operator in ((pair, "_trilinear"), (memory, "mkldnn_rnn_layer"), (gated, "addbmm")):
        assert any(operator in note for note in cost.notes)


def test_what_the_counters_do_not_agree_on_is_a_note() -> None:
    assert profile(network("gru"), IMAGE).notes == ("MACs of memory: 7,680, by fvcore 0",)
    assert profile(network("conv3d"), IMAGE).notes == ()
    (silent,) = (note for note in profile(vectors(), IMAGE).notes if "fvcore" in note)
    assert silent.startswith("MACs: fvcore cannot count this network (IndexError")


def test_an_operator_that_nothing_counts_is_a_note() -> None:
    net = Network(
        lambda net, x: net.out(torch.cdist(x.flatten(2), x.flatten(2)).flatten(1)), out=nn.Linear(9, 10)
    )
    assert profile(net, IMAGE).notes[0] == "MACs: aten._cdist_forward is not counted (1 calls)"


def test_other_macs_are_whole_in_the_effective_ones() -> None:
    net = network("attention")
    cost = profile(net, IMAGE)
    others = sum(cost.other_macs.values())
    half = {f"{name}.weight": torch.rand(net.get_parameter(f"{name}.weight").shape) < 2 for name in cost.macs}
    for mask in half.values():
        mask[: len(mask) // 2] = False
    assert effective_macs(cost, half) == others + (cost.total_macs - others) // 2


def test_tied_layers_scale_with_the_one_mask_that_they_share() -> None:
    first = nn.Linear(192, 192, bias=False)
    second = nn.Linear(192, 192, bias=False)
    second.weight = first.weight
    net = Network(
        lambda net, x: net.out(net.second(net.first(x.flatten(1)).relu())),
        first=first,
        second=second,
        out=nn.Linear(192, 10),
    )
    cost, mask = profile(net, IMAGE), torch.zeros(192, 192, dtype=torch.bool)
    assert cost.macs == {"first": 192**2, "second": 192**2, "out": 1920}
    assert effective_macs(cost, {"first.weight": mask}) == 1920


def test_a_computed_weight_belongs_to_its_layer() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return functional.conv2d(input, weight, self.bias)

    net = nn.Sequential(Standardised(3, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    assert rows(profile(net, IMAGE)) == {"0": 36 * 4 * 27, "2": 1440}


def test_a_pass_that_depends_on_the_image_is_counted_on_a_random_one() -> None:
    """On zeros it would take the short way."""
    net = Network(
        lambda net, x: net.out((net.deep(x) if x.abs().sum() > 0 else x).flatten(1)),
        deep=nn.Conv2d(3, 3, 3, padding=1),
        out=nn.Linear(192, 10),
    )
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert profile(net, IMAGE).macs == {"deep": 64 * 81, "out": 1920}
    assert torch.equal(torch.get_rng_state(), before)


def test_profile_restores_the_mode_of_every_module() -> None:
    net = network("attention").train()
    net.get_submodule("mix").eval()
    modes = [module.training for module in net.modules()]
    profile(net, IMAGE)
    assert [module.training for module in net.modules()] == modes
    assert modes.count(False) == 2
    assert torch.backends.mha.get_fastpath_enabled()


def test_eval_mode_restores_after_an_error_too() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout())
    net[0].eval()

    def fail() -> None:
        with eval_mode(net):
            assert not any(module.training for module in net.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [module.training for module in net.modules()] == [True, False, True]
