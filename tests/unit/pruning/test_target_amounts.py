"""Targets: texts of limits, and the smallest amount that meets one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.granularity import granularities
from pruning.schedules import schedules
from pruning.target_amounts import (
    canonical_target,
    check_target_fits,
    count_limits,
    find_amount,
    is_target,
    read_target,
)


@pytest.mark.parametrize(
    ("limits", "text", "values"),
    [
        ({"macs": "50%"}, "{macs: 50%}", {"macs": 0.5}),
        ({"macs": 0.125}, "{macs: 12.5%}", {"macs": 0.125}),
        ({"macs": "5M"}, "{macs: 5000000}", {"macs": 5_000_000}),
        ({"macs": "1.5 MMACs"}, "{macs: 1500000}", {"macs": 1_500_000}),
        ({"parameters": 100_000}, "{parameters: 100000}", {"parameters": 100_000}),
        ({"parameters": "100_000"}, "{parameters: 100000}", {"parameters": 100_000}),
        ({"bytes": "100kB"}, "{bytes: 100000}", {"bytes": 100_000}),
        ({"bytes": "2MiB"}, "{bytes: 2097152}", {"bytes": 2_097_152}),
        ({"bytes": "100 k", "macs": "100%"}, "{macs: 100%, bytes: 100000}", {"macs": 1.0, "bytes": 100_000}),
    ],
)
def test_a_limit_has_one_text(limits: dict[str, object], text: str, values: dict[str, float]) -> None:
    assert is_target(limits)
    assert canonical_target(limits) == text
    assert is_target(text)
    assert read_target(text) == values


@pytest.mark.parametrize(
    "value", ["0%", "101%", "-5%", 0, -3, 0.0, True, None, [], "5 cows", "", "1e6", "5kB"]
)
def test_what_is_no_limit_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="macs: "):
        canonical_target({"macs": value})


def test_amounts_by_layer_are_no_target() -> None:
    assert not is_target({"layer1": 0.5})
    assert not is_target({"macs": 0.5, "layer1": 0.5})  # a layer that is called so
    assert not is_target('{"macs": 50%}')
    assert not is_target({})
    assert not is_target(0.5)


def test_percentages_are_counts_rounded_down() -> None:
    dense = {"macs": 999, "bytes": 10}
    assert count_limits({"macs": 0.5, "bytes": 7}, dense) == {"macs": 499, "bytes": 7}
    assert count_limits({"macs": 0.07}, {"macs": 100}) == {"macs": 7}  # 100 * 0.07 is 7.000000000000001


def test_methods_that_decide_themselves_have_no_target() -> None:
    check_target_fits(granularities.get("channel"), schedules.get("iterative"))
    with pytest.raises(ValueError, match="pq_index"):
        check_target_fits(granularities.get("channel"), schedules.get("pq_index"))
    with pytest.raises(ValueError, match="nm"):
        check_target_fits(granularities.get("nm"), schedules.get("one_shot"))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.data())
def test_the_smallest_amount_is_found(costs: list[int], data: st.DataObject) -> None:
    """Units of some cost go in order: no shorter prefix meets the limit."""
    limit = data.draw(st.integers(0, sum(costs)))

    def masks_at(amount: float) -> dict[str, torch.Tensor]:
        return {"w": torch.arange(len(costs)) >= math.floor(amount * len(costs) + 0.5)}

    def left(masks: dict[str, torch.Tensor]) -> int:
        return int((torch.tensor(costs) * masks["w"]).sum())

    def removed(masks: dict[str, torch.Tensor]) -> int:
        return int((~masks["w"]).sum())

    amount, masks = find_amount(masks_at, lambda m: left(m) <= limit, most=1.0, count_removed=removed)
    first = next(k for k in range(len(costs) + 1) if sum(costs[k:]) <= limit)
    assert removed(masks) == first
    assert torch.equal(masks_at(amount)["w"], masks["w"])


def test_a_target_that_nothing_meets_is_an_error() -> None:
    masks = {"w": torch.ones(3, dtype=torch.bool)}
    with pytest.raises(ValueError, match="no amount meets"):
        find_amount(lambda _: masks, lambda _: False, most=1.0, count_removed=lambda _: 0)
