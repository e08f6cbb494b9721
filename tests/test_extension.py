"""A criterion of another package, found by its entry point: in Python, in a space and on the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from orchestrator.catalogue import names
from orchestrator.errors import SpaceError
from orchestrator.space import load_space

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "docs" / "examples" / "largest_first"
SPACE = """\
version: 1
axes:
  model: [slp]
  dataset: [digits]
  criterion: [largest_first, magnitude]
  amount: [50%]
train: {epochs: 1}
"""
PRUNE = """
import torch, pruning
net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
weight = net[0].weight.detach().abs()
mask = pruning.prune(net, criterion="largest_first", amount=0.5, scope="layer")["0.weight"]
assert int(mask.sum()) == 6, mask
assert weight[~mask].min() >= weight[mask].max()
units = pruning.prune(net, criterion="largest_first", granularity="unit", scope="layer", amount=1 / 3)
assert int(weight.sum(1).argmax()) == units["0.weight"].any(1).tolist().index(False)
print(pruning.criteria.get("largest_first").traits["summary"])
"""
READ = """
from orchestrator.errors import SpaceError
from orchestrator.space import load_space
try:
    print(load_space("space.yaml").axes.criterion)
    load_space("space.yaml", ["criterion=largest_frist"])
except SpaceError as error:
    print(error)
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder for sys.path as pip leaves it: the module, and the entry points of pyproject.toml."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    place = tmp_path / "site"
    info = place / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    for file in EXAMPLE.glob("*.py"):
        (place / file.name).write_text(file.read_text())
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    sections = [
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(sections))
    return place


def python(*words: str, cwd: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_it_prunes(installed: Path, tmp_path: Path) -> None:
    done = python("-c", PRUNE, cwd=tmp_path, site=installed)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the largest weights leave first: the worst that one can do\n"


def test_the_command_line_lists_it(installed: Path, tmp_path: Path) -> None:
    done = python("-m", "orchestrator.cli", "list", "criteria", cwd=tmp_path, site=installed)
    found = [tuple(line.split(maxsplit=1)) for line in done.stdout.splitlines()]
    about = "the largest weights leave first: the worst that one can do"
    assert set(found) - set(names("criteria")) == {("largest_first", about)}
    assert len(found) == len(names("criteria")) + 1


def test_a_space_may_use_it_and_it_is_a_near_name_like_any_other(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    done = python("-c", READ, cwd=tmp_path, site=installed)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "('largest_first', 'magnitude')"
    assert "unknown criterion 'largest_frist'; did you mean largest_first?" in second
    with pytest.raises(SpaceError, match="unknown criterion 'largest_first'"):  # not installed here
        load_space(str(tmp_path / "space.yaml"))
