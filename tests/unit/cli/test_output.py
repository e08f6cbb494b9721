"""What a command prints, and how it ends after a signal."""

from __future__ import annotations

import json
import os
import signal

import pytest
import typer

from orchestrator.cli.output import exit_on_signal, print_result


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_says_how_to_carry_on(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["orchestrate", "sweep", "--space", "my space"])
    with pytest.raises(typer.Exit) as ended, exit_on_signal():
        os.kill(os.getpid(), number)
    assert ended.value.exit_code == 128 + number
    assert capsys.readouterr().err == "interrupted; to carry on: orchestrate sweep --space 'my space'\n"


def print_results() -> None:
    with exit_on_signal() as signals:
        with signals.deferring():
            os.kill(os.getpid(), signal.SIGINT)
        print("the results so far")


def test_a_command_that_deferred_a_signal_ends_in_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended:
        print_results()
    assert ended.value.exit_code == 130
    assert capsys.readouterr().out == "the results so far\n"


def test_a_command_without_a_signal_ends_by_itself() -> None:
    with exit_on_signal():
        pass
    with pytest.raises(KeyboardInterrupt), exit_on_signal():
        raise KeyboardInterrupt  # not by a signal: nothing of ours to carry on


class Answer:
    def to_json(self) -> dict[str, int]:
        return {"trials": 2}

    def lines(self) -> list[str]:
        return ["trials 2", "dense 1"]


def test_a_result_is_lines_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(Answer(), as_json=False)
    assert capsys.readouterr().out == "trials 2\ndense 1\n"
    print_result(Answer(), as_json=True)
    assert json.loads(capsys.readouterr().out) == {"trials": 2}
