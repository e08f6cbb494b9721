"""A store with small recorded networks, made as they are asked for."""

from __future__ import annotations

from pathlib import Path

from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.execution.worker import run_task
from orchestrator.system import provenance
from orchestrator.tracking import RunRecord, Tracker, initialise
from orchestrator.trial.task import Task, WorkerSettings

MODELS = {
    "slp": "slp",
    "mlp": "mlp(widths=[24, 16])",
    "cnn": "cnn(widths=[8, 16])",
    "densenet121": "densenet121",
}


class Store:
    """Runs of digits in one store; `uri` may be a server's."""

    numerics = Numerics(micro_batch=512)

    def __init__(self, folder: Path, uri: str = "") -> None:
        self.folder = folder
        self.uri = uri or f"sqlite:///{folder / 'mlflow.db'}"
        initialise(self.uri)
        self.tracker = Tracker(self.uri, "recorded")
        assert self.tracker.experiment_id  # made now: which experiments there are is asked once in a while

    def dense(self, family: str) -> str:
        """The id of a dense run."""
        few = family == "densenet121"  # its training takes long
        data = "digits(classes=[0, 1], samples_per_class=4)" if few else "digits"
        train = Train(epochs=1 if few else 2)
        return self._run(DenseConfig(MODELS[family], data, 64, 0, train, self.numerics))

    def trial(self, family: str, granularity: str = "channel", recover: str = "finetune(epochs=1)") -> str:
        """The id of a trial that lost half of its weights, units or channels."""
        parent = self.tracker.get_run(self.dense(family))
        dense = self._configs[parent.tags["key"]]
        prune = Prune("l2()", granularity, "layer", "one_shot()", 0.5)
        return self._run(TrialConfig(dense, prune, recover, "x"))

    def stopped(self, family: str) -> str:
        """The id of a trial of three rounds that was stopped after its first one."""
        parent = self.tracker.get_run(self.dense(family))
        prune = Prune("l2()", "channel", "layer", "iterative(rounds=3)", 0.5)
        config = TrialConfig(self._configs[parent.tags["key"]], prune, "finetune(epochs=1)", "x")
        point = Task(config.key(), f"stopped {family}", config, parent=config.dense.key())
        run_task(point, self._settings(), should_stop=lambda facts: "it has seen enough")
        return self.tracker.runs_of_task(config.key())[0].run_id

    def row(self, run_id: str) -> RunRecord:
        return self.tracker.get_run(run_id)

    def model(self, run_id: str) -> Path:
        """The folder of its network, in a store on this disk."""
        return Path(self.row(run_id).artifact_uri.removeprefix("file://")) / "model"

    _configs: dict[str, DenseConfig] = {}  # noqa: RUF012  equal configurations are equal in every store

    def _run(self, config: DenseConfig | TrialConfig) -> str:
        found = self.tracker.find_finished(config.key())
        if found is None:
            if isinstance(config, TrialConfig):
                name = f"{config.prune.granularity} {config.dense.model}"
                point = Task(config.key(), name, config, parent=config.dense.key())
            else:
                point = Task(config.key(), f"dense {config.model}", config)
            run_task(point, self._settings())
            found = self.tracker.find_finished(config.key())
        assert found is not None
        if isinstance(config, DenseConfig):
            self._configs[config.key()] = config
        return found.run_id

    def _settings(self) -> WorkerSettings:
        place = provenance.install_path()
        return WorkerSettings(self.uri, "recorded", "0" * 32, None, place, state_dir=str(self.folder))
