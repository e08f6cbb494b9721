"""A control that goes along the rounds of another trial: the same bits as alone, and fewer trainings."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from test_searcher import Sweep
from trained import Empty

import models
from orchestrator import tracking
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.data.loading import Dataset
from orchestrator.data.loading import load_dataset as digits
from orchestrator.errors import StoreError
from orchestrator.execution.worker import run_task
from orchestrator.planning.plan import Plan, PlannedTrial, make_plan
from orchestrator.planning.resume import remaining_tasks
from orchestrator.space.space import load_space
from orchestrator.storage.uri import default_uri
from orchestrator.tracking import Tracker
from orchestrator.tracking.round_masks import (
    ROUND_MASKS,
    SHA256,
    dump_round_masks,
    load_round_masks,
    parse_round_masks,
)
from orchestrator.training.loop import EpochRecord
from orchestrator.trial.recovery import RoundMasks, mask_source_config
from orchestrator.trial.run import TrialResult, run_trial
from orchestrator.trial.task import Task, WorkerSettings

DENSE = DenseConfig("mlp(widths=[16, 8])", "digits", 64, 0, Train(epochs=2), Numerics(micro_batch=4096))
PRUNE = Prune("magnitude", "weight", "layer", "iterative(rounds=3)", 0.8)
TICKET = TrialConfig(DENSE, PRUNE, "rewind(to=0)", "weight")
CONTROL = replace(TICKET, recover="reinit")


def walk(
    config: TrialConfig, shared: RoundMasks | None = None, heard: list[str] | None = None
) -> TrialResult:
    def hear(stage: str, epoch: int, record: object) -> None:
        if heard is not None:
            heard.append(stage)

    return run_trial(config, images(), store=Empty(), masks_from=shared, on_epoch=hear)


def images() -> Dataset:
    return digits("digits", device="cpu")


def numbers(result: TrialResult) -> list[dict[str, object]]:
    rows = [asdict(measured.measurement) for measured in result.rounds]
    return [{name: v for name, v in row.items() if not name.endswith("seconds")} for row in rows]


def test_who_walks_along_whom() -> None:
    assert mask_source_config(CONTROL) == TICKET
    assert mask_source_config(TICKET) is None
    assert mask_source_config(replace(TICKET, recover="finetune(epochs=1)")) is None
    assert mask_source_config(replace(CONTROL, prune=replace(PRUNE, schedule="one_shot"))) is None
    assert mask_source_config(replace(CONTROL, when="init")) is None


def test_in_a_plan_a_control_walks_along_the_trial_of_the_same_network(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "axes: {model: slp, dataset: digits, technique: neuron, amount: 50%, schedule: iterative(rounds=2),"
        " recover: [rewind, rewind(on=cut), reinit, reinit(on=cut)]}"
    )
    rewind, rewind_cut, reinit, reinit_cut = make_plan(load_space(str(file))).trials
    sources = [mask_source_config(trial.config) for trial in (reinit, reinit_cut)]
    assert sources == [rewind.config, rewind_cut.config]
    assert [source and source.key() for source in sources] == [rewind.key, rewind_cut.key]


def test_a_control_along_a_trunk_is_the_control_alone_bit_for_bit() -> None:
    trunk = walk(TICKET).round_masks
    assert trunk is not None
    assert trunk.key == TICKET.key()
    heard: list[str] = []
    alone, along = walk(CONTROL), walk(CONTROL, trunk, heard)
    assert Counter(heard) == {"dense": 2, "reinit": 6}  # epochs; alone, two rounds are rewound as well
    assert numbers(along) == numbers(alone)
    for name, tensor in alone.last.state.weights.items():
        assert torch.equal(along.last.state.weights[name], tensor), name
    for name, mask in alone.last.state.masks.items():
        assert torch.equal(along.last.state.masks[name], mask), name
    curves = [[epochs(measured.history) for measured in result.rounds] for result in (along, alone)]
    assert curves[0] == curves[1]


def epochs(history: tuple[EpochRecord, ...]) -> list[EpochRecord]:
    return [replace(record, seconds=0.0) for record in history]


def test_a_trunk_as_a_file_and_back() -> None:
    trunk = walk(TICKET).round_masks
    assert trunk is not None
    data = dump_round_masks(trunk)
    # 3 rounds of 64 * 16 + 16 * 8 + 8 * 10 weights, one bit each, are 462 bytes.
    assert sum(t.numel() for name, t in load(data).items() if "/" in name) == 3 * (128 + 16 + 10)
    like = trunk.rounds[0].masks
    back = parse_round_masks(data, TICKET.key(), rounds=3, like=like, path="x")
    for state, again in zip(trunk.rounds, back.rounds, strict=True):
        assert {n: m.tolist() for n, m in again.masks.items()} == {
            n: m.tolist() for n, m in state.masks.items()
        }
        for name in ("epochs", "train_seconds", "train_flops", "micro_batch"):
            assert getattr(again, name) == getattr(state, name)
    for wrong in ({"rounds": 2, "like": like}, {"rounds": 3, "like": dict(list(like.items())[1:])}):
        with pytest.raises(StoreError, match="x holds"):
            parse_round_masks(data, "", path="x", **wrong)  # type: ignore[arg-type]


def plan_of(*configs: TrialConfig) -> Plan:
    trials = tuple(PlannedTrial(config, config.key(), config.dense.batch_size) for config in configs)
    return Plan(load_space("quickstart"), trials, (DENSE,), ())


@pytest.fixture
def place(tmp_path: Path) -> tuple[Tracker, WorkerSettings]:
    uri = default_uri(tmp_path)
    tracking.initialise(uri)
    tracker = Tracker(uri, "x")
    sweep = tracker.start("sweep", "x", tags={}).run_id
    return tracker, WorkerSettings(uri, "x", sweep, None, models.__file__)


def test_in_a_store_the_control_comes_second_and_trains_less(place: tuple[Tracker, WorkerSettings]) -> None:
    tracker, settings = place
    points, _ = remaining_tasks(plan_of(CONTROL, TICKET), tracker, retry_failed=False)
    dense, control, ticket = points
    assert (control.parent, ticket.parent) == (TICKET.key(), DENSE.key())
    assert (control.saves_round_masks, ticket.saves_round_masks) == (False, True)
    beats: list[float] = []
    for point in (dense, ticket, control):
        beats.clear()
        run_task(point, settings, on_progress=lambda values: beats.append(values["epoch"]))
    assert len(beats) == 3 * 2
    row = tracker.find_finished(CONTROL.key())
    assert row is not None
    assert row.tags["trunk_key"] == TICKET.key()
    assert SHA256 not in row.tags
    alone = walk(CONTROL).last.measurement.metrics("final")
    for name, value in alone.items():
        assert name.endswith("seconds") or row.metrics[name] == value, name


def test_a_trial_that_nobody_follows_leaves_no_trunk(place: tuple[Tracker, WorkerSettings]) -> None:
    tracker, settings = place
    points, _ = remaining_tasks(plan_of(TICKET), tracker, retry_failed=False)
    for point in points:
        run_task(point, settings)
    row = tracker.find_finished(TICKET.key())
    assert row is not None
    assert not tracker.has_artifact(row, ROUND_MASKS)
    assert load_round_masks(tracker, CONTROL) is None
    (control,), _ = remaining_tasks(plan_of(TICKET, CONTROL), tracker, retry_failed=False)
    assert control.parent == DENSE.key()  # it does not wait for what is done already


def test_a_damaged_trunk_is_not_walked_along(place: tuple[Tracker, WorkerSettings]) -> None:
    tracker, settings = place
    points, _ = remaining_tasks(plan_of(TICKET, CONTROL), tracker, retry_failed=False)
    for point in points[:2]:
        run_task(point, settings)
    row = tracker.find_finished(TICKET.key())
    assert row is not None
    assert load_round_masks(tracker, CONTROL) is not None
    file = tracker.local_folder(row, ROUND_MASKS)
    assert file is not None
    file.write_bytes(file.read_bytes()[:-1] + b"\x55")
    assert load_round_masks(tracker, CONTROL) is None


def swept() -> tuple[Sweep, list[str]]:
    dense = Task(DENSE.key(), "dense", DENSE)
    ticket = Task(TICKET.key(), "ticket", TICKET, parent=DENSE.key(), saves_round_masks=True)
    control = Task(CONTROL.key(), "control", CONTROL, parent=TICKET.key())
    sweep = Sweep(dense, control, ticket)
    return sweep, [sweep.next(), sweep.next()]


def test_the_control_waits_for_its_ticket() -> None:
    sweep, first = swept()
    assert first == ["dense", "wait"]
    sweep.complete("0")
    assert [sweep.next(), sweep.next()] == ["ticket", "wait"]
    sweep.complete("1")
    assert [sweep.next(), sweep.next()] == ["control", "end"]


def test_a_ticket_that_fails_leaves_its_control_alone() -> None:
    sweep, _ = swept()
    sweep.complete("0")
    assert [sweep.next(), sweep.next()] == ["ticket", "wait"]
    sweep.complete("1", reason="bad luck")
    assert [sweep.next(), sweep.next()] == ["control", "end"]
    assert sweep.ended() == [("dense", True, ""), ("ticket", False, "bad luck")]


def test_without_their_dense_network_both_fail() -> None:
    sweep, _ = swept()
    sweep.complete("0", reason="NaN")
    why = "its dense network failed: NaN"
    assert sweep.next() == "end"
    assert sweep.ended() == [("dense", False, "NaN"), ("ticket", False, why), ("control", False, why)]
