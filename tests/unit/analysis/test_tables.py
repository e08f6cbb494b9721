"""Comparisons as tables of texts."""

from __future__ import annotations

from result_rows import frame, row

from orchestrator.analysis.paired import Baseline
from orchestrator.analysis.setting_means import ComparisonOptions
from orchestrator.analysis.tables import (
    comparison_tables,
    default_differences,
    markdown,
    pivot_tables,
    setting_tables,
    tables,
)

ONE_SEED = "test accuracy in %, one seed, without an interval"


def test_a_table_for_each_model_with_amounts_ascending() -> None:
    results = frame(
        row("weight", 0.9, accuracy=0.7),
        row("weight", 0.5, accuracy=0.9),
        row("neuron", 0.5, accuracy=0.8),
        row("weight", 0.5, accuracy=0.99, model="mlp"),
    )
    first, second = pivot_tables(results)
    assert [first.title, second.title] == [
        f"{model} on digits, batch 64: {ONE_SEED}" for model in ("slp", "mlp")
    ]
    assert first.header == ["amount", "weight", "neuron"]
    assert first.rows == [["dense", "95.0", "95.0"], ["50%", "90.0", "80.0"], ["90%", "70.0", ""]]
    assert (second.header, second.rows[1:]) == (["amount", "weight"], [["50%", "99.0"]])


def test_a_row_per_setting_with_what_it_costs() -> None:
    (table,) = setting_tables(frame(row(amount=0.75, accuracy=0.9), row(amount=0.75, accuracy=0.8, seed=1)))
    dense, pruned = table.rows
    assert dense == ["dense", "", "95.0 [95.0 to 95.0]", *[""] * 8, "2"]
    assert table.title.endswith("mean [lowest to highest] of two seeds")
    assert dict(zip(table.header, pruned, strict=True)) == {
        "method": "weight",
        "amount": "75%",
        "accuracy": "85.0 [80.0 to 90.0]",
        "loss": "0.500",
        "sparsity": "75%",
        "MACs": "25%",
        "MACs cut": "100%",
        "parameters cut": "650",
        "epochs": "10",
        "GFLOPs": "3",
        "effective GFLOPs": "1.5",
        "seeds": "2",
    }
    older = frame(row(amount=0.75)).drop(columns="final/train_flops_effective")
    assert setting_tables(older)[0].rows[1][-2] == ""


def test_one_amount_is_listed_with_its_costs() -> None:
    single = frame(row("weight", 0.5), row("neuron", 0.5))
    assert tables(single) == setting_tables(single)


def test_few_methods_at_the_same_amounts_are_set_side_by_side() -> None:
    side_by_side = frame(*(row(t, a) for t in ("weight", "neuron") for a in (0.5, 0.9)))
    assert tables(side_by_side) == pivot_tables(side_by_side)
    with_a_gap = frame(row("weight", 0.5), row("weight", 0.9), row("neuron", 0.9))
    assert tables(with_a_gap) == setting_tables(with_a_gap)


def test_markdown_has_a_line_per_amount() -> None:
    text = markdown(tables(frame(row("weight", 0.5), row("weight", 0.925))))
    assert f"**slp on digits, batch 64: {ONE_SEED}**" in text
    assert "| amount | weight |\n| --- | --- |\n| dense | 95.0 |\n| 50% | 90.0 |\n| 92.5% | 90.0 |" in text


def test_trials_at_chance_and_empty_layers_are_marked_in_every_table() -> None:
    rows = [
        row(t, a, s, at_chance=False, empty_layers=False) for t in "ab" for a in (0.5, 0.9) for s in (0, 1)
    ]
    rows[0] |= {"at_chance": True}
    rows[-1] |= {"empty_layers": True}
    few, many = pivot_tables(frame(*rows))[0], setting_tables(frame(*rows))[0]
    assert [cell[-1] for cell in (few.rows[1][1], few.rows[2][2])] == ["†", "‡"]
    assert [line[2][-1] for line in many.rows] == ["]", "†", "]", "]", "‡"]
    for table in (few, many):
        assert "† at chance on validation images" in table.note
        assert "‡ a layer without a living weight" in table.note
    assert pivot_tables(frame(row()))[0].note == ""


def test_a_mean_of_survivors_is_marked() -> None:
    rows = [row(amount=a, seed=s) for a in (0.5, 0.9) for s in (0, 1, 2)]
    rows[1] |= {"status": "stopped"}
    (table,) = pivot_tables(frame(*rows))
    assert [line[1] for line in table.rows[1:]] == ["90.0 [90.0 to 90.0]§", "90.0 ± 0.0"]
    assert "survivors" in table.note


def test_amount_0_with_a_recovery_says_that_it_was_trained_on_and_dense_stands_beside_it() -> None:
    rows = [row(amount=a, accuracy=v, recover="finetune") for a, v in ((0.0, 0.97), (0.5, 0.9))]
    (table,) = pivot_tables(frame(*rows))
    assert table.rows == [["dense", "95.0"], ["0% (trained on)", "97.0"], ["50%", "90.0"]]
    (plain,) = pivot_tables(frame(*(row(amount=a, recover="none") for a in (0.0, 0.5))))
    assert [line[0] for line in plain.rows] == ["0%", "50%"]


def test_the_ceiling_of_an_adaptive_schedule_is_no_amount() -> None:
    rows = [row(amount=a, schedule="pq_index(rounds=5)") for a in (0.9, 1.0)]
    (table,) = setting_tables(frame(*rows))
    assert [line[1] for line in table.rows[1:]] == ["by pq_index, at most 90%", "by pq_index"]
    (planned,) = setting_tables(frame(row(amount=0.9, amount_text="by threshold")))
    assert planned.rows[1][1] == "by threshold"


def test_paired_differences_say_how_many_they_are_and_what_survives() -> None:
    rows = [
        row(t, a, s, 0.9 - shift - 0.001 * s * s * shift * 10)
        for t, shift in (("weight", 0.0), ("neuron", 0.1))
        for a in (0.5, 0.9)
        for s in range(4)
    ]
    (table,) = default_differences(frame(*rows))
    assert table.header[-2:] == ["pairs", "p, Holm"]
    assert [line[-1] for line in table.rows] == ["<0.001 *", "<0.001 *"]
    assert "2 comparisons: by their own 95% intervals 2 of them are not 0, after Holm's" in table.note


def test_a_dense_network_at_chance_is_marked() -> None:
    rows = [row(t, a, s, dense_at_chance=s == 0) for t in "ab" for a in (0.5, 0.9) for s in (0, 1)]
    few, many = pivot_tables(frame(*rows))[0], setting_tables(frame(*rows))[0]
    assert few.rows[0] == ["dense", *["95.0 [95.0 to 95.0]†"] * 2]
    assert [line[2][-1] for line in many.rows] == ["†", *"]]]]"]
    for table in (few, many):
        assert "† at chance on validation images" in table.note
    assert "†" not in pivot_tables(frame(row(dense_at_chance=False)))[0].rows[0][1]


def test_settings_that_were_stopped_at_every_seed_are_named_below_the_table() -> None:
    rows = [row(t, 0.5, s) for t in ("weight", "neuron") for s in (0, 1)]
    rows[1] |= {"status": "stopped"}  # its other seed has finished: marked in the table
    rows += [row("random", a, s, status="stopped") for a in (0.5, 0.9) for s in (0, 1)]
    rows += [row("snip", 0.5, 0, status="stopped"), row("snip", 0.5, 1, status="failed")]
    rows += [row("synflow", 0.5, 0, status="stopped"), row("synflow", 0.5, 1, status="missing")]
    *_, last = tables(frame(*rows))
    assert (
        "Stopped at every seed, and so in no table: random at 50% (2 seeds); random at 90% (2 seeds); "
        "snip at 50% (1 seed, 1 more failed)."
    ) in last.note
    assert "synflow" not in last.note
    (nothing,) = tables(frame(row("random", 0.5, 0, status="stopped")))
    assert (nothing.rows, "random at 50% (1 seed)" in nothing.note) == ([], True)
    assert tables(frame(row(status="missing"))) == []


def test_settings_that_lack_a_seed_share_the_one_row_of_the_dense_networks() -> None:
    rows = [row(t, 0.5, s, dense_key=f"d{s}") for t in ("weight", "neuron") for s in range(3)]
    rows[4] |= {"status": "stopped"}
    (table,) = setting_tables(frame(*rows))
    assert [(line[0], line[-1]) for line in table.rows] == [("dense", "3"), ("weight", "3"), ("neuron", "2")]
    # Of two recipes each seed has two dense networks, each set with its own mean.
    for number, one in enumerate(rows):
        one |= {"dense_key": f"d{one['technique']}{one['seed']}", "ipa/accuracy": 0.9 + (number > 2) / 100}
    (table,) = setting_tables(frame(*rows))
    assert [line[0] for line in table.rows] == ["dense", "weight", "dense", "neuron"]


def test_what_is_asked_for_is_alone() -> None:
    costs = {"ipa/macs_effective": 640.0, "ipa/val_accuracy": 0.0, "dense_key": "k"}
    results = frame(
        *(row(t, a, s, **costs) for t in ("weight", "neuron") for a in (0.5, 0.9) for s in (0, 1))
    )
    weight = Baseline("technique=weight", {"technique": "weight"})

    def titles(**options: object) -> list[str]:
        shown = comparison_tables(results, ComparisonOptions(**options))  # type: ignore[arg-type]
        return [table.title.partition(" ")[0] for table in shown]

    assert titles() == ["slp", "highest"]
    assert titles(cost="macs") == ["Pareto"]
    assert titles(baseline=weight) == ["difference"]
    assert titles(tolerance=0.05) == ["highest"]
    assert titles(tolerance=0.05, baseline=weight, cost="macs") == ["highest", "difference", "Pareto"]
