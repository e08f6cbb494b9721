"""A complete folder: what is in it is true, runs by itself, and is there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from recorded import Store
from scipy.stats import binomtest

import orchestrator
from orchestrator.data.loading import load_dataset
from orchestrator.errors import DataError, ExportError, StoreError, UsageError
from orchestrator.model_io.export import ExportOptions
from orchestrator.shipping import folder as shipping
from orchestrator.shipping.evaluation import wilson_interval
from orchestrator.shipping.folder import ship
from orchestrator.shipping.runners import RUNNERS
from orchestrator.tracking import MetricPoint

PT2 = ExportOptions("pt2")


@pytest.mark.parametrize(("hits", "count"), [(0, 5), (5, 5), (349, 360), (1, 2), (500, 1000)])
def test_the_interval_is_scipys(hits: int, count: int) -> None:
    expected = binomtest(hits, count).proportion_ci(method="wilson")
    assert wilson_interval(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        PT2,
        ExportOptions("pt2", input="uint8", output="probabilities"),
        ExportOptions("pt2", scaling=False),
        ExportOptions("safetensors"),
        pytest.param(ExportOptions("onnx", input="uint8"), marks=pytest.mark.slow),
    ],
)
def test_a_folder_has_all_that_it_takes(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: ExportOptions,
) -> None:
    run_id, out, digits = store.trial("mlp"), tmp_path / "new" / "reader", load_dataset("digits")
    done = ship(run_id, options, out=out, uri=store.uri)
    name = done.file.path.name
    assert {path.name for path in out.iterdir()} == {*done.names}
    assert {*done.names} == {name, f"{name}.json", "README.md", "check.py", "sample.npy", "sample.png"}
    assert sorted(os.listdir(tmp_path)) == ["new"]
    assert out.stat().st_mode & 0o055 == 0o055  # for others to read, as any new folder

    about = json.loads((out / f"{name}.json").read_text())
    assert about["sha256"] == hashlib.sha256((out / name).read_bytes()).hexdigest()
    net, _ = orchestrator.load(run_id, uri=store.uri)
    with torch.no_grad():
        predicted = net(digits.test.images[:]).argmax(1)
    is_right = predicted == digits.test.labels
    assert about["test"]["accuracy"] == float(is_right.double().mean()) == about["accuracy"]
    for label in range(10):
        of_class = is_right[digits.test.labels == label]
        found = about["test"]["by_class"][str(label)]
        assert found == {"accuracy": float(of_class.double().mean()), "images": len(of_class)}
    assert about["data_digest"] == digits.digest
    sample = about["sample"]
    assert sample["test_image"] == int(is_right.nonzero()[0])
    assert sample["class"] == sample["predicted"] == int(digits.test.labels[sample["test_image"]])
    assert np.load(out / "sample.npy").dtype == about["input"]["type"]

    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(out / "check.py"), run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"class: {sample['class_name']}"
    assert printed[1] == f"true class: {sample['class_name']} (test image {sample['test_image']})"
    assert printed[-1] == "ok"

    card = (out / "README.md").read_text()
    (code,) = re.findall("```python\n(.*?)\n```", card, re.DOTALL)
    assert len(code.splitlines()) == 5
    monkeypatch.chdir(out)
    exec(code, {})
    assert capsys.readouterr().out.strip() == sample["class_name"]
    for title in ("Run it", "Accuracy", "Size and speed", "Data", "Recipe", "Limits", "Licence", "Files"):
        assert f"\n## {title}\n" in card
    low, high = about["test"]["interval"]
    assert (
        f"{about['test']['accuracy']:.2%} ({low:.2%} to {high:.2%}, 95% interval) on 360 test images" in card
    )
    for text in (run_id, digits.digest, "finetune(epochs=1)", f"{about['network']['macs']:,}", "| 7 | "):
        assert text in card
    assert str(tmp_path) not in card


def test_a_file_that_differs_is_noticed(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = ship(store.trial("mlp"), PT2, out=tmp_path / "a", uri=store.uri)
    described = tmp_path / "a" / f"{done.file.path.name}.json"
    about = json.loads(described.read_text())
    for place, value in (("predicted", (about["sample"]["predicted"] + 1) % 10), ("output", [0.0] * 10)):
        described.write_text(json.dumps({**about, "sample": {**about["sample"], place: value}}))
        with pytest.raises(SystemExit, match="something else than where it was exported"):
            runpy.run_path(str(tmp_path / "a" / "check.py"), run_name="__main__")
    (tmp_path / "a" / "net.bin").write_bytes(b"a part")
    parts = {"net.bin": {"bytes": 6, "sha256": hashlib.sha256(b"a part").hexdigest()}}
    described.write_text(json.dumps({**about, "companions": parts}))
    runpy.run_path(str(tmp_path / "a" / "check.py"), run_name="__main__")
    (tmp_path / "a" / "net.bin").write_bytes(b"another")
    with pytest.raises(SystemExit, match=r"net\.bin is not the file that was exported"):
        runpy.run_path(str(tmp_path / "a" / "check.py"), run_name="__main__")
    done.file.path.write_bytes(done.file.path.read_bytes() + b" ")
    with pytest.raises(SystemExit, match="its SHA-256 differs"):
        runpy.run_path(str(tmp_path / "a" / "check.py"), run_name="__main__")


def test_a_latency_that_was_measured_is_on_the_card(store: Store, tmp_path: Path) -> None:
    run_id = store.dense("mlp")
    ship(run_id, PT2, out=tmp_path / "a", uri=store.uri)
    assert "| latency | not measured |" in (tmp_path / "a" / "README.md").read_text()
    tag = {"1": {"machine": "Some CPU", "doubts": ["A/A is 1.30"]}}
    run = store.tracker.attach(store.row(run_id))
    run.log(metrics=[MetricPoint("final/latency_ms_p50", 0.125)], tags={"latency": json.dumps(tag)})
    ship(run_id, PT2, out=tmp_path / "b", uri=store.uri)
    line = "| latency of one image, in torch | 0.125 ms on Some CPU; not reliable: A/A is 1.30 |"
    assert line in (tmp_path / "b" / "README.md").read_text()


def test_where_it_goes(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_id = store.dense("slp")
    done = ship(run_id, PT2, uri=store.uri)
    stem = f"dense-slp-{run_id[:8]}"
    assert done.file.path == tmp_path / stem / f"{stem}.pt2"
    assert (tmp_path / stem / "README.md").exists()
    # A folder that has something already gets the file alone, and the command says so.
    again = ship(run_id, ExportOptions("safetensors"), uri=store.uri)
    assert again.file.path == tmp_path / stem / f"{stem}.safetensors"
    assert "has files already" in list(again.lines())[-1]
    with pytest.raises(UsageError, match=rf"{stem}.pt2 is there already"):
        ship(run_id, PT2, uri=store.uri)
    with pytest.raises(UsageError, match="has the network of another run; name another folder with --out"):
        ship(store.trial("slp", "weight", "none"), PT2, out=tmp_path / stem, uri=store.uri)
    (tmp_path / "empty").mkdir()
    assert ship(run_id, PT2, out=tmp_path / "empty", uri=store.uri).names
    assert (tmp_path / "empty" / "check.py").exists()
    # An ending makes it a file, in folders that are made; a version's number is none.
    alone = ship(run_id, PT2, out=tmp_path / "x" / "y" / "net.pt2", uri=store.uri)
    assert sorted(os.listdir(tmp_path / "x" / "y")) == ["net.pt2", "net.pt2.json"]
    assert alone.accuracy is None
    assert ship(run_id, PT2, out=tmp_path / "v1.2", uri=store.uri).file.path.parent == tmp_path / "v1.2"


@pytest.mark.parametrize("step", ["evaluate_file", "write_sample", "check_script", "move_folder"])
def test_a_failure_leaves_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shipping, step, fail)
    with pytest.raises(ExportError, match="cannot be written: no room is left"):
        ship(store.dense("slp"), PT2, out=tmp_path / "a" / "b", uri=store.uri)
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_is_one_line(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id, nowhere = store.dense("slp"), "sqlite:////nowhere/x.db"
    (tmp_path / "net.pt2").write_text("")
    with pytest.raises(UsageError, match="unknown format 'onx'"):  # before the store is opened
        ship(run_id, ExportOptions("onx"), uri=nowhere)
    with pytest.raises(UsageError, match="--within goes with --best"):
        ship(run_id, PT2, within=0.01, uri=nowhere)
    with pytest.raises(UsageError, match=r"net\.pt2 is there already"):
        ship(run_id, PT2, out=tmp_path / "net.pt2", uri=nowhere)
    with pytest.raises(StoreError, match="is a dense, not a sweep"):
        ship(run_id, PT2, best=True, uri=store.uri)
    with pytest.raises(
        UsageError, match="recorded is a sweep, and one of its runs is exported: --best chooses it"
    ):
        ship("recorded", PT2, uri=store.uri)
    with pytest.raises(UsageError, match="names no data set, and a model card and a sample need one; --out"):
        ship(str(store.model(run_id)), PT2, out=tmp_path / "a", uri=store.uri)

    def missing(*_: object) -> None:
        raise DataError("digits.csv is missing")

    monkeypatch.setattr(shipping, "recorded_data", missing)
    with pytest.raises(
        DataError, match=r"is missing; --out .*pt2 --no-scaling writes the bare network alone"
    ):
        ship(run_id, PT2, out=tmp_path / "a", uri=store.uri)
    assert sorted(os.listdir(tmp_path)) == ["net.pt2"]


def test_other_data_than_those_of_the_run_are_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = load_dataset("digits", samples_per_class=3)
    monkeypatch.setattr(shipping, "recorded_data", lambda *_: other)
    with pytest.raises(DataError, match=r"is not the data that .* was measured on"):
        ship(store.dense("slp"), PT2, out=tmp_path / "a", uri=store.uri)
    assert list(tmp_path.iterdir()) == []


def test_every_format_can_be_run_by_its_users() -> None:
    from orchestrator.model_io.formats import FORMATS

    assert RUNNERS.keys() == FORMATS.keys()
    assert RUNNERS["onnx"].packages == ("onnxruntime", "numpy")
    assert all(math.prod(map(len, runner.packages)) for runner in RUNNERS.values())
