"""The study of axes: its text says what its numbers say, and its numbers are those of rows worked by hand."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas
import pytest
from result_rows import Row, row

from orchestrator.planning.plan import make_plan
from orchestrator.space.space import load_space

STUDY = Path(__file__).parent.parent / "docs" / "studies" / "which-axis"
MODULES = (
    *(
        "frames",
        "pairs",
        "extras",
        "collect",
        "numbers_text",
        "claims",
        "markdown_tables",
        "page",
        "svg",
        "figures",
    ),
    "make",
)
MOST_BYTES = 150_000  # of a figure
LONGEST = 40  # minutes of a sweep


@pytest.fixture(scope="module")
def study() -> Iterator[dict[str, ModuleType]]:
    """The scripts of the folder, as Python finds them when make.py is run."""
    sys.path.insert(0, str(STUDY))
    before = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(STUDY))
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(before)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    numbers: dict[str, Any] = json.loads((STUDY / "results.json").read_text(encoding="utf-8"))
    return numbers


# ---- the page


def test_the_page_is_what_its_text_and_numbers_give(study: dict[str, ModuleType]) -> None:
    committed = (STUDY / "index.md").read_text(encoding="utf-8")
    assert committed == study["page"].page(), "write it anew: docs/studies/which-axis/make.py --only page"


def test_other_numbers_break_the_claims_of_the_text(
    study: dict[str, ModuleType], results: dict[str, Any]
) -> None:
    other = deepcopy(results)
    for pair in other["no_retraining"]["pairs"]:
        for gain in filter(None, pair["gains"].values()):
            gain["mean"] = -gain["mean"]
    text = (STUDY / "paper.md.in").read_text(encoding="utf-8")
    with pytest.raises(study["page"].ClaimError, match="the text says that"):
        study["page"].fill(text, other)


def test_every_figure_of_the_page_is_there_and_small(results: dict[str, Any]) -> None:
    shown = re.findall(r"\]\((\S+\.svg)\)", (STUDY / "index.md").read_text(encoding="utf-8"))
    assert len(shown) >= 6
    assert sorted(shown) == sorted(path.name for path in STUDY.glob("*.svg"))
    assert max((STUDY / name).stat().st_size for name in shown) < MOST_BYTES


def test_the_figures_can_be_drawn_from_the_numbers(
    study: dict[str, ModuleType], results: dict[str, Any], tmp_path: Path
) -> None:
    drawn = study["figures"].draw(results, tmp_path)
    assert sorted(path.name for path in drawn) == sorted(path.name for path in STUDY.glob("*.svg"))
    assert all(path.read_bytes().rstrip().endswith(b"</svg>") for path in drawn)


def test_every_space_can_be_planned_and_pairs_by_seed(
    study: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    spaces = sorted(path.stem for path in STUDY.glob("*.yaml"))
    assert spaces == sorted(study["make"].SPACES)
    for space in set(spaces) - {"axis-digits", "axis-mnist"}:
        plan = make_plan(load_space(str(STUDY / f"{space}.yaml"), ["seed=0,1"]))
        assert len(plan.trials) % 2 == 0
        assert {trial.config.dense.seed for trial in plan.trials} == {0, 1}
    for space in ("axis-digits", "axis-mnist"):
        small = load_space(str(STUDY / f"{space}.yaml"), ["seed=0", "model=mlp", "train.epochs=10"])
        labels = {study["frames"].label_of(_columns(trial.config)) for trial in make_plan(small).trials}
        assert labels <= set(study["frames"].LABELS)
        assert {
            name for pair in (*study["pairs"].GRANULARITIES, *study["pairs"].CHOICES) for name in pair
        } <= labels


def _columns(config: Any) -> dict[str, object]:
    from orchestrator.trial.params import params

    return dict(params(config))


# ---- claims


def gain(mean: float, p: float | None) -> dict[str, Any]:
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "cut": False, "n": 9, "p": p, "p_holm": p}


def test_a_claim_holds_only_where_the_corrected_test_says_so(study: dict[str, ModuleType]) -> None:
    gains = {"sparsity": gain(0.05, 0.001), "effective": gain(-0.1, 0.04), "amount": gain(0.2, 0.06)}
    pair = {"panel": "mlp/digits/10", "first": "a", "second": "b", "gains": {**gains, "physical": {}}}
    results = {"s": {"pairs": [pair]}}
    fill, error = study["page"].fill, study["page"].ClaimError
    text = "x{{ahead; s; mlp/digits/10; a; b; sparsity}}{{behind; s; mlp/digits/10; a; b; effective}}y"
    assert fill(text, results) == "xy"
    assert fill("{{turned; s; a; b; mlp/digits/10}}", results) == ""
    assert fill("{{undecided; s; mlp/digits/10; a; b; amount}}", results) == ""
    assert fill("{{apart; s; mlp/digits/10; a; b; physical}}", results) == ""
    assert fill("{{gain; s; mlp/digits/10; a; b; effective}}", results) == "-10.0 ± 1.0 (p = 0.040)"
    for false in ("ahead; s; mlp/digits/10; a; b; amount", "turned; s; a; b", "holds; s>pairs>0>first; <; 1"):
        with pytest.raises((error, ValueError)):
            fill("{{" + false + "}}", results)
    with pytest.raises(error, match="no such number"):
        fill("{{gain; s; mlp/digits/50; a; b; effective}}", results)


def test_the_correction_is_for_all_tests_of_a_family(study: dict[str, ModuleType]) -> None:
    pairs = [
        {"gains": {"sparsity": gain(0.1, 0.01), "effective": {}}},
        {"gains": {"sparsity": gain(0.1, 0.04)}},
    ]
    assert study["pairs"].correct(pairs) == 2
    assert [pair["gains"]["sparsity"]["p_holm"] for pair in pairs] == pytest.approx([0.02, 0.04])


# ---- numbers


def test_networks_of_other_widths_are_other_panels(study: dict[str, ModuleType]) -> None:
    panel_of = study["frames"].panel_of
    row = {"dataset": "digits", "train.epochs": 10}
    assert panel_of({**row, "model": "mlp"}) == "mlp/digits/10"
    assert panel_of({**row, "model": "mlp(widths=[1000, 1000, 500, 200], bias=False)"}) == "mlp/digits/10"
    assert panel_of({**row, "model": "mlp(widths=[300, 100], bias=False)"}) == "mlp-300-100/digits/10"
    assert panel_of({**row, "model": "resnet(depth=20)"}) == "resnet/digits/10"


def trial(label: str, seed: int, accuracy: float, round: int = 1, **others: Any) -> Row:
    rows = row("weight", 0.5, seed, accuracy, **{"final/pq_index": 0.5, "ipa/accuracy": 0.95, **others})
    return {**rows, "panel": "mlp/digits/10", "technique": label, "round": round, "requested": 0.5}


def test_causes_are_told_apart(study: dict[str, ModuleType]) -> None:
    rows = []
    for test in range(3):
        for train in range(3):
            for seed in range(3):
                dataset = f"splits.py:digits(test={test}, train={train})"
                dense = 0.9 + 0.02 * test + 0.01 * train + 0.005 * seed
                for label, loss in (("weights", 0.1), ("units", 0.1 + 0.03 * seed)):
                    rows.append(trial(label, seed, dense - loss, dataset=dataset, **{"ipa/accuracy": dense}))
    causes = study["extras"].spread_causes(pandas.DataFrame(rows))
    assert causes["dense"]["test"] == pytest.approx(0.02)
    assert causes["dense"]["train"] == pytest.approx(0.01)
    assert causes["dense"]["seed"] == pytest.approx(0.005)
    assert causes["weights 50% minus units 50%"]["test"] == pytest.approx(0, abs=1e-6)
    assert causes["weights 50% minus units 50%"]["seed"] == pytest.approx(0.03)
    with pytest.raises(ValueError, match="26 of 27 combinations"):
        study["extras"].spread_causes(pandas.DataFrame(rows[2:]))


def test_a_course_counts_the_seeds_that_turn(study: dict[str, ModuleType]) -> None:
    falling, turning = [0.6, 0.5, 0.4, 0.3, 0.2], [0.6, 0.4, 0.5, 0.55, 0.6]
    rows = [
        trial("SAP, layer", seed, 0.9, round, **{"final/pq_index": index})
        for seed, indices in enumerate((falling, turning))
        for round, index in enumerate(indices, start=1)
    ]
    (course,) = study["extras"].courses(pandas.DataFrame(rows))
    assert course["seeds"] == 2
    assert course["turns"] == {"0.01": 1, "0.001": 1}
    assert course["collapses"] == {"0.01": 0, "0.001": 0}
    assert course["index"] == pytest.approx([0.6, 0.45, 0.45, 0.425, 0.4])


def test_rounding_is_paired_by_seed_and_round(study: dict[str, ModuleType]) -> None:
    rows = []
    for scope, less in (("unit", 0.02), ("layer", 0.0), ("global", 0.0)):
        for seed in range(3):
            for round in (1, 2):
                amount = 0.3 * round + 0.01 * seed
                rows += [
                    trial(f"SAP, {scope}", seed, 0.9, round, **{"final/amount": amount}),
                    trial(
                        f"SAP, {scope}, published",
                        seed,
                        0.8,
                        round,
                        **{"final/amount": amount - less * round},
                    ),
                ]
    records = study["extras"].rounding(pandas.DataFrame(rows))
    unit = next(record for record in records if record["scope"] == "unit")
    assert unit["less"] == pytest.approx([0.02, 0.04])
    assert unit["removed"] == pytest.approx([0.31, 0.61])
    assert unit["last"]["mean"] == pytest.approx(0.04)
    assert unit["accuracy"]["mean"] == pytest.approx(0.1)


def test_curves_and_tests_are_of_the_same_rows(study: dict[str, ModuleType]) -> None:
    rows = []
    for seed in range(4):
        for amount in (0.25, 0.5, 0.75):
            for label, power, base in (("weights", 1, 1.0), ("units", 2, 0.9)):
                macs = {"final/macs_effective": 640 * (1 - amount) ** power, "final/macs_physical": 640.0}
                macs |= {"final/parameters_nonzero": 650 * (1 - amount), "final/parameters_dense": 650.0}
                accuracy = base - 0.4 * amount + 0.001 * seed * (label == "units")
                rows.append(
                    trial(label, seed, accuracy, **{"final/amount": amount, "final/sparsity": amount, **macs})
                    | {"amount": amount, "requested": amount}
                )
    compared = study["collect"].compare(pandas.DataFrame(rows), {})
    (pair,) = compared["pairs"]
    assert pair["gains"]["sparsity"]["mean"] == pytest.approx(0.1 - 0.0015)
    assert pair["gains"]["physical"] == {}
    assert compared["seeds"] == {"mlp/digits/10": [4, 4]}
    assert (
        compared["tests"]["granularity"] == 5
    )  # four axes, and the point of POINTS at 26% of the multiply-adds
    assert compared["census"]["panels"]["mlp/digits/10"]["pairs"] == 1
    first = compared["curves"]["mlp/digits/10"]["weights"][0]
    assert first[:5] == [0.25, 0.25, 0.75, 1.0, None]  # nothing was timed
    assert first[5] == pytest.approx(0.9)


def test_a_network_whose_zeros_are_multiplied_takes_the_time_of_the_dense_one(
    study: dict[str, ModuleType],
) -> None:
    rows = [trial(label, 0, 0.9, run_id=label) for label in ("weights", "channels")]
    timing = {"measured_on": "a", "aa": 1.04, "reliable": False, "busy_cores_of_others": 1.5}
    timed = [
        {**timing, "run_id": "weights", "form": "masked", "speedup": 1.3},
        {**timing, "run_id": "channels", "form": "cut", "speedup": 4.0, "measured_on": "b", "aa": 0.97},
    ]
    latency = study["extras"].latencies(pandas.DataFrame(rows), timed)
    assert {share["method"]: share["share"] for share in latency["shares"]} == {
        "weights": 1.0,
        "channels": 0.25,
    }
    assert (latency["networks"], latency["reliable"]) == (2, 0)
    assert (latency["aa_low"], latency["aa_high"], latency["busiest"]) == (0.97, 1.04, 1.5)
    compared = study["collect"].with_latency(
        pandas.DataFrame([*rows, trial("units", 0, 0.8)]), latency
    )  # units were not timed
    assert compared["final/latency_ms_p50"].tolist()[:2] == [1.0, 0.25]
    assert compared["final/latency_ms_p50"].isna().tolist() == [False, False, True]


def test_a_figure_keeps_its_shapes_when_it_is_made_smaller(study: dict[str, ModuleType]) -> None:
    text = (
        '<g id="line2d_1">\n  <path id="m1" d="M 0.12345 1" style="stroke: red"/>\n'
        '  <use xlink:href="#m1" x="1.23456" y="2" style="fill: red"/>\n'
        '  <use xlink:href="#m1" x="3" y="4" style="fill: red"/>\n</g>'
    )
    assert study["svg"].shrink(text) == (
        '<g>\n<path id="m1" d="M 0.12 1" style="fill: red; stroke: red"/>\n'
        '<use xlink:href="#m1" x="1.23" y="2"/>\n<use xlink:href="#m1" x="3" y="4"/>\n</g>'
    )


@pytest.mark.long
@pytest.mark.slow
def test_the_whole_study_can_be_made_small(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "PYTHONPATH": str(STUDY.parents[2]),
    }
    command = [sys.executable, str(STUDY / "make.py"), "--quick", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    text = (tmp_path / "out" / "index.md").read_text(encoding="utf-8")
    assert "## no_retraining: weights minus units" in text
    assert len(list((tmp_path / "out").glob("*.svg"))) >= 7
