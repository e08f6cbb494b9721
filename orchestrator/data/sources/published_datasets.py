"""What differs between the published data sets that torchvision reads: `torchvision.svhn` and others.

Files, addresses and MD5s are those of torchvision's own downloads. Nothing here imports torchvision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Keywords = Mapping[str, Any]  # of a torchvision class: `train`, `split`


@dataclass(frozen=True)
class PublishedFile:
    """A file below the data folder, its MD5, and the addresses that have it.

    An archive `unpacks` to a file or folder beside it, by way of the archive `inner` where that lies within
    another. A file without addresses comes out of an archive.
    """

    path: str
    md5: str
    urls: tuple[str, ...] = ()
    unpacks: str = ""
    inner: str = ""


@dataclass(frozen=True)
class Published:
    """A data set. `source` is torchvision's class, `files` all that it reads.

    `splits` are the keywords of the class for each of its splits. `images` are their published numbers, and
    `shape` that of an image: None where they differ, and for files that are decoded one by one.
    """

    source: str
    about: str
    files: tuple[PublishedFile, ...]
    splits: Mapping[str, Keywords]
    classes: int
    images: tuple[int, ...]
    shape: tuple[int, int, int] | None = None
    formats: tuple[str, ...] = ("JPEG",)
    class_names: tuple[str, ...] = ()


BY_TRAIN: Mapping[str, Keywords] = {"train": {"train": True}, "test": {"train": False}}
BY_SPLIT: Mapping[str, Keywords] = {"train": {"split": "train"}, "test": {"split": "test"}}
WITHOUT: Mapping[str, Keywords] = {"train": {}}
SVHN = "http://ufldl.stanford.edu/housenumbers/"
KMNIST = "http://codh.rois.ac.jp/kmnist/dataset/kmnist/"
EMNIST = "https://biometrics.nist.gov/cs_links/EMNIST/"
QMNIST = "https://raw.githubusercontent.com/facebookresearch/qmnist/master/"
STL10 = "http://ai.stanford.edu/~acoates/stl10/"
GTSRB = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
FLOWERS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
PETS = "https://www.robots.ox.ac.uk/~vgg/data/pets/data/"
FOOD = "http://data.vision.ee.ethz.ch/cvl/"
CALTECH = "https://data.caltech.edu/records/mzrjq-6wc02/files/"
EUROSAT = "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/"


def _file(folder: str, name: str, md5: str, base: str, unpacks: str = "", inner: str = "") -> PublishedFile:
    return PublishedFile(f"{folder}/{name}".lstrip("/"), md5, (base + name,), unpacks, inner)


PUBLISHED: dict[str, Published] = {
    "torchvision.svhn": Published(
        "SVHN",
        "house numbers in colour",
        (
            _file("", "train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373", SVHN),
            _file("", "test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3", SVHN),
        ),
        BY_SPLIT,
        10,
        (73_257, 26_032),
        (3, 32, 32),
    ),
    "torchvision.kmnist": Published(
        "KMNIST",
        "grey cursive Japanese letters",
        tuple(
            _file("KMNIST/raw", name, md5, KMNIST)
            for name, md5 in (
                ("train-images-idx3-ubyte.gz", "bdb82020997e1d708af4cf47b453dcf7"),
                ("train-labels-idx1-ubyte.gz", "e144d726b3acfaa3e44228e80efcd344"),
                ("t10k-images-idx3-ubyte.gz", "5c965bf0a639b31b8f53240b1b52f4d7"),
                ("t10k-labels-idx1-ubyte.gz", "7320c461ea6c1c855c0b718fb2a4b134"),
            )
        ),
        BY_TRAIN,
        10,
        (60_000, 10_000),
        (1, 28, 28),
    ),
    "torchvision.emnist": Published(
        "EMNIST",
        "grey letters and digits",
        (_file("EMNIST/raw", "gzip.zip", "58c8d27c78d21e728a6bc7b3cc06412e", EMNIST),),
        BY_TRAIN,
        47,
        (112_800, 18_800),
        (1, 28, 28),
    ),
    "torchvision.qmnist": Published(
        "QMNIST",
        "grey digits, MNIST with 60,000 test images",
        tuple(
            _file("QMNIST/raw", name, md5, QMNIST)
            for name, md5 in (
                ("qmnist-train-images-idx3-ubyte.gz", "ed72d4157d28c017586c42bc6afe6370"),
                ("qmnist-train-labels-idx2-int.gz", "0058f8dd561b90ffdd0f734c6a30e5e4"),
                ("qmnist-test-images-idx3-ubyte.gz", "1394631089c404de565df7b7aeaf9412"),
                ("qmnist-test-labels-idx2-int.gz", "5b5b05890a5e13444e108efe57b788aa"),
            )
        ),
        BY_TRAIN,
        10,
        (60_000, 60_000),
        (1, 28, 28),
    ),
    "torchvision.stl10": Published(
        "STL10",
        "photographs of 10 kinds, 96x96",
        (
            _file("", "stl10_binary.tar.gz", "91f7769df0f17e558f3565bffb0c7dfb", STL10, "stl10_binary"),
            PublishedFile("stl10_binary/train_X.bin", "918c2871b30a85fa023e0c44e0bee87f"),
            PublishedFile("stl10_binary/train_y.bin", "5a34089d4802c674881badbb80307741"),
            PublishedFile("stl10_binary/test_X.bin", "7f263ba9f9e0b06b93213547f721ac82"),
            PublishedFile("stl10_binary/test_y.bin", "36f9794fa4beb8a2c72628de14fa638e"),
        ),
        BY_SPLIT,
        10,
        (5_000, 8_000),
        (3, 96, 96),
        # class_names.txt beside the images has no MD5.
        class_names=("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
    ),
    "torchvision.gtsrb": Published(
        "GTSRB",
        "German traffic signs of 43 kinds",
        (
            _file(
                "gtsrb",
                "GTSRB-Training_fixed.zip",
                "513f3c79a4c5141765e10e952eaa2478",
                GTSRB,
                "GTSRB/Training",
            ),
            _file(
                "gtsrb",
                "GTSRB_Final_Test_Images.zip",
                "c7e4e6327067d32654124b0fe9e82185",
                GTSRB,
                "GTSRB/Final_Test",
            ),
            _file(
                "gtsrb",
                "GTSRB_Final_Test_GT.zip",
                "fe31e9c9270bbcd7b84b7f21a9d9d9e5",
                GTSRB,
                "GT-final_test.csv",
            ),
        ),
        BY_SPLIT,
        43,
        (26_640, 12_630),
        formats=("PPM",),
    ),
    "torchvision.flowers102": Published(
        "Flowers102",
        "photographs of 102 flowers, with validation images",
        (
            _file("flowers-102", "102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", FLOWERS, "jpg"),
            _file("flowers-102", "imagelabels.mat", "e0620be6f572b9609742df49c70aed4d", FLOWERS),
            _file("flowers-102", "setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c", FLOWERS),
        ),
        {"train": {"split": "train"}, "validation": {"split": "val"}, "test": {"split": "test"}},
        102,
        (1_020, 1_020, 6_149),
    ),
    "torchvision.pets": Published(
        "OxfordIIITPet",
        "photographs of 37 breeds of cats and dogs",
        (
            _file("oxford-iiit-pet", "images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c", PETS, "images"),
            _file(
                "oxford-iiit-pet",
                "annotations.tar.gz",
                "95a8c909bbe2e81eed6a22bccdf3f68f",
                PETS,
                "annotations",
            ),
        ),
        {"train": {"split": "trainval"}, "test": {"split": "test"}},
        37,
        (3_680, 3_669),
        # In this archive, files that are called .jpg may be GIFs.
        formats=("JPEG", "PNG", "GIF"),
    ),
    "torchvision.food101": Published(
        "Food101",
        "photographs of 101 dishes",
        (_file("", "food-101.tar.gz", "85eeb15f3717b99a5da872d97d918f87", FOOD, "food-101"),),
        BY_SPLIT,
        101,
        (75_750, 25_250),
    ),
    "torchvision.caltech101": Published(
        "Caltech101",
        "photographs of 101 kinds, without splits",
        (
            _file(
                "caltech101",
                "caltech-101.zip",
                "3138e1922a9193bfa496528edbbc45d0",
                CALTECH,
                "101_ObjectCategories",
                "caltech-101/101_ObjectCategories.tar.gz",
            ),
        ),
        WITHOUT,
        101,
        (8_677,),
    ),
    "torchvision.eurosat": Published(
        "EuroSAT",
        "satellite images of 10 kinds of land, 64x64, without splits",
        (_file("eurosat", "EuroSAT.zip", "c8fa014336c82ac7804f0398fcb19387", EUROSAT, "2750"),),
        WITHOUT,
        10,
        (27_000,),
    ),
}
