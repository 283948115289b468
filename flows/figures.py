"""Inline SVG figures that follow the page's colours: matplotlib draws them, CSS variables paint them.

Text stays text, colours become `var(--...)`, so that one drawing serves light and dark; ids are unique to a figure, so
that many can stand in one page; nothing in them points outside.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from flows.formats import visible
from flows.summary import ArmResult, Curve

SERIES = 7
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_INK, _GRID, _SURFACE = "#010101", "#020202", "#030303"
_COLOURS = tuple(f"#04040{number}" for number in range(SERIES))
_VARIABLES = {_INK: "var(--muted)", _GRID: "var(--line)", _SURFACE: "var(--card)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(_COLOURS)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "ytick.major.size": 0,
    "axes.labelsize": 11,
}


def quality_figures(results: Sequence[ArmResult], arms: Sequence[str], metric: str) -> list[tuple[str, Markup]]:
    """(title, svg) of the headline metric against tokens a step and against forwards; empty without results.

    One line an arm: solid with refining, dashed without; hollow marks are settings with extra refining steps.
    """
    if not results:
        return []

    def by_tokens(axes: Axes) -> None:
        _draw_arms(axes, results, arms, lambda result: float(result.tokens_per_step))
        _log_axis(axes, sorted({float(result.tokens_per_step) for result in results}))
        axes.set_xlabel("tokens a step (faster →)")
        axes.set_ylabel(visible(metric))

    def by_forwards(axes: Axes) -> None:
        _draw_arms(axes, results, arms, lambda result: max(result.nfe, 1.0))
        _log_axis(axes, sorted({float(round(max(result.nfe, 1.0))) for result in results}))
        axes.invert_xaxis()
        axes.set_xlabel("forwards an answer (faster →)")
        axes.set_ylabel(visible(metric))

    return [
        (f"{metric} against tokens a step", _svg(by_tokens, (5.8, 3.9), "tokens")),
        (f"{metric} against forwards of the model", _svg(by_forwards, (5.8, 3.9), "forwards")),
    ]


def curve_figures(curves: Sequence[Curve]) -> list[tuple[str, Markup]]:
    """(label, svg) of each training curve that has points."""

    def drawer(curve: Curve) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            axes.plot(curve.steps, curve.loss, color=_COLOURS[3], linewidth=1.6)
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(4))

        return draw

    return [
        (curve.label, _svg(drawer(curve), (3.3, 2.1), f"curve-{number}"))
        for number, curve in enumerate(curves)
        if curve.steps
    ]


def _draw_arms(axes: Axes, results: Sequence[ArmResult], arms: Sequence[str], x: Callable[[ArmResult], float]) -> None:
    for number, arm in enumerate(arms):
        for refining in (True, False):
            rows = [result for result in results if result.arm == arm and result.refining == refining]
            plain = sorted((result for result in rows if not result.extra_steps), key=x)
            extra = [result for result in rows if result.extra_steps]
            style: dict[str, Any] = {
                "color": _COLOURS[number % SERIES],
                "marker": MARKERS[number % len(MARKERS)],
                "markersize": 5.5,
                "elinewidth": 1.0,
                "capsize": 2.0,
                "linewidth": 1.8,
            }
            _bars(axes, plain, x, linestyle="-" if refining else (0, (4, 3)), **style)
            _bars(axes, extra, x, linestyle="none", markerfacecolor=_SURFACE, **style)
    axes.set_ylim(bottom=0)


def _bars(axes: Axes, rows: Sequence[ArmResult], x: Callable[[ArmResult], float], **style: Any) -> None:
    if not rows:
        return
    scores = [row.score for row in rows]
    below = [max(0.0, row.score - row.low) if row.low is not None else 0.0 for row in rows]
    above = [max(0.0, row.high - row.score) if row.high is not None else 0.0 for row in rows]
    axes.errorbar([x(row) for row in rows], scores, yerr=[below, above], **style)


def _log_axis(axes: Axes, ticks: list[float]) -> None:
    """A logarithmic axis with a tick at each value that occurs, as far as the labels do not touch."""
    axes.set_xscale("log", base=2)
    kept = ticks[:1]
    for tick in ticks[1:]:
        if tick / kept[-1] > 1.24:
            kept.append(tick)
    axes.xaxis.set_major_locator(FixedLocator(kept))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.margins(x=0.07)


def _svg(draw: Callable[[Axes], None], inches: tuple[float, float], name: str) -> Markup:
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return Markup(_for_the_page(buffer.getvalue()))  # noqa: S704 - matplotlib's drawing of numbers and escaped labels


def _for_the_page(svg: str) -> str:
    """Keep the drawing alone: no prologue, style sheet, font list, fixed size, or ids that two figures could share."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r'<svg width="[^"]*" height="[^"]*"', '<svg role="img"', svg, count=1)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg
