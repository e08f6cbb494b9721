"""Charts as data: labels that do not touch, ticks that can be read, looks that differ without colour."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.report.charts import (
    COLOURS,
    DASHES,
    GLYPHS,
    SYMBOLS,
    Axis,
    Point,
    dot_chart,
    line_chart,
    make_layout,
    make_line_styles,
    plotly_text,
    spread_out,
)
from orchestrator.report.components import (
    Details,
    Heading,
    HeatMap,
    Paragraph,
    TableBlock,
    environment,
    render_blocks,
)
from orchestrator.report.layers_classes import class_accuracies


@given(st.lists(st.floats(0, 100), max_size=6))
def test_labels_are_apart_in_their_order_and_inside(values: list[float]) -> None:
    places = spread_out(values, gap=5, low=0, high=102)
    order = sorted(range(len(values)), key=lambda n: values[n])
    assert all(places[b] - places[a] >= 5 - 1e-9 for a, b in pairwise(order))
    assert all(-1e-9 <= place <= 102 + 1e-9 for place in places)


def test_labels_that_do_not_touch_stay_where_they_are() -> None:
    assert spread_out([50, 10, 90], gap=5, low=0, high=100) == [50, 10, 90]
    assert spread_out([10, 10], gap=5, low=0, high=100) == [10, 15]
    assert spread_out([100, 100], gap=5, low=0, high=100) == [95, 100]


def test_seven_methods_differ_in_colour_and_marker_and_the_next_in_the_pair() -> None:
    styles = list(make_line_styles(f"method {n}" for n in range(28)).values())
    assert len({(style.colour, style.symbol, style.dash) for style in styles}) == 28
    first = styles[:7]
    assert len({style.colour for style in first}) == len({style.symbol for style in first}) == 7
    assert len(COLOURS) == len(SYMBOLS) == len(GLYPHS) == 7
    assert [style.dash for style in first[:4]] == list(DASHES)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((1, 90), ["1", "2", "5", "10", "20", "50", "100"]),
        ((18_640, 1_666_000), ["20k", "50k", "100k", "200k", "500k", "1M", "2M"]),
        ((1, 1e6), ["1", "10", "100", "1k", "10k", "100k", "1M"]),
        ((0.3, 0.6), ["0.5"]),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_whole_numbers(values: tuple[float, ...], ticks: list[str]) -> None:
    frame = make_layout(Axis("x", is_log=True), Axis("y"), xs=values)
    assert frame["xaxis"]["ticktext"] == ticks


def test_lines_are_named_at_their_ends() -> None:
    lines = {"a": [Point(0, 90), Point(50, 80)], "b<c": [Point(0, 90), Point(50, 80.1)]}
    y = Axis("accuracy", range=(0, 100))
    spec = line_chart(lines, make_line_styles(lines), x=Axis("x"), y=y, height=256, has_end_labels=True)
    first, second = spec["layout"]["annotations"]
    assert first["text"].endswith("● </span> a") or first["text"].endswith("●</span> a")
    assert second["text"].endswith("b&lt;c")
    # 17 pixels of the 200 between the axes are 8.5 points.
    assert second["y"] - first["y"] == pytest.approx(8.5)


def test_rows_of_dots_go_from_the_top_down() -> None:
    marks = {"a": Point(0, 90, (85, 93)), "b": Point(0, 80)}
    spec = dot_chart(marks, make_line_styles(marks), x=Axis("accuracy"), reference=("dense", 95))
    assert [line["y"] for line in spec["data"]] == [[0], [1]]
    assert spec["layout"]["yaxis"]["range"] == [1.5, -0.5]
    assert spec["layout"]["yaxis"]["ticktext"] == ["a", "b"]
    bar = spec["data"][0]["error_x"]
    assert (bar["arrayminus"], bar["array"]) == ([5], [3])


def test_what_is_no_html_is_escaped_and_attributes_with_it() -> None:
    blocks = [Paragraph("<b>", style='"><i'), Details("<u>", [Heading("'<")])]
    html = render_blocks(blocks)
    assert '<p class="&#34;&gt;&lt;i">&lt;b&gt;</p>' in html
    assert "<summary>&lt;u&gt;</summary>" in html
    assert "<h3>&#39;&lt;</h3>" in html
    assert '<td class="n">&lt;i&gt;</td>' in render_blocks([TableBlock(["a", "b"], [["x", "<i>"]])])
    assert plotly_text("<b>&") == "&lt;b&gt;&amp;"


def test_of_many_rows_the_first_are_shown_and_the_others_counted() -> None:
    table = TableBlock(["a"], [[f"row {n}"] for n in range(5)], max_rows=3, row_name="settings")
    html = render_blocks([table])
    assert html.count("<td>") == 3
    assert "2 more settings are not shown." in html
    assert "not shown" not in render_blocks([TableBlock(["a"], [["x"]] * 3, max_rows=3)])


@given(st.text())
def test_json_in_a_script_is_read_back_and_ends_nothing(text: str) -> None:
    script = environment().from_string("{{ data|tojson }}").render(data={text: [text, "</script><!--"]})
    assert not {"<", ">", "&"} & set(script)
    assert json.loads(script) == {text: [text, "</script><!--"]}


def test_json_in_a_script_has_no_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        environment().from_string("{{ data|tojson }}").render(data=[float("nan")])


def test_class_accuracies_by_hand() -> None:
    assert class_accuracies([[8, 2, 0], [0, 0, 0], [1, 2, 1]]) == (0.8, None, 0.25)


def test_a_heat_map_has_a_number_in_every_cell() -> None:
    rows: list[tuple[str, list[float | None]]] = [("hidden", [0.0, 0.502]), ("output", [None, 0.95])]
    found = render_blocks([HeatMap("layer", "%", ["0", "50"], rows)])
    assert 'style="--heat:50.2%">50</td>' in found
    assert '<td class="hot" style="--heat:95.0%">95</td>' in found
    assert '<td class="none"></td>' in found


@pytest.mark.parametrize(
    ("xs", "labels"),
    [
        ((1.0, 3.5, 20.0), ["1", "2", "5", "10", "20"]),
        ((1.3, 1.55), ["1.3", "1.55"]),  # no 1, 2 or 5 lies between them
        ((3_254_000.0,), ["3.25M"]),
        ((2e3, 2.4e6), ["10k", "100k", "1M"]),
    ],
)
def test_a_logarithmic_axis_has_numbers_wherever_its_values_lie(
    xs: tuple[float, ...], labels: list[str]
) -> None:
    layout = make_layout(Axis("x", is_log=True), Axis("y"), xs=xs)
    assert layout["xaxis"]["ticktext"] == labels
