"""Run one task on a worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch

from orchestrator.config import DenseConfig, TrialConfig
from orchestrator.data import loading, paths
from orchestrator.data.loading import load_planned_data
from orchestrator.data.paths import set_data_folder
from orchestrator.errors import StoreError, StoreUnavailableError
from orchestrator.planning.fingerprints import installed_code, parse_code
from orchestrator.storage.outbox import DataInput, Outbox
from orchestrator.storage.uri import outbox_folder
from orchestrator.system.determinism import NONDETERMINISTIC_TAG, deterministic
from orchestrator.system.memory import disable_malloc_trim, limit_gpu_memory, peak_memory
from orchestrator.system.provenance import card, check_code
from orchestrator.tracking.checkpoint_store import MlflowCheckpointStore
from orchestrator.tracking.delivery import deliver_all, shared_tracker
from orchestrator.tracking.dense_networks import StoredDenseNetworks
from orchestrator.tracking.result_metrics import write_result
from orchestrator.tracking.round_masks import load_round_masks
from orchestrator.tracking.run_session import RunSession, make_run_start
from orchestrator.tracking.source_models import load_source_model, transfer_tags
from orchestrator.training.loop import EpochRecord, RunTraining, run_training
from orchestrator.training.stack_runner import StackMember, run_in_stacks
from orchestrator.trial.params import params
from orchestrator.trial.recovery import RoundMasks
from orchestrator.trial.run import Round, TrialResult, run_dense, run_trial
from orchestrator.trial.task import Task, WorkerSettings
from orchestrator.trial.weight_transfer import SourceModel
from pruning.user_code import own_code, stored_code

OnProgress = Callable[[dict[str, float]], None]
ShouldStop = Callable[[dict[str, float]], str]  # a round's numbers -> why the trial is to stop, or ""
STACK_TAG = "stack"  # of a run whose trainings ran with others, whose time they share: how many at most


def run_task(
    task: Task,
    settings: WorkerSettings,
    *,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
    largest_stack: Callable[[], int] = lambda: 1,
    run_training: RunTraining = run_training,
) -> dict[str, float]:
    """Run a task, record it as one MLflow run, and return its `final/*` metrics; {} if it was stopped.

    DivergedError (recorded, and not run again), DataError and StoreError pass through; the run is then
    FAILED, with the reason. Its trainings are run by `run_training`, and `largest_stack` says afterwards with
    how many others at most.
    """
    prepare_process(task, settings)
    outbox = Outbox(outbox_folder(settings.uri, settings.state_dir))
    execution = _TaskExecution(
        task,
        settings,
        load_planned_data(task.dense, settings.data_dir),
        StoredDenseNetworks(shared_tracker(settings.uri, settings.experiment), outbox),
        on_progress,
        should_stop,
        largest_stack,
        run_training,
    )
    pending = outbox.find_task_result(task.key)
    if pending is not None:  # a worker died between its work and the store
        with suppress(StoreUnavailableError):
            deliver_all(settings.uri, outbox)
        return pending.final_metrics
    return execution.run_and_record()


def prepare_process(task: Task, settings: WorkerSettings) -> None:
    """Give this process what a task needs: paths, the user's own files, threads, its share of a GPU.

    StoreError where it has another code than the sweep was planned with.
    """
    check_code(settings.code)
    stored_code.add_all(settings.own_code)
    paths.set_base(settings.folder)
    set_data_folder(settings.data_dir)
    check_plugin_code(task.config)
    torch.set_num_threads(task.dense.numerics.threads)
    disable_malloc_trim()
    if task.dense.numerics.device == "cuda":
        limit_gpu_memory(settings.gpu_share)


def run_tasks(
    tasks: Sequence[Task],
    settings: WorkerSettings,
    *,
    on_progress: OnProgress | None = None,
    should_stop: Callable[[Task, dict[str, float]], str] | None = None,
    run_training: RunTraining = run_training,
) -> list[dict[str, float] | Exception]:
    """Run tasks of one model as a stack, each recorded as `run_task` does, and return how each ended.

    The trainings of a task by itself are run by `run_training`.
    """

    def run(task: Task, member: StackMember | None = None) -> dict[str, float]:
        return run_task(
            task,
            settings,
            on_progress=on_progress,
            should_stop=None if should_stop is None else partial(should_stop, task),
            largest_stack=lambda: 1 if member is None else member.largest_stack,
            run_training=run_training if member is None else member.run_training,
        )

    numerics = tasks[0].dense.numerics
    torch.set_num_threads(numerics.threads)
    if len(tasks) == 1:
        try:
            return [run(tasks[0])]
        # The boundary of a worker: what a trial raises is in its run already, and the sweep goes on.
        except Exception as error:  # noqa: BLE001
            return [error]
    # Around all of them: what one member sets globally must not end with it.
    with deterministic(numerics.device, tf32=numerics.tf32, fast=numerics.fast):
        jobs = [partial(run, task) for task in tasks]
        return run_in_stacks(jobs, model=tasks[0].dense.model, device=torch.device(numerics.device))


@dataclass(frozen=True)
class _TaskExecution:
    """A task with the data, the dense networks and the callbacks that it runs with."""

    task: Task
    settings: WorkerSettings
    dataset: loading.Dataset
    networks: StoredDenseNetworks
    on_progress: OnProgress | None
    should_stop: ShouldStop | None
    largest_stack: Callable[[], int]
    run_training: RunTraining

    def run_and_record(self) -> dict[str, float]:
        """Run the task within a run of its own, and return the final metrics."""
        config, dense, dataset = self.task.config, self.task.dense, self.dataset
        tracker = self.networks.tracker
        splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
        name = own_code.shown(dataset.name)
        data = DataInput(name, dataset.digest, {name: len(images) for name, images in splits.items()})
        start = make_run_start(self.task, self.settings, params=params(config), data=data)
        with RunSession(tracker, self.networks.outbox, start) as session:
            if session.existing is not None:
                metrics = session.existing.metrics.items()
                return {name: value for name, value in metrics if name.startswith("final/")}
            source_model = load_source_model(tracker, dense)
            masks = load_round_masks(tracker, config) if isinstance(config, TrialConfig) else None
            peak_bytes = peak_memory(dense.numerics.device)
            numerics = dense.numerics
            mode = deterministic(numerics.device, tf32=numerics.tf32, fast=numerics.fast)
            with mode as nondeterministic_ops:
                result = self._train(session.checkpoints, source_model, masks)
            tags = card(dense.numerics.device) | transfer_tags(dense, dataset, source_model)
            if nondeterministic_ops:
                tags[NONDETERMINISTIC_TAG] = ", ".join(sorted(nondeterministic_ops))
            if masks is not None:
                tags["trunk_key"] = masks.key
            if (stacked := self.largest_stack()) > 1:
                tags[STACK_TAG] = str(stacked)
            session.finish(
                partial(
                    write_result,
                    task=self.task,
                    result=result,
                    is_parent_stored=self.networks.is_in_store,
                    stop=self.settings.stop,
                    peak_bytes=None if stacked > 1 else peak_bytes(),  # the process is the whole stack's
                    extra_tags=tags,
                )
            )
        return {} if result.stopped_because else result.last.measurement.metrics("final")

    def _train(
        self, checkpoints: MlflowCheckpointStore, source_model: SourceModel | None, masks: RoundMasks | None
    ) -> TrialResult:
        config = self.task.config
        run = (
            partial(
                run_trial,
                config,
                store=self.networks,
                sensitivities=self.networks,
                masks_from=masks,
                on_round=self._on_round,
            )
            if isinstance(config, TrialConfig)
            else partial(run_dense, config)
        )
        return run(
            self.dataset,
            source_model=source_model,
            on_epoch=self._on_epoch,
            checkpoints=checkpoints,
            every_seconds=self.settings.checkpoint_seconds,
            run_training=self.run_training,
        )

    def _on_epoch(self, stage: str, epoch: int, record: EpochRecord) -> None:
        if self.on_progress is not None:
            self.on_progress({"epoch": float(epoch)})

    def _on_round(self, round: Round) -> str:
        if self.should_stop is None:
            return ""
        return self.should_stop(
            {
                "round": float(round.number),
                "rounds": float(round.rounds),
                "val_accuracy": round.measurement.val_accuracy,
                "val_loss": round.measurement.val_loss,
                "sparsity": round.measurement.sparsity,
                "pq_index": round.measurement.pq_index,
                "dense_val_accuracy": round.ipa.val_accuracy,
                "dense_pq_index": round.ipa.pq_index,
            }
        )


def check_plugin_code(config: DenseConfig | TrialConfig) -> None:
    """Raise StoreError unless plug-ins have the sources and versions that the sweep was planned with."""
    dense = config.dense if isinstance(config, TrialConfig) else config
    planned = (dense.dense_code, config.trial_code if isinstance(config, TrialConfig) else "")
    for planned_code, code in zip(planned, installed_code(config), strict=True):
        if planned_code and planned_code != code:
            old, new = parse_code(planned_code), parse_code(code)
            changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
            raise StoreError(
                f"{', '.join(name.rstrip('=') for name in changed)}: this worker has another source or "
                "version than the sweep was planned with; leave packages as they are while a sweep runs, and "
                "sweep again"
            )
