"""Ranges in place of lists: what they hold, what is refused, and the numbers on their steps."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.errors import SpaceError
from orchestrator.space import space as spaces
from orchestrator.space.space import Space, load_space
from orchestrator.space.values import Range

HEAD = "search: {method: random, trials: 3}\n"
AXES = {"model": "slp", "dataset": "digits", "amount": "0.5"}


def loaded(tmp_path: Path, *sets: str, head: str = HEAD, **axes: str) -> Space:
    file = tmp_path / "mine.yaml"
    lines = [
        f"  {name.replace('_', '.', 1) if name.startswith('train_') else name}: {value}"
        for name, value in {**AXES, **axes}.items()
    ]
    file.write_text(f"{head}axes:\n" + "\n".join(lines) + "\n")
    return load_space(str(file), sets)


def refused(tmp_path: Path, *sets: str, head: str = HEAD, **axes: str) -> str:
    with pytest.raises(SpaceError) as caught:
        loaded(tmp_path, *sets, head=head, **axes)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(tmp_path / "mine.yaml"), "mine.yaml")


def test_a_range_has_the_types_of_its_axis(tmp_path: Path) -> None:
    found = loaded(
        tmp_path,
        amount="{low: 50%, high: 99%, step: 1%}",
        batch_size="{low: 32, high: 512, log: true}",
        train_lr="{low: 1e-4, high: 1, log: true}",
        train_epochs="{low: 2, high: 9}",
    )
    assert found.axes.amount == Range(0.5, 0.99, step=0.01)
    assert found.axes.batch_size == Range(32, 512, log=True)
    assert isinstance(found.axes.batch_size, Range)
    assert found.axes.batch_size.is_integer
    lr = found.axes.train_lr
    assert isinstance(lr, Range)
    assert (lr, lr.is_integer, type(lr.high)) == (Range(1e-4, 1.0, log=True), False, float)
    assert found.axes.train_epochs == Range(2, 9)


def test_set_takes_ranges_and_the_search(tmp_path: Path) -> None:
    found = loaded(
        tmp_path,
        "amount={low: 0.5, high: 0.9}",
        "train.lr={low: 1e-4, high: 0.1, log: true}",
        "search.trials=20",
        "search.method=tpe",
        "search.objectives={final/val_loss: min, final/sparsity: max}",
        "search.startup=3",
    )
    assert found.axes.amount == Range(0.5, 0.9)
    assert found.axes.train_lr == Range(1e-4, 0.1, log=True)
    assert (found.search.method, found.search.points, found.search.startup) == ("tpe", 20, 3)
    assert found.search.objectives == {"final/val_loss": "min", "final/sparsity": "max"}
    assert loaded(tmp_path, "amount=0.1,0.2", amount="{low: 0.5, high: 0.9}").axes.amount == (0.1, 0.2)


@pytest.mark.parametrize(
    ("axis", "value", "expected"),
    [
        ("amount", "{low: 0.5}", "a range needs low and high: {low: 0.5, high: 0.9}"),
        (
            "amount",
            "{low: 0.5, high: 90}",
            "high is 90; 90 is no amount in [0, 1], or 0% to 100%; 0.9 or 90%?",
        ),
        ("amount", "{low: 0.9, high: 0.5}", "low is 0.9 and high is 0.5; low must be below high"),
        ("amount", "{low: 0.5, high: 0.5}", "low must be below high (one value stands alone)"),
        (
            "amount",
            "{low: 0.5, high: 0.9, lgo: true}",
            "unknown key of a range 'lgo'; did you mean lo",
        ),
        ("amount", "{low: 0.0, high: 0.9, log: true}", "low is 0.0; on a log scale it must be above 0"),
        ("amount", "{low: 0.5, high: 0.9, log: 1}", "log is 1; give true or false"),
        ("amount", "{low: 0.5, high: 0.9, step: 0.5}", "step is 0.5; it must be above 0 and at most 0.4"),
        ("amount", "{low: 0.5, high: 0.9, step: 0}", "step is 0.0; it must be above 0"),
        ("amount", "{low: 0.1, high: 0.9, step: 0.1, log: true}", "step and log do not go together"),
        ("amount", "[{low: 0.5, high: 0.9}]", "{'low': 0.5, 'high': 0.9} is no amount"),
        ("batch_size", "{low: 0, high: 8}", "low is 0; Input should be greater than or equal to 1"),
        ("batch_size", "{low: 1.5, high: 8}", "low is 1.5; Input should be a valid integer"),
        ("batch_size", "{low: 2..4, high: 8}", "low is '2..4'; give one number"),
        ("train_lr", "{low: 0, high: 1}", "low is 0; Input should be greater than 0"),
        (
            "seed",
            "{low: 0, high: 9}",
            "a seed is never searched for: every point is run for each seed of a list",
        ),
        ("scope", "{low: 0, high: 9}", "axes.scope[0] is"),
    ],
)
def test_bad_ranges(tmp_path: Path, axis: str, value: str, expected: str) -> None:
    message = refused(tmp_path, **{axis: value})
    assert expected in message
    assert message.startswith("mine.yaml:")


def test_a_grid_takes_no_range(tmp_path: Path) -> None:
    message = refused(tmp_path, head="", amount="{low: 0.5, high: 0.9}")
    assert message == (
        "mine.yaml:4: axes.amount: a grid takes a list, and 0.5 to 0.9 is a range; give a list, or search: "
        "{method: random, trials: 60}"
    )
    assert "0.1 to 0.9 by 0.2 is a range" in refused(
        tmp_path, "amount={low: 0.1, high: 0.9, step: 0.2}", head=""
    )
    option = refused(tmp_path, "schedule=iterative", "iterative.rounds={low: 2, high: 5}", head="")
    assert option.startswith(
        "--set iterative.rounds={low: 2, high: 5}: axes.iterative.rounds: a grid takes a list"
    )


def test_an_exclusion_may_be_a_range(tmp_path: Path) -> None:
    head = (
        "search: {method: random, trials: 3}\nexclude: {technique: neuron, amount: {low: 90%, high: 100%}}\n"
    )
    (rule,) = loaded(tmp_path, head=head).exclude
    assert rule.matches({"technique": "neuron", "amount": 0.9})
    assert rule.matches({"technique": "neuron", "amount": 1.0})
    assert not rule.matches({"technique": "neuron", "amount": 0.89})
    assert not rule.matches({"technique": "weight", "amount": 0.95})


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ("{method: random}", "search: random needs a number of points: trials: 60"),
        ("{method: tpe, trials: 0}", "search.trials is 0; input should be greater than or equal to 1"),
        (
            "{method: tpe, trials: 99999}",
            "search.trials is 99999; input should be less than or equal to 10000",
        ),
        ("{method: random, trials: 9, startup: 2}", "startup is for tpe"),
        ("{trials: 9, seed: 1}", "a grid has no seed and no trials"),
        (
            "{method: tpe, trials: 9, objectives: {final/accuracy: max}}",
            "final/accuracy is of the test images, by which nothing is chosen; take final/val_accuracy",
        ),
        ("{method: tpe, trials: 9, objectives: {final/loss: min}}", "take final/val_loss"),
        ("{method: tpe, trials: 9, objectives: {top5: max}}", "top5 is of the test images"),
        ("{method: tpe, trials: 9, objectives: {final/macs: min}}", "did you mean final/macs_"),
        ("{method: tpe, trials: 9, objectives: {final/sparsity: up}}", "input should be 'max' or 'min'"),
        ("{method: tpe, trials: 9, objectives: {}}", "no objective is given"),
        ("{method: tpe, trials: 9, seed: -1}", "search.seed is -1"),
    ],
)
def test_bad_searches(tmp_path: Path, search: str, expected: str) -> None:
    assert expected in refused(tmp_path, head=f"search: {search}\n")


def test_points_times_seeds_have_the_limit_of_a_grid(tmp_path: Path) -> None:
    assert loaded(tmp_path, seed="[0, 1]").points == 6
    message = refused(tmp_path, head="search: {method: random, trials: 10000}\n", seed="0..999")
    assert "10000 x 1000 = 10,000,000 points; at most 1,000,000" in message


def test_the_schema_knows_ranges() -> None:
    schema = spaces.json_schema()
    one, many, stretch = schema["$defs"]["Axes"]["properties"]["amount"]["anyOf"]
    assert many == {"type": "array", "items": one, "minItems": 1}
    assert stretch["required"] == ["low", "high"]
    assert stretch["properties"]["low"] == one
    assert stretch["additionalProperties"] is False
    assert len(schema["$defs"]["Axes"]["properties"]["seed"]["anyOf"]) == 2
    assert set(schema["$defs"]["Search"]["properties"]) == {
        "method",
        "trials",
        "objectives",
        "seed",
        "constraints",
        "startup",
    }


# Laws

DECIMALS = st.decimals(min_value=0, max_value=10, places=3)


@given(DECIMALS, DECIMALS, st.decimals(min_value="0.001", max_value=3, places=3), st.floats(0, 1))
def test_the_nearest_on_the_steps_is_one_of_them_and_none_is_nearer(
    a: Decimal, b: Decimal, step: Decimal, where: float
) -> None:
    low, high = sorted((a, b))
    assume(high - low >= step)
    stretch = Range(float(low), float(high), step=float(step))
    steps = [float(low + n * step) for n in range(int((high - low) / step) + 1)]
    assert stretch.last == steps[-1]
    number = float(low) + where * (stretch.last - float(low))
    found = stretch.nearest(number)
    assert found in steps
    assert abs(found - number) <= min(abs(other - number) for other in steps) + 1e-12
    assert stretch.contains(found)
