"""The claims page: what papers say, what the recorded runs show of it, and by which numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape

import numpy as np

from rlflow.claims import Comparison, Side
from rlflow.claims_evidence import Evidence, Judged
from rlflow.report_csv import csv_text
from rlflow.report_page import STYLE
from rlflow.report_text import markdown_table
from rlflow.report_values import ABSENT, fixed_text, with_error
from rlflow.stats import FloatArray
from rlflow.verdicts import MIN_SEEDS, MIN_SEEDS_SUPERIOR, Finding

METHOD = (
    "A test is replicated where the whole 95 % interval lies on the side that it claims (beats: difference above 0; "
    "keeps: above minus the margin; matches: within the margin; cheaper: ratio of costs above 1), not replicated where "
    "it lies wholly on the other side, undecided all else. Intervals are Student's t of the differences of the same "
    "runs against their untrained policy, else Welch's. "
    f"Fewer than {MIN_SEEDS} seeds a side, or {MIN_SEEDS_SUPERIOR} for one entrant beating another, decide nothing. "
    "A claim is replicated where all of its tests are, not where one is not. Values are means of the last evaluations "
    "± standard error over seeds. Each test has an error of 5 % of its own: of many, a few are expected to be wrong."
)
NAMES = ("test", "judged", "against", "effect [95 %]", "seeds", "verdict")
COLUMNS = ("claim", "test", "kind", "metric", "at_equal", "margin", "of", "than", "num_of", "num_than", "mean_of",
           "mean_than", "effect", "low", "high", "verdict", "claim_verdict", "reason")  # fmt: skip
MARKS = {"replicated": "✓", "not replicated": "✗", "undecided": "?"}


def claims_markdown(evidence: Evidence) -> str:
    """The page as Markdown."""
    rows = [[f"[{j.claim.id}](#{j.claim.id})", j.claim.paper, _verdict(j)] for j in evidence.judged]
    lines = [f"# Claims: {evidence.file.name}", "", summary(evidence), ""]
    lines += [markdown_table(("claim", "paper", "verdict"), rows), ""]
    for judged in evidence.judged:
        claim = judged.claim
        lines += [f"## {claim.id}", "", f"**{_verdict(judged)}**: {claim.statement} ({claim.paper})", ""]
        lines += [markdown_table(NAMES, list(finding_rows(judged))), ""]
        lines += [claim.note, ""] if claim.note else []
    lines += ["## Method", "", METHOD, "", *(f"- {line}" for line in _provenance(evidence))]
    return "\n".join(lines) + "\n"


def claims_html(evidence: Evidence) -> str:
    """The page as one self-contained file."""
    title = f"Claims: {escape(evidence.file.name)}"
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{STYLE}</style></head><body>",
        f"<header><h1>{title}</h1></header><p>{_prose(summary(evidence))}</p>",
    ]
    for judged in evidence.judged:
        claim = judged.claim
        parts += [
            f'<h2 id="{escape(claim.id)}">{escape(_verdict(judged))}: {escape(claim.id)}</h2>',
            f'<p>{_prose(claim.statement)} <span class="sub">{escape(claim.paper)}</span></p>',
            _table(judged),
            f'<p class="sub">{_prose(claim.note)}</p>' if claim.note else "",
        ]
    parts += [f"<h2>Method</h2><p>{escape(METHOD)}</p>"]
    parts += [f'<p class="sub">{escape(line)}</p>' for line in _provenance(evidence)]
    return "\n".join(part for part in [*parts, "</body></html>"] if part) + "\n"


def claims_csv(evidence: Evidence) -> str:
    """One line per test."""
    lines = []
    for judged in evidence.judged:
        for test, found in zip(judged.claim.tests, judged.findings, strict=True):
            what = [judged.claim.id, test.says, test.kind, test.metric, test.at_equal, test.margin or None]
            numbers = [len(found.of), len(found.than), _mean(found.of), _mean(found.than)]
            effect = [found.effect, found.low, found.high]
            lines.append([*what, *_sides(test), *numbers, *effect, found.verdict, judged.verdict, found.reason])
    return csv_text(COLUMNS, lines)


def summary(evidence: Evidence) -> str:
    """How many claims have which verdict, and what would make the runs that are missing."""
    verdicts = [judged.verdict for judged in evidence.judged]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in MARKS if verdict in verdicts)
    missing = f" Runs are missing: {'; '.join(f'`{line}`' for line in evidence.commands)}." if evidence.commands else ""
    return f"{len(verdicts)} claims: {counts}.{missing}"


def finding_rows(judged: Judged) -> Iterator[list[str]]:
    """Cells of the tests of a claim, as `NAMES` calls them."""
    for test, found in zip(judged.claim.tests, judged.findings, strict=True):
        verdict = f"{MARKS[found.verdict]} {found.verdict}" + (f": {found.reason}" if found.reason else "")
        of, than = (
            f"{side}: {_value(values)}" for side, values in zip(_sides(test), (found.of, found.than), strict=True)
        )
        seeds = f"{len(found.of)}, {len(found.than)}"
        yield [f"{test.says} ({_what(test)})", of, than, _effect(test, found), seeds, verdict]


def _table(judged: Judged) -> str:
    """The tests as a table, on a narrow screen as a card each (see `rlflow.report_page`)."""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in NAMES)
    lines = [
        "".join(f'<td data-label="{name}">{escape(text)}</td>' for name, text in zip(NAMES, row, strict=True))
        for row in finding_rows(judged)
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table class="board"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'


def _prose(text: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _verdict(judged: Judged) -> str:
    return f"{MARKS[judged.verdict]} {judged.verdict}"


def _what(test: Comparison) -> str:
    margin = f" within {test.margin:g}" if test.margin else ""
    equal = f" at equal {test.at_equal}" if test.at_equal else ""
    return f"{test.kind}{margin}: {test.metric}{', lower is better' if test.lower_is_better else ''}{equal}"


def _sides(test: Comparison) -> tuple[str, str]:
    return str(test.of), "the untrained policy" if test.than is None else _other(test.than, test.of)


def _other(side: Side, known: Side) -> str:
    """The entrant alone, where the rest has been said."""
    same = (side.suite, side.task, side.budget) == (known.suite, known.task, known.budget)
    return side.entrant if same else str(side)


def _value(values: FloatArray) -> str:
    return with_error(values) if len(values) else ABSENT


def _effect(test: Comparison, found: Finding) -> str:
    if found.effect is None or found.low is None or found.high is None:
        return ABSENT
    effect, low, high = (fixed_text(value, 3) for value in (found.effect, found.low, found.high))
    return f"{effect}{' times' if test.kind == 'cheaper' else ''} [{low}, {high}]"


def _mean(values: FloatArray) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _provenance(evidence: Evidence) -> list[str]:
    lines = [f"{name}: {'; '.join(words)}" for name, words in evidence.provenance.items()]
    return [*lines, f"claims file {evidence.file.name}, digest {evidence.file.digest}"]
