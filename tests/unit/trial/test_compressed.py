"""The sparse form by hand, and after a standard compressor."""

from __future__ import annotations

import pyarrow
import pytest
import torch

import models
import pruning
from orchestrator.trial.metrics import compressed_bytes, sparse_bytes, sparse_form


def test_the_sparse_form_by_hand() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    mask = torch.tensor([[True, False, True], [False, False, True]])
    bias = torch.tensor([7.0])
    found = b"".join(sparse_form({"w": weight, "b": bias}, {"w": mask, "b": torch.tensor([True])}))
    living = torch.tensor([1.0, 3.0, 6.0]).numpy().tobytes()
    assert found == torch.tensor([7.0]).numpy().tobytes() + bytes([0b10100100]) + living


@pytest.mark.parametrize("amount", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("model", ["mlp(widths=[32, 16])", "cnn(widths=[8])"])
def test_what_is_compressed_has_the_sparse_size_and_comes_back(model: str, amount: float) -> None:
    torch.manual_seed(0)
    net = models.build(model, input_shape=(1, 8, 8), num_classes=10)
    masks = pruning.prune(net, amount=amount, criterion="magnitude", granularity="weight", scope="layer")
    whole = b"".join(sparse_form(net.state_dict(), masks))
    assert len(whole) == sparse_bytes(net, masks)
    size = compressed_bytes(net.state_dict(), masks)
    assert size == compressed_bytes(net.state_dict(), masks) < len(whole)
    packed = pyarrow.Codec("zstd", compression_level=3).compress(whole, asbytes=True)
    assert (len(packed), pyarrow.decompress(packed, len(whole), "zstd", asbytes=True)) == (size, whole)


def test_order_is_worth_something() -> None:
    """A mask of whole rows takes next to nothing; one of the same sparsity at random takes its entropy."""
    torch.manual_seed(0)
    weight = {"w": torch.zeros(1000, 800)}
    rows = torch.zeros(1000, 800, dtype=torch.bool)
    rows[:500] = True
    random = torch.rand(1000, 800) < 0.5
    assert compressed_bytes(weight, {"w": rows}) < 1000
    assert compressed_bytes(weight, {"w": random}) > 0.99 * 800_000 / 8
