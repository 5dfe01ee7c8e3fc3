"""Frames become figures, and figures become one page that needs no network. Pure; knows no dashboard.

Colours are those of Okabe and Ito (Color Universal Design, 2008), told apart with any colour vision; what colour tells,
position or line style tells too.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

BLUE, SKY, VERMILION, GREY = "#0072B2", "#56B4E9", "#D55E00", "#767676"
INK, PAPER, RULE = "#1a1a1a", "#ffffff", "#e3e3e3"
CAP_STYLES = {0.8: (VERMILION, "dash"), 0.6: (BLUE, "dot")}
"""Cap as a share of TDP to the colour and dash of its line."""

PANEL_COLUMNS = 4

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 2rem auto; max-width: 1240px;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
figure { margin: 0; } .wide { overflow-x: auto; } .drawn { min-width: 900px; }
figcaption { color: #444; max-width: 100ch; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.2rem 0.8rem; border-bottom: 1px solid #e3e3e3; text-align: left; }
th { border-bottom: 2px solid #767676; vertical-align: bottom; }
td { white-space: nowrap; } .number { text-align: right; }
dl { display: grid; grid-template-columns: max-content auto; gap: 0.2rem 1.5rem; } dd { margin: 0; }
@media (max-width: 700px) { dl { display: block; } dt { font-weight: 600; margin-top: 0.5rem; } }
"""


def draw_examples(readings: pl.DataFrame, averages: pl.DataFrame, cap_shares: Sequence[float]) -> go.Figure:
    """Return the power of one job over time, a panel for each title, with a line for each cap.

    Parameters
    ----------
    readings : frame with title, elapsed_s, power_w, drawn thin
    averages : frame with title, elapsed_s, power_w, tdp_w; both ends of each second's step; tdp_w null: no cap line
    """
    titles = averages["title"].unique(maintain_order=True).to_list()
    rows = max(1, math.ceil(len(titles) / PANEL_COLUMNS))
    figure = make_subplots(
        rows=rows,
        cols=PANEL_COLUMNS,
        subplot_titles=[html.escape(title) for title in titles],
        shared_xaxes=True,
        shared_yaxes="all",
        horizontal_spacing=0.02,
        vertical_spacing=min(0.09, 0.3 / rows),
        x_title="time since the first reading (s)",
        y_title="power of one GPU (W)",
    )
    for panel, title in enumerate(titles):
        row, column = panel // PANEL_COLUMNS + 1, panel % PANEL_COLUMNS + 1
        thin, steps = readings.filter(pl.col("title") == title), averages.filter(pl.col("title") == title)
        legend = {"showlegend": panel == 0}
        figure.add_scatter(
            x=thin["elapsed_s"].to_numpy(),
            y=thin["power_w"].to_numpy(),
            mode="lines",
            line={"color": SKY, "width": 1},
            name="reading",
            legendgroup="reading",
            row=row,
            col=column,
            **legend,
        )
        figure.add_scatter(
            x=steps["elapsed_s"].to_numpy(),
            y=steps["power_w"].to_numpy(),
            mode="lines",
            line={"color": INK, "width": 1.5},
            name="one-second average",
            legendgroup="average",
            row=row,
            col=column,
            **legend,
        )
        tdp_w = steps["tdp_w"].drop_nulls().to_list()[:1]
        for share in cap_shares if tdp_w else ():
            color, dash = CAP_STYLES.get(share, (GREY, "dashdot"))
            figure.add_scatter(
                x=[0, steps["elapsed_s"].max()],
                y=[share * tdp_w[0]] * 2,
                mode="lines",
                line={"color": color, "width": 1.5, "dash": dash},
                name=f"cap at {share:.0%} of TDP",
                legendgroup=f"cap {share}",
                row=row,
                col=column,
                **legend,
            )
    _finish(figure, height=150 + 165 * rows)
    figure.update_yaxes(rangemode="tozero")
    figure.update_annotations(font_size=13)
    return figure


def draw_classes(classes: pl.DataFrame, cap_shares: Sequence[float]) -> go.Figure:
    """Return mean and peak power of each class, and beside it how long it draws more than each cap.

    Parameters
    ----------
    classes : frame with label, power_mean_w, power_max_w and, for a cap of 0.8 of TDP, above_80pct_tdp (share of time)
    """
    ordered = classes.sort("power_mean_w", nulls_last=False)
    labels = [html.escape(label) for label in ordered["label"].to_list()]
    mean_w, max_w = ordered["power_mean_w"].to_list(), ordered["power_max_w"].to_list()
    figure = make_subplots(
        rows=1,
        cols=2,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=["power of one GPU (W)", "share of time above the cap (%), first bound"],
    )
    figure.add_scatter(
        x=[value for low, high in zip(mean_w, max_w, strict=True) for value in (low, high, None)],
        y=[label for label in labels for _ in range(3)],
        mode="lines",
        line={"color": GREY, "width": 1.5},
        hoverinfo="skip",
        showlegend=False,
        row=1,
        col=1,
    )
    for name, values, symbol, color in (("mean", mean_w, "circle", INK), ("peak", max_w, "diamond-open", VERMILION)):
        marker = {"symbol": symbol, "color": color, "size": 9, "line": {"width": 2, "color": color}}
        figure.add_scatter(x=values, y=labels, mode="markers", name=name, marker=marker, row=1, col=1)
    # What lies above the higher cap lies above the lower one too, so the bars stand in front of each other.
    for share in sorted(cap_shares):
        color, _ = CAP_STYLES.get(share, (GREY, "dashdot"))
        figure.add_bar(
            x=(100 * ordered[above_column(share)]).to_list(),
            y=labels,
            orientation="h",
            name=f"above {share:.0%} of TDP",
            marker={"color": color if share == max(cap_shares) else SKY},
            width=0.45 if share == max(cap_shares) else 0.8,
            row=1,
            col=2,
        )
    _finish(figure, height=140 + 22 * max(1, len(labels)))
    figure.update_layout(barmode="overlay")
    figure.update_yaxes(tickmode="linear", automargin=True, ticklabelstandoff=6)
    figure.update_xaxes(rangemode="tozero")
    figure.update_xaxes(range=[0, 100], col=2)
    return figure


def above_column(cap_share: float) -> str:
    """Return the name of the column that holds the share of time above a cap.

    Examples
    --------
    >>> above_column(0.8)
    'above_80pct_tdp'
    """
    return f"above_{round(100 * cap_share)}pct_tdp"


def page(
    title: str,
    facts: Iterable[tuple[str, str]],
    figures: Iterable[tuple[str, str, go.Figure]],
    tables: Iterable[tuple[str, str, pl.DataFrame]] = (),
) -> str:
    """Return one HTML page with everything in it: facts, figures and tables, each with its heading and a caption.

    On a narrow screen figures and tables keep a width at which they can be read, and scroll by themselves.
    Text from data is written as text, never as markup.
    """
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><main><h1>{html.escape(title)}</h1>",
        "<dl>",
        *(f"<dt>{html.escape(name)}</dt><dd>{html.escape(fact)}</dd>" for name, fact in facts),
        "</dl>",
    ]
    for number, (heading, caption, figure) in enumerate(figures):
        drawn = figure.to_html(
            full_html=False,
            include_plotlyjs=number == 0,  # the library goes in once, whole, so that the page opens offline
            div_id=f"figure-{number}",
            config={"displaylogo": False, "responsive": True},
        )
        parts.append(f'<h2>{html.escape(heading)}</h2><figure aria-label="{html.escape(heading)}">')
        parts.append(f'<div class="wide"><div class="drawn">{drawn}</div></div>')
        parts.append(f"<figcaption>{html.escape(caption)}</figcaption></figure>")
    for heading, caption, frame in tables:
        parts.append(f"<h2>{html.escape(heading)}</h2>{_table(frame)}<p>{html.escape(caption)}</p>")
    return "\n".join([*parts, "</main></body></html>\n"])


def _table(frame: pl.DataFrame) -> str:
    numeric = [dtype.is_numeric() for dtype in frame.dtypes]
    kind = [' class="number"' if number else "" for number in numeric]
    head = "".join(f"<th{css}>{html.escape(name)}</th>" for name, css in zip(frame.columns, kind, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f"<td{css}>{_cell(value)}</td>" for value, css in zip(row, kind, strict=True)) + "</tr>"
        for row in frame.iter_rows()
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
        return f"{value:,.{decimals}f}"
    return html.escape(str(value))


def _finish(figure: go.Figure, height: int) -> None:
    """Give a figure the house's plain look."""
    figure.update_layout(
        template="none",
        height=height,
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        paper_bgcolor=PAPER,
        plot_bgcolor=PAPER,
        margin={"l": 70, "r": 20, "t": 70, "b": 60},
        legend={"orientation": "h", "x": 0, "y": 1, "yref": "container", "yanchor": "top"},
    )
    figure.update_xaxes(gridcolor=RULE, zeroline=False, linecolor=GREY, ticks="outside", tickcolor=GREY)
    figure.update_yaxes(gridcolor=RULE, zeroline=False, linecolor=GREY)
