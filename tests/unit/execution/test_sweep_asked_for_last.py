"""Which sweep a name means: the one that was asked for last, whether or not anything of it had to run."""

from __future__ import annotations

from pathlib import Path

from whole_sweep import record_sweep

import orchestrator
from orchestrator.execution.options import SweepOptions
from orchestrator.execution.sweep import run_sweep
from orchestrator.space.space import Space, load_space
from orchestrator.storage.uri import default_uri


def space_of(folder: Path, width: int) -> Space:
    folder.mkdir()
    axes = f"{{model: ['mlp(widths=[{width}])'], dataset: [digits], technique: [weight], amount: [0.5]}}"
    (folder / "space.yaml").write_text(f"axes: {axes}\ntrain: {{epochs: 1}}\n")
    return load_space(str(folder / "space.yaml"))


def test_two_files_of_one_name_are_two_sweeps_and_the_last_one_asked_for_counts(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    first, second = space_of(tmp_path / "study", 8), space_of(tmp_path / "other", 9)
    for space in (first, second):
        record_sweep(uri, tmp_path / "state", space)
    assert list(orchestrator.results("space", uri=uri)["model"]) == ["mlp(widths=[9])"]
    for space, width in ((first, 8), (second, 9), (first, 8), (first, 8)):
        assert run_sweep(space, SweepOptions(), uri=uri).reused == 1
        frame = orchestrator.results("space", uri=uri)
        assert list(frame["model"]) == [f"mlp(widths=[{width}])"]
        assert orchestrator.results("study/space.yaml", uri=uri).equals(frame)
