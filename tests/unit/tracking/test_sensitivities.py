"""Sensitivities in a store: with the run of their dense network, found by its tag, and never in part."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from recorded import Store

from orchestrator.errors import StoreError
from orchestrator.storage.outbox import Outbox
from orchestrator.tracking.dense_networks import StoredDenseNetworks
from orchestrator.tracking.sensitivities import StoredSensitivities, iter_sensitivities
from orchestrator.trial.sensitivity import GroupSensitivity, Question, Sensitivity

pytestmark = pytest.mark.slow
GROUP = GroupSensitivity("a", 4, 9, (0, 1, 3), (0.25, 0.5, float("inf")), (1.0, 0.5, 0.1))


def test_an_answer_is_stored_with_its_network_and_read_by_its_question(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run = store.dense("slp")
    question = Question(store.row(run).tags["key"], "l2", "channel", ("output",))
    answer, stored = Sensitivity(question, 180, (GROUP,)), StoredSensitivities(store.tracker)
    assert stored.sensitivity(question) is None
    stored.add_sensitivity(answer)
    stored.add_sensitivity(answer)  # by two workers
    assert stored.sensitivity(question) == answer
    assert list(iter_sensitivities(store.tracker, store.row(run))) == [answer]
    assert stored.sensitivity(Question(question.dense_key, "l1", "channel", ("output",))) is None
    assert store.row(run).tags[f"sensitivity.{question.digest}"] == "l2, channel"
    # Of a network that is not in the store nothing is stored.
    missing = Sensitivity(Question("0" * 64, "l2", "channel", ()), 180, (GROUP,))
    stored.add_sensitivity(missing)
    assert stored.sensitivity(missing.question) is None
    # A file that was changed or is gone is no answer: it is measured again.
    file = Path(store.row(run).artifact_uri.removeprefix("file://")) / f"sensitivity/{question.digest}.json"
    text = file.read_text()
    file.write_text(text.replace("0.25", "0.75"))
    assert stored.sensitivity(question) is None
    file.unlink()
    assert stored.sensitivity(question) is None
    assert list(iter_sensitivities(store.tracker, store.row(run))) == []


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    question = Question(store.row(store.dense("slp")).tags["key"], "l2", "channel", ())

    def refuse(*arguments: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("orchestrator.tracking.artifacts.replace_file", refuse)
    with pytest.raises(StoreError):
        StoredSensitivities(store.tracker).add_sensitivity(Sensitivity(question, 180, (GROUP,)))


def test_an_answer_that_cannot_be_stored_fails_no_trial(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run = store.dense("slp")
    question = Question(store.row(run).tags["key"], "l2", "channel", ())
    folder = Path(store.row(run).artifact_uri.removeprefix("file://"))
    shutil.rmtree(folder)
    folder.write_text("a file where the folder was")
    networks = StoredDenseNetworks(store.tracker, Outbox(tmp_path / "outbox"))
    with pytest.raises(NotADirectoryError):
        StoredSensitivities(store.tracker).add_sensitivity(Sensitivity(question, 180, (GROUP,)))
    networks.add_sensitivity(Sensitivity(question, 180, (GROUP,)))
    assert networks.sensitivity(question) is None
