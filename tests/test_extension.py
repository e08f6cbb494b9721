"""Parts of other packages, found by their entry points: in Python, in a space and on the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from orchestrator.errors import SpaceError
from orchestrator.language.catalogue import names
from orchestrator.space import load_space

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "docs" / "examples"
EXAMPLE, LAB = EXAMPLES / "largest_first", EXAMPLES / "lab"
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


TRIAL = """
import sys
from orchestrator import data
from orchestrator.planning.plan import make_plan
from orchestrator.space import load_space
from orchestrator.trial import run_dense, run_trial
(trial,) = make_plan(load_space(sys.argv[1]), device="cpu", precision="fp32").trials
bars = data.load("bars")
assert [len(split) for split in (bars.train, bars.validation, bars.test)] == [360, 40, 100]
dense = run_dense(trial.config.dense, bars)
class Shelf:
    def dense(self, config):
        return dense.last.state
result = run_trial(trial.config, bars, store=Shelf())
total = 3 * 64 * 32 + 2 * 32
for name, mask in result.last.state.masks.items():
    print(name, mask.numel() - int(mask.sum()), mask.numel())
print([round(m.measurement.sparsity * total) for m in result.rounds])
print(dense.last.measurement.accuracy)
"""


def packed(example: Path, tmp_path: Path) -> Path:
    """A folder for sys.path as pip leaves it: the modules, and the entry points of pyproject.toml."""
    project = tomllib.loads((example / "pyproject.toml").read_text())["project"]
    place = tmp_path / "site"
    info = place / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    for file in example.rglob("*.py"):
        (place / file.relative_to(example)).parent.mkdir(exist_ok=True)
        (place / file.relative_to(example)).write_text(file.read_text())
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    sections = [
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(sections))
    return place


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    return packed(EXAMPLE, tmp_path)


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    return packed(LAB, tmp_path)


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


# ---- a schedule, a model and a data set


@pytest.mark.parametrize(
    ("kind", "name", "about"),
    [
        ("schedules", "halve", "half of what is still to go, at every round"),
        ("models", "maxout", "A maxout network with one hidden layer; Goodfellow et al., ICML 2013."),
        ("datasets", "bars", "bars on noise"),
    ],
)
def test_the_lab_is_listed_and_shown(lab: Path, tmp_path: Path, kind: str, name: str, about: str) -> None:
    done = python("-m", "orchestrator.cli", "list", kind, cwd=tmp_path, site=lab)
    found = [tuple(line.split(maxsplit=1)) for line in done.stdout.splitlines()]
    assert set(found) - set(names(kind)) == {(name, about)}
    shown = python("-m", "orchestrator.cli", "show", name, cwd=tmp_path, site=lab)
    assert f" {name}: {about}\n" in shown.stdout


@pytest.mark.slow
def test_a_space_of_the_lab_is_run(lab: Path, tmp_path: Path) -> None:
    done = python("-c", TRIAL, str(LAB / "lab.yaml"), cwd=tmp_path, site=lab)
    assert done.returncode == 0, done.stderr
    *masks, rounds, accuracy = done.stdout.splitlines()
    # Three quarters of each layer; half of what is to go, a quarter, and the rest.
    pieces = [f"hidden.{piece}.weight {3 * 512} {64 * 32}" for piece in range(3)]
    assert masks == [*pieces, "output.weight 48 64"]
    steps = [(768, 24), (768 + 384, 24 + 12), (1536, 48)]
    assert rounds == str([3 * hidden + output for hidden, output in steps])
    assert float(accuracy) > 0.8


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    place = packed(LAB, tmp_path)
    (file,) = place.glob("*.dist-info/entry_points.txt")
    for given, taken, code in (
        ("maxout", "cnn", "import models"),
        ("bars", "digits", "import orchestrator.images.datasets"),
    ):
        text = file.read_text()
        file.write_text(text.replace(f"{given} =", f"{taken} ="))
        done = python("-c", code, cwd=tmp_path, site=place)
        assert f"'{taken}'" in done.stderr.splitlines()[-1]
        assert "is taken" in done.stderr.splitlines()[-1]
        file.write_text(text)
