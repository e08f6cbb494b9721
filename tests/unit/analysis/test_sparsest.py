"""The highest sparsity within a tolerance of dense, worked by hand."""

from __future__ import annotations

import pytest
from result_rows import Row, frame, row

from orchestrator.analysis.setting_means import sparsest
from orchestrator.analysis.tables import sparsest_table


def trial(amount: float, seed: int, *, val: float, dense: float, test: float = 0.9) -> Row:
    values = {"final/val_accuracy": val, "ipa/val_accuracy": dense, "ipa/accuracy": 0.96}
    return row("weight", amount, seed, test, **values, **{"final/compression": 1 / (1 - amount)})


# Seed 0 keeps within a point up to 80%, though 70% does not; seed 1 up to 50%; seed 2 never.
RESULTS = frame(
    trial(0.5, 0, val=0.95, dense=0.95),
    trial(0.7, 0, val=0.93, dense=0.95),
    trial(0.8, 0, val=0.94, dense=0.95, test=0.92),
    trial(0.9, 0, val=0.9399, dense=0.95),
    trial(0.5, 1, val=0.97, dense=0.98, test=0.94),
    trial(0.7, 1, val=0.96, dense=0.98),
    trial(0.5, 2, val=0.80, dense=0.90),
)


def test_each_seed_is_held_against_its_own_dense_network() -> None:
    (found,) = sparsest(RESULTS, tolerance=0.01)
    assert (found.seeds, found.seeds_within) == (3, 2)
    assert found.sparsity is not None
    assert found.accuracy is not None
    assert found.loss is not None
    # Seed 2 has none, and counts as the dense network: sparsity 0, compression 1, test accuracy 0.96.
    assert found.compression is not None
    assert found.sparsity.mean == pytest.approx((0.8 + 0.5 + 0) / 3)
    assert found.compression.mean == pytest.approx((5 + 2 + 1) / 3)
    # Chosen by validation, told by test accuracy, the loss against the same seed's dense network.
    assert found.accuracy.mean == pytest.approx((0.92 + 0.94 + 0.96) / 3)
    assert found.loss.mean == pytest.approx((0.04 + 0.02 + 0) / 3)


def test_rounds_count_and_not_only_the_ends_of_trials() -> None:
    # A lottery ticket: 83% at 93.9 on the way, 90% at 80.0 in the end; its dense network has 90.0.
    ticket = trial(0.9, 0, val=0.80, dense=0.90)
    (end,) = sparsest(frame(ticket), tolerance=0.01)
    assert (end.seeds_within, end.sparsity) == (0, None)
    way = [
        ticket | {"final/val_accuracy": val, "final/sparsity": sparsity, "final/accuracy": test}
        for sparsity, val, test in ((0.5, 0.95, 0.96), (0.83, 0.939, 0.93))
    ]
    (found,) = sparsest(frame(ticket), tolerance=0.01, earlier=frame(*way))
    assert found.sparsity is not None
    assert found.accuracy is not None
    assert (found.seeds_within, found.sparsity.mean, found.accuracy.mean) == (1, 0.83, 0.93)


def test_rounds_of_another_method_do_not_count() -> None:
    rows = [trial(0.9, 0, val=0.5, dense=0.9), trial(0.9, 0, val=0.5, dense=0.9) | {"technique": "neuron"}]
    other = rows[1] | {"final/val_accuracy": 0.9, "final/sparsity": 0.4}
    weight, neuron = sparsest(frame(*rows), tolerance=0.01, earlier=frame(other))
    assert (weight.seeds_within, neuron.seeds_within) == (0, 1)


def test_a_wider_and_a_narrower_tolerance() -> None:
    (wide,) = sparsest(RESULTS, tolerance=0.10)
    assert wide.sparsity is not None
    assert (wide.seeds_within, wide.sparsity.mean) == (3, pytest.approx((0.9 + 0.7 + 0.5) / 3))
    (none,) = sparsest(RESULTS.iloc[4:], tolerance=0.0)
    assert (none.seeds, none.seeds_within, none.sparsity, none.loss) == (2, 0, None, None)


def test_a_point_is_a_point_whatever_the_binary_digits_say() -> None:
    # 0.97 - 0.96 is 0.010000000000000009.
    (found,) = sparsest(frame(trial(0.5, 0, val=0.96, dense=0.97)), tolerance=0.01)
    assert found.seeds_within == 1


def test_of_equally_sparse_networks_the_better_on_validation_images() -> None:
    rows = [trial(0.5, 0, val=0.94, dense=0.95, test=0.1), trial(0.5, 0, val=0.95, dense=0.95, test=0.2)]
    rows[1]["amount"] = 0.6  # another setting of the method, as sparse in the end
    (found,) = sparsest(frame(*rows), tolerance=0.01)
    assert found.accuracy is not None
    assert found.accuracy.mean == 0.2


def test_the_table_says_how_many_seeds_had_one() -> None:
    table = sparsest_table(RESULTS, tolerance=0.01)
    assert table.title == "highest sparsity within 1 point of dense"
    (line,) = table.rows
    assert dict(zip(table.header, line, strict=True))["seeds"] == "2 of 3"
    assert "validation accuracy" in table.note
    none = sparsest_table(RESULTS.iloc[4:], tolerance=0.0)
    assert none.rows[0][2:] == ["none", "", "none", "none", "0 of 2"]
    assert "0 points" in none.note


def test_a_network_that_is_not_pruned_is_no_success() -> None:
    rows = [trial(0.0, s, val=0.95, dense=0.95, test=0.96) for s in range(3)]
    rows += [trial(0.9, s, val=0.5, dense=0.95) for s in range(3)]
    (found,) = sparsest(frame(*rows), tolerance=0.01)
    assert (found.seeds, found.seeds_within, found.sparsity) == (3, 0, None)
    (line,) = sparsest_table(frame(*rows), tolerance=0.01).rows
    assert line[-1] == "0 of 3"
    # One seed has a pruned one: the other two count at 0.
    rows.append(trial(0.3, 0, val=0.95, dense=0.95))
    (found,) = sparsest(frame(*rows), tolerance=0.01)
    assert found.sparsity is not None
    assert (found.seeds_within, found.sparsity.mean) == (1, pytest.approx(0.1))
