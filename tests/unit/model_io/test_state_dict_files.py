"""Files of weights from elsewhere: read as torch reads them; nothing but regular files; networks that fit."""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections import OrderedDict
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import torch
from crafted_files import refused
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import StoreError
from orchestrator.model_io.state_dict_files import infer_architecture, read_state_dict
from orchestrator.trial.structure import size_conflict

ROOT = Path(__file__).parents[3]


# Read as torch reads them


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shared = torch.rand(12)
    kinds = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    return OrderedDict(
        left=shared[:6].reshape(2, 3),
        right=shared[6:],
        turned=torch.rand(2, 3).t(),
        last=torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
        middle=torch.rand(6, 6)[1:4, 2:5],
        number=torch.tensor(7),
        parameter=torch.nn.Parameter(torch.rand(3)),
        **{kind: (torch.rand(5) * 9).to(getattr(torch, kind)) for kind in kinds},
    )


def check_as_torch(path: Path, nested: str = "") -> None:
    theirs = torch.load(path, weights_only=False)  # which takes every protocol
    theirs = theirs[nested] if nested else theirs
    ours = read_state_dict(path)
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_is_what_torch_reads(tmp_path: Path, zipped: bool, protocol: int) -> None:
    path = tmp_path / "net.pth"
    torch.save(state(), path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    check_as_torch(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_so_is_that_of_a_checkpoint_with_an_optimizer(tmp_path: Path, zipped: bool) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.rand(5, 3)).sum().backward()
    optimizer.step()
    content = {
        "state_dict": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "best": 0.5,
        "shape": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "kind": torch.float16,
        "names": ["a", ("b", None, True)],
    }
    torch.save(content, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    check_as_torch(tmp_path / "net.pth", "state_dict")


def test_a_zip_without_checksums_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state(), tmp_path / "net.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    check_as_torch(tmp_path / "net.pth")


@given(
    shapes=st.lists(st.lists(st.integers(1, 5), max_size=4), min_size=1, max_size=5),
    zipped=st.booleans(),
    order=st.randoms(),
)
def test_any_views_are_what_torch_reads(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], zipped: bool, order: Any
) -> None:
    whole = torch.arange(3000, dtype=torch.float32)
    content = {}
    for number, shape in enumerate(shapes):
        count = int(torch.Size(shape).numel())
        start = order.randrange(3000 - count)
        dims = order.sample(range(len(shape)), len(shape))
        content[f"{number}"] = whole[start : start + count].reshape(shape).permute(dims)
    path = tmp_path_factory.mktemp("views") / "net.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    check_as_torch(path)


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "net.pth")
    (tmp_path / "link.pth").symlink_to("net.pth")
    check_as_torch(tmp_path / "link.pth")


# What is no regular file


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", ["FIFO", "device", "socket", "folder", "link to a device"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        os.chdir(tmp_path)  # the path of a socket is short
        socket.socket(socket.AF_UNIX).bind(path.name)
        os.chdir(ROOT)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    refused(path, f"cannot be read: it is a {kind.rpartition(' ')[2]}, and no regular file")


def test_a_link_to_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.pth").symlink_to("nowhere")
    refused(tmp_path / "net.pth", "cannot be read: No such file")


def test_a_file_that_grows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"\0" * 4_000_000)
    done = threading.Event()

    def grow() -> None:
        with path.open("ab", buffering=0) as file:
            while not done.is_set():
                file.write(b"\0" * 1000)

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        refused(path, "changed while it was read|not valid JSON")
    finally:
        done.set()
        thread.join()


# Networks that nobody can build


@pytest.mark.parametrize(
    ("model", "match"),
    [
        ("mlp(widths=[1000000000])", "784,000,000,000|74,000,000,000 parameters; 1,000,000,000 is the most"),
        ("mlp(widths=[1000000000000000000000000000000])", "give a list of positive integers"),
        ("mlp(widths=[-1])", "give a list of positive integers"),
        ("mlp(widths=[1.5])", "give a list of positive integers"),
        ("mlp(widths=[True])", "give a list of positive integers"),
        ("cnn(widths=[30000, 30000])", "8,100,690,010 parameters"),
    ],
)
def test_a_network_that_is_too_large_is_refused_without_memory_for_it(model: str, match: str) -> None:
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, perf_counter()
    reason = size_conflict((model, (1, 8, 8), 10))
    assert reason is not None
    assert any(part in reason for part in match.split("|"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    assert perf_counter() - started < 10


def test_so_is_one_whose_images_are() -> None:
    """A million maps of 32 by 32 for each of two images, again and again."""
    reason = size_conflict(("cnn(widths=[1000000])", (3, 32, 32), 10))
    assert reason is not None
    assert reason.endswith("numbers for two images of (3, 32, 32); 1,000,000,000 is the most")
    assert size_conflict(("cnn(widths=[1000])", (3, 32, 32), 10)) is None


def test_a_file_for_such_a_network_is_refused(tmp_path: Path) -> None:
    torch.save({"output.weight": torch.ones(2, 2)}, tmp_path / "net.pth")
    tensors = read_state_dict(tmp_path / "net.pth")
    with pytest.raises(StoreError, match="cannot be built for"):
        infer_architecture(tmp_path / "net.pth", tensors, model="mlp(widths=[1000000000])", image=(1, 8, 8))
