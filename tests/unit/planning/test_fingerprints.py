"""What decides a result and stands in no space file is in the key: data, other packages' source, versions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import models
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig, dense_from_json
from orchestrator.data import datasets, loading
from orchestrator.data.datasets import DatasetInfo, Raw
from orchestrator.data.loading import load_planned_data
from orchestrator.errors import DataError, StoreError
from orchestrator.execution.worker import check_plugin_code
from orchestrator.planning import fingerprints
from orchestrator.planning.changes import differences
from orchestrator.planning.fingerprints import (
    clear_caches,
    data_sha256,
    dense_code,
    missing_data,
    parse_code,
    with_current_fingerprints,
)
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.space.space import load_space
from pruning.criteria import criteria
from pruning.user_code import plugins

SPACE = """\
version: 1
axes:
  model: [plain, slp]
  dataset: [digits]
  criterion: [largest, magnitude]
  amount: [50%]
train: {epochs: 1}
"""
MODEL = """
from torch import nn
def plain(input_shape, num_classes):
    "One layer."
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[1] * input_shape[2], num_classes))
"""
CRITERION = """
from pruning.user_code import plugins
from pruning.criteria import criteria
@criteria.register(summary="the largest leave first")
def largest(scene):
    return {name: -weight.double().abs() for name, weight in scene.weights.items()}
"""
ENTRIES = """\
[models.builder]
plain = ingredients_model:plain
[pruning.criterion]
largest = ingredients_criterion
"""


def forget() -> None:
    """As a new process, which has imported nothing of other packages and asked for none."""
    clear_caches()
    plugins.clear_caches()
    for name in ("ingredients_model", "ingredients_criterion"):
        sys.modules.pop(name, None)
    criteria._functions.pop("largest", None)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with two packages of a third party, one with a model and one with a criterion."""
    place = tmp_path / "site"
    for package, text in (("model", MODEL), ("criterion", CRITERION)):
        info = place / f"ingredients_{package}-1.dist-info"
        info.mkdir(parents=True)
        (place / f"ingredients_{package}.py").write_text(text)
        (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: ingredients-{package}\nVersion: 1\n")
        header = "[models.builder]" if package == "model" else "[pruning.criterion]"
        (section,) = (part for part in ENTRIES.replace("\n[", "\n\n[").split("\n\n") if header in part)
        (info / "entry_points.txt").write_text(section)
    (tmp_path / "space.yaml").write_text(SPACE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(place)
    forget()
    yield place
    forget()


def planned() -> Plan:
    return make_plan(load_space("space.yaml"))


def keys(plan: Plan) -> dict[tuple[str, str], str]:
    return {(t.config.dense.model, t.config.prune.criterion): t.key for t in plan.trials}


def dense_keys(plan: Plan) -> dict[str, str]:
    return {dense.model: dense.key() for dense in plan.dense}


def test_the_source_of_a_criterion_changes_only_the_keys_of_its_trials(site: Path) -> None:
    before = planned()
    (site / "ingredients_criterion.py").write_text(CRITERION + "\nNEW = 1\n")
    after = planned()
    changed = {pair for pair, key in keys(after).items() if keys(before)[pair] != key}
    assert changed == {("plain", "largest"), ("slp", "largest")}
    assert dense_keys(after) == dense_keys(before)


def test_the_source_of_a_model_changes_the_keys_of_its_trainings_and_trials(site: Path) -> None:
    before = planned()
    (site / "ingredients_model.py").write_text(MODEL + "\nNEW = 1\n")
    after = planned()
    changed = {pair for pair, key in keys(after).items() if keys(before)[pair] != key}
    assert changed == {("plain", "largest"), ("plain", "magnitude")}
    assert {m for m, key in dense_keys(after).items() if dense_keys(before)[m] != key} == {"plain"}
    (site / "ingredients_model.py").write_text(MODEL)
    assert keys(planned()) == keys(before)


def test_a_configuration_names_the_packages_of_its_parts(site: Path) -> None:
    codes = {(t.config.dense.model, t.config.prune.criterion): t.config for t in planned().trials}
    both = codes["plain", "largest"]
    assert list(parse_code(both.dense.dense_code)) == ["ingredients-model"]
    assert list(parse_code(both.trial_code)) == ["ingredients-criterion"]
    ours = codes["slp", "magnitude"]
    assert (ours.dense.dense_code, ours.trial_code) == ("", "")
    assert ours.dense.data_sha256 == loading.load_dataset("digits").digest


def test_a_worker_refuses_source_that_is_not_what_was_planned(site: Path) -> None:
    config = next(t.config for t in planned().trials if t.config.dense.model == "plain")
    check_plugin_code(config)
    (site / "ingredients_model.py").write_text(MODEL + "\nNEW = 1\n")
    clear_caches()
    with pytest.raises(StoreError, match="ingredients-model: this worker has another source"):
        check_plugin_code(config)


def test_the_folder_of_a_package_counts_whole_and_the_rest_of_its_disk_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "site" / "ingredients_package"
    (folder / "deep").mkdir(parents=True)
    for name in ("__init__.py", "deep/inner.py", "settings.yaml", "picture.png"):
        (folder / name).write_text("")
    monkeypatch.syspath_prepend(tmp_path / "site")
    listed = sorted(name for name, _ in fingerprints._package_files("ingredients_package"))
    package = "ingredients_package"
    assert listed == [f"{package}/__init__.py", f"{package}/deep/inner.py", f"{package}/settings.yaml"]


def test_torchvision_counts_where_a_network_is_built_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_caches()
    assert dense_code("slp", "digits") == ""
    name, version = next(iter(parse_code(dense_code("densenet121", "digits")).items()))
    assert name == "torchvision="
    assert version == fingerprints.package_version("torchvision")
    dense = replace(DENSE, model="densenet121", dense_code=dense_code("densenet121", "digits"))
    monkeypatch.setattr(fingerprints, "package_version", lambda package: "0.0.1")
    clear_caches()
    newer = replace(dense, dense_code=dense_code("densenet121", "digits"))
    clear_caches()
    assert newer.key() != dense.key()
    told = list(differences({"dense_code": dense.dense_code}, {"dense_code": newer.dense_code}))
    assert told == [f"torchvision {version} is now 0.0.1"]


# ---- data

DENSE = DenseConfig("slp", "digits", 64, 0, Train(), Numerics())
TRIAL = TrialConfig(DENSE, Prune("magnitude", "weight", "layer", "one_shot", 0.5), "none", "weight")


@pytest.fixture
def squares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A data set `squares` whose file is written anew with another seed."""
    monkeypatch.setenv("ORCHESTRATE_DATA_DIR", str(tmp_path))

    def read(root: Path) -> Raw:
        if not (root / "squares.npy").exists():
            raise DataError(f"squares: {root / 'squares.npy'} is missing; draw it")
        images = np.load(root / "squares.npy")
        return Raw(images, np.arange(len(images), dtype=np.int64) % 2, 20, ("even", "odd"))

    info = DatasetInfo("squares", "noise", (1, 8, 8), 2, 72, 8, 20, read=read)
    monkeypatch.setitem(datasets.OWN, "squares", info)
    monkeypatch.setitem(datasets.DATASETS, "squares", info)

    def draw(seed: int) -> None:
        draws = np.random.default_rng(seed)
        np.save(tmp_path / "squares.npy", draws.integers(0, 256, (100, 1, 8, 8), dtype=np.uint8))

    return draw


def test_a_digest_is_that_of_what_is_loaded(squares: Callable[[int], None]) -> None:
    squares(0)
    options = {"classes": [3, 1], "samples_per_class": 9}
    for name, chosen in (("digits", {}), ("digits", options), ("squares", {"samples_per_class": 5})):
        assert loading.digest(name, **chosen) == loading.load_dataset(name, **chosen).digest  # type: ignore[arg-type]


def test_levels_count_though_they_are_in_no_file(
    squares: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    squares(0)
    before = loading.digest("squares")
    monkeypatch.setitem(datasets.DATASETS, "squares", replace(datasets.OWN["squares"], levels=15))
    assert loading.digest("squares") != before


def test_a_worker_reads_changed_data_anew_and_refuses_what_was_not_planned(
    squares: Callable[[int], None],
) -> None:
    squares(0)
    clear_caches()
    first = replace(DENSE, dataset="squares", data_sha256=data_sha256("squares"))
    assert load_planned_data(first, None).digest == first.data_sha256
    squares(1)
    clear_caches()
    second = replace(first, data_sha256=data_sha256("squares"))
    assert second.key() != first.key()
    assert load_planned_data(second, None).digest == second.data_sha256  # not what lay in memory
    with pytest.raises(DataError, match="are not those with which the sweep was planned"):
        load_planned_data(first, None)


def test_missing_data_are_named_and_their_digest_is_empty(
    squares: Callable[[int], None], tmp_path: Path
) -> None:
    clear_caches()
    assert data_sha256("squares") == ""
    missing = missing_data({"squares", "digits", "mnist", "mnist(samples_per_class=3)"})
    assert missing.keys() == {"squares", "mnist"}
    assert missing["squares"] == f"{tmp_path / 'squares.npy'} is missing; draw it"
    assert "orchestrate data fetch mnist" in missing["mnist"]
    assert str(tmp_path) in missing["mnist"]


def test_what_a_recorded_run_was_made_of_is_held_against_today(squares: Callable[[int], None]) -> None:
    squares(0)
    clear_caches()
    recorded = replace(DENSE, dataset="squares")
    assert with_current_fingerprints(recorded) == recorded  # from before this was recorded
    recorded = replace(recorded, data_sha256=data_sha256("squares"), dense_code=dense_code("slp", "squares"))
    assert with_current_fingerprints(recorded) == recorded
    squares(1)
    assert with_current_fingerprints(recorded).key() != recorded.key()


# ---- keys


def test_every_ingredient_moves_its_key_and_runs_of_before_are_read() -> None:
    configs = [DENSE, replace(DENSE, data_sha256="a"), replace(DENSE, dense_code="lab=a")]
    configs.append(replace(DENSE, numerics=replace(DENSE.numerics, tf32=True)))
    assert len({config.key() for config in configs}) == 4
    assert replace(TRIAL, trial_code="lab=a").key() != TRIAL.key()
    old = {
        "model": "slp",
        "dataset": "digits",
        "batch_size": 64,
        "seed": 0,
        "train": {},
        "numerics": {"device": "cpu", "precision": "fp32", "threads": 1, "micro_batch": 256},
    }
    assert dense_from_json(old) == DENSE


def test_changes_are_told_in_words() -> None:
    then = {"dataset": "bars", "data_sha256": "a", "dense_code": "lab=1", "trial_code": "other=1"}
    now = {"dataset": "bars", "data_sha256": "b", "dense_code": "lab=2", "trial_code": "other=1"}
    assert list(differences(then, now)) == ["data of bars changed", "source of lab changed"]
    assert list(differences(now, now)) == []


def test_a_model_says_what_it_is_built_from(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return nn.Linear(1, num_classes)

    small.__dict__["built_from"] = ("torch",)
    monkeypatch.setitem(models.BUILDERS, "small", small)
    assert models.built_from("small") == ("torch",)
    assert models.built_from("mlp(widths=[3])") == ()
    clear_caches()
    found = parse_code(dense_code("small", "digits"))
    assert found["torch="] == fingerprints.package_version("torch")
    assert str(torch.__version__).startswith(found["torch="].partition("+")[0])
    clear_caches()
