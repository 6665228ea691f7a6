"""The picture of the results: an SVG that reads in the light and in the dark."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import NamedTuple

ROW, LEFT, WIDTH, VALUES = 22, 250, 760, 50
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600 } .note { font-size: 10px }
.ours { fill: #00897b } .other { fill: #b0bec5 } line { stroke: #24292f }
.unit { stroke-dasharray: 3 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .other { fill: #546e7a } .ours { fill: #26a69a } line { stroke: #e6edf3 }
}"""


class Bar(NamedTuple):
    """What was measured of one way to do it, relative to another.

    Attributes:
        value: the length, and the figure.
        low: where the whisker begins.
        high: where it ends.
    """

    value: float
    low: float
    high: float


def draw(charts: Mapping[str, Mapping[str, Bar]], *, ours: str, note: str) -> str:
    """Bars with whiskers, one chart below the other, and a dashed line at 1.

    Args:
        charts: by title, the bars by name.
        ours: the name that stands out.
        note: lines below, with what all of it was measured on.
    """
    parts: list[str] = []
    y = 0
    for title, bars in charts.items():
        most = max(1.0, *(bar.high for bar in bars.values()))
        scale = (WIDTH - LEFT - VALUES) / most
        y += ROW
        parts.append(f'<text class="title" x="0" y="{y}">{escape(title)}</text>')
        top = y + 6
        for name, bar in bars.items():
            y += ROW
            kind = "ours" if name == ours else "other"
            low, length, high = (round(LEFT + x * scale, 1) for x in (bar.low, bar.value, bar.high))
            parts.append(
                f'<text x="{LEFT - 8}" y="{y}" text-anchor="end">{escape(name)}</text>'
                f'<rect class="{kind}" x="{LEFT}" y="{y - 12}" width="{length - LEFT:.1f}" '
                f'height="15"/><line x1="{low}" x2="{high}" y1="{y - 4.5}" y2="{y - 4.5}"/>'
                f'<text x="{WIDTH}" y="{y}" text-anchor="end">{bar.value:.2f}</text>'
            )
        x = round(LEFT + scale, 1)
        parts.append(f'<line class="unit" x1="{x}" x2="{x}" y1="{top}" y2="{y + 6}"/>')
        y += ROW
    for line in note.splitlines():
        y += ROW
        parts.append(f'<text class="note" x="0" y="{y}">{escape(line)}</text>')
    size = f'width="{WIDTH}" height="{y + 6}" viewBox="0 0 {WIDTH} {y + 6}"'
    begin = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    return "\n".join([begin, f"<style>{STYLE}\n</style>", *parts, "</svg>\n"])
