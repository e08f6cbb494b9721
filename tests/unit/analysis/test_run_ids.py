"""The table that names the run behind each row, and how to export it."""

from __future__ import annotations

from result_rows import frame, row

from orchestrator.analysis.run_ids import HEADER, runs_table


def test_each_row_has_its_best_run_on_validation_images() -> None:
    rows = [row("weight", 0.5), row("weight", 0.5, seed=1), row("neuron", 0.5), row("neuron", 0.5, seed=1)]
    results = frame(*rows)
    results["run_id"] = ["a", "b", "c", "d"]
    results["final/accuracy"] = [0.9, 0.1, 0.1, 0.9]  # decides nothing
    results["final/val_accuracy"] = [0.5, 0.7, 0.7, 0.7]
    table = runs_table(results)
    assert table is not None
    assert table.title == "to export a row: slp on digits, batch 64"
    assert table.header == HEADER[1:]
    assert table.rows == [
        ["weight", "50%", "1", "70.0", "orchestrate export b"],
        ["neuron", "50%", "0", "70.0", "orchestrate export c"],
    ]


def test_several_networks_are_named_and_the_rest_is_counted() -> None:
    results = frame(row("weight", 0.5), row("weight", 0.9), row("weight", 0.5, model="mlp"))
    results["run_id"] = ["a", "b", "c"]
    table = runs_table(results, most_rows=2)
    assert table is not None
    assert table.header == HEADER
    assert [line[-1] for line in table.rows] == ["orchestrate export a", "orchestrate export b"]
    assert table.note.startswith("The first 2 of 3 rows. ")
    whole = runs_table(results)
    assert whole is not None
    assert [line[0] for line in whole.rows] == [f"{m} on digits, batch 64" for m in ("slp", "slp", "mlp")]
    results["status"] = "failed"
    assert runs_table(results) is None
