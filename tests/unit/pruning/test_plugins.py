"""Parts of other packages, found by their entry points: in Python, in a space and on the command line."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest

from orchestrator.errors import SpaceError
from orchestrator.space.catalog import names
from orchestrator.space.space import load_space

ROOT = Path(__file__).parents[3]
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
from orchestrator.space.space import load_space
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
from orchestrator.space.space import load_space
from orchestrator.trial.run import run_dense, run_trial
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


def test_it_prunes(installed: Path, tmp_path: Path) -> None:
    done = forked.python(PRUNE, cwd=tmp_path, site=installed)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "removes the largest weights first: the worst choice, for comparison\n"


def test_the_command_line_lists_it(installed: Path, tmp_path: Path) -> None:
    done = forked.orchestrate("list", "criteria", cwd=tmp_path, site=installed)
    found = [tuple(line.split(maxsplit=1)) for line in done.stdout.splitlines()]
    about = "removes the largest weights first: the worst choice, for comparison"
    assert set(found) - set(names("criteria")) == {("largest_first", about)}
    assert len(found) == len(names("criteria")) + 1


def test_a_space_may_use_it_and_it_is_a_near_name_like_any_other(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    done = forked.python(READ, cwd=tmp_path, site=installed)
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
        ("schedules", "halve", "removes half of the remaining amount at every round"),
        ("models", "maxout", "A maxout network with one hidden layer (Goodfellow et al., ICML 2013)."),
        ("datasets", "bars", "bars on noise"),
    ],
)
def test_the_lab_is_listed_and_shown(lab: Path, tmp_path: Path, kind: str, name: str, about: str) -> None:
    done = forked.orchestrate("list", kind, cwd=tmp_path, site=lab)
    found = [tuple(line.split(maxsplit=1)) for line in done.stdout.splitlines()]
    assert set(found) - set(names(kind)) == {(name, about)}
    shown = forked.orchestrate("show", name, cwd=tmp_path, site=lab)
    assert f" {name}: {about}\n" in shown.stdout


@pytest.mark.slow
def test_a_space_of_the_lab_is_run(lab: Path, tmp_path: Path) -> None:
    done = forked.python(TRIAL, str(LAB / "lab.yaml"), cwd=tmp_path, site=lab)
    assert done.returncode == 0, done.stderr
    *masks, rounds, accuracy = done.stdout.splitlines()
    # Three quarters of each layer; half of what is to go, a quarter, and the rest.
    pieces = [f"hidden.{piece}.weight {3 * 512} {64 * 32}" for piece in range(3)]
    assert masks == [*pieces, "output.weight 48 64"]
    steps = [(768, 24), (768 + 384, 24 + 12), (1536, 48)]
    assert rounds == str([3 * hidden + output for hidden, output in steps])
    assert float(accuracy) > 0.8


def test_a_name_that_is_taken_leaves_out_that_part_alone(tmp_path: Path) -> None:
    place = packed(LAB, tmp_path)
    (file,) = place.glob("*.dist-info/entry_points.txt")
    text = file.read_text()
    for given, taken in (("maxout", "cnn"), ("bars", "digits"), ("halve", "cubic")):
        text = text.replace(f"{given} =", f"{taken} =")
    file.write_text(text)
    done = forked.python(TAKEN, cwd=tmp_path, site=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["models.cnn", "8x8", "pruning.schedules"]
    warned = done.stderr.splitlines()
    assert [line.split(" of the package lab ")[0] for line in warned] == [
        "warning: model 'cnn'",
        "warning: data set 'digits'",
        "warning: schedule 'cubic'",
    ]
    assert all("the name is taken" in line for line in warned)


TAKEN = """
import models
from orchestrator.data.datasets import info
from pruning.schedules import schedules
for _ in range(2):  # each is told once
    model, images, schedule = models.BUILDERS["cnn"], info("digits"), schedules.get("cubic")
print(model.__module__, images.about.split()[0], schedule.function.__module__)
"""
BROKEN = {
    "models.builder": "shattered = shattered:net",
    "orchestrator.dataset": "shattered_images = shattered:IMAGES",
    "pruning.criterion": "shattered_scores = shattered",
}
SURVIVES = """
import sys
import models
from orchestrator.errors import SpaceError
from orchestrator.space.space import load_space
from orchestrator.data.datasets import DATASETS
assert {"shattered", "mlp"} <= set(models.BUILDERS) and {"shattered_images", "digits"} <= set(DATASETS)
assert "shattered" not in sys.modules
load_space("quickstart")
assert "shattered" not in sys.modules
for axis in ("model=shattered", "dataset=shattered_images", "criterion=shattered_scores"):
    try:
        load_space("space.yaml", [axis])
    except SpaceError as error:
        print(error)
"""


def test_a_broken_package_breaks_its_own_names_alone(tmp_path: Path) -> None:
    place = tmp_path / "site"
    info = place / "shattered-1.dist-info"
    info.mkdir(parents=True)
    (place / "shattered.py").write_text("import what_nobody_has\n")
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: shattered\nVersion: 1\n")
    sections = [f"[{group}]\n{line}\n" for group, line in BROKEN.items()]
    (info / "entry_points.txt").write_text("\n".join(sections))
    (tmp_path / "space.yaml").write_text(SPACE.replace("largest_first, ", ""))
    done = forked.python(SURVIVES, cwd=tmp_path, site=place)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line, name in zip(lines, ("shattered", "shattered_images", "shattered_scores"), strict=True):
        assert f"{name!r} of the package shattered cannot be imported" in line
        assert "ModuleNotFoundError: No module named 'what_nobody_has'" in line
    for kind in ("models", "datasets"):
        listed = forked.orchestrate("list", kind, cwd=tmp_path, site=place)
        assert listed.returncode == 0, listed.stderr
        assert [line.split()[0] for line in listed.stdout.splitlines()] == [n for n, _ in names(kind)]
        (warning,) = listed.stderr.splitlines()
        assert warning.startswith("warning: parts of the package shattered are left out: ModuleNotFoundError")


BOTH = """
from orchestrator.data.datasets import DatasetInfo
import models
from torch import nn
def read(root):
    raise NotImplementedError
def plain(input_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[1] * input_shape[2], num_classes))
IMAGES = DatasetInfo("both_images", "none", (1, 8, 8), 2, 72, 8, 20, read=read)
"""


@pytest.mark.parametrize(
    "first", ["import models", "import orchestrator.data.datasets as d; d.info('both_images')"]
)
def test_one_module_may_hold_a_model_and_a_data_set(tmp_path: Path, first: str) -> None:
    place = tmp_path / "site"
    info = place / "both-1.dist-info"
    info.mkdir(parents=True)
    (place / "both.py").write_text(BOTH)
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: both\nVersion: 1\n")
    entries = "[models.builder]\nplain = both:plain\n[orchestrator.dataset]\nboth_images = both:IMAGES\n"
    (info / "entry_points.txt").write_text(entries)
    code = f"{first}\nimport models, orchestrator.data.datasets as d\n"
    code += (
        "print(d.info('both_images').about, len(models.build('plain', input_shape=(1, 8, 8), num_classes=2)))"
    )
    done = forked.python(code, cwd=tmp_path, site=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "none 2\n"


FROM_FILE = """

def read_file(data_dir):
    from orchestrator.errors import DataError
    if not (data_dir / "bars.npz").exists():
        raise DataError(f"bars: {data_dir / 'bars.npz'} is missing; draw it")
    held = np.load(data_dir / "bars.npz")
    return Raw(held["images"], held["labels"], TEST, ("standing", "lying"))


BARS = replace(BARS, read=read_file)
"""


@pytest.mark.slow
@pytest.mark.long  # test_fingerprints.py has the same law of keys, without sweeps
@pytest.mark.parametrize("each_is_run", [False, True])
def test_a_sweep_whose_source_or_data_changed_runs_anew(lab: Path, tmp_path: Path, each_is_run: bool) -> None:
    file = lab / "lab" / "dataset.py"
    text = file.read_text().replace(
        "from pathlib import Path", "from dataclasses import replace\nfrom pathlib import Path"
    )
    file.write_text(text + FROM_FILE)
    (tmp_path / "lab.yaml").write_text((LAB / "lab.yaml").read_text())

    def orchestrate(*words: str) -> tuple[int, str, str]:
        here = {"ORCHESTRATE_DATA_DIR": str(tmp_path / "data")}
        done = forked.orchestrate(*words, cwd=tmp_path, site=lab, seconds=500, **here)
        return done.returncode, done.stdout, done.stderr

    def sweep() -> tuple[dict[str, Any], str]:
        code, out, err = orchestrate("sweep", "--space", "lab.yaml", "--json")
        assert code == 0, err
        return json.loads(out), err

    def plan() -> dict[str, Any]:
        code, out, err = orchestrate("plan", "--space", "lab.yaml", "--json")
        assert code == 0, err
        return json.loads(out)

    def draw(seed: int) -> None:
        draws = np.random.default_rng(seed)
        images, labels = draws.integers(0, 128, (500, 1, 8, 8), dtype=np.uint8), np.arange(500) % 2
        for image, label in zip(images, labels, strict=True):
            image[0, :, 3] = 255 if label == 0 else 0
        (tmp_path / "data").mkdir(exist_ok=True)
        np.savez(tmp_path / "data" / "bars.npz", images=images, labels=labels)

    # Without its data a space can be planned and not be run
    assert plan()["missing_data"] == {"bars": f"{tmp_path / 'data' / 'bars.npz'} is missing; draw it"}
    assert orchestrate("sweep", "--space", "lab.yaml")[0] == 4

    draw(0)
    assert plan()["missing_data"] == {}
    first, _ = sweep()
    assert first["ran"] == 2
    if each_is_run:
        again, _ = sweep()
        assert (again["ran"], again["results"]) == (0, first["results"])

    draw(1)
    assert (plan()["changed"], plan()["trials_changed"]) == (["data of bars changed"], 1)
    other, changed = first, ["data of bars changed", "source of lab changed"]
    if each_is_run:
        other, told = sweep()
        assert other["ran"] == 2
        assert "since the results in the store: data of bars changed; 1 trial runs anew" in told
        changed = changed[1:]

    # The hidden units are no longer the largest of their pieces but the smallest
    (lab / "lab" / "model.py").write_text(
        (lab / "lab" / "model.py").read_text().replace(".maximum(", ".minimum(")
    )
    assert sorted(plan()["changed"]) == changed
    smallest, told = sweep()
    assert smallest["ran"] == 2
    assert "source of lab changed" in told
    assert smallest["results"] != other["results"]

    draw(0)
    assert plan()["trials_changed"] == 1
