"""What is equal by definition is planned once: the equality holds bit for bit, and no other is missed."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from traced import groups_of
from trained import Trained, digits

import models
import pruning
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.planning.equality import plain_key, plain_values
from orchestrator.planning.plan import Exclusion, Plan, make_plan
from orchestrator.space.space import load_space
from orchestrator.trial.recovery import recoveries
from orchestrator.trial.run import TrialResult, run_trial
from pruning.criteria import criteria, representative
from pruning.mask_selection import SCOPES
from pruning.masking import Masks
from pruning.schedules import schedules

GRANULARITIES = ("weight", "nm", "unit", "channel")
SCOPES_OF = {"weight": SCOPES, "nm": ("unit", "layer", "global"), "unit": ("layer", "global")}
SAMPLE = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(3)), torch.arange(20) % 10
DECLARED = [
    (name, other, granularity)
    for granularity in GRANULARITIES
    for name in criteria
    for other in (representative(name, granularity),)
    if other != name
]
DECLARED_IN_LAYER = [
    (name, other, granularity)
    for granularity in GRANULARITIES
    for name in criteria
    for other in (representative(name, granularity, in_layer=True),)
    if other != representative(name, granularity)
]


def network(seed: int, kind: str = "") -> nn.Module:
    """A network with weights as after some training: norms with statistics, a layer without bias."""
    kind = kind or ("mlp(widths=[12, 8])", "mlp(widths=[9, 7], bias=True)", "cnn(widths=[4, 8])")[seed % 3]
    torch.manual_seed(seed)
    net = models.build(kind, input_shape=(1, 8, 8), num_classes=10)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr,operator]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr,operator]
    return net.eval()


def masks_of(net: nn.Module, criterion: str, granularity: str, amount: float, **options: object) -> Masks:
    amount = 0.5 if granularity == "nm" else amount
    sums = {
        name: torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=torch.float64)
        for name, p in net.named_parameters()
    }
    chosen = {
        "scope": "layer", "sample": SAMPLE, "example_input": SAMPLE[0][:2], "accumulated": sums, **options
    }  # fmt: skip
    if granularity == "channel":
        chosen["groups"] = groups_of(net, SAMPLE[0][:2])
    return pruning.prune(net, amount=amount, criterion=criterion, granularity=granularity, **chosen)


def equal(one: Masks, other: Masks) -> bool:
    return one.keys() == other.keys() and all(torch.equal(mask, other[name]) for name, mask in one.items())


def test_what_is_declared() -> None:
    assert set(DECLARED) == {
        *(("l1", "magnitude", granularity) for granularity in GRANULARITIES),
        *(("l2", "magnitude", granularity) for granularity in ("weight", "nm")),
        *(("taylor", "snip", granularity) for granularity in ("weight", "nm")),
    }
    assert set(DECLARED_IN_LAYER) == {("lamp", "magnitude", granularity) for granularity in ("weight", "nm")}


@pytest.mark.parametrize(("name", "other", "granularity"), DECLARED_IN_LAYER)
@given(
    seed=st.integers(0, 10_000), amount=st.floats(0, 1), index=st.integers(0, 2), levels=st.integers(1, 500)
)
def test_criteria_declared_alike_within_a_layer_choose_the_same_there(
    name: str, other: str, granularity: str, seed: int, amount: float, index: int, levels: int
) -> None:
    """Weights in steps, so that some are equal, and some 0."""
    net, scope = network(seed), ("layer", "unit", "erk" if granularity == "weight" else "global")[index]
    for parameter in net.parameters():
        parameter.data = (parameter.data * levels).round() / levels
    one, two = (masks_of(net, c, granularity, amount, scope=scope) for c in (name, other))
    assert equal(one, two)
    more, again = {"masks": one, "scope": scope}, min(1.0, amount + 0.2)
    assert equal(
        masks_of(net, name, granularity, again, **more), masks_of(net, other, granularity, again, **more)
    )


def test_why_lamp_and_magnitude_are_two_where_layers_compete_or_the_best_leave_first() -> None:
    """Inverted, of equal weights the first has the lowest score by magnitude, and the last by lamp."""
    net = network(0)
    assert not equal(
        masks_of(net, "lamp", "weight", 0.5, scope="global"),
        masks_of(net, "magnitude", "weight", 0.5, scope="global"),
    )
    for parameter in net.parameters():
        parameter.data = parameter.data.sign()
    one, two = (masks_of(net, c, "weight", 0.5, invert=True) for c in ("lamp", "magnitude"))
    assert not equal(one, two)
    prune = Prune("lamp", "weight", "layer", "one_shot", 0.5)
    for changed, expected in (
        ({}, "magnitude"),
        ({"scope": "unit"}, "magnitude"),
        ({"scope": "erk"}, "magnitude"),
        ({"granularity": "nm", "scope": "global"}, "magnitude"),
        ({"scope": "global"}, "lamp"),
        ({"granularity": "unit"}, "lamp"),
        ({"control": "invert"}, "lamp"),
        ({"schedule": "score_below(value=0.1)"}, "lamp"),
        ({"scope": "global", "protect": ("hidden.0", "hidden.1")}, "magnitude"),  # one layer competes
    ):
        trial = replace(TRIAL, prune=replace(prune, **changed))
        assert plain_values(trial)["prune"].criterion == expected, changed


@pytest.mark.parametrize(("name", "other", "granularity"), DECLARED)
@given(seed=st.integers(0, 10_000), amount=st.floats(0, 1), invert=st.booleans(), index=st.integers(0, 3))
def test_criteria_declared_alike_choose_the_same(
    name: str, other: str, granularity: str, seed: int, amount: float, invert: bool, index: int
) -> None:
    net, scopes = network(seed), SCOPES_OF.get(granularity, ("layer", "global"))
    scope = scopes[index % len(scopes)]
    one, two = (masks_of(net, c, granularity, amount, scope=scope, invert=invert) for c in (name, other))
    assert equal(one, two)
    # And again under those masks, as a second round.
    more = {"masks": one, "scope": scope, "invert": invert}
    again = min(1.0, amount + 0.2)
    assert equal(
        masks_of(net, name, granularity, again, **more), masks_of(net, other, granularity, again, **more)
    )


@pytest.mark.parametrize(
    "schedule", ["threshold", "column_mean", "pq_index", "mean_norm", "cubic", "iterative"]
)
@pytest.mark.parametrize(("name", "other", "granularity"), DECLARED)
def test_they_do_under_schedules_that_read_the_values(
    name: str, other: str, granularity: str, schedule: str
) -> None:
    assert not schedules.get(schedule).traits.get("scores")
    for seed in range(3):
        one, two = (masks_of(network(seed), c, granularity, 0.9, schedule=schedule) for c in (name, other))
        assert equal(one, two)


def test_a_schedule_that_reads_the_scores_tells_l1_from_l2_but_not_from_magnitude() -> None:
    """|w| < 0.01 is not w^2 < 0.01."""
    net = network(0)
    options = {"schedule": "score_below(value=0.05)"}
    by_name = {c: masks_of(net, c, "weight", 1.0, **options) for c in ("magnitude", "l1", "l2")}
    assert equal(by_name["magnitude"], by_name["l1"])
    assert not equal(by_name["magnitude"], by_name["l2"])


@pytest.mark.parametrize("kind", ["slp", "mlp(widths=[12, 8])", "cnn(widths=[4, 8])"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_no_two_criteria_choose_the_same_without_saying_so(granularity: str, kind: str) -> None:
    """On five networks, at three amounts: a new criterion that is an old one by another name fails here."""
    amounts = (0.5,) if granularity == "nm" else (0.3, 0.6, 0.8)
    applicable = []
    for name in criteria:
        traits = criteria.get(name).traits
        without_norms = not kind.startswith("cnn") or granularity in ("weight", "nm")
        if ("norms" in traits and without_norms) or ("groups" in traits and granularity in ("weight", "nm")):
            continue
        applicable.append(name)
    alike = {
        (one, two)
        for one, two in combinations(applicable, 2)
        if told(one, granularity, kind) != told(two, granularity, kind)
    }
    for seed, amount in product(range(5), amounts):  # few pairs are left after the first
        net = network(seed, kind)
        masks = {
            # synflow's hundred passes take long
            name: masks_of(net, "synflow(rounds=3)" if name == "synflow" else name, granularity, amount)
            for name in {name for pair in alike for name in pair}
        }
        alike = {(one, two) for one, two in alike if equal(masks[one], masks[two])}
    assert alike == set()


def told(criterion: str, granularity: str, kind: str) -> str:
    """What a plan takes the criterion for."""
    prune = Prune(criterion, granularity, "layer", "one_shot", 0.5)
    config = TrialConfig(replace(BASE, model=kind), prune, "none", "x")
    return plain_values(config)["prune"].criterion


@pytest.mark.parametrize("granularity", ["weight", "unit"])
@given(amount=st.floats(0, 1), ties=st.integers(1, 4), seed=st.integers(0, 1000))
def test_one_layer_competes_with_itself_whatever_the_scope(
    granularity: str, amount: float, ties: int, seed: int
) -> None:
    """Ties too: few values of the weights, so that many units are equally good."""
    net = network(seed, "slp")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_((parameter * ties * 8).round())
    scopes = ("layer", "global", "erk") if granularity == "weight" else ("layer", "global")
    first, *others = (masks_of(net, "l2", granularity, amount, scope=scope) for scope in scopes)
    assert all(equal(first, other) for other in others)
    if granularity == "unit":
        assert equal(first, masks_of(net, "l2", "channel", amount))


# ---- in a plan


def planned(tmp_path: Path, axes: str, more: str = "") -> Plan:
    file = tmp_path / "mine.yaml"
    file.write_text(f"axes: {{dataset: digits, amount: [0, 0.5], {axes}}}\n{more}")
    return make_plan(load_space(str(file)))


@pytest.mark.parametrize(
    ("axes", "more", "left", "axis", "left_out", "kept", "reason"),
    [
        ("model: mlp, criterion: [magnitude, l1]", "", 2, "technique", "l1", "magnitude",
         "l1 and magnitude: criterion l1 and magnitude choose the same at granularity weight: planned once"),
        ("model: mlp, criterion: [l2, magnitude]", "", 2, "technique", "magnitude", "l2",
         "magnitude and l2: criterion magnitude and l2 choose the same at granularity weight: planned once"),
        ("model: mlp, criterion: [magnitude, lamp], scope: layer", "", 2, "technique", "lamp", "magnitude",
         "lamp and magnitude: criterion lamp and magnitude choose the same within a layer at granularity "
         "weight: planned once"),
        ("model: mlp, criterion: [lamp, l2], granularity: nm", "", 2, "technique", "l2", "lamp",
         "l2 and lamp: criterion l2 and lamp choose the same within a layer at granularity nm: planned once"),
        ("model: mlp, criterion: [l1, magnitude], granularity: unit, scope: layer", "", 2, "technique",
         "magnitude", "l1",
         "magnitude and l1: criterion magnitude and l1 choose the same at granularity unit: "
         "planned once"),
        ("model: slp, technique: [weight, unstructured]", "", 2, "technique", "unstructured", "weight",
         "unstructured and weight: scope global and layer are one where slp has one layer to prune: "
         "planned once"),
        ("model: slp, technique: [neuron, structured]", "", 2, "technique", "structured", "neuron",
         "structured and neuron: granularity channel and unit are both the inputs of the only layer: "
         "planned once"),
        ("model: 'mlp(widths=[8])', technique: [weight, unstructured]", "protect: [output]\n", 2, "technique",
         "unstructured", "weight",
         "unstructured and weight: scope global and layer are one where mlp has one layer to prune: "
         "planned once"),
        ("model: slp, criterion: [synflow, magnitude]", "", 2, "technique", "magnitude", "synflow",
         "magnitude and synflow: criterion magnitude and synflow choose the same of one Linear layer: "
         "planned once"),
        ("model: mlp, schedule: [one_shot, iterative(rounds=1)]", "", 2, "schedule",
         "iterative(rounds=1)", "one_shot",
         "schedule iterative(rounds=1) and one_shot are both one round: planned once"),
        ("model: mlp, recover: [finetune(epochs=1), finetune]", "", 2, "recover", "finetune",
         "finetune(epochs=1)",
         "recover finetune and finetune(epochs=1) are as many epochs of 10: planned once"),
        ("model: mlp, distill: [none, soft_labels]", "", 2, "distill", "soft_labels", "none",
         "distill soft_labels and none are one where nothing is trained afterwards: planned once"),
        ("model: mlp, train.momentum: [0.9, 0.5]", "", 2, "train.momentum", "0.5", "0.9",
         "train.momentum 0.5 and 0.9 are one: adam reads no momentum: planned once"),
    ],
)  # fmt: skip
def test_equal_points_are_planned_once_and_the_others_are_told(
    axes: str, more: str, left: int, axis: str, left_out: str, kept: str, reason: str, tmp_path: Path
) -> None:
    found = planned(tmp_path, axes, more)
    assert len(found.trials) == left
    assert found.excluded == (Exclusion(reason, 2, axis, left_out, kept),)


@pytest.mark.parametrize(
    "axes",
    [
        "model: mlp, criterion: [magnitude, l2], schedule: score_below",
        "model: mlp, criterion: [magnitude, l2], granularity: unit, scope: layer",
        "model: mlp, criterion: [snip, taylor], granularity: channel",
        "model: mlp, criterion: [magnitude, lamp], scope: global",
        "model: mlp, criterion: [magnitude, wanda], scope: unit",
        "model: mlp, criterion: [taylor, fisher]",
        "model: mlp, criterion: [l2, fpgm], granularity: unit",
        "model: mlp, criterion: [magnitude, movement], when: during",
        "model: mlp, criterion: [random], scope: [layer, global]",
        "model: mlp, technique: [weight, unstructured]",
        "model: mlp, schedule: [one_shot, iterative(rounds=2)]",
        "model: mlp, recover: ['finetune(epochs=1)', 'finetune(epochs=1, lr=0.5)']",
        "model: mlp, recover: ['finetune(epochs=1)', 'finetune(epochs=\"20%\")']",
        "model: mlp, recover: [rewind, reinit]",
        "model: mlp, recover: ['rewind(to=\"10%\")', 'lr_rewind(epochs=\"90%\")']",
        "model: mlp, distill: [none, soft_labels], recover: finetune",
        "model: mlp, distill: [none, soft_labels], when: during",
        "model: mlp, train.momentum: [0.9, 0.5], train.optimizer: sgd",
    ],
)
def test_what_differs_stays(axes: str, tmp_path: Path) -> None:
    found = planned(tmp_path, axes)
    assert len(found.trials) == 4
    assert found.excluded == ()


def test_amount_0_is_a_row_in_each_technique(tmp_path: Path) -> None:
    found = planned(tmp_path, "model: mlp, technique: [weight, unstructured, neuron, structured]")
    assert [trial.config.prune.amount for trial in found.trials].count(0.0) == 4


def test_a_search_asks_for_no_point_that_is_an_earlier_one(tmp_path: Path) -> None:
    axes = "model: mlp, criterion: [magnitude, l1, l2]"
    found = planned(
        tmp_path, axes, "search: {method: random, trials: 6, objectives: {final/val_accuracy: max}}\n"
    )
    assert len(found.trials) == 2
    assert found.exhausted


# ---- to the last bit

BASE = DenseConfig("slp", "digits", 64, 0, Train(epochs=2), Numerics(micro_batch=4096))
MLP = replace(BASE, model="mlp(widths=[16, 8])")
PRUNE = Prune("magnitude", "weight", "layer", "one_shot", 0.6)
TRIAL = TrialConfig(MLP, PRUNE, "none", "x")
TAUGHT = "soft_labels(temperature=4.0, weight=0.5)"
PAIRS = {
    "scope": (replace(TRIAL, dense=BASE), {"prune": replace(PRUNE, scope="global")}),
    "granularity": (
        replace(TRIAL, dense=BASE, prune=replace(PRUNE, criterion="l2", granularity="unit")),
        {"prune": replace(PRUNE, criterion="l2", granularity="channel")},
    ),
    "criterion": (replace(TRIAL, recover="rewind(to=0)"), {"prune": replace(PRUNE, criterion="l2")}),
    "gradient": (
        replace(TRIAL, prune=replace(PRUNE, criterion="snip", schedule="iterative(rounds=2)")),
        {"prune": replace(PRUNE, criterion="taylor", schedule="iterative(rounds=2)")},
    ),
    "schedule": (TRIAL, {"prune": replace(PRUNE, schedule="iterative(rounds=1)")}),
    "recover": (
        replace(TRIAL, recover="finetune(epochs=1, lr=1.0)"),
        {"recover": "finetune(epochs='50%', lr=1.0)"},
    ),
    "distill": (TRIAL, {"distill": TAUGHT}),
    "momentum": (TRIAL, {"dense": replace(MLP, train=Train(epochs=2, momentum=0.5))}),
    "cubic while training": (
        replace(TRIAL, when="during"),
        {"prune": replace(PRUNE, schedule="cubic(rounds=1)")},
    ),
}


def ran(config: TrialConfig) -> TrialResult:
    return run_trial(config, digits(), store=Trained())


@pytest.mark.parametrize("name", PAIRS)
def test_equal_points_have_equal_results_to_the_last_bit(name: str) -> None:
    first, change = PAIRS[name]
    second = replace(first, **change)
    assert first.key() != second.key()
    assert plain_key(first) == plain_key(second)
    one, two = ran(first), ran(second)
    assert equal(one.last.state.masks, two.last.state.masks)
    assert equal(dict(one.last.state.weights), dict(two.last.state.weights))
    for ours, theirs in zip(one.rounds, two.rounds, strict=True):
        timed = {"train_seconds": 0.0, "test_seconds": 0.0}
        assert replace(ours.measurement, **timed) == replace(theirs.measurement, **timed)


def test_every_recovery_says_whether_it_trains() -> None:
    """What says that it trains nothing has no length, and leaves teaching without effect."""
    idle = {name for name in recoveries if recoveries.get(name).traits.get("trains") is False}
    assert idle == {"none", "refit"}
    assert all("length" not in recoveries.get(name).traits for name in idle)


def test_plain_configurations_are_their_own() -> None:
    for granularity, scope, criterion in product(("weight", "unit"), ("layer", "global"), criteria):
        config = replace(
            TRIAL, prune=replace(PRUNE, criterion=criterion, granularity=granularity, scope=scope)
        )
        values = plain_values(config)
        assert plain_values(replace(config, **values)) == values
