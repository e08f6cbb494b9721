"""Sensitivities as tables, records and a picture: means over seeds by hand, and what is less than a unit."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from orchestrator.analysis.figure import render
from orchestrator.analysis.sensitivity import (
    NetworkSensitivity,
    group_sensitivities,
    make_sensitivity_figure,
    sensitivity_records,
    sensitivity_table,
)
from orchestrator.config import DenseConfig, Numerics, Train
from orchestrator.errors import UsageError
from orchestrator.trial.sensitivity import GroupSensitivity, Question, Sensitivity

DENSE = DenseConfig("cnn(widths=[20, 4])", "digits", 64, 0, Train(), Numerics())
WIDE = GroupSensitivity(
    "wide",
    20,
    5000,
    (0, 2, 6, 10, 14, 18, 19),
    (1.0, 1.5, 2, 3, 4, 5, math.inf),
    (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.1),
)
# A tenth of 4 is no unit; 0.3, 0.5, 0.7, 0.9 of it are 1, 2, 3 and 4, of which one stays.
SMALL = GroupSensitivity("small", 4, 300, (0, 1, 2, 3), (1.0, 0.9, 1.2, 9), (0.9, 0.9, 0.8, 0.2))
FIRM = replace(WIDE, name="firm", losses=(1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6))


def network(seed: int = 0, criterion: str = "l2", shift: float = 0.0) -> NetworkSensitivity:
    """A network whose losses after a part is gone are higher by `shift`."""
    groups = tuple(
        replace(group, losses=(group.losses[0], *(loss + shift for loss in group.losses[1:])))
        for group in (WIDE, SMALL, FIRM)
    )
    question = Question(f"key{seed}", criterion, "channel", ())
    return NetworkSensitivity(f"run{seed}", replace(DENSE, seed=seed), Sensitivity(question, 180, groups))


def test_rows_are_means_over_seeds_the_least_sensitive_first() -> None:
    (group,) = group_sensitivities([network(0), network(1, shift=0.2)])
    table = sensitivity_table(group)
    assert table.title == (
        "cnn(widths=[20, 4]) on digits, l2, channel, 2 networks; dense: loss 1, accuracy 90.00%"
    )
    assert table.header[:4] == ["layer", "channels", "MACs", "loss at -10%"]
    assert table.rows == [
        ["firm", "20", "5,000", "+0.2000", "+0.3000", "+0.4000", "-10.00", "-20.00", "-30.00"],
        ["wide", "20", "5,000", "+0.6000", "+1.1000", "+2.1000", "-10.00", "-20.00", "-30.00"],
        ["small", "4", "300", "-", "+0.0000", "+0.3000", "-", "+0.00", "-10.00"],
    ]


def test_other_criteria_and_networks_have_tables_of_their_own() -> None:
    other = replace(network(0), dense=replace(DENSE, batch_size=32))
    assert len(group_sensitivities([network(0), network(1), network(0, "l1"), other])) == 3
    assert group_sensitivities([]) == []


def test_records_have_every_part_and_no_infinity() -> None:
    wide, small, _ = sensitivity_records([network(3)])
    assert (wide["dense_run"], wide["seed"], wide["layer"], wide["size"], wide["macs"]) == (
        "run3",
        3,
        "wide",
        20,
        5000,
    )
    assert (wide["loss"], wide["loss_10"], wide["loss_90"], wide["accuracy_70"]) == (1.0, 1.5, 5, 0.5)
    assert (small["loss_10"], small["accuracy_10"], small["loss_30"]) == (None, None, 0.9)
    infinite = replace(WIDE, losses=(1.0, math.inf, *WIDE.losses[2:]))
    sensitivity = replace(network().sensitivity, groups=(infinite,))
    assert sensitivity_records([replace(network(), sensitivity=sensitivity)])[0]["loss_10"] is None


def test_a_picture_names_every_layer_and_is_the_same_twice() -> None:
    groups = group_sensitivities([network(0), network(0, "l1")])
    picture = render(make_sensitivity_figure(groups), "svg")
    assert picture == render(make_sensitivity_figure(groups), "svg")
    assert all(picture.count(f">{name}<".encode()) == 2 for name in ("wide", "small", "firm"))
    with pytest.raises(UsageError, match="a picture has up to 6 networks of up to 120 layers; here are 7"):
        make_sensitivity_figure(groups[:1] * 7)
