"""safetensors files from elsewhere that lie."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from crafted_files import refused

ROOT = Path(__file__).parents[3]


def safetensors(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS: list[tuple[str, dict[str, object]]] = [
    ("no plain tensor of real numbers", {"dtype": "C64", "shape": [1]}),
    ("no plain tensor of real numbers", {"dtype": "F8_E4M3", "shape": [8]}),
    ("no plain tensor of real numbers", {"dtype": ["F32"]}),
    ("has no elements, or not as many", {"shape": [0, 2**63 - 1], "data_offsets": [0, 0]}),
    ("has no elements, or not as many", {"shape": [2**63 - 1, 2**63 - 1]}),
    ("has no elements, or not as many", {"data_offsets": [8, 0]}),
    ("an invalid shape or invalid offsets", {"shape": [-2]}),
    ("an invalid shape or invalid offsets", {"shape": [2.0]}),
    ("an invalid shape or invalid offsets", {"shape": 2}),
    ("an invalid shape or invalid offsets", {"shape": [True, 2]}),
    ("an invalid shape or invalid offsets", {"shape": [1] * 17}),
    ("an invalid shape or invalid offsets", {"data_offsets": [0, 4, 8]}),
    ("other fields than dtype", {"more": 1}),
    ("no safetensors file", {"data_offsets": [8, 16]}),
]


@pytest.mark.parametrize(("match", "change"), HEADERS)
def test_a_header_that_lies_is_refused(tmp_path: Path, match: str, change: dict[str, object]) -> None:
    header = json.dumps({"a": {**GOOD, **change}}).encode()
    refused(safetensors(tmp_path / "net.safetensors", header, bytes(8)), match)


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    header = json.dumps({"a": GOOD, "b": GOOD}).encode()
    refused(safetensors(tmp_path / "net.safetensors", header, bytes(8)), "no safetensors file")


def test_a_crowd_of_tensors_is_refused(tmp_path: Path) -> None:
    entries = {str(n): {"dtype": "U8", "shape": [1], "data_offsets": [n, n + 1]} for n in range(20_001)}
    path = safetensors(tmp_path / "net.safetensors", json.dumps(entries).encode(), bytes(20_001))
    refused(path, "has 20,001 tensors; 20,000 is the most")


@pytest.mark.parametrize("inner", [b"[],", b'{"a":1},', b"1,", b'"",'])
def test_a_header_full_of_anything_is_refused_in_a_moment(tmp_path: Path, inner: bytes) -> None:
    header = b'{"a":[' + inner * (2_900_000 // len(inner)) + b"1]}"
    refused(safetensors(tmp_path / "net.safetensors", header), "other fields than dtype")
