"""The models of timm, where it is installed: `timm.resnet18`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import torch
from torch import nn

from models.image_shapes import check_images, problem
from models.options import loads_weights, unknown

Shape = tuple[int, int, int]
Builder = Callable[..., nn.Module]
Options = dict[str, Any]  # literals

ABOUT = """timm's {name} for images of any channels; timm has to be installed.

Option `pretrained`: the tag of trained weights, such as a1_in1k, or True for the default,
downloaded to the Hugging Face cache; False for random ones. timm fits them to the channels and the classes.

A network that is made for one size of images is made for that of the data.
"""


def find_builder(name: str) -> Builder:
    """Return the builder of a model. ValueError without timm, or, with near names, for an unknown one."""
    if name not in names():
        plain, _, tag = name.partition(".")
        if plain in names() and tag in _tags(plain):
            raise ValueError(f"timm.{name} is written timm.{plain}(pretrained={tag!r})")
        raise ValueError(unknown("model", f"timm.{name}", [f"timm.{known}" for known in names()]))
    return make_builder(name)


@cache
def names() -> tuple[str, ...]:
    """Return the names of all models, sorted. ValueError without timm."""
    return tuple(_library().list_models())


@cache
def make_builder(name: str) -> Builder:
    """Return the builder of a model. `name` is looked up when a network is built."""

    def build(input_shape: Shape, num_classes: int, *, pretrained: bool | str = False) -> nn.Module:
        tag = canonical({"pretrained": pretrained})["pretrained"]
        options = _image_options(name, tuple(input_shape))
        if not tag or not loads_weights():
            return _create(name, input_shape, num_classes, **options)
        return _create_trained(name, input_shape, num_classes, str(tag), **options)

    def canonical(options: Options) -> Options:
        pretrained = options["pretrained"]
        if pretrained is False:
            return options
        tags = _tags(name)
        if not tags:
            raise ValueError(f"timm.{name} has no trained weights; leave pretrained out")
        tag = tags[0] if pretrained is True else pretrained
        if tag not in tags:
            raise ValueError(unknown(f"tag of timm.{name}", str(tag), tags))
        return {**options, "pretrained": tag}

    build.__doc__ = ABOUT.format(name=name)
    build.__dict__.update(built_from=("timm",), example="timm.resnet18", canonical=canonical)
    return build


def _create(name: str, input_shape: Shape, num_classes: int, **options: Any) -> nn.Module:  # timm's options
    net: nn.Module = _library().create_model(
        name, num_classes=num_classes, in_chans=input_shape[0], **{"pretrained": False, **options}
    )
    return net


def _create_trained(name: str, input_shape: Shape, num_classes: int, tag: str, **options: Any) -> nn.Module:
    """Return the network with trained weights, of torch hub's folder or else downloaded.

    ValueError, with the file and where to put it, where they cannot be had.
    """
    file = os.path.join(torch.hub.get_dir(), "checkpoints", f"{name}.{tag}.safetensors")
    if os.path.isfile(file):
        options["pretrained_cfg_overlay"] = {"file": file}
    try:
        with _quiet_retries():
            return _create(f"{name}.{tag}", input_shape, num_classes, pretrained=True, **options)
    except Exception as error:  # of the hub, the network, a file
        reason = " ".join(str(error).split())[:160]
        source = _library().get_pretrained_cfg(f"{name}.{tag}")
        hub = (
            f"model.safetensors of https://huggingface.co/{source.hf_hub_id}"
            if source.hf_hub_id
            else source.url
        )
        raise ValueError(f"weights {tag} cannot be loaded ({reason}); put {hub} at {file}") from error


@lru_cache(maxsize=64)
def _image_options(name: str, input_shape: Shape) -> Options:
    """Return the options by which timm builds a network for such images. ValueError where it builds none.

    Some networks take `img_size` and need it, some take it and run without it alone, some do not take it.
    """
    height, width = input_shape[1:]
    reasons = []
    for options in ({"img_size": height if height == width else (height, width)}, {}):
        try:
            net = _meta_network(name, input_shape, options)
        except Exception:  # noqa: BLE001  # TypeError for img_size, and whatever a size makes of its sums
            continue
        reasons.append(problem(net, input_shape))
        if not reasons[-1]:
            return options
    native = "x".join(map(str, _library().get_pretrained_cfg(name).input_size[1:]))
    if len(reasons) < 2:  # it has one form for all sizes, and perhaps a smallest one
        check_images(f"timm.{name}", _meta_network(name, input_shape, {}), input_shape, native=native)
    raise ValueError(
        f"timm.{name} cannot take images of {height}x{width}: {reasons[0]}; it is made for {native}"
    )


@contextmanager
def _quiet_retries() -> Iterator[None]:
    """Keep the hub's lines on its retries from the terminal; what comes of them is one line."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _meta_network(name: str, input_shape: Shape, options: Options) -> nn.Module:
    with torch.device("meta"):
        return _create(name, input_shape, 2, **options).eval()


def _tags(name: str) -> tuple[str, ...]:
    """Return the tags of trained weights, timm's default first."""
    tagged = _library().list_pretrained(f"{name}.*")
    default = _library().get_pretrained_cfg(name)
    first = default.tag if default is not None else ""
    tags = [text.partition(".")[2] for text in tagged if text.partition(".")[0] == name]
    return tuple(sorted(tags, key=lambda tag: (tag != first, tag)))


def _library() -> Any:  # a module without types
    """Return timm. ValueError where it is not installed."""
    # First: timm imports torchvision, which beside a CPU torch works only after it.
    import models.torchvision_compat  # noqa: F401

    try:
        import timm
    except ImportError as error:
        raise ValueError(
            f"models of timm need timm ({error}): pip install 'pruning-orchestrator[timm]'"
        ) from error
    return timm
