"""Registered networks: whole in themselves, found by name, in a store here or behind a server."""

from __future__ import annotations

import os
from pathlib import Path

import mlflow
import pytest
import torch
from recorded import Store
from server import Server

import orchestrator
from orchestrator.errors import StoreError, UsageError
from orchestrator.model_io.register import register

needs_time = pytest.mark.slow  # MLflow's pytorch module alone takes 3 s to import


@pytest.fixture(scope="module")
def behind_a_server(server: Server) -> Store:
    """The same behind `mlflow server --serve-artifacts`: nothing of its disk is used."""
    return Store(server.folder, server.uri)


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, yours = one.state_dict(), other.state_dict()
    return mine.keys() == yours.keys() and all(torch.equal(mine[name], yours[name]) for name in mine)


@needs_time
@pytest.mark.parametrize("place", ["store", pytest.param("behind_a_server", id="server")])
@pytest.mark.parametrize(("granularity", "recover"), [("channel", "finetune(epochs=1)"), ("weight", "none")])
def test_a_registered_network_comes_back_and_is_whole_in_itself(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    granularity: str,
    recover: str,
) -> None:
    store: Store = request.getfixturevalue(place)
    monkeypatch.chdir(tmp_path)
    run_id, name = store.trial("cnn", granularity, recover), f"digits-{granularity}"
    done = register(run_id, name=name, alias="champion", uri=store.uri)
    assert (done.version, done.comparison is not None) == ("1", True)
    assert list(tmp_path.iterdir()) == []  # no store of MLflow's own beside
    assert "MLFLOW_TRACKING_URI" not in os.environ

    net, record = orchestrator.load(run_id, uri=store.uri)
    for source in (f"models:/{name}@champion", f"models:/{name}/1"):
        again, found = orchestrator.load(source, uri=store.uri, strict=True)
        assert equal(net, again)
        assert (found.run_id, found.accuracy) == (run_id, record.accuracy)
        assert found.verified
    version = store.tracker.client.get_model_version(name, "1")
    assert version.tags["accuracy"] == repr(record.accuracy)
    assert float(version.tags["sparsity"]) == record.metrics["final/sparsity"]
    assert int(version.tags["macs"]) == record.metrics["final/macs_physical"]
    assert version.tags["run_id"] == version.run_id == run_id
    assert "accuracy" in version.description

    repeated = register(f"runs:/{run_id}", name=name, alias="best", uri=store.uri)
    assert (repeated.version, repeated.comparison) == ("1", None)
    assert orchestrator.load(f"models:/{name}@best", uri=store.uri)[1].run_id == run_id

    # Its run and the dense run may go.
    runs = (run_id, store.dense("cnn"))
    for gone in runs:
        store.tracker.client.delete_run(gone)
    again, found = orchestrator.load(f"models:/{name}@champion", uri=store.uri, strict=True)
    assert equal(net, again)
    for gone in runs:
        store.tracker.client.restore_run(gone)


@needs_time
def test_mlflow_itself_runs_what_was_registered(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = store.trial("mlp", "unit")
    register(run_id, name="served", uri=store.uri)
    net, _ = orchestrator.load(run_id, uri=store.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    model = mlflow.pyfunc.load_model("models:/served/1")
    for size in (1, 3):
        images = torch.rand(size, 1, 8, 8)
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(model.predict(images.numpy())), net(images), atol=1e-5)


@needs_time
def test_what_is_not_there_is_named(store: Store) -> None:
    register(store.dense("slp"), name="digits-slp", alias="best", uri=store.uri)
    for source, match in [
        ("models:/digits-slp/7", "digits-slp: unknown version or alias '7'; known: 1, best"),
        ("models:/digits-slp@bst", "did you mean best"),
        ("models:/digit-slp@best", "unknown registered model 'digit-slp'; did you mean digits-slp"),
    ]:
        with pytest.raises(StoreError, match=match):
            orchestrator.load(source, uri=store.uri)


@needs_time
def test_a_changed_file_of_a_registered_model_is_refused(store: Store) -> None:
    register(store.trial("slp", "weight"), name="changed", uri=store.uri)
    location = store.tracker.client.get_model_version_download_uri("changed", "1")
    path = Path(location.removeprefix("file://")) / "network" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(StoreError, match=r"weights\.safetensors is not as it was written"):
        orchestrator.load("models:/changed/1", uri=store.uri)


@needs_time
def test_changed_artifacts_behind_a_server_are_refused(behind_a_server: Store) -> None:
    server = behind_a_server
    run_id = server.trial("mlp", "weight")
    orchestrator.load(run_id, uri=server.uri, strict=True)
    (model,) = (server.folder / "artifacts").rglob(f"{run_id}/artifacts/model")
    (model / "model.pth").write_bytes(b"pickle")
    with pytest.raises(StoreError, match=r"holds 'model\.pth'"):
        orchestrator.load(run_id, uri=server.uri)
    (model / "model.pth").unlink()
    (model / "more").mkdir()
    (model / "more" / "file").touch()
    with pytest.raises(StoreError, match="no plain file"):
        orchestrator.load(run_id, uri=server.uri)
    (model / "more" / "file").unlink()
    (model / "more").rmdir()
    weights = (model / "weights.safetensors").read_bytes()
    (model / "weights.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(StoreError, match="not as it was written"):
        orchestrator.load(run_id, uri=server.uri)
    (model / "weights.safetensors").unlink()
    with pytest.raises(StoreError, match=r"weights\.safetensors is not there"):
        orchestrator.load(run_id, uri=server.uri)


@pytest.mark.parametrize("name", ["", "a/b", "a@b", "a:1", "../x", "-a", "a b", "é", "a" * 101, "a\n"])
def test_a_name_that_cannot_be_is_refused_before_the_store_is_asked(name: str) -> None:
    with pytest.raises(UsageError, match="--name"):
        register("0" * 32, name=name, uri="sqlite:////nowhere/x.db")


@pytest.mark.parametrize("alias", ["", "1", "v1", "V22", "latest", "Latest", "a/b", "a@b", "a b", "x" * 101])
def test_an_alias_that_cannot_be_is_refused_before_the_store_is_asked(alias: str) -> None:
    with pytest.raises(UsageError, match="--alias"):
        register("0" * 32, name="good", alias=alias, uri="sqlite:////nowhere/x.db")


def test_a_folder_and_a_run_that_is_not_there_are_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        register(str(store.model(store.dense("slp"))), name="x", uri=store.uri)
    with pytest.raises(StoreError, match="no run"):
        register("0" * 32, name="x", uri=store.uri)
