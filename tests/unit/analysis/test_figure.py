"""Figures for papers: what is drawn, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from result_rows import frame, row

from orchestrator.analysis.figure import make_figure, render
from orchestrator.analysis.figure_data import FigureOptions
from orchestrator.errors import UsageError

AMOUNTS = {0.5: 0.9, 0.9: 0.6}


def rows(technique: str = "weight", **columns: Any) -> list[dict[str, Any]]:  # of `frame`
    return [
        row(technique, amount, seed, accuracy + seed / 100, **columns)
        for amount, accuracy in AMOUNTS.items()
        for seed in (0, 1, 2)
    ]


def lines(figure: Any) -> dict[str, tuple[list[float], list[float]]]:
    """Label -> (x, y) of the first panel's lines, without that of the dense networks."""
    axis = figure.axes[0]
    drawn = {container.get_label(): container.lines[0] for container in axis.containers}
    return {label: (list(line.get_xdata()), list(line.get_ydata())) for label, line in drawn.items()}


def test_a_point_is_the_mean_of_its_seeds_in_percent() -> None:
    figure = make_figure(frame(*rows()), FigureOptions(x="amount"))
    assert lines(figure) == {"weight": ([50.0, 90.0], [pytest.approx(91.0), pytest.approx(61.0)])}
    (axis,) = figure.axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("amount (%)", "test accuracy (%)")
    # 0.91 plus or minus t(2) = 4.3027 times 0.01 / sqrt(3), worked by hand
    bars = axis.containers[0].lines[2][0].get_segments()
    assert bars[0][:, 1] == pytest.approx([91 - 2.4841, 91 + 2.4841], abs=1e-3)


def test_the_width_is_that_of_a_column_and_of_a_page() -> None:
    assert make_figure(frame(*rows())).get_size_inches()[0] == 3.25
    both = frame(*rows(model="mlp"), *rows(model="cnn"))
    figure = make_figure(both, FigureOptions(facet="model"))
    assert figure.get_size_inches()[0] == 5.5
    assert [axis.get_title() for axis in figure.axes] == ["mlp", "cnn"]
    assert make_figure(both, FigureOptions(style="talk")).get_size_inches()[0] == 12.0


def test_lines_are_named_by_the_columns_that_are_asked_for() -> None:
    mixed = frame(*rows(recover="none"), *rows(recover="refit"), *rows("neuron", recover="none"))
    assert list(lines(make_figure(mixed))) == ["weight", "weight, refit", "neuron"]
    by = FigureOptions(by=("recover", "technique"))
    assert list(lines(make_figure(mixed, by))) == ["none, weight", "refit, weight", "none, neuron"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (FigureOptions(by=("technique",)), "would mix several recover; give --by technique,recover"),
        (FigureOptions(facet="technique", by=("recover",)), "would mix several model; give --facet model"),
        (FigureOptions(x="mac"), "--x: unknown measure 'mac'; did you mean macs"),
        (FigureOptions(y="accurcy"), "--y: unknown measure 'accurcy'; did you mean accuracy"),
        (FigureOptions(style="papr"), "--style: unknown style 'papr'; did you mean paper"),
        (FigureOptions(by=("seed",)), "unknown column 'seed'"),
        (FigureOptions(x="latency"), "`orchestrate latency SWEEP` measures it"),
    ],
)
def test_what_is_refused(options: FigureOptions, message: str) -> None:
    results = frame(
        *rows(recover="none", model="mlp"),
        *rows(recover="refit", model="mlp"),
        *rows(recover="none", model="cnn"),
    )
    with pytest.raises(UsageError) as raised:
        make_figure(results, options)
    assert message in str(raised.value)


def test_a_sweep_without_results_has_no_figure() -> None:
    with pytest.raises(UsageError, match="nothing to draw"):
        make_figure(frame(row(status="missing")))


def test_every_seed_is_a_point_where_they_are_asked_for() -> None:
    figure = make_figure(frame(*rows()), FigureOptions(x="amount", seeds=True))
    points = [line for line in figure.axes[0].lines if line.get_marker() == "."]
    assert [list(line.get_ydata()) for line in points] == [
        [pytest.approx(v) for v in values] for values in ((90, 91, 92), (60, 61, 62))
    ]


@pytest.mark.parametrize("count", [1, 4, 9])
@pytest.mark.parametrize("name", ["a", "finetune(epochs=1)", "group_lasso(strength=0.003)"])
def test_the_legend_is_inside(count: int, name: str) -> None:
    every = [one for number in range(count) for one in rows(recover=f"{name} {number}")]
    figure = make_figure(frame(*every))
    render(figure, "png")  # constrained layout places the legend as it draws
    box, (width, height) = figure.legends[0].get_window_extent(), figure.canvas.get_width_height()
    assert -1 <= box.x0 <= box.x1 <= width + 1
    assert -1 <= box.y0 <= box.y1 <= height + 1


@pytest.mark.parametrize(("format", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_equal_figures_are_equal_files(format: str, start: bytes) -> None:
    first, second = (render(make_figure(frame(*rows())), format) for _ in range(2))
    assert first.startswith(start)
    assert first == second
