"""Figures that compare ranked entrants over all tasks: performance profile, improvement matrix, cost against score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rlflow import stats
from rlflow.board import Board
from rlflow.figures_style import canvas, style_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_ENTRANTS = 2
NUM_THRESHOLDS = 200
# Bounds of the improvement matrix: 0 and 1 are certain, .5 is a tie.
IMPROVEMENT_COLOURS = ("#D55E00", "#f6f8fa", "#0072B2")


def draw_comparisons(board: Board) -> dict[str, Figure]:
    """The figures by file stem; none where fewer than two entrants are complete."""
    if len(board.ranked) < MIN_ENTRANTS:
        return {}
    return {"profile": draw_profile(board), "improvement": draw_improvement(board), "cost": draw_cost(board)}


def draw_profile(board: Board) -> Figure:
    """Share of runs whose normalised score exceeds a threshold, mean over tasks (Agarwal et al. 2021, eq. 3)."""
    figure, axes = canvas(6.4, 3.6)
    pooled = np.concatenate([column for entrant in board.ranked for column in entrant.scores.values()])
    low, high = min(0.0, float(pooled.min())), max(1.0, float(pooled.max()))
    thresholds = np.linspace(low, high, NUM_THRESHOLDS)
    for entrant in board.ranked:
        style = style_of(board, entrant.algorithm)
        share = stats.performance_profile(entrant.scores, thresholds)
        axes.step(thresholds, share, label=entrant.algorithm, color=style["color"], linestyle=style["linestyle"])
    axes.set_xlabel("normalised final score z")
    axes.set_ylabel("share of runs above z")
    axes.set_ylim(-0.02, 1.02)
    figure.legend(loc="outside lower center", ncols=min(3, len(board.ranked)))
    return figure


def draw_improvement(board: Board) -> Figure:
    """P(a run of the row beats a run of the column on the same task), mean over tasks; ties count half."""
    from matplotlib.colors import LinearSegmentedColormap

    names = [entrant.algorithm for entrant in board.ranked]
    matrix = np.full((len(names), len(names)), np.nan)
    for pair in board.pairs:
        first, second = names.index(pair.first), names.index(pair.second)
        matrix[first, second], matrix[second, first] = pair.improvement, 1 - pair.improvement
    side = 1.6 + 0.62 * len(names)
    figure, axes = canvas(side + 0.9, side)
    colours = LinearSegmentedColormap.from_list("improvement", IMPROVEMENT_COLOURS)
    edges = np.arange(len(names) + 1) - 0.5
    axes.pcolormesh(edges, edges, matrix, cmap=colours, vmin=0, vmax=1)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    for (row, column), value in np.ndenumerate(matrix):
        if not np.isnan(value):
            # On a strong colour white is readable in both themes; the pale middle keeps its dark text.
            strong = abs(value - 0.5) > 0.3
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="#fefefe" if strong else "#1f2328")
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("... beats a run of")
    axes.set_ylabel("P(a run of ...")
    axes.spines[:].set_visible(False)
    return figure


def draw_cost(board: Board) -> Figure:
    """M against the training seconds of all cells together; up and left is better."""
    figure, axes = canvas(6.4, 3.6)
    for entrant in board.ranked:
        style = style_of(board, entrant.algorithm)
        point = np.array([entrant.wall_s / 60]), np.array([entrant.headline])
        if entrant.interval is not None:
            low, high = entrant.interval.low, entrant.interval.high
            axes.plot(np.repeat(point[0], 2), [low, high], color=style["color"], linewidth=1.5)
        axes.plot(*point, color=style["color"], marker=style["marker"], markersize=8)
        axes.annotate(entrant.algorithm, (point[0][0], point[1][0]), xytext=(7, 4), textcoords="offset points")
    axes.margins(x=0.2)
    axes.set_xlabel("training minutes, all tasks and seeds together")
    axes.set_ylabel("M")
    return figure
