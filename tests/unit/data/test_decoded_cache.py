"""`folder` decodes once, into a mapped file: with the pixels of now, whole or not at all, by any threads."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from orchestrator.data import decoded_cache, files, image_decoding, loading
from orchestrator.data.sources.base import Raw
from orchestrator.errors import DataError, DiskFullError

CLASSES = ("cat", "dog", "owl")


def fill(folder: Path, count: int = 10) -> None:
    for number, label in enumerate(CLASSES):
        (folder / label).mkdir(parents=True)
        for image in range(count):
            random = np.random.default_rng(1000 * number + image)
            pixels = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{image}.png")


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder of sets that are all decoded into files."""
    monkeypatch.setattr(decoded_cache, "QUICK_BYTES", 0)
    return tmp_path / "data"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    fill(tmp_path / "photos")
    return tmp_path / "photos"


def text_of(folder: Path, **options: object) -> str:
    return f"folder(path={str(folder)!r}{''.join(f', {k}={v!r}' for k, v in {'size': 8, **options}.items())})"


def decoded_names(data_dir: Path) -> list[str]:
    """What lies there beside locks, by its ending."""
    names = (path.name for path in (data_dir / "decoded").iterdir())
    return sorted(name[name.rfind(".") :] for name in names if not name.endswith(".lock"))


def same(one: Raw, other: Raw) -> bool:
    arrays = ((one.images, other.images), (one.labels, other.labels))
    arrays += tuple(zip(one.splits or (), other.splits or (), strict=True))
    return all(np.array_equal(a, b) for a, b in arrays) and one.notes == other.notes


@pytest.mark.parametrize("options", [{}, {"grey": True, "fit": "pad"}, {"skip_broken": True}])
def test_a_decoded_file_is_what_is_decoded_into_memory(
    photos: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    shutil.copy(photos / "cat" / "1.png", photos / "dog" / "copy.png")
    if options.get("skip_broken"):
        for name in ("cat/0.png", "dog/3.png", "owl/9.png"):
            (photos / name).write_bytes(b"broken")
    mapped, digest = (
        files.read_raw(text_of(photos, **options), data_dir),
        loading.digest(text_of(photos, **options), data_dir=data_dir),
    )
    assert isinstance(mapped.images, np.memmap)
    monkeypatch.setattr(image_decoding, "decode", lambda *args, **kwargs: pytest.fail("it was decoded again"))
    again = files.read_raw(text_of(photos, **options), data_dir)
    monkeypatch.undo()
    in_memory = files.read_raw(text_of(photos, **options), data_dir)
    assert not isinstance(in_memory.images, np.memmap)
    assert same(mapped, again)
    assert same(mapped, in_memory)
    assert loading.digest(text_of(photos, **options), data_dir=data_dir) == digest
    assert bool(mapped.notes) == ("skip_broken" in options)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_file_does_not_depend_on_the_threads(
    photos: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(decoded_cache, "TOGETHER", 3)
    monkeypatch.setattr(decoded_cache, "cores", lambda: threads)
    (photos / "cat" / "5.png").write_bytes(b"broken")
    raw = files.read_raw(text_of(photos, skip_broken=True), data_dir)
    expected = [
        image_decoding.decode(file.read_bytes(), size=8, fit="crop", grey=False)
        for label in CLASSES
        for file in sorted((photos / label).iterdir())
        if (label, file.name) != ("cat", "5.png")
    ]
    assert np.array_equal(raw.images, np.stack(expected))


def test_a_changed_file_is_decoded_again_though_its_size_and_time_are_as_before(
    photos: Path, data_dir: Path
) -> None:
    first = files.read_raw(text_of(photos), data_dir)
    before = np.array(first.images)
    file = photos / "cat" / "0.png"
    status, other = file.stat(), (photos / "cat" / "1.png").read_bytes()
    content = file.read_bytes()
    size = max(len(content), len(other))
    file.write_bytes(other.ljust(size, b"\0"))  # what follows a PNG's end is passed over
    (photos / "cat" / "1.png").write_bytes(content.ljust(size, b"\0"))
    for changed in ("0.png", "1.png"):
        os.utime(photos / "cat" / changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = files.read_raw(text_of(photos), data_dir)
    assert np.array_equal(second.images[[1, 0]], before[:2])
    assert not np.array_equal(second.images[0], before[0])
    assert decoded_names(data_dir) == [
        ".json",
        ".u8",
    ]  # the earlier one is gone, and still mapped
    assert np.array_equal(first.images, before)


def test_other_options_and_other_folders_have_files_of_their_own(photos: Path, data_dir: Path) -> None:
    fill(photos.parent / "more", 4)
    for text in (text_of(photos), text_of(photos, size=4), text_of(photos.parent / "more")):
        files.read_raw(text, data_dir)
    assert decoded_names(data_dir) == [".json"] * 3 + [".u8"] * 3


def test_files_that_change_while_they_are_decoded_are_refused(
    photos: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = image_decoding.decode

    def meanwhile(content: bytes, **options: Any) -> Any:
        (photos / "owl" / "new.png").write_bytes(content)
        return decode(content, **options)

    monkeypatch.setattr(image_decoding, "decode", meanwhile)
    with pytest.raises(DataError, match="its files changed while they were read"):
        files.read_raw(text_of(photos), data_dir)
    assert decoded_names(data_dir) == []


def test_a_broken_image_and_a_full_disk_leave_nothing(
    photos: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "owl" / "7.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"owl/7\.png"):
        loading.load_dataset(text_of(photos), data_dir=data_dir)
    assert decoded_names(data_dir) == []
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1, 1, 1000))
    with pytest.raises(DiskFullError, match="ORCHESTRATE_DATA_DIR") as caught:
        loading.load_dataset(text_of(photos, skip_broken=True), data_dir=data_dir)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    assert decoded_names(data_dir) == []


CODE = """
    import sys, time
    from pathlib import Path
    from orchestrator.data import decoded_cache, files, image_decoding

    decode, decoded_cache.QUICK_BYTES = image_decoding.decode, 0

    def slowly(content, **options):
        print("decoding", flush=True)
        time.sleep(float(sys.argv[3]))
        return decode(content, **options)

    image_decoding.decode = slowly
    print(files.read_raw(sys.argv[1], Path(sys.argv[2])).images.sum())
"""


def start(text: str, data_dir: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(CODE), text, str(data_dir), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_process_leaves_nothing_whole_and_of_two_one_decodes(photos: Path, data_dir: Path) -> None:
    killed = start(text_of(photos), data_dir, 60)
    assert killed.stdout
    assert killed.stdout.readline() == "decoding\n"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not [name for name in decoded_names(data_dir) if name in (".u8", ".json")]
    outputs = [
        process.communicate(timeout=60)[0].splitlines()
        for process in [start(text_of(photos), data_dir, 0.01) for _ in range(2)]
    ]
    expected = str(files.read_raw(text_of(photos), data_dir).images.sum())
    assert sorted(len(lines) for lines in outputs) == [1, 31]  # the sum alone, and after 30 images
    assert {lines[-1] for lines in outputs} == {expected}
    assert decoded_names(data_dir) == [".json", ".u8"]


def test_a_bar_is_shown_on_a_terminal_alone(
    photos: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    files.read_raw(text_of(photos), data_dir)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    files.read_raw(text_of(photos, size=4), data_dir)
    assert "30/30" in capfd.readouterr().err


def test_a_large_set_stays_bytes_with_the_digest_and_bits_of_floats(
    photos: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    floats = loading.load_dataset(text_of(photos), data_dir=data_dir, classes=[2, 0])
    monkeypatch.setattr(loading, "FLOAT_BYTES", 0)
    large = loading.load_dataset(text_of(photos), data_dir=data_dir, classes=[2, 0])
    assert large.digest == floats.digest
    for one, other in zip(
        (large.train, large.validation, large.test),
        (floats.train, floats.validation, floats.test),
        strict=True,
    ):
        assert not isinstance(one.images, torch.Tensor)
        assert isinstance(other.images, torch.Tensor)
        assert torch.equal(one.images[:], other.images)
        assert torch.equal(one.labels, other.labels)
        assert one.images.shape == other.images.shape


def test_pillow_keeps_memory_while_images_are_decoded_alone(photos: Path, data_dir: Path) -> None:
    core: Any = Image.core
    before, meanwhile = core.get_blocks_max(), []
    decode = image_decoding.decode

    def spy(*args: Any, **options: Any) -> Any:
        meanwhile.append(core.get_blocks_max())
        return decode(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_decoding, "decode", spy)
        files.read_raw(text_of(photos), data_dir)
    assert min(meanwhile) > before
    assert core.get_blocks_max() == before


def test_of_two_that_decode_at_once_the_last_gives_the_memory_back() -> None:
    core: Any = Image.core
    before = core.get_blocks_max()
    first, second = image_decoding.reused_memory(before + 4), image_decoding.reused_memory(before + 8)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert core.get_blocks_max() > before
    second.__exit__(None, None, None)
    assert core.get_blocks_max() == before
