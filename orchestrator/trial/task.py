"""A task of a sweep: its configuration, its worker's settings, and its result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from orchestrator.config import DenseConfig, Json, TrialConfig, dense_from_json

if TYPE_CHECKING:
    from orchestrator.config import EarlyStopping


@dataclass(frozen=True)
class WorkerSettings:
    """Where a worker records its results, and how its sweep stops trials. All paths are absolute.

    `state_dir` holds results that wait for a server (None: the user's state folder); `checkpoint_seconds`
    lie between two checkpoints (None: a minute). `own_code` has the user's own files that the sweep was
    planned with, as `stored_code.dump` writes them. Relative paths of data are relative to `folder`.
    `gpu_share` is the part of a GPU that a trial has.
    """

    uri: str
    experiment: str
    sweep_run: str
    data_dir: str | None
    code: str  # as `provenance.check_code` compares it
    stop: EarlyStopping | None = None
    state_dir: str | None = None
    checkpoint_seconds: float | None = None
    own_code: str = ""
    folder: str = ""
    gpu_share: float = 1.0


@dataclass(frozen=True)
class Task:
    """A dense training or a pruned trial, ready to run.

    `parent` is the key of the task that has to finish first, None for a dense training. A task that
    `saves_round_masks` stores them for another trial that prunes with its masks.
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

    @classmethod
    def from_json(cls, content: Mapping[str, Json]) -> Task:
        """Return the task whose fields, in JSON, these are."""
        load_config = TrialConfig.from_json if content["parent"] else dense_from_json
        return cls(**{**content, "config": load_config(content["config"])})


def dump_tasks(tasks: Sequence[Task]) -> str:
    """Return tasks as JSON, in which form they travel to a worker."""
    return json.dumps([asdict(task) for task in tasks])


def load_tasks(text: str) -> tuple[Task, ...]:
    """Return the tasks that `dump_tasks` wrote."""
    return tuple(map(Task.from_json, json.loads(text)))


@dataclass(frozen=True)
class TaskResult:
    """How a task ended: with its final metrics, or with None and why it failed or was stopped."""

    task: Task
    metrics: Mapping[str, float] | None
    reason: str = ""
    stopped: bool = False

    @property
    def state(self) -> Literal["complete", "stopped", "failed"]:
        if self.metrics is not None:
            return "complete"
        return "stopped" if self.stopped else "failed"


@dataclass(frozen=True)
class PreviousTrial:
    """A trial that ended before this sweep began, with the metrics of each of its rounds.

    `val_accuracy` is None if it was stopped.
    """

    config: TrialConfig
    rounds: tuple[Mapping[str, float], ...]
    val_accuracy: float | None


@dataclass(frozen=True)
class SweepOutcome:
    """How all tasks of a sweep ended.

    `signal` is the number of the signal that interrupted the sweep, or 0; `disk_full` is the message of a
    worker whose disk was full, or empty.
    """

    results: tuple[TaskResult, ...]
    signal: int = 0
    disk_full: str = ""

    @property
    def failures(self) -> list[TaskResult]:
        return [result for result in self.results if result.state == "failed"]

    @property
    def stopped(self) -> list[TaskResult]:
        return [result for result in self.results if result.stopped]
