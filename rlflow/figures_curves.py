"""Learning curves: raw score against samples or training seconds, of a column of the board or of one cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rlflow.board import Board, Cell, SeedResult
from rlflow.figures_style import INK, STYLE, canvas, look, style_of, to_svg
from rlflow.report_values import unit_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_curves(board: Board, column: str) -> Figure:
    """Raw evaluation score against samples: every seed thin, the mean over finished seeds thick."""
    cells = cells_of(board, column)
    figure, axes = canvas(6.4, 4.0)
    for algorithm, cell in cells.items():
        _draw(axes, cell, algorithm, style_of(board, algorithm), seconds=False)
    _finish(axes, cells)
    figure.legend(loc="outside lower center", ncols=min(3, len(cells)))
    return figure


def draw_seconds(board: Board, column: str, equal_s: float | None) -> Figure:
    """Raw evaluation score against training seconds; `equal_s` marks where the second board compares."""
    cells = {name: cell for name, cell in cells_of(board, column).items() if any(seed.seconds for seed in cell.seeds)}
    figure, axes = canvas(6.4, 4.0)
    for algorithm, cell in cells.items():
        _draw(axes, cell, algorithm, style_of(board, algorithm), seconds=True)
    _finish(axes, cells)
    axes.set_xlabel("training seconds, without evaluation")
    if equal_s is not None:
        axes.axvline(equal_s, color=INK, linewidth=0.8, linestyle="--")
        axes.annotate("equal cost", (equal_s, 0), xycoords=("data", "axes fraction"), ha="right", va="bottom",
                      rotation=90, fontsize=8)  # fmt: skip
    figure.legend(loc="outside lower center", ncols=min(3, len(cells)))
    return figure


def cell_svg(cell: Cell) -> str:
    """The learning curves of one cell as SVG, for its MLflow run."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure, axes = canvas(6.4, 4.0)
        _draw(axes, cell, f"mean of {len(cell.raw)}", look(0), seconds=False)
        _finish(axes, {cell.algorithm: cell})
        axes.set_title(f"{cell.algorithm} on {cell.task} ({cell.policy})", fontsize=10)
        figure.legend(loc="outside lower center")
        return to_svg(figure)


def cells_of(board: Board, column: str) -> dict[str, Cell]:
    """The cells of a column, in the order of the board."""
    return {entrant.algorithm: entrant.cells[column] for entrant in board.entrants if column in entrant.cells}


def mean_curve(cell: Cell, *, seconds: bool) -> tuple[list[float], list[float]]:
    """Mean over the finished seeds at the evaluations that all of them made; with `seconds` also of their times."""
    finished = [seed for seed in cell.seeds if seed.outcome == "finished" and (seed.seconds or not seconds)]
    shared = sorted(set.intersection(*(set(seed.steps) for seed in finished))) if finished else []
    rows = [[seed.steps.index(step) for step in shared] for seed in finished]
    scores = [[seed.scores[row] for row in chosen] for seed, chosen in zip(finished, rows, strict=True)]
    places = [[_places(seed, seconds)[row] for row in chosen] for seed, chosen in zip(finished, rows, strict=True)]
    return (np.mean(places, axis=0).tolist(), np.mean(scores, axis=0).tolist()) if shared else ([], [])


def _draw(axes: Axes, cell: Cell, label: str, style: Mapping[str, Any], *, seconds: bool) -> None:
    for seed in cell.seeds:
        places = _places(seed, seconds)
        scores = seed.scores if places else ()
        axes.plot(places, scores, color=style["color"], linewidth=0.7, alpha=0.35)
        if seed.outcome == "diverged" and places:
            axes.plot(places[-1:], scores[-1:], color=style["color"], marker="x", markersize=8)
    shared, mean = mean_curve(cell, seconds=seconds)
    axes.plot(shared, mean, label=label, linewidth=1.8, markersize=4.5, **style)


def _places(seed: SeedResult, seconds: bool) -> tuple[float, ...]:
    return seed.seconds if seconds else seed.steps


def _finish(axes: Axes, cells: Mapping[str, Cell]) -> None:
    first = next(iter(cells.values()))
    for height, name in ((first.anchor_base, "untrained (0)"), (first.anchor_reference, "reference (1)")):
        axes.axhline(height, color=INK, linewidth=0.8, linestyle=":")
        axes.annotate(name, (1, height), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axes.set_xlabel(f"samples ({unit_text(first)})")
    axes.set_ylabel("evaluation score")
    axes.xaxis.set_major_formatter(_thousands)


def _thousands(value: float, _position: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"
