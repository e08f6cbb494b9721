"""One point of a plan, as it travels from the driver to a worker, and where it is recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from orchestrator.config import DenseConfig, TrialConfig, dense_from_json

if TYPE_CHECKING:
    from orchestrator.language.stops import Stop


@dataclass(frozen=True)
class Settings:
    """Where a worker records what it does, all paths absolute; and how its sweep stops trials, if it does.

    `state_dir` is for results that wait for a server, if it is not the user's own; `checkpoint_seconds`
    lie between two checkpoints, if it is not a minute.
    """

    uri: str
    experiment: str
    sweep_run: str
    data_dir: str | None
    code: str  # as `sources.check_code` takes it
    stop: Stop | None = None
    state_dir: str | None = None
    checkpoint_seconds: float | None = None


@dataclass(frozen=True)
class Point:
    """A dense training or a pruned trial, ready to run; `parent` is the key that it waits for.

    Where it `leads`, a control is to walk along its rounds.
    """

    key: str
    name: str
    config: DenseConfig | TrialConfig
    parent: str | None = None
    tags: Mapping[str, str] | None = None
    leads: bool = False

    @property
    def dense(self) -> DenseConfig:
        """The dense training that it is, or starts from."""
        return self.config.dense if isinstance(self.config, TrialConfig) else self.config

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Point:
        content = json.loads(text)
        build = TrialConfig.from_json if content["parent"] else dense_from_json
        return cls(**{**content, "config": build(content["config"])})
