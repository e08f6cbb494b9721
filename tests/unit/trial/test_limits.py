"""Trials whose amount says what may be left: met by what is recorded, and not by a unit too many."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trained import Trained, digits

from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.trial.run import TrialResult, run_trial
from orchestrator.trial.target_masks import dense_quantities, least_quantities, remaining_quantities
from pruning.target_amounts import count_limits

METRICS = {
    "channel": {"macs": "macs_physical", "parameters": "parameters_physical", "bytes": "bytes_physical"},
    "weight": {"macs": "macs_effective", "parameters": "parameters_nonzero", "bytes": "bytes_sparse"},
}
METRICS["unit"] = METRICS["head"] = METRICS["channel"]
MODELS = {"head": "vit(dim=16, depth=1, heads=4, patch=4)"}


def trial(granularity: str, schedule: str = "one_shot", scope: str = "layer", **limits: float) -> TrialConfig:
    model = MODELS.get(granularity, "cnn(widths=[6, 10])")
    dense = DenseConfig(model, "digits", 64, 0, Train(epochs=1), Numerics(micro_batch=256))
    counts = count_limits(limits, dense_quantities((model, (1, 8, 8), 10)))
    prune = Prune("l2", granularity, scope, schedule, 0.5, limits=tuple(counts.items()))
    return TrialConfig(dense, prune, "none", "x")


def run(config: TrialConfig) -> TrialResult:
    return run_trial(config, digits(), store=Trained())


@pytest.mark.parametrize("granularity", ["channel", "unit", "weight", "head"])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("quantity", ["macs", "parameters", "bytes"])
def test_a_limit_is_met_by_what_is_recorded(granularity: str, scope: str, quantity: str) -> None:
    config = trial(granularity, scope=scope, **{quantity: 0.9 if granularity == "head" else 0.6})
    result = run(config)
    ((_, limit),) = config.prune.limits
    measured = result.last.measurement
    left = getattr(measured, METRICS[granularity][quantity])
    assert left <= limit
    assert any(f"at most {limit:,} {quantity}" in note for note in result.last.notes)
    # One unit less, by a limit of one more than is left now, would be too much: the limit is met to a unit.
    if scope == "global" and granularity != "weight":
        again = replace(config, prune=replace(config.prune, limits=((quantity, left - 1),)))
        assert getattr(run(again).last.measurement, METRICS[granularity][quantity]) < left


@pytest.mark.parametrize("schedule", ["iterative(rounds=3)", "cubic(rounds=3)"])
def test_rounds_head_for_the_limit_and_meet_it_in_the_last(schedule: str) -> None:
    config = trial("channel", schedule, macs=0.4)
    result = run(config)
    macs = [row.measurement.macs_physical for row in result.rounds]
    ((_, limit),) = config.prune.limits
    assert macs == sorted(macs, reverse=True)
    assert macs[-1] <= limit
    assert macs[0] > limit


def test_all_of_several_limits_are_met() -> None:
    config = trial("channel", macs=0.7, bytes=0.3)
    measured = run(config).last.measurement
    limits = dict(config.prune.limits)
    assert measured.macs_physical <= limits["macs"]
    assert measured.bytes_physical <= limits["bytes"]


def test_what_may_be_left_of_everything_prunes_nothing() -> None:
    measured = run(trial("channel", macs=1.0)).last.measurement
    assert measured.macs_physical == measured.macs_dense
    assert measured.amount == 0


@pytest.mark.parametrize("granularity", ["channel", "weight"])
def test_the_least_that_is_left_is_what_full_pruning_leaves(granularity: str) -> None:
    architecture = ("cnn(widths=[6, 10])", (1, 8, 8), 10)
    least = least_quantities(architecture, granularity, ())
    everything = replace(trial(granularity), prune=Prune("l2", granularity, "layer", "one_shot", 1.0))
    measured = run(everything).last
    assert least["macs"] == getattr(measured.measurement, METRICS[granularity]["macs"])
    assert remaining_quantities(architecture, granularity, (), measured.state.masks)["macs"] == least["macs"]
