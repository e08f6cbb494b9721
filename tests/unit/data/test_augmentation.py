"""Augmentations against loops by hand and against torchvision's transforms."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import forked
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.nn import functional

from models import torchvision_compat
from orchestrator.data import augmentation
from orchestrator.data import randaugment as operations
from orchestrator.data.augmentation import (
    AugmentationContext,
    Augmenter,
    augment,
    augmentation_conflict,
    parse_augmentation,
    resized_crop,
)
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


@given(SIDES, SIDES, st.sampled_from([0.08, 0.3, 0.9]), st.integers(0, 2**32))
def test_a_resized_crop_is_that_of_torchvision_with_the_same_part(
    height: int, width: int, scale: float, seed: int
) -> None:
    images = noise(5, 3, height, width, seed=seed)
    parts: list[tuple[int, int, int, int]] = []
    sample = functional.grid_sample

    def spy(images: Tensor, grid: Tensor, **options: object) -> Tensor:
        for image in grid.double():  # the outermost pixels that are read
            rows, columns = (
                (image[..., axis] + 1) / 2 * (size - 1) for axis, size in ((1, height), (0, width))
            )
            parts.append((rows.min(), rows.max(), columns.min(), columns.max()))
        return sample(images, grid, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "grid_sample", spy)
        cropped = augment(images, seeded(seed), kind=f"resized_crop(scale={scale})")
    assert cropped.shape == images.shape
    for image, one, (top, bottom, left, right) in zip(images, cropped, parts, strict=True):
        # bilinear reading begins at max(0, (h / H - 1) / 2) inside a part of height h
        candidates = [
            v2.functional.resized_crop(image, y, x, h, w, [height, width], antialias=True)
            for y, h in _windows(float(top), float(bottom), height)
            for x, w in _windows(float(left), float(right), width)
        ]
        assert min(float((one - candidate).abs().max()) for candidate in candidates) < 1e-4


def _windows(first: float, last: float, size: int) -> list[tuple[int, int]]:
    """Every (start, length) whose first and last position read are these."""
    windows = []
    for start in range(size):
        for length in range(1, size - start + 1):
            read = [min(max((k + 0.5) * length / size - 0.5, 0), length - 1) for k in (0, size - 1)]
            if abs(start + read[0] - first) < 1e-3 and abs(start + read[1] - last) < 1e-3:
                windows.append((start, length))
    assert windows
    return windows


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
    monkeypatch.setattr(augmentation, "COPIED_VALUES", 0)
    monkeypatch.setattr(augmentation, "FLIPPED_VALUES", flipped_values)
    copied = augment(images, seeded(1), kind=kind)
    monkeypatch.setattr(augmentation, "COPIED_VALUES", 10**9)
    monkeypatch.setattr(augmentation, "FLIPPED_VALUES", 10**9)
    gathered = augment(images, seeded(1), kind=kind)
    assert torch.equal(copied, gathered)
    assert copied.stride() == gathered.stride()
    assert torch.equal(images, before)
