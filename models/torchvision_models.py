"""The classifiers of torchvision as models: `torchvision.resnet18`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import nn

from models.image_shapes import SMALL_BELOW, check_images, set_channels, set_module, set_patches, set_small
from models.options import loads_weights, unknown
from models.torchvision_weights import load_weights, weights_name

Shape = tuple[int, int, int]
Builder = Callable[..., nn.Module]
Options = dict[str, Any]  # literals

CLASSES = 1000  # of ImageNet, for which the weights were trained
PATCH = 4  # pixels: the side of a vision transformer's patch in the small stem
MAXVIT_SIDE = 224
STEMS = ("auto", "small", "imagenet")
# Families whose stem is the same at every size: it does not stride, or it cuts patches of 4x4.
ONE_STEM = ("vgg", "convnext", "swin", "maxvit")
# What these would return in training mode beside the logits; their aux heads see 14x14 maps at the least.
NO_AUXILIARY = {"googlenet": {"aux_logits": False, "init_weights": True}}
NO_AUXILIARY["inception_v3"] = NO_AUXILIARY["googlenet"]


def find_builder(name: str) -> Builder:
    """Return the builder of a classifier. ValueError, with the near ones, for another name."""
    if name not in names():
        known = [f"torchvision.{known}" for known in names()]
        raise ValueError(unknown("model", f"torchvision.{name}", known))
    return make_builder(name)


@cache
def names() -> tuple[str, ...]:
    """Return the names of all classifiers, sorted."""
    models = _library()
    return tuple(models.list_models(module=models))


@cache
def make_builder(name: str) -> Builder:
    """Return the builder of a classifier. `name` is looked up when a network is built."""

    def build(
        input_shape: Shape, num_classes: int, *, weights: str | None = None, stem: str = "auto"
    ) -> nn.Module:
        options = settled({"weights": weights, "stem": stem}, input_shape)
        _check_images(name, options["stem"], tuple(input_shape))
        return _build(name, input_shape, num_classes, **options)

    def settled(options: Options, input_shape: Shape) -> Options:
        options = canonical(options)
        if options["stem"] != "auto":
            return options
        is_small = min(input_shape[1:]) < SMALL_BELOW and options["weights"] is None
        return {**options, "stem": "small" if is_small and not name.startswith(ONE_STEM) else "imagenet"}

    def canonical(options: Options) -> Options:
        if options["stem"] not in STEMS:
            raise ValueError(f"stem is {options['stem']!r:.80}; give one of {', '.join(STEMS)}")
        if options["stem"] == "small" and name.startswith(ONE_STEM):
            raise ValueError(f"torchvision.{name} has one stem for all sizes; leave stem out, or give auto")
        if options["weights"] is None:
            return options
        if options["stem"] == "small" and name.startswith("vit"):
            patch = name.rpartition("_")[2]
            raise ValueError(
                f"torchvision.{name}: weights are for patches of {patch}x{patch}; give stem imagenet"
            )
        return {**options, "weights": weights_name(name, options["weights"])}

    build.__doc__ = ABOUT.format(name=name)
    build.__dict__.update(
        built_from=("torchvision",), example="torchvision.resnet18", canonical=canonical, settled=settled
    )
    return build


ABOUT = """torchvision's {name} for images of any channels, with random weights or pre-trained ones.

Option `weights`: a name of torchvision's, such as DEFAULT or IMAGENET1K_V1, downloaded to torch hub's folder;
None for random ones. Their last layer stays for 1000 classes, and is drawn anew otherwise.

Option `stem`: small (the first convolution has stride 1 and 3x3 filters, no max pool follows; vision
transformers cut patches of 4x4), imagenet (as torchvision has it) or auto: small for images below 64 pixels
where there are no `weights` and the family has a stem for them. Runs are recorded with what auto stands for.
"""


def _build(name: str, input_shape: Shape, num_classes: int, *, weights: str | None, stem: str) -> nn.Module:
    """Return the network for images that it can take."""
    channels, height, width = input_shape
    options: Options = dict(NO_AUXILIARY.get(name, {}))
    if name.startswith("vit"):
        options["image_size"] = _vit_size(name, stem, height, width)
    elif name.startswith("maxvit"):
        options["input_size"] = _maxvit_size(name, height, width)
    builder = _library().get_model_builder(name)
    is_trained = weights is not None
    net: nn.Module = builder(weights=None, num_classes=CLASSES if is_trained else num_classes, **options)
    if weights is not None:
        if loads_weights():
            load_weights(net, name, weights)
        if hasattr(net, "transform_input"):  # from ImageNet's scale to that of its weights
            net.transform_input = channels == 3  # type: ignore[assignment]  # a flag, and no tensor
        if num_classes != CLASSES:
            replace_head(net, num_classes)
    if stem == "small" and name.startswith("vit"):
        set_patches(net, PATCH)
        net.patch_size, net.image_size = PATCH, height  # type: ignore[assignment]  # what its forward checks
    elif stem == "small":
        set_small(net, trained=is_trained)
    set_channels(net, channels, trained=is_trained)
    return net


def _vit_size(name: str, stem: str, height: int, width: int) -> int:
    """Return the image size for which a vision transformer is built; its positions are as many as patches."""
    native = int(name.rpartition("_")[2])
    patch = PATCH if stem == "small" else native
    if height != width or height % patch:
        raise ValueError(
            f"torchvision.{name} with stem {stem} takes square images whose side is a multiple of {patch}, "
            f"not {height}x{width}"
        )
    return height // patch * native


def _maxvit_size(name: str, height: int, width: int) -> tuple[int, int]:
    """Return the image size for which a MaxViT is built; windows of 7x7 divide its maps, the last of 1/32."""
    if height % MAXVIT_SIDE or width % MAXVIT_SIDE:
        raise ValueError(
            f"torchvision.{name} takes images whose sides are multiples of {MAXVIT_SIDE}, "
            f"not {height}x{width}"
        )
    return height, width


def replace_head(net: nn.Module, num_classes: int) -> None:
    """Draw the last layer anew for another number of classes."""
    layers = [(at, layer) for at, layer in net.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    at, last = layers[-1]
    bias = last.bias is not None
    if isinstance(last, nn.Linear):
        set_module(net, at, nn.Linear(last.in_features, num_classes, bias=bias))
    else:  # squeezenet's classifier
        set_module(net, at, nn.Conv2d(last.in_channels, num_classes, last.kernel_size, bias=bias))  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def _check_images(name: str, stem: str, input_shape: Shape) -> None:
    """Raise ValueError, with the smallest size, for images that the network cannot take."""
    # Nothing of torch's generator is drawn on `meta`.
    with torch.device("meta"):
        net = _build(name, input_shape, 2, weights=None, stem=stem).eval()
    check_images(f"torchvision.{name}", net, input_shape)


def _library() -> Any:  # a module without types
    # Here, not above: torchvision takes over a second to import, and other models do not need it.
    from models.torchvision_compat import models

    return models
