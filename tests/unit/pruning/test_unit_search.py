"""The search for the units that a column reads, against matrices of what reads what."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruning.channel_mapping.unit_search import UnitSearch


def search(matrices: dict[str, Tensor]) -> tuple[dict[str, set[tuple[int, int]]], int]:
    """Return reader -> the (column, unit) pairs that a search finds, and how many passes it takes."""
    units = len(next(iter(matrices.values())))
    unclear = {reader: matrix.any(0) for reader, matrix in matrices.items()}
    blocks, passes = UnitSearch.start(units, unclear), 0
    while blocks.is_open:
        blocks.split()
        codes = blocks.codes(blocks.passes)
        blocks.narrow({reader: codes.float() @ matrix.float() > 0 for reader, matrix in matrices.items()})
        passes += blocks.passes
    pairs = {
        reader: set(zip(columns.tolist(), numbers.tolist(), strict=True))
        for reader, (columns, numbers) in blocks.pairs().items()
    }
    return pairs, passes


def expected(matrix: Tensor) -> set[tuple[int, int]]:
    return {(column, unit) for unit, column in matrix.nonzero().tolist()}


@given(
    units=st.integers(1, 300),
    widths=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    density=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_search_finds_exactly_what_reads_what(
    units: int, widths: list[int], density: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrices = {
        f"reader{number}": torch.rand(units, width, generator=generator) < density
        for number, width in enumerate(widths)
    }
    pairs, _ = search(matrices)
    assert pairs == {reader: expected(matrix) for reader, matrix in matrices.items()}


@pytest.mark.parametrize("heads", [4, 24])
def test_units_of_different_heads_share_passes(heads: int) -> None:
    """Query, key and value in one layer: a column reads the queries and keys of its head, and one value."""
    width = 32
    head = torch.arange(heads * width) // width
    same_head = head[:, None] == head
    matrix = torch.cat([same_head, same_head, torch.eye(heads * width, dtype=torch.bool)])
    pairs, passes = search({"projection": matrix})
    assert pairs["projection"] == expected(matrix)
    assert passes < 5 * width  # units one by one take 3 * heads * width


def test_at_worst_the_search_takes_few_more_passes_than_units() -> None:
    units = 256
    pairs, passes = search({"reader": torch.ones(units, 3, dtype=torch.bool)})
    assert len(pairs["reader"]) == 3 * units
    assert passes < 1.4 * units
