"""Small drawings as inline SVG: a stacked bar, bars by bin, a curve. Pure; colours are CSS values of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT = 420, 190
_LEFT, _BOTTOM = 44, 26


def bar(parts: Sequence[tuple[float, str]], whole: float) -> str:
    """A horizontal stacked bar; `parts` are (size, colour), `whole` the size of the full width."""
    x, drawn = 0.0, []
    for size, colour in parts:
        width = 1000 * size / whole
        drawn.append(f'<rect x="{x:.2f}" width="{width:.2f}" height="16" fill="{colour}"/>')
        x += width
    return f'<svg viewBox="0 0 1000 16" preserveAspectRatio="none" width="100%" height="16">{"".join(drawn)}</svg>'


def bars(counts: Mapping[str, Mapping[int, int]], labels: Sequence[str], colours: Mapping[str, str]) -> str:
    """Bars side by side, a group a bin: for each domain the share of its total that falls into the bin."""
    shares = {
        domain: [counts[domain].get(at, 0) / max(sum(counts[domain].values()), 1) for at in range(len(labels))]
        for domain in colours
        if domain in counts
    }
    most = max((max(values) for values in shares.values()), default=0.0) or 1.0
    step = (_WIDTH - _LEFT) / len(labels)
    width = step * 0.8 / max(len(shares), 1)
    drawn = []
    for share in (0.0, most / 2, most):
        y = _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - 12) * share / most
        drawn.append(f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        drawn.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for at, label in enumerate(labels):
        for place, (domain, values) in enumerate(shares.items()):
            height = (_HEIGHT - _BOTTOM - 12) * values[at] / most
            x = _LEFT + at * step + step * 0.1 + place * width
            drawn.append(
                f'<rect x="{x:.1f}" y="{_HEIGHT - _BOTTOM - height:.1f}" width="{width:.1f}" height="{height:.1f}" '
                f'fill="{colours[domain]}"><title>{escape(domain)}, {escape(label)}: '
                f"{values[at]:.1%}</title></rect>"
            )
        middle = _LEFT + (at + 0.5) * step
        drawn.append(
            f'<text x="{middle:.1f}" y="{_HEIGHT - 9}" text-anchor="middle" font-size="10">{escape(label)}</text>'
        )
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(drawn)}</svg>'


def curve(
    points: Sequence[tuple[float, float]], x_name: str, y_name: str, mark: tuple[float, float] | None = None
) -> str:
    """A line through points, and one marked point."""
    given = [*points, mark] if mark else list(points)
    low_x, high_x = min(x for x, _ in given), max(x for x, _ in given)
    low_y, high_y = min(y for _, y in given), max(y for _, y in given)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - low_x) / ((high_x - low_x) or 1)
        up = (y - low_y) / ((high_y - low_y) or 1)
        return _LEFT + 16 + across * (_WIDTH - _LEFT - 40), _HEIGHT - _BOTTOM - 10 - up * (_HEIGHT - _BOTTOM - 30)

    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
    drawn = [f'<polyline points="{path}" fill="none" stroke="var(--c)" stroke-width="2"/>']
    if mark:
        x, y = place(*mark)
        drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="var(--a)"><title>chosen</title></circle>')
        drawn.append(f'<text x="{x + 9:.1f}" y="{y - 6:.1f}">chosen</text>')
    drawn.append(
        f'<text x="{_WIDTH}" y="{_HEIGHT - 6}" text-anchor="end">{escape(x_name)}: {low_x:.3f} to {high_x:.3f}</text>'
    )
    drawn.append(f'<text x="4" y="13">{escape(y_name)}: {low_y:.3f} to {high_y:.3f}</text>')
    drawn.append(
        f'<path d="M{_LEFT} 20V{_HEIGHT - _BOTTOM}H{_WIDTH}" fill="none" stroke="var(--line)" stroke-width="1.5"/>'
    )
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img">{"".join(drawn)}</svg>'
