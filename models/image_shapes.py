"""Networks for ImageNet on other images: first layers for other channels and sizes, and which sizes run.

Whether a network runs on images of a size, and the smallest size on which it does, is asked on `meta`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

IMAGENET_CHANNELS = 3
SMALL_BELOW = 64  # pixels, the shorter side: an ImageNet stem leaves a map of 16x16 or less of them
LARGEST = 512  # pixels: a network that needs larger images is refused without a size
Shape = tuple[int, int, int]


def first_convolution(net: nn.Module) -> tuple[str, nn.Conv2d]:
    """Return the convolution that is registered first, and its name. ValueError for a network without any."""
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            return name, module
    raise ValueError(f"{type(net).__name__} has no convolution to read images with")


def takes_patches(conv: nn.Conv2d) -> bool:
    """Return whether a convolution cuts the image into patches, as those of ViT, Swin and ConvNeXt do."""
    return conv.kernel_size == conv.stride and conv.kernel_size != (1, 1)


def set_channels(net: nn.Module, channels: int, *, trained: bool) -> None:
    """Let the first convolution read images of `channels`. Trained filters are kept, others drawn anew."""
    name, conv = first_convolution(net)
    if channels != conv.in_channels:
        _replace(net, name, conv, channels, conv.kernel_size, conv.stride, conv.padding, trained=trained)


def set_small(net: nn.Module, *, trained: bool) -> None:
    """Give a network the stem that is usual on 32x32 images.

    The first convolution has stride 1, and 3x3 filters where it had larger ones; the max pool behind it,
    before the second convolution, becomes an identity. Names stay. Of trained filters the centre is kept.
    """
    name, conv = first_convolution(net)
    kernel = (min(3, conv.kernel_size[0]), min(3, conv.kernel_size[1]))
    padding = (kernel[0] // 2, kernel[1] // 2)
    if kernel == conv.kernel_size:
        conv.stride, conv.padding = (1, 1), padding
    else:
        _replace(net, name, conv, conv.in_channels, kernel, (1, 1), padding, trained=trained)
    for place, module in list(net.named_modules()):
        if isinstance(module, nn.Conv2d) and place != name:
            return
        if isinstance(module, nn.MaxPool2d):
            set_module(net, place, nn.Identity())
            return


def set_patches(net: nn.Module, patch: int) -> None:
    """Let the convolution that cuts images into patches cut smaller ones; its filters are drawn anew."""
    name, conv = first_convolution(net)
    _replace(net, name, conv, conv.in_channels, (patch, patch), (patch, patch), (0, 0), trained=False)


def set_module(net: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module at the place of another one."""
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, module)


def _replace(
    net: nn.Module,
    name: str,
    conv: nn.Conv2d,
    channels: int,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: str | tuple[int, ...],
    *,
    trained: bool,
) -> None:
    bias = conv.bias is not None
    # The constructor would draw, too, and torch's default is not what these families start from.
    new = nn.utils.skip_init(nn.Conv2d, channels, conv.out_channels, kernel, stride, padding, bias=bias)
    new = new.to(conv.weight.device)
    if trained:
        _copy_filters(conv, new)
    else:
        # He et al. (2015); before a norm without ReLU between, as for patches, the variance is that of LeCun.
        nn.init.kaiming_normal_(new.weight, nonlinearity="linear" if takes_patches(new) else "relu")
        if new.bias is not None:
            nn.init.zeros_(new.bias)
    set_module(net, name, new)


@torch.no_grad()
def _copy_filters(conv: nn.Conv2d, new: nn.Conv2d) -> None:
    """Keep the centre of trained filters; for other channels, the sum over RGB is spread over them.

    A grey image gives what the image with its three equal channels gives, up to what the kernels lost.
    """
    rows, columns = ((old - size) // 2 for old, size in zip(conv.kernel_size, new.kernel_size, strict=True))
    weight: Tensor = conv.weight[
        :, :, rows : rows + new.kernel_size[0], columns : columns + new.kernel_size[1]
    ]
    if new.in_channels != conv.in_channels:
        weight = weight.sum(1, keepdim=True).expand(-1, new.in_channels, -1, -1) / new.in_channels
    new.weight.copy_(weight)
    if new.bias is not None and conv.bias is not None:
        new.bias.copy_(conv.bias)


def check_images(label: str, net: nn.Module, input_shape: Shape, *, native: str = "") -> None:
    """Raise ValueError, with the smallest size that works, where a network cannot take such images.

    The network is on `meta`, so that nothing is computed. `native` is the size for which it was made, if that
    is known.
    """
    reason = problem(net, input_shape)
    if not reason:
        return
    channels, height, width = input_shape
    smallest = _smallest(net, channels)
    if min(height, width) < smallest <= LARGEST:
        reason = f"it takes images from {smallest}x{smallest} up"
    elif native:
        reason += f"; it is made for {native}"
    raise ValueError(f"{label} cannot take images of {height}x{width}: {reason}")


@torch.no_grad()
def problem(net: nn.Module, input_shape: Shape) -> str:
    """Return why a network on `meta` does not run on such images; "" if it does."""
    try:
        with torch.device("meta"):
            logits = net(torch.empty((2, *input_shape)))
    except Exception as error:  # noqa: BLE001  # whatever another library's code raises for a size
        return " ".join(str(error).split())[:160].rstrip(".") or type(error).__name__
    return "" if isinstance(logits, Tensor) and logits.dim() == 2 else "it does not return one row of logits"


def _smallest(net: nn.Module, channels: int) -> int:
    """Return the smallest side of square images that the network takes; LARGEST + 1 where no size is one.

    A network that takes multiples of a size alone has none.
    """
    low, high = 1, LARGEST + 1
    while low < high:
        middle = (low + high) // 2
        if problem(net, (channels, middle, middle)):
            low = middle + 1
        else:
            high = middle
    return LARGEST + 1 if problem(net, (channels, low + 1, low + 1)) else low
