"""safetensors: only the tensors that a network has, after a look at the header."""

from __future__ import annotations

import json
import struct
from time import perf_counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from orchestrator.errors import StoreError
from orchestrator.storage.tensor_files import (
    LARGEST_HEADER,
    load_expected_tensors,
    pack_mask,
    packed_bytes,
    unpack_mask,
)

FORMS = {"a": ((2, 3), torch.float32), "b": ((4,), torch.int64)}


def given_tensors() -> dict[str, Tensor]:
    return {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(4)}


def refused(data: bytes, match: str) -> None:
    with pytest.raises(StoreError, match=match) as caught:
        load_expected_tensors(data, FORMS, "file")
    assert "\n" not in str(caught.value)


def test_the_tensors_of_a_network_come_back() -> None:
    found = load_expected_tensors(save(given_tensors()), FORMS, "file")
    assert all(torch.equal(found[name], tensor) for name, tensor in given_tensors().items())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"c": torch.zeros(1)}, "holds 'c'"),
        ({"a": None}, "lacks 'a'"),
        ({"a": torch.zeros(3, 2)}, r"a is \(3, 2\) float32; the network has \(2, 3\) float32"),
        ({"b": torch.zeros(4)}, "b is .* float32; the network has .* int64"),
        ({"a": torch.zeros(2, 3, dtype=torch.bfloat16)}, "a is .* bfloat16"),
    ],
)
def test_other_tensors_are_refused(change: dict[str, Tensor | None], match: str) -> None:
    changed = {name: tensor for name, tensor in (given_tensors() | change).items() if tensor is not None}
    refused(save(changed), match)


def test_a_name_that_stands_twice_is_refused() -> None:
    data = save(given_tensors())
    length = struct.unpack("<Q", data[:8])[0]
    entry = json.dumps(json.loads(data[8 : 8 + length])["a"]).encode()
    header = data[8 : 8 + length].rstrip()[:-1] + b', "a": ' + entry + b"}"
    refused(struct.pack("<Q", len(header)) + header + data[8 + length :], "twice")


@pytest.mark.parametrize("length", [LARGEST_HEADER + 1, 2**40, 2**64 - 1])
def test_a_huge_header_is_refused(length: int) -> None:
    refused(struct.pack("<Q", length) + b"{}", "header of more than")


def test_a_crowd_of_empty_tensors_is_refused_in_a_moment() -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"tensor.{number}": empty for number in range(35_000)}).encode()
    assert len(header) < LARGEST_HEADER
    started = perf_counter()
    refused(struct.pack("<Q", len(header)) + header, "its names are not those of the network")
    assert (
        perf_counter() - started < 10
    )  # 0.2 s on an idle core; safetensors' own parser takes many times that


def test_a_file_cut_short_is_refused() -> None:
    data = save(given_tensors())
    for end in range(0, len(data), 7):
        refused(data[:end], "file")


@given(data=st.binary(max_size=64))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(StoreError):
        load_expected_tensors(data, FORMS, "file")


@given(shape=st.lists(st.integers(1, 7), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_a_packed_mask_comes_back(shape: list[int], seed: int) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_mask(mask)
    assert packed.dtype == torch.uint8
    assert len(packed) == packed_bytes(tuple(shape)) == -(-mask.numel() // 8)
    assert torch.equal(unpack_mask(packed, tuple(shape)), mask)
