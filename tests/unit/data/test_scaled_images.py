"""Images that stay bytes answer as the float images do, bit for bit, whatever order they are read in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orchestrator.data.scaled_images import (
    PixelScale,
    ScaledImages,
    as_bytes,
    pixels_of,
    read_batches,
    read_images,
    value_range,
)

CPU = torch.device("cpu")


def both(channels: int, *, levels: int = 255, count: int = 40) -> tuple[Tensor, ScaledImages]:
    """The same images as floats, scaled as a whole, and as bytes."""
    generator = torch.Generator().manual_seed(channels)
    pixels = torch.randint(levels + 1, (count, channels, 5, 7), generator=generator, dtype=torch.uint8)
    mean, deviation = torch.rand(2, channels, generator=generator, dtype=torch.float64).float()
    rows = torch.randperm(count, generator=generator)[: count // 2]
    floats = pixels[rows].to(torch.float32).div_(levels)
    floats.sub_(mean[:, None, None]).div_(deviation[:, None, None])
    return floats, ScaledImages(pixels, rows, PixelScale(levels, mean, deviation), CPU)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("levels", [16, 255])
def test_every_byte_has_the_bits_of_the_float_images(channels: int, levels: int) -> None:
    mean, deviation = torch.rand(2, channels)
    table = PixelScale(levels, mean, deviation).table
    expected = torch.arange(256).to(torch.float32).div_(levels).expand(channels, 256)
    expected = expected.sub(mean[:, None]).div_(deviation[:, None])
    assert torch.equal(table.view(torch.int32), expected.view(torch.int32))


@given(st.sampled_from([1, 16, 200, 255]), st.integers(0, 2**32), st.sampled_from([1, 3]))
def test_scaled_images_have_the_bytes_that_they_were_made_of(levels: int, seed: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mean, deviation = torch.rand(2, channels, generator=generator)
    scale = PixelScale(levels, mean, deviation + 1e-3)
    pixels = torch.randint(levels + 1, (3, channels, 9, 11), generator=generator, dtype=torch.uint8)
    for ordered in (pixels, pixels.contiguous(memory_format=torch.channels_last)):
        returned = scale.to_bytes(scale.on_cpu(ordered))
        assert torch.equal(returned, ordered)
        assert returned.stride() == ordered.stride()
    images = as_bytes(scale.on_cpu(pixels), scale)
    assert isinstance(images, ScaledImages) == (levels == 255)
    assert torch.equal(images[:], scale.on_cpu(pixels))


@given(st.lists(st.integers(0, 19), min_size=1, max_size=30), st.sampled_from([1, 3]))
def test_a_batch_is_that_of_the_float_images(positions: list[int], channels: int) -> None:
    floats, images = both(channels)
    index = torch.tensor(positions)
    assert torch.equal(images[index], floats[index])
    assert images[index].stride() == floats[index].stride()  # convolutions have other bits in another order
    assert torch.equal(images[: len(positions)], floats[: len(positions)])
    assert images.shape == floats.shape
    assert len(images) == len(floats)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_table_has_the_bits_of_arithmetic(channels: int) -> None:
    floats, images = both(channels)
    looked_up = images.look_up(images.pixels[images.rows])
    assert torch.equal(looked_up, floats)
    assert looked_up.stride() == floats.stride()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("is_resident", [False, True])
def test_a_gpu_has_the_same_bits(is_resident: bool) -> None:
    floats, images = both(3)
    device = torch.device("cuda")
    home = device if is_resident else CPU
    images = ScaledImages(images.pixels.to(home), images.rows.to(home), images.pixel_scale, device)
    order = torch.randperm(20)
    batches = list(read_batches(images, order.to(home).split(6)))
    assert all(batch.device.type == "cuda" for batch in batches)
    assert torch.equal(torch.cat(batches).cpu(), floats[order])
    assert torch.equal(torch.cat(list(images.split(6))).cpu(), floats)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(value_range(images), value_range(floats), strict=True))


SHAPES = {
    "grey": lambda raw: raw[:, :1].copy(),
    "grey, as of MNIST": lambda raw: raw[:, 0].copy()[:, None],
    "grey, channels last": lambda raw: raw[:, 0].copy()[..., None].transpose(0, 3, 1, 2),
    "colour": lambda raw: raw,
    "colour, channels last": lambda raw: raw.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2),
    "one column": lambda raw: raw[..., :1].copy(),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_batches_have_the_order_in_memory_that_indexing_gives(shape: str) -> None:
    raw = SHAPES[shape](np.random.default_rng(0).integers(0, 256, (20, 3, 6, 5), dtype=np.uint8))
    rows, channels = np.array([3, 5, 2, 11, 7]), raw.shape[1]
    mean, deviation = torch.rand(2, channels, generator=torch.Generator().manual_seed(0))
    floats = torch.from_numpy(raw[rows]).to(torch.float32).div_(255)
    floats.sub_(mean[:, None, None]).div_(deviation[:, None, None])
    scaled = ScaledImages(pixels_of(raw), torch.from_numpy(rows), PixelScale(255, mean, deviation), CPU)
    for index in (torch.tensor([4, 0, 2]), torch.tensor([1])):
        for images in (floats, scaled):
            batch = read_images(images, index)
            assert torch.equal(batch, floats[index])
            assert batch.stride() == floats[index].stride()


def test_batches_come_in_their_order() -> None:
    floats, images = both(3)
    order = torch.randperm(20).split(3)
    for batch, expected in zip(read_batches(images, order), read_batches(floats, order), strict=True):
        assert torch.equal(batch, expected)
    assert torch.equal(torch.cat(list(images.split(6))), floats)
    assert list(read_batches(images, [])) == []


def test_an_epoch_that_is_left_early_ends_its_thread() -> None:
    import threading

    _, images = both(1)
    batches = read_batches(images, torch.arange(20).split(2))
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-images")]


def test_images_may_be_mapped_from_a_file(tmp_path) -> None:
    floats, images = both(3)
    file = tmp_path / "images.u8"
    file.write_bytes(images.pixels.numpy().tobytes())
    mapped = np.memmap(file, np.uint8, mode="c", shape=tuple(images.pixels.shape))
    assert torch.equal(
        ScaledImages(torch.from_numpy(mapped), images.rows, images.pixel_scale, CPU)[:], floats
    )
