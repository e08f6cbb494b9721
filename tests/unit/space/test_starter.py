"""The files of `orchestrate init`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import models
from orchestrator.errors import UnusableError, UsageError
from orchestrator.planning.plan import make_plan
from orchestrator.space.space import load_space
from orchestrator.space.starter import FILES, write_starter


def test_the_files_are_a_space_that_can_be_planned(tmp_path: Path) -> None:
    paths = write_starter(tmp_path / "new" / "study")
    assert {path.name for path in paths} == set(FILES) == {"space.yaml", "net.py", ".gitignore"}
    plan = make_plan(load_space(str(tmp_path / "new" / "study" / "space.yaml")))
    assert len(plan.trials) == 2 * 3 * 2 * 3
    (model,) = {dense.model for dense in plan.dense}
    net = models.build(model, input_shape=(3, 32, 32), num_classes=7)  # of other data, too
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_written_over(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=f"{name} is there already"):
        write_starter(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_in_the_place_of_the_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnusableError, match="cannot be written"):
        write_starter(tmp_path / "file" / "study")
