"""What `compress` refuses, before anything is trained and with nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_process import orchestrate

WORDS = ("compress", "--model", "slp", "--data", "digits", "--epochs", "1", "--trials", "2")


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("--budget", "macs<=50%", "--set", "amount=50%"), 2, "amount 0.5: compress sets it by --budget"),
        (("--budget", "bytes<=1"), 3, "nothing meets bytes <= 1"),
        (("--budget", "macs<=50%", "--set", "granularity=nosuch"), 2, "nosuch"),
        (("--budget", "macs<=50%", "--out", "file"), 2, "file is a file; name a new folder"),
        (("--budget", "macs<=50%", "--out", "/proc/x/y"), 2, "/proc cannot be written"),
    ],
)
def test_what_is_refused_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int, reason: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store/mlflow.db")
    (tmp_path / "file").write_text("")
    done = orchestrate(*WORDS, *words, cwd=tmp_path)
    assert done.returncode == code
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"file"}
