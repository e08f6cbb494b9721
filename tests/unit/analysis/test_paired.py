"""Paired differences: who pairs with whom, and intervals against scipy's paired t test."""

from __future__ import annotations

from itertools import product

import pytest
from result_rows import Row, frame, row
from scipy import stats

from orchestrator.analysis.paired import Baseline, default_baseline, differences, holm, read_baseline, verdict
from orchestrator.analysis.setting_means import ComparisonOptions, comparison_records
from orchestrator.analysis.settings import method_label
from orchestrator.analysis.tables import differences_table
from orchestrator.errors import UsageError

WEIGHT = (0.95, 0.91, 0.93, 0.97)
NEURON = (0.90, 0.89, 0.85, 0.96)
RESULTS = frame(
    *(row(t, 0.5, s, v) for t, vs in (("weight", WEIGHT), ("neuron", NEURON)) for s, v in enumerate(vs))
)


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    (found,) = differences(RESULTS, Baseline("x", {"technique": "weight"}))
    assert found.setting["technique"] == "neuron"
    test = stats.ttest_rel(NEURON, WEIGHT).confidence_interval(0.95)
    assert found.difference.mean == pytest.approx(sum(NEURON) / 4 - sum(WEIGHT) / 4)
    assert (found.difference.low, found.difference.high) == pytest.approx((test.low, test.high))
    # Far narrower than that of unpaired means: most of the spread is the seeds'.
    apart = stats.ttest_ind(NEURON, WEIGHT).confidence_interval(0.95)
    assert test.high - test.low < apart.high - apart.low


def test_seeds_and_amounts_without_a_partner_are_left_out() -> None:
    rows = [row("weight", 0.5, 0, 0.9), row("weight", 0.5, 1, 0.8), row("neuron", 0.5, 1, 0.7)]
    rows += [row("neuron", 0.5, 2, 0.1), row("neuron", 0.9, 0, 0.2)]
    rows.append(row("weight", 0.9, 0, 0.5, status="failed"))
    (found,) = differences(frame(*rows), Baseline("x", {"technique": "weight"}))
    assert (found.setting["amount"], found.difference.count) == (0.5, 1)
    assert found.difference.mean == pytest.approx(-0.1)


def test_all_else_must_be_equal() -> None:
    rows = [
        row(t, 0.5, 0, v, recover=r)
        for t, r, v in (
            ("weight", "none", 0.5),
            ("weight", "finetune", 0.9),
            ("neuron", "none", 0.4),
            ("neuron", "finetune", 0.7),
        )
    ]
    found = differences(frame(*rows), Baseline("x", {"recover": "none"}))
    told = {method_label(one.setting): one.difference.mean for one in found}
    assert told == pytest.approx({"weight, finetune": 0.4, "neuron, finetune": 0.3})
    both = differences(frame(*rows), Baseline("x", {"recover": "none", "technique": "weight"}))
    assert {method_label(one.setting): one.difference.mean for one in both} == pytest.approx(
        {"weight, finetune": 0.4, "neuron": -0.1, "neuron, finetune": 0.2}
    )


def test_a_technique_is_no_hindrance_where_one_of_its_parts_is_the_baseline() -> None:
    # A label of three axes differs wherever one of them does.
    rows = [
        row(f"{criterion}/weight/{scope}", 0.5, 0, value, criterion=criterion, scope=scope)
        for criterion, scope, value in (
            ("magnitude", "layer", 0.9),
            ("snip", "layer", 0.8),
            ("magnitude", "global", 0.7),
            ("snip", "global", 0.4),
        )
    ]
    found = differences(frame(*rows), Baseline("x", {"criterion": "magnitude"}))
    assert [one.difference.mean for one in found] == pytest.approx([-0.1, -0.3])


def test_dense_networks_are_a_baseline() -> None:
    rows = [row("weight", 0.5, s, v, **{"ipa/accuracy": 0.95}) for s, v in enumerate((0.94, 0.90))]
    baseline = read_baseline("dense", frame(*rows))
    (found,) = differences(frame(*rows), baseline)
    assert baseline.is_dense
    assert (found.difference.mean, found.difference.count) == (pytest.approx(-0.03), 2)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("weight", {"technique": "weight"}),
        ("technique=neuron", {"technique": "neuron"}),
        ("recover=none", {"recover": "none"}),
        ("recover=finetune", {"recover": "finetune(epochs=1, lr=0.1)"}),
        ("recover=finetune(epochs=1, lr=0.1), weight", None),
        ("batch_size=32", {"batch_size": 32}),
    ],
)
def test_a_baseline_is_read(text: str, values: dict[str, object] | None) -> None:
    recoveries = ("none", "finetune(epochs=1, lr=0.1)")
    points = product(("weight", "neuron"), recoveries, (32, 64))
    found = read_baseline(text, frame(*(row(t, recover=r, batch_size=b) for t, r, b in points)))
    expected = values or {"recover": "finetune(epochs=1, lr=0.1)", "technique": "weight"}
    assert dict(found.values) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nueron", "neuron"),
        ("technic=weight", "technique"),
        ("technique=wieght", "weight"),
        ("seed=0", "dense"),
    ],
)
def test_a_baseline_that_is_not_there_is_refused_with_the_nearest(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_baseline(text, RESULTS)


def test_a_baseline_that_nothing_pairs_with_is_refused() -> None:
    apart = frame(row("weight", 0.5), row("neuron", 0.9))
    with pytest.raises(UsageError, match="--baseline dense"):
        read_baseline("weight", apart)


def test_the_default_is_the_first_value_of_the_first_axis_that_pairs() -> None:
    assert default_baseline(RESULTS).text == "technique=weight"
    recoveries = frame(*(row(recover=r) for r in ("rewind", "reinit")))
    assert default_baseline(recoveries).text == "recover=rewind"
    apart = frame(row("weight", 0.5), row("neuron", 0.9))
    assert default_baseline(apart).is_dense


def test_holm_by_hand() -> None:
    # Of four: 0.01 x 4, 0.02 x 3, then 0.03 x 2 and 0.04 x 1, which may not fall below what is before them.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.001]) == [0.001]
    assert holm([]) == []


def test_what_survives_holm_is_said() -> None:
    gains = {"a": (0.10, 0.11, 0.12), "b": (0.01, 0.05, 0.09), "c": (0.01, 0.03, 0.04)}
    rows = [row("base", 0.5, s, 0.5) for s in range(3)]
    rows += [row(name, 0.5, s, 0.5 + v) for name, values in gains.items() for s, v in enumerate(values)]
    found = differences(frame(*rows), Baseline("x", {"technique": "base"}))
    p = [stats.ttest_1samp(values, 0).pvalue for values in gains.values()]
    assert [one.difference.p for one in found] == pytest.approx(p)
    # p: 0.0027, 0.162, 0.0943; times 3, 1 and 2, and not below the one before.
    assert [one.p_holm for one in found] == pytest.approx([3 * p[0], 2 * p[2], 2 * p[2]])
    assert [one.survives for one in found] == [True, False, False]
    assert verdict([one.difference for one in found]) == (
        "3 comparisons: by their own 95% intervals 1 of them are not 0, after Holm's correction for all of "
        "them 1."
    )


def test_two_pairs_are_no_test() -> None:
    rows = [row(t, 0.5, s, v + s / 10) for t, v in (("a", 0.5), ("b", 0.6)) for s in (0, 1)]
    (found,) = differences(frame(*rows), Baseline("x", {"technique": "a"}))
    assert (found.difference.p, found.p_holm, found.p_text, found.survives) == (None, None, "", False)
    assert "none tested" in verdict([found.difference])


@pytest.mark.parametrize(
    ("text", "column"), [("snip", "criterion"), ("global", "scope"), ("rewind", "recover")]
)
def test_a_baseline_is_named_as_the_space_names_it(text: str, column: str) -> None:
    rows = [
        row(f"{c}/weight/{s}", 0.5, 0, 0.9, criterion=c, scope=s, recover=r)
        for c, s, r in product(("magnitude", "snip"), ("layer", "global"), ("finetune(epochs=2)", "rewind"))
    ]
    assert dict(read_baseline(text, frame(*rows)).values) == {column: text}


def test_a_baseline_that_was_planned_once_with_its_equal_says_which() -> None:
    results = frame(row("magnitude", criterion="magnitude"), row("snip", criterion="snip"))
    results.attrs["excluded"] = [{"reason": "equal", "count": 1, "left_out": "l1", "planned": "magnitude"}]
    with pytest.raises(UsageError, match="give --baseline magnitude"):
        read_baseline("l1", results)


def by_criterion() -> list[Row]:
    return [
        row(c, a, s, 0.95 if a == 0 else 0.9 - s / 50 - (c == "random") * (0.2 + s / 40), criterion=c)
        for c, a, s in product(("magnitude", "random"), (0.0, 0.5), range(3))
    ]


def test_a_space_of_criteria_is_told_in_its_own_words() -> None:
    results = frame(*by_criterion())
    assert read_baseline("magnitude", results).text == "criterion=magnitude"
    assert default_baseline(results).text == "criterion=magnitude"
    (record, *_) = comparison_records(results, ComparisonOptions(baseline=default_baseline(results)))
    assert (record["criterion"], record["baseline"]) == ("magnitude", "criterion=magnitude")
    assert "technique" not in record
    both = frame(*(row(f"magnitude/{g}", granularity=g) for g in ("weight", "unit")))
    assert default_baseline(both).text == "granularity=weight"


def test_what_equals_the_dense_network_by_definition_is_no_comparison() -> None:
    results = frame(*by_criterion())
    for baseline in (default_baseline(results), read_baseline("dense", results)):
        found = differences(results, baseline)
        assert {one.setting["amount"] for one in found} == {0.5}
        # Neither listed nor counted.
        assert found[0].p_holm == pytest.approx(holm([one.difference.p or 0 for one in found])[0])
        table = differences_table(results, baseline)
        assert "Amount 0% is left out" in table.note
        assert len(table.rows) == len(found)


def test_training_on_at_amount_0_is_compared_with_what_was_not_trained() -> None:
    rows = [
        row("weight", 0.0, s, 0.9 if r == "none" else 0.92, recover=r)
        for r, s in product(("none", "finetune"), range(3))
    ]
    (found,) = differences(frame(*rows), Baseline("x", {"recover": "none"}))
    assert found.difference.mean == pytest.approx(0.02)
    (dense,) = differences(frame(*rows), Baseline("dense", {}))
    assert dense.setting["recover"] == "finetune"
