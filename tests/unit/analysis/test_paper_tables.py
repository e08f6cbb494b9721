"""Tables for papers: their columns, what is bold, and LaTeX that says the same as the numbers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pandas import DataFrame
from result_rows import frame, row

from orchestrator.analysis.latex import escape_latex, latex, paper_markdown
from orchestrator.analysis.paired import Baseline
from orchestrator.analysis.paper_tables import PaperTable, accuracy_table, paper_tables
from orchestrator.analysis.setting_means import ComparisonOptions, comparison_records
from orchestrator.analysis.settings import varied_columns
from orchestrator.errors import UsageError

WEIGHT, NEURON = (0.91, 0.93, 0.92, 0.94), (0.60, 0.61, 0.60, 0.63)
OPTIONS = ComparisonOptions()


def two_techniques(**columns: Any) -> DataFrame:
    return frame(
        *(
            row(technique, amount, seed, value, **columns)
            for technique, values in (("weight", WEIGHT), ("neuron", NEURON))
            for amount in (0.9, 0.5)
            for seed, value in enumerate(values)
        )
    )


def test_a_column_for_each_thing_that_was_varied_and_the_best_in_bold() -> None:
    table = accuracy_table(two_techniques(), OPTIONS)
    assert table.header == ["technique", "amount", "accuracy %", "sparsity %", "MACs %"]
    # 0.925 with a deviation of 0.0129 and t(3) = 3.1824: 3.1824 * 0.0129 / 2 = 0.0205, by hand
    assert table.rows == [
        ["dense", "", "95.0 ± 0.0", "0.0", "100.0"],
        ["weight", "50%", "92.5 ± 2.1", "50.0", "50.0"],
        ["neuron", "50%", "61.0 ± 2.3", "50.0", "50.0"],
        ["weight", "90%", "92.5 ± 2.1", "90.0", "10.0"],
        ["neuron", "90%", "61.0 ± 2.3", "90.0", "10.0"],
    ]
    assert (table.bold, table.breaks) == ({1, 3}, (3,))
    assert "(model slp, data set digits, batch size 64, 4 seeds)." in table.title
    assert "Holm's correction for 2 pairs" in table.note


def test_the_standard_deviation_in_place_of_the_interval() -> None:
    table = accuracy_table(two_techniques(), OPTIONS, "std")
    assert [cells[2] for cells in table.rows[1:3]] == ["92.5 ± 1.3", "61.0 ± 1.4"]
    assert "mean ± sample standard deviation over seeds" in table.title
    (one_seed,) = paper_tables(frame(row()), OPTIONS, "std")
    assert one_seed.rows[1][0] == "90.0"
    assert "one seed, without an interval" in one_seed.title


def test_a_label_of_three_choices_is_taken_apart() -> None:
    results = frame(
        *(
            row(f"{criterion}/{granularity}", 0.5, 0, criterion=criterion, granularity=granularity)
            for criterion in ("magnitude", "snip")
            for granularity in ("weight", "unit")
        )
    )
    assert varied_columns(results) == ["criterion", "granularity"]
    assert varied_columns(two_techniques()) == ["technique", "amount"]
    assert varied_columns(frame(row())) == []


def test_each_thing_asked_for_is_a_table_of_its_own() -> None:
    options = ComparisonOptions(baseline=Baseline("technique=weight", {"technique": "weight"}), cost="macs")
    results = two_techniques(**{"ipa/macs_effective": 640.0, "ipa/val_accuracy": 0.0, "dense_key": "k"})
    differences, front = paper_tables(results, options)
    assert differences.header == ["technique", "amount", "difference", "pairs", "p, Holm"]
    assert [cells[:2] for cells in differences.rows] == [["neuron", "90%"], ["neuron", "50%"]]
    assert all(cells[4] == "<0.001 *" for cells in differences.rows)
    assert differences.bold == {0, 1}
    assert front.header == ["technique", "amount", "macs", "validation %", "accuracy %"]
    (sparsest,) = paper_tables(
        results.assign(**{"final/val_accuracy": 0.9, "ipa/val_accuracy": 0.9}),
        ComparisonOptions(tolerance=0.01),
    )
    assert sparsest.header == ["technique", "sparsity %", "accuracy %", "below dense"]
    assert "4 of 4 seeds" in sparsest.title
    assert [cells[:2] for cells in sparsest.rows] == [["weight", "90.0 ± 0.0"], ["neuron", "90.0 ± 0.0"]]


def test_nothing_to_print_is_refused() -> None:
    with pytest.raises(UsageError, match="no trial of these sweeps has finished"):
        paper_tables(frame(row(status="failed")), OPTIONS)


def test_latex_has_a_booktabs_table_with_bold_numbers() -> None:
    text = latex([accuracy_table(two_techniques(), OPTIONS)])
    assert r"\begin{tabular}{llrrr}" in text
    assert r"    technique & amount & accuracy \% & sparsity \% & MACs \% \\" in text
    assert r"    weight & 50\% & \textbf{92.5 $\pm$ 2.1} & 50.0 & 50.0 \\" in text
    rules = ["toprule", "midrule", "addlinespace", "bottomrule"]
    assert [line.strip().lstrip("\\") for line in text.splitlines() if line.strip()[1:] in rules] == rules
    assert "| weight | 50% | **92.5 ± 2.1** | 50.0 | 50.0 |" in paper_markdown(
        [accuracy_table(two_techniques(), OPTIONS)]
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50% & 3_4 #1 $x {y}", r"50\% \& 3\_4 \#1 \$x \{y\}"),
        (r"a\b~c^d", r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d"),
        ("<0.001 *", "$<$0.001 *"),
        ("-10.3 ± 13.8†‡", r"$-$10.3 $\pm$ 13.8$^{\dagger}$$^{\ddagger}$"),
        ("10.0 -10.0/+27.8†", r"10.0$^{+27.8}_{-10.0}$$^{\dagger}$"),
        ("-0.5 [-1.0 to +2.0]", "$-$0.5 [$-$1.0 to +2.0]"),
        ("mnist-5k, lr=1e-3", "mnist-5k, lr=1e-3"),
    ],
)
def test_texts_are_escaped(text: str, expected: str) -> None:
    assert escape_latex(text) == expected


@given(text=st.text(alphabet=st.characters(codec="ascii", exclude_categories=("Cc",))))
def test_no_sign_of_tex_is_left_bare(text: str) -> None:
    escaped = escape_latex(text)
    for command in (r"\textbackslash{}", r"\textasciitilde{}", r"\textasciicircum{}", r"\textquotedbl{}"):
        escaped = escaped.replace(command, "")
    for sign in ("$-$", "$<$", "$>$", "$|$"):
        escaped = escaped.replace(sign, "")
    for sign in "&%$#_{}":
        escaped = escaped.replace(f"\\{sign}", "")
    if "/+" not in text:  # no ends of a cut interval
        assert not set(escaped) & set("\\&%$#_{}~^<>|")


def test_a_row_that_begins_with_a_bracket_is_no_option_of_the_line_before() -> None:
    table = PaperTable("x", "title", ["widths", "n"], [["[32]", "1"], ["[64]", "2"]], 1)
    assert r"    {}[32] & 1 \\" in latex([table])


def test_the_csv_has_a_column_for_each_option_at_its_end() -> None:
    rows = [
        row(seed=seed, schedule=f"iterative(rounds={rounds})", **{"schedule.rounds": rounds})
        for rounds in (2, 5)
        for seed in (0, 1)
    ]
    records = comparison_records(frame(*rows))
    assert [record["schedule.rounds"] for record in records] == [2, 5]
    assert list(records[0])[-1] == "schedule.rounds"
    assert "schedule.rounds" not in comparison_records(frame(*rows[:2]))[0]
