"""RandAugment on a batch: operations of torchvision.transforms.v2, each image by its own draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from orchestrator.data.augmentation import AugmentationContext, augmentations
from orchestrator.system.memory import to_device
from pruning.hyperparameters import Between

Change = Callable[[Tensor], Tensor]  # of images in [0, 1]
Count = Annotated[int, Between(1, 14)]
Magnitude = Annotated[int, Between(0, 30)]
LEVELS = 30  # of magnitudes: torchvision's 31 bins, from 0
# In torchvision's order; the first changes nothing.
OPERATIONS: tuple[str, ...] = ("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate")
OPERATIONS += ("brightness", "colour", "contrast", "sharpness", "posterize", "solarize")
OPERATIONS += ("auto_contrast", "equalize")


def _changes(magnitude: float, size: tuple[int, int]) -> Iterator[tuple[str, Change, bool | None]]:
    """Yield (operation, what it does, whether to the images whose sign is negative; None: to all).

    `magnitude` is in [0, 1], `size` (height, width) of the images, which are in [0, 1].
    """
    from models.torchvision_compat import functional_transforms  # a library that no other augmentation needs

    v2: Any = functional_transforms()  # functions without types
    height, width = size

    def affine(**changes: Any) -> Change:
        unchanged = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
        return partial(v2.affine, **{**unchanged, **changes})

    for sign, negative in ((1.0, False), (-1.0, True)):
        shear = math.degrees(math.atan(sign * 0.3 * magnitude))
        shift = [int(sign * 150.0 / 331.0 * side * magnitude) for side in (height, width)]
        factor = 1.0 + sign * 0.9 * magnitude
        yield "shear_x", affine(shear=[shear, 0.0], center=[0, 0]), negative
        yield "shear_y", affine(shear=[0.0, shear], center=[0, 0]), negative
        yield "translate_x", affine(translate=[shift[1], 0]), negative
        yield "translate_y", affine(translate=[0, shift[0]]), negative
        yield "rotate", partial(v2.rotate, angle=sign * 30.0 * magnitude), negative
        yield "brightness", partial(v2.adjust_brightness, brightness_factor=factor), negative
        yield "colour", partial(v2.adjust_saturation, saturation_factor=factor), negative
        yield "contrast", partial(v2.adjust_contrast, contrast_factor=factor), negative
        yield "sharpness", partial(v2.adjust_sharpness, sharpness_factor=factor), negative
    yield "posterize", partial(v2.posterize, bits=round(8 - 4 * magnitude)), None
    yield "solarize", partial(v2.solarize, threshold=1.0 - magnitude), None
    yield "auto_contrast", v2.autocontrast, None
    yield "equalize", v2.equalize, None


def _conflict(input_shape: tuple[int, int, int], options: Mapping[str, int]) -> str | None:
    channels = input_shape[0]
    return None if channels in (1, 3) else f"randaugment is for grey or RGB images, and these have {channels}"


@augmentations.register(
    summary="random operations on colours and shapes",
    paper="Cubuk et al., NeurIPS 2020",
    conflict=_conflict,
    library="torchvision",
)
def randaugment(
    images: Tensor, context: AugmentationContext, *, operations: Count = 2, magnitude: Magnitude = 9
) -> Tensor:
    """Apply `operations` operations, drawn out of 14, to each image, all with one `magnitude` out of 30.

    Operations and strengths are those of torchvision.transforms.v2.RandAugment, which applies one operation
    to a whole batch; here every image has its own. Pixels are in [0, 1] meanwhile, from the lowest to the
    highest of the channel in the training images, and 0 comes in from outside.
    """
    lowest, highest = context.pixel_range
    span = (highest - lowest).clamp(min=torch.finfo(images.dtype).tiny)
    images = ((images - lowest) / span).clamp(0.0, 1.0)
    size = (images.shape[2], images.shape[3])
    changes = list(_changes(magnitude / LEVELS, size))
    for _ in range(operations):
        # Drawn on the CPU: which images an operation takes waits for no GPU.
        which = context.choices(len(OPERATIONS), len(images))[:, 0]
        is_negative = context.choices(2, len(images))[:, 0] == 1
        parts = [_images_of(which, is_negative, operation, negative) for operation, _, negative in changes]
        indices = to_device(torch.cat(parts), images.device).split([len(part) for part in parts])
        for (_, change, _), index in zip(changes, indices, strict=True):
            if len(index):
                images = images.index_copy(0, index, change(images[index]))
    return images * span + lowest


def _images_of(which: Tensor, is_negative: Tensor, operation: str, negative: bool | None) -> Tensor:
    """Return the index of the images that an operation is drawn for, with this sign if it has one."""
    is_drawn = which == OPERATIONS.index(operation)
    return (is_drawn if negative is None else is_drawn & (is_negative == negative)).nonzero()[:, 0]
