"""How figures look: palette, one style per algorithm whatever its rank, canvas.

The palette is Okabe and Ito's, which colour-blind readers can tell apart; no figure relies on colour alone.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from rlflow.board import Board

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
INK = "#24292f"
PAPER = "#ffffff"
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def style_of(board: Board, algorithm: str) -> dict[str, Any]:
    """Colour, marker and line style of an algorithm, by its place among the sorted names of the board."""
    return look(sorted(entrant.algorithm for entrant in board.entrants).index(algorithm))


def look(index: int) -> dict[str, Any]:
    """Colour, marker and line style number `index`."""
    return {
        "color": PALETTE[index % len(PALETTE)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINES[index % len(LINES)],
    }


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of `width x height` inches, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def to_svg(figure: Figure) -> str:
    """The figure as SVG text without date, with ids that depend on its content alone."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": "rlflow"}):
        figure.savefig(text, format="svg", facecolor=PAPER, metadata={"Date": None, "Creator": None})
    return text.getvalue()
