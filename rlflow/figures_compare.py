"""Figures that compare ranked entrants over all tasks: profile, ranks, improvement matrix, cost against score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rlflow import stats
from rlflow.board import Board
from rlflow.figures_style import canvas, style_of
from rlflow.stats import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIN_ENTRANTS = 2
NUM_THRESHOLDS = 200
# Bounds of the improvement matrix: 0 and 1 are certain, .5 is a tie.
IMPROVEMENT_COLOURS = ("#D55E00", "#f6f8fa", "#0072B2")
SHARE_COLOURS = ("#f6f8fa", "#0072B2")


def draw_comparisons(board: Board) -> dict[str, Figure]:
    """The figures by file stem; none where fewer than two entrants are complete."""
    if len(board.ranked) < MIN_ENTRANTS:
        return {}
    figures = {"profile": draw_profile(board)}
    if all(entrant.rank_shares for entrant in board.ranked):
        figures["ranks"] = draw_ranks(board)
    return figures | {"improvement": draw_improvement(board), "cost": draw_cost(board)}


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


def draw_ranks(board: Board) -> Figure:
    """Probability of each rank, by bootstrap of the seeds: one row per entrant, best on top, each summing to 1."""
    names = [entrant.algorithm for entrant in board.ranked]
    shares = np.array([entrant.rank_shares for entrant in board.ranked])
    figure, axes = canvas(2.5 + 0.62 * len(names), 1.2 + 0.42 * len(names))
    _matrix(axes, shares, SHARE_COLOURS)
    axes.set_xticks(range(len(names)), [str(rank) for rank in range(1, len(names) + 1)])
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("P(rank)")
    return figure


def draw_improvement(board: Board) -> Figure:
    """P(a run of the row beats a run of the column on the same task), mean over tasks; ties count half."""
    names = [entrant.algorithm for entrant in board.ranked]
    matrix = np.full((len(names), len(names)), np.nan)
    for pair in board.pairs:
        first, second = names.index(pair.first), names.index(pair.second)
        matrix[first, second], matrix[second, first] = pair.improvement, 1 - pair.improvement
    side = 1.6 + 0.62 * len(names)
    figure, axes = canvas(side + 0.9, side)
    _matrix(axes, matrix, IMPROVEMENT_COLOURS)
    axes.set_aspect("equal")
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("... beats a run of")
    axes.set_ylabel("P(a run of ...")
    return figure


def _matrix(axes: Axes, values: FloatArray, colours: tuple[str, ...]) -> None:
    """Probabilities as coloured squares with their numbers; absent ones are empty."""
    from matplotlib.colors import LinearSegmentedColormap

    rows, columns = values.shape
    colour_map = LinearSegmentedColormap.from_list("probability", colours)
    axes.pcolormesh(np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5, values, cmap=colour_map, vmin=0, vmax=1)
    axes.invert_yaxis()
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            # White on the strong ends of the colours, dark on their pale part, in both themes.
            strong = value > 0.55 if len(colours) == 2 else abs(value - 0.5) > 0.3
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="#fefefe" if strong else "#1f2328")
    axes.spines[:].set_visible(False)


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
