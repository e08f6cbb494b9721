"""The notebook of docs/ runs from its first cell to its last."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from whole_sweep import record_sweep

from orchestrator.space.space import load_space
from orchestrator.storage.uri import default_uri

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebooks" / "results.ipynb"
SPACE = """\
axes:
  model: ["mlp(widths=[16])", "mlp(widths=[8])"]
  dataset: [digits]
  technique: [weight, unstructured]
  amount: [50%, 90%]
train: {epochs: 1}
"""


@pytest.mark.long
def test_the_notebook_reads_results_and_draws_a_curve(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text(SPACE)
    space = load_space(str(tmp_path / "quickstart.yaml"))
    record_sweep(default_uri(tmp_path), tmp_path / "state", space)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    # The kernel listens on 127.0.0.1, which is jupyter's default: say so, whatever its configuration says.
    client = NotebookClient(notebook, timeout=300, resources=resources, kernel_name="python3")
    client.create_kernel_manager()
    assert client.km is not None
    client.km.ip = "127.0.0.1"
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    told = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "8 of 8 trials are finished" in told
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert int(outputs[-1]["data"]["text/plain"]) > 0  # the parameters of a network


def test_what_is_stored_of_it_is_small() -> None:
    assert os.path.getsize(NOTEBOOK) < 150_000
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr"]  # it names a folder
