"""The space `sparse-training`: its trials cost equal training FLOPs, and land on their sparsity."""

from __future__ import annotations

from functools import cache

import pytest

from orchestrator.config import DenseConfig, TrialConfig
from orchestrator.data.loading import Dataset, load_dataset
from orchestrator.planning.plan import make_plan
from orchestrator.space.space import load_space
from orchestrator.trial import stages
from orchestrator.trial.context import NetworkState, make_context
from orchestrator.trial.metrics import Measurement
from orchestrator.trial.run import run_trial

pytestmark = pytest.mark.slow

FEW = 48  # images of a class, of 125: each step of these tiny networks costs the same time, whatever is in it
SETS = ("seed=0", f"dataset=digits(samples_per_class={FEW})")
DENSE_EPOCHS = 11  # whose FLOPs the others are to cost


@cache
def digits() -> Dataset:
    return load_dataset("digits", samples_per_class=FEW)


class Store:
    """Dense networks: trained where a trial starts from one, or else fresh, as none is looked at."""

    def __init__(self, is_needed: bool) -> None:
        self.is_needed = is_needed

    def dense(self, config: DenseConfig) -> NetworkState:
        context = make_context(config, digits())
        return stages.dense(context) if self.is_needed else stages.initial(context)


def measured(config: TrialConfig) -> Measurement:
    return run_trial(config, digits(), store=Store(config.when == "after")).last.measurement


@pytest.mark.long
def test_every_trial_costs_the_training_flops_of_the_dense_one() -> None:
    trials = [trial.config for trial in make_plan(load_space("sparse-training", SETS)).trials]
    names = {
        (config.when, config.prune.criterion.partition("(")[0], config.recover.partition("(")[0])
        for config in trials
    }
    assert names == {
        ("after", "magnitude", "none"),
        ("after", "magnitude", "rewind"),
        ("during", "magnitude", "none"),
        ("init", "random", "rewind"),
        ("init", "random", "rigl"),
        ("init", "random", "set"),
        ("init", "snip", "rewind"),
        ("init", "synflow", "rewind"),
    }  # fmt: skip
    (dense,) = [config for config in trials if config.prune.amount == 0]
    assert dense.dense.train.epochs == DENSE_EPOCHS
    budget = measured(dense).train_flops_effective
    assert budget == measured(dense).train_flops
    for config in trials:
        cost = measured(config)
        assert cost.sparsity == pytest.approx(config.prune.amount, abs=1e-12)
        assert cost.train_flops_effective == pytest.approx(budget, rel=0.04), (config.when, config.recover)
