from __future__ import annotations

import re

import polars as pl
import pytest

from app.charts import above_column, draw_classes, draw_examples, page

CAPS = (0.8, 0.6)


def classes(*rows: tuple[str, float | None, float | None, float | None, float | None]) -> pl.DataFrame:
    names = ["label", "power_mean_w", "power_max_w", above_column(0.8), above_column(0.6)]
    return pl.DataFrame(
        rows, schema={name: pl.String if name == "label" else pl.Float64 for name in names}, orient="row"
    )


def power(title: str, tdp_w: float | None) -> tuple[pl.DataFrame, pl.DataFrame]:
    readings = pl.DataFrame({"title": [title] * 3, "elapsed_s": [0.0, 0.5, 2.0], "power_w": [100.0, 240.0, 100.0]})
    averages = pl.DataFrame({"title": [title] * 2, "elapsed_s": [0.0, 2.0], "power_w": [150.0, 150.0]})
    return readings, averages.with_columns(tdp_w=pl.lit(tdp_w, dtype=pl.Float64))


def test_each_panel_has_a_line_for_each_cap_at_its_watts():
    figure = draw_examples(*power("vgg11", 250.0), CAPS)
    caps = {trace.name: list(trace.y) for trace in figure.data if "cap" in trace.name}
    assert caps == {"cap at 80% of TDP": [200.0, 200.0], "cap at 60% of TDP": [150.0, 150.0]}


def test_an_unknown_tdp_draws_no_cap():
    assert not [trace.name for trace in draw_examples(*power("vgg11", None), CAPS).data if "cap" in trace.name]


def test_panels_are_titled_and_share_one_legend():
    first, second = power("vgg11", 250.0), power("pna", 700.0)
    figure = draw_examples(pl.concat([first[0], second[0]]), pl.concat([first[1], second[1]]), CAPS)
    assert [note.text for note in figure.layout.annotations][:2] == ["vgg11", "pna"]
    assert sum(bool(trace.showlegend) for trace in figure.data) == 4


def test_no_jobs_draw_an_empty_figure():
    readings, averages = power("vgg11", 250.0)
    assert len(draw_examples(readings.clear(), averages.clear(), CAPS).data) == 0


def test_classes_stand_in_order_of_their_mean_power_with_the_greatest_on_top():
    figure = draw_classes(classes(("a", 300.0, 400.0, 0.1, 0.2), ("b", 100.0, 150.0, 0.0, 0.0)), CAPS)
    mean = next(trace for trace in figure.data if trace.name == "mean")
    assert (list(mean.y), list(mean.x)) == (["b", "a"], [100.0, 300.0])  # a horizontal axis counts from the bottom


def test_bars_are_per_cent_and_the_deeper_cap_stands_behind():
    figure = draw_classes(classes(("a", 300.0, 400.0, 0.1, 0.25)), CAPS)
    bars = [(trace.name, list(trace.x), trace.width) for trace in figure.data if trace.type == "bar"]
    assert [(name, x) for name, x, _ in bars] == [("above 60% of TDP", [25.0]), ("above 80% of TDP", [10.0])]
    assert bars[0][2] > bars[1][2]


def test_a_class_without_a_bound_has_no_bar_instead_of_one_of_length_zero():
    figure = draw_classes(classes(("a", 300.0, 400.0, None, None)), CAPS)
    assert [list(trace.x) for trace in figure.data if trace.type == "bar"] == [[None], [None]]


def test_a_page_opens_without_a_network():
    figure = draw_classes(classes(("a", 300.0, 400.0, 0.1, 0.2)), CAPS)
    text = page("two figures", [], [("one", "first", figure), ("two", "second", figure)])
    assert len(re.findall(r"plotly\.js v\d+\.\d+\.\d+", text)) == 1  # the library itself, once
    assert text.count("Plotly.newPlot(") >= 2
    assert not re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)\s*=\s*["\']?https?:', text)


@pytest.mark.parametrize("where", ["facts", "table", "class"])
def test_text_from_data_is_never_markup(where: str):
    nasty = "<script>alert(1)</script>"
    rows = classes((nasty if where == "class" else "a", 300.0, 400.0, 0.1, 0.2))
    facts = [(nasty, nasty)] if where == "facts" else []
    tables = [(nasty, nasty, pl.DataFrame({nasty: [nasty]}))] if where == "table" else []
    assert nasty not in page(nasty, facts, [("one", nasty, draw_classes(rows, CAPS))], tables)


def test_a_table_shows_what_is_missing_as_a_dash_and_not_as_zero():
    text = page("t", [], [], [("h", "c", pl.DataFrame({"x": [None, 0.0, 1234.5], "y": ["a", None, "c"]}))])
    assert re.findall(r"<td[^>]*>([^<]*)</td>", text) == ["–", "a", "0.00", "–", "1,234", "c"]


def test_figures_and_tables_scroll_by_themselves_where_the_page_is_narrow():
    table = pl.DataFrame({"x": [1]})
    text = page("t", [], [("h", "c", draw_classes(classes(("a", 300.0, 400.0, 0.1, 0.2)), CAPS))], [("h", "c", table)])
    assert ".wide { overflow-x: auto; } .drawn { min-width: 900px; }" in text
    assert len(re.findall(r'<div class="wide"><(?:div class="drawn"|table)>', text)) == 2
