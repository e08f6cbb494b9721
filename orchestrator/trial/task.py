"""A task of a sweep: its configuration, its worker's settings, and its result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from orchestrator.config import DenseConfig, TrialConfig, dense_from_json

if TYPE_CHECKING:
    from orchestrator.config import EarlyStopping


@dataclass(frozen=True)
class WorkerSettings:
    """Where a worker records its results, all paths absolute; and how its sweep stops trials, if it does.

    `state_dir` is for results that wait for a server, if it is not the user's own; `checkpoint_seconds`
    are the seconds between two checkpoints, if it is not a minute.
    """

    uri: str
    experiment: str
    sweep_run: str
    data_dir: str | None
    code: str  # as `sources.check_code` takes it
    stop: EarlyStopping | None = None
    state_dir: str | None = None
    checkpoint_seconds: float | None = None


@dataclass(frozen=True)
class Task:
    """A dense training or a pruned trial, ready to run; `parent` is the key of the task that it waits for.

    It `saves_round_masks` where a control is to prune by them.
    """

    key: str
    name: str
    config: DenseConfig | TrialConfig
    parent: str | None = None
    tags: Mapping[str, str] | None = None
    saves_round_masks: bool = False

    @property
    def dense(self) -> DenseConfig:
        """The dense training that the task is, or starts from."""
        return self.config.dense if isinstance(self.config, TrialConfig) else self.config

    def to_text(self) -> str:
        """Return the task as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Task:
        """Load what `to_text` returned."""
        content = json.loads(text)
        load_config = TrialConfig.from_json if content["parent"] else dense_from_json
        return cls(**{**content, "config": load_config(content["config"])})


@dataclass(frozen=True)
class TaskResult:
    """The result of one task: its final metrics, or None and why it failed or was stopped."""

    task: Task
    metrics: Mapping[str, float] | None
    reason: str = ""
    stopped: bool = False


@dataclass(frozen=True)
class FinalState:
    """How a trial ended, in this sweep or before it; `metrics` are those of a complete one."""

    state: Literal["complete", "stopped", "failed"]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class PreviousTrial:
    """A trial that ended before this sweep: what its rounds reported; no accuracy if it was stopped."""

    config: TrialConfig
    rounds: tuple[Mapping[str, float], ...]
    val_accuracy: float | None


@dataclass(frozen=True)
class SweepOutcome:
    """The results of all tasks.

    `signal` is the one that interrupted the sweep, or 0; `disk_full` what a worker said whose disk was full.
    """

    outcomes: tuple[TaskResult, ...]
    signal: int = 0
    disk_full: str = ""

    @property
    def failures(self) -> list[TaskResult]:
        """The tasks that failed."""
        return [result for result in self.outcomes if result.metrics is None and not result.stopped]

    @property
    def stopped(self) -> list[TaskResult]:
        """The trials that were stopped early."""
        return [result for result in self.outcomes if result.stopped]
