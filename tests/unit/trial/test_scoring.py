"""Where criteria score, on a GPU or the CPU, and how often."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.data import loading
from orchestrator.trial import scoring, stages
from orchestrator.trial.context import NetworkState, TrialContext, make_context
from orchestrator.trial.scoring import LastScores, score_on, scored_once, scoring_device
from pruning import activation_criteria, gradient_criteria
from pruning.criteria import criteria
from tests.cuda_double import DEVICE, CudaDouble, cuda_double

CPU = torch.device("cpu")
DENSE = DenseConfig("mlp(widths=[32, 16])", "digits", 64, 0, Train(epochs=1), Numerics(micro_batch=4096))
ON_DEVICE = [name for name in criteria if criteria.get(name).traits.get("on_device")]


def context(criterion: str, device: str) -> TrialContext:
    dense = replace(DENSE, numerics=replace(DENSE.numerics, device=device))
    config = TrialConfig(dense, Prune(criterion, "weight", "global", "one_shot", 0.5), "none", "x")
    return make_context(config, loading.load_dataset("digits", samples_per_class=20, device=device))


def test_which_criteria_score_on_a_gpu() -> None:
    assert {"taylor", "snip", "fisher", "grasp", "synflow", "wanda"} == set(ON_DEVICE)
    assert scoring_device("snip", DEVICE) == DEVICE
    assert scoring_device("grasp(temperature=100.0)", DEVICE) == DEVICE
    assert scoring_device("magnitude", DEVICE) == scoring_device("snip", CPU) == CPU


def noted_devices(monkeypatch: pytest.MonkeyPatch, double: CudaDouble) -> list[tuple[bool, torch.dtype]]:
    """Note of every network that is scored whether it is on the device, and its type."""
    noted: list[tuple[bool, torch.dtype]] = []
    for module in (gradient_criteria, activation_criteria):
        copy = module.float64_copy

        def noted_copy(net: nn.Module, copy: Callable[[nn.Module], nn.Module] = copy) -> nn.Module:
            copied = copy(net)
            weight = next(copied.parameters())
            noted.append((double.has(weight), weight.dtype))
            return copied

        monkeypatch.setattr(module, "float64_copy", noted_copy)
    return noted


@pytest.mark.parametrize("criterion", ON_DEVICE)
def test_scores_on_the_device_give_the_masks_of_the_cpu(
    criterion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "synflow(rounds=3)" if criterion == "synflow" else criterion
    on = context(text, "cpu")
    state = stages.initial(on)
    expected = stages.prune_round(on, state, round=1).masks
    with cuda_double() as double:
        noted = noted_devices(monkeypatch, double)
        there = context(text, "cuda")
        masks = stages.prune_round(there, state, round=1).masks
        assert noted
        assert set(noted) == {(True, torch.float64)}
        assert not any(map(double.has, masks.values()))
    assert all(torch.equal(mask, expected[name]) for name, mask in masks.items())


def test_second_derivatives_of_convolutions_stay_on_the_device() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 10))
    sample = torch.rand((20, 1, 8, 8), generator=torch.Generator().manual_seed(0)), torch.arange(20) % 10
    score = partial(pruning.prune, amount=0.5, criterion="grasp", sample=sample)
    expected = score_on(CPU, net, runs_it=True, prune=score)
    with cuda_double() as double:
        masks = score_on(DEVICE, net, runs_it=True, prune=score)
        assert not any(map(double.has, masks.values()))
    assert all(torch.equal(mask, expected[name]) for name, mask in masks.items())


def test_a_network_in_training_is_left_as_it_is() -> None:
    with cuda_double() as double:
        on = context("snip", "cuda")
        net = on.build_module(NetworkState(stages.initial(on).weights, micro_batch=64))
        before = [weight.detach().clone() for weight in net.parameters()]
        stages.choose_masks(on, net, {}, round=1)
        assert all(map(double.has, net.parameters()))
        assert net.training
        assert all(torch.equal(*pair) for pair in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_a_gpu_whose_memory_runs_out_leaves_the_scores_to_the_cpu(text: str) -> None:
    net, scored = nn.Linear(2, 2), list[bool]()
    with cuda_double() as double:

        def prune(net: nn.Module) -> Tensor:
            scored.append(double.has(net.weight))
            if scored[-1]:
                # As a criterion raises it: a ValueError that names the network.
                raise ValueError("criterion 'snip' cannot score Linear") from RuntimeError(text)
            return net.weight

        assert score_on(DEVICE, net, runs_it=True, prune=prune) is not net.weight
    assert scored == [True, False]


def test_other_errors_of_a_criterion_pass() -> None:
    def prune(net: nn.Module) -> None:
        raise ValueError("criterion 'snip' cannot score Linear with this sample")

    with cuda_double(), pytest.raises(ValueError, match="cannot score"):
        score_on(DEVICE, nn.Linear(2, 2), runs_it=True, prune=prune)


def test_the_network_itself_is_read_where_nothing_runs_it() -> None:
    net = nn.Linear(2, 2)
    assert score_on(CPU, net, runs_it=False, prune=lambda scored: scored) is net
    assert score_on(CPU, net, runs_it=True, prune=lambda scored: scored) is not net


@pytest.fixture(autouse=True)
def nothing_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_last_scores", LastScores())


def prune_by(changes: Mapping[str, Any], *, seed: int = 0) -> Mapping[str, Tensor]:
    """Prune the initial network of a seed."""
    prune = replace(Prune("snip", "weight", "global", "one_shot", 0.5), **changes)
    config = TrialConfig(replace(DENSE, seed=seed), prune, "none", "x")
    on = make_context(config, loading.load_dataset("digits", samples_per_class=20))
    return stages.prune_round(on, stages.initial(on), round=1).masks


def test_trials_that_differ_in_amounts_alone_share_their_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = [{"amount": 0.5}, {"amount": 0.9}, {"granularity": "channel"}, {"limits": (("macs", 1200),)}]
    with cuda_double() as double:
        noted = noted_devices(monkeypatch, double)
        shared = [prune_by(change) for change in changes]
        assert len(noted) == 1
        monkeypatch.setattr(stages, "scored_once", lambda criterion, facts: criteria.get(criterion))
        alone = [prune_by(change) for change in changes]
        assert len(noted) > 1 + len(changes)  # a limit is met by trying amounts
    for masks, expected in zip(shared, alone, strict=True):
        assert masks.keys() == expected.keys()
        assert all(torch.equal(mask, expected[name]) for name, mask in masks.items())


def test_scores_of_another_network_sample_or_criterion_are_new(monkeypatch: pytest.MonkeyPatch) -> None:
    with cuda_double() as double:
        noted = noted_devices(monkeypatch, double)
        prune_by({})
        prune_by({}, seed=1)
        prune_by({"criterion": "taylor"}, seed=1)
        prune_by({"criterion": "grasp"}, seed=1)
        prune_by({"criterion": "grasp(temperature=100.0)"}, seed=1)
        assert len(noted) == 5
        # Under the masks of a round before: the next round scores what is alive.
        prune_by({"schedule": "iterative(rounds=2)"}, seed=2)
        on = context("snip", "cpu")
        first = stages.prune_round(on, stages.initial(on), round=1)
        stages.prune_round(on, first, round=1)
        assert len(noted) == 8


def test_scores_that_are_too_large_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, calls = {"weight": torch.ones(4, dtype=torch.float64)}, list[int]()
    last = LastScores()

    def score() -> Mapping[str, Tensor]:
        calls.append(1)
        return scores

    for limit, expected in ((32, 1), (31, 3)):
        monkeypatch.setattr(scoring, "LARGEST_BYTES", limit)
        for _ in range(2):
            assert last.get(str(limit), score) is scores  # type: ignore[arg-type]  # a mapping will do
        assert len(calls) == expected


def test_what_scores_anew_in_every_pass_still_does() -> None:
    text = "synflow(rounds=3)"
    assert scored_once(text, facts=()).function is criteria.get(text).function
    assert scored_once("magnitude", facts=()).function is criteria.get("magnitude").function
    assert str(scored_once("grasp(temperature=100.0)", facts=())) == "grasp(temperature=100.0)"
