"""Charts as SVG inside a page.

Their colours come from the page's CSS, so dark mode and print need no second drawing, and they
show without scripts and without a network.
"""

import html
import math
from collections.abc import Sequence

_WIDTH, _HEIGHT = 720, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 14, 34

Points = Sequence[tuple[float, float | None]]


def lines(
    title: str,
    unit: str,
    series: Sequence[tuple[str, Points]],
    *,
    highest: float | None = None,
    logarithmic: bool = False,
) -> str:
    """Lines over seconds; a gap where a value is None. Empty where there is nothing to draw.

    Args:
        title: above it, and its accessible name.
        unit: of the values.
        series: name and points of each; each has a colour and a dash of its own.
        highest: top of the scale; by default the highest value.
        logarithmic: of the scale of values.
    """
    values = [v for _, points in series for _, v in points if v is not None and math.isfinite(v)]
    times = [t for _, points in series for t, _ in points]
    if not values or not times:
        return ""
    low, high = 0.0, highest or max(values) or 1.0
    if logarithmic:
        positive = [v for v in values if v > 0]
        if not positive:
            return ""
        low, high = 10 ** math.floor(math.log10(min(positive))), max(positive)
        high = max(high, low * 10)
    ticks = _log_ticks(low, high) if logarithmic else _ticks(high)
    high = max(high, ticks[-1])
    end = max(times) or 1.0

    def x(time: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * time / end

    def y(value: float) -> float:
        span = _HEIGHT - _TOP - _BOTTOM
        if logarithmic:
            share = math.log(max(value, low) / low) / math.log(high / low)
        else:
            share = value / high
        return _HEIGHT - _BOTTOM - span * min(1.0, share)

    parts = [_frame(ticks, y, unit)]
    parts += [
        f'<text x="{x(time):.1f}" y="{_HEIGHT - 16}" class="tick mid">{time:g}</text>'
        for time in _ticks(end)
        if time <= end
    ]
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 2}" class="tick end">seconds</text>')
    for index, (_, points) in enumerate(series):
        parts += [
            f'<polyline class="line c{index % 6}" points="{stretch}"/>'
            for stretch in _stretches(points, x, y)
        ]
    return _figure(title, "".join(parts), [name for name, _ in series], dashed=True)


def bars(title: str, unit: str, values: Sequence[tuple[str, float | None]], *, digits: int) -> str:
    """A horizontal bar for each name, with its value. Empty where no value is known."""
    known = [value for _, value in values if value is not None]
    if not known:
        return ""
    most, row = max(known) or 1.0, 26
    height = row * len(values) + 8
    parts = []
    for index, (name, value) in enumerate(values):
        y = 4 + row * index
        length = 0.0 if value is None else (_WIDTH - 320) * value / most
        shown = "not known" if value is None else f"{value:,.{digits}f} {unit}"
        parts.append(
            f'<text x="150" y="{y + 16}" class="name end">{html.escape(name)}</text>'
            f'<rect x="158" y="{y + 3}" width="{length:.1f}" height="18" '
            f'class="bar c{index % 6}"/>'
            f'<text x="{164 + length:.1f}" y="{y + 16}" class="name">{shown}</text>'
        )
    return _figure(title, "".join(parts), [], height=height)


def _figure(
    title: str, inside: str, names: Sequence[str], *, dashed: bool = False, height: int = _HEIGHT
) -> str:
    legend = "".join(
        f'<span><svg width="28" height="10"><line x1="0" y1="5" x2="28" y2="5" '
        f'class="line c{index % 6}"/></svg>{html.escape(name)}</span>'
        for index, name in enumerate(names)
    )
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{html.escape(title)}">'
        f"{inside}</svg>" + (f'<div class="legend">{legend}</div>' if dashed else "") + "</figure>"
    )


def _frame(ticks: Sequence[float], y: object, unit: str) -> str:
    assert callable(y)
    rows = "".join(
        f'<path d="M{_LEFT} {y(one):.1f}H{_WIDTH - _RIGHT}" class="grid"/>'
        f'<text x="{_LEFT - 6}" y="{y(one) + 4:.1f}" class="tick end">{one:,g}</text>'
        for one in ticks
    )
    return f'{rows}<text x="{_LEFT + 4}" y="{_TOP - 3}" class="tick">{html.escape(unit)}</text>'


def _stretches(points: Points, x: object, y: object) -> list[str]:
    assert callable(x)
    assert callable(y)
    found: list[list[str]] = [[]]
    for time, value in points:
        if value is None or not math.isfinite(value):
            found.append([])
        else:
            found[-1].append(f"{x(time):.1f},{y(value):.1f}")
    # A lone point would be an invisible line.
    return [" ".join(one if len(one) > 1 else one * 2) for one in found if one]


def _ticks(high: float) -> list[float]:
    """About five round values from 0 to at least ``high``."""
    step = 10 ** math.floor(math.log10(high / 4)) if high > 0 else 1.0
    step *= next(one for one in (1, 2, 5, 10) if one * step * 5 >= high)
    return [round(index * step, 10) for index in range(math.ceil(high / step - 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = round(math.log10(low)), math.ceil(math.log10(high) - 1e-9)
    return [10.0**power for power in range(first, last + 1)]
