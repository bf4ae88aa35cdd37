"""The board as a LaTeX table (booktabs), made to be input by a paper."""

from __future__ import annotations

from collections.abc import Sequence

from rlflow.board import Board, Cell, Entrant
from rlflow.report_values import (
    ABSENT,
    count_text,
    footnote_number,
    headline_text,
    mean_text,
    normalised_text,
    or_absent,
)

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "±": r"$\pm$",
}


def latex(board: Board) -> str:
    """A `tabular`: rank, algorithm, M with limits, a column per task, IQM, P(first), tier; notes and warnings below."""
    names = ["", "Algorithm", r"$M$ [95\,\%]", *map(escaped, board.columns), "IQM", r"$P$(first)", "Tier"]
    rows = [_row(board, entrant) for entrant in board.entrants]
    notes = [rf"\textsuperscript{{{number}}} {escaped(note)}." for number, note in enumerate(board.footnotes, start=1)]
    notes += [f"Warning: {escaped(warning)}." for warning in board.warnings]
    lines = [
        f"% Leaderboard {board.suite}; {'; '.join(board.provenance)}",
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{rl{'c' * (len(names) - 2)}}}",
        r"\toprule",
        _line(names),
        r"\midrule",
        *map(_line, rows),
        r"\bottomrule",
        r"\end{tabular}",
        *([r"\\[2pt] {\footnotesize " + " ".join(notes) + "}"] if notes else []),
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text with the characters that LaTeX reads as commands written out."""
    return "".join(SPECIAL.get(character, character) for character in text)


def _row(board: Board, entrant: Entrant) -> list[str]:
    return [
        or_absent(entrant.rank),
        rf"\texttt{{{escaped(entrant.algorithm)}}}",
        escaped(headline_text(entrant)),
        *(_cell(board, entrant.cells.get(column)) for column in board.columns),
        or_absent(entrant.interquartile_mean, ".3f"),
        or_absent(entrant.first_probability, ".2f"),
        or_absent(entrant.tier),
    ]


def _cell(board: Board, cell: Cell | None) -> str:
    if cell is None:
        return ABSENT
    number = footnote_number(board, cell)
    mark = rf"\textsuperscript{{{number}}}" if number else ""
    # A whole cell needs no count; one with missing or diverged seeds shows it.
    count = "" if cell.complete and not cell.num_diverged else f" ({count_text(cell)})"
    return f"{escaped(mean_text(cell))}{mark} ({normalised_text(cell)}){count}"


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
