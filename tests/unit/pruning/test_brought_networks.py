"""Networks as people write them: cut to what the masked network computes, and nothing silent."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import pruning
from pruning.channels import find_channels
from pruning.cutting.layer_widths import layer_widths, resize

EXAMPLE = torch.zeros(2, 3, 8, 8)


class Net(nn.Module):
    """A network of named layers and one function of itself and the images."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor], **modules: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, images: Tensor) -> Tensor:
        return self.function(self, images)


def conv(inputs: int, outputs: int, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)  # type: ignore[arg-type]


def pooled(features: Tensor) -> Tensor:
    return features.mean((2, 3))


def tokens(net: Net, images: Tensor) -> Tensor:
    return net.a(images).flatten(2).transpose(1, 2)


def encoder(*, norm_first: bool = False) -> Net:
    layer = nn.TransformerEncoderLayer(12, 2, 20, batch_first=True, norm_first=norm_first)
    return Net(
        lambda net, x: net.f(net.t(tokens(net, x)).mean(1)),
        a=nn.Conv2d(3, 12, 4, 4),
        t=layer,
        f=nn.Linear(12, 4),
    )


def decoder() -> Net:
    return Net(
        lambda net, x: net.f(net.t(net.q.expand(len(x), -1, -1), tokens(net, x)).mean(1)),
        a=nn.Conv2d(3, 12, 4, 4),
        q=nn.Parameter(torch.randn(1, 3, 12)),
        t=nn.TransformerDecoderLayer(12, 2, 20, batch_first=True),
        f=nn.Linear(12, 4),
    )


def attention_without_bias() -> Net:
    return Net(
        lambda net, x: net.f((lambda t: t + net.m(t, t, t)[0])(tokens(net, x)).mean(1)),
        a=nn.Conv2d(3, 12, 4, 4),
        m=nn.MultiheadAttention(12, 2, bias=False, batch_first=True),
        f=nn.Linear(12, 4),
    )


def zero_scale() -> Net:
    return Net(
        lambda net, x: net.f(
            pooled((lambda h: (h + net.g * net.c(net.b(h).relu())).relu())(net.a(x).relu()))
        ),
        a=conv(3, 8),
        b=conv(8, 10),
        g=nn.Parameter(torch.zeros(())),
        c=conv(10, 8),
        f=nn.Linear(8, 4),
    )


def dense_block() -> Net:
    def forward(net: Net, x: Tensor) -> Tensor:
        features = [net.a(x)]
        for layer in (net.b, net.c):
            features.append(layer(torch.cat(features, 1)).relu())
        return net.f(pooled(torch.cat(features, 1)))

    return Net(forward, a=conv(3, 6), b=conv(6, 4), c=conv(10, 4), f=nn.Linear(14, 5))


def transposed() -> Net:
    return Net(
        lambda net, x: net.f(pooled(net.c(net.b(net.a(x).relu()).relu()).relu())),
        a=conv(3, 8),
        b=nn.ConvTranspose2d(8, 12, 3, 2, 1, output_padding=1, groups=4),
        c=conv(12, 8),
        f=nn.Linear(8, 4),
    )


def gated() -> Net:
    return Net(
        lambda net, x: net.f((lambda p: functional.silu(p[0]) * p[1])(net.b(pooled(net.a(x))).chunk(2, -1))),
        a=conv(3, 8),
        b=nn.Linear(8, 20),
        f=nn.Linear(10, 4),
    )


def grouped_after_concatenation() -> Net:
    return Net(
        lambda net, x: net.f(pooled(net.c(torch.cat([net.a(x).relu(), net.b(x).relu()], 1)).relu())),
        a=conv(3, 5),
        b=conv(3, 7),
        c=conv(12, 8, groups=4),
        f=nn.Linear(8, 4),
    )


def called_again() -> Net:
    return Net(
        lambda net, x: net.f(pooled(net.b(net.b(net.a(x).relu()).relu()))),
        a=conv(3, 8),
        b=conv(8, 8),
        f=nn.Linear(8, 4),
    )


def cat_of_signs() -> Net:
    return Net(
        lambda net, x: net.f(
            pooled(net.b((lambda h: torch.cat([h.relu(), (-h).relu()], 1))(net.a(x))).relu())
        ),
        a=conv(3, 6),
        b=conv(12, 8),
        f=nn.Linear(8, 4),
    )


def padded_shortcut() -> Net:
    def forward(net: Net, x: Tensor) -> Tensor:
        features = net.a(x).relu()
        shortcut = functional.pad(features[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return net.f(pooled((net.b(features) + shortcut).relu()))

    return Net(forward, a=conv(3, 6), b=conv(6, 10, stride=2), f=nn.Linear(10, 4))


CHANNELS = [
    padded_shortcut,
    encoder,
    lambda: encoder(norm_first=True),
    decoder,
    zero_scale,
    dense_block,
    transposed,
    gated,
    grouped_after_concatenation,
    called_again,
    cat_of_signs,
]
HEADS = [encoder, lambda: encoder(norm_first=True), decoder, attention_without_bias]
CASES = [(make, "channel") for make in CHANNELS] + [(make, "head") for make in HEADS]


@pytest.mark.parametrize(("make", "granularity"), CASES)
def test_a_cut_network_computes_what_the_masked_one_does(make: Callable[[], Net], granularity: str) -> None:
    torch.manual_seed(3)
    net = make().eval()
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is not pruned
        masks = pruning.prune(
            net, amount=0.5, granularity=granularity, criterion="l2", scope="layer", example_input=EXAMPLE
        )
    small = pruning.shrink(net, masks, EXAMPLE)
    assert torch.equal(torch.get_rng_state(), state)
    masked = deepcopy(net)
    pruning.apply_masks(masked, masks)
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = deepcopy(small).double()(images), masked.double()(images)
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-9
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
    fresh = resize(make().eval(), layer_widths(small))
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(fresh(images.float()), small(images.float()))


def test_a_branch_behind_a_scale_of_zero_is_cut() -> None:
    assert find_channels(zero_scale().eval(), EXAMPLE).left_whole == ()


def test_a_layer_of_which_some_units_are_not_seen_is_named_when_it_stays_whole() -> None:
    torch.manual_seed(3)
    experts = nn.ModuleList([nn.Linear(8, 6) for _ in range(3)])

    def forward(net: Net, x: Tensor) -> Tensor:
        features = pooled(net.a(x).relu())
        chosen = net.r(features).softmax(-1).topk(1)[1]
        return net.f(torch.stack([(chosen == i) * net.e[i](features).relu() for i in range(3)]).sum(0))

    net = Net(forward, a=conv(3, 8), r=nn.Linear(8, 3), e=experts, f=nn.Linear(6, 4)).eval()
    channels = find_channels(net, EXAMPLE)
    members = {m.module for g in channels.groups for m in g.members if m.side == "out"}
    assert {"r", "e.0", "e.1", "e.2"} <= members | channels.whole.keys()


def test_a_network_that_is_random_in_eval_mode_is_refused_and_the_generator_stays() -> None:
    net = Net(
        lambda net, x: net.f(functional.dropout(pooled(net.b(net.a(x).relu())), training=True)),
        a=conv(3, 8),
        b=conv(8, 6),
        f=nn.Linear(6, 4),
    ).eval()
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="other outputs when it is run again"):
        pruning.trace(net, EXAMPLE)
    assert torch.equal(torch.get_rng_state(), state)


def prune_and_shrink(net: nn.Module) -> nn.Module:
    masks = pruning.prune(net, amount=0.5, granularity="channel", criterion="l2", example_input=EXAMPLE)
    return pruning.shrink(net, masks, EXAMPLE)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    net = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 6), nn.ReLU(), nn.Flatten(), nn.Linear(384, 4)).eval()
    net[2].weight.data[0, 0, 0, 0] = value  # type: ignore[union-attr, index]
    with pytest.raises(ValueError, match=r"not finite|contain NaN"):
        prune_and_shrink(net)


def test_a_parameter_behind_a_relu_loses_its_entries_where_it_is_negative() -> None:
    net = Net(
        lambda net, x: net.f(
            net.b(torch.cat([net.token.expand(len(x), -1, -1), net.a(x)], 1).relu()).mean(1)
        ),
        a=nn.Linear(8, 6),
        token=nn.Parameter(-torch.ones(1, 1, 6)),
        b=nn.Linear(6, 5),
        f=nn.Linear(5, 4),
    ).eval()
    assert [group.name for group in pruning.trace(net, torch.zeros(2, 3, 8))] == ["a", "b"]
