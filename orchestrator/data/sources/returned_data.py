"""What a function of one's own may return: arrays as in an npz, or map-style data sets of (image, label)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from orchestrator.data.image_decoding import BrokenImageError, to_eight_bits
from orchestrator.data.sources.array_images import to_channels_first
from orchestrator.data.sources.array_reader import ARRAYS, ENDINGS
from orchestrator.data.sources.base import check_fits
from orchestrator.errors import DataError, unknown_name

Array = NDArray[Any]
KEYS = (*ARRAYS, "layout")
SPLIT_NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
PLAIN = (str, bytes, list, tuple, Mapping, np.ndarray, torch.Tensor)
FORMS = "return (x, y), {'x': x, 'y': y, ...}, a map-style torch Dataset, or {'train': ..., 'test': ...}"
READ_AGAIN = 256  # items of each split


def to_arrays(returned: object) -> dict[str, Array]:
    """Return arrays by the names of an npz, images as [N, C, H, W]. DataError for anything else."""
    if returned is None:
        raise DataError(f"it returns nothing; {FORMS}")
    if _is_dataset(returned):
        return _from_datasets({"train": returned})
    if isinstance(returned, Mapping):
        return _from_mapping(returned)
    if isinstance(returned, (tuple, list)):
        return _from_sequence(returned)
    raise DataError(f"it returns a {type(returned).__name__}; {FORMS}")


def _from_mapping(returned: Mapping[Any, Any]) -> dict[str, Array]:
    allowed = SPLIT_NAMES if any(map(_is_dataset, returned.values())) else dict.fromkeys(KEYS)
    for key in returned:
        if key not in allowed:
            raise DataError(unknown_name("key", str(key)[:80], allowed))
    if allowed is not SPLIT_NAMES:
        return _from_arrays({str(key): value for key, value in returned.items()})
    names = [SPLIT_NAMES[key] for key in returned]
    if "train" not in names or len(set(names)) < len(names):
        raise DataError(f"it has {', '.join(returned)}; give train, and val and test where there are such")
    return _from_datasets(dict(zip(names, returned.values(), strict=True)))


def _from_sequence(returned: Sequence[Any]) -> dict[str, Array]:
    if len(returned) == 2 and all(map(_is_dataset, returned)):
        return _from_datasets({"train": returned[0], "test": returned[1]})
    if len(returned) == 2 and all(isinstance(part, (tuple, list)) and len(part) == 2 for part in returned):
        (x, y), (x_test, y_test) = returned
        if not np.isscalar(y_test):  # ([image, image], [label, label]) has two images
            return _from_arrays({"x": x, "y": y, "x_test": x_test, "y_test": y_test})
    if len(returned) in (2, 4) and not any(map(_is_dataset, returned)):
        return _from_arrays(dict(zip(KEYS, returned, strict=False)))
    raise DataError(f"it returns {len(returned)} values; {FORMS}")


def _from_arrays(values: Mapping[str, Any]) -> dict[str, Array]:
    layout = values.get("layout", "auto")
    if layout not in ("auto", "first", "last"):
        raise DataError(unknown_name("layout", str(layout)[:80], ("auto", "first", "last")))
    arrays = {name: _as_array(name, value) for name, value in values.items() if name != "layout"}
    for name, array in arrays.items():
        if name.startswith("x"):
            if array.ndim and not len(array):
                raise DataError(f"{name} has no images")
            arrays[name] = to_channels_first(array, "first" if _has_pictures(values[name]) else layout)
        if name.startswith("y") and array.ndim == 2 and array.shape[1] > 1:
            raise DataError(
                f"{name} is {list(array.shape)}; give one number an image: of one-hot, the argmax"
            )
    kinds = {name: str(array.dtype) for name, array in arrays.items() if name.startswith("x")}
    if len(set(kinds.values())) > 1:
        raise DataError(
            f"{' and '.join(f'{name} holds {kind}' for name, kind in kinds.items())}; give one type"
        )
    return arrays


def _as_array(name: str, value: Any) -> Array:
    if _has_pictures(value):
        return _stacked_pictures(name, value)
    try:
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    except (TypeError, ValueError) as error:  # rows of differing lengths; bfloat16
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{name} is no array: {reason}") from error
    if array.dtype.hasobject:
        raise DataError(f"{name} holds Python objects; give numbers or texts in arrays of one shape")
    return array


def _has_pictures(value: object) -> bool:
    return isinstance(value, (list, tuple)) and any(isinstance(item, Image.Image) for item in value)


def _stacked_pictures(name: str, pictures: Sequence[Any]) -> Array:
    """Return images of Pillow as [N, C, H, W]: by the rules of files, not as Pillow stores them."""
    if not all(isinstance(picture, Image.Image) for picture in pictures):
        raise DataError(f"{name} mixes Pillow images with other values; give one kind")
    images = [_picture_pixels(picture) for picture in pictures]
    for number, image in enumerate(images):
        if image.shape != images[0].shape:
            shapes = f"{list(image.shape)}, and image 0 {list(images[0].shape)}"
            raise DataError(f"image {number} of {name} is {shapes}; give images of one form")
    return np.stack(images)


def _picture_pixels(picture: Image.Image) -> Array:
    """Return [C, H, W] of an image of Pillow."""
    try:
        pixels = np.asarray(to_eight_bits(picture))
    except BrokenImageError as error:
        raise DataError(f"a Pillow image {error}") from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _is_dataset(value: object) -> bool:
    """Whether a value is read item by item; pandas and h5py have arrays, which say so."""
    is_array = isinstance(value, PLAIN) or hasattr(value, "__array__")
    return not is_array and hasattr(value, "__getitem__")


def _from_datasets(datasets: Mapping[str, Any]) -> dict[str, Array]:
    values: dict[str, Any] = {}
    for split, dataset in datasets.items():
        images, labels = _read_items(split, dataset)
        labels = _in_order_of(split, labels, dataset, datasets["train"])
        values |= {f"x{ENDINGS[split]}": images, f"y{ENDINGS[split]}": labels}
    arrays = _from_arrays(values)
    names = _class_names(datasets["train"], [arrays[name] for name in arrays if name.startswith("y")])
    return arrays | ({"class_names": names} if names is not None else {})


def _read_items(split: str, dataset: Any) -> tuple[Array, Array]:
    """Return the stacked images and the labels of a data set, of which some are read a second time."""
    kind = type(dataset).__name__
    if isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__len__"):
        raise DataError(f"{kind} has no __len__, or no order; give a map-style Dataset with a length")
    count = len(dataset)
    if count == 0:
        raise DataError(f"{kind} for {split} has no items")
    first, label = _item(split, 0, dataset[0])
    check_fits("it", count * first.size)
    images, labels = np.empty((count, *first.shape), dtype=first.dtype), [label]
    images[0] = first
    for number in range(1, count):
        image, label = _item(split, number, dataset[number])
        _check_alike(split, number, image, first)
        images[number] = image
        labels.append(label)
    for number in np.unique(np.linspace(0, count - 1, min(count, READ_AGAIN)).astype(int)).tolist():
        image, label = _item(split, number, dataset[number])
        again, before = (image.shape, image.tobytes(), repr(label)), images[number]
        if again != (first.shape, before.tobytes(), repr(labels[number])):
            raise DataError(
                f"item {number} for {split} is another one when it is read again; leave random changes to "
                "train.augment"
            )
    return images, _label_array(split, labels)


def _check_alike(split: str, number: int, image: Array, first: Array) -> None:
    for value, other in ((list(image.shape), list(first.shape)), (str(image.dtype), str(first.dtype))):
        if value != other:
            raise DataError(
                f"item {number} for {split} is {value}, and item 0 {other}; give images of one form"
            )


def _item(split: str, number: int, item: Any) -> tuple[Array, Any]:
    """Return the image, with channels first where it was a picture of Pillow, and the label of an item."""
    where = f"item {number} for {split}"
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise DataError(f"{where} is a {type(item).__name__}; (image, label) is needed")
    image, label = item
    if isinstance(image, Image.Image):
        pixels = _picture_pixels(image)
    elif isinstance(image, (np.ndarray, torch.Tensor)):
        pixels = _as_array(f"the image of {where}", image)
    else:
        kind = type(image).__name__
        raise DataError(f"the image of {where} is a {kind}; give a Pillow image, an array or a tensor")
    if pixels.ndim not in (2, 3):
        raise DataError(f"the image of {where} is {list(pixels.shape)}; give [H, W], [C, H, W] or [H, W, C]")
    value = _as_array(f"the label of {where}", label)
    if value.ndim:
        shape = list(value.shape)
        raise DataError(f"the label of {where} is {shape}; give one number: of a one-hot label, the argmax")
    return pixels, value.item()


def _label_array(split: str, labels: Sequence[Any]) -> Array:
    kinds = sorted({type(label).__name__ for label in labels})
    if len(kinds) > 1:
        raise DataError(f"labels for {split} are of {' and '.join(kinds)}; give one type")
    return np.asarray(labels)


def _classes(dataset: Any) -> tuple[str, ...] | None:
    """Return the `classes` of a data set, as torchvision has them, where they are texts."""
    names = getattr(dataset, "classes", None)
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def _in_order_of(split: str, labels: Array, dataset: Any, train: Any) -> Array:
    """Return labels as the training images number them: each data set may number its own `classes`."""
    own, trained = _classes(dataset), _classes(train)
    if own is None or trained is None or own == trained or labels.dtype.kind not in "iu":
        return labels
    if not (labels.min() >= 0 and labels.max() < len(own)):
        return labels  # refused with the labels of all splits
    for label in np.unique(labels).tolist():
        if own[label] not in trained:
            raise DataError(f"class {own[label]!r} is in {split} alone, not in train")
    number_of = np.array([trained.index(name) if name in trained else -1 for name in own])
    return np.asarray(number_of[labels])


def _class_names(dataset: Any, labels: Sequence[Array]) -> Array | None:
    """Return the `classes` of a data set where these are names for all labels."""
    if (names := _classes(dataset)) is None:
        return None
    used = np.concatenate(labels)
    has_all = used.dtype.kind in "iu" and used.min() >= 0 and used.max() < len(names) == len(set(names))
    return np.array(names) if has_all else None
