"""The notebooks of docs/ run from their first cell to their last."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from whole_sweep import record_sweep

from orchestrator.space.space import load_space
from orchestrator.storage.uri import default_uri

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "docs" / "notebooks"
SPACE = """\
axes:
  model: ["mlp(widths=[16])", "mlp(widths=[8])"]
  dataset: [digits]
  technique: [weight, unstructured]
  amount: [50%, 90%]
train: {epochs: 1}
"""


def outputs_of(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def run(name: str, folder: Path) -> tuple[str, list[NotebookNode]]:
    """Run a notebook in a folder, and return what it printed and all of its outputs."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    # The kernel listens on 127.0.0.1, which is jupyter's default: say so, whatever its configuration says.
    client = NotebookClient(notebook, timeout=300, resources=resources, kernel_name="python3")
    client.create_kernel_manager()
    assert client.km is not None
    client.km.ip = "127.0.0.1"
    client.execute()
    outputs = outputs_of(notebook)
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    return "".join(output.text for output in outputs if output.output_type == "stream"), outputs


@pytest.mark.long
def test_the_notebook_reads_results_and_draws_a_curve(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text(SPACE)
    space = load_space(str(tmp_path / "quickstart.yaml"))
    record_sweep(default_uri(tmp_path), tmp_path / "state", space)
    printed, outputs = run("results.ipynb", tmp_path)
    assert "8 of 8 trials are finished" in printed
    assert int(outputs[-1]["data"]["text/plain"]) > 0  # the parameters of a network


@pytest.mark.long
def test_a_notebook_goes_from_a_network_to_a_figure(tmp_path: Path) -> None:
    printed, outputs = run("own_network.ipynb", tmp_path)
    assert "own: 30 trials, 33 runs made, 0 trials reused" in printed
    assert outputs[-1]["data"]["text/plain"].startswith("Sequential(")
    assert (tmp_path / "own.pdf").stat().st_size > 5000


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_what_is_stored_of_it_is_small(path: Path) -> None:
    assert os.path.getsize(path) < 150_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    outputs = outputs_of(notebook)
    assert outputs
    assert not [output for output in outputs if output.get("name") == "stderr"]  # it names a folder
