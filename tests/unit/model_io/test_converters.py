"""OpenVINO and LiteRT, where their converters are installed; and what is said where they are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recorded import Store

import orchestrator
from orchestrator.errors import ExportError, UsageError
from orchestrator.model_io import formats
from orchestrator.model_io.export import ExportOptions, export

CONVERTERS = {"openvino": "openvino", "tflite": "litert_torch"}


@pytest.mark.slow
@pytest.mark.parametrize("format", CONVERTERS)
@pytest.mark.parametrize("input", ["float32", "uint8"])
def test_a_converted_file_computes_what_the_network_computes(
    store: Store, tmp_path: Path, format: str, input: str
) -> None:
    pytest.importorskip(CONVERTERS[format])
    run_id, form = store.trial("cnn"), formats.FORMATS[format]
    done = export(run_id, format=format, input=input, out=tmp_path / f"net{form.ending}", uri=store.uri)
    names = {f"net{ending}" for ending in (form.ending, f"{form.ending}.json", *form.companions)}
    assert {path.name for path in tmp_path.iterdir()} == names
    net, _ = orchestrator.load(run_id, uri=store.uri)
    pixels = torch.randint(17, (5, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        expected = net(pixels.float() / 16)
    found = form.load(done.path)(pixels if input == "uint8" else pixels.float() / 16)
    assert torch.allclose(found, expected, atol=1e-4)
    assert done.metadata["input"]["shape"][0] == form.batch
    for ending in form.companions:
        part = done.path.with_suffix(ending)
        assert done.metadata["companions"][part.name]["bytes"] == part.stat().st_size


@pytest.mark.parametrize(("format", "extra"), [("openvino", "openvino"), ("tflite", "tflite")])
def test_a_missing_converter_is_named(monkeypatch: pytest.MonkeyPatch, format: str, extra: str) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == CONVERTERS[format] else object())
    line = rf"--format {format} needs {CONVERTERS[format]}, .*pip install 'pruning-orchestrator\[{extra}\]'"
    with pytest.raises(ExportError, match=line):
        ExportOptions(format).check()


def test_a_companion_is_neither_overwritten_nor_left(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a format of this test: one that writes a file beside its file."""
    tensors = formats.FORMATS["safetensors"]

    def write(net: torch.nn.Module, spec: formats.ModelSpec, path: Path) -> None:
        tensors.write(net, spec, path)
        path.with_suffix(".bin").write_bytes(b"weights")

    monkeypatch.setitem(formats.FORMATS, "safetensors", replace(tensors, write=write, companions=(".bin",)))
    done = export(store.dense("slp"), format="safetensors", out=tmp_path / "net.st", uri=store.uri)
    assert {path.name for path in tmp_path.iterdir()} == {"net.st", "net.bin", "net.st.json"}
    assert done.metadata["companions"]["net.bin"]["bytes"] == 7
    (tmp_path / "net.st").unlink()
    (tmp_path / "net.st.json").unlink()
    with pytest.raises(UsageError, match=r"net\.bin is there already"):
        export(store.dense("slp"), format="safetensors", out=tmp_path / "net.st", uri=store.uri)
