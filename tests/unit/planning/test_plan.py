"""A space becomes its trials: counts by hand, what is shared, what is left out, and the keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from hashlib import sha256
from pathlib import Path
from time import process_time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import config, keys
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.data import loading
from orchestrator.errors import SpaceError
from orchestrator.execution.summary import Preview
from orchestrator.planning.estimate import RUN_BYTES, estimate, unknown_costs
from orchestrator.planning.plan import Exclusion, Plan, make_plan
from orchestrator.space.space import load_space
from orchestrator.trial.params import params
from pruning.mask_selection import SCOPES

AXES = {"model": "slp", "dataset": "digits", "amount": "0.5"}


def planned(tmp_path: Path, *sets: str, rest: str = "", **axes: str) -> Plan:
    file = tmp_path / "mine.yaml"
    text = ", ".join(f"{name}: {value}" for name, value in {**AXES, **axes}.items())
    file.write_text(f"axes: {{{text}}}\n{rest}\n")
    return make_plan(load_space(str(file), sets))


# Counts


def test_four_techniques_is_168_trials_on_6_trainings() -> None:
    found = make_plan(load_space("four-techniques"))
    assert len(found.trials) == 2 * 4 * 7 * 3 == 168
    assert len(found.dense) == 2 * 3
    assert found.excluded == ()
    assert {trial.config.prune.amount for trial in found.trials} >= {0.0, 0.5, 0.99}
    assert {trial.config.technique for trial in found.trials} == {
        "weight",
        "unstructured",
        "neuron",
        "structured",
    }


def test_quickstart_is_104_trials_on_4_trainings() -> None:
    found = make_plan(load_space("quickstart"))
    assert len(found.trials) == 13 * 2 * 4 == 104
    assert [dense.seed for dense in found.dense] == [0, 1, 2, 3]
    assert {dense.dataset for dense in found.dense} == {"mnist-5k"}


def test_weight_vs_unit_is_130_trials_on_5_trainings() -> None:
    found = make_plan(load_space("weight-vs-unit"))
    assert len(found.trials) == 13 * 2 * 5 == 130
    assert [dense.seed for dense in found.dense] == [0, 1, 2, 3, 4]
    first = found.trials[0].config
    assert first.dense.train == Train(epochs=10, optimizer="adam", lr=0.001)
    assert first.prune == Prune("magnitude", "weight", "layer", "one_shot", 0.0, ("output",))
    assert (first.recover, first.technique) == ("none", "weight")
    assert found.excluded == ()


def test_full_grid_plans_without_its_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORCHESTRATE_DATA_DIR", str(tmp_path / "nothing"))
    assert load_space("full-grid").axes.model[2] == "densenet121"
    # A network that is probed in a second in place of densenet121's half a minute.
    found = make_plan(load_space("full-grid", ["model=slp,cnn,resnet(depth=8)"]))
    assert len(found.trials) == 3 * 4 * 11 * 3 * (2 + 4 + 4) == 3960  # slp has one layer: two ways are others
    assert len(found.dense) == 3 * 3 * 4 * 3 == 108
    assert [(item.left_out, item.planned, item.count) for item in found.excluded] == [
        ("unstructured", "weight", 3 * 4 * 11 * 3),
        ("structured", "neuron", 3 * 4 * 11 * 3),
    ]
    sizes = {(dense.dataset, dense.batch_size) for dense in found.dense}
    assert sizes == {
        (name, size)
        for name, whole in (("mnist", 54_000), ("fashion-mnist", 54_000), ("cifar10", 45_000))
        for size in (32, 256, 4000, whole)
    }
    assert {trial.requested_batch_size for trial in found.trials} == {32, 256, 4000, 60000}
    assert not (tmp_path / "nothing").exists()


def test_all_keys_differ_and_dense_configurations_are_shared() -> None:
    found = make_plan(load_space("four-techniques"))
    assert len({trial.key for trial in found.trials}) == 168
    assert all(trial.key == trial.config.key() for trial in found.trials)
    assert {id(trial.config.dense) for trial in found.trials} == {id(dense) for dense in found.dense}
    first = list(dict.fromkeys(trial.config.dense for trial in found.trials))
    assert tuple(first) == found.dense


def test_numerics_are_the_caller_s() -> None:
    found = make_plan(load_space("four-techniques"), device="cuda", precision="bf16", threads=3)
    assert found.dense[0].numerics == Numerics("cuda", "bf16", 3, 16_384)
    assert found.dense[-1].numerics.micro_batch == 2_048


def test_recipes_are_axes_too(tmp_path: Path) -> None:
    found = planned(tmp_path, "train.lr=0.1,0.2", "train.epochs=1,2,3", "train.optimizer=sgd")
    assert len(found.dense) == 6
    assert {(dense.train.lr, dense.train.epochs) for dense in found.dense} == {
        (lr, epochs) for lr in (0.1, 0.2) for epochs in (1, 2, 3)
    }
    assert {dense.train.optimizer for dense in found.dense} == {"sgd"}


def test_criterion_granularity_and_scope_can_be_axes(tmp_path: Path) -> None:
    found = planned(tmp_path, "criterion=magnitude,random", "scope=layer,global", model="mlp")
    assert [trial.config.technique for trial in found.trials] == [
        "magnitude/layer",
        "magnitude/global",
        "random/layer",
        "random/global",
    ]


# What is left out


def test_batch_sizes_that_coincide_are_planned_once(tmp_path: Path) -> None:
    found = planned(tmp_path, batch_size="[64, 4000, 60000]", seed="[0, 1]")
    assert [(t.config.dense.batch_size, t.requested_batch_size) for t in found.trials] == [
        (64, 64),
        (64, 64),
        (1257, 4000),
        (1257, 4000),
    ]
    reason = "batch size 60000 and 4000 are both the full batch of 1257 images: planned once"
    assert found.excluded == (Exclusion(reason, 2),)
    assert len(found.dense) == 4


def test_a_batch_size_that_is_excluded_makes_room_for_its_double(tmp_path: Path) -> None:
    found = planned(tmp_path, batch_size="[4000, 60000]", rest="exclude: {batch_size: 4000}")
    assert [trial.requested_batch_size for trial in found.trials] == [60000]
    assert found.excluded == (Exclusion("exclude {batch_size: 4000}", 1),)


def test_a_part_of_the_data_clips_at_its_own_size(tmp_path: Path) -> None:
    found = planned(tmp_path, dataset="'digits(samples_per_class=20)'", batch_size="1000")
    assert found.dense[0].batch_size == 200


def test_equal_points_are_planned_once(tmp_path: Path) -> None:
    found = planned(
        tmp_path, amount="[0.5, 50%, 5e-1]", model="['mlp(widths=[8])', {method: mlp, widths: [8]}]"
    )
    assert len(found.trials) == 1
    assert [item.count for item in found.excluded] == [5]
    assert "more than once" in found.excluded[0].reason


@pytest.mark.parametrize(
    "recover",
    ["['finetune(epochs=1, on=masked)', {method: finetune, epochs: 1, on: cut}]", "[finetune(epochs=1)]"],
    ids=["in the text", "as an axis"],
)
def test_training_masked_and_cut_are_two_trials_of_which_one_has_the_key_of_before(
    tmp_path: Path, recover: str
) -> None:
    axes = {} if "on:" in recover else {"finetune.on": "[masked, cut]"}
    found = planned(tmp_path, model="'mlp(widths=[8])'", technique="neuron", recover=recover, **axes)
    masked, cut = found.trials
    assert masked.config.recover == "finetune(epochs=1, lr=1.0)"
    assert cut.config.recover == "finetune(epochs=1, lr=1.0, on='cut')"
    assert masked.key == replace(cut.config, recover="finetune(epochs=1, lr=1.0)").key() != cut.key
    assert "recover.on" not in params(masked.config)
    assert params(cut.config)["recover.on"] == "cut"
    assert params(cut.config)["recover"] == "finetune(epochs=1, on='cut')"
    assert any("on='cut'" in line for line in unknown_costs([cut.config]))
    assert not any("on='cut'" in line for line in unknown_costs([masked.config]))


def test_single_weights_are_not_trained_on_a_cut_network(tmp_path: Path) -> None:
    found = planned(tmp_path, technique="[weight, neuron]", recover="[rewind(on=cut)]")
    assert [trial.config.technique for trial in found.trials] == ["neuron"]
    (exclusion,) = found.excluded
    assert exclusion.reason == (
        "recover rewind(on='cut') trains the network without its removed units: it needs granularity unit, "
        "channel or head, and weight removes single weights; leave on out, or give on='masked'"
    )


def test_exclude_matches_by_name_and_by_full_text(tmp_path: Path) -> None:
    models = "['mlp(widths=[8])', 'mlp(widths=[4])', slp]"
    rest = "exclude: [{model: mlp, technique: neuron}, {model: 'mlp(widths=[4])', amount: [50%]}, {seed: 7}]"
    found = planned(tmp_path, rest=rest, model=models, technique="[weight, neuron]", amount="[0, 0.5]")
    assert len(found.trials) == 12 - 4 - 1
    assert found.excluded == (
        Exclusion("exclude {model: mlp, technique: neuron}", 4),
        Exclusion("exclude {model: mlp(widths=[4], bias=False), amount: 0.5}", 1),
    )


def test_exclude_sees_what_a_technique_stands_for(tmp_path: Path) -> None:
    found = planned(tmp_path, rest="exclude: {criterion: l2, scope: layer}", technique="[weight, neuron]")
    assert [trial.config.technique for trial in found.trials] == ["weight"]


@pytest.mark.parametrize("scope", SCOPES)
def test_scopes_that_a_granularity_does_not_have(tmp_path: Path, scope: str) -> None:
    found = planned(tmp_path, granularity="[unit, channel]", scope=scope, model="mlp")
    left_out = scope in ("unit", "erk")
    assert len(found.trials) == (0 if left_out else 2)
    assert [item.count for item in found.excluded] == ([1, 1] if left_out else [])
    assert all(f"scope '{scope}' is for granularity weight" in item.reason for item in found.excluded)


def test_protect_that_leaves_nothing(tmp_path: Path) -> None:
    found = planned(
        tmp_path, rest="protect: [output]", model="[slp, mlp]", technique="[weight, neuron, structured]"
    )
    assert {trial.config.dense.model.partition("(")[0] for trial in found.trials} == {"mlp"}
    assert len(found.trials) == 3
    assert found.excluded == tuple(
        Exclusion(f"protect [output] leaves no {what} of slp to prune", 1)
        for what in ("weight", "unit", "channel")
    )
    assert len(found.dense) == 1


def test_protect_of_all_hidden_layers_leaves_weights_of_the_output_alone(tmp_path: Path) -> None:
    found = planned(
        tmp_path,
        rest="protect: [hidden.0]",
        model="'mlp(widths=[8])'",
        technique="[weight, neuron, structured]",
    )
    assert [trial.config.technique for trial in found.trials] == ["weight"]


def test_protect_names_layers_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"mlp: protect: no layer 'hiden.0'; there are hidden.0"):
        planned(tmp_path, rest="protect: [hiden.0]", model="mlp")


def test_patterns_and_only_are_the_protected_layers_of_each_model(tmp_path: Path) -> None:
    by_pattern = planned(tmp_path, rest='protect: ["hidden.[12]"]', model="'mlp(widths=[8, 8, 8])'")
    by_name = planned(tmp_path, rest="protect: [hidden.2, hidden.1]", model="'mlp(widths=[8, 8, 8])'")
    by_only = planned(tmp_path, rest="only: [hidden.0, output]", model="'mlp(widths=[8, 8, 8])'")
    by_set = planned(tmp_path, "only=hidden.*,output", "protect=hidden.[12]", model="'mlp(widths=[8, 8, 8])'")
    for found in (by_pattern, by_name, by_only, by_set):
        assert [trial.config.prune.protect for trial in found.trials] == [("hidden.1", "hidden.2")]
        assert params(found.trials[0].config)["protect"] == "hidden.1,hidden.2"
        assert found.trials[0].key == by_name.trials[0].key
    both = planned(tmp_path, rest='only: ["hidden.*"]', model="['mlp(widths=[8])', 'mlp(widths=[8, 8])']")
    assert [trial.config.prune.protect for trial in both.trials] == [("output",), ("output",)]


def test_a_name_without_a_pattern_stays_as_it_was_in_keys(tmp_path: Path) -> None:
    found = planned(tmp_path, rest="protect: [output, input]", model="'mlp(widths=[8, 8])'")
    assert [trial.config.prune.protect for trial in found.trials] == [("input", "output")]


def test_only_that_leaves_nothing_and_patterns_that_match_nothing(tmp_path: Path) -> None:
    found = planned(tmp_path, rest="only: [output]", model="'mlp(widths=[8])'", technique="[weight, neuron]")
    assert [trial.config.technique for trial in found.trials] == ["weight"]
    assert [item.reason for item in found.excluded] == ["only [output] leaves no unit of mlp to prune"]
    with pytest.raises(SpaceError, match=r"mlp: only: pattern 'hiden.\*' matches no layer; there are hidden"):
        planned(tmp_path, rest='only: ["hiden.*"]', model="mlp")


def test_combinations_that_the_engine_refuses(tmp_path: Path) -> None:
    found = planned(tmp_path, model="mlp", granularity="nm", amount="[0, 0.5, 0.9]")
    assert [trial.config.prune.amount for trial in found.trials] == [0.0, 0.5]
    assert "2:4 removes 0.5 of every row" in found.excluded[0].reason
    found = planned(tmp_path, model="[mlp, cnn]", criterion="bn_scale", granularity="unit", scope="layer")
    assert [trial.config.dense.model for trial in found.trials] == ["cnn(widths=[32, 64, 128])"]
    assert "batch norms" in found.excluded[0].reason
    found = planned(tmp_path, dataset="'digits(samples_per_class=5)'", criterion="snip")
    assert found.trials == found.dense == ()
    assert "snip looks at 10 images per class; digits(samples_per_class=5) has 5" in found.excluded[0].reason
    found = planned(tmp_path, model="mlp", criterion="pivoted_qr", granularity="[weight, unit, channel, nm]")
    assert [trial.config.prune.granularity for trial in found.trials] == ["unit", "channel"]
    assert [item.count for item in found.excluded] == [1, 1]
    assert all("'pivoted_qr' ranks whole units or channels" in item.reason for item in found.excluded)
    found = planned(tmp_path, model="['vit(dim=8, depth=1, heads=1)', slp]", criterion="synflow")
    assert [trial.config.dense.model for trial in found.trials] == ["slp"]
    assert found.excluded[0].reason.startswith("vit: criterion 'synflow' needs a network that passes a flow")
    found = planned(tmp_path, model="mlp", criterion="fpgm", granularity="[weight, unit, channel, nm]")
    assert [trial.config.prune.granularity for trial in found.trials] == ["unit", "channel"]
    assert all("'fpgm' ranks whole units or channels" in item.reason for item in found.excluded)
    found = planned(tmp_path, criterion="movement", when="[init, after, during]")
    assert [trial.config.when for trial in found.trials] == ["during"]
    reason = "criterion movement sums over the steps of a training: it needs when: during"
    assert [item.reason for item in found.excluded] == [reason]
    assert sum(item.count for item in found.excluded) == 2
    found = planned(tmp_path, schedule="[score_below, threshold]", control="[none, invert]")
    assert len(found.trials) == 3
    assert "the scores are inverted" in found.excluded[0].reason


def test_nesterov_needs_momentum(tmp_path: Path) -> None:
    found = planned(tmp_path, rest="train: {optimizer: sgd, nesterov: true, momentum: 0}")
    assert found.excluded == (Exclusion("nesterov needs a momentum above 0", 1),)


def test_a_model_that_cannot_be_built_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match="give a list of positive integers"):
        planned(tmp_path, model="'mlp(widths=[0])'")


def test_planning_leaves_the_global_seeds_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    found = make_plan(
        load_space("four-techniques", ["criterion=bn_scale", "granularity=unit", "scope=layer"])
    )
    estimate(found, finished=())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "seeds", [50, pytest.param(500, marks=[pytest.mark.slow, pytest.mark.long])], ids=["a tenth", "all"]
)
def test_a_hundred_thousand_points_are_planned_at_a_constant_cost_each(seeds: int) -> None:
    sets = [
        f"seed=0..{seeds - 1}",
        "technique=weight,neuron,structured,unstructured,random",
        "amount=0,.1,.2,.3,.4,.5,.6,.7,.8,.9",
    ]
    space = load_space("four-techniques", [*sets, "recover=none,finetune(epochs=1)"])
    started = process_time()
    found = make_plan(space)
    # 0.1 ms each on an idle core; were each compared with all, hours
    assert process_time() - started < 10 + seeds / 10
    assert len(found.trials) == 2 * seeds * 5 * 10 * 2
    assert len(found.dense) == 2 * seeds


# Keys

DENSE = DenseConfig("slp", "digits", 64, 0, Train(), Numerics())
TRIAL = TrialConfig(DENSE, Prune("magnitude", "weight", "layer", "one_shot", 0.5), "none", "weight")
OTHERS = {str: "other", int: 7, float: 0.123, bool: True, tuple: ("output",)}
PARTS = {"dense", "prune", "train", "numerics"}
LABELS = {"technique", "amount_label"}


def changed(base: object) -> Iterator[object]:
    """`base` with one field changed, for each of its fields but the labels and those that are parts."""
    for field in fields(base):  # type: ignore[arg-type]
        if field.name not in PARTS | LABELS:
            pairs = (("macs", 1000),) if field.name == "limits" else None
            other = pairs or OTHERS[type(getattr(base, field.name))]
            yield replace(base, **{field.name: other})  # type: ignore[type-var]


def test_a_change_of_any_field_changes_the_key() -> None:
    denses = [
        *changed(DENSE),
        *(replace(DENSE, train=train) for train in changed(DENSE.train)),
        *(replace(DENSE, numerics=numerics) for numerics in changed(DENSE.numerics)),
    ]
    trials = [
        TRIAL,
        *changed(TRIAL),
        *(replace(TRIAL, prune=prune) for prune in changed(TRIAL.prune)),
        *(replace(TRIAL, dense=dense) for dense in denses),
    ]
    assert len(trials) > len(denses) > 0
    assert len({config.key() for config in trials}) == len(trials)


def test_labels_are_no_part_of_the_key_and_equal_configurations_have_equal_keys() -> None:
    assert replace(TRIAL, technique="other").key() == TRIAL.key()
    assert replace(TRIAL, prune=replace(TRIAL.prune, amount_label="other")).key() == TRIAL.key()
    again = TrialConfig.from_json(json.loads(json.dumps(asdict(TRIAL))))
    assert again == TRIAL
    assert again.key() == TRIAL.key()


def test_the_key_is_the_hash_of_the_canonical_json() -> None:
    dense = {
        "batch_size": 64,
        "dataset": "digits",
        "model": "slp",
        "numerics": {"device": "cpu", "micro_batch": 256, "precision": "fp32", "tf32": False, "threads": 1},
        "seed": 0,
        "stage": "dense",
        "train": {
            "augment": "none",
            "clip_norm": 0.0,
            "epochs": 10,
            "lr": 0.001,
            "momentum": 0.9,
            "nesterov": False,
            "optimizer": "adam",
            "schedule": "constant",
            "warmup_epochs": 0,
            "weight_decay": 0.0,
        },
        "version": keys.STAGE_VERSIONS["dense"],
    }
    text = json.dumps(dense, separators=(",", ":"))
    assert DENSE.key() == sha256(text.encode()).hexdigest()


def test_a_field_that_came_later_is_in_no_key_until_it_is_used() -> None:
    last = replace(DENSE, train=replace(DENSE.train, channels_last=True))
    assert "train.channels_last" not in dict(config.flat(DENSE))
    assert dict(config.flat(last))["train.channels_last"] is True
    assert last.key() != DENSE.key()
    old = asdict(DENSE)
    del old["train"]["channels_last"]
    assert config.dense_from_json(old) == DENSE
    assert config.dense_from_json(asdict(last)) == last


def test_the_cached_key_is_no_field() -> None:
    DENSE.key()
    assert asdict(TRIAL)["dense"].keys() == {field.name for field in fields(DENSE)}
    assert replace(DENSE, seed=1).key() != DENSE.key()
    assert replace(DENSE) == DENSE


@given(st.permutations(["model: [slp]", "dataset: [digits]", "amount: [0, 25%]", "technique: [random]"]))
def test_keys_do_not_depend_on_the_order_in_a_file(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    file = tmp_path_factory.mktemp("space") / "mine.yaml"
    file.write_text("axes:\n" + "".join(f"  {line}\n" for line in lines))
    found = [trial.key for trial in make_plan(load_space(str(file))).trials]
    numerics = Numerics(micro_batch=65_536)
    dense = DenseConfig("slp", "digits", 64, 0, Train(), numerics, data_sha256=loading.digest("digits"))
    prunes = [Prune("random", "weight", "global", "one_shot", amount) for amount in (0.0, 0.25)]
    assert found == [TrialConfig(dense, prune, "none", "random").key() for prune in prunes]


# The estimate


def test_estimate_counts_what_is_left() -> None:
    found = make_plan(load_space("four-techniques"))
    whole = estimate(found, finished=())
    assert (whole.trials_to_run, whole.dense_to_run, whole.reused) == (168, 6, 0)
    assert whole.seconds > 0
    # Trials of the first training alone: its key is finished, so are all but 1 of its 28 trials
    first = found.dense[0]
    rest = [trial for trial in found.trials if trial.config.dense != first]
    done = {first.key(), *(trial.key for trial in found.trials if trial not in rest)}
    left = estimate(found, finished=done - {found.trials[0].key})
    assert (left.trials_to_run, left.dense_to_run, left.reused) == (141, 5, 27)
    nothing = estimate(found, finished=[trial.key for trial in found.trials])
    assert (nothing.seconds, nothing.train_flops, nothing.disk_bytes, nothing.dense_to_run) == (0, 0, 0, 0)


def test_estimate_of_flops_and_bytes_by_hand(tmp_path: Path) -> None:
    found = planned(
        tmp_path,
        "schedule=iterative(rounds=3)",
        "recover=finetune(epochs=2)",
        "train.epochs=5",
        amount="[0.5, 0.9]",
    )
    cost = estimate(found, finished=(), concurrency=2)
    # slp on digits: 640 MACs, no gradient of its input: 2 passes x 2 FLOPs; 5 epochs, then 2 x 3 rounds x 2
    assert cost.train_flops == 640 * 2 * 2 * 1257 * (5 + 2 * 3 * 2)
    # 650 parameters of 4 bytes in 3 runs, and a bit for each of 640 weights in the two pruned ones
    assert cost.disk_bytes == 3 * 650 * 4 + 2 * 80 + 3 * RUN_BYTES
    alone = replace(found, trials=found.trials[:1])
    assert estimate(alone, finished=()).trials_to_run == 1
    assert "timed training steps" in cost.basis


def test_a_trial_without_recovery_stores_masks_alone(tmp_path: Path) -> None:
    cost = estimate(planned(tmp_path), finished=())
    assert cost.disk_bytes == 650 * 4 + 80 + 2 * RUN_BYTES
    assert cost.train_flops == 640 * 4 * 1257 * 10


def test_the_time_is_that_of_start_up_training_and_recording() -> None:
    """By hand: 174 runs at a quarter of a second, two at a time, and 12 seconds until the first begins."""
    cost = estimate(make_plan(load_space("four-techniques")), finished=(), concurrency=2)
    assert (cost.start_seconds, cost.recording_seconds) == (12.0, 0.25 * 174 / 2)
    assert cost.seconds == pytest.approx(cost.start_seconds + cost.training_seconds + cost.recording_seconds)
    assert cost.training_seconds > 0
    assert cost.unknown == ""
    lines = list(Preview(make_plan(load_space("four-techniques")), cost).lines())
    (time,) = (line for line in lines if line.startswith("time"))
    assert re.fullmatch(
        r"time +about \S+ \w+: start-up 12 s, training .+, measuring and recording 22 s", time
    )


def test_networks_without_a_known_error_are_told_in_one_list(tmp_path: Path) -> None:
    first = planned(tmp_path, "criterion=random", "recover=none").trials[0].config
    others = [replace(first, dense=replace(first.dense, model=name)) for name in ("bars", "stripes(width=2)")]
    assert list(unknown_costs([first, *others, others[0]])) == [
        "no estimate was compared with a sweep of bars, stripes"
    ]


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (("model=slp", "recover=refit", "technique=neuron"), "the time of refit is not counted"),
        (("criterion=snip",), "the passes of snip through the network are not counted"),
        (("model=densenet121",), "no estimate was compared with a sweep of densenet121"),
        (("criterion=random", "recover=finetune(epochs=1)"), ""),
    ],
)
def test_an_estimate_whose_error_nobody_knows_says_so(
    sets: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    cost = estimate(planned(tmp_path, *sets), finished=())
    assert cost.unknown == said
    shown = [
        line for line in Preview(planned(tmp_path, *sets), cost).lines() if "its error is unknown" in line
    ]
    assert [line.strip() for line in shown] == ([f"its error is unknown: {said}"] if said else [])


def test_an_estimate_for_a_gpu_is_of_unknown_error(tmp_path: Path) -> None:
    planned(tmp_path)
    plan = make_plan(load_space(str(tmp_path / "mine.yaml")), device="cuda")
    assert estimate(plan, finished=()).unknown.startswith("no estimate was compared with a sweep on a GPU")
