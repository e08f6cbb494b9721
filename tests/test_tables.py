"""Comparisons as tables of texts."""

from __future__ import annotations

from result_rows import frame, row

from orchestrator.comparing.tables import CAPTION, listed, markdown, pivoted, tables


def test_a_table_for_each_model_with_amounts_ascending() -> None:
    results = frame(
        row("weight", 0.9, accuracy=0.7),
        row("weight", 0.5, accuracy=0.9),
        row("neuron", 0.5, accuracy=0.8),
        row("weight", 0.5, accuracy=0.99, model="mlp"),
    )
    first, second = pivoted(results)
    assert [first.title, second.title] == [
        f"{model} on digits, batch 64: {CAPTION}" for model in ("slp", "mlp")
    ]
    assert first.header == ["amount", "weight", "neuron"]
    assert first.rows == [["50%", "90.0", "80.0"], ["90%", "70.0", ""]]
    assert (second.header, second.rows) == (["amount", "weight"], [["50%", "99.0"]])


def test_a_row_per_setting_with_what_it_costs() -> None:
    (table,) = listed(frame(row(amount=0.75, accuracy=0.9), row(amount=0.75, accuracy=0.8, seed=1)))
    assert dict(zip(table.header, table.rows[0], strict=True)) == {
        "method": "weight",
        "amount": "75%",
        "accuracy": "85.0 ± 63.5",
        "loss": "0.500",
        "sparsity": "75%",
        "MACs": "25%",
        "MACs cut": "100%",
        "parameters cut": "650",
        "epochs": "10",
        "GFLOPs": "3",
        "seeds": "2",
    }


def test_few_methods_at_the_same_amounts_are_set_side_by_side() -> None:
    side_by_side = frame(*(row(t, a) for t in ("weight", "neuron") for a in (0.5, 0.9)))
    assert tables(side_by_side) == pivoted(side_by_side)
    with_a_gap = frame(row("weight", 0.5), row("weight", 0.9), row("neuron", 0.9))
    assert tables(with_a_gap) == listed(with_a_gap)


def test_markdown_has_a_line_per_amount() -> None:
    text = markdown(tables(frame(row("weight", 0.5), row("weight", 0.925))))
    assert f"**slp on digits, batch 64: {CAPTION}**" in text
    assert "| amount | weight |\n| --- | --- |\n| 50% | 90.0 |\n| 92.5% | 90.0 |" in text
