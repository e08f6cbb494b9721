"""Live exploits: files that make a folder when they are unpickled, put wherever a network is looked for.

Each is first shown to work by the loader that it was made for; then that nothing here falls for it.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import logging
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
import torch
from recorded import Store

import orchestrator
from orchestrator.errors import StoreError
from orchestrator.model_io.formats import load_safetensors

ROOT = Path(__file__).parents[3]


class Exploit:
    """Pickled, an order to make a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture(autouse=True)
def _own_default(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MLflow's own store for what names none, forgotten at the end."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield
    mlflow.set_tracking_uri(None)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "exploited"


def by_pickle(marker: Path) -> bytes:
    data = pickle.dumps(Exploit(marker))
    pickle.loads(data)
    marker.rmdir()  # it is live
    return data


def by_torch(marker: Path) -> bytes:
    file = io.BytesIO()
    torch.save(Exploit(marker), file)
    torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    marker.rmdir()
    return file.getvalue()


def by_program(marker: Path) -> bytes:
    """An exported program whose example inputs are the exploit."""
    whole, bad = io.BytesIO(), io.BytesIO()
    program = torch.export.export(torch.nn.Linear(64, 10), (torch.zeros(2, 64),))
    torch.export.save(program, whole)
    inside = io.BytesIO()
    torch.save(Exploit(marker), inside)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(bad, "w") as new:
        for name in old.namelist():
            evil = name.endswith("sample_inputs/model.pt")
            new.writestr(name, inside.getvalue() if evil else old.read(name))
    logging.getLogger("torch._export.serde.serialize").disabled = True  # its warning of this is misformed
    with pytest.raises(AssertionError):  # after the fact: what came out is no tuple
        torch.export.load(io.BytesIO(bad.getvalue()))
    marker.rmdir()
    return bad.getvalue()


MADE = [by_pickle, by_torch, by_program]


@pytest.mark.parametrize("make", MADE)
@pytest.mark.parametrize("name", ["weights.safetensors", "masks.safetensors", "arch.json", "manifest.json"])
def test_an_exploit_in_the_place_of_a_file_is_refused(
    store: Store, tmp_path: Path, marker: Path, make: Callable[[Path], bytes], name: str
) -> None:
    folder = shutil.copytree(store.model(store.trial("mlp")), tmp_path / "copy")
    content = make(marker)
    (folder / name).write_bytes(content)
    if name != "manifest.json":
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    sha256 = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    with pytest.raises(StoreError) as caught:
        orchestrator.load(folder, manifest_sha256=sha256)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize("make", MADE)
@pytest.mark.parametrize("name", ["model.pth", "model.pt2", "data.pkl", "__init__.py"])
def test_an_exploit_beside_the_files_is_refused(
    store: Store, marker: Path, make: Callable[[Path], bytes], name: str
) -> None:
    run_id = store.trial("mlp")
    path = store.model(run_id) / name
    path.write_bytes(make(marker))
    with pytest.raises(StoreError, match=f"holds '{name}'"):
        orchestrator.load(run_id, uri=store.uri)
    path.unlink()
    assert not marker.exists()


@pytest.mark.parametrize("make", MADE)
def test_an_exploit_as_an_export_is_refused(
    tmp_path: Path, marker: Path, make: Callable[[Path], bytes]
) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(make(marker))
    with pytest.raises(StoreError):
        load_safetensors(path)
    assert not marker.exists()


FILES = {"model.pth": by_torch, "model.pt2": by_program}


def registered(store: Store, folder: Path, *, forged: bool) -> str:
    """MLflow's own model behind models:/, with tags as `orchestrate register` sets them, or without."""
    client, run_id = store.tracker.client, store.trial("mlp")
    name = folder.name
    model = client.create_logged_model(client.get_run(run_id).info.experiment_id, name, run_id)
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    client.create_registered_model(name)
    mlflow.set_tracking_uri(store.uri)
    tags = {"manifest_sha256": store.row(run_id).tags["manifest_sha256"]} if forged else {}
    client.create_model_version(name, f"models:/{model.model_id}", run_id, tags, model_id=model.model_id)
    return f"models:/{name}/1"


@pytest.mark.slow
@pytest.mark.parametrize("forged", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_an_exploit_as_a_registered_model_is_refused(
    store: Store, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch, name: str, forged: bool
) -> None:
    folder = tmp_path / f"{name.replace('.', '-')}-{forged}"
    (folder / "data").mkdir(parents=True)
    flavors = "flavors:\n  pytorch: {model_data: data, pytorch_version: 2.13.0}\n  python_function:\n"
    loader = "    {loader_module: mlflow.pytorch, data: data, model_config: {device: null}}\n"
    (folder / "MLmodel").write_text(flavors + loader)
    (folder / "data" / name).write_bytes(FILES[name](marker))
    (folder / "data" / "pickle_module_info.txt").write_text("pickle")
    uri = registered(store, folder, forged=forged)

    with pytest.raises(StoreError) as caught:
        orchestrator.load(uri, uri=store.uri)
    assert "\n" not in str(caught.value)
    assert not marker.exists()

    # And MLflow's own loader is told to refuse, in every process that imports the store's module.
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert os.environ["MLFLOW_ALLOW_MODEL_CODE_EXECUTION"] == "false"
    with pytest.raises(mlflow.MlflowException, match="disallowed"):
        mlflow.pyfunc.load_model(uri)
    assert not marker.exists()
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    with pytest.raises((mlflow.MlflowException, AssertionError, TypeError, AttributeError)):
        mlflow.pyfunc.load_model(uri)
    assert marker.exists()  # or there would have been nothing to refuse


def test_nothing_here_calls_a_loader_that_can_run_code() -> None:
    """Only what this process has just written is opened as a program; a .pth is read as data."""
    allowed = {("orchestrator/model_io/formats.py", "torch.export.load")}
    # The sizes of an .npz and of EMNIST's archive are looked at before numpy and torchvision read them.
    allowed |= {
        (f"orchestrator/data/sources/{name}.py", "zipfile.ZipFile")
        for name in ("array_files", "torchvision_arrays")
    }
    # The number of a bundle's files is looked at before, and each is read up to its limit.
    allowed |= {("orchestrator/storage/bundle_file.py", "zipfile.ZipFile")}
    loaders = {"torch.load", "torch.export.load", "torch.jit.load", "pickle.load", "pickle.loads"}
    loaders |= {"pickle.Unpickler", "zipfile.ZipFile"}
    found = set()
    for package in ("orchestrator", "models", "pruning"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
                is_own = name == "model_files.load_model"
                if name in loaders or (name.endswith((".load_model", ".load_state")) and not is_own):
                    found.add((path.relative_to(ROOT).as_posix(), name))
    assert found == allowed
