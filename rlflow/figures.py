"""The board's figures: M with limits, seeds of a task, and those of its neighbours; byte-identical when drawn again."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import numpy as np

from rlflow.board import Board
from rlflow.equal_cost import equal_cost
from rlflow.figures_compare import draw_comparisons
from rlflow.figures_curves import cells_of, draw_curves, draw_seconds
from rlflow.figures_style import INK, PAPER, STYLE, canvas, style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_all(board: Board) -> dict[str, Figure]:
    """Every figure by its file stem: over all tasks (`headline`, comparisons), then by column.

    Of a column: `curves_*` against samples, `seconds_*` against training seconds, `seeds_*` with all final scores.
    """
    from matplotlib import rc_context

    equal = equal_cost(board).columns
    with rc_context(STYLE):
        figures = {"headline": draw_headline(board)} if board.ranked else {}
        figures |= draw_comparisons(board)
        for column in board.columns:
            cells = cells_of(board, column).values()
            if any(seed.steps for cell in cells for seed in cell.seeds):
                figures[f"curves_{slug(column)}"] = draw_curves(board, column)
            if any(seed.seconds for cell in cells for seed in cell.seeds):
                equal_s = equal[column].seconds if column in equal else None
                figures[f"seconds_{slug(column)}"] = draw_seconds(board, column, equal_s)
            if any(len(cell.raw) for cell in cells):
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


def draw_seeds(board: Board, column: str) -> Figure:
    """Normalised final score of every seed as a dot, the mean as a bar; a diverged seed is a cross at 0."""
    cells = {name: cell for name, cell in cells_of(board, column).items() if len(cell.raw)}
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


def to_png(figure: Figure) -> bytes:
    """The figure as PNG."""
    from matplotlib import rc_context

    data = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(data, format="png", dpi=150, facecolor=PAPER, metadata={"Software": None})
    return data.getvalue()


def inline_svg(svg: str, title: str) -> str:
    """The element of an SVG file for a page: ink follows the page's text colour, no background, the page's width."""
    element = svg[svg.index("<svg") :]
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
