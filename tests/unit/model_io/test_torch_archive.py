"""Files of torch.save that lie: refused in a moment, and without memory for what they claim."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from crafted_files import EMPTY, archive, lying, number, refused, view

from orchestrator.model_io.state_dict_files import read_state_dict

ROOT = Path(__file__).parents[3]


# Zips that lie


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    """Some kilobytes that are 50 MB of zeros once unpacked."""
    path = archive(tmp_path / "net.pth", EMPTY, {"archive/data/0": b"\0" * 50_000_000}, packed=True)
    assert path.stat().st_size < 60_000
    refused(path, "'archive/data.pkl' is compressed, as torch.save never does")


def test_a_crowd_of_entries_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "net.pth", EMPTY, {f"archive/data/{n}": b"" for n in range(40_000)})
    refused(path, "a directory of more than 2,000,000 bytes")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", EMPTY)
        file.writestr("archive/data.pkl", EMPTY)
    refused(path, "a name stands twice")


def test_entries_over_each_other_are_refused(tmp_path: Path) -> None:
    """One local entry, which the directory has under two names."""
    path = archive(tmp_path / "net.pth", EMPTY, {"archive/data/0": b"\0" * 1000})
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", start + 4)
    end = data.index(b"PK\x05\x06")
    entry = data[second:end].replace(b"data/0", b"data/1")
    directory = data[start:end] + entry
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 3, 3, len(directory), start, 0)
    path.write_bytes(data[:start] + directory + tail)
    refused(path, "is not where the zip's directory says")


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_a_zip_cut_short_or_with_a_tail_is_refused(tmp_path: Path, cut: int) -> None:
    torch.save({"a": torch.ones(30)}, tmp_path / "net.pth")
    data = (tmp_path / "net.pth").read_bytes()
    (tmp_path / "net.pth").write_bytes(data[:-cut])
    refused(tmp_path / "net.pth", "ends too early|something")
    (tmp_path / "net.pth").write_bytes(data + b"\0" * cut)
    refused(tmp_path / "net.pth", "ends too early, or with something behind it")


def test_a_program_of_torchscript_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "net.pth", EMPTY, {"archive/constants.pkl": EMPTY})
    refused(path, "it is a TorchScript program")


# Tensors that lie


def test_an_honest_view_is_read(tmp_path: Path) -> None:
    found = read_state_dict(lying(tmp_path, view(), view(offset=1, shape=(2,), strides=(2,))))
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {"000000": (4,), "000001": (2,)}


def test_a_mapping_as_python_2_wrote_it_is_read(tmp_path: Path) -> None:
    pair = b"](X\x01\0\0\0a" + view() + b"e"
    content = b"\x80\x02ccollections\nOrderedDict\n](" + pair + b"e\x85R."
    found = read_state_dict(archive(tmp_path / "net.pth", content, {"archive/data/0": bytes(16)}))
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"a": [0.0] * 4}


LIES = {
    "is an expanded view, whose elements share memory": [
        {"shape": (1_000_000, 1_000), "strides": (0, 0)},
        {"shape": (4, 4), "strides": (0, 1)},
        {"shape": (2, 3), "strides": (1, 1)},
    ],
    "reaches beyond its storage": [
        {"offset": 1},
        {"shape": (5,)},
        {"shape": (10**9, 10**9), "strides": (10**9, 1)},
        {"shape": (2,), "strides": (2**62,)},
        {"offset": 2**63},
    ],
    "has not the .* bytes that it claims": [
        {"count": 5, "shape": (5,)},
        {"count": 10**12},
        {"count": 3, "shape": (3,)},
    ],
    "has no elements, or no shape": [
        {"shape": (0, 2**62), "strides": (1, 1)},
        {"shape": (4,), "strides": ()},
    ],
    "a malformed tensor": [
        {"shape": (-1,)},
        {"strides": (-1,)},
        {"shape": (1,) * 17, "strides": (1,) * 17},
    ],
    "no plain tensor of real numbers": [{"kind": "ComplexFloatStorage", "count": 2, "shape": (2,)}],
    "it names torch.QUInt8Storage": [{"kind": "QUInt8Storage"}],
}


@pytest.mark.parametrize(("match", "lie"), [(match, lie) for match, lies in LIES.items() for lie in lies])
def test_a_tensor_that_lies_is_refused(tmp_path: Path, match: str, lie: dict[str, Any]) -> None:
    refused(lying(tmp_path, view(**lie)), match)


def test_many_names_of_one_storage_are_not_many_times_its_size(tmp_path: Path) -> None:
    whole = 250_000
    refused(
        lying(tmp_path, *[view(count=whole, shape=(whole,))] * 100, size=4 * whole),
        "more than twice as large",
    )


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.eye(4).to_sparse_csr(),
        torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.quint8),
        torch.ones(2, device="meta"),
        torch.ones(2, dtype=torch.complex64),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        torch.zeros(1).expand(1000),
        torch.zeros(0, 3),
        torch.ones(2).to(torch.float8_e4m3fn),
        3,
        [torch.ones(2)],
    ],
    ids=lambda value: str(getattr(value, "layout", value))[:20],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_plain_tensor_is_refused(tmp_path: Path, tensor: object) -> None:
    torch.save({"a": torch.ones(2), "b": tensor}, tmp_path / "net.pth")
    refused(tmp_path / "net.pth", "net.pth")


# Pickles that lie


PROGRAMS = {
    "ten million containers": b"\x80\x02" + b"}" * 9_900_000 + b".",
    "tuples in tuples": b"\x80\x02)" + b"\x85" * 9_900_000 + b".",
    "a memo of two to the 32": b"\x80\x02N" + b"r\xff\xff\xff\xff" * 1_900_000 + b".",
    "a text of four gigabytes": b"\x80\x02X\xff\xff\xff\xffab.",
    "a number of two gigabytes": b"\x80\x02\x8b\xff\xff\xff\x7fab.",
    "a list that holds itself": b"\x80\x02]q\0h\0a.",
    "a dict that holds itself": b"\x80\x02}q\0X\x0a\0\0\0state_dicth\0s.",
    "keys with one hash": b"\x80\x02}("
    + b"".join(number((2**61 - 1) * n) + b"N" for n in range(20_000))
    + b"u.",
    "a call of a name": b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.",
    "a name from the stack": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R.",
    "an old instruction": b"(S'ls'\nios\nsystem\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "a shape of a million, many times": b"\x80\x02("
    + b"K\x01" * 100_000
    + b"tq\0"
    + b"ctorch._utils\n_rebuild_tensor_v2\n(NK\0h\0h\0tR" * 20_000
    + b".",
    "arguments of a million, many times": b"\x80\x02("
    + b"K\x01" * 100_000
    + b"tq\0"
    + b"ctorch\nSize\nh\0R0" * 40_000
    + b".",
    "pairs of a million, many times": b"\x80\x02]("
    + b"](K\x01K\x02e" * 30_000
    + b"eq\0"
    + b"ccollections\nOrderedDict\nh\0\x85R0" * 20_000
    + b".",
    "nothing": b"",
    "no end": b"\x80\x02}",
    "an end alone": b".",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_pickle_that_lies_is_refused_in_a_moment(tmp_path: Path, name: str) -> None:
    refused(archive(tmp_path / "net.pth", PROGRAMS[name]), "net.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + PROGRAMS[name])
    refused(tmp_path / "plain.pth", "plain.pth")


def test_a_large_pickle_is_refused_unread(tmp_path: Path) -> None:
    refused(
        archive(tmp_path / "net.pth", bytes(11_000_000)),
        "a part of 11,000,000 bytes, where 10,000,000 is the most",
    )


# Memory


MEASURED = """
import resource, sys
from pathlib import Path
from orchestrator.errors import StoreError
from orchestrator.model_io.state_dict_files import read_state_dict
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_state_dict(Path(sys.argv[1]))
except StoreError:
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def most_memory(path: Path) -> int:
    """Bytes that a process of its own takes at most, beyond what it had before."""
    done = forked.python(MEASURED, str(path), cwd=path.parent)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) * 1024


@pytest.mark.slow
def test_no_file_takes_more_memory_than_twice_its_size(tmp_path: Path) -> None:
    spare = 64_000_000
    whole = 25_000_000
    honest = tmp_path / "honest.pth"
    torch.save({"a": torch.zeros(whole)}, honest)
    files = [
        honest,
        archive(tmp_path / "packed.pth", EMPTY, {"archive/data/0": bytes(500_000_000)}, packed=True),
        lying(tmp_path, *[view()] * 5_000),
        archive(tmp_path / "dicts.pth", PROGRAMS["ten million containers"]),
        archive(tmp_path / "memo.pth", PROGRAMS["a memo of two to the 32"]),
    ]
    for path in files:
        assert most_memory(path) < 2 * path.stat().st_size + spare, path.name
