"""The other processes of a trial that several devices share: started by Ray, joined by torch.distributed.

The process of the trial is the first device of the group. It starts the others when its first training
begins, and sends each of them every training: network, recipe and loss. They read the data themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from uuid import uuid4

import ray
import torch
from ray import cloudpickle
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import nn

from orchestrator.config import DenseConfig, Numerics, Train, TrialConfig
from orchestrator.data import paths
from orchestrator.data.files import data_folder
from orchestrator.data.loading import Split, load_planned_data
from orchestrator.execution.device_rendezvous import START_SECONDS, RayStore, join_group, leave_group
from orchestrator.execution.ray_start import local_ray
from orchestrator.execution.resources import local_resources
from orchestrator.execution.worker import prepare_process
from orchestrator.system.console import print_line
from orchestrator.system.determinism import deterministic
from orchestrator.system.memory import is_out_of_memory
from orchestrator.system.provenance import install_path
from orchestrator.system.signals import SignalHandler
from orchestrator.training.device_group import ProcessGroup
from orchestrator.training.hooks import TrainingHooks
from orchestrator.training.loop import EpochRecord, RunTraining, Training, follow_training, run_training
from orchestrator.training.losses import Loss
from orchestrator.training.lr_schedules import TrainingPhase
from orchestrator.trial.context import make_context
from orchestrator.trial.task import Task, WorkerSettings, dump_tasks, load_tasks
from pruning.user_code import stored_code

END_SECONDS = 10.0  # for the others to say why they ended


@dataclass(frozen=True, eq=False)
class SharedTraining:
    """What the other devices are told of a training: all but its data and what the first does alone."""

    net: nn.Module
    recipe: Train
    phase: TrainingPhase
    batch_size: int
    numerics: Numerics
    loss: Loss
    first_epoch: int

    def follow(self, split: Split, group: ProcessGroup) -> None:
        """Work on this device's part of the training."""
        if self.numerics.compile:
            self.net.compile()
        hooks, generator = TrainingHooks(loss=self.loss), torch.Generator()
        settings = (self.recipe, self.phase, self.batch_size, self.numerics, generator, None, hooks)
        training = Training(self.net, split, split, *settings)
        mode = deterministic(self.numerics.device, tf32=self.numerics.tf32, fast=self.numerics.fast)
        with mode:
            follow_training(training, group, first_epoch=self.first_epoch)


class DeviceWorker:
    """One of the other devices of a group, in a process of its own, which Ray gives its GPU."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.group: ProcessGroup | None = None

    def join(self, prefix: str, rank: int, size: int, device: str) -> None:
        """Join the group."""
        self.group = join_group(prefix, rank, size, torch.device(device))

    def follow(self, tasks: str, request: bytes) -> None:
        """Work on this device's part of a training. At an error it leaves the group: that ends it for all."""
        try:
            (task,) = load_tasks(tasks)
            prepare_process(task, self.settings)
            dataset = load_planned_data(task.dense, self.settings.data_dir)
            make_context(task.dense, dataset).meta_module()  # one's own classes are then known by name
            shared: SharedTraining = cloudpickle.loads(request)
            if self.group is None:
                raise RuntimeError("this process has joined no group")
            shared.follow(dataset.train, self.group)
        except BaseException:
            leave_group()
            raise


class DeviceGroupOfTrial:
    """The group of a trial's process: its other devices, which stay from training to training."""

    def __init__(self, settings: WorkerSettings, size: int, device: str) -> None:
        """Start the other processes, and join them. RayError or RuntimeError if one does not come."""
        store = RayStore(f"orchestrate/devices/{uuid4().hex}/")
        self.workers = [_start_worker(rank, settings, device) for rank in range(1, size)]
        try:
            joining = [
                worker.join.remote(store.prefix, rank, size, device)
                for rank, worker in enumerate(self.workers, start=1)
            ]
            self.group = join_group(store.prefix, 0, size, torch.device(device))
            ray.get(joining, timeout=START_SECONDS)
        except BaseException:
            self.close()
            raise
        finally:
            store.clear()

    def run(self, task: Task, training: Training) -> list[EpochRecord]:
        """Run a training with the others; an error of one of them is raised here."""
        first_epoch = 0 if training.resume_from is None else len(training.resume_from.records)
        shared = SharedTraining(
            training.net,
            training.recipe,
            training.phase,
            training.batch_size,
            training.numerics,
            training.hooks.loss,
            first_epoch,
        )
        request = ray.put(cloudpickle.dumps(shared))  # type: ignore[no-untyped-call]  # ray's
        following = [worker.follow.remote(dump_tasks([task]), request) for worker in self.workers]
        try:
            records = run_training(training, self.group)
            ray.get(following)
        # What a training may raise, and what torch.distributed raises where another process has left.
        except Exception as error:  # noqa: BLE001
            is_own = is_out_of_memory(error) or not isinstance(error, RuntimeError)
            cause = None if is_own else _first_error(following)
            raise cause or error from None
        return records

    def close(self) -> None:
        """End the other processes."""
        leave_group()
        for worker in self.workers:
            with suppress(RayError):
                ray.kill(worker)


def _start_worker(rank: int, settings: WorkerSettings, device: str) -> Any:  # Ray's handle of an actor
    placement_group = ray.util.get_current_placement_group()
    strategy = (
        "DEFAULT"
        if placement_group is None
        else PlacementGroupSchedulingStrategy(placement_group, placement_group_bundle_index=rank)
    )
    actor = ray.remote(DeviceWorker).options(
        num_cpus=1, num_gpus=int(device == "cuda"), scheduling_strategy=strategy
    )
    return actor.remote(settings)


def _first_error(following: list[Any]) -> Exception | None:  # Ray's references
    """Return why another device has ended; None where none has by itself."""
    ended, _ = ray.wait(following, num_returns=1, timeout=END_SECONDS)
    for reference in ended:
        try:
            ray.get(reference)
        # Whatever it was, it has ended the training.
        except Exception as error:  # noqa: BLE001
            return error
    return None


@contextmanager
def devices_here(config: DenseConfig | TrialConfig, signals: SignalHandler) -> Iterator[RunTraining]:
    """Give what runs trainings of a configuration on all its devices, of which this process is the first.

    DeviceError where this machine has fewer GPUs.
    """
    parent = config.dense.key() if isinstance(config, TrialConfig) else None
    task = Task(config.key(), "rerun", config, parent)
    numerics = task.dense.numerics
    resources = local_resources(numerics.device, gpus_per_trial=numerics.devices)
    if resources.gpus:  # Ray gives the others the first ones
        torch.cuda.set_device(numerics.devices - 1)
        resources = replace(resources, gpus=numerics.devices - 1)
    data_dir = data_folder()
    settings = WorkerSettings(
        uri="",
        experiment="",
        sweep_run="",
        data_dir=None if data_dir is None else str(data_dir),
        code=install_path(),
        own_code=stored_code.dump(stored_code.codes_in(str(config)), with_base=True),
        folder=str(paths.base()),
    )
    with local_ray(resources, signals):
        try:
            yield partial(run_shared, task, settings)
        finally:
            close_group()


_group: DeviceGroupOfTrial | None = None


def close_group() -> None:
    """End the other processes of this one's group, if it has one."""
    global _group
    if _group is not None:
        _group.close()
    _group = None


def run_shared(task: Task, settings: WorkerSettings, training: Training) -> list[EpochRecord]:
    """Run a training of a task on all its devices.

    Where the process of another device has died, this one ends, too: then the trial is tried again, and
    resumed from its last checkpoint.
    """
    global _group
    numerics = training.numerics
    if _group is None:
        _group = DeviceGroupOfTrial(settings, numerics.devices, numerics.device)
    try:
        return _group.run(task, training)
    except RayActorError as error:
        print_line(f"{task.name}: the process of one of its devices has died: {error}", error=True)
        os._exit(1)
    except BaseException:
        close_group()
        raise
