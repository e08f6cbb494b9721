"""Keys: equal for equal configurations, and moved by every field that a stage reads."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config import (
    DenseConfig,
    Numerics,
    Prune,
    Train,
    TrialConfig,
    dense_from_json,
    method_name,
    method_text,
    micro_batch_of,
)
from orchestrator.keys import ADDED_LATER, OTHER_AMOUNTS
from orchestrator.trial.params import params
from pruning.registry import parse_method

DENSE = DenseConfig("slp", "digits", 64, 0, Train(), Numerics())
PRUNE = Prune("magnitude", "weight", "layer", "one_shot", 0.5)
TRIAL = TrialConfig(DENSE, PRUNE, "none", "weight")
OTHER: dict[type, Any] = {int: 7, float: 0.25, str: "another", bool: True, tuple: ("output",)}


def moved(record: Any) -> list[tuple[str, Any]]:
    """Each field's name, and the record with another value there."""
    names = [field.name for field in fields(record) if type(getattr(record, field.name)) in OTHER]
    others = {"limits": (("macs", 1000),)}
    return [
        (name, replace(record, **{name: others.get(name, OTHER[type(getattr(record, name))])}))
        for name in names
    ]


def test_every_field_of_a_dense_training_moves_its_key() -> None:
    variants = [config for _, config in moved(DENSE)]
    variants += [replace(DENSE, train=train) for _, train in moved(DENSE.train)]
    variants += [replace(DENSE, numerics=numerics) for _, numerics in moved(DENSE.numerics)]
    assert len(variants) == 8 + len(fields(Train)) + len(fields(Numerics))
    assert len({DENSE.key(), *(config.key() for config in variants)}) == 1 + len(variants)


def test_every_field_of_a_trial_but_its_labels_moves_its_key() -> None:
    variants = [replace(TRIAL, prune=prune) for name, prune in moved(PRUNE) if name != "amount_label"]
    own = [config for name, config in moved(TRIAL) if name != "technique"]
    variants += [*own, replace(TRIAL, dense=replace(DENSE, seed=1))]
    assert len(variants) == len(fields(Prune)) - 1 + len(fields(TrialConfig)) - 2
    assert len({TRIAL.key(), *(config.key() for config in variants)}) == 1 + len(variants)
    assert replace(TRIAL, technique="another label").key() == TRIAL.key()


def test_trials_share_the_key_of_their_dense_training() -> None:
    others = [replace(TRIAL, prune=prune) for _, prune in moved(PRUNE)]
    assert {config.dense.key() for config in others} == {DENSE.key()}


def test_fields_that_came_later_leave_the_keys_of_before() -> None:
    # Of versions 2 and 3: SHA-256 of the canonical JSON without these fields, written by hand.
    assert DENSE.key() == "2f455c45d0217a78e80fa55e06e05642c62b602ba3712a3fcfeb80446d58b05a"
    assert TRIAL.key() == "4b99a25e44a607e0ebe85f556997a579b2ab16f39868df0ef9da4d5e028564f0"
    assert not ADDED_LATER.keys() & params(DENSE).keys()
    moved_on = replace(DENSE, start="masked", ancestor_sha256="a" * 64)
    assert params(moved_on)["start"] == "masked"
    assert len({DENSE.key(), moved_on.key(), replace(moved_on, start="weights").key()}) == 3


def test_keys_are_stable_from_process_to_process() -> None:
    # Python's own hash of a text differs from process to process; a key is 64 hexadecimal digits.
    assert len(DENSE.key()) == 64
    assert int(DENSE.key(), 16) >= 0
    assert DENSE.key() == dense_from_json(json.loads(json.dumps(asdict(DENSE)))).key()


@given(
    lr=st.floats(1e-6, 10),
    amount=st.floats(0, 1),
    seed=st.integers(0, 2**63 - 1),
    protect=st.lists(st.text(max_size=5), max_size=3).map(tuple),
)
def test_json_and_back_is_the_same_configuration(
    lr: float, amount: float, seed: int, protect: tuple[str, ...]
) -> None:
    dense = replace(DENSE, seed=seed, train=Train(lr=lr))
    trial = TrialConfig(dense, replace(PRUNE, amount=amount, protect=protect), "none", "weight")
    again = TrialConfig.from_json(json.loads(json.dumps(asdict(trial))))
    assert again == trial
    assert again.key() == trial.key()


def test_not_a_number_has_no_key() -> None:
    with pytest.raises(ValueError):
        replace(DENSE, train=Train(lr=float("nan"))).key()


def test_params_are_flat_and_say_everything() -> None:
    found = params(replace(TRIAL, prune=replace(PRUNE, protect=("input", "output"))))
    assert found["train.lr"] == 1e-3
    assert found["numerics.device"] == "cpu"
    assert (found["amount"], found["protect"], found["technique"]) == (0.5, "input,output", "weight")
    assert not any(isinstance(value, (dict, list, tuple)) for value in found.values())
    names = {f"train.{f.name}" for f in fields(Train)} | {f"numerics.{f.name}" for f in fields(Numerics)}
    names |= {field.name for record in (DenseConfig, TrialConfig, Prune) for field in fields(record)}
    names -= ADDED_LATER.keys()  # said only where they have not their default
    names -= {*OTHER_AMOUNTS}  # `amount` says them
    assert found.keys() == names - {"train", "numerics", "dense", "prune"}


def test_params_show_a_method_in_short_and_option_by_option() -> None:
    full = method_text("iterative", {"rounds": 5})
    found = params(replace(TRIAL, prune=replace(PRUNE, schedule=full), recover="finetune(epochs=3, lr=1.0)"))
    assert (found["schedule"], found["schedule.rounds"]) == ("iterative", "5")
    assert (found["recover"], found["recover.epochs"], found["recover.lr"]) == (
        "finetune(epochs=3)",
        "3",
        "1.0",
    )


def test_method_texts_are_read_back() -> None:
    text = method_text("finetune", {"epochs": "10%", "lr": 1.0})
    assert text == "finetune(epochs='10%', lr=1.0)"
    assert parse_method(text) == ("finetune", {"epochs": "10%", "lr": 1.0})
    assert method_text("none", {}) == "none"
    assert method_name(text) == "finetune"


def test_micro_batches_are_planned_by_the_models_name() -> None:
    assert micro_batch_of("mlp(widths=[8])") == 16_384
    assert micro_batch_of("densenet121") == 128
    assert micro_batch_of("somebody's") == 256


def test_words_of_yaml_are_pythons_constants() -> None:
    options = {"a": True, "b": [False, None], "c": "true"}
    assert parse_method("f(a=true, b=[false, null], c='true')") == ("f", options)
    assert parse_method("f(a=True, b=[False, None], c='true')") == ("f", options)
    for word in ("yes", "off", "inf", "nan"):  # a boolean to some readers of YAML, or no number of a text
        with pytest.raises(ValueError, match="is no method"):
            parse_method(f"f(a={word})")


def test_other_words_are_text() -> None:
    assert parse_method("f(a=cut, b=[x, 1])") == ("f", {"a": "cut", "b": ["x", 1]})
