"""The networks of the literature on small images: parameters, MACs and outputs are those of others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import models
import pruning
from models.torchvision_compat import models as torchvision_models
from orchestrator.trial.metrics import profile

CIFAR = (3, 32, 32)


def built(name: str, shape: tuple[int, int, int] = CIFAR, classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return models.build(name, input_shape=shape, num_classes=classes)


def parameters(net: nn.Module) -> int:
    return sum(values.numel() for values in net.parameters())


def with_drawn_norms(net: nn.Module) -> nn.Module:
    """The network in eval mode with statistics, scales and shifts that hide nothing."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 2)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_()
    return net.eval()


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        # He et al. (2016), table 6
        ("resnet(depth=20)", 0.27),
        ("resnet(depth=32)", 0.46),
        ("resnet(depth=44)", 0.66),
        ("resnet(depth=56)", 0.85),
        ("resnet(depth=110)", 1.7),
        # Zagoruyko & Komodakis (2016), tables 2 to 5; 16-4 in their repository
        ("wide_resnet(depth=16, width=4)", 2.7),
        ("wide_resnet(depth=40, width=1)", 0.6),
        ("wide_resnet(depth=40, width=2)", 2.2),
        ("wide_resnet(depth=40, width=4)", 8.9),
        ("wide_resnet(depth=16, width=8)", 11.0),
        ("wide_resnet(depth=22, width=8)", 17.2),
        ("wide_resnet(depth=28, width=10)", 36.5),
        # Kuang Liu's networks of the same layers; Li et al. (2017): 1.5e7 for VGG-16
        ("resnet18", 11.2),
        ("resnet50", 23.5),
        ("vgg(depth=16)", 14.7),
        ("vgg(depth=19)", 20.0),
    ],
)
def test_parameters_are_those_of_the_papers(name: str, millions: float) -> None:
    with torch.device("meta"):
        count = parameters(built(name))
    digits = len(str(millions).partition(".")[2])
    assert round(count / 1e6, digits) == millions


def by_hand(depth: int, shortcut: str) -> tuple[int, int]:
    """Parameters and MACs of a CIFAR ResNet, layer by layer as the paper lists them."""
    weights, macs = 9 * 3 * 16, 9 * 3 * 16 * 32 * 32
    norms = [16]
    ins = 16
    for width, side in ((16, 32), (32, 16), (64, 8)):
        for _ in range((depth - 2) // 6):
            layers = [9 * ins * width, 9 * width * width]
            norms += [width, width]
            if shortcut == "B" and ins != width:
                layers.append(ins * width)
                norms.append(width)
            weights += sum(layers)
            macs += sum(layers) * side * side
            ins = width
    return weights + 2 * sum(norms) + 64 * 10 + 10, macs + 64 * 10


@pytest.mark.parametrize(
    ("depth", "shortcut", "expected"),
    [
        (20, "A", (269_722, 40_551_040)),
        (56, "A", (853_018, 125_485_696)),
        # 0.27 M parameters and 40.81 M MACs in chenyaofo's table of CIFAR models
        (20, "B", (272_474, 40_813_184)),
        (110, "A", (1_727_962, 252_887_680)),
    ],
)
def test_a_cifar_resnet_is_as_counted_by_hand(depth: int, shortcut: str, expected: tuple[int, int]) -> None:
    net = built(f"resnet(depth={depth}, shortcut={shortcut!r})")
    assert (parameters(net), profile(net, CIFAR).total_macs) == by_hand(depth, shortcut) == expected


def test_vgg16_has_the_macs_of_the_pruning_papers() -> None:
    """3.13e8 in Li et al. (2017): its thirteen convolutions and the linear layer."""
    net = built("vgg")
    assert profile(net, CIFAR).total_macs == 313_201_664
    convolutions = [at for at in net.modules() if isinstance(at, nn.Conv2d)]
    assert (len(convolutions), sum(isinstance(at, nn.Linear) for at in net.modules())) == (13, 1)


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_vgg_has_the_convolutions_of_torchvision(depth: int) -> None:
    ours = with_drawn_norms(built(f"vgg(depth={depth})").get_submodule("features"))
    with torch.device("meta"):  # its linear layers have 120 million weights, which nobody reads here
        theirs = getattr(torchvision_models, f"vgg{depth}_bn")(weights=None, init_weights=False).features
    theirs = theirs.to_empty(device="cpu").eval()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    biases = {f"{at}.bias" for at, layer in theirs.named_modules() if isinstance(layer, nn.Conv2d)}
    assert (set(missing), unexpected) == (biases, [])
    for at in biases:
        theirs.get_parameter(at).data.zero_()  # ours have none: a norm follows
    images = torch.rand(2, *CIFAR)
    torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize("side", [8, 28, 31, 32])
def test_vgg_pools_while_its_map_has_two_pixels(side: int) -> None:
    net = built("vgg(depth=11, width=2)", (1, side, side)).eval()
    features = net.get_submodule("features")(torch.rand(2, 1, side, side))
    assert features.shape == (2, 16, 1, 1)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_is_that_of_torchvision_with_another_stem(name: str) -> None:
    ours = with_drawn_norms(built(name))
    theirs = getattr(torchvision_models, name)(weights=None, num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(2, *CIFAR)
    torch.testing.assert_close(ours(images), theirs.eval()(images))
    assert profile(ours, CIFAR).total_macs == profile(theirs, CIFAR).total_macs


def test_mobilenet_is_that_of_torchvision_with_two_strides_less() -> None:
    ours = with_drawn_norms(built("mobilenet_v2"))
    theirs = torchvision_models.mobilenet_v2(weights=None, num_classes=10)
    theirs.features[0][0].stride = theirs.features[2].conv[1][0].stride = (1, 1)
    assert parameters(theirs) == 3_504_872 - 990 * 1281 == parameters(ours)  # torchvision's own number
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(2, *CIFAR)
    torch.testing.assert_close(ours(images), theirs.eval()(images))
    assert profile(ours, CIFAR).total_macs == profile(theirs, CIFAR).total_macs


@pytest.mark.parametrize("width", [0.35, 0.5, 0.75, 1.0, 1.4])
def test_the_widths_of_mobilenet_are_those_of_torchvision(width: float) -> None:
    theirs = torchvision_models.mobilenet_v2(weights=None, num_classes=10, width_mult=width)
    assert [tuple(tensor.shape) for tensor in built(f"mobilenet_v2(width={width})").parameters()] == [
        tuple(tensor.shape) for tensor in theirs.parameters()
    ]


def test_a_vit_computes_what_that_of_torchvision_computes() -> None:
    ours = built("vit(dim=24, depth=2, heads=3, patch=4)").eval()
    theirs = torchvision_models.VisionTransformer(32, 4, 2, 3, 24, 96, num_classes=10).eval()
    names = {
        "class_token": "token",
        "conv_proj": "patches",
        "encoder.pos_embedding": "positions",
        "encoder.ln": "norm",
        "heads.head": "output",
    }
    for index in (0, 1):
        theirs_block, block = f"encoder.layers.encoder_layer_{index}", f"blocks.{index}"
        names |= {f"{theirs_block}.ln_1": f"{block}.norm1", f"{theirs_block}.ln_2": f"{block}.norm2"}
        names |= {f"{theirs_block}.mlp.0": f"{block}.fc1", f"{theirs_block}.mlp.3": f"{block}.fc2"}
        names |= {f"{theirs_block}.self_attention.out_proj": f"{block}.attention.proj"}
    state: dict[str, Tensor] = {}
    for at, tensor in theirs.state_dict().items():
        if ".in_proj_" in at:
            block = f"blocks.{at.split('encoder_layer_')[1][0]}.attention"
            kind = at.rpartition("_")[2]
            state |= {f"{block}.{k}.{kind}": part for k, part in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            theirs_name = next(name for name in names if at == name or at.startswith(f"{name}."))
            state[names[theirs_name] + at.removeprefix(theirs_name)] = tensor
    for tensor in state.values():
        nn.init.normal_(tensor, std=0.3)  # in place: some of theirs start at zero
    ours.load_state_dict(state)
    images = torch.rand(2, *CIFAR)
    torch.testing.assert_close(ours(images), theirs(images))


def test_a_vit_without_a_head_computes_what_the_masked_one_computes() -> None:
    """The rows of one head in q, k and v, and its columns in proj, are taken out."""
    net = built("vit(dim=12, depth=1, heads=3, patch=4)").eval()
    attention = net.get_submodule("blocks.0.attention")
    images = torch.rand(2, *CIFAR)
    with torch.no_grad():
        attention.proj.weight[:, 4:8] = 0  # the second head is not read
        masked = net(images)
        kept = [0, 1, 2, 3, 8, 9, 10, 11]
        for layer in (attention.q, attention.k, attention.v):
            layer.weight, layer.bias = nn.Parameter(layer.weight[kept]), nn.Parameter(layer.bias[kept])
        attention.proj.weight = nn.Parameter(attention.proj.weight[:, kept])
        attention.num_heads = 2
        torch.testing.assert_close(net(images), masked)
        # And the last column inside of every value.
        narrow = [0, 1, 2, 4, 5, 6]
        attention.proj.weight[:, [3, 7]] = 0
        masked = net(images)
        attention.v.weight = nn.Parameter(attention.v.weight[narrow])
        attention.v.bias = nn.Parameter(attention.v.bias[narrow])
        attention.proj.weight = nn.Parameter(attention.proj.weight[:, narrow])
        torch.testing.assert_close(net(images), masked)


def test_a_wide_block_is_the_authors_formula() -> None:
    """`block` of the authors' resnet.py, with its names on the right."""
    F = nn.functional
    block = with_drawn_norms(
        models.build("wide_resnet(depth=10, width=1)", input_shape=CIFAR, num_classes=2)
    ).blocks
    x = torch.rand(2, 16, 8, 8)
    for module, stride in zip(block, (1, 2, 2), strict=True):
        bn = [
            lambda x, norm=norm: F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
            for norm in (module.bn1, module.bn2)
        ]
        o1 = F.relu(bn[0](x))
        y = F.conv2d(o1, module.conv1.weight, stride=stride, padding=1)
        o2 = F.relu(bn[1](y))
        z = F.conv2d(o2, module.conv2.weight, stride=1, padding=1)
        shortcut = x if module.shortcut is None else F.conv2d(o1, module.shortcut.weight, stride=stride)
        torch.testing.assert_close(module(x), z + shortcut)
        x = module(x)


def test_shortcut_a_takes_every_second_pixel_and_pads_with_zeros() -> None:
    shortcut = built("resnet").get_submodule("layer2.0.downsample")
    x = torch.rand(2, 16, 8, 8)
    out = shortcut(x, 32)
    assert torch.equal(out[:, :16], x[:, :, ::2, ::2])
    assert not out[:, 16:].any()
    assert list(shortcut.parameters()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet(depth=21)", r"depth is 21; give 6n \+ 2, such as 20"),
        ("resnet(depth=2)", r"depth is 2; give 6n \+ 2"),
        ("resnet(depth=20.0)", r"depth is 20.0; give a positive integer"),
        ("resnet(shortcut='C')", r"shortcut is 'C'; give A or B"),
        ("vgg(depth=12)", r"depth is 12; give 11, 13, 16 or 19"),
        ("vgg(depth=11.0)", r"depth is 11.0; give 11, 13"),
        ("vgg(width=0)", r"width is 0; give a positive integer"),
        ("wide_resnet(depth=20)", r"depth is 20; give 6n \+ 4"),
        ("wide_resnet(width=True)", r"width is True; give a positive integer"),
        ("mobilenet_v2(width=0)", r"width is 0; give a number above 0"),
        ("mobilenet_v2(width='1')", r"width is '1'; give a number above 0"),
        ("vit(dim=64, heads=3)", r"dim is 64 and heads is 3; give a multiple of heads"),
        ("vit(heads=0)", r"heads is 0; give a positive integer"),
        ("vit(patch=3)", r"takes images whose sides are multiples of 3, not 32x32"),
        ("vit(patch=64)", r"takes images whose sides are multiples of 64, not 32x32"),
    ],
)
def test_a_bad_option_says_what_is_allowed(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(name)


def test_equal_options_have_one_text() -> None:
    assert models.resolve("mobilenet_v2(width=1)") == ("mobilenet_v2", {"width": 1.0})
    assert type(models.resolve("mobilenet_v2(width=1)")[1]["width"]) is float


SMALL = (
    "resnet(depth=8)",
    "resnet(depth=8, shortcut='B')",
    "vgg(depth=11, width=4)",
    "wide_resnet(depth=10, width=1)",
    "mobilenet_v2(width=0.35)",
    "vit(dim=12, depth=1, heads=3, patch=4)",
)


@pytest.mark.filterwarnings("ignore:.*not pruned")
@pytest.mark.parametrize("name", SMALL)
def test_half_of_the_weights_or_units_are_pruned_exactly(name: str) -> None:
    net = built(name, (1, 8, 8))
    weights = pruning.prune(net, amount=0.5)
    alive = sum(int(mask.sum()) for mask in weights.values())
    count = sum(mask.numel() for mask in weights.values())
    assert count - alive == int(0.5 * count + 0.5)
    units = pruning.prune(
        net,
        amount=0.5,
        granularity="unit",
        criterion="l2",
        scope="layer",
        example_input=torch.rand(2, 1, 8, 8),
    )
    rows = {at: mask.flatten(1).any(1) for at, mask in units.items() if mask.dim() > 1}
    assert rows
    for at, is_alive in rows.items():
        is_output = is_alive.numel() == 10
        assert int((~is_alive).sum()) == (0 if is_output else int(0.5 * is_alive.numel() + 0.5)), at


@pytest.mark.filterwarnings("ignore:.*not pruned")
@pytest.mark.parametrize("name", SMALL)
def test_the_cut_network_computes_what_the_masked_one_computes(name: str) -> None:
    net = with_drawn_norms(built(name, (1, 8, 8))).double()
    images = torch.rand(4, 1, 8, 8).double()
    masks = pruning.prune(
        net, amount=0.5, granularity="channel", criterion="l2", scope="layer", example_input=images
    )
    cut = pruning.shrink(net, masks, images)
    pruning.apply_masks(net, masks)
    assert parameters(cut) < parameters(net)
    torch.testing.assert_close(cut.eval()(images), net(images))
