"""Small data sets in the true formats of those that torchvision reads: archives, lists and images."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

Array = np.ndarray[Any, Any]
Files = dict[str, bytes]  # path below the data folder -> content


def pixels(count: int, *shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def idx(array: Array, code: int = 8) -> bytes:
    """The IDX format: two zeros, a code of the type, the number of dimensions, sizes, values."""
    header = struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)
    return header + array.astype({8: ">u1", 12: ">i4"}[code]).tobytes()


def zipped(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def image(number: int, form: str = "JPEG", size: tuple[int, int] | None = None) -> bytes:
    """One colour, whose red is 4 n + 2 for a number up to 63; of differing sizes."""
    width, height = size or (20 + number % 7, 24)
    stream = io.BytesIO()
    colour = (4 * number + 2, 100, 100)
    Image.new("RGB", (width, height), colour).save(stream, form, quality=95)
    return stream.getvalue()


def mat(**arrays: Array) -> bytes:
    stream = io.BytesIO()
    savemat(stream, arrays, do_compression=True)
    return stream.getvalue()


def svhn() -> Files:
    def split(count: int, seed: int) -> bytes:
        labels = np.arange(count) % 10 + 1  # 10 stands for the digit 0
        return mat(X=pixels(32, 32, 3, count, seed=seed), y=labels.astype(np.uint8)[:, None])

    return {"train_32x32.mat": split(120, 0), "test_32x32.mat": split(20, 1)}


def kmnist() -> Files:
    files = {}
    for part, count, seed in (("train", 120, 0), ("t10k", 20, 1)):
        files[f"KMNIST/raw/{part}-images-idx3-ubyte.gz"] = gzip.compress(
            idx(pixels(count, 28, 28, seed=seed))
        )
        files[f"KMNIST/raw/{part}-labels-idx1-ubyte.gz"] = gzip.compress(idx(np.arange(count) % 10))
    return files


EMNIST_CLASSES = {"byclass": 62, "bymerge": 47, "balanced": 47, "letters": 26, "digits": 10, "mnist": 10}


def emnist() -> Files:
    members = {}
    for name, classes in EMNIST_CLASSES.items():
        first = 1 if name == "letters" else 0
        for part, copies, seed in (("train", 20, 0), ("test", 1, 1)):
            labels = np.arange(classes * copies) % classes + first
            images = pixels(len(labels), 28, 28, seed=seed)
            start = f"gzip/emnist-{name}-{part}"
            members[f"{start}-images-idx3-ubyte.gz"] = gzip.compress(idx(images), 1)
            members[f"{start}-labels-idx1-ubyte.gz"] = gzip.compress(idx(labels), 1)
    return {"EMNIST/raw/gzip.zip": zipped(members)}


def qmnist() -> Files:
    files = {}
    for part, count, seed in (("train", 120, 0), ("test", 30, 1)):
        labels = pixels(count, 8, seed=9).astype(np.int32) * 1000
        labels[:, 0] = np.arange(count) % 10
        start = f"QMNIST/raw/qmnist-{part}"
        files[f"{start}-images-idx3-ubyte.gz"] = gzip.compress(idx(pixels(count, 28, 28, seed=seed)))
        files[f"{start}-labels-idx2-int.gz"] = gzip.compress(idx(labels, 12))
    return files


def stl10() -> Files:
    members = {"stl10_binary/class_names.txt": b"one\ntwo\n"}
    for part, count, seed in (("train", 120, 0), ("test", 20, 1)):
        # Columns come first.
        images = pixels(count, 3, 96, 96, seed=seed).transpose(0, 1, 3, 2)
        members[f"stl10_binary/{part}_X.bin"] = images.tobytes()
        members[f"stl10_binary/{part}_y.bin"] = (np.arange(count) % 10 + 1).astype(np.uint8).tobytes()
    return {"stl10_binary.tar.gz": tarred(members), **members}


def gtsrb() -> Files:
    training, test, rows = {}, {}, ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for number in range(40):
        training[f"GTSRB/Training/{number % 4:05}/{number:05}_00000.ppm"] = image(number, "PPM")
    for number in range(12):
        test[f"GTSRB/Final_Test/Images/{number:05}.ppm"] = image(44 + number, "PPM")
        rows.append(f"{number:05}.ppm;20;24;1;1;19;23;{number % 4}")
    return {
        "gtsrb/GTSRB-Training_fixed.zip": zipped(training),
        "gtsrb/GTSRB_Final_Test_Images.zip": zipped(test),
        "gtsrb/GTSRB_Final_Test_GT.zip": zipped({"GT-final_test.csv": "\n".join(rows).encode()}),
    }


def flowers102() -> Files:
    numbers = np.arange(1, 61)
    jpegs = {f"jpg/image_{number:05}.jpg": image(number) for number in numbers}
    return {
        "flowers-102/102flowers.tgz": tarred(jpegs),
        "flowers-102/imagelabels.mat": mat(labels=(numbers % 3 + 1).astype(np.uint8)[None]),
        "flowers-102/setid.mat": mat(
            trnid=numbers[None, 40:52].astype(np.uint16),
            valid=numbers[None, 52:].astype(np.uint16),
            tstid=numbers[None, :40].astype(np.uint16),
        ),
    }


def pets() -> Files:
    breeds = ("Abyssinian", "great_pyrenees", "pug")
    jpegs: dict[str, bytes] = {}
    lists: dict[str, list[str]] = {"trainval": [], "test": []}
    for number in range(60):
        name = f"{breeds[number % 3]}_{number}"
        jpegs[f"images/{name}.jpg"] = image(number, "GIF" if number == 7 else "JPEG")
        lists["test" if number >= 45 else "trainval"].append(
            f"{name} {number % 3 + 1} {1 + (number % 3 > 0)} 1"
        )
    texts = {f"annotations/{part}.txt": "\n".join(lines).encode() for part, lines in lists.items()}
    return {
        "oxford-iiit-pet/images.tar.gz": tarred(jpegs),
        "oxford-iiit-pet/annotations.tar.gz": tarred(texts),
    }


def food101() -> Files:
    members: dict[str, bytes] = {}
    lists: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for number in range(60):
        dish = ("waffles", "apple_pie", "pho")[number % 3]
        members[f"food-101/images/{dish}/{number}.jpg"] = image(number)
        lists["test" if number >= 45 else "train"].setdefault(dish, []).append(f"{dish}/{number}")
    for part, content in lists.items():
        members[f"food-101/meta/{part}.json"] = json.dumps(content).encode()
    return {"food-101.tar.gz": tarred(members)}


def caltech101() -> Files:
    images = {"101_ObjectCategories/BACKGROUND_Google/image_0001.jpg": image(63)}
    for number in range(60):
        kind = ("Faces", "accordion", "wrench")[number % 3]
        images[f"101_ObjectCategories/{kind}/image_{number // 3 + 1:04}.jpg"] = image(number)
    inner = {
        "caltech-101/101_ObjectCategories.tar.gz": tarred(images),
        "caltech-101/Annotations.tar": b"other",
    }
    return {"caltech101/caltech-101.zip": zipped(inner)}


def eurosat() -> Files:
    members = {}
    for number in range(60):
        kind = ("Forest", "Highway", "SeaLake")[number % 3]
        members[f"2750/{kind}/{kind}_{number}.jpg"] = image(number, size=(64, 64))
    return {"eurosat/EuroSAT.zip": zipped(members)}


MAKERS: dict[str, Callable[[], Files]] = {
    f"torchvision.{make.__name__}": make
    for make in (
        svhn,
        kmnist,
        emnist,
        qmnist,
        stl10,
        gtsrb,
        flowers102,
        pets,
        food101,
        caltech101,
        eurosat,
    )
}
