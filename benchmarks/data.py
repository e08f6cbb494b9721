"""Folders of images: epochs, memory of workers and the first decode, against torch's loader and Pillow.

The images are JPEGs of smooth noise in a temporary folder, which also is the data folder.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import AtLeast, AtMost, Job, Reported, SideResult, benchmark, main
from orchestrator.data import decoded_cache, files
from orchestrator.data.augmentation import Augmenter
from orchestrator.data.batches import iter_batches
from orchestrator.data.loading import Split, load_dataset
from orchestrator.system.memory import disable_malloc_trim

CLASSES = 4
WORKERS = 4
BYTES = 2_000_000_000  # of the set that four workers train on, decoded
SIDE, BATCH, STEPS = 448, 4, 4  # of what each of them trains on, and of its batches
# Trains the first steps of an epoch, on a set or on random floats, and prints its private memory in MB,
# without those floats. Pages of mapped files are not private.
WORKER = f"""
import sys
from pathlib import Path
import torch, models
from orchestrator.config import Train
from orchestrator.data.loading import Split, load_dataset
from orchestrator.system.memory import disable_malloc_trim
from orchestrator.training.inputs import Inputs

torch.set_num_threads(1)
disable_malloc_trim()
if len(sys.argv) > 1:
    split, floats = load_dataset(sys.argv[1], data_dir=Path(sys.argv[2])).train, 0
else:
    images = torch.randn({BATCH * STEPS}, 3, {SIDE}, {SIDE})
    split, floats = Split(images, torch.arange(len(images)) % {CLASSES}), images.nbytes
net = models.build("cnn", input_shape=(3, {SIDE}, {SIDE}), num_classes={CLASSES})
optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
inputs = Inputs(split, Train(augment="crop_flip"), torch.Generator().manual_seed(0))
for step, (_, parts) in enumerate(inputs.epoch({BATCH}, micro_batch={BATCH})):
    for images, labels in parts:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images), labels.own).backward()
        optimizer.step()
    if step + 1 == {STEPS}:
        break
lines = [line.split() for line in open("/proc/self/smaps_rollup")]
print(sum(int(words[1]) for words in lines if words[0] == "Anonymous:") / 1000 - floats / 1e6, flush=True)
sys.stdin.read()
"""


def write_jpegs(folder: Path, count: int, height: int, width: int) -> None:
    """Write images of smooth noise, as many in each of four folders."""
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(count):
        target = folder / f"class {number % CLASSES}" / f"{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 256, (max(2, height // 16), max(2, width // 16), 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        pixels = smooth.astype(np.int64) + random.integers(-8, 9, (height, width, 1))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(target, quality=85)


def text_of(folder: Path, size: int) -> str:
    return f"folder(path={str(folder)!r}, size={size})"


@contextmanager
def temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="orchestrate-bench-") as folder:
        yield Path(folder)


# ---- epochs after the first


class LabelledFiles(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """torchvision's ImageFolder on some of its files: those of our training split."""

    def __init__(self, folder: Path, count: int, transform: Any) -> None:
        from models.torchvision_compat import datasets

        self.images, self.count = datasets.ImageFolder(str(folder), transform), count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.images[index]
        return image, label


def iterate_split(split: Split, kind: str, generator: torch.Generator, *, batch: int, threads: int) -> int:
    """Read and augment an epoch; return the number of images."""
    torch.set_num_threads(threads)
    augment, images = Augmenter(kind, generator, split.images), 0
    for read in augment.read_batches(iter_batches(len(split), batch, generator)):
        images += len(augment(read))
    return images


def iterate_loader(loader: Any) -> int:
    torch.set_num_threads(1)
    return sum(len(labels) for _, labels in loader)


@dataclass(frozen=True)
class Epoch:
    """What an epoch is of: so many JPEGs of a size, decoded to squares, and augmented."""

    what: str
    count: int
    jpeg: tuple[int, int]
    size: int
    kind: str
    batch: int
    claim: AtLeast

    def job(self, split: Split, dataset: LabelledFiles, *, workers: int, threads: int) -> Job:
        loader = torch.utils.data.DataLoader(
            dataset, self.batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )
        generator = torch.Generator().manual_seed(0)
        with_workers = f"{workers} workers" if workers else "no workers"
        height, width = self.jpeg
        return Job(
            f"an epoch of {len(split):,} JPEGs, {self.what}, {threads} thread{'s' * (threads > 1)}",
            ours=partial(iterate_split, split, self.kind, generator, batch=self.batch, threads=threads),
            baseline=partial(iterate_loader, loader),
            baseline_name=f"DataLoader over ImageFolder, {with_workers}",
            claims=(self.claim,),
            rounds=3,
            equal="the number of images",
            note=f"JPEGs of {height}x{width} pixels. Beside the threads of torch, one reads ahead.",
        )


CROPPED = "224x224, random resized crop and flip"
EPOCHS = (
    Epoch("64x64, crop and flip", 7000, (64, 64), 64, "crop_flip", 256, AtLeast(20.0)),
    Epoch(CROPPED, 700, (375, 500), 224, "resized_crop + flip", 32, AtLeast(8.0)),
)


@benchmark
def epochs() -> Iterator[Job]:
    """Epochs after the first: reading and augmenting alone."""
    from models.torchvision_compat import transforms

    disable_malloc_trim()
    scaled = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.25,) * 3)]
    flip = transforms.RandomHorizontalFlip()
    moves = (transforms.RandomCrop(64, padding=8), transforms.RandomResizedCrop(224))
    for epoch, move in zip(EPOCHS, moves, strict=True):
        with temporary_folder() as folder:
            write_jpegs(folder / "photos", epoch.count, *epoch.jpeg)
            split = load_large(text_of(folder / "photos", epoch.size), folder)
            transform = transforms.Compose([move, flip, *scaled])
            dataset = LabelledFiles(folder / "photos", len(split), transform)
            for workers, threads in ((0, 1), (2, 2)):
                yield epoch.job(split, dataset, workers=workers, threads=threads)


def load_large(text: str, data_dir: Path) -> Split:
    """Load the training split of a set as if it was large: decoded into a file, and kept as bytes."""
    from orchestrator.data import loading

    quick, floats = decoded_cache.QUICK_BYTES, loading.FLOAT_BYTES
    decoded_cache.QUICK_BYTES = loading.FLOAT_BYTES = 0
    try:
        return load_dataset(text, data_dir=data_dir).train
    finally:
        decoded_cache.QUICK_BYTES, loading.FLOAT_BYTES = quick, floats


# ---- memory


def worker_memory(*words: str) -> float:
    """Start the workers, and return the private MB of the largest while all of them hold their data."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(WORKERS)
    ]
    memory = [float(process.stdout.readline()) for process in processes if process.stdout]
    for process in processes:
        process.communicate()
    return max(memory)


def measure_workers(text: str, data_dir: Path) -> SideResult:
    training = worker_memory()
    return SideResult(
        measures={
            "private MB above its training": worker_memory(text, str(data_dir)) - training,
            "private MB of its training": training,
        }
    )


@benchmark
def memory() -> Iterator[Job]:
    """Private memory of four workers on JPEGs of 2 GB."""
    yield from memory_jobs({"JPEGs": write_photos})


@benchmark(full=True)
def memory_of_arrays() -> Iterator[Job]:
    """The same on arrays."""
    yield from memory_jobs({"npz": write_npz, "npy": write_npy})


def memory_jobs(writers: Mapping[str, Callable[[Path, int], str]]) -> Iterator[Job]:
    count = BYTES // (3 * SIDE**2)
    for form, write in writers.items():
        with temporary_folder() as folder:
            text = write(folder, count)
            files.read_raw(text, folder)
            what = "" if form == "JPEGs" else f" of an {form}"
            yield Job(
                f"{WORKERS} workers on {count:,} images{what} of {SIDE}x{SIDE}, {BYTES / 1e9:g} GB decoded",
                ours=partial(measure_workers, text, folder),
                claims=(
                    AtMost(200, measure="private MB above its training", unit="MB"),
                    Reported("private MB of its training", "MB"),
                ),
                rounds=1,
                warm=False,
                note="That of the largest worker, above the same steps of training on random floats. Pages "
                "of the decoded file are in the page cache once, and not counted. That of the training alone "
                "differs by 100 MB from run to run.",
            )


def write_photos(folder: Path, count: int) -> str:
    write_jpegs(folder / "photos", count, 96, 96)
    return text_of(folder / "photos", SIDE)


def write_npy(folder: Path, count: int) -> str:
    """Write uint8 images of random numbers, image by image, and return the text of the set."""
    x = np.lib.format.open_memmap(folder / "x.npy", mode="w+", dtype=np.uint8, shape=(count, 3, SIDE, SIDE))
    random = np.random.default_rng(0)
    for number in range(count):
        x[number] = random.integers(0, 256, x.shape[1:], dtype=np.uint8)
    np.save(folder / "y.npy", np.arange(count) % CLASSES)
    return f"npy(x={str(folder / 'x.npy')!r}, y={str(folder / 'y.npy')!r})"


def write_npz(folder: Path, count: int) -> str:
    write_npy(folder, count)
    np.savez(folder / "a.npz", x=np.load(folder / "x.npy", mmap_mode="r"), y=np.load(folder / "y.npy"))
    (folder / "x.npy").unlink()
    return f"npz(path={str(folder / 'a.npz')!r})"


# ---- the first decode


def decode_ours(text: str, folder: Path) -> Any:
    """Decode a folder into a file of the data folder."""
    shutil.rmtree(folder / decoded_cache.FOLDER, ignore_errors=True)
    return int(files.read_raw(text, folder).images.sum(dtype=np.int64))


def decode_by_pillow(paths: list[str], size: int) -> int:
    """Decode files to squares in one array; return the sum of its pixels."""
    from PIL import Image, ImageOps

    pixels = np.empty((len(paths), size, size, 3), dtype=np.uint8)
    for number, path in enumerate(paths):
        with Image.open(path) as image:
            pixels[number] = np.asarray(
                ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
            )
    return int(pixels.sum(dtype=np.int64))


def decode_in_processes(pool: ProcessPoolExecutor, paths: list[str], size: int) -> int:
    return sum(pool.map(partial(decode_by_pillow, size=size), (paths[::2], paths[1::2])))


@benchmark
def first_decode() -> Iterator[Job]:
    """Decode a folder for the first time, on two cores."""
    count, size = 1500, 224
    with temporary_folder() as folder, ProcessPoolExecutor(2) as pool:
        write_jpegs(folder / "photos", count, 375, 500)
        text, paths = text_of(folder / "photos", size), sorted(map(str, folder.glob("photos/*/*.jpg")))
        yield Job(
            f"first decode of {count:,} JPEGs of 375x500 to {size}x{size}, two cores",
            ours=partial(decode_ours, text, folder),
            baseline=partial(decode_in_processes, pool, paths, size),
            baseline_name="Pillow alone, two processes",
            claims=(AtMost(1.15),),
            rounds=3,
            equal="the sum of all pixels",
        )


if __name__ == "__main__":
    main(__file__)
