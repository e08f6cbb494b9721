"""`torchvision.NAME` on small files in the true formats: fetched, read, split, refused."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from hashlib import md5
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from in_process import orchestrate
from sklearn.model_selection import train_test_split
from small_published import EMNIST_CLASSES, MAKERS, Files, pixels

from models.torchvision_compat import datasets as vision
from orchestrator.data import datasets, decoded_cache, files, loading
from orchestrator.data.sources import published_files, torchvision_arrays, torchvision_sources
from orchestrator.data.sources.published_datasets import PUBLISHED
from orchestrator.data.sources.registry import find_source
from orchestrator.errors import DataError, SpaceError
from orchestrator.planning.fingerprints import clear_caches
from orchestrator.space.catalog import describe
from orchestrator.space.values import canonical_dataset

Array = np.ndarray[Any, Any]

ARRAYS = [name for name, row in PUBLISHED.items() if row.shape is not None]
SPACE = """\
axes:
  model: [slp]
  dataset: ["{name}"]
  technique: [weight]
  amount: [0.5]
train: {{epochs: 1}}
recover: none
"""


@cache
def contents(name: str) -> Files:
    return MAKERS[name]()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of an HTTP server, for the published files; the data folder is `data` beside it."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("ORCHESTRATE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setattr(ThreadingHTTPServer, "handle_error", lambda *_: None)
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    clear_caches()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        Thread(target=partial(running.serve_forever, poll_interval=0.01), daemon=True).start()
        for name in PUBLISHED:
            use_small(name, folder, f"http://127.0.0.1:{running.server_port}/", monkeypatch)
        yield folder
        running.shutdown()


def use_small(name: str, folder: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve a small data set, and tell the table and torchvision its MD5s."""
    row, small = PUBLISHED[name], contents(name)
    sums = {path: md5(content).hexdigest() for path, content in small.items()}
    for file in (file for file in row.files if file.urls):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / Path(file.path).name).write_bytes(small[file.path])
    listed = tuple(
        replace(
            file,
            md5=sums[file.path],
            urls=(f"{address}gone/", f"{address}{name}/{Path(file.path).name}") if file.urls else (),
        )
        for file in row.files
    )
    counts = {"torchvision.gtsrb": (40, 12), "torchvision.flowers102": (12, 8, 40)}
    images = counts.get(name, (45, 15) if len(row.images) == 2 else (60,))
    monkeypatch.setattr(torchvision_sources.CLASSES[name], "row", replace(row, files=listed, images=images))
    if name == "torchvision.svhn":
        own = {part: ["", f"{part}_32x32.mat", sums[f"{part}_32x32.mat"]] for part in ("train", "test")}
        monkeypatch.setattr(vision.SVHN, "split_list", own)
    if name == "torchvision.flowers102":
        mats = {"label": "imagelabels.mat", "setid": "setid.mat"}
        own = {key: (file, sums[f"flowers-102/{file}"]) for key, file in mats.items()}
        monkeypatch.setattr(vision.Flowers102, "_file_dict", own)
    if name == "torchvision.stl10":
        for part in ("train", "test"):
            own = [[f"{part}_{x}.bin", sums[f"stl10_binary/{part}_{x}.bin"]] for x in "Xy"]
            monkeypatch.setattr(vision.STL10, f"{part}_list", own)


def fetched(name: str) -> Path:
    files.fetch(name)
    clear_caches()
    return files.data_folder()


# ---- the table


@pytest.mark.parametrize("name", PUBLISHED)
def test_files_addresses_and_md5s_are_torchvision_s(name: str) -> None:
    row = PUBLISHED[name]
    source = inspect.getsource(inspect.getmodule(getattr(vision, row.source)))
    for file in row.files:
        assert file.md5 in source
        assert file.path.rpartition("/")[2] in source
        for url in file.urls:
            base = url.removesuffix(url.rpartition("/")[2])
            assert url in source or base in source


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_name_is_a_text_that_show_describes(name: str) -> None:
    assert canonical_dataset(name) == name
    assert find_source(name).name == name
    text = describe(name)
    assert text.startswith(f"dataset {name}: {PUBLISHED[name].about}")
    assert f"{PUBLISHED[name].classes} classes" in text


def test_unknown_names_and_options_list_the_near_ones() -> None:
    with pytest.raises(
        ValueError, match=r"unknown dataset 'torchvision.svnh'; did you mean torchvision.svhn"
    ):
        canonical_dataset("torchvision.svnh")
    with pytest.raises(ValueError, match=r"unknown dataset 'food101'; did you mean torchvision.food101\?"):
        canonical_dataset("food101")
    with pytest.raises(SpaceError, match=r"did you mean torchvision.svhn"):
        files.fetch("torchvision.svnh")
    with pytest.raises(ValueError, match=r"unknown option of torchvision.svhn 'size'"):
        canonical_dataset("torchvision.svhn(size=32)")
    with pytest.raises(ValueError, match=r"unknown value 'letter'; did you mean letters"):
        canonical_dataset("torchvision.emnist(split='letter')")
    assert canonical_dataset("torchvision.emnist(split='balanced')") == "torchvision.emnist"
    assert canonical_dataset("torchvision.pets(size=64, grey=True)") == "torchvision.pets(grey=True)"


def test_names_cost_no_import_of_torchvision() -> None:
    code = (
        "import sys; from orchestrator.data.sources.registry import find_source; "
        "find_source('torchvision.pets'); "
        "print({'torch', 'torchvision', 'numpy', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---- fetched and read


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_fetched_is_whole_and_known_before_it_is_read(name: str, served: Path) -> None:
    assert find_source(name).state() == "not there"
    root = fetched(name)
    assert find_source(name).state() == "there"
    assert not list(root.rglob(".*"))
    facts = datasets.info(name)
    loaded = loading.load_dataset(name)
    splits = (loaded.train, loaded.validation, loaded.test)
    assert facts.split_sizes == tuple(map(len, splits))
    assert facts.per_class == tuple(
        tuple(split.labels.bincount(minlength=facts.num_classes).tolist()) for split in splits
    )
    assert facts.input_shape == loaded.input_shape == tuple(loaded.train.images.shape[1:])
    assert (facts.class_names, facts.num_classes) == (loaded.class_names, len(loaded.class_names))
    shutil.rmtree(served)  # nothing is fetched twice
    assert files.fetch(name) == root
    assert files.verify(name) == []


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("torchvision.svhn", pixels(32, 32, 3, 120), pixels(32, 32, 3, 20, seed=1)),
        ("torchvision.kmnist", pixels(120, 28, 28), pixels(20, 28, 28, seed=1)),
        ("torchvision.qmnist", pixels(120, 28, 28), pixels(30, 28, 28, seed=1)),
        ("torchvision.stl10", pixels(120, 3, 96, 96), pixels(20, 3, 96, 96, seed=1)),
    ],
)
def test_arrays_are_those_of_the_files_and_split_as_others(
    name: str, train: Array, test: Array, served: Path
) -> None:
    fetched(name)
    raw = files.read_raw(name)
    parts = [train, test]
    if name == "torchvision.svhn":
        parts = [part.transpose(3, 2, 0, 1) for part in parts]
    images = np.concatenate(parts)
    first = 1 if name == "torchvision.svhn" else 0  # its digit 0 is written 10
    labels = np.concatenate([(np.arange(len(part)) + first) % 10 for part in parts])
    assert np.array_equal(raw.images, images if images.ndim == 4 else images[:, None])
    assert np.array_equal(raw.labels, labels)
    chosen = train_test_split(np.arange(120), test_size=12, stratify=labels[:120], random_state=0)
    assert raw.splits is not None
    for split, expected in zip(raw.splits, (*chosen, np.arange(120, len(labels))), strict=True):
        assert np.array_equal(split, expected)


@pytest.mark.parametrize("split", EMNIST_CLASSES)
def test_labels_of_every_part_of_emnist_start_at_0_and_have_their_names(split: str, served: Path) -> None:
    fetched("torchvision.emnist")
    text = canonical_dataset(f"torchvision.emnist(split={split!r})")
    loaded = loading.load_dataset(text)
    count = EMNIST_CLASSES[split]
    assert loaded.num_classes == datasets.info(text).num_classes == count
    assert loaded.test.labels.tolist() == list(range(count))
    assert loaded.class_names == datasets.info(text).class_names
    assert loaded.class_names[0] == ("a" if split == "letters" else "0")
    assert loaded.class_names[-1] == {"letters": "z", "digits": "9", "mnist": "9", "byclass": "z"}.get(
        split, "t"
    )
    assert len(loaded.train) == 18 * count


@pytest.mark.parametrize("name", ARRAYS)
def test_a_large_set_of_arrays_is_shared_as_a_decoded_file_with_equal_bits(
    name: str, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched(name)
    in_memory, digest = files.read_raw(name), loading.digest(name)
    assert not (served.parent / "data" / decoded_cache.FOLDER).exists()
    for limit in ("FLOAT_BYTES", "SMALL_BYTES"):
        monkeypatch.setattr(decoded_cache, limit, 0)
    shared = files.read_raw(name)
    assert isinstance(shared.images, np.memmap)
    assert shared.file is not None
    assert np.array_equal(shared.images, in_memory.images)
    assert np.array_equal(shared.labels, in_memory.labels)
    assert shared.images.strides == in_memory.images.strides
    monkeypatch.setattr(torchvision_arrays, "read_images", lambda *args: pytest.fail("read again"))
    assert loading.digest(name) == digest


@pytest.mark.parametrize("reason", ["read-only", "full"])
def test_a_large_set_of_arrays_is_in_memory_where_the_data_folder_cannot_be_written_to(
    reason: str, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched("torchvision.stl10")
    for limit in ("FLOAT_BYTES", "SMALL_BYTES"):
        monkeypatch.setattr(decoded_cache, limit, 0)
    if reason == "full":
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    else:
        monkeypatch.setattr(decoded_cache, "is_writable", lambda folder: False)
    raw = files.read_raw("torchvision.stl10")
    assert raw.file is None
    assert len(raw.images) == len(raw.labels) == 140


# Name -> the names of the classes of images 0, 1, 2, 3 (and 4, ...), and the numbers of the test images.
KINDS: dict[str, tuple[tuple[str, ...], set[int]]] = {
    "torchvision.gtsrb": (("0", "1", "2", "3"), set(range(44, 56))),
    "torchvision.flowers102": (
        ("pink primrose", "hard-leaved pocket orchid", "canterbury bells"),
        set(range(1, 41)),
    ),
    "torchvision.pets": (("Abyssinian", "Great Pyrenees", "Pug"), set(range(45, 60))),
    "torchvision.food101": (("waffles", "apple_pie", "pho"), set(range(45, 60))),
    "torchvision.caltech101": (("Faces", "accordion", "wrench"), set()),
    "torchvision.eurosat": (("Forest", "Highway", "SeaLake"), set()),
}


@pytest.mark.parametrize("name", KINDS)
def test_images_have_their_labels_and_are_in_their_splits(name: str, served: Path) -> None:
    fetched(name)
    raw = files.read_raw(f"{name}(size=8)")
    kinds, in_test = KINDS[name]
    numbers = np.rint((raw.images[:, 0].mean(axis=(1, 2)) - 2) / 4).astype(int)
    assert len(set(numbers.tolist())) == len(numbers)
    assert [raw.class_names[label] for label in raw.labels] == [kinds[n % len(kinds)] for n in numbers]
    assert raw.splits is not None
    train, validation, test = (set(numbers[split].tolist()) for split in raw.splits)
    assert train | validation | test == set(numbers.tolist())
    if in_test:
        assert test == in_test
    else:
        assert len(test) == 12  # a fifth
    if name == "torchvision.flowers102":
        assert validation == set(range(53, 61))
        assert train == set(range(41, 53))
    assert 63 not in numbers  # of caltech's background, which is no class
    assert raw.notes == ()


def test_the_content_decides_the_split_of_data_without_any(served: Path) -> None:
    fetched("torchvision.eurosat")
    first = files.read_raw("torchvision.eurosat")
    folder = files.data_folder() / "eurosat" / "2750" / "Forest"
    for file in folder.iterdir():
        file.rename(file.with_name(f"Forest_{100 - int(file.stem[7:])}.jpg"))
    second = files.read_raw("torchvision.eurosat")
    assert first.splits is not None
    assert second.splits is not None
    for one, other in zip(first.splits, second.splits, strict=True):
        reds = [
            sorted(raw.images[split][:, 0, 0, 0].tolist()) for raw, split in ((first, one), (second, other))
        ]
        assert reds[0] == reds[1]


def test_size_fit_and_grey_are_those_of_a_folder(served: Path) -> None:
    fetched("torchvision.food101")
    folder = files.data_folder() / "food-101" / "images"
    for options, shape in (("size=16, fit='pad'", (3, 16, 16)), ("grey=True", (1, 64, 64))):
        raw = files.read_raw(f"torchvision.food101({options})")
        own = files.read_raw(f"folder(path={str(folder)!r}, {options})")
        assert raw.images.shape[1:] == own.images.shape[1:] == shape
        assert sorted(image.tobytes() for image in raw.images) == sorted(
            image.tobytes() for image in own.images
        )


# ---- what is refused


@pytest.mark.parametrize("name", PUBLISHED)
def test_missing_data_name_the_file_its_md5_and_the_command(name: str, tmp_path: Path) -> None:
    file = PUBLISHED[name].files[0]
    for call in (datasets.info, files.read_raw, files.check_files, loading.digest):
        with pytest.raises(DataError) as caught:
            call(name, **({} if call is datasets.info else {"data_dir": tmp_path}))
        message = str(caught.value)
        assert "\n" not in message
        assert f"/{file.path} is missing (expected md5 {file.md5})" in message
        assert f"`orchestrate data fetch {name}`" in message
        if call is not datasets.info:
            assert f"{name}: {tmp_path}/{file.path} is missing" in message
    assert not list(tmp_path.iterdir())


def test_a_plan_without_its_data_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATE_DATA_DIR", str(tmp_path / "data"))
    for name in ("torchvision.svhn", "torchvision.pets(size=32)"):
        (tmp_path / "space.yaml").write_text(SPACE.format(name=name))
        for command in ("plan", "sweep"):
            clear_caches()
            done = orchestrate(command, "--space", "space.yaml", cwd=tmp_path)
            assert done.returncode == 4
            assert done.stderr.count("\n") == 1
            plain = name.partition("(")[0]
            assert f"{tmp_path}/data/{PUBLISHED[plain].files[0].path} is missing" in done.stderr
            assert f"`orchestrate data fetch {plain}`" in done.stderr
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.parametrize("name", [*ARRAYS, "torchvision.flowers102"])
def test_a_corrupt_file_is_refused_before_it_is_parsed(
    name: str, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fetched(name)
    row = torchvision_sources.CLASSES[name].row
    file = root / next(file.path for file in reversed(row.files) if not file.unpacks)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    monkeypatch.setattr(vision, row.source, lambda *args, **options: pytest.fail("it was parsed"))
    monkeypatch.setattr("scipy.io.loadmat", lambda *args, **options: pytest.fail("it was parsed"))
    for call in (datasets.info, files.read_raw):
        clear_caches()
        with pytest.raises(DataError, match=f"{file} is corrupt: .* expected md5") as caught:
            call(name)
        assert "\n" not in str(caught.value)
    files.fetch(name)
    assert file.read_bytes() != content


@pytest.mark.parametrize("name", ["torchvision.food101", "torchvision.stl10", "torchvision.caltech101"])
def test_an_archive_that_was_put_there_is_checked_then_unpacked(name: str, served: Path) -> None:
    root, file = files.data_folder(), PUBLISHED[name].files[0]
    archive = root / file.path
    archive.parent.mkdir(parents=True)
    archive.write_bytes(contents(name)[file.path])
    with pytest.raises(DataError, match=r"is not unpacked; run `orchestrate data fetch .*checks and unpacks"):
        datasets.info(name)
    for path in served.rglob("*"):
        path.unlink() if path.is_file() else None
    files.fetch(name)
    assert files.verify(name) == []
    archive.write_bytes(archive.read_bytes() + b"0")
    shutil.rmtree(published_files.target_of(root, file))
    with pytest.raises(
        DataError, match=r"could not fetch .*; put it by hand as .* again to unpack it"
    ) as caught:
        files.fetch(name)
    assert "\n" not in str(caught.value)
    assert not published_files.target_of(root, file).exists()


def test_a_wrong_download_is_not_kept(served: Path) -> None:
    file = next(path for path in served.rglob("test_32x32.mat"))
    file.write_bytes(b"other")
    with pytest.raises(DataError, match=r"could not fetch test_32x32.mat \(File not found or corrupted.\)"):
        files.fetch("torchvision.svhn")
    root = files.data_folder()
    assert [path.name for path in root.iterdir()] == ["train_32x32.mat"]


def test_a_broken_or_missing_image_and_a_damaged_list_are_one_line(served: Path) -> None:
    root = fetched("torchvision.pets")
    files.read_raw("torchvision.pets")
    broken = root / "oxford-iiit-pet" / "images" / "pug_2.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(DataError, match=r"torchvision.pets: .*pug_2.jpg is no whole JPEG, PNG, GIF image"):
        files.read_raw("torchvision.pets")
    broken.unlink()
    with pytest.raises(DataError, match=r"pug_2.jpg cannot be read: No such file"):
        files.read_raw("torchvision.pets")
    (root / "oxford-iiit-pet" / "annotations" / "test.txt").write_text("pug_2 x y z\n")
    with pytest.raises(
        DataError, match=r"torchvision.pets: its files in .* are damaged: ValueError"
    ) as caught:
        datasets.info("torchvision.pets")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (["00000.ppm;0", "../../../secret.ppm;1"], "is no image of this folder"),
        (["/etc/passwd;0"], "/etc/passwd is no image of this folder"),
        (["00000.ppm;4"], "there are labels without a name or without training images"),
        ([], "there are no images for test"),
    ],
)
def test_lists_that_were_changed_are_refused(rows: list[str], reason: str, served: Path) -> None:
    root = fetched("torchvision.gtsrb")
    (root / "gtsrb" / "GT-final_test.csv").write_text("\n".join(["Filename;ClassId", *rows]))
    for call in (datasets.info, files.read_raw, files.file_stamps):
        with pytest.raises(DataError, match=f"torchvision.gtsrb: its files in .* are damaged: .*{reason}"):
            call("torchvision.gtsrb")


def test_a_class_with_too_few_images_is_named(served: Path) -> None:
    root = fetched("torchvision.eurosat")
    for file in sorted((root / "eurosat" / "2750" / "Forest").iterdir())[2:]:
        file.unlink()
    for call in (datasets.info, files.read_raw):
        with pytest.raises(DataError, match=r"^torchvision.eurosat: class 'Forest' has 2 images; 3 or more"):
            call("torchvision.eurosat")


def test_images_that_are_fewer_than_published_are_noted(served: Path) -> None:
    root = fetched("torchvision.caltech101")
    (root / "caltech101" / "101_ObjectCategories" / "wrench" / "image_0020.jpg").unlink()
    notes = files.read_raw("torchvision.caltech101").notes
    assert notes == ("train have 59 images, and 60 were published",)


# ---- who asks


def test_data_list_and_check_know_them(served: Path) -> None:
    fetched("torchvision.eurosat")
    listed = orchestrate("data", "list", cwd=served).stdout.splitlines()
    states = {line.split()[0]: " ".join(line.split()[1:]) for line in listed}
    assert states["torchvision.eurosat"].startswith("there satellite")
    assert states["torchvision.food101"].startswith("not there")
    checked = orchestrate("data", "check", "torchvision.eurosat(size=16)", cwd=served)
    assert checked.returncode == 0, checked.stderr
    assert "60 images of 3x16x16" in checked.stdout
    assert "Highway" in checked.stdout


def test_the_data_folder_of_a_call_decides(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fetched("torchvision.kmnist")
    expected = loading.digest("torchvision.kmnist")
    monkeypatch.setenv("ORCHESTRATE_DATA_DIR", str(root.parent / "none"))
    clear_caches()
    with pytest.raises(DataError, match=r"none/KMNIST/raw/train-images-idx3-ubyte.gz is missing"):
        loading.digest("torchvision.kmnist")
    assert loading.digest("torchvision.kmnist", data_dir=root) == expected
    assert loading.load_dataset("torchvision.kmnist", data_dir=root).digest == expected
    assert files.file_stamps("torchvision.kmnist", root)


def test_a_decoded_file_is_what_is_decoded_into_memory(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched("torchvision.flowers102")
    text = "torchvision.flowers102(size=8)"
    in_memory = files.read_raw(text)
    monkeypatch.setattr(decoded_cache, "QUICK_BYTES", 0)
    mapped, again = files.read_raw(text), files.read_raw(text)
    assert isinstance(mapped.images, np.memmap)
    for raw in (mapped, again):
        assert np.array_equal(raw.images, in_memory.images)
        assert np.array_equal(raw.labels, in_memory.labels)
        assert all(map(np.array_equal, raw.splits or (), in_memory.splits or ()))
        assert raw.notes == in_memory.notes
