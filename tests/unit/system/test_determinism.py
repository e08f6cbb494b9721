"""The deterministic mode is for GPUs alone, is taken back, and says what has no deterministic form."""

from __future__ import annotations

import os
import warnings

import pytest
import torch

from orchestrator.config import Numerics
from orchestrator.system.determinism import WARNING, capture_warning, deterministic, facts, summary
from orchestrator.system.provenance import card


def modes() -> tuple[object, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.fixture(autouse=True)
def _cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")


def put() -> None:
    """An operation that has no deterministic form on any device."""
    torch.zeros(4).put_(torch.tensor([1]), torch.tensor([1.0]))


def test_on_a_cpu_nothing_is_changed() -> None:
    before = modes()
    with deterministic("cpu") as loose:
        assert modes() == before
        put()
    assert not loose
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_on_a_gpu_all_is_set_and_taken_back() -> None:
    before = modes()
    with pytest.raises(ZeroDivisionError), deterministic("cuda"):  # noqa: PT012
        assert modes() == (True, True, False, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        _ = 1 / 0
    assert modes() == before
    assert facts()["cuda.cublas_workspace"] == ":4096:8"


def test_fast_is_not_deterministic_and_taken_back() -> None:
    before = modes()
    with deterministic("cuda", tf32=True, fast=True):
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.benchmark
        assert torch.backends.cuda.matmul.allow_tf32
    assert modes() == before
    assert summary(Numerics("cuda", fast=True), set()) == "cuda, fast: not deterministic"


def test_operations_without_a_deterministic_form_are_named_and_other_warnings_pass() -> None:
    numerics = Numerics(device="cuda")
    with pytest.warns(UserWarning, match="something else"), deterministic("cuda") as loose:  # noqa: PT031
        assert summary(numerics, loose) == "cuda, deterministic: every operation"
        put()
        put()
        warnings.warn("something else", UserWarning, stacklevel=1)
    assert loose == {"put_"}
    assert summary(numerics, loose) == "cuda, deterministic: all but put_"
    assert summary(Numerics(threads=2), set()) == "cpu, threads: 2"


def test_blocks_that_overlap_collect_what_any_of_them_meets() -> None:
    """As those of the members of a stack do, each in a thread of its own."""
    outer, first, second = set[str](), set[str](), set[str]()
    with capture_warning(outer):
        blocks = [capture_warning(operations) for operations in (first, second)]
        for block in blocks:
            block.__enter__()
        warnings.warn(f"put_ {WARNING}", UserWarning, stacklevel=1)
        blocks[0].__exit__(None, None, None)
        warnings.warn(f"sum_ {WARNING}", UserWarning, stacklevel=1)
        blocks[1].__exit__(None, None, None)
    assert (first, second, outer) == ({"put_"}, {"put_", "sum_"}, {"put_", "sum_"})


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_what_is_asked_for_and_what_it_was_afterwards(tf32: bool) -> None:
    def rounding() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = rounding()
    with deterministic("cuda", tf32=tf32):
        assert rounding() == (tf32, tf32)
    assert rounding() == before


def test_a_run_on_a_cpu_names_no_card() -> None:
    assert card("cpu") == {}
