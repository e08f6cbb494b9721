"""A sweep in one file: written from a store, made again in another, compared."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from whole_sweep import NAME, SETS, record_sweep

from orchestrator import cli
from orchestrator.errors import StoreError, UsageError
from orchestrator.execution.bundle_rerun import (
    BundleComparison,
    bundled_space,
    compare,
    load_bundle,
    remake,
    with_pins,
)
from orchestrator.model_io.pretrained import with_source_model
from orchestrator.report.bundle import read_request, write_bundle
from orchestrator.space.space import load_space
from orchestrator.storage import bundle_file
from orchestrator.storage.bundle_file import dump_bundle, read_bundle
from orchestrator.storage.runs import COMMAND, RunRecord
from orchestrator.storage.uri import default_uri
from orchestrator.system.signals import SignalHandler
from pruning.user_code import own_code, stored_code

FIRST, SECOND = "net.py@0123456789abcdef:small", "lab/net.py@fedcba9876543210:large"


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    """Two stores with the same sweep, each made by itself, and a bundle of the first."""
    folder = tmp_path_factory.mktemp("bundles")
    first, second = default_uri(folder / "first"), default_uri(folder / "second")
    for uri in (first, second):
        record_sweep(uri, folder / "state")
    write_bundle(NAME, uri=first, out=folder / "x.zip")
    return first, second, folder / "x.zip"


def changed(bundle: Path, folder: Path, change: Any) -> Path:  # a function of the runs
    """A copy of a bundle with other runs."""
    file = read_bundle(bundle)
    content = file.json(bundle_file.RUNS)
    change(content["runs"])
    about = {name: value for name, value in file.about.items() if name not in ("members", "format")}
    data = dump_bundle(about, {**file.members, bundle_file.RUNS: json.dumps(content).encode()})
    path = folder / "changed.zip"
    path.write_bytes(data)
    return path


def again(bundle: Path, uri: str) -> BundleComparison:
    loaded = load_bundle(bundle)
    return compare(loaded, remake(loaded, uri=uri, signals=SignalHandler()), uri=uri)


def test_a_bundle_has_all_that_a_sweep_is_made_again_from(stores: tuple[str, str, Path]) -> None:
    _, _, path = stores
    file = read_bundle(path)
    names = {name for name in bundle_file.LIMITS if not name.startswith(bundle_file.SOURCE)}
    assert file.members.keys() == names - {bundle_file.ABOUT}
    assert file.about["space"] == NAME
    assert tuple(file.about["sets"]) == SETS
    assert "--device cpu" in file.about["command"]
    runs = file.json(bundle_file.RUNS)["runs"]
    assert sorted(run["kind"] for run in runs) == ["dense", "trial", "trial"]
    assert all(run["metrics"]["final/accuracy"] > 0 and run["params"]["model"] for run in runs)
    assert "package.torch" in file.json(bundle_file.ENVIRONMENT)


def test_the_same_sweep_gives_the_same_file(stores: tuple[str, str, Path], tmp_path: Path) -> None:
    first, _, path = stores
    write_bundle(NAME, uri=first, out=tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == path.read_bytes()


def test_another_store_has_equal_results(stores: tuple[str, str, Path]) -> None:
    _, second, path = stores
    comparison = again(path, second)
    assert comparison.is_equal
    assert (comparison.runs, comparison.reused, comparison.environment) == (3, 2, [])
    lines = list(comparison.lines())
    assert lines[0].startswith("equal: 3 runs, ")
    assert lines[1].startswith("2 trials were in this store already")
    assert lines[-1] == "environment: the same"


def test_what_differs_is_named(stores: tuple[str, str, Path], tmp_path: Path) -> None:
    _, second, path = stores

    def change(runs: list[dict[str, Any]]) -> None:
        pruned = next(run for run in runs if run["masks_sha256"] and run["params"]["amount"] == "0.5")
        pruned["metrics"]["final/accuracy"] += 0.25
        pruned["metrics"]["final/train_seconds"] += 1.0  # a clock's
        pruned["masks_sha256"] = "0" * 64
        dense = next(run for run in runs if run["kind"] == "dense")
        dense["params"]["train.lr"] = "0.5"

    comparison = again(changed(path, tmp_path, change), second)
    assert not comparison.is_equal
    assert comparison.largest_accuracy_difference == pytest.approx(0.25)
    (line,) = comparison.differences
    assert "1 of " in line
    assert "final/accuracy" in line
    assert "0 entries of its masks" in line  # the masks themselves are as they were
    assert len(comparison.missing) == 1
    text = "\n".join(comparison.lines())
    assert "differs: 1 of 2 runs; test accuracies by at most 25.00 points" in text
    assert "not made again: 1 runs, as dense mlp" in text


def test_versions_that_differ_are_named(
    stores: tuple[str, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, second, path = stores
    facts = {"package.torch": "99.0", "python": "4.0"}
    monkeypatch.setattr("orchestrator.execution.bundle_rerun.environment", lambda: facts)
    lines = again(path, second).environment
    assert any(line.startswith("package.torch: ") and line.endswith(" bundled, 99.0 now") for line in lines)
    assert any(line.startswith("package.numpy: ") and line.endswith(" not there now") for line in lines)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("space", "../x", "no name of a space"),
        ("space", "a\x1bb", "its space has no name"),
        ("sets", [1], "its options are no texts"),
        ("device", "tpu", "it ran on 'tpu'"),
        ("stop", 3, "its rule of stopping is no text"),
        ("from", 3, "the network that it starts from has no name"),
        ("from", "x.safetensors", "the network that it starts from has no name"),  # and no hash
    ],
)
def test_a_crafted_bundle_is_one_line(
    stores: tuple[str, str, Path], tmp_path: Path, field: str, value: object, said: str
) -> None:
    file = read_bundle(stores[2])
    about = {**file.about, field: value}
    del about["members"], about["format"]
    (tmp_path / "x.zip").write_bytes(dump_bundle(about, file.members))
    with pytest.raises(StoreError, match=said) as caught:
        load_bundle(tmp_path / "x.zip")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{"runs": [1]}, {"runs": [{"params": []}]}, {}, {"runs": {"a": "b"}}])
def test_runs_of_another_form_are_one_line(
    stores: tuple[str, str, Path], tmp_path: Path, content: Mapping[str, Any]
) -> None:
    file = read_bundle(stores[2])
    about = {name: value for name, value in file.about.items() if name not in ("members", "format")}
    data = dump_bundle(about, {**file.members, bundle_file.RUNS: json.dumps(content).encode()})
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(StoreError, match="its runs cannot be read"):
        load_bundle(tmp_path / "x.zip")


def test_own_code_runs_where_it_is_at_hand_or_trusted_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / "research", tmp_path / "elsewhere"
    for place in (folder, elsewhere):
        place.mkdir()
    (folder / "mine.py").write_text(
        "def score(context):\n    return {n: w.double().abs() for n, w in context.weights.items()}\n"
    )
    (folder / "own.yaml").write_text(
        "axes: {model: ['mlp(widths=[8])'], dataset: ['digits(samples_per_class=20)'], amount: [50%],\n"
        "  criterion: ['./mine.py:score']}\ntrain: {epochs: 1}\n"
    )
    monkeypatch.chdir(folder)
    uri = default_uri(tmp_path)
    record_sweep(uri, tmp_path / "state", load_space("own.yaml"))
    write_bundle("own", uri=uri, out=tmp_path / "own.zip")
    assert load_bundle(tmp_path / "own.zip").own_names[0].startswith("mine.py@")

    monkeypatch.setattr(own_code, "_CODES", {})  # a process that has not seen the file
    monkeypatch.chdir(elsewhere)
    with pytest.raises(StoreError, match=r"there is no mine\.py in this folder; .* --trust-code"):
        load_bundle(tmp_path / "own.zip")
    with stored_code.trusting(True):
        bundle = load_bundle(tmp_path / "own.zip")
    space = bundled_space(bundle)
    assert space.axes.criterion == bundle.own_names
    assert again(tmp_path / "own.zip", uri).is_equal


def test_a_sweep_from_a_network_brings_the_network(
    stores: tuple[str, str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = default_uri(tmp_path / "first"), default_uri(tmp_path / "second")
    source = record_sweep(first, tmp_path / "state")
    space = with_source_model(
        load_space(NAME, (*SETS, "dataset=digits(classes=[0, 1, 2])")), source, uri=first
    )
    record_sweep(first, tmp_path / "state", space)
    write_bundle(NAME, uri=first, out=tmp_path / "x.zip")

    bundle = load_bundle(tmp_path / "x.zip")
    bundled = bundled_space(bundle).source_model
    assert bundled is not None
    assert space.source_model is not None
    assert (bundled.sha256, bundled.name) == (space.source_model.sha256, source)
    assert bundled.files == space.source_model.files
    record_sweep(second, tmp_path / "state", bundled_space(bundle))  # a store without the source's run
    comparison = again(tmp_path / "x.zip", second)
    assert comparison.is_equal
    assert comparison.runs == 3

    file = read_bundle(tmp_path / "x.zip")
    weights = bundle_file.SOURCE + "weights.safetensors"
    other = bytearray(file.members[weights])
    other[-1] ^= 1
    about = {name: value for name, value in file.about.items() if name not in ("members", "format")}
    (tmp_path / "other.zip").write_bytes(dump_bundle(about, {**file.members, weights: bytes(other)}))
    with pytest.raises(StoreError, match=r"weights\.safetensors") as caught:
        bundled_space(load_bundle(tmp_path / "other.zip"))
    assert "\n" not in str(caught.value)


def test_names_of_own_functions_get_the_pins_of_the_runs() -> None:
    text = "model: [./net.py:small, '/home/a/lab/net.py:large'], criterion: net.py:other"
    assert with_pins(text, [FIRST, SECOND]) == (f"model: [{FIRST}, '{SECOND}'], criterion: net.py:other")
    assert with_pins(FIRST, [FIRST]) == FIRST


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("", "was not recorded whole"),
        (f"orchestrate sweep --space {'x' * 4000}", "was not recorded whole"),
    ],
)
def test_sweeps_that_a_bundle_cannot_repeat_are_refused(command: str, said: str) -> None:
    run = RunRecord("r", "x", "FINISHED", {}, {}, {COMMAND: command}, "", 0, None)
    with pytest.raises(UsageError, match=said):
        read_request(run)


def test_the_options_that_decide_results_are_read_from_the_command() -> None:
    command = "orchestrate sweep --space x --set 'amount=0,0.5' --set seed=0 --device cuda --stop 'median()'"
    run = RunRecord("r", "x", "FINISHED", {}, {}, {COMMAND: command}, "", 0, None)
    assert read_request(run) == {
        "command": command,
        "sets": ["amount=0,0.5", "seed=0"],
        "device": "cuda",
        "precision": "fp32",
        "stop": "median()",
        "from": None,
    }
    transfer = RunRecord(
        "r", "x", "FINISHED", {}, {}, {COMMAND: f"{command} --from models:/a@b"}, "", 0, None
    )
    assert read_request(transfer)["from"] == "models:/a@b"
    fast = RunRecord(
        "r",
        "x",
        "FINISHED",
        {},
        {},
        {COMMAND: f"{command} --fast --compile --gpus-per-trial 0.25"},
        "",
        0,
        None,
    )
    assert {"fast": True, "compile": True, "gpus_per_trial": 0.25}.items() <= read_request(fast).items()


@pytest.mark.parametrize(("gain", "code"), [(0.0, 0), (0.25, 5)])
def test_the_command_exits_with_5_where_results_differ(
    stores: tuple[str, str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    gain: float,
    code: int,
) -> None:
    def change(runs: list[dict[str, Any]]) -> None:
        runs[0]["metrics"]["final/accuracy"] += gain

    path = changed(stores[2], tmp_path, change)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stores[1])
    monkeypatch.setattr(sys, "argv", ["orchestrate", "rerun", str(path)])
    with pytest.raises(SystemExit) as raised:
        cli.main()
    out, err = capsys.readouterr()
    assert raised.value.code == code, err
    assert out.startswith("differs: 1 of 3 runs" if code else "equal: 3 runs")
    assert ("error: the sweep of " in err) is bool(code)
