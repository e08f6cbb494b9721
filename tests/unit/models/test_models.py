"""Networks by name: shapes, parameters counted by hand, bits, names and the text form."""

from __future__ import annotations

import pytest
import torch
import torch_pruning
from torch import Tensor, nn

import models

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]
Shape = tuple[int, int, int]


def seeded(name: str, shape: Shape, *, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return models.build(name, input_shape=shape, num_classes=10)


def on_meta(name: str, shape: Shape) -> nn.Module:
    """The same without its weights, which take longer to draw than all else."""
    with torch.device("meta"):
        return seeded(name, shape)


def parameters(net: nn.Module) -> int:
    return sum(values.numel() for values in net.parameters())


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(values, other[name]) for name, values in one.items()
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", models.BUILDERS)
def test_images_become_logits(name: str, shape: Shape) -> None:
    net = seeded(name, shape).eval()
    assert net(torch.rand(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize("name", models.BUILDERS)
def test_a_training_step_reaches_every_parameter(name: str) -> None:
    net = seeded(name, (3, 32, 32))
    nn.functional.cross_entropy(net(torch.rand(2, 3, 32, 32)), torch.tensor([0, 1])).backward()
    assert [at for at, values in net.named_parameters() if values.grad is None] == []


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("slp", (1, 28, 28), 784 * 10 + 10),
        ("mlp", (1, 28, 28), 784 * 1000 + 1000 * 1000 + 1000 * 500 + 500 * 200 + 200 * 10),  # 2 386 000
        ("mlp(widths=[256, 256], bias=True)", (1, 8, 8), 64 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10),
        # Convolutions, then a scale and a shift per channel, then the linear layer.
        ("cnn", (1, 8, 8), 9 * (1 * 32 + 32 * 64 + 64 * 128) + 2 * (32 + 64 + 128) + 128 * 10 + 10),
        ("cnn(widths=[4])", (3, 32, 32), 9 * 3 * 4 + 2 * 4 + 4 * 10 + 10),
        # torchvision's documented 7 978 856 for 1000 classes of 1024 features and a bias each; ten are left.
        ("densenet121", (3, 64, 64), 7_978_856 - 990 * 1025),  # 6 964 106
        # The stem's 3 x 64 kernels of 7x7 become 3x3.
        ("densenet121", (3, 32, 32), 7_978_856 - 990 * 1025 - 3 * 64 * (49 - 9)),  # 6 956 426
        ("densenet121", (1, 28, 28), 7_978_856 - 990 * 1025 - 3 * 64 * 49 + 64 * 9),
    ],
)
def test_parameters_are_as_counted_by_hand(name: str, shape: Shape, expected: int) -> None:
    assert parameters(on_meta(name, shape)) == expected


def test_the_mlp_has_no_biases_and_readable_names() -> None:
    names = [name for name, _ in seeded("mlp", (1, 28, 28)).named_parameters()]
    assert names == [*(f"hidden.{n}.weight" for n in range(4)), "output.weight"]


def test_the_mlp_is_linear_layers_with_relu_between() -> None:
    net, images = seeded("mlp(widths=[5, 4], bias=True)", (1, 8, 8)), torch.rand(3, 1, 8, 8)
    at = dict(net.named_parameters())
    first = (images.reshape(3, 64) @ at["hidden.0.weight"].T + at["hidden.0.bias"]).clamp(min=0)
    second = (first @ at["hidden.1.weight"].T + at["hidden.1.bias"]).clamp(min=0)
    torch.testing.assert_close(net(images), second @ at["output.weight"].T + at["output.bias"])


@pytest.mark.parametrize(("side", "pools"), [(8, 3), (16, 4), (31, 4), (32, 5)])
def test_the_cnn_pools_while_its_map_has_two_pixels(side: int, pools: int) -> None:
    net = seeded("cnn(widths=[2, 2, 2, 2, 2])", (1, side, side)).eval()
    assert sum(isinstance(module, nn.MaxPool2d) for module in net.modules()) == pools
    assert net(torch.rand(1, 1, side, side)).shape == (1, 10)


def test_the_small_stem_keeps_the_map_and_the_names() -> None:
    net = seeded("densenet121", (3, 32, 32))
    stem = nn.Sequential(
        *(net.get_submodule(f"features.{name}0") for name in ("conv", "norm", "relu", "pool"))
    )
    assert stem(torch.rand(2, 3, 32, 32)).shape == (2, 64, 32, 32)
    assert net.state_dict().keys() == on_meta("densenet121", (3, 64, 64)).state_dict().keys()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", models.BUILDERS)
def test_the_output_layer_is_the_last_weight_layer(name: str, shape: Shape) -> None:
    layers = [
        module for module in on_meta(name, shape).modules() if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    assert isinstance(layers[-1], nn.Linear)
    assert layers[-1].out_features == 10


@pytest.mark.parametrize("name", models.BUILDERS)
def test_one_seed_gives_the_same_bits_and_another_gives_others(name: str) -> None:
    first, again, other = (seeded(name, (3, 32, 32), seed=seed).state_dict() for seed in (0, 0, 1))
    assert same_bits(first, again)
    assert not same_bits(first, other)


@pytest.mark.parametrize(
    ("name", "groups"),
    [("slp", 0), ("mlp", 4), ("cnn", 3), pytest.param("densenet121", 120, marks=pytest.mark.slow)],
)
def test_channel_groups_can_be_traced(name: str, groups: int) -> None:
    net = seeded(name, (1, 8, 8)).eval()
    last = [module for module in net.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
    graph = torch_pruning.DependencyGraph().build_dependency(net, torch.rand(1, 1, 8, 8))
    assert len(list(graph.get_all_groups(ignored_layers=[last]))) == groups


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("mlp", "mlp", {}),
        (" mlp() ", "mlp", {}),
        ("torchvision.resnet18(weights=None)", "torchvision.resnet18", {"weights": None}),
        ("timm.resnet50.a1_in1k", "timm.resnet50.a1_in1k", {}),
        ("mlp(widths=[256, 256], bias=True)", "mlp", {"widths": [256, 256], "bias": True}),
        ("anything(p=-0.5, q='x', r={'a': None})", "anything", {"p": -0.5, "q": "x", "r": {"a": None}}),
    ],
)
def test_the_text_form(text: str, name: str, options: dict[str, object]) -> None:
    assert models.parse(text) == (name, options)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mlp(",
        "mlp([256])",
        "mlp(widths=[256])(bias=True)",
        "mlp(widths=range(3))",
        "mlp(bias=True, bias=False)",
        "mlp(**{'bias': True})",
        "mlp(*[1])",
        "os.system(command='true')()",
        "os.environ['HOME'].strip",
        "os.",
        "[mlp]",
        "mlp; slp",
        "mlp(widths={[]: 1})",
        "mlp\0",
        "mlp" + "(" * 900,
        "mlp(widths=[" + "1," * 1000 + "])",
        "m" * 1001,
    ],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no model; write"):
        models.parse(text)


def test_every_option_is_resolved_defaults_included() -> None:
    assert models.resolve("mlp(bias=True)") == ("mlp", {"widths": (1000, 1000, 500, 200), "bias": True})
    assert models.resolve("mlp", widths=[3]) == ("mlp", {"widths": [3], "bias": False})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("densenet", {}, r"unknown model 'densenet'; did you mean densenet121 or .*\? \(your own: path"),
        ("resnet34", {}, r"unknown model 'resnet34'; did you mean torchvision.resnet34\? \(your own"),
        ("zzz", {}, r"unknown model 'zzz'; known: slp, mlp, .*torchvision.NAME, timm.NAME \(your own"),
        ("mlp(width=[3])", {}, r"unknown option of 'mlp' 'width'; did you mean widths\?"),
        ("mlp", {"zzz": 1}, r"unknown option of 'mlp' 'zzz'; known: widths, bias"),
        ("slp", {"widths": [3]}, r"unknown option of 'slp' 'widths'; it takes none"),
        ("mlp(bias=True)", {"bias": True}, r"option 'bias' of 'mlp' is given twice"),
        ("mlp(bias=1)", {}, r"bias is 1; give True or False"),
        ("mlp(widths=[])", {}, r"widths is \[\]; give a list of positive integers"),
        ("mlp(widths=[0])", {}, r"widths is \[0\]"),
        ("cnn(widths=64)", {}, r"widths is 64"),
        ("cnn(widths=[1.5])", {}, r"widths is \[1.5\]"),
    ],
)
def test_a_bad_name_or_option_says_what_is_allowed(
    name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        models.build(name, input_shape=(1, 8, 8), num_classes=10, **options)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "message"),
    [
        ("cnn", (1, 7, 8), 10, "cnn takes images from 8x8 up, not 7x8"),
        ("densenet121", (1, 8, 7), 10, "densenet121 takes images from 8x8 up, not 8x7"),
        ("slp", (1, 0, 8), 10, r"input_shape is \(1, 0, 8\)"),
        ("slp", (8, 8), 10, r"input_shape is \(8, 8\)"),
        ("slp", (1, 8, 8), 1, "num_classes is 1; give an integer of at least 2"),
    ],
)
def test_a_bad_shape_says_what_is_allowed(name: str, shape: Shape, classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.build(name, input_shape=shape, num_classes=classes)
