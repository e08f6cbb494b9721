"""Numbers of numpy and torch, wherever a number may be given."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import pruning
from orchestrator.execution.early_stopping import PQIndexPruner
from pruning.hyperparameters import to_float, to_int
from pruning.pq_index import find_phases
from pruning.schedules import schedules

HALVES = [
    0.5,
    np.float32(0.5),
    np.float64(0.5),
    np.float16(0.5),
    torch.tensor(0.5),
    np.array(0.5),
    Fraction(1, 2),
]
ONES = [1, np.int64(1), np.uint8(1), torch.tensor(1)]
NO_NUMBERS = [True, np.bool_(True), torch.tensor(True), "0.5", None, [0.5], torch.tensor([0.5, 0.5]), 0.5j]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))


@pytest.mark.parametrize("amount", HALVES, ids=repr)
def test_half_is_half_in_any_type(amount: object) -> None:
    masks = pruning.prune(network(), amount=amount, scope="layer")  # type: ignore[arg-type]
    assert [int((~mask).sum()) for mask in masks.values()] == [12, 15]


@pytest.mark.parametrize("amount", ONES, ids=repr)
def test_whole_numbers_are_amounts_rounds_and_options(amount: int) -> None:
    assert not any(mask.any() for mask in pruning.prune(network(), amount=amount).values())
    first = pruning.prune(network(), amount=0.75, schedule={"method": "iterative", "rounds": 2}, round=amount)
    assert sum(int((~mask).sum()) for mask in first.values()) == 27  # 1 - (1 - 0.75)^(1/2) of 54
    method = schedules.get({"method": "iterative", "rounds": amount})
    assert str(method) == "iterative(rounds=1)"
    assert type(method.options["rounds"]) is int


@pytest.mark.parametrize("amount", NO_NUMBERS, ids=repr)
def test_what_is_no_number_is_no_amount(amount: object) -> None:
    with pytest.raises(ValueError, match=r"amount is .*; it must be a fraction in"):
        pruning.prune(network(), amount=amount)  # type: ignore[arg-type]


@pytest.mark.parametrize("round", [0, np.int64(0), True, 1.0, np.float32(1.0), "1"], ids=repr)
def test_what_is_no_whole_number_is_no_round(round: object) -> None:
    with pytest.raises(ValueError, match=r"round is .*; rounds count from 1"):
        pruning.prune(network(), amount=0.5, round=round)  # type: ignore[arg-type]


def test_a_float32_is_the_float_that_it_holds() -> None:
    """0.9 in float32 is 0.8999999761581421: of 5 weights 4.4999999, where 0.9 is 4.5 and rounds up."""
    assert to_float(np.float32(0.9)) == 0.8999999761581421
    net = nn.Sequential(nn.Linear(5, 1))
    gone = [int((~pruning.prune(net, amount=x)["0.weight"]).sum()) for x in (0.9, np.float32(0.9))]
    assert gone == [5, 4]


@pytest.mark.parametrize("kind", [np.float64, np.float32, torch.tensor, Fraction])
def test_the_pq_index_takes_its_parameters_in_any_type(kind: type) -> None:
    values = torch.tensor([4.0, 1.0, 0.0, 0.0])
    p, q = kind(0.5), kind(1.0)
    assert pruning.pq_index(values, p=p, q=q) == pruning.pq_index(values)
    assert pruning.kept_bound(values, p=p, q=q, eta=kind(0.0)) == pruning.kept_bound(values)
    plain = pruning.sap_prune_count(values, eta=0.25, gamma=0.5)
    assert pruning.sap_prune_count(values, p, q, kind(0.25), kind(0.5), kind(1.0)) == plain
    found = schedules.get({"method": "pq_index", "p": p}).options["p"]
    assert (type(found), found) == (float, 0.5)


@pytest.mark.parametrize("value", NO_NUMBERS[:5], ids=repr)
def test_what_is_no_number_is_no_parameter(value: object) -> None:
    with pytest.raises(ValueError, match=r"p is .*; it must be a number in"):
        pruning.pq_index([1.0], p=value)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="float is needed"):
        schedules.get({"method": "pq_index", "p": value})
    with pytest.raises(ValueError, match="tolerance: expected a number"):
        PQIndexPruner(tolerance=value)  # type: ignore[arg-type]


def test_phases_take_them_as_well() -> None:
    rise = [0.5, 0.4, 0.3, 0.4, 0.5]
    assert find_phases(rise, delta=np.float32(0.01), patience=np.int64(2)) == find_phases(rise)
    assert PQIndexPruner(tolerance=np.float32(0.5)).tolerance == 0.5


def test_numbers_by_hand() -> None:
    assert [to_int(value) for value in (3, np.int8(3), torch.tensor(3))] == [3, 3, 3]
    assert [to_int(value) for value in (3.0, True, "3", None, np.float32(3))] == [None] * 5
    assert [to_float(value) for value in (Decimal("0.5"), "1", False, 1j)] == [None] * 4
