"""The picture of the results: an SVG that reads in the light and in the dark."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

ROW, LEFT, WIDTH = 22, 250, 760
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600 } .ours { fill: #00897b } .other { fill: #b0bec5 }
line { stroke: #24292f; stroke-dasharray: 3 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .other { fill: #546e7a } .ours { fill: #26a69a } line { stroke: #e6edf3 }
}"""


def draw(charts: Mapping[str, Mapping[str, float]], *, ours: str, unit: float | None = 1.0) -> str:
    """Bars, one chart below the other.

    Args:
        charts: by title, the values by name.
        ours: the name that stands out.
        unit: the value of the dashed line.
    """
    parts: list[str] = []
    y = 0
    for title, values in charts.items():
        most = max(values.values())
        scale = (WIDTH - LEFT - 70) / most
        y += ROW
        parts.append(f'<text class="title" x="0" y="{y}">{escape(title)}</text>')
        top = y + 6
        for name, value in values.items():
            y += ROW
            kind = "ours" if name == ours else "other"
            length = value * scale
            parts.append(
                f'<text x="{LEFT - 8}" y="{y}" text-anchor="end">{escape(name)}</text>'
                f'<rect class="{kind}" x="{LEFT}" y="{y - 12}" width="{length:.1f}" height="15"/>'
                f'<text x="{LEFT + length + 6:.1f}" y="{y}">{value:.2f}</text>'
            )
        if unit is not None and unit < most:
            x = LEFT + unit * scale
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{y + 6}"/>')
        y += ROW
    size = f'width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}"'
    begin = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    return "\n".join([begin, f"<style>{STYLE}\n</style>", *parts, "</svg>\n"])
