"""One image file to one array: Pillow's decoders under limits, with stated rules for every kind of pixel.

- JPEG, PNG, WebP and BMP, by content and not by name; of an animation the first frame.
- Turned as its EXIF says.
- Palettes become colours; transparent pixels are laid on white.
- 16 bits a pixel: the upper 8, though a transparent shade of grey is one of all 16; a transparent colour of
  16 bits a channel is refused. CMYK: Pillow's conversion, without colour profiles.
- Grey is 0.299 R + 0.587 G + 0.114 B; a grey image in colour has three equal channels.
- Fitted into a square: `crop` takes the largest square from the middle, `pad` adds black, `stretch` changes
  the proportions. Resized bilinearly with antialiasing.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from orchestrator.system.files import read_regular

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_FILE_BYTES = 256_000_000
MAX_PIXELS = 1 << 26  # 8192 x 8192; Pillow's own limit warns at 89 million and refuses at twice that
TOO_LARGE = f"at most {MAX_PIXELS / 1e6:.0f} million pixels are decoded"
SHADES = {"L;2": 4, "L;4": 16}  # of Pillow's raw modes with fewer than 8 bits
BILINEAR = Image.Resampling.BILINEAR


class BrokenImageError(ValueError):
    """A file that is no image, or not a whole one, or too large; the reason without the file's name."""


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence Pillow on damaged EXIF, and on sizes, which are limited here.

    Around all threads that decode: the filters are those of the process.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _ReusedMemory:
    """Lets Pillow keep blocks of memory, each of an image, while any thread of the process asks for it.

    New ones come from the system for every image, at a page fault for every 4 KB. Pillow's number is that of
    the process: of threads that overlap the first sets it, and the last sets it back.
    """

    def __init__(self) -> None:
        self._lock, self._users, self._before = Lock(), 0, 0

    @contextmanager
    def __call__(self, blocks: int) -> Iterator[None]:
        core: Any = Image.core  # type: ignore[attr-defined]  # Pillow documents it, without types
        with self._lock:
            if not self._users:
                self._before = core.get_blocks_max()
                core.set_blocks_max(max(self._before, blocks))
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    core.set_blocks_max(self._before)


reused_memory = _ReusedMemory()


def read_image_bytes(file: Path) -> bytes:
    """Return a file's bytes. BrokenImageError where it cannot be read, is empty or too large."""
    try:
        content = read_regular(file, at_most=MAX_FILE_BYTES)
    except OSError as error:
        raise BrokenImageError(f"cannot be read: {error.strerror or error}") from error
    if not content:
        raise BrokenImageError("is empty: 0 bytes")
    if len(content) > MAX_FILE_BYTES:
        raise BrokenImageError(f"has more than {MAX_FILE_BYTES // 1_000_000} MB")
    return content


def decode(
    content: bytes, *, size: int, fit: str, grey: bool, formats: tuple[str, ...] = FORMATS
) -> NDArray[np.uint8]:
    """Return an image as uint8 [C, size, size], not always contiguous.

    BrokenImageError for what cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BrokenImageError(f"is {width} x {height} pixels; {TOO_LARGE}")
            correct_transparency(image)
            image.load()
            plain = fitted(to_eight_bits(turned(image)), size, fit)
            array = np.asarray(_in_mode(plain, "L" if grey else "RGB"))
    except BrokenImageError:
        raise
    except Image.DecompressionBombError as error:
        raise BrokenImageError(f"is too large; {TOO_LARGE}") from error
    except MemoryError as error:
        raise BrokenImageError("does not fit into memory") from error
    except Exception as error:  # each decoder of Pillow has its own
        raise BrokenImageError(f"is no whole {', '.join(formats)} image: {_reason(error)}") from error
    return array[None] if grey else array.transpose(2, 0, 1)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return "its format is unknown" if isinstance(error, UnidentifiedImageError) else text[:120]


def turned(image: Image.Image) -> Image.Image:
    """Return an image turned as its EXIF says, or as it is where that cannot be read."""
    try:
        is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if is_turned else image
    except Exception:  # noqa: BLE001  each of Pillow's parsers of metadata has its own; the pixels are whole
        return image


def correct_transparency(image: Image.Image) -> None:
    """Let the transparent shade of a PNG of 2 or 4 bits be of 8, as Pillow's pixels are.

    Before the image is loaded, which forgets its bits. BrokenImageError for a transparent colour of 16 bits a
    channel: Pillow's pixels have only the upper 8, which other colours may share.
    """
    tiles, shade = getattr(image, "tile", None), image.info.get("transparency")
    raw_mode = tiles[0][-1] if tiles else ""
    if isinstance(raw_mode, str) and raw_mode in SHADES and isinstance(shade, int):
        image.info["transparency"] = shade * 255 // (SHADES[raw_mode] - 1)
    if isinstance(shade, tuple) and (raw_mode == "RGB;16B" or max(shade) > 255):
        raise BrokenImageError("has 16 bits a channel and a transparent colour; save it with 8 bits")


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Return an image as L or RGB, 8 bits a channel, with transparent pixels on white."""
    correct_transparency(image)
    if image.mode.startswith("I"):  # 16-bit grey; as `I` in some versions of Pillow
        values = np.asarray(image).astype(np.int64)
        upper = np.clip(values >> 8, 0, 255).astype(np.uint8)
        if (shade := image.info.get("transparency")) is not None:
            upper[values == shade] = 255
        return Image.fromarray(upper)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        above = image.convert("RGBA")
        white = Image.new("RGBA", above.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, above).convert("RGB")
    return _in_mode(image, "L" if image.mode in ("1", "L") else "RGB")


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return an image in a mode; itself, where Pillow would copy it."""
    return image if image.mode == mode else image.convert(mode)


def fitted(image: Image.Image, size: int, fit: str) -> Image.Image:
    """Return a square image by one of the three rules."""
    if fit == "pad":
        short = round(size * min(image.size) / max(image.size))
        if short == 0:  # ImageOps.pad would draw nothing of so thin an image
            is_wide = image.width > image.height
            image = image.resize((size, 1) if is_wide else (1, size), BILINEAR)
        return ImageOps.pad(image, (size, size), BILINEAR, color=0)
    if fit == "stretch":
        return image.resize((size, size), BILINEAR)
    return ImageOps.fit(image, (size, size), BILINEAR)
