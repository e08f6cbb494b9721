"""The methods paragraph, from rows made up: every setting is in it, and what it uses is cited."""

from __future__ import annotations

import re
from typing import Any

import pytest
from result_rows import frame, row

from orchestrator.analysis.intervals import IntervalMethod
from orchestrator.analysis.results import SweepResults
from orchestrator.formatting import joined
from orchestrator.report.citation import CitedSweep, citation
from orchestrator.report.methods_text import shortened
from orchestrator.report.references import references

DIGEST = "5cf8de92" * 8
FIELDS = {
    "dense_key": "k",
    "amount_text": "50%",
    "when": "after",
    "schedule": "one_shot",
    "recover": "none",
    "prepare": "none",
    "distill": "none",
    "control": "none",
    "protect": "",
    "data_sha256": DIGEST,
    "train.epochs": 3,
    "train.optimizer": "adam",
    "train.lr": 0.001,
    "train.momentum": 0.9,
    "train.nesterov": False,
    "train.weight_decay": 0.0,
    "train.schedule": "constant",
    "train.warmup_epochs": 0,
    "train.clip_norm": 0.0,
    "train.augment": "none",
    "numerics.device": "cpu",
    "numerics.precision": "fp32",
    "numerics.threads": 1,
}
ENVIRONMENT = {
    "package.torch": "2.13.0",
    "package.optuna": "5.0.0",
    "python": "3.11.7",
    "commit": "abc",
    "processor": "A processor",
    "cores": "2",
    "gpu.0": "NVIDIA H100",
}
SIZES = {"digits": {"train": 1257, "validation": 180, "test": 360}}


def cited(*rows: dict[str, Any], method: IntervalMethod = "t", **plan: Any) -> str:
    loaded = SweepResults(plan, frame(*rows), {})
    return citation(CitedSweep(loaded, (ENVIRONMENT,), SIZES, method))


def rows(seeds: int = 3, **fields: Any) -> list[dict[str, Any]]:
    return [row(seed=seed, **{**FIELDS, **fields}) for seed in range(seeds)]


def keys(text: str) -> set[str]:
    """The keys that the paragraph cites."""
    return {key for cites in re.findall(r"\\cite\{([^}]+)\}", text) for key in cites.split(",")}


def test_every_setting_is_in_the_paragraph() -> None:
    paragraph = cited(*rows()).partition("\n\n")[0]
    for text in (
        "The networks are slp.",
        "digits~\\cite{alpaydin1998optical} (1,257 images for training, 180 images for validation, "
        "360 images for testing, SHA-256 5cf8de925cf8de92)",
        "trained for 3 epochs by adam~\\cite{kingma2015adam} in batches of 64 "
        "(learning rate 0.001; the rate is constant)",
        "criterion magnitude~\\cite{han2015learning} (granularity weight, scope layer), with amounts "
        "of 50\\%.",
        "pruned after training by the schedule one\\_shot, followed by no training.",
        "planned with 3 seeds (0, 1, 2)",
        "Of 3 trials, 3 finished.",
        "Holm's procedure~\\cite{holm1979simple}",
        "Python 3.11.7 and PyTorch 2.13.0~\\cite{paszke2019pytorch}; commit abc.",
        "A processor (2 cores, GPU NVIDIA H100); trials ran on cpu in fp32 with 1 thread each.",
    ):
        assert text in paragraph
    assert "momentum" not in paragraph  # Adam has none
    assert "Optuna" not in paragraph  # a grid needs none


def test_allocations_are_cited() -> None:
    text = cited(*rows(scope="per_mac"), *rows(scope="sensitivity"))
    assert "scope per\\_mac~\\cite{molchanov2017pruning,shen2022structural}" in text
    assert "scope sensitivity~\\cite{li2017pruning,shen2022structural}" in text


def test_what_is_cited_has_an_entry_and_the_reverse() -> None:
    text = cited(*rows(recover="finetune(epochs=5)", schedule="iterative(rounds=3)"))
    entries = set(re.findall(r"^@[a-z]+\{([a-z0-9]+),", text, re.MULTILINE))
    assert entries == keys(text)
    assert {"renda2020comparing", "frankle2019lottery"} <= entries
    assert entries < {reference.key for reference in references()}


def test_every_field_is_a_comment_with_its_values() -> None:
    text = cited(*rows(), *rows(**{"train.lr": 0.01}))
    assert "%   train.lr = 0.001, 0.01\n" in text
    assert f"%   data_sha256 = {DIGEST}\n" in text
    assert "learning rate 0.001 and 0.01" in text


def test_a_recipe_names_what_is_on() -> None:
    text = cited(
        *rows(
            **{
                "train.optimizer": "sgd",
                "train.nesterov": True,
                "train.weight_decay": 5e-4,
                "train.schedule": "cosine",
                "train.augment": "crop_flip + cutout(size=16)",
                "train.mixup": 0.2,
            }
        )
    )
    assert "momentum 0.9, Nesterov's momentum, weight decay 0.0005, mixup 0.2~\\cite{zhang2018mixup}" in text
    assert "the rate is cosine~\\cite{loshchilov2017sgdr}" in text
    assert "crop\\_flip + cutout(size=16)~\\cite{he2016deep}~\\cite{devries2017improved}." in text


def test_searches_rules_exclusions_and_failures() -> None:
    text = cited(
        *rows(),
        row(seed=3, **{**FIELDS, "status": "failed"}),
        search={"method": "tpe", "objectives": {"final/val_accuracy": "max"}},
        stop="hyperband()",
        excluded=[{"count": 4, "reason": "slp has no units"}],
    )
    assert (
        "drawn by tpe~\\cite{bergstra2011algorithms,akiba2019optuna}, for final/val\\_accuracy (max)" in text
    )
    assert "Of 4 trials, 3 finished and 1 failed." in text
    assert "stopped early by hyperband()~\\cite{li2018hyperband}" in text
    assert "4 points (slp has no units)" in text
    assert "Optuna 5.0.0~\\cite{akiba2019optuna}" in text


@pytest.mark.parametrize(
    ("seeds", "method", "expected"),
    [
        (1, "t", "a single seed, without intervals or tests"),
        (2, "t", "means of two seeds, with lowest and highest, without tests"),
        (3, "t", "95\\% intervals by Student's t"),
        (6, "bootstrap", "bootstrap~\\cite{efron1987better}"),
    ],
)
def test_the_statistics_are_those_that_the_seeds_allow(
    seeds: int, method: IntervalMethod, expected: str
) -> None:
    assert expected in cited(*rows(seeds), method=method)


def test_many_numbers_are_told_by_their_range() -> None:
    assert shortened(["0.1", "0.2"]) == ["0.1", "0.2"]
    rates = ["0.024", "0.0001", "0.5", "0.003", "0.1", "0.2", "0.3", "0.4", "0.25"]
    assert shortened(rates) == ["9 values from 0.0001 to 0.5"]
    assert shortened([f"{n}%" for n in (90, 5, 50)], most=2) == ["3 values from 5% to 90%"]
    names = [f"a{n}" for n in range(20)]
    assert shortened(names) == names  # nothing that has no order is left out


def test_texts_are_joined_as_people_write_them() -> None:
    assert [joined("a"), joined("ab"), joined("abc"), joined("")] == ["a", "a and b", "a, b and c", ""]
