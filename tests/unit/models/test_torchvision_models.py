"""torchvision's classifiers by name: sizes, channels, classes, stems and trained weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

import models
from models import torchvision_models, torchvision_weights
from models.torchvision_compat import models as torchvision

Shape = tuple[int, int, int]
DIGITS, MNIST, CIFAR, IMAGENET = (1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 224, 224)
# One of each family, a small one; with the smallest square images that it takes.
FAMILIES = {
    "alexnet": 7,
    "convnext_tiny": 32,
    "densenet121": 8,
    "efficientnet_b0": 1,
    "googlenet": 4,
    "inception_v3": 37,
    "mnasnet0_5": 1,
    "mobilenet_v2": 1,
    "mobilenet_v3_small": 1,
    "regnet_x_400mf": 1,
    "resnet18": 1,
    "shufflenet_v2_x0_5": 1,
    "squeezenet1_1": 4,
    "swin_t": 4,
    "vgg11_bn": 32,
}

TOO_LARGE = {"inception_v3": "from 37x37 up", "maxvit_t": "sides are multiples of 224, not 32x32"}


def built(name: str, shape: Shape, classes: int = 10, *, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return models.build(f"torchvision.{name}", input_shape=shape, num_classes=classes)


def on_meta(name: str, shape: Shape) -> nn.Module:
    with torch.device("meta"):
        return built(name, shape)


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(values, other[at]) for at, values in one.items())


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision_models.names())
def test_every_classifier_takes_colour_images_of_32_pixels_or_says_which(name: str) -> None:
    shape = CIFAR
    if name in TOO_LARGE:
        with pytest.raises(ValueError, match=TOO_LARGE[name]):
            on_meta(name, CIFAR)
        shape = IMAGENET
    assert on_meta(name, shape).eval()(torch.empty(2, *shape, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_smallest_size_is_the_smallest(name: str) -> None:
    side = FAMILIES[name]
    if side > 1:
        with pytest.raises(
            ValueError, match=f"{name} cannot take images of .*: it takes images from {side}x{side} up"
        ):
            on_meta(name, (3, side - 1, side - 1))
    assert on_meta(name, (3, side, side)).eval()(torch.empty(2, 3, side, side, device="meta")).shape == (
        2,
        10,
    )


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"])
@pytest.mark.parametrize("shape", [DIGITS, MNIST, CIFAR])
def test_a_training_step_reaches_every_parameter(name: str, shape: Shape) -> None:
    net = built(name, shape)
    nn.functional.cross_entropy(net(torch.rand(2, *shape)), torch.tensor([0, 1])).backward()
    assert [at for at, values in net.named_parameters() if values.grad is None] == []


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vgg11_bn", "swin_t"])
def test_with_the_stem_of_imagenet_the_weights_are_those_that_torchvision_draws(name: str) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision, name)(weights=None, num_classes=10)
    assert same_bits(built(name, IMAGENET).state_dict(), theirs.state_dict())
    explicit, auto = (f"torchvision.{name}(stem='imagenet')", f"torchvision.{name}")  # of 224 pixels
    assert models.settle(explicit, IMAGENET) == models.settle(auto, IMAGENET)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_no_auxiliary_head_is_built(name: str) -> None:
    net = on_meta(name, IMAGENET).train()
    assert net(torch.empty(2, *IMAGENET, device="meta")).shape == (2, 10)
    assert not [at for at, _ in net.named_modules() if "aux" in at.lower()]


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_the_small_stem_is_that_of_the_built_in_network(name: str) -> None:
    ours = models.build(name, input_shape=CIFAR, num_classes=10).eval()
    net = built(name, CIFAR).eval()
    net.load_state_dict(ours.state_dict())
    images = torch.rand(2, *CIFAR)
    torch.testing.assert_close(net(images), ours(images))


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("resnet18", (3, 1), nn.Identity),
        ("squeezenet1_1", (3, 1), nn.Identity),
        ("alexnet", (3, 1), nn.Identity),
        ("mobilenet_v2", (3, 1), None),
        ("googlenet", (3, 1), nn.Identity),
        ("shufflenet_v2_x0_5", (3, 1), nn.Identity),
    ],
)
def test_the_small_stem_keeps_the_map(name: str, first: tuple[int, int], second: type | None) -> None:
    net = on_meta(name, CIFAR)
    conv = next(at for at in net.modules() if isinstance(at, nn.Conv2d))
    assert (conv.kernel_size[0], conv.stride[0]) == first
    maps = []
    conv.register_forward_hook(lambda module, inputs, output: maps.append(output.shape[2:]))
    net.eval()(torch.empty(2, *CIFAR, device="meta"))
    assert maps == [(32, 32)]
    assert any(isinstance(at, nn.Identity) for at in net.modules()) == (second is nn.Identity)
    names = on_meta(f"{name}(stem='imagenet')", CIFAR if name != "alexnet" else IMAGENET).state_dict().keys()
    assert net.state_dict().keys() == names


@pytest.mark.parametrize(("shape", "patches"), [(DIGITS, 4), (MNIST, 49), (CIFAR, 64)])
def test_a_vision_transformer_cuts_small_images_into_patches_of_four(shape: Shape, patches: int) -> None:
    net = on_meta("vit_b_16", shape)
    assert net.encoder.pos_embedding.shape == (1, 1 + patches, 768)
    assert net.conv_proj.weight.shape == (768, shape[0], 4, 4)
    assert net(torch.empty(2, *shape, device="meta")).shape == (2, 10)


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ("resnt18", CIFAR, r"unknown model 'torchvision.resnt18'; did you mean torchvision.resnet18"),
        ("fasterrcnn_resnet50_fpn", CIFAR, r"unknown model 'torchvision.faster"),
        ("resnet18(stem='tiny')", CIFAR, r"stem is 'tiny'; give one of auto, small, imagenet"),
        ("vgg11(stem='small')", CIFAR, r"torchvision.vgg11 has one stem for all sizes"),
        (
            "resnet18(weights='IMAGENET1K_V3')",
            CIFAR,
            r"unknown weights of torchvision.resnet18 .* IMAGENET1K_V1",
        ),
        ("resnet18(weights=True)", CIFAR, r"unknown weights of torchvision.resnet18 'True'"),
        (
            "resnet18(wieghts=None)",
            CIFAR,
            r"unknown option of 'torchvision.resnet18' 'wieghts'; did you mean weights",
        ),
        ("vit_b_16(stem='imagenet')", MNIST, r"square images whose side is a multiple of 16, not 28x28"),
        ("vit_b_16", (1, 28, 32), r"square images whose side is a multiple of 4, not 28x32"),
        ("maxvit_t", CIFAR, r"maxvit_t takes images whose sides are multiples of 224, not 32x32"),
        (
            "vit_b_16(weights='DEFAULT', stem='small')",
            CIFAR,
            r"weights are for patches of 16x16; give stem imagenet",
        ),
    ],
)
def test_a_bad_name_option_or_size_says_what_is_allowed(text: str, shape: Shape, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(text, shape)


def test_one_seed_gives_the_same_bits_also_where_the_size_is_checked_in_between() -> None:
    torchvision_models._check_images.cache_clear()
    first = built("resnet18", CIFAR).state_dict()
    assert same_bits(first, built("resnet18", CIFAR).state_dict())


def test_what_the_options_resolve_to() -> None:
    assert models.resolve("torchvision.resnet50(weights='DEFAULT')") == (
        "torchvision.resnet50",
        {"weights": "IMAGENET1K_V2", "stem": "auto"},
    )
    assert (
        models.resolve("torchvision.resnet18(weights='ResNet18_Weights.IMAGENET1K_V1')")[1]["weights"]
        == "IMAGENET1K_V1"
    )
    stems = {
        ("resnet18", CIFAR): "small",
        ("resnet18", IMAGENET): "imagenet",
        ("resnet18", (3, 63, 300)): "small",
        ("resnet18", (3, 64, 64)): "imagenet",
        ("resnet18(weights='DEFAULT')", CIFAR): "imagenet",  # what they were trained behind
        ("resnet18(stem='imagenet')", CIFAR): "imagenet",
        ("vgg11", CIFAR): "imagenet",
        ("swin_t", CIFAR): "imagenet",
    }
    settled = {at: models.settle(f"torchvision.{at[0]}", at[1])[1]["stem"] for at in stems}
    assert settled == stems
    assert models.built_from("torchvision.resnet18") == ("torchvision",)
    assert models.settle("mlp", DIGITS) == models.resolve("mlp")


# ---- trained weights: files as torchvision has them, in a folder of this test's own


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torchvision_weights, "_check_digest", lambda file, changed: None)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return folder


def store(hub: Path, name: str) -> nn.Module:
    """Put weights into the folder, under the name of torchvision's default; return their network."""
    torch.manual_seed(7)
    net: nn.Module = getattr(torchvision, name)(weights=None)
    url = torchvision.get_model_weights(name)["DEFAULT"].url
    torch.save(net.state_dict(), hub / url.rpartition("/")[2])
    return net.eval()


def test_trained_weights_are_loaded_and_their_head_stays_for_as_many_classes(hub: Path) -> None:
    trained = store(hub, "resnet18")
    net = built("resnet18(weights='DEFAULT')", IMAGENET, 1000)
    assert same_bits(net.state_dict(), trained.state_dict())


def test_for_other_classes_the_head_is_drawn_anew_and_nothing_else(hub: Path) -> None:
    trained = store(hub, "squeezenet1_1").state_dict()
    net = built("squeezenet1_1(weights='DEFAULT')", IMAGENET).state_dict()
    changed = {
        at
        for at, values in net.items()
        if values.shape != trained[at].shape or not torch.equal(values, trained[at])
    }
    assert changed == {"classifier.1.weight", "classifier.1.bias"}
    assert net["classifier.1.bias"].shape == (10,)


def test_grey_images_give_what_they_give_in_three_equal_channels(hub: Path) -> None:
    trained = store(hub, "resnet18")
    net = built("resnet18(weights='DEFAULT')", (1, 64, 64), 1000).eval()
    grey = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(net(grey), trained(grey.expand(-1, 3, -1, -1)))


def test_the_small_stem_has_the_centre_of_trained_filters(hub: Path) -> None:
    trained = store(hub, "resnet18").state_dict()["conv1.weight"]
    net = built("resnet18(weights='DEFAULT', stem='small')", CIFAR)
    assert torch.equal(net.state_dict()["conv1.weight"], trained[:, :, 2:5, 2:5])


def test_the_heads_that_only_training_used_are_left_out(hub: Path) -> None:
    trained = store(hub, "googlenet")  # with aux1 and aux2
    trained.transform_input = True
    net = built("googlenet(weights='DEFAULT')", IMAGENET, 1000).eval()
    images = torch.rand(1, *IMAGENET)
    torch.testing.assert_close(net(images), trained(images))


def test_positions_of_a_vision_transformer_are_interpolated(hub: Path) -> None:
    trained = store(hub, "vit_b_32").state_dict()
    net = built("vit_b_32(weights='DEFAULT')", (3, 64, 64)).state_dict()
    positions = net["encoder.pos_embedding"]
    assert positions.shape == (1, 1 + 4, 768)
    assert torch.equal(positions[:, 0], trained["encoder.pos_embedding"][:, 0])  # of the class token
    assert torch.equal(net["conv_proj.weight"], trained["conv_proj.weight"])


def test_on_meta_no_weights_are_looked_for(hub: Path) -> None:
    net = on_meta("resnet18(weights='DEFAULT')", CIFAR)
    assert net.conv1.weight.shape == (64, 3, 7, 7)


def test_where_any_weights_will_do_no_trained_ones_are_looked_for(hub: Path) -> None:
    with models.random_weights():
        net = built("resnet18(weights='DEFAULT')", CIFAR)
    assert net.fc.out_features == 10
    assert list(hub.iterdir()) == []


def test_offline_one_line_names_the_file_and_its_place(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **keywords: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(ValueError, match="weights IMAGENET1K_V1 cannot be downloaded") as caught:
        built("resnet18(weights='DEFAULT')", IMAGENET)
    message = str(caught.value)
    assert "Name or service not known" in message
    assert (
        f"put https://download.pytorch.org/models/resnet18-f37072fd.pth at {hub / 'resnet18-f37072fd.pth'}"
        in message
    )
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"nothing of torch", b"", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_one_line(hub: Path, content: bytes) -> None:
    (hub / "resnet18-f37072fd.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"resnet18-f37072fd.pth is damaged; remove it") as caught:
        built("resnet18(weights='DEFAULT')", IMAGENET)
    assert "\n" not in str(caught.value)


def test_a_file_that_somebody_put_there_has_the_digest_of_its_name(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(hub, "resnet18")
    monkeypatch.undo()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(hub.parent))
    sha256 = hashlib.sha256((hub / "resnet18-f37072fd.pth").read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"its SHA-256 starts with {sha256[:8]}"):
        built("resnet18(weights='DEFAULT')", IMAGENET)


def test_a_file_of_another_network_does_not_fit(hub: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, hub / "resnet18-f37072fd.pth")
    with pytest.raises(ValueError, match="weights IMAGENET1K_V1 do not fit") as caught:
        built("resnet18(weights='DEFAULT')", IMAGENET)
    assert "\n" not in str(caught.value)
