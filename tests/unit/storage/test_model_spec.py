"""arch.json: what builds a network, and what is refused before anything is built."""

from __future__ import annotations

import json
from contextlib import suppress
from time import perf_counter
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import models
from orchestrator.errors import StoreError
from orchestrator.storage.model_files import ModelSpec, _meta_module
from orchestrator.trial.structure import MAX_ACTIVATIONS, MAX_PARAMETERS, activations

GOOD: dict[str, Any] = {  # JSON
    "model": "cnn(widths=[4, 8])",
    "input_shape": [1, 8, 8],
    "num_classes": 10,
    "cut_widths": None,
    "spent": {"epochs": 3, "train_seconds": 1.5, "train_flops": 10**15, "micro_batch": 64},
    "mask_shapes": {"blocks.0.conv.weight": [4, 1, 3, 3]},
    "parent": "a" * 64,
}


def read(**changes: object) -> ModelSpec:
    return ModelSpec.from_json(json.dumps({**GOOD, **changes}).encode(), "arch.json")


def refused(match: str, **changes: object) -> None:
    with pytest.raises(StoreError, match=match) as caught:
        read(**changes).check_activations()
    assert "\n" not in str(caught.value)


def test_what_is_written_is_read() -> None:
    spent = {**GOOD["spent"], "train_flops_effective": None}
    assert read().model_dump(mode="json") == {**GOOD, "spent": spent, "classes": None}
    assert read().spent.state_fields == {**GOOD["spent"], "train_flops_effective": 10**15}
    assert read(classes=["digits/5", "digits/7"]).classes == ["digits/5", "digits/7"]


def test_the_outline_is_that_of_the_network() -> None:
    net = models.build("cnn(widths=[4, 8])", input_shape=(1, 8, 8), num_classes=10)
    outline = read().meta_state_dict()
    assert {name: (t.shape, t.dtype) for name, t in outline.items()} == {
        name: (t.shape, t.dtype) for name, t in net.state_dict().items()
    }
    assert all(tensor.is_meta for tensor in outline.values())
    assert read().meta_parameters().keys() == dict(net.named_parameters()).keys()


def test_a_network_gets_its_weights_and_draws_nothing() -> None:
    net = models.build("cnn(widths=[4, 8])", input_shape=(1, 8, 8), num_classes=10)
    before = torch.get_rng_state()
    again = read().build_network(net.state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    assert not again.training
    assert all(torch.equal(t, net.state_dict()[name]) for name, t in again.state_dict().items())


HUGE = [
    "mlp(widths=[1000000, 1000000])",  # 10^12 parameters
    "mlp(widths=[999999999999999999])",
    f"mlp(widths=[{'9' * 900}])",
    "cnn(widths=[1000000, 1000000])",
]


@pytest.mark.parametrize("model", HUGE)
def test_a_huge_network_is_refused_before_it_is_allocated(model: str) -> None:
    process, started = psutil.Process(), perf_counter()
    before = process.memory_info().rss
    refused("the most|cannot be built", model=model, mask_shapes={})
    assert process.memory_info().rss - before < 100_000_000  # its weights would take terabytes
    assert perf_counter() - started < 10


def test_many_classes_and_large_images_count_as_well() -> None:
    refused("parameters", model="slp", num_classes=1_000_000, input_shape=[1, 64, 64])
    refused("numbers for two images", model="cnn(widths=[1000])", input_shape=[1, 4096, 4096])
    refused("the most|cannot be built", model="slp", input_shape=[1_000_000, 1_000_000, 1_000_000])


def test_the_limits_leave_room_for_real_networks() -> None:
    plan = read(model="densenet121", input_shape=[3, 224, 224], num_classes=1000, mask_shapes={})
    count = sum(tensor.numel() for tensor in plan.meta_parameters().values())
    assert count == 7_978_856  # as published for torchvision's
    assert count * 100 < MAX_PARAMETERS
    given = activations(_meta_module(*plan.architecture), torch.empty((2, 3, 224, 224), device="meta"))
    assert given * 5 < MAX_ACTIVATIONS


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model": "resnet17"}, "unknown model 'resnet17'"),
        ({"model": "mpl"}, "did you mean mlp"),
        ({"model": "cnn(width=[4])"}, "did you mean widths"),
        ({"model": "cnn(widths='ab')"}, "list of positive integers"),
        ({"model": "cnn(widths=[4.0])"}, "list of positive integers"),
        ({"model": "mlp(bias=1)"}, "give True or False"),
        ({"model": "mlp(widths=__import__('os').system('true'))"}, "is no model"),
        ({"model": "cnn" + " " * 2000}, "model"),
        ({"model": 3}, "model"),
        ({"input_shape": [1, 8]}, "input_shape"),
        ({"input_shape": [1, 8, "8"]}, "input_shape"),
        ({"input_shape": [1, 8, 0]}, "input_shape"),
        ({"input_shape": [1, 2, 2]}, "images from 8x8 up"),
        ({"num_classes": 1}, "num_classes"),
        ({"num_classes": 10.0}, "num_classes"),
        ({"num_classes": True}, "num_classes"),
        ({"num_classes": 10**4000}, "num_classes"),
        ({"cut_widths": {"a": [0]}}, "cut_widths"),
        ({"cut_widths": [1]}, "cut_widths"),
        ({"mask_shapes": {"a": "b"}}, "mask_shapes"),
        ({"mask_shapes": None}, "mask_shapes"),
        ({"spent": {**GOOD["spent"], "epochs": -1}}, "spent.epochs"),
        ({"spent": {**GOOD["spent"], "train_seconds": float("nan")}}, "spent.train_seconds"),
        ({"spent": {**GOOD["spent"], "more": 1}}, "spent.more"),
        ({"spent": {}}, "spent"),
        ({"parent": "../x"}, "parent"),
        ({"parent": "a" * 64 + "' OR '1'='1"}, "parent"),
        ({"code": "print()"}, "code"),
    ],
)
def test_a_field_that_is_not_as_it_has_to_be(changes: dict[str, object], match: str) -> None:
    refused(match, **changes)


@given(
    name=st.sampled_from([*GOOD, "other"]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    ),
)
def test_any_value_in_any_field_is_read_or_refused(name: str, value: object) -> None:
    with suppress(StoreError):  # and no other
        read(**{name: value}).meta_state_dict()


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b'{"num_classes": 1' + b"0" * 9999 + b"}"],
)
def test_what_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(StoreError):
        ModelSpec.from_json(text, "arch.json")
