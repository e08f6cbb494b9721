"""The forms of a network, timed: which there are, what is shipped, and what is recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import models
import pruning
from orchestrator.errors import CollapsedError
from orchestrator.latency import measure as latency
from orchestrator.latency.measure import (
    Latency,
    NetworkVariants,
    check_equal,
    is_supported,
    measure,
    shipped_form,
    to_sparse,
)
from orchestrator.system.machine import MachineLoad
from orchestrator.system.timing import Spread, Timing, batch_suffix
from tests.cuda_double import cuda_double

SHAPE = (1, 8, 8)
QUICK = 0.02
needs_csr = pytest.mark.skipif(not is_supported(), reason="this torch has no MKL: CSR is not used")


def network(granularity: str, criterion: str) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    net = models.build("mlp(widths=[24, 16])", input_shape=SHAPE, num_classes=10).eval()
    image = torch.rand(2, *SHAPE)
    return net, pruning.prune(
        net, amount=0.75, criterion=criterion, granularity=granularity, scope="layer", example_input=image
    )


def forms(granularity: str, criterion: str) -> NetworkVariants:
    net, masks = network(granularity, criterion)
    return NetworkVariants(net, SHAPE, to_sparse(net, masks, ()), masks=masks)


def test_a_network_with_nothing_dead_has_one_form() -> None:
    net, _ = network("weight", "magnitude")
    found = measure(NetworkVariants(net, SHAPE), batch=3, seconds=QUICK)
    assert (found.form, list(found.timing.spreads), found.speedup) == ("dense", ["dense"], 1.0)


@needs_csr
def test_single_weights_have_a_sparse_form() -> None:
    found = measure(forms("weight", "magnitude"), batch=3, seconds=QUICK, csr_layers=("hidden.0", "output"))
    assert list(found.timing.spreads) == ["dense", "masked", "csr"]
    assert found.csr_layers == ("hidden.0", "output")
    assert found.form in ("masked", "csr")


@needs_csr
def test_the_sparse_form_has_the_layers_that_win(monkeypatch: pytest.MonkeyPatch) -> None:
    single = forms("weight", "magnitude")
    for winners in ((), ("hidden.1",)):
        monkeypatch.setattr(latency, "find_faster_layers", lambda net, masks, images, won=winners: won)
        found = measure(single, batch=1, seconds=QUICK)
        assert found.csr_layers == winners
        assert ("csr" in found.timing.spreads) == bool(winners)


def test_on_a_gpu_copies_are_timed_and_nothing_in_csr(monkeypatch: pytest.MonkeyPatch) -> None:
    single = forms("weight", "magnitude")
    with cuda_double() as double:
        devices: list[bool] = []
        single.dense.register_forward_pre_hook(lambda net, inputs: devices.append(double.has(inputs[0])))

        def timed(functions: Mapping[str, Callable[[], Tensor]], *, seconds: float, device: str) -> Timing:
            assert device == "cuda"
            assert all(double.has(function()) for function in functions.values())
            spreads = {name: Spread(1.0, 0.0) for name in functions}
            return Timing(spreads, dict.fromkeys(functions, 1.0), 1.0, MachineLoad(0.0, 0.0, 1))

        monkeypatch.setattr(latency, "side_by_side", timed)
        found = measure(single, batch=2, device="cuda")
        assert list(found.timing.spreads) == ["dense", "masked"]
        assert set(devices) == {True}
        assert not any(map(double.has, single.dense.parameters()))


def test_channels_are_cut_out_and_not_tried_in_csr() -> None:
    net, masks = network("channel", "l2")
    whole = forms("channel", "l2")
    small = pruning.shrink(net, masks, torch.rand(2, *SHAPE))
    found = measure(replace(whole, cut=small), batch=1, seconds=QUICK)
    assert (found.form, list(found.timing.spreads)) == ("cut", ["dense", "masked", "cut"])


def test_without_mkl_nothing_is_in_csr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "is_supported", lambda: False)
    assert list(measure(forms("weight", "magnitude"), batch=1, seconds=QUICK).timing.spreads) == [
        "dense",
        "masked",
    ]


@pytest.mark.parametrize(
    ("ratios", "form"),
    [
        ({"dense": 1.0}, "dense"),
        ({"dense": 1.0, "masked": 0.9}, "masked"),
        ({"dense": 1.0, "masked": 1.0, "csr": 0.8}, "masked"),
        ({"dense": 1.0, "masked": 1.0, "csr": 3.0}, "csr"),
        ({"dense": 1.0, "masked": 1.0, "cut": 0.9}, "cut"),
    ],
)
def test_what_one_would_ship(ratios: dict[str, float], form: str) -> None:
    assert shipped_form(ratios) == form


def test_metrics_by_hand() -> None:
    spreads = {"dense": Spread(4.0, 0.5), "masked": Spread(4.1, 0.6), "cut": Spread(1.0, 0.1)}
    timing = Timing(spreads, {"dense": 1.0, "masked": 0.98, "cut": 3.9}, 1.02, MachineLoad(0.1, 0.0, 2))
    assert Latency(1, timing, "cut").metrics() == {
        "latency/speedup": 3.9,
        "latency/aa": 1.02,
        "latency/dense_ms_p50": 4.0,
        "latency/dense_ms_iqr": 0.5,
        "latency/masked_ms_p50": 4.1,
        "latency/masked_ms_iqr": 0.6,
        "latency/cut_ms_p50": 1.0,
        "latency/cut_ms_iqr": 0.1,
        "final/latency_ms_p50": 1.0,
        "ipa/latency_ms_p50": 4.0,
    }
    assert set(Latency(64, timing, "cut").metrics()) >= {"latency/aa_batch64", "final/latency_ms_p50_batch64"}
    assert all(name.endswith(batch_suffix(64)) for name in Latency(64, timing, "cut").metrics())


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_networks_with_other_outputs_are_not_timed(value: float) -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.load_state_dict(one.state_dict())
    images = torch.rand(3, 2)
    check_equal({"masked": one, "cut": other}, images)
    with torch.no_grad():
        other.weight[0, 0] += value
    with pytest.raises(CollapsedError, match="the cut network gives other outputs"):
        check_equal({"masked": one, "cut": other}, images)


def test_one_thread_is_used_and_the_number_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Net(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            seen.append(torch.get_num_threads())
            return super().forward(input.flatten(1))

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        measure(NetworkVariants(Net(64, 10), SHAPE), batch=2, seconds=QUICK)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
