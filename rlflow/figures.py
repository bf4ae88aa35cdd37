"""The board's figures: M with limits, learning curves, seeds of a task; byte-identical when drawn again."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import numpy as np

from rlflow.board import Board, Cell
from rlflow.figures_compare import draw_comparisons
from rlflow.figures_style import INK, PAPER, STYLE, canvas, style_of
from rlflow.report_text import unit_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_all(board: Board) -> dict[str, Figure]:
    """Every figure by its file stem: over all tasks (`headline`, comparisons), `curves_*` and `seeds_*` by column."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        figures = {"headline": draw_headline(board)} if board.ranked else {}
        figures |= draw_comparisons(board)
        for column in board.columns:
            if any(seed.steps for cell in _cells(board, column).values() for seed in cell.seeds):
                figures[f"curves_{slug(column)}"] = draw_curves(board, column)
            if any(len(cell.raw) for cell in _cells(board, column).values()):
                figures[f"seeds_{slug(column)}"] = draw_seeds(board, column)
    return figures


def draw_headline(board: Board) -> Figure:
    """M of the ranked entrants, best on top, with expanded (thin) and plain (thick) percentile limits."""
    figure, axes = canvas(6.4, 1.1 + 0.42 * len(board.ranked))
    for row, entrant in enumerate(board.ranked):
        style = style_of(board, entrant.algorithm)
        if entrant.interval is not None:
            limits = entrant.interval
            axes.plot([limits.low, limits.high], [row, row], color=style["color"], linewidth=1.5)
            axes.plot([limits.plain_low, limits.plain_high], [row, row], color=style["color"], linewidth=4, alpha=0.5)
        axes.plot(np.array([entrant.headline]), [row], color=style["color"], marker=style["marker"], markersize=8)
    _rows(axes, [entrant.algorithm for entrant in board.ranked])
    axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlabel("M: mean normalised final score (0 untrained, 1 reference)")
    return figure


def draw_curves(board: Board, column: str) -> Figure:
    """Raw evaluation score against samples: every seed thin, the mean over finished seeds thick."""
    figure, axes = canvas(6.4, 4.0)
    cells = _cells(board, column)
    for algorithm, cell in cells.items():
        style = style_of(board, algorithm)
        for seed in cell.seeds:
            axes.plot(seed.steps, seed.scores, color=style["color"], linewidth=0.7, alpha=0.35)
            if seed.outcome == "diverged" and seed.steps:
                axes.plot(seed.steps[-1:], seed.scores[-1:], color=style["color"], marker="x", markersize=8)
        steps, mean = _mean_curve(cell)
        axes.plot(steps, mean, label=algorithm, linewidth=1.8, markersize=4.5, **style)
    first = next(iter(cells.values()))
    for height, name in ((first.anchor_base, "untrained (0)"), (first.anchor_reference, "reference (1)")):
        axes.axhline(height, color=INK, linewidth=0.8, linestyle=":")
        axes.annotate(name, (1, height), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axes.set_xlabel(f"samples ({unit_text(first)})")
    axes.set_ylabel("evaluation score")
    axes.xaxis.set_major_formatter(_thousands)
    figure.legend(loc="outside lower center", ncols=min(3, len(cells)))
    return figure


def draw_seeds(board: Board, column: str) -> Figure:
    """Normalised final score of every seed as a dot, the mean as a bar; a diverged seed is a cross at 0."""
    cells = {name: cell for name, cell in _cells(board, column).items() if len(cell.raw)}
    figure, axes = canvas(6.4, 1.1 + 0.36 * len(cells))
    for row, (algorithm, cell) in enumerate(cells.items()):
        style = style_of(board, algorithm)
        for seed in cell.seeds:
            if seed.normalised is not None:
                marker = "x" if seed.outcome == "diverged" else style["marker"]
                axes.plot([seed.normalised], [row], color=style["color"], marker=marker, markersize=6, alpha=0.6)
        axes.plot([cell.normalised.mean()] * 2, [row - 0.32, row + 0.32], color=style["color"], linewidth=2.5)
    _rows(axes, list(cells))
    axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlabel("normalised final score of each seed")
    return figure


def to_svg(figure: Figure) -> str:
    """The figure as SVG text without date, with ids that depend on its content alone."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": "rlflow"}):
        figure.savefig(text, format="svg", facecolor=PAPER, metadata={"Date": None, "Creator": None})
    return text.getvalue()


def to_png(figure: Figure) -> bytes:
    """The figure as PNG."""
    from matplotlib import rc_context

    data = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(data, format="png", dpi=150, facecolor=PAPER, metadata={"Software": None})
    return data.getvalue()


def inline_svg(figure: Figure, title: str) -> str:
    """The SVG element for a page: ink follows the page's text colour, no background, width from the page."""
    element = to_svg(figure)
    element = element[element.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>\s*", "", element, flags=re.DOTALL)
    # Group ids repeat from figure to figure; only clip paths and markers are referred to, by content hashes.
    element = re.sub(r'<g id="[^"]*"', "<g", element)
    element = re.sub(r'<svg height="[^"]*"', "<svg", element)
    element = re.sub(r' (?:width|height)="[\d.]+pt"', "", element)
    element = re.sub(rf'<path d="[^"]*"\s+style="fill: {PAPER}"/>', "", element)
    element = element.replace(INK, "currentColor").replace("'DejaVu Sans'", "system-ui")
    return element.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def slug(column: str) -> str:
    """A column as part of a file name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", column).strip("-")


def _rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", linewidth=0.4, alpha=0.4)


def _cells(board: Board, column: str) -> dict[str, Cell]:
    """The cells of a column, in the order of the board."""
    return {entrant.algorithm: entrant.cells[column] for entrant in board.entrants if column in entrant.cells}


def _mean_curve(cell: Cell) -> tuple[list[int], list[float]]:
    """Mean over the finished seeds at the steps that all of them evaluated."""
    curves = [dict(zip(seed.steps, seed.scores, strict=True)) for seed in cell.seeds if seed.outcome == "finished"]
    shared = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    return shared, [float(np.mean([curve[step] for curve in curves])) for step in shared]


def _thousands(value: float, _position: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"
