"""The report's figures, as plotly's JSON. A colour is ``{"css": name}``: the page puts its theme's colour there."""

import html
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from curation.dataset.decisions import Cut, Histogram

Figure = dict[str, Any]

ACCENT, REST, INK, MUTED, LINE = ({"css": name} for name in ("accent", "rest", "ink", "muted", "line"))
CLEAR = "rgba(0,0,0,0)"
LABEL = 28


def funnel(name: str, stages: Sequence[tuple[str, int, int]]) -> Figure:
    """A funnel of (label, rows that go on, rows that stay behind), from the top."""
    places = list(range(len(stages)))
    most = max(1, *(on + out for _, on, out in stages))
    labels = [
        f"<b>{html.escape(label)}</b>  {on:,} {'kept' if place == places[-1] else 'go on'}"
        + (f", {out:,} dropped" if out else "")
        for place, (label, on, out) in zip(places, stages, strict=True)
    ]
    bars = [
        _bar("goes on", ACCENT, [on for _, on, _ in stages], places),
        _bar("dropped", REST, [out for _, _, out in stages], places),
    ]
    notes = [
        {
            "x": 0,
            "y": place - 0.32,
            "xanchor": "left",
            "yanchor": "bottom",
            "text": label,
            "showarrow": False,
            "align": "left",
            "font": {"color": INK, "size": 13},
        }
        for place, label in zip(places, labels, strict=True)
    ]
    layout = _layout(
        height=62 * len(stages) + 20,
        barmode="stack",
        bargap=0.62,
        annotations=notes,
        xaxis={"visible": False, "range": [0, most], "fixedrange": True},
        yaxis={"visible": False, "range": [len(stages) - 0.6, -0.85], "fixedrange": True},
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
    )
    return {"id": name, "data": bars, "layout": layout}


def histogram(counts: Histogram, cuts: Sequence[Cut], name: str) -> Figure:
    """Bars of kept rows and of the others, and a line at each sharp cut."""
    edges = counts.edges.tolist()
    width = [right - left for left, right in pairwise(edges)]
    middle = [(left + right) / 2 for left, right in pairwise(edges)]
    ranges = [f"{left:.4g} to {right:.4g}" for left, right in pairwise(edges)]
    bars = [
        {
            "type": "bar",
            "name": title,
            "x": middle,
            "y": rows.tolist(),
            "width": width,
            "customdata": ranges,
            "hovertemplate": f"%{{customdata}}<br>%{{y:,}} {title}<extra></extra>",
            "marker": {"color": colour, "line": {"width": 0}},
        }
        for title, rows, colour in (("kept", counts.kept, ACCENT), ("dropped", counts.dropped, REST))
    ]
    marks = [(cut.value, cut) for cut in cuts if cut.sharp and cut.value is not None]
    right_half = (edges[0] + edges[-1]) / 2
    layout = _layout(
        height=300,
        barmode="stack",
        bargap=0,
        shapes=[
            {
                "type": "line",
                "x0": value,
                "x1": value,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"color": INK, "width": 1.5, "dash": "dot"},
            }
            for value, _ in marks
        ],
        annotations=[
            {
                "x": value,
                "yref": "paper",
                "y": 1,
                "yanchor": "bottom",
                "xanchor": "right" if value > right_half else "left",
                "xshift": 4 if value > right_half else -4,
                "text": f"cut {value:.4g}",
                "showarrow": False,
                "font": {"color": INK, "size": 13},
            }
            for value, _ in marks
        ],
        xaxis=_axis(title=html.escape(counts.name), showgrid=False),
        yaxis=_axis(title="rows", gridcolor=LINE),
        margin={"l": 56, "r": 8, "t": 28 if marks else 8, "b": 48},
    )
    return {"id": name, "data": bars, "layout": layout}


def mix(shares: Sequence[tuple[str, float, float]], name: str) -> Figure:
    """Two bars for each value: its share of the candidates and of the kept rows, in per cent."""
    labels = [html.escape(label if len(label) <= LABEL else label[: LABEL - 1] + "…") for label, _, _ in shares]
    places = list(range(len(shares)))
    bars = [
        {
            "type": "bar",
            "orientation": "h",
            "name": title,
            "x": [share[side] for share in shares],
            "y": places,
            "customdata": labels,
            "hovertemplate": f"%{{customdata}}<br>%{{x:.1f}} % {title}<extra></extra>",
            "marker": {"color": colour, "line": {"width": 0}},
        }
        for title, side, colour in (("of the candidates", 1, REST), ("of the kept rows", 2, ACCENT))
    ]
    layout = _layout(
        height=38 * len(shares) + 60,
        barmode="group",
        bargap=0.3,
        bargroupgap=0.05,
        xaxis=_axis(title="share of rows, %", gridcolor=LINE, rangemode="tozero"),
        yaxis={
            **_axis(showgrid=False),
            "tickvals": places,
            "ticktext": labels,
            "range": [len(shares) - 0.5, -0.5],
            "automargin": True,
            "ticks": "outside",
            "ticklen": 6,
            "tickcolor": CLEAR,
        },
        margin={"l": 8, "r": 8, "t": 0, "b": 48},
    )
    return {"id": name, "data": bars, "layout": layout}


def _bar(title: str, colour: dict[str, str], rows: list[int], places: list[int]) -> Figure:
    return {
        "type": "bar",
        "orientation": "h",
        "name": title,
        "x": rows,
        "y": places,
        "hovertemplate": f"%{{x:,}} {title}<extra></extra>",
        "marker": {"color": colour, "line": {"width": 0}},
    }


def _axis(title: str = "", **more: Any) -> Figure:
    return {
        "title": {"text": title, "font": {"color": MUTED, "size": 13}, "standoff": 12},
        "tickfont": {"color": MUTED, "size": 12},
        "zeroline": False,
        "fixedrange": True,
        **more,
    }


def _layout(**more: Any) -> Figure:
    return {
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "font": {"family": "system-ui, -apple-system, Segoe UI, Roboto, Noto Sans, sans-serif", "color": INK},
        "showlegend": False,
        "dragmode": False,
        "hoverlabel": {"bgcolor": {"css": "raised"}, "bordercolor": LINE, "font": {"color": INK}},
        **more,
    }
