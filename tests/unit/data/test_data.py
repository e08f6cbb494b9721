"""Data: splits, digest, options, batches, augmentation; torchvision's loaders on small files as they come."""

from __future__ import annotations

import gzip
import io
import math
import pickle
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from functools import partial
from hashlib import md5
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from models.torchvision_compat import datasets as vision
from orchestrator.data import datasets, files, loading
from orchestrator.data.augmentation import augment, augmentations
from orchestrator.data.batches import balanced_sample, iter_batches
from orchestrator.data.files import check_files
from orchestrator.data.splits import stratified_split
from orchestrator.errors import DataError, SpaceError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- what is known without loading


def test_import_and_metadata_load_nothing_heavy():
    code = (
        "import sys; from orchestrator.data import datasets, files; datasets.split_sizes('cifar10'); "
        "print({'torch', 'sklearn', 'torchvision', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("digits", (1257, 180, 360)),
        ("mnist", (54_000, 6_000, 10_000)),
        ("fashion-mnist", (54_000, 6_000, 10_000)),
        ("cifar10", (45_000, 5_000, 10_000)),
        ("cifar100", (45_000, 5_000, 10_000)),
    ],
)
def test_split_sizes(name, sizes):
    assert datasets.split_sizes(name) == sizes
    assert datasets.DATASETS[name].name == name


def test_split_sizes_of_a_part_of_a_balanced_data_set():
    assert datasets.split_sizes("cifar10", classes=[7, 2]) == (9_000, 1_000, 2_000)
    assert datasets.split_sizes("cifar100", samples_per_class=20) == (2_000, 5_000, 10_000)


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(SpaceError, match="unknown dataset 'cifar-10'; did you mean cifar10"):
        datasets.info("cifar-10")


@pytest.mark.parametrize("classes", [[], [3], [1, 1], [0, 10], [-1, 2]])
def test_bad_classes_say_what_is_allowed(classes):
    with pytest.raises(SpaceError, match="from 0 to 9"):
        loading.load_dataset("digits", classes=classes)


def test_samples_per_class_is_one_or_more():
    with pytest.raises(SpaceError, match="samples_per_class=0; give 1 or more"):
        datasets.split_sizes("digits", samples_per_class=0)


def test_data_dir_argument_then_environment_then_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ORCHESTRATE_DATA_DIR", str(tmp_path / "environment"))
    assert files.data_folder() == tmp_path / "environment"
    assert files.data_folder(tmp_path / "argument") == tmp_path / "argument"
    monkeypatch.delenv("ORCHESTRATE_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.data_folder() == tmp_path / ".cache" / "orchestrate" / "data"
    assert files.data_folder(Path("here")).is_absolute()


# ---- digits


@pytest.fixture(scope="module")
def digits() -> loading.Dataset:
    return loading.load_dataset("digits")


@given(st.lists(st.integers(0, 5), min_size=2, max_size=60), st.floats(0.05, 0.9), st.integers(0, 2**32 - 1))
def test_a_stratified_split_is_scikit_learns_position_by_position(labels, share, seed):
    labels, count = np.array(labels, dtype=np.int64), math.ceil(share * len(labels))
    positions = np.arange(len(labels))
    try:
        expected = train_test_split(positions, test_size=count, stratify=labels, random_state=seed)
    except ValueError:
        with pytest.raises(ValueError, match="either side"):
            stratified_split(labels, count, seed=seed)
        return
    for found, theirs in zip(stratified_split(labels, count, seed=seed), expected, strict=True):
        assert np.array_equal(found, theirs)


def test_digits_are_scikit_learns_own_stratified_splits(digits):
    pixels, labels = load_digits(return_X_y=True)
    rest, test, rest_labels, test_labels = train_test_split(
        pixels, labels, test_size=0.2, stratify=labels, random_state=0
    )
    train, validation, train_labels, validation_labels = train_test_split(
        rest, rest_labels, test_size=180, stratify=rest_labels, random_state=0
    )
    for split, images, expected in (
        (digits.train, train, train_labels),
        (digits.validation, validation, validation_labels),
        (digits.test, test, test_labels),
    ):
        assert torch.equal(split.images, torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8))
        assert torch.equal(split.labels, torch.tensor(expected))


def test_digits_have_the_sizes_and_class_counts_that_are_written_down(digits):
    splits = (digits.train, digits.validation, digits.test)
    assert tuple(len(split) for split in splits) == datasets.split_sizes("digits")
    assert (
        tuple(tuple(split.labels.bincount().tolist()) for split in splits)
        == datasets.info("digits").per_class
    )
    assert digits.train.images.dtype == torch.float32
    assert digits.train.labels.dtype == torch.int64
    assert (digits.num_classes, digits.input_shape) == (10, (1, 8, 8))
    assert digits.class_names == tuple("0123456789")


def test_digits_are_the_same_whatever_the_global_seeds(digits):
    np.random.seed(7)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    again = loading.load_dataset("digits")
    assert again.digest == digits.digest
    assert torch.equal(again.train.images, digits.train.images)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.random.get_state()[1][0] == 7


def test_the_digest_tells_other_data_apart(digits):
    others = [{"classes": [0, 1]}, {"classes": [1, 0]}, {"samples_per_class": 5}]
    digests = {loading.load_dataset("digits", **options).digest for options in others}
    assert len(digests | {digits.digest}) == 4
    assert len(digits.digest) == 64


@pytest.mark.parametrize(
    "options",
    [{"classes": [8, 1, 4]}, {"samples_per_class": 123}, {"classes": [3, 8], "samples_per_class": 10}],
)
def test_sizes_with_options_are_known_without_loading(options):
    loaded = loading.load_dataset("digits", **options)
    sizes = (len(loaded.train), len(loaded.validation), len(loaded.test))
    assert sizes == datasets.split_sizes("digits", **options)


def test_classes_are_relabelled_in_the_order_given_and_stay_in_their_split(digits):
    part = loading.load_dataset("digits", classes=[9, 2])
    assert (part.num_classes, part.class_names) == (2, ("9", "2"))
    for old, new in (
        (digits.train, part.train),
        (digits.validation, part.validation),
        (digits.test, part.test),
    ):
        kept = (old.labels == 9) | (old.labels == 2)
        assert torch.equal(new.images, old.images[kept])
        assert torch.equal(new.labels, (old.labels[kept] == 2).long())


def test_samples_per_class_limits_training_only(digits):
    few = loading.load_dataset("digits", samples_per_class=7)
    assert few.train.labels.bincount().tolist() == [7] * 10
    assert torch.equal(few.test.images, digits.test.images)
    assert torch.equal(few.validation.labels, digits.validation.labels)
    whole = {image.numpy().tobytes() for image in digits.train.images}
    assert all(image.numpy().tobytes() in whole for image in few.train.images)


# ---- batches, samples, augmentation


@given(st.integers(1, 300), st.integers(1, 80), st.integers(0, 9))
def test_batches_cover_each_index_once(size, batch_size, seed):
    parts = list(iter_batches(size, batch_size, seeded(seed)))
    assert sorted(torch.cat(parts).tolist()) == list(range(size))
    lone = size % batch_size == 1 and size > batch_size > 1  # a last image on its own joins the batch before
    assert [len(part) for part in parts[:-1]] == [batch_size] * (len(parts) - 1)
    assert len(parts) == -(-size // batch_size) - lone
    assert len(parts[-1]) == (batch_size + 1 if lone else (size - 1) % batch_size + 1)
    again = iter_batches(size, batch_size, seeded(seed))
    assert all(torch.equal(one, other) for one, other in zip(parts, again, strict=True))


def test_batches_draw_when_called_and_refuse_nothing_to_draw():
    generator = seeded(0)
    first, second = iter_batches(50, 50, generator), iter_batches(50, 50, generator)
    order_of_second = next(second)
    assert torch.equal(next(first), next(iter_batches(50, 50, seeded(0))))
    assert not torch.equal(order_of_second, next(iter_batches(50, 50, seeded(0))))
    with pytest.raises(ValueError, match="batch_size=0"):
        iter_batches(5, 0, generator)


def test_balanced_sample_has_the_same_number_of_every_class(digits):
    images, labels = balanced_sample(digits.train, per_class=10, seed=3)
    assert images.shape == (100, 1, 8, 8)
    assert labels.tolist() == [label for label in range(10) for _ in range(10)]
    assert len({image.numpy().tobytes() for image in images}) == 100
    same, _ = balanced_sample(digits.train, per_class=10, seed=3)
    other, _ = balanced_sample(digits.train, per_class=10, seed=4)
    assert torch.equal(images, same)
    assert not torch.equal(images, other)


@pytest.mark.parametrize("per_class", [0, 122])
def test_balanced_sample_says_how_many_there_are(digits, per_class):
    with pytest.raises(SpaceError, match="give 1 to 121"):
        balanced_sample(digits.train, per_class=per_class, seed=0)


@pytest.mark.parametrize("kind", list(augmentations))
def test_augmentation_with_the_same_seed_has_the_same_bits(kind):
    images = torch.rand(32, 3, 16, 16, generator=seeded(0))
    before = images.clone()
    one, same = (augment(images, seeded(5), kind=kind) for _ in range(2))
    assert torch.equal(one, same)
    assert one.shape == images.shape
    assert torch.equal(images, before)
    assert torch.equal(one, images) == (kind == "none")
    assert torch.equal(one, augment(images, seeded(6), kind=kind)) == (kind == "none")


def test_flip_mirrors_about_half_and_leaves_the_rest():
    images = torch.rand(400, 2, 5, 7, generator=seeded(0))
    flipped = augment(images, seeded(1), kind="flip")
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    kept = (flipped == images).flatten(1).all(1)
    assert torch.equal(mirrored, ~kept)
    assert 150 < int(mirrored.sum()) < 250


@pytest.mark.parametrize(("size", "pad"), [(8, 1), (28, 4), (32, 4)])
def test_each_crop_is_one_of_the_crops_made_by_hand_and_all_of_them_occur(size, pad):
    image = torch.rand(2, size, size, generator=seeded(0))
    frame = torch.zeros(2, size + 2 * pad, size + 2 * pad)
    frame[:, pad : pad + size, pad : pad + size] = image
    by_hand = {}
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            window = frame[:, top : top + size, left : left + size]
            by_hand[window.numpy().tobytes()] = (top, left, False)
            by_hand[window.flip(-1).contiguous().numpy().tobytes()] = (top, left, True)
    drawn = augment(image.expand(2_000, -1, -1, -1), seeded(2), kind="crop_flip")
    seen = {by_hand[one.numpy().tobytes()] for one in drawn}
    assert seen == set(by_hand.values())


def test_an_unknown_augmentation_lists_the_nearest():
    with pytest.raises(SpaceError, match="did you mean flip"):
        augment(torch.zeros(1, 1, 2, 2), seeded(0), kind="flips")


# ---- files in the true formats


def idx(array: np.ndarray) -> bytes:
    """The IDX format: magic 0x0000 08 <dimensions>, big-endian sizes, bytes; gzipped."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


def grey(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return images, np.arange(count) % 10


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[tuple[str, Path]]:
    """(address, folder) of an HTTP server on the loopback."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    # torchvision looks for redirects with a request whose answer it drops: a broken pipe, printed
    monkeypatch.setattr(ThreadingHTTPServer, "handle_error", lambda *_: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = Thread(target=partial(running.serve_forever, poll_interval=0.01), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/", folder
        running.shutdown()
        thread.join()


@pytest.fixture(params=["mnist", "fashion-mnist"])
def small_mnist(request, server, monkeypatch) -> str:
    """200 training and 30 test images, served; torchvision's class told of their MD5."""
    address, folder = server
    source = {"mnist": vision.MNIST, "fashion-mnist": vision.FashionMNIST}[request.param]
    contents = {}
    for part, count, seed in (("train", 200, 0), ("t10k", 30, 1)):
        images, labels = grey(count, seed)
        contents[f"{part}-images-idx3-ubyte.gz"] = idx(images)
        contents[f"{part}-labels-idx1-ubyte.gz"] = idx(labels)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    resources = [(name, md5(content).hexdigest()) for name, content in contents.items()]
    monkeypatch.setattr(source, "resources", resources)
    monkeypatch.setattr(source, "mirrors", [address + "gone/", address])
    return str(request.param)


def raw_folder(name: str, root: Path) -> Path:
    return root / {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[name] / "raw"


def test_mnist_is_fetched_from_the_second_mirror_and_loaded(small_mnist, tmp_path, capfd):
    root = tmp_path / "data"
    assert len(files.verify(small_mnist, root)) == 4
    assert files.fetch(small_mnist, root) == root
    assert files.verify(small_mnist, root) == []
    assert sorted(file.suffix for file in raw_folder(small_mnist, root).iterdir()) == [".gz"] * 4
    loaded = loading.load_dataset(small_mnist, data_dir=root)
    assert [len(part) for part in (loaded.train, loaded.validation, loaded.test)] == [180, 20, 30]
    assert loaded.validation.labels.bincount().tolist() == [2] * 10
    assert capfd.readouterr() == ("", "")


def test_mnist_is_scaled_by_its_own_training_split(small_mnist, tmp_path):
    files.fetch(small_mnist, tmp_path)
    loaded = loading.load_dataset(small_mnist, data_dir=tmp_path)
    images, labels = grey(200, 0)
    chosen, _ = train_test_split(np.arange(200), test_size=20, stratify=labels, random_state=0)
    pixels = images[chosen].astype(np.float64) / 255
    test_images, test_labels = grey(30, 1)
    expected = (test_images.astype(np.float64) / 255 - pixels.mean()) / pixels.std()
    np.testing.assert_allclose(loaded.test.images[:, 0].numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(
        loaded.train.images[:, 0].numpy(), (pixels - pixels.mean()) / pixels.std(), atol=1e-6
    )
    assert loaded.test.labels.tolist() == test_labels.tolist()
    part = loading.load_dataset(small_mnist, data_dir=tmp_path, classes=[0, 1], samples_per_class=3)
    assert torch.equal(part.test.images, loaded.test.images[loaded.test.labels < 2])
    assert len(part.train) == 6


def test_a_corrupt_file_is_one_line_and_is_fetched_again(small_mnist, tmp_path):
    files.fetch(small_mnist, tmp_path)
    file = raw_folder(small_mnist, tmp_path) / "train-images-idx3-ubyte.gz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        loading.load_dataset(small_mnist, data_dir=tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert f"{file} is corrupt: {len(content)} bytes with md5 {md5(content).hexdigest()}, expected" in message
    assert "'digits'" in message
    assert caught.value.exit_code == 4
    files.fetch(small_mnist, tmp_path)
    assert files.verify(small_mnist, tmp_path) == []


def test_what_is_unpacked_or_processed_beside_the_archives_is_not_trusted(small_mnist, tmp_path):
    files.fetch(small_mnist, tmp_path)
    digest = loading.load_dataset(small_mnist, data_dir=tmp_path).digest
    folder = raw_folder(small_mnist, tmp_path)
    (folder / "train-images-idx3-ubyte").write_bytes(b"other")
    (folder.parent / "processed").mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save(
            (torch.zeros(1, 28, 28, dtype=torch.uint8), torch.zeros(1)), folder.parent / "processed" / name
        )
    assert loading.load_dataset(small_mnist, data_dir=tmp_path).digest == digest


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_missing_data_names_the_file_its_md5_and_digits(name, tmp_path):
    with pytest.raises(DataError) as caught:
        loading.load_dataset(name, data_dir=tmp_path)
    message = str(caught.value)
    with pytest.raises(DataError) as beforehand:
        check_files(name, tmp_path)
    assert str(beforehand.value) == message
    check_files("digits", tmp_path)
    assert "\n" not in message
    for part in (str(tmp_path), "is missing (expected md5", f"orchestrate data fetch {name}", "'digits'"):
        assert part in message
    assert list(tmp_path.iterdir()) == []


def test_digits_need_no_files(tmp_path):
    assert files.verify("digits", tmp_path) == []
    assert files.fetch("digits", tmp_path / "none") == tmp_path / "none"
    assert not (tmp_path / "none").exists()


def refused(address: str) -> str:
    return "http://127.0.0.1:9/"  # the discard port: nothing listens


def absent(address: str) -> str:
    return address + "absent/"


@pytest.mark.parametrize("broken", [refused, absent])
def test_a_network_failure_is_one_line(broken, server, monkeypatch, tmp_path):
    monkeypatch.setattr(vision.MNIST, "mirrors", [broken(server[0])])
    monkeypatch.setattr(vision.CIFAR10, "url", broken(server[0]) + "cifar-10-python.tar.gz")
    for name, file in (("mnist", "train-images-idx3-ubyte.gz"), ("cifar10", "cifar-10-python.tar.gz")):
        with pytest.raises(DataError) as caught:
            files.fetch(name, tmp_path / "data")
        message = str(caught.value)
        assert "\n" not in message
        assert f"could not fetch {file}" in message
        assert "by hand" in message
        assert "'digits'" in message
    assert [file for file in (tmp_path / "data").rglob("*") if file.is_file()] == []


def test_a_wrong_download_is_not_kept(server, monkeypatch, tmp_path):
    address, folder = server
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"a captive portal")
    monkeypatch.setattr(vision.MNIST, "mirrors", [address])
    with pytest.raises(DataError, match="could not fetch train-images-idx3-ubyte"):
        files.fetch("mnist", tmp_path / "data")
    assert [file for file in (tmp_path / "data").rglob("*") if file.is_file()] == []


def cifar_batches(name: str) -> dict[str, dict[str, object]]:
    """What is pickled: uint8 [n, 3072] by channel, a list of labels; 10 training images of each class."""
    rng = np.random.default_rng(0)
    classes, labels, names = (
        (10, "labels", "label_names") if name == "cifar10" else (100, "fine_labels", "fine_label_names")
    )
    parts = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"]
    training = parts if name == "cifar10" else ["train"]
    each = 10 * classes // len(training)
    counts = dict.fromkeys(training, each) | {"test_batch" if name == "cifar10" else "test": classes}
    batches: dict[str, dict[str, object]] = {
        part: {
            "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
            labels: [index % classes for index in range(count)],
        }
        for part, count in counts.items()
    }
    meta = "batches.meta" if name == "cifar10" else "meta"
    return batches | {meta: {names: [f"class {index}" for index in range(classes)]}}


@pytest.fixture(params=["cifar10", "cifar100"])
def small_cifar(request, server, monkeypatch) -> tuple[str, type, dict[str, dict[str, object]]]:
    """A tar.gz of real pickles, served; torchvision's class told of their MD5."""
    address, folder = server
    name = str(request.param)
    source = {"cifar10": vision.CIFAR10, "cifar100": vision.CIFAR100}[name]
    batches = cifar_batches(name)
    pickles = {part: pickle.dumps(content, protocol=2) for part, content in batches.items()}
    with tarfile.open(folder / source.filename, "w:gz", compresslevel=1) as tar:
        for part, content in pickles.items():
            member = tarfile.TarInfo(f"{source.base_folder}/{part}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    known = {part: md5(content).hexdigest() for part, content in pickles.items()}
    for listing in ("train_list", "test_list"):
        monkeypatch.setattr(source, listing, [[part, known[part]] for part, _ in getattr(source, listing)])
    monkeypatch.setattr(source, "meta", source.meta | {"md5": known[source.meta["filename"]]})
    monkeypatch.setattr(source, "tgz_md5", md5((folder / source.filename).read_bytes()).hexdigest())
    monkeypatch.setattr(source, "url", address + source.filename)
    return name, source, batches


def test_cifar_is_fetched_unpacked_and_loaded(small_cifar, tmp_path):
    name, source, batches = small_cifar
    root = files.fetch(name, tmp_path / "data")
    assert sorted(file.name for file in root.iterdir()) == sorted([source.base_folder, source.filename])
    assert sorted(file.name for file in (root / source.base_folder).iterdir()) == sorted(batches)
    loaded = loading.load_dataset(name, data_dir=root)
    shared = files.read_raw(name, root)
    assert shared.file is not None  # all workers read the pages of one decoded file
    assert np.array_equal(shared.read(np.arange(len(shared.images))), shared.images)
    assert loading.load_dataset(name, data_dir=root).digest == loaded.digest
    classes = datasets.info(name).num_classes
    assert [len(part) for part in (loaded.train, loaded.validation, loaded.test)] == [
        9 * classes,
        classes,
        classes,
    ]
    assert loaded.validation.labels.bincount().tolist() == [1] * classes
    assert loaded.class_names[:2] == ("class 0", "class 1")
    pixels = batches[source.test_list[0][0]]["data"].reshape(-1, 3, 32, 32)
    for channel in range(3):  # scaling is affine and rising, so channels and pixels keep their places
        scaled = loaded.test.images[:, channel].flatten().double().numpy()
        assert np.corrcoef(scaled, pixels[:, channel].ravel())[0, 1] > 1 - 1e-9
        torch.testing.assert_close(
            loaded.train.images[:, channel].mean(), torch.tensor(0.0), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            loaded.train.images[:, channel].std(correction=0), torch.tensor(1.0), atol=1e-5, rtol=0
        )


def test_an_archive_put_there_by_hand_is_enough(small_cifar, server, tmp_path):
    name, source, _ = small_cifar
    (tmp_path / source.filename).write_bytes((server[1] / source.filename).read_bytes())
    assert files.verify(name, tmp_path) == []
    assert len(loading.load_dataset(name, data_dir=tmp_path).test) == datasets.info(name).num_classes
    assert sorted(file.name for file in tmp_path.glob(f"{source.base_folder}/.*")) == []


class Bomb:
    """A pickle that makes a file when it is opened."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.file,)


def test_no_pickle_is_opened_before_its_md5_is_right(small_cifar, tmp_path):
    name, source, batches = small_cifar
    root, sign = tmp_path / "data", tmp_path / "went-off"
    files.fetch(name, root)
    bomb = pickle.dumps(Bomb(sign))
    for part in batches:
        (root / source.base_folder / part).write_bytes(bomb)
    (root / source.filename).rename(tmp_path / "archive")
    with pytest.raises(DataError, match="is missing"):
        loading.load_dataset(name, data_dir=root)
    (root / source.filename).write_bytes(b"no archive")
    with pytest.raises(DataError, match=f"{source.filename} is corrupt: 10 bytes"):
        loading.load_dataset(name, data_dir=root)
    (tmp_path / "archive").replace(root / source.filename)
    assert len(loading.load_dataset(name, data_dir=root).test) == datasets.info(name).num_classes
    assert not sign.exists()


def test_the_digest_is_of_what_was_read(small_mnist, tmp_path, monkeypatch):
    files.fetch(small_mnist, tmp_path)
    before = loading.load_dataset(small_mnist, data_dir=tmp_path).digest
    source = {"mnist": vision.MNIST, "fashion-mnist": vision.FashionMNIST}[small_mnist]
    images, _ = grey(200, 0)
    images[0, 0, 0] ^= 1
    changed = idx(images)
    (raw_folder(small_mnist, tmp_path) / "train-images-idx3-ubyte.gz").write_bytes(changed)
    resources = [(source.resources[0][0], md5(changed).hexdigest()), *source.resources[1:]]
    monkeypatch.setattr(source, "resources", resources)
    assert loading.load_dataset(small_mnist, data_dir=tmp_path).digest != before


@pytest.mark.gpu
def test_augmentation_and_data_are_the_same_on_a_gpu(digits):
    moved = loading.load_dataset("digits", device="cuda")
    assert torch.equal(moved.train.images.cpu(), digits.train.images)
    images = digits.train.images[:64]
    there = augment(images.cuda(), seeded(0), kind="crop_flip")
    assert torch.equal(there.cpu(), augment(images, seeded(0), kind="crop_flip"))
    assert balanced_sample(moved.train, per_class=2, seed=0)[0].is_cuda


def test_a_selection_within_the_name_is_no_unknown_option() -> None:
    with pytest.raises(SpaceError, match="here classes are arguments beside the name digits"):
        loading.load_dataset("digits(classes=[0, 1])")
