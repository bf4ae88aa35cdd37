"""The board as one self-contained page: sortable table, figures inline, nothing fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from rlflow.board import Board, Cell, Entrant
from rlflow.equal_cost import EqualCost, equal_cost
from rlflow.figures import inline_svg, slug
from rlflow.figures_style import style_of
from rlflow.leaderboard_samples import Gallery
from rlflow.report_gallery import gallery_html
from rlflow.report_measures import (
    LEARNING,
    LEARNING_NAMES,
    MEASURE_NAMES,
    MEASURES,
    SPENT,
    SPENT_NAMES,
    learning_rows,
    measure_rows,
    spent_rows,
)
from rlflow.report_page import SCRIPT, STYLE
from rlflow.report_text import EQUAL_COST, GUARDS, METHOD
from rlflow.report_values import (
    ABSENT,
    GUARD_NAMES,
    PAIR_NAMES,
    budget_text,
    cost_names,
    cost_rows,
    count_text,
    division_text,
    duration_text,
    footnote_number,
    guard_rows,
    headline_text,
    mean_text,
    normalised_text,
    pair_rows,
)

FIGURES_OF_A_TASK = {
    "curves": "Learning curves against samples",
    "seconds": "Learning curves against training seconds",
    "seeds": "Final scores of all seeds",
}


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """A table cell: what is shown, and what it is sorted by (empty sorts last)."""

    html: str
    value: str
    kind: str = ""


def html_page(board: Board, figures: Mapping[str, str], gallery: Gallery | None = None) -> str:
    """The page; `figures` are SVG files by the names of `rlflow.figures.draw_all`, `gallery` the samples to show."""
    remarks = [f'<p class="warning">{escape(warning)}</p>' for warning in board.warnings]
    notes = "".join(f"<li>{escape(note)}</li>" for note in board.footnotes)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Leaderboard {escape(board.suite)}</title><style>{STYLE}</style></head><body>",
        f"<header><h1>Leaderboard {escape(board.suite)}</h1>",
        '<button id="theme" type="button">light / dark</button></header>',
        *remarks,
        _table(board),
        f'<ol class="notes sub">{notes}</ol>' if notes else "",
        _headline(board, figures),
        _tasks(board, figures),
        _comparisons(figures),
        _section("Measures", MEASURES, MEASURE_NAMES, measure_rows(board)),
        _equal_cost(equal_cost(board)),
        gallery_html(gallery) if gallery is not None else "",
        _section("Guards", GUARDS, GUARD_NAMES, guard_rows(board)),
        _section("Pairs", "", PAIR_NAMES, pair_rows(board)),
        _section("Learning", LEARNING, LEARNING_NAMES, learning_rows(board)),
        _section("Cost of a run", SPENT, SPENT_NAMES, spent_rows(board)),
        f"<h2>Method</h2><p>{escape(METHOD)}</p>",
        f'<p class="sub">{escape("; ".join(board.provenance))}</p>',
        f"<script>{SCRIPT}</script></body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _table(board: Board) -> str:
    # Ranks, names, tiers and seconds are read upwards, scores downwards.
    names = ["#", "algorithm", "M [95 %]", *board.columns, "IQM", "P(first)", "tier", "wall"]
    first = ["ascending"] * 2 + ["descending"] * (len(board.columns) + 3) + ["ascending"] * 2
    heads = [
        f'<th scope="col" data-first="{order}" aria-sort="{"ascending" if name == "#" else "none"}">'
        f'<button type="button">{escape(name)}</button></th>'
        for name, order in zip(names, first, strict=True)
    ]
    choices = "".join(f'<option value="{index}">{escape(name)}</option>' for index, name in enumerate(names))
    rows = []
    for entrant in board.entrants:
        cells = [
            f'<td data-label="{escape(name)}" data-value="{escape(shown.value)}" class="{shown.kind}">'
            f"<div>{shown.html}</div></td>"
            for name, shown in zip(names, _row(board, entrant), strict=True)
        ]
        rows.append(f'<tr class="{"" if entrant.complete else "unranked"}">{"".join(cells)}</tr>')
    return (
        f'<label class="narrow">Sort by <select id="sort">{choices}</select></label>'
        f'<div class="scroll"><table class="board"><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(board: Board, entrant: Entrant) -> list[_Shown]:
    colour = style_of(board, entrant.algorithm)["color"]
    name = f'<span class="swatch" style="background:{colour}"></span>{escape(entrant.algorithm)}'
    cells = [_score(board, entrant.cells.get(column)) for column in board.columns]
    return [
        _number(entrant.rank, ""),
        _Shown(html=name, value=entrant.algorithm, kind="name"),
        _Shown(
            html=f"{escape(headline_text(entrant))}{_range(board, entrant)}",
            value=_sort_value(entrant.headline),
            kind="whole",
        ),
        *cells,
        _number(entrant.interquartile_mean, ".3f"),
        _number(entrant.first_probability, ".2f"),
        _number(entrant.tier, ""),
        _Shown(html=duration_text(entrant.wall_s), value=f"{entrant.wall_s:.3f}", kind="whole"),
    ]


def _score(board: Board, cell: Cell | None) -> _Shown:
    if cell is None:
        return _Shown(html=ABSENT, value="")
    number = footnote_number(board, cell)
    mark = f"<sup>{number}</sup>" if number else ""
    mean = float(cell.normalised.mean()) if len(cell.normalised) else None
    about = f"z {normalised_text(cell)} &middot; {count_text(cell)} &middot; {escape(cell.policy)}"
    return _Shown(html=f'{mean_text(cell)}{mark}<br><span class="sub">{about}</span>', value=_sort_value(mean))


def _range(board: Board, entrant: Entrant) -> str:
    """A bar of the limits on the common axis of all entrants, which always holds 0 and 1."""
    if entrant.interval is None or entrant.headline is None:
        return ""
    limits = [e.interval for e in board.ranked if e.interval is not None]
    start = min(0.0, *(limit.low for limit in limits))
    width = max(1.0, *(limit.high for limit in limits)) - start
    left, right, middle = (
        100 * (value - start) / width for value in (entrant.interval.low, entrant.interval.high, entrant.headline)
    )
    colour = style_of(board, entrant.algorithm)["color"]
    return (
        f'<div class="range"><i style="left:{left:.2f}%;width:{right - left:.2f}%;background:{colour}"></i>'
        f'<b style="left:{middle:.2f}%"></b></div>'
    )


def _headline(board: Board, figures: Mapping[str, str]) -> str:
    if "headline" not in figures:
        return "<p>No entrant is complete yet, so none is ranked.</p>"
    caption = (
        "M; thin line: expanded limits, thick: plain percentile" if _has_limits(board) else "M (one seed: no interval)"
    )
    svg = inline_svg(figures["headline"], "M of every ranked entrant")
    return f'<h2>Headline</h2><figure class="headline"><h3>{caption}</h3>{svg}</figure>'


def _tasks(board: Board, figures: Mapping[str, str]) -> str:
    blocks = []
    for column in board.columns:
        drawn = [
            inline_svg(figures[f"{kind}_{slug(column)}"], f"{title} on {escape(column)}")
            for kind, title in FIGURES_OF_A_TASK.items()
            if f"{kind}_{slug(column)}" in figures
        ]
        budget = f'<div class="sub">{escape(budget_text(board, column))} per run, '
        budget += f"{division_text(board, column)} division; thin lines are seeds</div>"
        blocks.append(f"<figure><h3>{escape(column)}</h3>{budget}{''.join(drawn) or 'no results yet'}</figure>")
    return f'<h2>Tasks</h2><div class="figures">{"".join(blocks)}</div>'


def _comparisons(figures: Mapping[str, str]) -> str:
    titles = {
        "profile": "Performance profile: share of runs above a score",
        "ranks": "Probability of each rank",
        "improvement": "Probability of improvement",
        "cost": "Cost and score",
    }
    blocks = [
        f"<figure><h3>{title}</h3>{inline_svg(figures[name], title)}</figure>"
        for name, title in titles.items()
        if name in figures
    ]
    return f'<h2>All tasks</h2><div class="figures">{"".join(blocks)}</div>' if blocks else ""


def _equal_cost(cost: EqualCost) -> str:
    rows = cost_rows(cost)
    table = f'<div class="scroll"><table>{_plain_rows(cost_names(cost), rows)}</table></div>' if rows else ""
    reasons = "".join(f"<li>{escape(name)}: not compared, {escape(why)}</li>" for name, why in cost.reasons.items())
    absent = f'<ul class="notes sub">{reasons}</ul>' if reasons else ""
    return f'<h2>Equal cost</h2><p class="sub">{EQUAL_COST}</p>{table}{absent}'


def _section(title: str, about: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A heading, what the numbers are, and a table; nothing without rows."""
    if not rows:
        return ""
    words = f'<p class="sub">{about}</p>' if about else ""
    return f'<h2>{title}</h2>{words}<div class="scroll"><table>{_plain_rows(names, rows)}</table></div>'


def _plain_rows(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    lines = ["".join(f"<td>{escape(text)}</td>" for text in row) for row in rows]
    return f"<thead><tr>{heads}</tr></thead><tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody>"


def _has_limits(board: Board) -> bool:
    return any(entrant.interval is not None for entrant in board.ranked)


def _number(value: float | None, form: str) -> _Shown:
    return _Shown(html=ABSENT if value is None else format(value, form), value=_sort_value(value))


def _sort_value(value: float | None) -> str:
    return "" if value is None else repr(value)
