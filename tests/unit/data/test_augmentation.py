"""Augmentations against loops by hand and against torchvision's transforms."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from torch import Tensor

from models import torchvision_compat
from orchestrator.data import crops
from orchestrator.data import randaugment as operations
from orchestrator.data.augmentation import (
    AugmentationContext,
    Augmenter,
    augment,
    augmentation_conflict,
    parse_augmentation,
)
from orchestrator.data.crops import resized_crop
from orchestrator.data.scaled_images import Images, PixelScale, ScaledImages
from orchestrator.errors import SpaceError
from orchestrator.system.determinism import torch_threads

assert torchvision_compat.transforms  # imported before torchvision itself
from torchvision.transforms import v2  # noqa: E402


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=seeded(seed))


@pytest.mark.parametrize(("side", "size"), [(32, 16), (28, 7), (8, 1), (8, 8)])
def test_cutout_is_the_authors_square(side: int, size: int) -> None:
    """DeVries & Taylor's code as a loop: y, x drawn; y - size // 2 to y + size // 2, clipped."""
    images = noise(40, 3, side, side) + 1
    cut = augment(images, seeded(3), kind=f"cutout(size={size})")
    draws = seeded(3)
    ys, xs = (torch.randint(side, (40, 1), generator=draws)[:, 0].tolist() for _ in range(2))
    for image, one, y, x in zip(images, cut, ys, xs, strict=True):
        by_hand = image.clone()
        top, left = y - size // 2, x - size // 2
        by_hand[:, max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = 0
        assert torch.equal(one, by_hand)
    assert len(set(zip(ys, xs, strict=True))) > 20


SIDES = st.integers(4, 40)


def drawn_parts(
    images: Tensor, kind: str, seed: int, *, training_images: Images | None = None
) -> tuple[Tensor, list[tuple[int, ...]]]:
    """Crop and resize; return the result, and the (top, left, height, width) that were drawn."""
    parts: list[tuple[int, ...]] = []
    resized = crops._resized

    def spy(images: Tensor, start: Tensor, size: Tensor) -> Tensor:
        parts.extend(tuple(part) for part in torch.cat([start, size], 1).long().tolist())
        return resized(images, start, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crops, "_resized", spy)
        context = AugmentationContext(seeded(seed), images if training_images is None else training_images)
        (method,) = parse_augmentation(kind)
        return method(images, context), parts


@given(SIDES, SIDES, st.sampled_from([0.08, 0.3, 0.9]), st.integers(0, 2**32), st.booleans())
def test_a_resized_crop_is_that_of_torchvision_with_the_same_part_to_the_bit(
    height: int, width: int, scale: float, seed: int, is_bytes: bool
) -> None:
    images = noise(5, 3, height, width, seed=seed)
    if is_bytes:
        images = (images * 256).to(torch.uint8)
    cropped, parts = drawn_parts(images, f"resized_crop(scale={scale})", seed)
    assert cropped.dtype == images.dtype
    assert cropped.is_contiguous()
    for image, one, (top, left, h, w) in zip(images, cropped, parts, strict=True):
        assert 0 <= top <= top + h <= height
        assert 0 <= left <= left + w <= width
        theirs = v2.functional.resized_crop(image, top, left, h, w, [height, width], antialias=True)
        assert torch.equal(one, theirs)


@pytest.mark.parametrize("channels", [1, 3])
def test_resized_bytes_are_those_of_pillow_within_a_level(channels: int) -> None:
    images = (noise(20, channels, 48, 40) * 256).to(torch.uint8)
    cropped, parts = drawn_parts(images, "resized_crop", 1)
    for image, one, (top, left, height, width) in zip(images, cropped, parts, strict=True):
        pixels = image.permute(1, 2, 0).squeeze(2).numpy()
        part = Image.fromarray(pixels).crop((left, top, left + width, top + height))
        theirs = torch.from_numpy(np.array(part.resize((40, 48), Image.Resampling.BILINEAR)))
        theirs = theirs.view(48, 40, channels).permute(2, 0, 1)
        assert int((one.int() - theirs.int()).abs().max()) <= 1


@given(SIDES, SIDES, st.integers(0, 2**32), st.booleans())
def test_all_parts_resized_at_once_are_those_of_one_by_one(
    height: int, width: int, seed: int, is_bytes: bool
) -> None:
    """As on a GPU: in floats, which are rounded for bytes; a half may go either way."""
    images = noise(5, 3, height, width, seed=seed)
    if is_bytes:
        images = (images * 256).to(torch.uint8)
    one_by_one, parts = drawn_parts(images, "resized_crop", seed)
    drawn = torch.tensor(parts, dtype=torch.float64)
    at_once = crops._sampled(images, drawn[:, :2], drawn[:, 2:])
    assert at_once.dtype == images.dtype
    assert float((at_once.double() - one_by_one.double()).abs().max()) <= (1 if is_bytes else 1e-4)


def _parts(count: int, side: int, **options: float) -> tuple[Tensor, Tensor]:
    """The heights and widths of many crops, read off ramps: a ramp's slope is the length of its crop."""
    ramp = torch.arange(side, dtype=torch.float64)
    images = torch.stack([ramp[:, None].expand(side, side), ramp[None, :].expand(side, side)])
    context = AugmentationContext(seeded(1), images[None])
    cropped = resized_crop(images.expand(count, -1, -1, -1), context, **options)
    middle = side // 2
    slopes = cropped[:, 0, middle + 1, 0] - cropped[:, 0, middle, 0]
    across = cropped[:, 1, 0, middle + 1] - cropped[:, 1, 0, middle]
    return (slopes * side).round(), (across * side).round()


def test_crops_have_the_areas_and_ratios_of_torchvision() -> None:
    heights, widths = _parts(4000, 64, scale=0.25, ratio=0.75)
    crop = v2.RandomResizedCrop(64, scale=(0.25, 1.0), ratio=(0.75, 4 / 3))
    torch.manual_seed(0)
    params = [crop.make_params([torch.zeros(1, 64, 64)]) for _ in range(4000)]
    theirs = torch.tensor([[p["height"], p["width"]] for p in params], dtype=torch.float64)
    for ours, other in (
        (heights * widths, theirs.prod(1)),
        (widths / heights, theirs[:, 1] / theirs[:, 0]),
        (heights, theirs[:, 0]),
    ):
        assert stats.ks_2samp(ours.numpy(), other.numpy()).pvalue > 1e-3
    area = heights * widths / 64**2
    assert 0.22 < float(area.min()) < 0.28
    assert float(area.max()) > 0.95


def test_where_no_crop_fits_the_largest_allowed_is_taken() -> None:
    images = noise(20, 1, 4, 64)  # no part of a whole's area has width by height in [0.9, 1.1]
    out = augment(images, seeded(0), kind="resized_crop(scale=1.0, ratio=0.9)")
    assert out.shape == images.shape
    assert not torch.equal(out, images)


def _one_operation(name: str, magnitude: int, images: Tensor) -> dict[bool | None, Tensor]:
    changes = operations._changes(magnitude / 30, (images.shape[2], images.shape[3]))
    return {negative: change(images) for operation, change, negative in changes if operation == name}


THEIR_NAMES = dict(zip(operations.OPERATIONS, v2.RandAugment._AUGMENTATION_SPACE, strict=True))


@pytest.mark.parametrize("magnitude", [0, 9, 17, 30])
@pytest.mark.parametrize("shape", [(3, 32, 24), (1, 28, 28)])
@pytest.mark.parametrize("name", operations.OPERATIONS)
def test_each_operation_is_that_of_torchvisions_randaugment(
    name: str, shape: tuple[int, int, int], magnitude: int
) -> None:
    images = noise(4, *shape)
    theirs = v2.RandAugment(magnitude=magnitude)
    strengths_of, is_signed = theirs._AUGMENTATION_SPACE[THEIR_NAMES[name]]
    strengths = strengths_of(31, *shape[1:])
    strength = 0.0 if strengths is None else float(strengths[magnitude])
    ours = _one_operation(name, magnitude, images)
    assert set(ours) == (set() if name == "identity" else {True, False} if is_signed else {None})
    for negative, changed in ours.items():
        signed = -strength if negative else strength
        other = theirs._apply_image_or_video_transform(
            images, THEIR_NAMES[name], signed, interpolation=v2.InterpolationMode.NEAREST, fill=theirs._fill
        )
        assert torch.allclose(changed, other, atol=1e-5)


def test_every_image_has_its_own_operation_and_stays_in_the_range_of_pixels() -> None:
    image = noise(3, 16, 16) * 3 - 1
    images = image.expand(500, -1, -1, -1)
    out = augment(images, seeded(0), kind="randaugment(operations=1)")
    kinds = {one.numpy().tobytes() for one in out}
    assert 20 <= len(kinds) <= 1 + 2 * 9 + 4
    lowest, highest = images.amin((0, 2, 3)), images.amax((0, 2, 3))
    assert bool((out.amin((0, 2, 3)) >= lowest - 1e-5).all())
    assert bool((out.amax((0, 2, 3)) <= highest + 1e-5).all())
    unchanged = [one for one in out if torch.allclose(one, image, atol=1e-5)]
    assert 15 < len(unchanged) < 70  # about one in fourteen


def test_images_of_a_constant_channel_stay_finite() -> None:
    images = torch.full((8, 3, 8, 8), 0.5)
    assert augment(images, seeded(0), kind="randaugment(operations=14, magnitude=30)").isfinite().all()


ALL = "resized_crop + crop_flip + randaugment + cutout(size=5)"


@pytest.mark.parametrize("kind", [ALL, "randaugment(operations=4)", "resized_crop"])
def test_the_bits_are_those_of_one_thread(kind: str) -> None:
    images = noise(200, 3, 32, 32)
    results = []
    for threads in (1, 2, 3):
        with torch_threads(threads):
            results.append(augment(images, seeded(4), kind=kind))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_torchvision_is_imported_by_randaugment_alone(tmp_path: Path) -> None:
    lines = (
        "import sys, torch",
        "from orchestrator.data.augmentation import augment",
        "images = torch.rand(2, 3, 8, 8)",
        "for kind in ('none', 'crop_flip + cutout(size=2) + resized_crop', 'randaugment'):",
        "    augment(images, torch.Generator(), kind=kind)",
        "    print('torchvision' in sys.modules)",
    )
    shown = forked.python("\n".join(lines), cwd=tmp_path)
    assert shown.stdout.split() == ["False", "False", "True"]


def test_several_follow_each_other_with_one_generator() -> None:
    images, generator = noise(30, 3, 12, 12), seeded(7)
    step_by_step = images
    for kind in ("crop_flip", "cutout(size=3)", "resized_crop(scale=0.5)"):
        step_by_step = augment(step_by_step, generator, kind=kind)
    joined = augment(images, seeded(7), kind="crop_flip+cutout(size=3) + resized_crop(scale=0.5)")
    assert torch.equal(joined, step_by_step)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flip + flips", "did you mean flip"),
        ("none + flip", "none stands alone"),
        ("flip + cutout + flip", "flip stands twice"),
        ("flip + ", "is no method"),
        ("cutout(size=0)", r"must be in \[1"),
        ("cutout(sise=4)", "did you mean size"),
        ("resized_crop(scale=0)", "must be in"),
        ("randaugment(magnitude=31)", "must be in"),
    ],
)
def test_what_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        Augmenter(text, seeded(0), noise(1, 1, 4, 4))
    with pytest.raises(ValueError, match=message):
        parse_augmentation(text)


def test_conflicts_with_the_images() -> None:
    conflict = partial(augmentation_conflict, input_shape=(1, 8, 10))
    assert conflict("flip + cutout(size=9)") == "cutout(size=9) is larger than images of 8x10; give 1 to 8"
    assert conflict("cutout(size=8) + randaugment") is None
    assert "grey or RGB" in str(augmentation_conflict("randaugment", (2, 8, 8)))


def test_uniform_draws_are_in_their_range() -> None:
    context = AugmentationContext(seeded(0), noise(1, 1, 2, 2))
    low, high = math.log(0.75), -math.log(0.75)
    drawn = context.uniform(low, high, 1000, 3)
    assert drawn.shape == (1000, 3)
    assert stats.kstest(drawn.flatten().numpy(), "uniform", (low, high - low)).pvalue > 1e-3


@pytest.mark.parametrize("kind", ["flip", "crop_flip"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 9), (2, 40, 33)])
@pytest.mark.parametrize("flipped_values", [0, 10**9])
def test_copied_windows_have_the_bits_of_gathered_pixels(
    kind: str, shape: tuple[int, int, int], flipped_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(50, *shape, generator=seeded(0))
    before = images.clone()
    monkeypatch.setattr(crops, "COPIED_VALUES", 0)
    monkeypatch.setattr(crops, "FLIPPED_VALUES", flipped_values)
    copied = augment(images, seeded(1), kind=kind)
    monkeypatch.setattr(crops, "COPIED_VALUES", 10**9)
    monkeypatch.setattr(crops, "FLIPPED_VALUES", 10**9)
    gathered = augment(images, seeded(1), kind=kind)
    assert torch.equal(copied, gathered)
    assert copied.stride() == gathered.stride()
    assert torch.equal(images, before)


def scaled_noise(channels: int, height: int, width: int, *, levels: int = 255) -> tuple[Tensor, ScaledImages]:
    """The same images as floats and as bytes."""
    pixels = (noise(50, channels, height, width) * (levels + 1)).to(torch.uint8)
    mean, deviation = torch.rand(2, channels, generator=seeded(1))
    scale = PixelScale(levels, mean, deviation)
    return scale.on_cpu(pixels), ScaledImages(pixels, torch.arange(50), scale, torch.device("cpu"))


@pytest.mark.parametrize("kind", ["none", "flip", "crop_flip", "crop_flip + resized_crop", "flip + cutout"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 9), (3, 40, 33), (3, 60, 64), (3, 180, 10)])
def test_bytes_are_flipped_and_moved_with_the_bits_of_floats(kind: str, shape: tuple[int, int, int]) -> None:
    if kind.endswith("cutout"):
        kind += f"(size={min(shape[1:])})"
    floats, scaled = scaled_noise(*shape)
    order = torch.randperm(50, generator=seeded(2)).split(17)
    results = []
    for images in (floats, scaled):
        augmenter = Augmenter(kind, seeded(3), images)
        results.append(torch.cat([augmenter(batch) for batch in augmenter.read_batches(order)]))
    assert torch.equal(results[0].view(torch.int32), results[1].view(torch.int32))
    assert results[0].stride() == results[1].stride()


def test_bytes_are_resized_as_bytes_and_then_scaled() -> None:
    _, scaled = scaled_noise(3, 40, 32)
    augmenter = Augmenter("resized_crop + flip", seeded(3), scaled)
    (batch,) = augmenter.read_batches([torch.arange(50)])
    draws = seeded(3)
    context = AugmentationContext(draws, scaled)
    expected = crops.flip(resized_crop(scaled.pixels, context), context)
    assert torch.equal(augmenter(batch), scaled.pixel_scale.on_cpu(expected))


def test_fewer_levels_than_those_of_a_byte_are_not_rounded_to() -> None:
    floats, scaled = scaled_noise(1, 12, 12, levels=16)
    results = []
    for images in (floats, scaled):
        augmenter = Augmenter("resized_crop", seeded(3), images)
        results.append(torch.cat([augmenter(batch) for batch in augmenter.read_batches([torch.arange(50)])]))
    assert torch.equal(*results)


@pytest.mark.parametrize("kind", ["none", "flip", "crop_flip", "resized_crop + flip"])
def test_augmented_bytes_do_not_depend_on_the_threads(kind: str) -> None:
    _, scaled = scaled_noise(3, 64, 56)
    results = []
    for threads in (1, 2, 3):
        with torch_threads(threads):
            augmenter = Augmenter(kind, seeded(3), scaled)
            batches = augmenter.read_batches(torch.arange(50).split(23))
            results.append(torch.cat([augmenter(batch) for batch in batches]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
