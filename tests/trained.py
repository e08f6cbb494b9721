"""Dense networks on digits, each trained once in a process, and stores in memory with all or none of them."""

from __future__ import annotations

from functools import cache, partial

from orchestrator.config import DenseConfig
from orchestrator.data import loading
from orchestrator.trial.context import NetworkState
from orchestrator.trial.run import TrialResult, run_dense

digits = cache(partial(loading.load_dataset, "digits"))


@cache
def trained(config: DenseConfig) -> TrialResult:
    return run_dense(config, digits())


class Trained:
    """A store that has every dense network."""

    def dense(self, config: DenseConfig) -> NetworkState:
        return trained(config).last.state


class Empty:
    """A store that has none."""

    def dense(self, config: DenseConfig) -> None:
        return None
