"""`folder`: decoding by stated rules, splits, and every kind of bad folder and file."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orchestrator.data import datasets, files, image_decoding, loading
from orchestrator.data.image_decoding import BrokenImageError, decode, read_image_bytes
from orchestrator.data.sources.registry import clear_facts, find_source
from orchestrator.errors import DataError, SpaceError

Array = np.ndarray[Any, Any]
CLASSES = ("cat", "big dog", "Eule ünï")


def draw(seed: int, height: int = 12, width: int = 16) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def fill(folder: Path, count: int = 10, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> None:
    for number, label in enumerate(classes):
        (folder / label).mkdir(parents=True)
        for image in range(count):
            Image.fromarray(draw(seed + 1000 * number + image)).save(folder / label / f"{image}.png")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    fill(tmp_path / "photos")
    return tmp_path / "photos"


def text_of(folder: Path, **options: object) -> str:
    return f"folder(path={str(folder)!r}{''.join(f', {k}={v!r}' for k, v in {'size': 8, **options}.items())})"


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


# ---- pixels


@pytest.mark.parametrize("format", ["PNG", "BMP", "WEBP", "JPEG"])
def test_a_square_image_of_its_size_keeps_its_pixels(format: str) -> None:
    pixels = draw(0, 16, 16)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(format, {})
    decoded = decode(encoded(Image.fromarray(pixels), format, **options), size=16, fit="crop", grey=False)
    difference = np.abs(decoded.astype(int) - pixels.transpose(2, 0, 1))
    assert difference.max() <= (4 if format == "JPEG" else 0)


def test_exif_turns_an_image() -> None:
    pixels = draw(1, 16, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right edge of the pixels
    content = encoded(Image.fromarray(pixels), "PNG", exif=exif)
    decoded = decode(content, size=16, fit="crop", grey=False)
    assert np.array_equal(decoded, np.rot90(pixels, -1).transpose(2, 0, 1))


def test_palettes_alpha_grey_sixteen_bits_and_cmyk() -> None:
    def pixel(image: Image.Image, format: str = "PNG", grey: bool = False, **options: Any) -> list[int]:
        content = encoded(image, format, **options)
        return decode(content, size=4, fit="stretch", grey=grey)[:, 0, 0].tolist()

    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert pixel(palette) == [10, 200, 30]
    assert pixel(palette, transparency=1) == [255, 255, 255]
    assert pixel(Image.new("RGBA", (4, 4), (0, 0, 0, 0))) == [255, 255, 255]
    assert pixel(Image.new("RGBA", (4, 4), (0, 100, 0, 255))) == [0, 100, 0]
    assert pixel(Image.new("LA", (4, 4), (0, 51))) == [204, 204, 204]  # a fifth of black on white
    assert pixel(Image.new("L", (4, 4), 77)) == [77, 77, 77]
    assert pixel(Image.new("1", (4, 4), 1)) == [255, 255, 255]
    deep = Image.fromarray(np.full((4, 4), 0xAB12, dtype=np.uint16))
    assert pixel(deep) == [0xAB] * 3
    assert pixel(Image.new("RGB", (4, 4), (200, 100, 50)), grey=True) == [
        round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    ]
    cmyk = pixel(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.abs(np.array(cmyk) - [255, 0, 0]).max() <= 6


def png(depth: int, colour_type: int, row: bytes, transparent: bytes) -> bytes:
    """Return a PNG of one row, written by the letter of its specification."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 4, 1, depth, colour_type, 0, 0, 0)
    parts = ((b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize(
    ("depth", "row", "expected"),
    [
        (1, bytes([0b01010000]), [0, 255, 0, 255]),  # white is transparent: laid on white
        (2, bytes([0b00011011]), [0, 255, 170, 255]),
        (4, bytes([0x01, 0x2F]), [0, 255, 34, 255]),
        (8, bytes([0, 1, 2, 255]), [0, 255, 2, 255]),
        (16, struct.pack(">4H", 0x0000, 0x0001, 0x0100, 0xAB12), [0, 255, 1, 0xAB]),
        (16, struct.pack(">4H", 0x0002, 0x0101, 0x0001, 0xFFFF), [0, 1, 255, 255]),
    ],
)
def test_the_transparent_shade_of_a_grey_png_is_white_at_every_depth(
    depth: int, row: bytes, expected: list[int]
) -> None:
    content = png(depth, 0, row, struct.pack(">H", 1))
    wide = decode(content, size=4, fit="pad", grey=True)[0]
    assert wide[1 if wide[1].any() else 2].tolist() == expected


def test_a_transparent_colour_is_white_and_one_of_16_bits_refused() -> None:
    row, transparent = bytes([9, 8, 7, 1, 2, 3, 9, 8, 6, 0, 0, 0]), struct.pack(">3H", 9, 8, 7)
    decoded = decode(png(8, 2, row, transparent), size=4, fit="pad", grey=False)
    line = decoded[:, 1 if decoded[:, 1].any() else 2].T.tolist()
    assert line == [[255, 255, 255], [1, 2, 3], [9, 8, 6], [0, 0, 0]]
    for colour in ((9, 8, 7), (0x1234, 1, 1)):
        content = png(16, 2, bytes(24), struct.pack(">3H", *colour))
        with pytest.raises(BrokenImageError, match="has 16 bits a channel and a transparent colour; save"):
            decode(content, size=4, fit="pad", grey=False)


def test_a_folder_names_the_file_that_it_refuses(photos: Path) -> None:
    (photos / "cat" / "deep.png").write_bytes(png(16, 2, bytes(24), bytes(6)))
    with pytest.raises(
        DataError, match=r"cat/deep\.png has 16 bits a channel and a transparent colour"
    ) as caught:
        files.read_raw(text_of(photos))
    assert "\n" not in str(caught.value)
    notes = files.read_raw(text_of(photos, skip_broken=True)).notes
    assert any("1 broken image is left out" in note for note in notes)


def test_a_sixteen_bit_colour_png_keeps_its_upper_bits() -> None:
    row = b"\0" + struct.pack(">3H", 0xAB12, 0x1234, 0xFF00) * 4

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 4))
    decoded = decode(content + chunk(b"IEND", b""), size=4, fit="crop", grey=False)
    assert decoded[:, 0, 0].tolist() == [0xAB, 0x12, 0xFF]


def test_fit_crops_the_middle_pads_with_black_or_stretches() -> None:
    wide = np.zeros((8, 16, 3), dtype=np.uint8)
    wide[:, :4], wide[:, 4:12], wide[:, 12:] = 50, 150, 250
    content = encoded(Image.fromarray(wide), "PNG")
    assert (decode(content, size=8, fit="crop", grey=True) == 150).all()
    padded = decode(content, size=16, fit="pad", grey=True)[0]
    assert (padded[:4] == 0).all()
    assert (padded[12:] == 0).all()
    assert np.array_equal(padded[4:12], wide[:, :, 0])
    stretched = decode(content, size=8, fit="stretch", grey=True)[0]
    assert stretched[0, [0, 3, 7]].tolist() == [50, 150, 250]


# ---- splits and facts


@pytest.mark.parametrize("grey", [False, True])
def test_facts_are_those_of_what_is_loaded(photos: Path, grey: bool) -> None:
    text = text_of(photos, grey=grey)
    facts, loaded = datasets.info(text), loading.load_dataset(text)
    splits = (loaded.train, loaded.validation, loaded.test)
    assert facts.input_shape == loaded.input_shape == tuple(loaded.train.images.shape[1:])
    assert facts.input_shape == (1 if grey else 3, 8, 8)
    assert facts.class_names == loaded.class_names == tuple(sorted(CLASSES))
    assert facts.split_sizes == datasets.split_sizes(text) == tuple(map(len, splits)) == (21, 3, 6)
    assert facts.per_class == tuple(tuple(split.labels.bincount().tolist()) for split in splits)


def test_facts_decode_no_image(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_decoding, "read_image_bytes", lambda *args: pytest.fail("it was read"))
    assert datasets.info(text_of(photos)).num_classes == 3
    assert files.file_stamps(text_of(photos))


def test_labels_follow_the_folders_and_names_do_not_decide_the_split(photos: Path) -> None:
    raw = files.read_raw(text_of(photos, size=16, fit="stretch"))
    of_class = {label: set() for label in CLASSES}
    for label in CLASSES:
        for file in (photos / label).iterdir():
            pixels = decode(file.read_bytes(), size=16, fit="stretch", grey=False)
            of_class[label].add(pixels.tobytes())
    for image, label in zip(raw.images, raw.labels, strict=True):
        assert image.tobytes() in of_class[raw.class_names[label]]
    test = {raw.images[index].tobytes() for index in (raw.splits or ())[2]}
    for number, file in enumerate(sorted((photos / "cat").iterdir())):
        file.rename(file.with_name(f"z{9 - number} new\nname.PNG"))
    renamed = files.read_raw(text_of(photos, size=16, fit="stretch"))
    assert {renamed.images[index].tobytes() for index in (renamed.splits or ())[2]} == test


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_folders_for_splits_are_used_and_images_in_two_are_reported(tmp_path: Path, validation: str) -> None:
    for number, split in enumerate(("train", validation, "test")):
        fill(tmp_path / split, 4, seed=100 * number)
    assert datasets.split_sizes(text_of(tmp_path)) == (12, 12, 12)
    raw = files.read_raw(text_of(tmp_path))
    assert raw.notes == ()
    copied = (tmp_path / "train" / "cat" / "0.png").read_bytes()
    (tmp_path / "test" / "cat" / "copy.png").write_bytes(copied)
    (note,) = files.read_raw(text_of(tmp_path)).notes
    assert note == ("1 image stands in both train and test: the first is train/cat/0.png = test/cat/copy.png")


def test_a_split_without_a_folder_comes_from_training(tmp_path: Path) -> None:
    fill(tmp_path / "train", 10)
    fill(tmp_path / "val", 4, seed=50)
    facts = datasets.info(text_of(tmp_path))
    assert facts.split_sizes == tuple(map(len, files.read_raw(text_of(tmp_path)).splits or ())) == (24, 12, 6)


def test_classes_and_samples_choose_from_the_splits(photos: Path) -> None:
    part = loading.load_dataset(text_of(photos), classes=[2, 0], samples_per_class=3)
    assert part.class_names == ("cat", "Eule ünï")
    assert part.train.labels.bincount().tolist() == [3, 3]
    with pytest.raises(SpaceError, match="from 0 to 2"):
        loading.load_dataset(text_of(photos), classes=[0, 3])


def test_any_change_of_a_file_has_another_digest(photos: Path) -> None:
    text = text_of(photos)
    first = loading.digest(text)
    assert loading.digest(text) == first == loading.load_dataset(text).digest
    file = photos / "cat" / "0.png"
    before = file.read_bytes()
    Image.fromarray(draw(77)).save(file)
    second = loading.digest(text)
    file.write_bytes(before)
    assert loading.digest(text) == first != second
    (photos / "cat").rename(photos / "tom cat")
    assert loading.digest(text) != first  # classes in tables are what their folders are called


def test_the_same_images_elsewhere_have_the_same_digest(photos: Path, tmp_path: Path) -> None:
    first = loading.digest(text_of(photos))
    photos.rename(tmp_path / "moved")
    assert loading.digest(text_of(tmp_path / "moved")) == first


# ---- bad folders and files: one line, exit 4


def refused(text: str) -> str:
    """The one line with which a folder is refused, by checking its files as a sweep does."""
    clear_facts()
    with pytest.raises(DataError) as caught:
        files.check_files(text)
    line = str(caught.value)
    assert caught.value.exit_code == 4
    assert "\n" not in line
    with pytest.raises(DataError):
        loading.load_dataset(text)
    return line


BROKEN = {
    "empty": b"",
    "no image": b"hello",
    "cut off": encoded(Image.fromarray(draw(0, 64, 64)), "PNG")[:-900],
    "cut off jpeg": encoded(Image.fromarray(draw(0, 64, 64)), "JPEG")[:900],
    "a gif": encoded(Image.fromarray(draw(0)), "GIF"),
    "a tiff": encoded(Image.fromarray(draw(0)), "TIFF"),
    "bits of a png": encoded(Image.fromarray(draw(0)), "PNG")[:30],
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_image_is_named_or_skipped_and_counted(photos: Path, case: str) -> None:
    file = photos / "cat" / "new\nline \x1b[31m.png"
    file.write_bytes(BROKEN[case])
    line = refused(text_of(photos))
    assert f"{photos}/cat/new\\nline \\x1b[31m.png" in line
    assert "skip_broken=True" in line
    raw = files.read_raw(text_of(photos, skip_broken=True))
    assert len(raw.images) == 30
    assert raw.notes == ("1 broken image is left out",)


@pytest.mark.parametrize(("side", "line"), [(9000, "is 9000 x 9000 pixels"), (30_000, "is too large")])
def test_a_bomb_is_refused_before_it_is_decoded(photos: Path, side: int, line: str) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    (photos / "cat" / "bomb.png").write_bytes(content + chunk(b"IEND", b""))
    assert f"bomb.png {line}; at most 67 million pixels are decoded" in refused(text_of(photos))


def test_a_file_that_is_too_long_or_no_file_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_decoding, "MAX_FILE_BYTES", 1_000_000)
    (tmp_path / "long.png").write_bytes(bytes(1_000_001))
    with pytest.raises(BrokenImageError, match="has more than 1 MB"):
        read_image_bytes(tmp_path / "long.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BrokenImageError, match="cannot be read"):
        read_image_bytes(tmp_path / "pipe.png")


def test_links_stay_within_the_folder(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out.png").write_bytes((photos / "cat" / "0.png").read_bytes())
    link = photos / "cat" / "link.png"
    link.symlink_to(photos / "big dog" / "1.png")
    assert len(files.read_raw(text_of(photos)).images) == 31
    link.unlink()
    link.symlink_to(tmp_path / "out.png")
    assert "is a link out of the folder" in refused(text_of(photos))
    link.unlink()
    link.symlink_to(tmp_path / "nothing.png")
    assert "is a link to nothing" in refused(text_of(photos))
    link.unlink()
    (tmp_path / "class").mkdir()
    (photos / "linked").symlink_to(tmp_path / "class")
    assert "is a link out of the folder" in refused(text_of(photos))


def test_bad_folders_are_one_line(photos: Path, tmp_path: Path) -> None:
    assert "is not there" in refused(text_of(tmp_path / "no photos"))
    assert "is a file" in refused(text_of(photos / "cat" / "0.png"))
    (tmp_path / "empty").mkdir()
    assert "has no folders" in refused(text_of(tmp_path / "empty"))
    fill(tmp_path / "one", classes=("cat",))
    assert "has a single class, 'cat'; two or more" in refused(text_of(tmp_path / "one"))
    (photos / "none").mkdir()
    assert "photos/none has no image" in refused(text_of(photos))
    (photos / "none").rmdir()
    (photos / "loose.png").write_bytes(b"x")
    assert "lies beside the folders of the classes" in refused(text_of(photos))
    (photos / "loose.png").unlink()
    (photos / "cat" / "more").mkdir()
    assert "is a folder within a class" in refused(text_of(photos))
    (photos / "cat" / "more").rmdir()
    fill(tmp_path / "few", count=2)
    assert "class 'Eule ünï' has 2 images; 3 or more are needed" in refused(text_of(tmp_path / "few"))
    (photos / "cat").rename(photos / "c\nat")
    assert "cannot be the name of a class" in refused(text_of(photos))


def test_a_class_in_the_test_alone_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    fill(tmp_path / "test", classes=(*CLASSES, "new"))
    assert "class 'new' is in test alone" in refused(text_of(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(photos: Path) -> None:
    (photos / "cat" / "0.png").chmod(0)
    assert "cannot be read: Permission denied" in refused(text_of(photos))


def test_other_files_are_counted_and_hidden_ones_passed_over(photos: Path) -> None:
    for name in ("Thumbs.txt", ".DS_Store", "._0.png"):
        (photos / "cat" / name).write_bytes(b"x")
    (photos / ".cache").mkdir()
    (photos / "README").write_text("words")
    raw = files.read_raw(text_of(photos))
    assert raw.notes == ("1 file is no image by its name: the first is cat/Thumbs.txt",)


def test_options_are_typed() -> None:
    for options, message in {
        "": "folder needs a path",
        "path='a', size=2": r"folder\(size\) is 2; it must be in \[4, 1024\]",
        "path='a', size='big'": "a value of type int",
        "path='a', fit='corp'": "did you mean crop",
        "path='a', gray=True": "unknown option of folder 'gray'; did you mean grey",
        "path='a', grey=1": "a value of type bool",
        "path=3": "a value of type str",
    }.items():
        with pytest.raises(SpaceError, match=message):
            find_source(f"folder({options})")


# ---- links, splits and thin images


@pytest.mark.parametrize("inside", [False, True])
def test_links_that_lead_nowhere_or_to_themselves_are_one_line(photos: Path, inside: bool) -> None:
    folder = photos / "cat" if inside else photos
    (folder / "gone").symlink_to(photos / "nowhere")
    with pytest.raises(DataError, match="gone is a link to nothing; remove it"):
        datasets.info(text_of(photos))
    (folder / "gone").unlink()
    (folder / "self.png").symlink_to(folder / "self.png")
    with pytest.raises(DataError, match=r"self\.png is a link that cannot be followed"):
        datasets.info(text_of(photos))


def test_a_split_of_which_every_image_is_broken_is_not_drawn_anew(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    fill(tmp_path / "test", count=1, seed=50)
    for file in (tmp_path / "test").rglob("*.png"):
        file.write_bytes(b"broken")
    with pytest.raises(DataError, match="every image of test is broken"):
        files.read_raw(text_of(tmp_path, skip_broken=True))


def test_folders_of_splits_that_are_not_understood_are_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    fill(tmp_path / "test")
    with pytest.raises(DataError, match=r"has no folders|no class with training images"):
        datasets.info(text_of(tmp_path))
    (tmp_path / "train").rmdir()
    fill(tmp_path / "Training")
    with pytest.raises(DataError, match="has no folder train; name them train, val and test"):
        datasets.info(text_of(tmp_path))


def test_a_path_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read: File name too long|is not there"):
        datasets.info(text_of(tmp_path / ("x" * 300)))


@pytest.mark.parametrize("shape", [(12, 3000), (3000, 12)])
def test_of_a_thin_image_something_is_left(shape: tuple[int, int]) -> None:
    content = encoded(Image.fromarray(np.full((*shape, 3), 200, dtype=np.uint8)), "PNG")
    decoded = decode(content, size=16, fit="pad", grey=True)
    assert np.count_nonzero(decoded == 200) == 16


def test_metadata_that_cannot_be_read_break_no_image() -> None:
    pixels = draw(3, 16, 16)
    plain = encoded(Image.fromarray(pixels), "PNG")
    body = b"eXIf" + b"no exif at all"
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    content = plain[:33] + chunk + plain[33:]  # behind the header
    assert np.array_equal(decode(content, size=16, fit="crop", grey=False), pixels.transpose(2, 0, 1))
