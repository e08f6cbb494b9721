"""timm's models by name, where timm is installed; and what is said where it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import models
import models.torchvision_compat  # before timm, which imports torchvision
from models import timm_models

CIFAR, GREY = (3, 32, 32), (1, 28, 28)
# One small model of a family for each way in which timm takes the size of images.
SIZES = {
    "resnet18": {},  # does not take it
    "vit_tiny_patch16_224": {"img_size": 32},
    "swin_tiny_patch4_window7_224": {"img_size": 32},
    "mixer_s16_224": {"img_size": 32},
    "crossvit_tiny_240": {},  # takes it, and does not run with it
    "efficientnet_b0": {},
    "convnext_atto": {},
}


def built(name: str, shape: tuple[int, int, int], classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return models.build(f"timm.{name}", input_shape=shape, num_classes=classes)


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(values, other[at]) for at, values in one.items())


def test_without_timm_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    timm_models.names.cache_clear()
    with pytest.raises(ValueError, match=r"pip install 'pruning-orchestrator\[timm\]'") as caught:
        models.resolve("timm.resnet18")
    assert "\n" not in str(caught.value)


@pytest.fixture
def timm() -> object:
    """The library; tests with it are skipped where it is not installed."""
    timm_models.names.cache_clear()
    return pytest.importorskip("timm")


@pytest.mark.parametrize("name", SIZES)
def test_networks_are_made_for_the_images(timm: object, name: str) -> None:
    assert timm_models._image_options(name, CIFAR) == SIZES[name]
    net = built(name, CIFAR).eval()
    assert net(torch.rand(2, *CIFAR)).shape == (2, 10)


def test_grey_images_that_are_not_square(timm: object) -> None:
    assert built("vit_tiny_patch16_224", (1, 32, 48)).eval()(torch.rand(2, 1, 32, 48)).shape == (2, 10)
    assert built("resnet18", GREY).eval()(torch.rand(2, *GREY)).shape == (2, 10)


def test_the_weights_are_those_that_timm_draws(timm: object) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("resnet18", num_classes=10, in_chans=1)
    timm_models._image_options.cache_clear()
    assert same_bits(built("resnet18", GREY).state_dict(), theirs.state_dict())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnt18", r"unknown model 'timm.resnt18'; did you mean timm.resnet18"),
        ("resnet18.a1_in1k", r"timm.resnet18.a1_in1k is written timm.resnet18\(pretrained='a1_in1k'\)"),
        ("resnet18(pretrained='a9')", r"unknown tag of timm.resnet18 'a9'; known: a1_in1k, "),
        ("resnet18(pretrained=1)", r"unknown tag of timm.resnet18 '1'"),
        ("inception_v3", r"inception_v3 cannot take images of 28x28: it takes images from 75x75 up"),
        ("efficientformer_l1", r"cannot take images of 28x28: .*; it is made for 224x224"),
    ],
)
def test_a_bad_name_option_or_size_says_what_is_allowed(timm: object, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(text, GREY)


def test_what_the_options_resolve_to(timm: object) -> None:
    assert models.resolve("timm.resnet18") == ("timm.resnet18", {"pretrained": False})
    tag = models.resolve("timm.resnet18(pretrained=True)")[1]["pretrained"]
    assert tag == timm.get_pretrained_cfg("resnet18").tag
    assert models.resolve(f"timm.resnet18(pretrained={tag!r})")[1]["pretrained"] == tag
    assert models.built_from("timm.resnet18") == ("timm",)


def test_trained_weights_of_a_file(timm: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.manual_seed(5)
    trained = timm.create_model("resnet18").eval()
    save_file(trained.state_dict(), tmp_path / "checkpoints" / "resnet18.a1_in1k.safetensors")
    whole = built("resnet18(pretrained='a1_in1k')", CIFAR, 1000).eval()
    assert same_bits(whole.state_dict(), trained.state_dict())
    grey = built("resnet18(pretrained='a1_in1k')", GREY).state_dict()
    torch.testing.assert_close(grey["conv1.weight"], trained.conv1.weight.detach().sum(1, keepdim=True))
    assert grey["fc.weight"].shape == (10, 512)
    with torch.device("meta"):
        assert built("resnet18(pretrained='a1_in1k')", CIFAR).conv1.weight.is_meta


def test_offline_one_line_names_the_file_and_its_place(
    timm: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **keywords: object) -> None:
        raise OSError("no\nnetwork")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("timm.models._builder.load_pretrained", fail)
    with pytest.raises(ValueError, match=r"weights a1_in1k cannot be loaded \(no network\)") as caught:
        built("resnet18(pretrained='a1_in1k')", CIFAR)
    place = tmp_path / "checkpoints" / "resnet18.a1_in1k.safetensors"
    assert f"put model.safetensors of https://huggingface.co/timm/resnet18.a1_in1k at {place}" in str(
        caught.value
    )
