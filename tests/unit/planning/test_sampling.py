"""Which points a search asks for: within their ranges, conditional, new, and the same every time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import optuna
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from optuna.trial import TrialState

from orchestrator.config import Numerics
from orchestrator.errors import SpaceError
from orchestrator.planning import sampling
from orchestrator.planning.equality import plain_key
from orchestrator.planning.expansion import Params, expand
from orchestrator.planning.plan import Plan, make_plan, with_expected_points
from orchestrator.planning.sampling import ObservedPoint, make_study, next_point
from orchestrator.space.space import Space, load_space, select
from orchestrator.space.values import Range

AXES = """\
axes:
  model: [slp, mlp]
  dataset: digits
  amount: {low: 0.5, high: 0.9}
  batch_size: {low: 16, high: 1024, log: true}
  train.lr: {low: 1e-4, high: 1e-1, log: true}
  schedule: [one_shot, pq_index, iterative]
  pq_index.gamma: {low: 1, high: 9}
  pq_index.rounds: {low: 2, high: 4}
  recover: [none, finetune]
  finetune.epochs: [1, 25%]
"""
BOTH = "{final/val_accuracy: max, final/macs_effective: min}"


def space(tmp_path: Path, search: str, axes: str = AXES) -> Space:
    file = tmp_path / "mine.yaml"
    file.write_text(f"search: {search}\n{axes}")
    return load_space(str(file))


def asked(found: Plan) -> list[Params]:
    return [point.params for point in found.points]


def searched(
    where: Space, values: Callable[[Params], tuple[float, ...] | None], points: int
) -> list[ObservedPoint]:
    """A search one point at a time, without a network: `values` says what comes of a point, or None."""
    seen: list[ObservedPoint] = []
    taken: set[str] = set()
    for number in range(points):
        draw = next_point(where, Numerics(), number=number, observed=seen, planned_keys=taken)
        assert draw.expansion is not None
        taken |= {plain_key(trial.config) for trial in draw.expansion.trials}
        found = values(draw.params)
        seen.append(ObservedPoint(draw.params, "failed" if found is None else "complete", found))
    return seen


# A search at random


def test_a_random_search_is_a_fixed_list(tmp_path: Path) -> None:
    found = make_plan(space(tmp_path, "{method: random, trials: 30}"))
    again = make_plan(space(tmp_path, "{method: random, trials: 30}"))
    assert asked(again) == asked(found)
    assert [trial.key for trial in again.trials] == [trial.key for trial in found.trials]
    assert len({trial.key for trial in found.trials}) == 30
    longer = make_plan(space(tmp_path, "{method: random, trials: 40}"))
    assert asked(longer)[:30] == asked(found)
    other = make_plan(space(tmp_path, "{method: random, trials: 30, seed: 1}"))
    assert asked(other)[0] != asked(found)[0]


def test_options_are_asked_for_where_their_method_is_chosen(tmp_path: Path) -> None:
    found = make_plan(space(tmp_path, "{method: random, trials: 40}"))
    for point, trial in zip(found.points, found.trials, strict=True):
        params, config = point.params, trial.config
        adaptive = str(params["schedule"]).startswith("pq_index")
        assert ("pq_index.gamma" in params) == ("pq_index.rounds" in params) == adaptive
        assert ("finetune.epochs" in params) == str(params["recover"]).startswith("finetune")
        if adaptive:
            assert f"gamma={params['pq_index.gamma']!r}" in config.prune.schedule
            assert f"rounds={params['pq_index.rounds']}" in config.prune.schedule
        assert config.prune.amount == params["amount"]
        assert config.dense.train.lr == params["train.lr"]
        assert trial.requested_batch_size == params["batch_size"]
        assert point.keys == (trial.key,)
    assert {str(params["schedule"]).partition("(")[0] for params in asked(found)} == {
        "one_shot",
        "pq_index",
        "iterative",
    }


def test_every_point_is_planned_for_every_seed(tmp_path: Path) -> None:
    found = make_plan(space(tmp_path, "{method: random, trials: 5}", f"{AXES}  seed: [3, 4]\n"))
    assert [trial.config.dense.seed for trial in found.trials] == [3, 4] * 5
    assert [point.keys for point in found.points] == [
        (one.key, two.key) for one, two in zip(found.trials[::2], found.trials[1::2], strict=True)
    ]
    assert all("seed" not in params for params in asked(found))


def test_log_ranges_are_drawn_by_their_logarithm(tmp_path: Path) -> None:
    found = asked(make_plan(space(tmp_path, "{method: random, trials: 300}")))
    # A tenth of the way is in each of three decades; the binomial's deviation is sqrt(300 x 2/9) = 8.2
    decades = Counter(math.floor(math.log10(params["train.lr"])) for params in found)
    assert all(abs(decades[decade] - 100) < 5 * 8.2 for decade in (-4, -3, -2))
    assert {type(params["batch_size"]) for params in found} == {int}


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MAX_DRAWS", 100)


def test_refused_draws_are_drawn_again_and_told(tmp_path: Path, few_draws: None) -> None:
    axes = (
        "axes: {model: mlp, dataset: digits, amount: 0.5, schedule: pq_index, "
        "pq_index.p: [0.5, 1], pq_index.q: [1, 2]}\n"
    )
    found = make_plan(space(tmp_path, "{method: random, trials: 3}", axes))
    assert len(found.trials) == 3
    assert not found.exhausted
    more = make_plan(space(tmp_path, "{method: random, trials: 7}", axes))
    assert len(more.trials) == 3  # of 4 combinations one has p = q
    refused, missing = more.excluded
    assert "drawn again, as for schedule pq_index: p is 1.0 and q is 1.0; p must be below q" in refused.reason
    assert refused.count > 0
    assert (missing.reason, missing.count) == ("no other point was found", 4)
    assert more.exhausted


def test_a_space_without_a_point_is_exhausted_at_once(tmp_path: Path, few_draws: None) -> None:
    axes = "axes: {model: slp, dataset: digits, amount: {low: 0.1, high: 0.2}}\nexclude: {model: slp}\n"
    found = make_plan(space(tmp_path, "{method: random, trials: 7}", axes))
    assert (found.trials, found.points) == ((), ())
    assert found.excluded[0].count == sampling.MAX_DRAWS


def test_a_space_without_a_choice_has_one_point(tmp_path: Path) -> None:
    axes = "axes: {model: slp, dataset: digits, amount: 0.5}\n"
    found = make_plan(space(tmp_path, "{method: random, trials: 7}", axes))
    assert len(found.trials) == 1
    assert found.points[0].params == {}
    assert found.exhausted


# A search by tpe


def test_a_search_by_tpe_has_no_plan_of_its_own_and_an_expected_one_at_random(tmp_path: Path) -> None:
    found = make_plan(space(tmp_path, "{method: tpe, trials: 12}"))
    assert (found.trials, found.points, found.complete) == ((), (), False)
    guess = with_expected_points(found)
    assert asked(guess) == asked(make_plan(space(tmp_path, "{method: random, trials: 12}")))
    assert guess.space.search.method == "tpe"
    assert len(with_expected_points(found, points=1).trials) == 1


def test_its_first_points_are_those_of_a_random_search(tmp_path: Path) -> None:
    tpe = searched(
        space(tmp_path, "{method: tpe, trials: 9, startup: 5}"), lambda params: (params["amount"],), 8
    )
    random = asked(make_plan(space(tmp_path, "{method: random, trials: 8}")))
    assert [point.params for point in tpe[:5]] == random[:5]
    assert tpe[5].params != random[5]


@pytest.mark.parametrize("objectives", ["{final/val_accuracy: max}", BOTH])
def test_a_point_follows_from_what_was_seen(tmp_path: Path, objectives: str) -> None:
    where = space(tmp_path, f"{{method: tpe, trials: 20, startup: 4, objectives: {objectives}}}")
    goals = len(where.search.objectives)

    def values(params: Params) -> tuple[float, ...] | None:
        return None if params["amount"] > 0.85 else (params["amount"], -params["train.lr"])[:goals]

    whole = searched(where, values, 20)
    assert {point.state for point in whole} == {"complete", "failed"}
    # Carried on after point 11, from what a store would tell: the same points from there on
    keys = {key for point in whole[:11] for key in keys_of(where, point.params)}
    for number in range(11, 14):
        draw = next_point(where, Numerics(), number=number, observed=whole[:number], planned_keys=keys)
        assert draw.params == whole[number].params
        keys |= keys_of(where, draw.params)


def keys_of(where: Space, params: Params) -> set[str]:
    lists = select(where, lambda name, _: params[name])
    return {plain_key(trial.config) for trial in expand(where, lists, Numerics()).trials}


def test_tpe_finds_what_chance_does_not(tmp_path: Path) -> None:
    """A narrow peak in amount and rate: after 60 points, the median of the last 20 is nearer to it."""
    axes = (
        "axes: {model: slp, dataset: digits, amount: {low: 0, high: 1}, "
        "train.lr: {low: 1e-4, high: 1, log: true}}\n"
    )

    def values(params: Params) -> tuple[float]:
        return (-abs(params["amount"] - 0.3) - abs(math.log10(params["train.lr"]) + 2) / 4,)

    def late(method: str) -> float:
        points = searched(space(tmp_path, f"{{method: {method}, trials: 60}}", axes), values, 60)
        found = sorted(point.objectives[0] for point in points[40:] if point.objectives)
        return found[10]

    assert late("tpe") > 0.75 * late("random")  # both are negative: nearer by a quarter at least


def test_tpe_looks_where_the_constraint_is_kept(tmp_path: Path) -> None:
    """The best value is at amount 0, and only amounts above 0.7 are allowed: late points keep to that."""
    axes = "axes: {model: slp, dataset: digits, amount: {low: 0, high: 1}}\n"
    limit = 'constraints: {final/macs_effective: "<= 30"}'

    def kept(search: str) -> float:
        where, seen, taken = space(tmp_path, search, axes), list[ObservedPoint](), set[str]()
        for number in range(50):
            draw = next_point(where, Numerics(), number=number, observed=seen, planned_keys=taken)
            taken |= keys_of(where, draw.params)
            amount = draw.params["amount"]
            missed = [c.violation({"final/macs_effective": 100 * (1 - amount)}) for c in where.search.limits]
            seen.append(ObservedPoint(draw.params, "complete", (1 - amount,), tuple(missed)))
        return sum(point.params["amount"] >= 0.7 for point in seen[25:]) / 25

    assert kept("{method: tpe, trials: 50}") < 0.2
    assert kept(f"{{method: tpe, trials: 50, {limit}}}") > 0.4  # the best lies on the edge


def test_constraints_are_parsed_and_scaled(tmp_path: Path) -> None:
    text = '{final/macs_physical: "<= 50%", final/val_accuracy: ">=97%", final/bytes_sparse: "<= 100kB"}'
    where = space(tmp_path, f"{{method: tpe, trials: 9, constraints: {text}}}")
    macs, accuracy, size = where.search.limits
    metrics = {"final/macs_dense": 200.0, "final/macs_physical": 120.0, "final/val_accuracy": 0.97}
    assert macs.violation(metrics) == pytest.approx(0.2)
    assert macs.violation({**metrics, "final/macs_physical": 100.0}) == 0
    assert accuracy.violation(metrics) == 0
    assert accuracy.violation({"final/val_accuracy": 0.5}) > 0
    assert size.limit({}) == 100_000


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ('final/accuracy: ">= 0.9"', "of the test images"),
        ('final/macs_fysical: "<= 5"', "final/macs_physical"),
        ('final/macs_physical: "5"', "is no constraint"),
        ('final/macs_physical: "< 5"', "is no constraint"),
        ('final/val_accuracy: ">= 95"', r"a fraction from 0 to 1; 0.95 or 95%[?]"),
        ('final/sparsity: ">= 5k"', "a fraction from 0 to 1"),
        ('final/macs_physical: "<= 0.5"', "whole numbers; 50%[?]"),
        ('final/macs_physical: "<= 5kB"', "B is for bytes"),
        ('final/epochs: "<= 50%"', "epochs has no percentage"),
    ],
)
def test_a_bad_constraint_is_refused(tmp_path: Path, constraint: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        space(tmp_path, f"{{method: tpe, trials: 9, constraints: {{{constraint}}}}}")


def test_a_grid_has_no_constraints(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match="a grid has no constraints"):
        space(tmp_path, '{constraints: {final/macs_physical: "<= 50%"}}')


def test_a_finite_space_is_found_whole_and_then_exhausted(tmp_path: Path, few_draws: None) -> None:
    axes = "axes: {model: slp, dataset: digits, amount: [0.1, 0.2, 0.3], technique: [weight, random]}\n"
    where = space(tmp_path, "{method: tpe, trials: 9, startup: 2}", axes)
    seen = searched(where, lambda params: (params["amount"],), 6)
    assert len({(point.params["amount"], point.params["technique"]) for point in seen}) == 6
    taken = {key for point in seen for key in keys_of(where, point.params)}
    assert next_point(where, Numerics(), number=6, observed=seen, planned_keys=taken).expansion is None


def test_the_study_has_every_point_with_its_state(tmp_path: Path) -> None:
    where = space(tmp_path, f"{{method: tpe, trials: 9, objectives: {BOTH}}}")
    params = asked(make_plan(space(tmp_path, "{method: random, trials: 4}")))
    seen = [
        ObservedPoint(params[0], "complete", (0.5, 100.0)),
        ObservedPoint(params[1], "stopped"),
        ObservedPoint(params[2], "failed"),
        ObservedPoint(params[3], "running"),
    ]
    found = make_study(where, seen)
    assert [trial.state for trial in found.trials] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
        TrialState.RUNNING,
    ]
    assert [dict(trial.params) for trial in found.trials] == [dict(one) for one in params]
    assert [direction.name for direction in found.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert found.trials[0].values == [0.5, 100.0]


@pytest.mark.parametrize("objectives", ["{final/val_accuracy: max}", BOTH])
def test_points_that_did_not_end_well_are_no_trouble(tmp_path: Path, objectives: str) -> None:
    where = space(tmp_path, f"{{method: tpe, trials: 99, startup: 3, objectives: {objectives}}}")
    goals = len(where.search.objectives)
    params = asked(make_plan(space(tmp_path, "{method: random, trials: 16}")))
    states: tuple[sampling.State, ...] = ("complete", "stopped", "failed", "running")
    seen = [
        ObservedPoint(one, states[n % 4], (float(n), -float(n))[:goals] if n % 4 == 0 else None)
        for n, one in enumerate(params)
    ]
    for number in range(16, 20):
        draw = next_point(where, Numerics(), number=number, observed=seen, planned_keys=())
        assert draw.expansion is not None
        assert draw.params not in params


def test_nothing_is_said_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    searched(space(tmp_path, "{method: tpe, trials: 9, startup: 2}"), lambda params: (params["amount"],), 6)
    assert capsys.readouterr().err == ""
    assert not [warning for warning in recwarn if "optuna" in str(warning.message) + warning.filename]


# Laws


@given(
    st.decimals("0.001", 1000, places=3),
    st.decimals("0.001", 1000, places=3),
    st.sampled_from(["", "log", "step", "whole", "whole log", "whole step"]),
    st.integers(0, 99),
)
def test_what_is_drawn_from_a_range_is_in_it(a: Decimal, b: Decimal, kind: str, seed: int) -> None:
    low, high = sorted((a, b))
    step = round((high - low) / 7, 3)
    assume(step > 0)
    whole = "whole" in kind
    convert = (lambda number: math.ceil(number)) if whole else float
    stretch = Range(convert(low), convert(high + 1), "log" in kind, convert(step) if "step" in kind else None)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    found = sampling._suggest(trial, "x", stretch)
    assert stretch.low <= found <= stretch.last <= stretch.high
    assert isinstance(found, int) == whole
    one = {"x": sampling.make_distribution(stretch)}
    assert optuna.trial.create_trial(params={"x": found}, distributions=one, value=0.0).params == {"x": found}
