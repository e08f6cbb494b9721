"""Pictures, read back from the figure: a panel for each network, a line for each method, and its bars."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pandas
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from orchestrator.analysis.plots import MARKERS, OKABE_ITO, STYLES, accuracy_against_sparsity

Row = dict[str, Any]


def row(**given: Any) -> Row:
    base: Row = {
        "model": "slp",
        "dataset": "digits",
        "batch_size": 64,
        "technique": "weight",
        "amount": 0.5,
        "seed": 0,
        "status": "finished",
        "final/accuracy": 0.9,
        "ipa/accuracy": 0.95,
        "final/macs_dense": 640.0,
        "final/macs_effective": 640.0,
        "final/macs_physical": 640.0,
    }
    whole = base | given
    return {"final/sparsity": whole["amount"]} | whole


Drawn = Callable[[list[Row]], Figure]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """The figure behind a picture."""
    seen: list[Figure] = []
    save = Figure.savefig

    def kept(figure: Figure, *place: Any, **options: Any) -> None:
        seen.append(figure)
        save(figure, *place, **options)

    def draw(rows: list[Row]) -> Figure:
        monkeypatch.setattr(Figure, "savefig", kept)
        accuracy_against_sparsity(pandas.DataFrame(rows), title="tiny")
        return seen[-1]

    return draw


def panels(figure: Figure) -> dict[str, Axes]:
    return {axis.get_title(): axis for axis in figure.axes if axis.get_visible()}


def lines(axis: Axes) -> dict[str, ErrorbarContainer]:
    return {str(bar.get_label()): bar for bar in axis.containers if isinstance(bar, ErrorbarContainer)}


def points(bar: ErrorbarContainer) -> list[tuple[float, float]]:
    x, y = bar[0].get_data()
    return [(round(float(a), 6), round(float(b), 6)) for a, b in zip(x, y, strict=True)]


def ends(bar: ErrorbarContainer) -> list[tuple[float, float]]:
    """Lower and upper end of each bar."""
    (segments,) = bar[2]
    return [(round(low, 4), round(high, 4)) for (_, low), (_, high) in segments.get_segments()]


@pytest.mark.parametrize(("format", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_picture_in_each_format(format: str, start: bytes) -> None:
    rows = pandas.DataFrame([row(amount=amount, seed=seed) for amount in (0, 0.5) for seed in (0, 1)])
    assert accuracy_against_sparsity(rows, title="x", format=format).startswith(start)


def test_a_panel_for_each_network_and_a_line_for_each_method(drawn: Drawn) -> None:
    models, techniques = ("slp", "mlp", "cnn", "densenet121"), ("weight", "neuron", "structured")
    figure = drawn(
        [row(model=m, technique=t, amount=a) for m, t, a in product(models, techniques, (0.5, 0.9))]
    )
    found = panels(figure)
    assert list(found) == [f"{model} on digits, batch 64" for model in models]
    for axis in found.values():
        assert list(lines(axis)) == list(techniques)
        assert axis.get_xlabel() == "sparsity: weights removed (%)"
        assert axis.get_ylabel() == "test accuracy (%)"
        assert axis.get_ylim() == (0, 102)


def test_points_are_means_in_percent_from_left_to_right(drawn: Drawn) -> None:
    rows = [
        row(amount=0.9, seed=0, **{"final/accuracy": 0.5}),
        row(amount=0.9, seed=1, **{"final/accuracy": 0.7}),
        row(amount=0.5, seed=0, **{"final/accuracy": 0.8, "final/sparsity": 0.75}),
        row(amount=0.5, seed=1, **{"final/accuracy": 0.9, "final/sparsity": 0.75}),
    ]
    (axis,) = panels(drawn(rows)).values()
    bar = lines(axis)["weight"]
    assert points(bar) == [(75.0, 85.0), (90.0, 60.0)]
    # With two seeds, from the lower to the higher.
    assert ends(bar) == [(80.0, 90.0), (50.0, 70.0)]


def test_bars_of_five_seeds_are_t_intervals(drawn: Drawn) -> None:
    rows = [row(seed=seed, **{"final/accuracy": 0.01 * (50 + seed)}) for seed in (1, 2, 3, 4, 5)]
    figure = drawn(rows)
    (axis,) = panels(figure).values()
    # Of 1 to 5: 3 and half a width of 1.9632; see test_compare.
    assert ends(lines(axis)["weight"]) == [(53 - 1.9632, 53 + 1.9632)]
    assert figure.get_suptitle() == "tiny (5 seeds, bars are 95% t intervals of the mean)"


def test_bars_stay_between_0_and_1(drawn: Drawn) -> None:
    values = {0.5: (1.0, 1.0, 0.7), 0.9: (0.0, 0.0, 0.3)}
    rows = [row(amount=a, seed=s, **{"final/accuracy": v}) for a in values for s, v in enumerate(values[a])]
    (axis,) = panels(drawn(rows)).values()
    (_, high), (low, _) = ends(lines(axis)["weight"])
    assert (low, high) == (0.0, 100.0)


@pytest.mark.parametrize(
    ("seeds", "said"), [((0,), "one seed"), ((0, 1), "2 seeds, bars from lowest to highest")]
)
def test_the_title_says_what_bars_are(drawn: Drawn, seeds: tuple[int, ...], said: str) -> None:
    assert drawn([row(seed=seed) for seed in seeds]).get_suptitle() == f"tiny ({said})"


def test_one_seed_has_no_bar(drawn: Drawn) -> None:
    (axis,) = panels(drawn([row()])).values()
    assert ends(lines(axis)["weight"]) == [(90.0, 90.0)]


def test_networks_that_differ_in_macs_are_drawn_over_them_as_well(drawn: Drawn) -> None:
    weight = [row(amount=a, **{"final/macs_effective": 640 * (1 - a)}) for a in (0.5, 0.75)]
    neuron = [
        row(
            technique="neuron",
            amount=a,
            **{"final/macs_effective": 640 * (1 - a) ** 2, "final/macs_physical": 160.0},
        )
        for a in (0.5,)
    ]
    figure = drawn(weight + neuron)
    axes = {axis.get_xlabel(): axis for axis in figure.axes}
    assert list(axes) == [
        "sparsity: weights removed (%)",
        "effective MACs left (% of dense, log)",
        "physical MACs left, cut out (% of dense, log)",
    ]
    effective, physical = list(axes.values())[1:]
    # Of dense, less to the right.
    assert sorted(x for x, _ in points(lines(effective)["weight"])) == [25.0, 50.0]
    assert points(lines(effective)["neuron"]) == [(25.0, 90.0)]
    assert points(lines(physical)["neuron"]) == [(25.0, 90.0)]
    assert effective.xaxis_inverted()
    assert effective.get_xscale() == "log"


def test_a_mean_of_survivors_is_hollow_and_the_title_says_so(drawn: Drawn) -> None:
    rows = [
        row(seed=0),
        row(seed=1),
        row(seed=2, status="stopped"),
        *(row(amount=0.9, seed=s) for s in range(3)),
    ]
    figure = drawn(rows)
    assert "hollow: mean of survivors" in figure.get_suptitle().replace("\n", " ")
    (axis,) = panels(figure).values()
    hollow = [line for line in axis.lines if line.get_markerfacecolor() == "white"]
    assert [list(line.get_xdata()) for line in hollow] == [[50.0]]
    assert "hollow" not in drawn([row(seed=0), row(seed=1)]).get_suptitle()


def test_the_dense_networks_are_a_line_at_their_mean(drawn: Drawn) -> None:
    (axis,) = panels(
        drawn([row(seed=0, **{"ipa/accuracy": 0.9}), row(seed=1, **{"ipa/accuracy": 0.96})])
    ).values()
    (dense,) = (line for line in axis.lines if line.get_label() == "dense")
    assert list(dense.get_ydata()) == pytest.approx([93.0, 93.0])


def test_trials_that_did_not_finish_are_not_drawn(drawn: Drawn) -> None:
    nothing = float("nan")
    rows = [row(), row(amount=0.9, status="failed", **{"final/accuracy": nothing, "final/sparsity": nothing})]
    (axis,) = panels(drawn(rows)).values()
    assert points(lines(axis)["weight"]) == [(50.0, 90.0)]


def test_lines_differ_by_more_than_colour(drawn: Drawn) -> None:
    names = [f"m{number:02}" for number in range(28)]
    (axis,) = panels(drawn([row(technique=name) for name in names])).values()
    looks = [
        (to_hex(bar[0].get_color()).upper(), bar[0].get_linestyle(), bar[0].get_marker())
        for bar in lines(axis).values()
    ]
    assert len(set(looks)) == 28
    # The first seven can be told apart without colour.
    assert len({marker for _, _, marker in looks[:7]}) == 7
    assert {colour for colour, _, _ in looks} == set(OKABE_ITO)
    assert {style for _, style, _ in looks} == set(STYLES)
    assert {marker for _, _, marker in looks} == set(MARKERS)


def test_a_method_looks_the_same_in_every_panel_and_in_the_legend(drawn: Drawn) -> None:
    # A space may leave a method out for one of its networks.
    figure = drawn(
        [
            row(model="slp", technique="neuron"),
            *(row(model="mlp", technique=name) for name in ("weight", "neuron", "random")),
            *(row(model="cnn", technique=name) for name in ("structured", "neuron")),
        ]
    )
    (legend,) = figure.legends
    shown = {
        text.get_text(): handle
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
    }
    assert shown.keys() == {"weight", "neuron", "random", "structured", "dense"}
    colours: dict[str, set[str]] = {}
    for axis in panels(figure).values():
        for name, bar in lines(axis).items():
            colours.setdefault(name, set()).add(to_hex(bar[0].get_color()))
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == 4
    for name, found in colours.items():
        handle = shown[name]
        line = handle[0] if isinstance(handle, ErrorbarContainer) else handle
        colour = line.get_color() if hasattr(line, "get_color") else line.get_colors()[0]  # type: ignore[union-attr]
        assert {to_hex(colour)} == found


def test_a_long_title_stays_inside_the_picture(drawn: Drawn) -> None:
    rows = [row(seed=s, amount=a) for a in (0.5, 0.9) for s in range(3)]
    rows += [row(seed=3, amount=0.9), row(seed=4, amount=0.5, status="stopped")]
    rows.append(row(technique="neuron", seed=0) | {"final/accuracy": 0.8})
    rows.append(row(technique="neuron", seed=1) | {"final/accuracy": 0.7})
    figure = drawn(rows)
    figure.draw_without_rendering()
    (title,) = figure.texts
    assert "hollow: mean of survivors" in title.get_text().replace("\n", " ")
    box = title.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    # Nor does it cover what is below it.
    assert box.y0 >= figure.axes[0].title.get_window_extent().y1
