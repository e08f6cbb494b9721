"""What a space file may say, what is refused, and how the refusal reads."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config import Train
from orchestrator.errors import SpaceError
from orchestrator.space import space as spaces
from orchestrator.space import values, yaml_loader
from orchestrator.space.space import Space, load_space
from orchestrator.space.techniques import TECHNIQUES, resolve
from pruning.criteria import criteria
from pruning.granularity import granularities
from pruning.mask_selection import SCOPES

SMALL = "axes: {model: [slp], dataset: [digits], amount: [0.5]}\n"


def written(tmp_path: Path, text: str | bytes, name: str = "mine.yaml") -> str:
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(file)


def loaded(tmp_path: Path, text: str, *sets: str) -> Space:
    return load_space(written(tmp_path, text), sets)


def refused(tmp_path: Path, text: str | bytes, *sets: str) -> str:
    """The message of the refusal, which is one line and names the file or the --set."""
    file = written(tmp_path, text)
    with pytest.raises(SpaceError) as caught:
        load_space(file, sets)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    assert message.startswith(("--set ", file)), message
    return message.replace(file, "mine.yaml")


# What is read


def test_the_named_spaces_are_there() -> None:
    assert {"full-grid", "quickstart", "weight-vs-unit"} <= set(spaces.names())
    for name in spaces.names():
        found = load_space(name)
        assert found.name == name
        assert found.about
        assert found.text.startswith("version: 1\n")


def test_what_is_left_out_has_one_value(tmp_path: Path) -> None:
    found = loaded(tmp_path, SMALL)
    assert found.name == "mine"
    assert found.text == SMALL
    assert found.axes.non_empty() == {
        "model": ("slp",),
        "dataset": ("digits",),
        "batch_size": (64,),
        "schedule": ("one_shot",),
        "amount": (0.5,),
        "when": ("after",),
        "prepare": ("none",),
        "distill": ("none",),
        "control": ("none",),
        "seed": (0,),
    }
    assert Train(**found.train.model_dump()) == Train()
    assert found.recoveries == ("none",)
    assert found.points == 1


def test_a_scalar_is_a_list_of_one_and_a_range_is_written_out(tmp_path: Path) -> None:
    found = loaded(
        tmp_path, "axes: {model: slp, dataset: digits, amount: 25%, seed: 0..4}\nprotect: output\n"
    )
    assert found.axes.amount == (0.25,)
    assert found.axes.seed == (0, 1, 2, 3, 4)
    assert found.protect == ("output",)


def test_numbers_are_numbers_by_type(tmp_path: Path) -> None:
    found = loaded(tmp_path, f"{SMALL}train: {{lr: 1e-3, weight_decay: '5e-4', epochs: '3', momentum: 0}}\n")
    assert (found.train.lr, found.train.weight_decay, found.train.epochs) == (0.001, 0.0005, 3)
    assert type(found.train.momentum) is float


@pytest.mark.parametrize(
    ("given", "full"),
    [
        ("mlp", "mlp(widths=[1000, 1000, 500, 200], bias=False)"),
        ("mlp(bias=True)", "mlp(widths=[1000, 1000, 500, 200], bias=True)"),
        ("mlp(bias=False, widths=(8, 4))", "mlp(widths=[8, 4], bias=False)"),
        ({"method": "mlp", "widths": [8, 4]}, "mlp(widths=[8, 4], bias=False)"),
        ("slp()", "slp"),
    ],
)
def test_all_ways_to_write_a_model_have_one_full_text(given: object, full: str) -> None:
    assert values.canonical_model(given) == full
    assert values.canonical_model(full) == full


def test_all_ways_to_write_a_data_set_have_one_full_text() -> None:
    assert values.canonical_dataset("digits(classes=None)") == "digits"
    assert values.canonical_dataset(f"digits(classes={[*range(10)]})") == "digits"
    assert values.canonical_dataset(f"digits(classes={[*range(9, -1, -1)]})") != "digits"  # labels are others
    text = "digits(classes=[3, 1], samples_per_class=20)"
    assert values.canonical_dataset("digits(samples_per_class=20, classes=(3, 1))") == text
    assert values.canonical_dataset({"method": "digits", "classes": [3, 1], "samples_per_class": 20}) == text


def test_recovery_and_schedule_hold_every_option(tmp_path: Path) -> None:
    found = loaded(
        tmp_path, f"{SMALL}recover: {{method: finetune, epochs: 10%}}\n", "schedule=iterative(rounds=3)"
    )
    assert found.recoveries == ("finetune(epochs='10%', lr=1.0)",)
    assert found.axes.schedule == ("iterative(rounds=3)",)


def test_the_techniques_are_points_on_known_axes() -> None:
    table = {
        "weight": ("magnitude", "weight", "layer"),
        "unstructured": ("magnitude", "weight", "global"),
        "neuron": ("l2", "unit", "layer"),
        "structured": ("l2", "channel", "layer"),
        "random": ("random", "weight", "global"),
    }
    found = {name: (t.criterion, t.granularity, t.scope) for name, t in TECHNIQUES.items()}
    assert found == table
    for technique in TECHNIQUES.values():
        assert technique.criterion in criteria
        assert technique.granularity in granularities
        assert technique.scope in SCOPES
        assert technique.about
    with pytest.raises(ValueError, match="did you mean neuron"):
        resolve("neurons", {})


# --set


def test_set_replaces_axes_and_fields(tmp_path: Path) -> None:
    found = loaded(
        tmp_path,
        f"{SMALL}recover: none\n",
        "model=mlp(widths=[256, 256]),cnn",
        "seed=0..2,7",
        "train.epochs=2",
        "train.lr=1e-3,0.01",
        "protect=output,input",
        "recover=none,finetune(epochs=1)",
    )
    assert found.axes.model == ("mlp(widths=[256, 256], bias=False)", "cnn(widths=[32, 64, 128])")
    assert found.axes.seed == (0, 1, 2, 7)
    assert found.train.epochs == 2
    assert found.axes.train_lr == (0.001, 0.01)
    assert found.protect == ("input", "output")
    assert found.recoveries == ("none", "finetune(epochs=1, lr=1.0)")
    assert found.points == 2 * 4 * 2 * 2
    assert found.sets[1] == "seed=0..2,7"


def test_set_takes_one_way_to_name_a_technique_for_the_other(tmp_path: Path) -> None:
    assert loaded(tmp_path, SMALL, "technique=neuron", "protect=").protect == ()
    found = load_space("quickstart", ["criterion=l1", "scope=layer"])
    assert (found.axes.technique, found.axes.criterion) == ((), ("l1",))
    assert "not both" in refused(tmp_path, SMALL, "technique=neuron", "criterion=l1")
    both = SMALL.replace("}", ", technique: weight, scope: layer}")
    assert refused(tmp_path, both) == (
        "mine.yaml:1: axes: give technique, or criterion, granularity and scope; not both"
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("modle=mlp", "--set modle=mlp: unknown key 'modle'; did you mean model?"),
        ("train.epoch=2", "did you mean train.epochs"),
        ("name=x", "unknown key 'name'"),
        ("seed", "write key=value or key=v1,v2"),
        ("amount=", "no value is given; write amount=v1,v2"),
        ("seed=4..0", "axes.seed: 4..0 is 0 values; a range has 1 to 1000000"),
        ("train.lr=-1", "--set train.lr=-1: train.lr is -1; input should be greater than 0"),
        ("train.optimizer=adm", "unknown optimizer 'adm'; did you mean adam or adamw?"),
        ("train.epochs=0..9999999999", "a range has 1 to 1000000"),
        (
            "amount=!!python/name:os.system",
            "--set amount=!!python/name:os.system:1: !!python/name:os.system is not",
        ),
    ],
)
def test_a_bad_set_is_named(tmp_path: Path, given: str, expected: str) -> None:
    assert expected in refused(tmp_path, SMALL, given)


# What is refused


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("-0.1", "-0.1 is no amount in [0, 1]"),
        ("1.01", "1.01 is no amount in [0, 1]"),
        ("90", "90 is no amount in [0, 1], or 0% to 100%; 0.9 or 90%?"),
        ("101%", "101% is no amount in [0, 1], or 0% to 100%"),
        (".nan", "nan is no amount"),
        ("nan", "'nan' is no amount"),
        (".inf", "inf is no amount"),
        ("abc", "'abc' is no amount; give a fraction in [0, 1] or a percentage such as 25%"),
        ("true", "True is no amount"),
        ("null", "None is no amount"),
        ("[0.5]", "[0.5] is no amount"),
        ("9" * 90, "is no amount in [0, 1]"),
    ],
)
def test_bad_amounts(tmp_path: Path, given: str, expected: str) -> None:
    text = f"axes:\n  model: slp\n  dataset: digits\n  amount:\n    - 0.5\n    - {given}\n"
    message = refused(tmp_path, text)
    assert message.startswith("mine.yaml:6: axes.amount[1]: ")
    assert expected in message


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("model: mpl", "mine.yaml:2: axes.model[0]: unknown model 'mpl'; did you mean mlp?"),
        ("model: mlp(width=[3])", "unknown option of 'mlp' 'width'; did you mean widths?"),
        ("model: mlp(widths=[8], widths=[9])", "gives an option twice; give it once"),
        ("model: __import__('os')", "is no method"),
        ("model: 3", "3 is no model; write name, name(option=value) or {method: name, option: value}"),
        ("model: [cnn(widths=16, a=1)]", "within quotes where it has a comma or brackets"),
        ("dataset: digit", "mine.yaml:2: axes.dataset[0]: unknown dataset 'digit'; did you mean digits?"),
        ("dataset: digits(classes=[0])", "give two or more different ones"),
        ("dataset: 'digits(classes=[true, 0])'", "give a list of integers"),
        ("dataset: {method: digits, classes: [true, 0]}", "give a list of integers"),
        ("dataset: digits(samples_per_class='x')", "give an integer"),
        ("dataset: digits(clases=[0, 1])", "unknown option of digits 'clases'; did you mean classes?"),
        ("technique: nueron", "unknown technique 'nueron'; did you mean neuron?"),
        ("technique: weight(a=1)", "unknown option of magnitude 'a'"),
        ("criterion: l3", "unknown criterion 'l3'; did you mean l"),
        ("granularity: units", "unknown granularity 'units'; did you mean unit?"),
        ("scope: gobal", "unknown scope 'gobal'; did you mean global?"),
        (
            "scope: sensitivity",
            "sensitivity is an allocation: write allocate: [sensitivity] in place of scope",
        ),
        ("schedule: one_short", "unknown schedule 'one_short'; did you mean one_shot?"),
        ("schedule: iterative(rounds=0)", "it must be in [1, 10000]"),
        ("recover: fintune", "did you mean finetune"),
        ("recover: {method: finetune, lr: .inf}", "it must be in (0, 1000]"),
        ("batch_size: 0", "mine.yaml:2: axes.batch_size[0] is 0; input should be greater than or equal to 1"),
        ("batch_size: true", "True is no number"),
        ("batch_size: []", "axes.batch_size is []; tuple should have at least 1 item"),
        ("seed: 1.5", "axes.seed[0] is 1.5; input should be a valid integer"),
        ("seed: abc", "axes.seed[0] is 'abc'; input should be a valid integer"),
        ("seed: -1", "greater than or equal to 0"),
        ("amuont: 0.5", "mine.yaml:2: unknown key 'amuont'; did you mean amount"),
        ("train.epoch: 1", "mine.yaml:2: unknown key 'train.epoch'; did you mean train.epochs"),
    ],
)
def test_bad_axes(tmp_path: Path, line: str, expected: str) -> None:
    axes = {"model": "slp", "dataset": "digits", "amount": "0.5"}
    axes.pop(line.partition(":")[0], None)
    rest = "".join(f"  {name}: {value}\n" for name, value in axes.items())
    assert expected in refused(tmp_path, f"axes:\n  {line}\n{rest}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("axis: {}", "mine.yaml:2: unknown key 'axis'; did you mean axes?"),
        ("name: other", "unknown key 'name'"),
        ("version: 2", "mine.yaml:2: version is 2; input should be 1"),
        ("version: true", "mine.yaml:2: version: True is no number"),
        ("search: {method: best}", "search.method is 'best'; input should be 'grid', 'random' or 'tpe'"),
        ("search: {trials: 9}", "search: a grid has no trials: that is for random and tpe"),
        ("search: {method: tpe, trial: 9}", "unknown key 'trial'; did you mean trials"),
        ("train:\n  epochs: 3\n  epohcs: 4", "mine.yaml:4: unknown key 'epohcs'; did you mean epochs or"),
        ("train: {epochs: 0}", "train.epochs is 0; input should be greater than or equal to 1"),
        ("train: {epochs: true}", "True is no number"),
        ("train: {lr: .nan}", "train.lr is nan; input should be a finite number"),
        ("train: {momentum: 1}", "input should be less than 1"),
        ("train: [1]", "train is [1]; input should be"),
        ("protect: [1]", "protect[0] is 1; input should be a valid string"),
        ("exclude: [{modl: slp}]", "unknown key 'modl'; did you mean model?"),
        ("exclude: [{model: spl}]", "unknown model 'spl'; did you mean slp?"),
        ("exclude: [{technique: all}]", "unknown technique 'all'"),
        ("exclude: [{}]", "an empty entry excludes everything"),
        ("axes: {}", "'axes' is given twice, first on line 1; give it once"),
        ("train: {lr: 1, lr: 2}", "mine.yaml:2: 'lr' is given twice"),
        ("about: !!python/object/apply:os.system [ls]", "!!python/object/apply:os.system is not read"),
        ("about: !mine x", "!mine is not read"),
        ("about: 2020-01-01", "!!timestamp is not read"),
        ("about: !!int abc", "'abc' is no !!int"),
        ("about: !!int ''", "'' is no !!int"),
        (f"about: {'9' * 5000}", "mine.yaml:2: a number of 5,000 signs; 100 is the most"),
        (f"about: 0x{'f' * 5000}", "a number of 5,002 signs"),
        (f"about: {'1:' * 300}1", "a number of 601 signs"),
        ("about: 1e999", "about is inf; input should be a valid string"),
        ("about: !!set {a, b}", "!!set is not read"),
        ("1: 2", "mine.yaml:2: '1' is no key; keys are names"),
        ("? [a]\n: 2", "a list or mapping is no key"),
        ("about: *nowhere", "this is no YAML: found undefined alias"),
        ("about: [", "this is no YAML"),
        ("axes: {model: [cnn(widths=[16, 32])]}", 'quote it: "cnn(widths=[16, 32])"'),
        ("axes:\n  model: [mlp, net.py:own(a=[1, 2], b=3)]", 'quote it: "net.py:own(a=[1, 2], b=3)"'),
        ("about: \x07", "mine.yaml:2: the control character \\x07 is in it"),
        ("---\nabout: second", "expected a single document in the stream, but found another document"),
        (f"about: {'[' * 30}{']' * 30}", "mine.yaml:2: more than 20 levels deep"),
        (f"about: {'[' * 200_000}", "more than 20 levels deep"),
        ("about: &a [*a]", "more than 20 levels deep"),
        (f"about: [{'0,' * 30_000}]", "more than 20000 values"),
        (f"about: {'x' * 300_000}", "more than 256 KiB"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refused(tmp_path, f"{SMALL}{text}\n")


def test_an_alias_bomb_is_not_unfolded(tmp_path: Path) -> None:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    bomb = "\n".join(["a0: &a0 [lol]", *levels])
    assert "more than 20000 values, aliases unfolded" in refused(tmp_path, f"{SMALL}{bomb}\n")


def test_an_alias_that_is_used_twice_is_read(tmp_path: Path) -> None:
    text = "axes: {model: slp, dataset: digits, amount: &these [0.5], train.lr: *these}\n"
    assert loaded(tmp_path, text).axes.train_lr == (0.5,)


def test_a_thousand_million_points_are_refused_before_they_are_made(tmp_path: Path) -> None:
    message = refused(tmp_path, SMALL, "seed=0..999", "batch_size=1..1000", "train.epochs=1..1000")
    assert "1000 x 1000 x 1000 = 1,000,000,000 points; at most 1,000,000 are allowed" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "mine.yaml:1: a space is a mapping with the key axes"),
        ("- 1", "a space is a mapping with the key axes"),
        ("version: 1", "axes is missing"),
        ("axes: 3", "axes is 3; input should be a valid dictionary"),
        ("axes: {model: slp}", "axes.dataset is missing"),
        (b"about: \xff", "byte 7 is no UTF-8"),
    ],
)
def test_files_that_are_no_space(tmp_path: Path, content: str | bytes, expected: str) -> None:
    assert expected in refused(tmp_path, content)
    if content == "axes: 3":
        assert expected in refused(tmp_path, content, "amount=0.5")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("quickstrat", "unknown space 'quickstrat'; did you mean quickstart?"),
        ("zzz", f"unknown space 'zzz'; known: {', '.join(spaces.names())}"),
        ("nowhere/mine.yaml", f"there is no such file; named spaces are {', '.join(spaces.names())}"),
        ("tests/", "cannot be read: it is a folder, and no regular file"),
        ("/dev/zero", "cannot be read: it is a device, and no regular file"),
        ("a\0b", "unknown space 'a\\x00b'"),
        ("x" * 5000, "cannot be read"),
    ],
)
def test_unknown_spaces(name: str, expected: str) -> None:
    with pytest.raises(SpaceError) as caught:
        load_space(name)
    assert expected in str(caught.value)


def test_recover_stands_in_one_place(tmp_path: Path) -> None:
    text = f"{SMALL.replace('}', ', recover: none}')}recover: none\n"
    assert "recover is given twice" in refused(tmp_path, text)


def test_a_space_is_frozen() -> None:
    found = load_space("quickstart")
    with pytest.raises(ValueError, match="frozen"):
        found.about = "other"  # type: ignore[misc]


# The schema


def test_the_schema_is_closed_and_tells_the_file_s_keys() -> None:
    schema = spaces.json_schema()
    assert set(schema["properties"]) == set(spaces.FILE_KEYS) >= {"axes", "train", "protect", "exclude"}
    assert schema["required"] == ["axes"]
    assert schema["additionalProperties"] is False
    axes = schema["$defs"]["Axes"]
    assert set(axes["properties"]) == set(spaces.AXIS_NAMES)
    assert axes["additionalProperties"] is False
    one, many = axes["properties"]["scope"]["anyOf"]
    assert one["enum"] == list(SCOPES)
    assert many["type"] == "array"
    assert "finetune" in axes["properties"]["recover"]["anyOf"][0]["examples"]


# Laws


@given(st.decimals(min_value=0, max_value=100, places=4))
def test_a_percentage_is_its_fraction(percent: object) -> None:
    assert values.canonical_amount(f"{percent}%") == float(Fraction(str(percent)) / 100)
    assert values.canonical_amount(float(Fraction(str(percent)) / 100)) == values.canonical_amount(
        f"{percent} %"
    )


@given(st.floats(0, 1))
def test_an_amount_is_kept_to_the_last_bit(amount: float) -> None:
    found = values.canonical_amount(amount)
    assert (found, str(found)[0]) == (amount, str(abs(amount))[0])


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x, max_size=3)))
def test_a_value_is_taken_or_refused_and_nothing_else(value: object) -> None:
    for check in (
        values.canonical_amount,
        values.canonical_model,
        values.canonical_dataset,
        values.canonical_technique,
    ):
        try:
            found = check(value)
        except ValueError:
            continue
        assert check(found) == found


@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1), st.integers()
    )
)
def test_what_pyyaml_writes_is_read_back(data: dict[str, int]) -> None:
    assert yaml_loader.load_yaml(yaml.safe_dump(data), "x").data == data


@given(st.randoms(use_true_random=False))
def test_the_order_of_keys_in_a_file_does_not_matter(shuffle: random.Random) -> None:
    data = yaml.safe_load(load_space("weight-vs-unit").text)

    def shuffled(value: object) -> object:
        if not isinstance(value, dict):
            return value
        names = list(value)
        shuffle.shuffle(names)
        return {name: shuffled(value[name]) for name in names}

    text = yaml.safe_dump(shuffled(data), sort_keys=False)
    found = Space.model_validate(
        {**yaml_loader.load_yaml(text, "x").data, "name": "weight-vs-unit", "text": ""}
    )
    assert found == load_space("weight-vs-unit").model_copy(update={"text": ""})
