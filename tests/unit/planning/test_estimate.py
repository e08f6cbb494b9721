"""How much disk a sweep needs, and what is said where there is less."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.errors import DiskFullError
from orchestrator.planning.estimate import RUN_BYTES, check_disk_space, disk_space_message, needed_bytes
from orchestrator.trial.task import Task

DENSE = DenseConfig("mlp(widths=[16, 8])", "digits", 64, 0, Train(epochs=2), Numerics(micro_batch=4096))
WEIGHTS = 64 * 16 + 16 * 8 + 8 * 10  # digits are 8x8; no biases


def point(recover: str | None = None) -> Task:
    if recover is None:
        return Task(DENSE.key(), "dense", DENSE)
    trial = TrialConfig(DENSE, Prune("magnitude", "weight", "layer", "one_shot", 0.5), recover, "weight")
    return Task(trial.key(), "weight", trial, parent=DENSE.key())


def test_a_dense_run_holds_its_weights_a_trial_masks_and_what_was_trained() -> None:
    assert needed_bytes([point()]) == RUN_BYTES + 4 * WEIGHTS
    assert needed_bytes([point("none")]) == RUN_BYTES + WEIGHTS // 8
    assert needed_bytes([point("finetune(epochs=1)")]) == RUN_BYTES + WEIGHTS // 8 + 4 * WEIGHTS
    assert needed_bytes([point(), point("none")]) == 2 * RUN_BYTES + 4 * WEIGHTS + WEIGHTS // 8


def usage(free: int) -> object:
    return lambda folder: SimpleNamespace(free=free)


def test_too_little_is_refused_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [point(), point("none")]
    need = needed_bytes(points)
    monkeypatch.setattr(shutil, "disk_usage", usage(need))
    check_disk_space(points, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", usage(need - 1))
    with pytest.raises(DiskFullError, match="the 2 runs that are left need about 165 kB"):
        check_disk_space(points, tmp_path)
    check_disk_space([], tmp_path)
    check_disk_space(points, None)  # a server's disk is not seen from here


def test_the_message_says_where_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", usage(12_345))
    assert disk_space_message([point()] * 3, tmp_path) == (
        f"{tmp_path} has 12.3 kB left, and the 3 runs that are left need about 255 kB; "
        "make room, and the same command carries on"
    )
