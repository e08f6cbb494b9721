"""Amounts by layer in a space: one key for equal meanings, what is left out, and how they read everywhere."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from whole_sweep import record_sweep

import orchestrator
from orchestrator.analysis.paired import differences, read_baseline
from orchestrator.config import TrialConfig
from orchestrator.errors import SpaceError
from orchestrator.model_io.rerun import compare, find_recorded_run, rerun
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.planning.plan_file import load_planned_rows
from orchestrator.planning.resume import plan_text, remaining_tasks
from orchestrator.planning.run_names import trial_name
from orchestrator.space.space import Space, json_schema, load_space
from orchestrator.tracking import Tracker
from orchestrator.trial.params import MAX_LABEL, MAX_LENGTH, amount_columns, params

MLP = "'mlp(widths=[8, 8, 8])'"  # hidden.0, hidden.1, hidden.2, output


def space(tmp_path: Path, amount: str, *sets: str, model: str = MLP, rest: str = "", **axes: str) -> Space:
    file = tmp_path / "mine.yaml"
    more = "".join(f", {name}: {value}" for name, value in axes.items())
    file.write_text(f"axes: {{model: {model}, dataset: [digits], amount: {amount}{more}}}\n{rest}\n")
    return load_space(str(file), sets)


def planned(tmp_path: Path, amount: str, *sets: str, **options: str) -> Plan:
    return make_plan(space(tmp_path, amount, *sets, **options))


def only_trial(plan: Plan) -> TrialConfig:
    (trial,) = plan.trials
    return trial.config


# ---- what a file may say


def test_a_mapping_is_one_value_of_the_axis(tmp_path: Path) -> None:
    text = '{"hidden.0": 25%, "*": 50%}'
    assert space(tmp_path, f"[0.5, {text}]").axes.amount == (0.5, text)
    assert space(tmp_path, text).axes.amount == (text,)
    assert space(tmp_path, "0.5", f"amount={text}").axes.amount == (text,)
    assert space(tmp_path, "0.5", f"amount=0,{text},90%").axes.amount == (0.0, text, 0.9)
    assert space(tmp_path, "[{hidden.0: 0.25, '*': 5e-1}]").axes.amount == (text,)


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        ("[{}]", r"axes.amount\[0\]: 0 amounts by layer; give 1 to 1000, \{\"layer4"),
        ('[{"*": 90}]', r"axes.amount\[0\]: \*: 90 is no amount in \[0, 1\], or 0% to 100%; 0.9 or 90%\?"),
        ('[{"*": 120%}]', r"axes.amount\[0\]: \*: 120% is no amount in \[0, 1\]"),
        ('[{"*": {low: 0.1, high: 0.5}}]', r"axes.amount\[0\]: \*: \{.*\} is no amount"),
        ('[{"*": [0.1, 0.5]}]', r"axes.amount\[0\]: \*: \[0.1, 0.5\] is no amount"),
        ('[{"*": true}]', r"axes.amount\[0\]: \*: True is no amount"),
        ('[{"": 0.5}]', r"axes.amount\[0\]: '' is no name or pattern of layers"),
        ("{low: {a: 0.1}, high: 0.5}", "axes.amount: low is .* give one number"),
        ('[{"*": 0.5, "*": 0.6}]', "'\\*' is given twice"),
    ],
)
def test_what_a_file_may_not_say(tmp_path: Path, amount: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message) as error:
        space(tmp_path, amount)
    assert "\n" not in str(error.value)
    assert ":1: " in str(error.value)


def test_editors_know_both_forms() -> None:
    schema = json.dumps(json_schema()["$defs"]["Axes"]["properties"]["amount"])
    assert '"additionalProperties": {"anyOf": [{"maximum": 1, "minimum": 0, "type": "number"}' in schema


# ---- keys


@pytest.mark.parametrize("technique", ["weight", "unstructured", "neuron", "structured"])
def test_equal_meanings_have_one_key_and_are_planned_once(tmp_path: Path, technique: str) -> None:
    plan = planned(
        tmp_path,
        '[{"hidden.0": 25%, "hidden.*": 75%, "*": 50%}, {output: 0.5, "*.2": 0.75, "*.1": 75%, input: 0.25},'
        ' {"*.[12]": 0.75, hidden.0: 0.25, "*": 0.5}]',
        technique=technique,
    )
    amounts = (("hidden.0", 0.25), ("hidden.1", 0.75), ("hidden.2", 0.75))
    expected = amounts if technique in ("neuron", "structured") else (*amounts, ("output", 0.5))
    assert only_trial(plan).prune.layer_amounts == expected
    assert [item.count for item in plan.excluded] == [2]
    assert "more than once: planned once" in plan.excluded[0].reason
    other = planned(tmp_path, '{"hidden.0": 25%, "hidden.*": 74%, "*": 50%}', technique=technique)
    assert other.trials[0].key != plan.trials[0].key


def test_equal_amounts_are_the_plain_amount(tmp_path: Path) -> None:
    plain = only_trial(planned(tmp_path, "0.5"))
    for text in ('{"*": 50%}', '{"hidden.*": 0.5, output: 50%}', '{"hidden.0": 0.5, "*": 0.5}'):
        assert only_trial(planned(tmp_path, text)) == plain
    # Units of the output layer are classes: its amount has no say.
    units = only_trial(planned(tmp_path, "{output: 10%, '*': 50%}", technique="neuron"))
    assert units == only_trial(planned(tmp_path, "0.5", technique="neuron"))
    protected = only_trial(planned(tmp_path, "{output: 10%, '*': 50%}", rest="protect: [output]"))
    assert protected == only_trial(planned(tmp_path, "0.5", rest="protect: [output]"))
    zero = only_trial(planned(tmp_path, "{output: 0}"))
    assert zero == only_trial(planned(tmp_path, "0"))


def test_a_layer_without_a_match_has_amount_0(tmp_path: Path) -> None:
    one, other = (planned(tmp_path, text) for text in ("{output: 50%}", "{output: 50%, '*': 0}"))
    assert one.trials[0].key == other.trials[0].key
    assert only_trial(one).prune.layer_amounts == (("output", 0.5),)


def test_a_configuration_survives_json_and_the_old_form_is_read(tmp_path: Path) -> None:
    config = only_trial(planned(tmp_path, "{output: 50%, '*': 0.25}"))
    assert TrialConfig.from_json(json.loads(json.dumps(asdict(config)))) == config
    plain = only_trial(planned(tmp_path, "0.5"))
    old = json.loads(json.dumps(asdict(plain)))
    del old["prune"]["layer_amounts"], old["prune"]["amount_label"]
    assert TrialConfig.from_json(old) == plain
    assert TrialConfig.from_json(old).key() == plain.key()


# ---- what is left out


def test_methods_without_amounts_are_left_out_with_the_reason(tmp_path: Path) -> None:
    mapping = "{hidden.0: 50%, '*': 0.25}"
    plan = planned(tmp_path, mapping, granularity="[weight, nm]", schedule="[one_shot, threshold, pq_index]")
    assert [(t.config.prune.granularity, t.config.prune.schedule) for t in plan.trials] == [
        ("weight", "one_shot")
    ]
    reasons = [item.reason for item in plan.excluded]
    assert any(
        re.search("granularity 2:4 removes 0.5 of every row: it has no amounts by layer", r) for r in reasons
    )
    assert any("'threshold' decides itself how many go from each layer" in reason for reason in reasons)
    equal = planned(
        tmp_path, "{hidden.0: 50%, '*': 0.5}", granularity="nm", schedule="[one_shot, pq_index(rounds=2)]"
    )
    assert [trial.config.prune.amount for trial in equal.trials] == [0.5, 0.5]
    wrong = planned(tmp_path, "{hidden.0: 40%, '*': 0.4}", granularity="nm")
    assert "nm(n=2, m=4): amount is 0.4; 2:4 removes 0.5" in wrong.excluded[0].reason


def test_a_pattern_of_one_model_alone_leaves_out_the_other_and_one_of_none_is_an_error(
    tmp_path: Path,
) -> None:
    plan = planned(
        tmp_path, '["{}", 50%]'.replace('"{}"', "{hidden.2: 75%, '*': 50%}"), model=f"[{MLP}, slp]"
    )
    assert [len([t for t in plan.trials if t.config.dense.model.startswith(m)]) for m in ("mlp", "slp")] == [
        2,
        1,
    ]
    assert plan.excluded[0].reason.startswith("slp: amount: no layer 'hidden.2'; there are ")
    with pytest.raises(
        SpaceError, match=r"^mlp: amount: pattern 'hiden.\*' matches no layer; there are hidden"
    ):
        planned(tmp_path, "[50%, {'hiden.*': 50%}]")
    with pytest.raises(SpaceError, match=r"^mlp: amount: 'hidden.\*' decides no layer"):
        planned(tmp_path, "[50%, {'*': 50%, 'hidden.*': 75%}]")


def test_exclude_names_a_mapping(tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        "[50%, {output: 25%, '*': 75%}]",
        technique="[weight, neuron]",
        rest='exclude: [{amount: {output: 0.25, "*": 0.75}, technique: weight}]',
    )
    assert [(t.config.technique, t.config.prune.amount_label) for t in plan.trials] == [
        ("weight", ""),
        ("neuron", ""),
        ("neuron", ""),
    ]
    assert plan.excluded[0].reason == 'exclude {technique: weight, amount: {"output": 25%, "*": 75%}}'


def test_a_search_draws_mappings_as_it_draws_numbers(tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        "[50%, {output: 25%, '*': 75%}]",
        rest="search: {method: random, trials: 2}",
        technique="[weight]",
    )
    assert sorted(trial.config.prune.amount_label for trial in plan.trials) == [
        "",
        '{"output": 25%, "*": 75%}',
    ]
    record = json.loads(plan_text(plan))["asked"]
    assert sorted(str(point["params"]["amount"]) for point in record) == ["0.5", '{"output": 25%, "*": 75%}']


# ---- how they read


def test_params_names_and_tables(tmp_path: Path) -> None:
    text = '{"output": 25%, "*": 75%}'
    plan = planned(tmp_path, text)
    config = only_trial(plan)
    assert params(config)["amount"] == text
    assert not {"layer_amounts", "amount_label"} & params(config).keys()
    weights = {"hidden.0": 64 * 8, "hidden.1": 64, "hidden.2": 64, "output": 80}
    mean = (0.25 * 80 + 0.75 * (64 * 8 + 128)) / sum(weights.values())
    assert amount_columns(config) == {"amount": mean, "amount_text": text, "amounts": text}
    assert trial_name(config, ()) == f"weight {text} mlp seed 0"
    (row,) = load_planned_rows(plan_text(plan))
    assert (row["amount"], row["amount_text"], row["amounts"]) == (mean, text, text)


def test_long_texts_are_shortened_and_stay_apart(tmp_path: Path) -> None:
    widths = [2] * 120
    entries = {f"hidden.{n}": f"{(n % 90) / 100}" for n in range(120)}

    def config(**changes: str) -> TrialConfig:
        mapping = ", ".join(f"{name}: {value}" for name, value in {**entries, **changes}.items())
        return only_trial(planned(tmp_path, f"{{{mapping}, '*': 0.5}}", model=f"'mlp(widths={widths})'"))

    one, other = config(), config(**{"hidden.119": "0.99"})
    labels = [amount_columns(c)["amount_text"] for c in (one, other)]
    assert labels[0] != labels[1]
    assert all(len(label) <= MAX_LABEL for label in labels)
    assert re.fullmatch(
        r'\{"hidden.0": 0%, "hidden.1": 1%, "hidden.2": 2%, … and 118 more #[0-9a-f]{8}\}', labels[0]
    )
    assert params(one)["amount"] == one.prune.amount_label  # below MLflow's limit


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Plan]:
    """A sweep in a real store: two techniques at one amount and by layer, two seeds, one epoch."""
    folder = tmp_path_factory.mktemp("amounts")
    found = space(
        folder,
        "[50%, {output: 25%, '*': 75%}]",
        technique="[weight, unstructured]",
        seed="[0, 1]",
        rest="train: {epochs: 1}",
    )
    uri = f"sqlite:///{folder}/mlflow.db"
    record_sweep(uri, folder / "state", found)
    return uri, make_plan(found)


def test_a_recorded_sweep(swept: tuple[str, Plan]) -> None:
    uri, plan = swept
    frame = orchestrator.results("mine", uri=uri)
    by_layer = frame[frame["amounts"].notna()]
    assert len(frame) == 8
    assert len(by_layer) == 4
    # What came is what was asked for, each layer's count rounded.
    counts = {"hidden.0": (512, 0.75), "hidden.1": (64, 0.75), "hidden.2": (64, 0.75), "output": (80, 0.25)}
    gone = sum(int(amount * count + 0.5) for count, amount in counts.values())
    assert by_layer["final/sparsity"].tolist() == pytest.approx([gone / 720] * 4)
    tracker = Tracker(uri, "mine")
    rows = tracker.search("attributes.status = 'FINISHED' and tags.kind = 'trial'")
    assert {row.params["amount"] for row in rows} == {"0.5", '{"output": 25%, "*": 75%}'}
    assert not any(row.tags.get("notes", "").startswith("asked for") for row in rows)
    assert remaining_tasks(plan, tracker, retry_failed=False)[0] == []


def test_comparisons_pair_at_one_amount(swept: tuple[str, Plan]) -> None:
    frame = orchestrator.results("mine", uri=swept[0])
    pairs = differences(frame, read_baseline("weight", frame))
    assert [(pair.amount, pair.difference.count) for pair in pairs] == [
        ("50%", 2),
        ('{"output": 25%, "*": 75%}', 2),
    ]


def test_a_rerun_has_the_same_bits(swept: tuple[str, Plan]) -> None:
    uri, _ = swept
    rows = Tracker(uri, "mine").search("attributes.status = 'FINISHED' and tags.kind = 'trial'")
    row = next(row for row in rows if row.params["amount"] != "0.5")
    recorded = find_recorded_run(row.run_id, uri=uri)
    assert compare(recorded, rerun(recorded)).differences == []


def test_layers_without_a_match_stay_whole_in_every_technique(tmp_path: Path) -> None:
    found = space(
        tmp_path,
        "{'hidden.0': 50%}",
        technique="[weight, unstructured, neuron, structured]",
        schedule="[one_shot, iterative(rounds=2)]",
        rest="train: {epochs: 1}",
    )
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    record_sweep(uri, tmp_path / "state", found)
    frame = orchestrator.results("mine", uri=uri)
    assert len(frame) == 8
    assert set(frame["status"]) == {"finished"}
    # Half of the 512 weights of `hidden.0`, of 720; with whole units also the 32 that read nothing any more.
    sparsity = {"weight": 256, "unstructured": 256, "neuron": 256 + 32, "structured": 256 + 32}
    for technique, removed in sparsity.items():
        rows = frame[frame["technique"] == technique]
        assert rows["final/sparsity"].tolist() == pytest.approx([removed / 720] * 2), technique


NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, input_shape, num_classes):
        super().__init__(nn.Flatten())
        for number in range(64):
            self.add_module(f"{'long' * 45}{number}", nn.Linear(8 if number else 64, 8))
        self.add_module("output", nn.Linear(8, num_classes))
"""


def test_hundreds_of_names_fit_into_a_param_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    found = space(
        tmp_path,
        "{'long*8': 25%, '*': 50%}",
        model="'net.py:Net'",
        rest="protect: ['long*[0-5]']\ntrain: {epochs: 1}",
    )
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    record_sweep(uri, tmp_path / "state", found)
    plan, tracker = make_plan(found), Tracker(uri, "mine")
    (row,) = tracker.search("attributes.status = 'FINISHED' and tags.kind = 'trial'")
    config = only_trial(plan)
    names = config.prune.protect
    assert len(",".join(names)) > MAX_LENGTH
    # MLflow would cut a longer param off, or refuse it.
    assert len(row.params["protect"]) <= MAX_LENGTH
    shown, _, note = row.params["protect"].rpartition(",")
    assert re.fullmatch(r"… and [2-9] more #[0-9a-f]{8}", note)
    assert tuple(shown.split(",")) == names[: len(shown.split(","))]
    assert row.params["amount"] == '{"long*8": 25%, "*": 50%}'
    assert json.loads(tracker.read_text(row, "config.json")) == json.loads(json.dumps(asdict(config)))
    assert remaining_tasks(plan, tracker, retry_failed=False)[0] == []
