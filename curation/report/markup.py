"""Pieces of HTML for the report. Arguments named ``cell`` or ``rows`` are HTML already; all else is escaped here."""

from collections.abc import Iterable, Sequence
from html import escape


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first cell of a row is its header. A column titled ``#…`` holds numbers, one titled ``""`` bars."""
    kinds = [' class="number"' if title.startswith("#") else "" if title else ' class="bar"' for title in columns]
    titles = [escape(title.removeprefix("#")) for title in columns]
    head = "".join(f'<th scope="col"{kind}>{title}</th>' for title, kind in zip(titles, kinds, strict=True))
    body = "".join(
        f'<tr><th scope="row"{kinds[0]}>{first}</th>'
        + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(rest, kinds[1:], strict=True))
        + "</tr>\n"
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


def figure(name: str, caption: str, accent: str, rest: str) -> str:
    """Room for a figure, with the meanings of its two colours above it."""
    legend = f'<ul class="legend"><li class="accent">{escape(accent)}</li><li>{escape(rest)}</li></ul>'
    return (
        f'<figure>{legend}<div class="figure" id="{name}" role="img" aria-label="{escape(caption)}"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def bar(share: float, *, accent: bool = True) -> str:
    """A bar in a table's cell, ``share`` of its width."""
    return f'<span{"" if accent else " class=rest"} style="width:{100 * share:.2f}%"></span>'


def path(text: str) -> str:
    """A file's name or a hash."""
    return f'<span class="path">{escape(text)}</span>'


def paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{escape(text)}</p>\n"


def seconds(duration: float) -> str:
    """A duration in words."""
    if duration < 60:
        return f"{duration:.1f} s"
    minutes, rest = divmod(round(duration), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
