"""The sentences of a report, from small frames whose numbers are worked by hand."""

from __future__ import annotations

from pandas import DataFrame
from result_rows import Row, frame, row
from scipy import stats

from orchestrator.analysis.findings import findings
from orchestrator.analysis.paired import Baseline

WEIGHT = Baseline("technique=weight", {"technique": "weight"})
DENSE = Baseline("dense", {})
SPREAD = (0.00, 0.02, 0.01, 0.03)  # of the seeds, the same for all: differences have a spread of their own
NOISE = (0.000, 0.001, -0.001, 0.000)


def line(technique: str, values: dict[float, float], *, seeds: int = 4, **columns: object) -> list[Row]:
    """A method with a mean by amount, 0.95 for its dense networks."""
    return [
        row(technique, amount, s, value + SPREAD[s] + NOISE[s] * (technique != "weight"), **columns)
        | {"ipa/accuracy": 0.95 + SPREAD[s] - NOISE[s]}
        for amount, value in values.items()
        for s in range(seeds)
    ]


def sweep() -> DataFrame:
    return frame(*line("weight", {0.5: 0.95, 0.9: 0.80}), *line("neuron", {0.5: 0.95, 0.9: 0.60}))


def test_what_differs_from_the_baseline_and_what_does_not() -> None:
    compared, *_ = findings(sweep(), WEIGHT)
    # neuron minus weight: 0 + NOISE at 50%, whose mean is 0, and -0.2 + NOISE at 90%; p by scipy.
    p = stats.ttest_1samp([noise - 0.2 for noise in NOISE], 0.0).pvalue
    assert 2 * p < 0.001  # the smaller of two, times two
    assert compared == (
        "Test accuracy is lower than that of weight (paired by seed, 5% after Holm's correction for 2 "
        "comparisons): neuron at 90% (by 20.0 points)."
    )
    assert findings(sweep(), WEIGHT)[1] == "No difference to weight is shown for neuron at 50%."


def test_more_and_less_and_by_how_much() -> None:
    results = frame(
        *line("weight", {0.5: 0.80, 0.9: 0.60}),
        *line("neuron", {0.5: 0.85, 0.9: 0.70}),
        *line("random", {0.5: 0.40, 0.9: 0.20}),
    )
    more, less, *_ = findings(results, WEIGHT)
    assert more.endswith("for 4 comparisons): neuron at 50% and 90% (by 5.0 to 10.0 points).")
    assert less == (
        "Test accuracy is lower than that of weight (the same tests): random at 50% and 90% (by 40.0 points)."
    )


def test_where_accuracy_falls_off() -> None:
    results = frame(
        *line("weight", {0.5: 0.95, 0.75: 0.90, 0.9: 0.80, 0.99: 0.10}),
        *line("neuron", {0.5: 0.95, 0.9: 0.95}),
    )
    falls, level = findings(results, DENSE)
    assert falls == (
        "Test accuracy is below that of the same seed's dense network (paired by seed, 5% after Holm's "
        "correction for 6 comparisons) for weight from 75% on (-5.0 points there, -85.0 at 99%)."
    )
    assert level == "No such fall is shown for neuron up to 90%."


def test_a_fall_that_recovers_is_none_before_it_lasts() -> None:
    results = frame(*line("weight", {0.5: 0.80, 0.75: 0.95, 0.9: 0.70}))
    (falls,) = findings(results, DENSE)
    assert "for weight at 90%, the largest amount (-25.0 points)." in falls


def test_no_fall_at_all() -> None:
    (level,) = findings(frame(*line("weight", {0.5: 0.95})), DENSE)
    assert level.startswith("No fall below the dense networks is shown (paired by seed")
    assert level.endswith(": weight at 50%.")


def test_too_few_seeds_for_a_test_are_said_so() -> None:
    results = frame(
        *line("weight", {0.5: 0.945, 0.9: 0.8002}, seeds=2), *line("neuron", {0.5: 0.95, 0.9: 0.60}, seeds=2)
    )
    untested, falls, *_ = findings(results, WEIGHT)
    assert untested.startswith("Nothing is tested against weight: a test needs t intervals, and three seeds")
    # 0.945 is half a point below 0.95: within the tolerance.
    assert falls == (
        "Test accuracy is more than 1 point below that of the same seed's dense network (by the means, "
        "without a test) for weight at 90%, the largest amount (-14.9 points); neuron at 90%, the largest "
        "amount (-34.9 points)."
    )


def test_nothing_differs() -> None:
    results = frame(*line("weight", {0.5: 0.9}), *line("neuron", {0.5: 0.9}))
    assert findings(results, WEIGHT)[0] == (
        "No setting is shown to differ from weight in test accuracy (paired by seed, 5% after Holm's "
        "correction for 1 comparison)."
    )


def test_what_is_at_chance() -> None:
    rows = line("weight", {0.99: 0.1, 0.9: 0.5}) + line("neuron", {0.99: 0.1})
    for number, entry in enumerate(rows):
        entry["at_chance"] = entry["amount"] == 0.99 and number != 0
    assert findings(frame(*rows), WEIGHT)[-1] == (
        "At chance on validation images, with the number of seeds: weight at 99% (3 of 4); neuron at 99% "
        "(4 of 4)."
    )


def test_dense_networks_at_chance_come_first() -> None:
    rows = line("weight", {0.5: 0.1})
    rows[0]["dense_at_chance"] = True
    first, *_ = findings(frame(*rows).fillna({"dense_at_chance": False}), DENSE)
    assert first.startswith("Dense networks of slp on digits, batch 64 are at chance on validation images")


def test_a_part_of_the_trials_is_said_to_be_one() -> None:
    rows = [*line("weight", {0.5: 0.95}), row("weight", 0.9, 0, status="missing")]
    first, *_ = findings(frame(*rows), DENSE)
    assert first == "4 of 5 trials have finished; what follows is of these alone."
    assert findings(frame(row(status="failed")), DENSE) == []


def test_networks_are_told_apart_by_what_differs() -> None:
    rows = [*line("weight", {0.5: 0.95}), *line("weight", {0.5: 0.5}, model="mlp")]
    text = " ".join(findings(frame(*rows), DENSE))
    assert "for weight of mlp at 50% (-45.0 points)." in text
    assert "No such fall is shown for weight of slp at 50%." in text


def test_a_search_has_its_best_point() -> None:
    rows = [
        row(amount=amount, seed=seed, accuracy=accuracy, **{"final/val_accuracy": accuracy})
        for amount, accuracy in ((0.3, 0.9), (0.6, 0.7))
        for seed in (0, 1)
    ]
    results = frame(*rows)
    results.attrs["objectives"] = {"final/val_accuracy": "max"}
    assert findings(results, DENSE) == [
        "Of 2 points the best by val_accuracy (max) is weight at 30%, with a test accuracy of 90.0 [90.0 to "
        "90.0]%."
    ]
