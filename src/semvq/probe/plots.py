"""Scatter plots with error bars as inline SVG: they take the page's colours, dark ones included,

stay sharp on any screen, and their words can be read and searched.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 360, 270  # small, so that words stay readable on a phone
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 48  # room for the ticks and the names of the axes
RADIUS, CAP = 4.5, 3.0  # of a point, of the ends of an error bar
LETTER, LINE = 7.4, 15.0  # a generous letter of a label, so that what seems free is free
MAX_LABEL = 26  # letters; the whole name is in the point's title

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Point:
    """One labelled point; the errors are half-widths of 95 % intervals, None where not known."""

    label: str
    x: float
    y: float
    x_error: float | None = None
    y_error: float | None = None

    def __post_init__(self) -> None:
        if not all(isfinite(v) for v in (self.x, self.y, self.x_error or 0, self.y_error or 0)):
            raise ValueError(f"{self.label}: expected a point of finite numbers, found {self}")
        if min(self.x_error or 0, self.y_error or 0) < 0:
            raise ValueError(f"{self.label}: expected errors of at least 0, found {self}")


@dataclass(frozen=True)
class Scatter:
    """One plot with its words."""

    title: str
    x_label: str
    y_label: str
    points: Sequence[Point]
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError(
                f"scatter plot {self.title!r}: expected at least one point, found none"
            )


@dataclass(frozen=True)
class _Axis:
    """From values to places along one side of the plot."""

    low: float
    high: float
    start: float  # where `low` lies
    end: float

    def place(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        values = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(self.low, self.high)
        inside = [float(v) for v in values if self.low <= v <= self.high]
        return [(self.place(v), _tick(v, float(values[1] - values[0]))) for v in inside]


def scatter_svg(scatter: Scatter) -> str:
    """The plot as an <svg> element; colours come from the classes of comparison.css."""
    points = scatter.points
    x = _axis([(p.x, p.x_error) for p in points], LEFT, WIDTH - RIGHT)
    y = _axis([(p.y, p.y_error) for p in points], HEIGHT - BOTTOM, TOP)
    bars = [bar for point in points for bar in _bars(point, x, y)]
    dots = [(x.place(p.x), y.place(p.y)) for p in points]
    taken = [_around(*dot) for dot in dots] + bars
    labels = "".join(_label(p.label, *dot, taken) for p, dot in zip(points, dots))
    marks = "".join(_dot(p, *dot) for p, dot in zip(points, dots))
    lines = "".join(_line("bar", *bar) for bar in bars)
    return (
        f'<svg class="scatter" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(_words(scatter))}">'
        f"{_frame(scatter, x, y)}{lines}{marks}{labels}</svg>"
    )


def _words(scatter: Scatter) -> str:
    """The plot for those who do not see it."""
    points = "; ".join(f"{p.label}: {p.x:.4g}, {p.y:.4g}" for p in scatter.points)
    return f"{scatter.title}. {scatter.x_label} and {scatter.y_label}: {points}"


def _axis(values: Sequence[tuple[float, float | None]], start: float, end: float) -> _Axis:
    """Around all values and their error bars, with room at both ends."""
    low = min(value - (error or 0) for value, error in values)
    high = max(value + (error or 0) for value, error in values)
    # all at one value: any room will do, but none would divide by 0
    room = 0.12 * (high - low) or 0.1 * abs(low) or 1.0
    return _Axis(low - room, high + room, start, end)


def _tick(value: float, step: float) -> str:
    decimals = max(0, -floor(log10(step)))
    if decimals > 5 or abs(value) >= 1e6:
        return f"{value:.3g}"
    return f"{value + 0.0:,.{decimals}f}"


def _frame(scatter: Scatter, x: _Axis, y: _Axis) -> str:
    """Grid, ticks and the names of the axes."""
    bottom, right, middle = HEIGHT - BOTTOM, WIDTH - RIGHT, (TOP + HEIGHT - BOTTOM) / 2
    parts = []
    for at, text in x.ticks():
        parts.append(_line("grid", at, TOP, at, bottom))
        parts.append(_text("tick", at, bottom + 16, text, "middle"))
    for at, text in y.ticks():
        parts.append(_line("grid", LEFT, at, right, at))
        parts.append(_text("tick", LEFT - 6, at + 4, text, "end"))
    parts.append(
        _line("axis", LEFT, bottom, right, bottom) + _line("axis", LEFT, TOP, LEFT, bottom)
    )
    parts.append(_text("name", (LEFT + right) / 2, HEIGHT - 8, scatter.x_label, "middle"))
    turned = f' transform="rotate(-90 14 {middle:.1f})"'
    parts.append(_text("name", 14, middle, scatter.y_label, "middle", turned))
    return "".join(parts)


def _bars(point: Point, x: _Axis, y: _Axis) -> list[Box]:
    """Error bars and their ends, as lines."""
    at_x, at_y, lines = x.place(point.x), y.place(point.y), []
    if point.x_error:
        left, right = x.place(point.x - point.x_error), x.place(point.x + point.x_error)
        lines.append((left, at_y, right, at_y))
        lines += [(end, at_y - CAP, end, at_y + CAP) for end in (left, right)]
    if point.y_error:
        top, bottom = y.place(point.y + point.y_error), y.place(point.y - point.y_error)
        lines.append((at_x, top, at_x, bottom))
        lines += [(at_x - CAP, end, at_x + CAP, end) for end in (top, bottom)]
    return lines


def _dot(point: Point, x: float, y: float) -> str:
    title = f"{point.label}: {_with_error(point.x, point.x_error)}, "
    title += _with_error(point.y, point.y_error)
    return (
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}">'
        f"<title>{html.escape(title)}</title></circle>"
    )


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.4g} ± {error:.2g}" if error else f"{value:.4g}"


def _label(label: str, x: float, y: float, taken: list[Box]) -> str:
    """The point's name at the side where it covers least; `taken` grows by its box."""
    short = label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "…"
    width, near = LETTER * len(short), RADIUS + 4
    places = (
        ("start", x + near, y - LINE / 2, 0.0),
        ("end", x - near, y - LINE / 2, width),
        ("middle", x, y - near - LINE, width / 2),
        ("middle", x, y + near, width / 2),
        ("start", x + near, y - near - LINE, 0.0),
        ("start", x + near, y + near, 0.0),
        ("end", x - near, y - near - LINE, width),
        ("end", x - near, y + near, width),
    )

    def box(place: tuple[str, float, float, float]) -> Box:
        _, at, top, before = place
        return at - before, top, at - before + width, top + LINE

    best = min(places, key=lambda place: _covered(box(place), taken))
    taken.append(box(best))
    return _text("label", best[1], best[2] + LINE - 4, short, best[0])


def _covered(box: Box, taken: Sequence[Box]) -> float:
    """How much of what is there already, and of the edge, a label would cover."""
    left, top, right, bottom = box
    area = 0.0
    for other in taken:
        # a line has no area of its own: one more unit each way
        wide = max(0.0, min(right, other[2]) + 1 - max(left, other[0]))
        high = max(0.0, min(bottom, other[3]) + 1 - max(top, other[1]))
        area += wide * high
    outside = (LEFT - left, right - WIDTH, TOP - top, bottom - (HEIGHT - BOTTOM))
    return area + 100 * sum(max(0.0, out) for out in outside)


def _around(x: float, y: float) -> Box:
    return x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(kind: str, x: float, y: float, words: str, anchor: str, more: str = "") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>'
        f"{html.escape(words)}</text>"
    )
