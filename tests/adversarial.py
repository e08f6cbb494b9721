"""Small networks that pruning tools stumble over, each with what is to come of cutting its channels.

`cut`: half of its channels must be cut out, with equal outputs. `refused`: a ValueError that names a layer.
`either`: one of the two, as long as nothing is silently wrong. Images are [N, 1, 6, 6].
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

Outcome = Literal["cut", "refused", "either"]
IMAGE = (1, 6, 6)


@dataclass(frozen=True)
class Case:
    """`unit`: what is to come of cutting out dead units."""

    name: str
    make: Callable[[], nn.Module]
    channel: Outcome
    unit: Outcome


class Graph(nn.Module):
    """Modules and parameters under names, in the order in which they are given, and a forward function."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def conv(ins: int, outs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(ins, outs, kernel, padding=kernel // 2, **options)


def pooled(h: Tensor) -> Tensor:
    return h.mean((2, 3))


CASES: list[Case] = []


def case(
    channel: Outcome, unit: Outcome | None = None
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    def add(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        CASES.append(Case(make.__name__, make, channel, unit or channel))
        return make

    return add


def three(middle: Callable[[Any, Tensor, Tensor], Tensor], ins: int = 8, **more: Any) -> nn.Module:
    """a -> middle(self, x, relu(a(x))) -> b -> average -> out; `ins` channels reach b."""
    return Graph(
        lambda s, x: s.out(pooled(s.b(middle(s, x, s.a(x).relu())).relu())),
        **{"a": conv(1, 8), "b": conv(ins, 6), "out": nn.Linear(6, 5), **more},
    )


# concatenations


@case("either")
def image_before_features() -> nn.Module:
    return Graph(
        lambda s, x: s.out(pooled(s.b(torch.cat([s.pre(x), s.a(s.pre(x)).relu()], 1)).relu())),
        pre=nn.AvgPool2d(1), a=conv(1, 8), b=conv(9, 6), out=nn.Linear(6, 5),
    )  # fmt: skip


@case("either")
def image_after_features() -> nn.Module:
    return three(lambda s, x, h: torch.cat([h, x], 1), 9)


@case("cut")
def two_branches() -> nn.Module:
    return three(lambda s, x, h: torch.cat([h, s.c(x).relu()], 1), 12, c=conv(1, 4))


@case("cut")
def two_branches_the_other_way() -> nn.Module:
    return three(lambda s, x, h: torch.cat([s.c(x).relu(), h], 1), 12, c=conv(1, 4))


@case("either")
def features_twice() -> nn.Module:
    return three(lambda s, x, h: torch.cat([h, h], 1), 16)


@case("either")
def features_beside_their_image_and_themselves() -> nn.Module:
    return three(lambda s, x, h: torch.cat([x, h, x, h], 1), 18)


@case("either")
def constant_channels_before() -> nn.Module:
    return three(lambda s, x, h: torch.cat([torch.ones_like(x), h], 1), 9)


@case("either")
def concatenated_in_two_steps() -> nn.Module:
    return three(lambda s, x, h: torch.cat([torch.cat([s.c(x), x], 1), h], 1), 13, c=conv(1, 4))


@case("either")
def stacked_and_flattened() -> nn.Module:
    return three(lambda s, x, h: torch.stack([h, s.c(x).relu()], 2).flatten(1, 2), 16, c=conv(1, 8))


# moved channels


@case("cut", "either")
def shuffled() -> nn.Module:
    return three(lambda s, x, h: F.channel_shuffle(h, 2))


@case("cut", "either")
def flipped() -> nn.Module:
    return three(lambda s, x, h: h.flip(1))


@case("cut", "either")
def rolled() -> nn.Module:
    return three(lambda s, x, h: h.roll(3, 1))


@case("cut", "either")
def reversed_by_index() -> nn.Module:
    return three(lambda s, x, h: h[:, [7, 1, 5, 3, 4, 2, 6, 0]])


@case("cut", "either")
def index_select_of_a_buffer() -> nn.Module:
    return three(lambda s, x, h: h.index_select(1, s.order), order=torch.tensor([3, 1, 2, 0, 7, 6, 5, 4]))


@case("cut", "either")
def interleaved_by_stack() -> nn.Module:
    return three(lambda s, x, h: torch.stack([h[:, :4], h[:, 4:]], 2).flatten(1, 2))


@case("cut", "either")
def channels_last_and_flattened() -> nn.Module:
    return Graph(
        lambda s, x: s.out(s.lin(s.a(x).relu().permute(0, 2, 3, 1).flatten(1)).relu()),
        a=conv(1, 8), lin=nn.Linear(8 * 36, 6), out=nn.Linear(6, 5),
    )  # fmt: skip


@case("cut")
def flattened_maps() -> nn.Module:
    return Graph(
        lambda s, x: s.out(s.lin(s.a(x).relu().flatten(1)).relu()),
        a=conv(1, 8), lin=nn.Linear(8 * 36, 6), out=nn.Linear(6, 5),
    )  # fmt: skip


@case("cut", "either")
def transposed_maps() -> nn.Module:
    return Graph(
        lambda s, x: s.out(s.lin(s.a(x).relu().flatten(2).transpose(1, 2).flatten(1)).relu()),
        a=conv(1, 8), lin=nn.Linear(8 * 36, 6), out=nn.Linear(6, 5),
    )  # fmt: skip


@case("cut", "either")
def pixel_shuffle() -> nn.Module:
    return three(lambda s, x, h: F.pixel_shuffle(h, 2), 2)


@case("cut", "either")
def pixel_unshuffle() -> nn.Module:
    return three(lambda s, x, h: F.pixel_unshuffle(h, 2), 32)


# mixed channels


@case("cut")
def softmax_over_channels() -> nn.Module:
    return three(lambda s, x, h: h.softmax(1))


@case("cut")
def log_softmax_over_channels() -> nn.Module:
    return three(lambda s, x, h: h.log_softmax(1))


@case("cut", "either")
def functional_layer_norm() -> nn.Module:
    return three(lambda s, x, h: F.layer_norm(h, h.shape[1:]))


@case("cut", "either")
def functional_group_norm() -> nn.Module:
    return three(lambda s, x, h: F.group_norm(h, 2))


@case("cut", "either")
def divided_by_the_mean_of_channels() -> nn.Module:
    return three(lambda s, x, h: h / (h.mean(1, keepdim=True) + 1))


@case("either")
def divided_by_the_norm_of_channels() -> nn.Module:
    return three(lambda s, x, h: F.normalize(h + 0.1, dim=1))


@case("either")
def weak_gate_of_all_channels() -> nn.Module:
    return three(lambda s, x, h: h * (1 + 2e-5 * h.std(1, keepdim=True)))


@case("cut")  # the dead add nothing to those behind them
def cumulative_sum() -> nn.Module:
    return three(lambda s, x, h: h.cumsum(1))


@case("cut", "either")
def fixed_mixing_matrix() -> nn.Module:
    return three(lambda s, x, h: torch.einsum("oc,nchw->nohw", s.matrix, h), matrix=torch.randn(8, 8))


@case("cut", "either")
def gram_matrix() -> nn.Module:
    return Graph(
        lambda s, x: s.out(s.lin((lambda h: (h @ h.transpose(1, 2)).flatten(1))(s.a(x).flatten(2))).relu()),
        a=conv(1, 4), lin=nn.Linear(16, 6), out=nn.Linear(6, 5),
    )  # fmt: skip


@case("either")
def glu() -> nn.Module:
    return three(lambda s, x, h: F.glu(h, 1), 4)


@case("either")
def maxout() -> nn.Module:
    return three(lambda s, x, h: h.unflatten(1, (4, 2)).amax(2), 4)


@case("either")
def largest_channel_is_taken_away() -> nn.Module:
    return three(lambda s, x, h: h - h.amax(1, keepdim=True))


@case("cut", "either")
def attention_over_channels() -> nn.Module:
    return three(lambda s, x, h: (h.flatten(2) @ h.flatten(2).mT).softmax(-1).matmul(h.flatten(2)).view_as(h))


# shapes of fixed size


@case("cut", "either")
def literal_view() -> nn.Module:
    return Graph(
        lambda s, x: s.out(pooled(s.b(s.lin(x.flatten(1)).view(-1, 4, 4, 4)).relu())),
        lin=nn.Linear(36, 64), b=conv(4, 6), out=nn.Linear(6, 5),
    )  # fmt: skip


@case("either")
def view_of_a_fixed_width() -> nn.Module:
    return Graph(
        lambda s, x: s.out(s.lin(s.a(x).relu().view(len(x), 8 * 36)).relu()),
        a=conv(1, 8), lin=nn.Linear(8 * 36, 6), out=nn.Linear(6, 5),
    )  # fmt: skip


@case("either")
def scaled_by_a_buffer() -> nn.Module:
    return three(lambda s, x, h: h * s.scale, scale=torch.rand(1, 8, 1, 1) + 0.5)


@case("cut", "either")
def scaled_by_a_parameter() -> nn.Module:
    return three(lambda s, x, h: h * s.scale, scale=nn.Parameter(torch.rand(1, 8, 1, 1) + 0.5))


@case("cut", "refused")
def shifted_by_a_parameter() -> nn.Module:
    return three(lambda s, x, h: h + s.shift, shift=nn.Parameter(torch.rand(1, 8, 1, 1) + 0.5))


@case("either")
def shifted_by_a_parameter_that_starts_at_zero() -> nn.Module:
    return three(lambda s, x, h: h + s.shift, shift=nn.Parameter(torch.zeros(1, 8, 1, 1)))


@case("either")
def repeated() -> nn.Module:
    return three(lambda s, x, h: h.repeat(1, 2, 1, 1), 16)


@case("either")
def repeat_interleaved() -> nn.Module:
    return three(lambda s, x, h: h.repeat_interleave(2, 1), 16)


@case("cut", "either")
def padded_channels() -> nn.Module:
    return three(lambda s, x, h: F.pad(h, (0, 0, 0, 0, 2, 2)), 12)


@case("cut", "either")
def some_channels_only() -> nn.Module:
    return three(lambda s, x, h: h[:, 2:7], 5)


@case("either")
def chunked() -> nn.Module:
    return three(lambda s, x, h: s.c(h.chunk(2, 1)[0]) + s.d(h.chunk(2, 1)[1]), c=conv(4, 8), d=conv(4, 8))


@case("cut", "either")
def fixed_depthwise_kernel() -> nn.Module:
    return three(lambda s, x, h: F.conv2d(h, s.blur, padding=1, groups=8), blur=torch.ones(8, 1, 3, 3) / 9)


# silence


@case("cut", "refused")
def broadcast_image() -> nn.Module:
    return three(lambda s, x, h: h + x)


@case("cut", "refused")
def sigmoid() -> nn.Module:
    return three(lambda s, x, h: (h - 1).sigmoid())


@case("cut")  # the norm's entries go with the unit, at both of its calls
def one_norm_called_twice() -> nn.Module:
    return three(lambda s, x, h: s.norm(s.norm(h).sigmoid()), norm=nn.BatchNorm2d(8))


@case("cut")
def gate_of_the_image() -> nn.Module:
    return three(lambda s, x, h: h * x.sigmoid())


@case("either")
def squeeze_and_excitation() -> nn.Module:
    return three(
        lambda s, x, h: h * s.up(s.down(pooled(h)).relu()).sigmoid()[:, :, None, None],
        down=nn.Linear(8, 4), up=nn.Linear(4, 8),
    )  # fmt: skip


@case("cut")
def residual() -> nn.Module:
    return three(lambda s, x, h: h + s.c(h).relu(), c=conv(8, 8))


@case("either")
def residual_with_a_zero_scale() -> nn.Module:
    norm = nn.BatchNorm2d(8)
    nn.init.zeros_(norm.weight)
    return three(lambda s, x, h: h + s.norm(s.c(h)).flip(1), c=conv(8, 8), norm=norm)


# layers of other kinds


@case("cut", "either")
def grouped() -> nn.Module:
    return three(lambda s, x, h: s.c(h).relu(), c=conv(8, 8, groups=2))


@case("cut", "either")
def depthwise() -> nn.Module:
    return three(lambda s, x, h: s.c(h).relu(), c=conv(8, 8, groups=8))


@case("cut", "either")
def transposed_convolution() -> nn.Module:
    return three(lambda s, x, h: s.c(h), c=nn.ConvTranspose2d(8, 8, 2, 2))


@case("cut", "either")
def convolution_in_one_dimension() -> nn.Module:
    return three(lambda s, x, h: s.c(h.flatten(2)).view_as(h), c=nn.Conv1d(8, 8, 3, padding=1))


@case("cut", "either")
def group_norm_module() -> nn.Module:
    return three(lambda s, x, h: s.norm(h), norm=nn.GroupNorm(2, 8))


@case("cut", "either")
def prelu() -> nn.Module:
    return three(lambda s, x, h: s.act(h - 0.1), act=nn.PReLU(8))


@case("either")
def instance_norm_module() -> nn.Module:
    return three(lambda s, x, h: s.norm(h), norm=nn.InstanceNorm2d(8, affine=True))


@case("either")
def attention() -> nn.Module:
    return three(
        lambda s, x, h: s.att(*[h.flatten(2).mT] * 3)[0].mT.reshape_as(h),
        att=nn.MultiheadAttention(8, 2, batch_first=True),
    )  # fmt: skip


@case("either")
def lstm() -> nn.Module:
    return Graph(
        lambda s, x: s.out(s.lstm(s.a(x).flatten(2).mT)[0][:, -1]),
        a=conv(1, 8), lstm=nn.LSTM(8, 6, batch_first=True), out=nn.Linear(6, 5),
    )  # fmt: skip


@case("either")
def bilinear() -> nn.Module:
    return Graph(
        lambda s, x: s.out(s.bi(s.a(x.flatten(1)).relu(), s.b(x.flatten(1)).relu())),
        a=nn.Linear(36, 6), b=nn.Linear(36, 4), bi=nn.Bilinear(6, 4, 5), out=nn.Linear(5, 5),
    )  # fmt: skip


@case("either")
def functional_convolution_of_a_parameter() -> nn.Module:
    return three(
        lambda s, x, h: F.conv2d(h, s.kernel, padding=1), kernel=nn.Parameter(torch.randn(8, 8, 3, 3))
    )


@case("either")
def functional_use_of_another_layers_weight() -> nn.Module:
    return three(lambda s, x, h: F.conv2d(h, s.b.weight, padding=1).repeat(1, 2, 1, 1)[:, :8])


# shared and tied


@case("either")
def shared_module() -> nn.Module:
    return three(lambda s, x, h: s.c(s.c(h).relu()).relu(), c=conv(8, 8))


@case("either")
def tied_in_sequence() -> nn.Module:
    net = three(lambda s, x, h: s.d(s.c(h).relu()).relu(), c=conv(8, 8), d=conv(8, 8))
    net.d.weight = net.c.weight
    return net


@case("either")
def tied_in_parallel() -> nn.Module:
    net = three(lambda s, x, h: s.c(x).relu() + s.d(x).relu(), c=conv(1, 8), d=conv(1, 8))
    net.d.weight = net.c.weight
    return net


@case("either")
def tied_to_the_head() -> nn.Module:
    net = Graph(lambda s, x: s.out(s.a(x.flatten(1)[:, :5]).relu()), a=nn.Linear(5, 5), out=nn.Linear(5, 5))
    net.out.weight = net.a.weight
    return net


@case("either")
def autoencoder_with_its_own_transpose() -> nn.Module:
    return Graph(
        lambda s, x: s.out(F.linear(s.a(x.flatten(1)).relu(), s.a.weight.t())),
        a=nn.Linear(36, 8), out=nn.Linear(36, 5),
    )  # fmt: skip


# weights that are computed


class Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(input, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class Binary(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, torch.where(self.weight >= 0, 1.0, -1.0), self.bias)


class Centred(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight - self.weight.mean(), self.bias)


class SamePadding(nn.Conv2d):
    """Pads by itself; its weight is what it convolves with."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(F.pad(input, (1, 1, 1, 1)), self.weight, self.bias)


@case("refused")
def standardised_weight() -> nn.Module:
    return three(lambda s, x, h: h, b=Standardised(8, 6, 3, padding=1))


@case("refused")
def binary_weight() -> nn.Module:
    return Graph(
        lambda s, x: s.out(s.b(s.a(x.flatten(1)).relu()).relu()),
        a=nn.Linear(36, 8), b=Binary(8, 6), out=nn.Linear(6, 5),
    )  # fmt: skip


@case("refused")
def centred_weight() -> nn.Module:
    return Graph(
        lambda s, x: s.out(s.b(s.a(x.flatten(1)).relu()).relu()),
        a=nn.Linear(36, 8), b=Centred(8, 6), out=nn.Linear(6, 5),
    )  # fmt: skip


@case("cut")
def subclass_that_pads() -> nn.Module:
    return three(lambda s, x, h: h, b=SamePadding(8, 6, 3))


@case("refused")
def weight_norm() -> nn.Module:
    return three(lambda s, x, h: h, b=parametrizations.weight_norm(conv(8, 6)))


@case("refused")
def spectral_norm() -> nn.Module:
    return three(lambda s, x, h: h, a=parametrizations.spectral_norm(conv(1, 8)))


@case("refused")
def torchs_own_masks() -> nn.Module:
    net = three(lambda s, x, h: h)
    prune.l1_unstructured(net.b, "weight", amount=0.3)
    return net


# order of registration


@case("cut")
def head_first() -> nn.Module:
    return Graph(
        lambda s, x: s.out(s.b(s.a(x.flatten(1)).relu()).relu()),
        out=nn.Linear(6, 5), a=nn.Linear(36, 8), b=nn.Linear(8, 6),
    )  # fmt: skip


@case("cut")
def head_in_the_middle_and_norms_behind() -> nn.Module:
    return Graph(
        lambda s, x: s.out(pooled(s.bn_b(s.b(s.bn_a(s.a(x)).relu())).relu())),
        b=conv(8, 6), out=nn.Linear(6, 5), a=conv(1, 8), bn_b=nn.BatchNorm2d(6), bn_a=nn.BatchNorm2d(8),
    )  # fmt: skip


@case("cut")
def convolutions_in_one_list_and_norms_in_another() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        for layer, norm in zip(s.convs, s.norms, strict=True):
            x = norm(layer(x)).relu()
        return s.out(pooled(x))

    return Graph(
        forward,
        convs=nn.ModuleList([conv(1, 8), conv(8, 8), conv(8, 8)]),
        norms=nn.ModuleList([nn.BatchNorm2d(8) for _ in range(3)]),
        out=nn.Linear(8, 5),
    )


@case("either")
def two_heads_added() -> nn.Module:
    return Graph(
        lambda s, x: s.one(s.a(x.flatten(1)).relu()) + s.two(x.flatten(1)),
        two=nn.Linear(36, 5), one=nn.Linear(8, 5), a=nn.Linear(36, 8),
    )  # fmt: skip


@case("either")
def unused_layer() -> nn.Module:
    return three(lambda s, x, h: h, spare=nn.Linear(7, 9))


@case("either")
def convolution_as_the_head() -> nn.Module:
    return Graph(lambda s, x: pooled(s.out(s.a(x).relu())), out=conv(8, 5), a=conv(1, 8))


# what cannot be run, copied or compared


@case("refused")
def several_outputs() -> nn.Module:
    return Graph(
        lambda s, x: (s.out(s.a(x.flatten(1)).relu()), s.aux(x.flatten(1))),
        a=nn.Linear(36, 8), out=nn.Linear(8, 5), aux=nn.Linear(36, 5),
    )  # fmt: skip


@case("refused")
def outputs_by_name() -> nn.Module:
    return Graph(
        lambda s, x: {"logits": s.out(s.a(x.flatten(1)).relu())}, a=nn.Linear(36, 8), out=nn.Linear(8, 5)
    )


@case("refused", "either")
def always_dropping_out() -> nn.Module:
    return three(lambda s, x, h: F.dropout(h, 0.5))


@case("either")
def path_by_value() -> nn.Module:
    return three(lambda s, x, h: h if float(h.mean()) > 0.2 else h.flip(1))


@case("either")
def path_of_images_without_negative_values() -> nn.Module:
    return three(lambda s, x, h: h.flip(1) if x.min() >= 0 else h)


@case("either")
def path_of_large_images() -> nn.Module:
    def turned(s: Any, x: Tensor, h: Tensor) -> Tensor:
        return torch.where(x.mean((1, 2, 3), keepdim=True) > 5, h.flip(1), h)

    return three(turned)


@case("cut")
def integer_parameter() -> nn.Module:
    return three(lambda s, x, h: h * int(s.times), times=nn.Parameter(torch.tensor(2), requires_grad=False))


@case("refused")
def without_layers() -> nn.Module:
    return Graph(lambda s, x: x.flatten(1) * s.scale, scale=nn.Parameter(torch.ones(36)))


@case("refused")
def lazy() -> nn.Module:
    return Graph(lambda s, x: s.out(s.a(x.flatten(1))), a=nn.LazyLinear(8), out=nn.LazyLinear(5))


@case("refused")
def on_meta() -> nn.Module:
    with torch.device("meta"):
        return three(lambda s, x, h: h)


@case("refused")
def wrong_images() -> nn.Module:
    return Graph(lambda s, x: s.out(s.a(x).relu()), a=nn.Linear(7, 8), out=nn.Linear(8, 5))


@case("either")
def half_precision() -> nn.Module:
    return three(lambda s, x, h: h).to(torch.bfloat16)


# more of what people bring


@case("cut")
def convolutions_that_start_alike() -> nn.Module:
    """Branches that answer with the same numbers: their norms are told apart all the same."""
    branch = nn.Sequential(conv(1, 4), nn.BatchNorm2d(4))
    return Graph(
        lambda s, x: s.out(pooled(torch.cat([s.left(x), s.right(x)], 1).relu())),
        left=branch, right=deepcopy(branch), out=nn.Linear(8, 5),
    )  # fmt: skip


@case("cut")
def called_by_keyword() -> nn.Module:
    return three(lambda s, x, h: s.norm(input=s.c(input=h)), c=conv(8, 8), norm=nn.BatchNorm2d(8))


@case("cut")
def prelu_of_one_slope() -> nn.Module:
    return three(lambda s, x, h: s.act(s.c(h)), c=conv(8, 8), act=nn.PReLU())


@case("cut")
def instance_norm_without_scales() -> nn.Module:
    return three(lambda s, x, h: s.norm(h), norm=nn.InstanceNorm2d(8))


@case("cut")
def head_that_runs_in_training_alone() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Any:
        h = s.a(x).relu()
        logits = s.out(pooled(s.b(h).relu()))
        return (logits, s.aux(pooled(h))) if s.training else logits

    return Graph(forward, a=conv(1, 8), b=conv(8, 6), aux=nn.Linear(8, 5), out=nn.Linear(6, 5))


@case("cut")
def changes_its_images_in_place() -> nn.Module:
    return three(lambda s, x, h: h * x.sub_(0.5).sigmoid())


@case("either", "refused")
def image_behind_a_threshold() -> nn.Module:
    """The image matters where it is bright, as pixels up to 255 are."""
    return three(lambda s, x, h: h + (x - 6).relu())


@case("refused")
def casts_to_float32() -> nn.Module:
    return three(lambda s, x, h: h.float())


@case("cut")
def root_of_a_small_scale() -> nn.Module:
    return three(lambda s, x, h: h * s.scale.sqrt(), scale=nn.Parameter(torch.tensor([0.02])))


@case("cut")
def one_batch_size_alone() -> nn.Module:
    return three(lambda s, x, h: h.reshape(2, 8, 6, 6))


@case("cut")
def without_gradients_in_a_part() -> nn.Module:
    return three(lambda s, x, h: h + s.c(h).relu(), c=conv(8, 8)).requires_grad_(False)


@case("refused")
def complex_logits() -> nn.Module:
    return Graph(
        lambda s, x: torch.fft.fft(s.out(s.a(x.flatten(1)))), a=nn.Linear(36, 8), out=nn.Linear(8, 5)
    )


@case("cut")
def prelu_shared_behind_two_layers() -> nn.Module:
    return three(lambda s, x, h: s.act(s.c(s.act(h - 0.1))), c=conv(8, 8), act=nn.PReLU(8))


@case("cut")
def complex_parameter() -> nn.Module:
    return three(
        lambda s, x, h: torch.fft.irfft2(torch.fft.rfft2(h) * s.filter, s=x.shape[-2:]),
        filter=nn.Parameter(torch.randn(8, 6, 4, dtype=torch.complex64)),
    )


def count_up(s: Any, h: Tensor) -> Tensor:
    s.calls += 1
    return h


@case("cut")
def counts_its_calls() -> nn.Module:
    return three(lambda s, x, h: count_up(s, h), calls=torch.tensor(0))


@case("cut")
def counts_its_calls_in_a_parameter() -> nn.Module:
    return three(lambda s, x, h: count_up(s, h), calls=nn.Parameter(torch.zeros(1), requires_grad=False))


@case("refused")
def depends_on_the_count_of_its_calls() -> nn.Module:
    return three(lambda s, x, h: count_up(s, h) * (1 + int(s.calls) % 2), calls=torch.tensor(0))


@case("cut")
def even_batches_alone() -> nn.Module:
    """Two frames for each image."""
    return three(lambda s, x, h: h.unflatten(0, (-1, 2)).flip(1).flatten(0, 1))


@case("cut")
def batch_norm_without_statistics() -> nn.Module:
    return Graph(
        lambda s, x: s.out(s.norm(s.a(x)).relu().flatten(1)),
        a=conv(1, 8), norm=nn.BatchNorm2d(8, track_running_stats=False), out=nn.Linear(8 * 36, 5),
    )  # fmt: skip
