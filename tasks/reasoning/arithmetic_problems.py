"""Arithmetic problems from templates: their numbers, the plan that solves them, plans that do not, and the split.

A prompt is an expression or a short story, `Ann has 24 pens, buys 3 packs of 7>`. A completion writes integer steps and
the answer behind `#`: `3*7=21;24+21=45#45`, or a fraction, `#12/7`. Only the answer is judged. The split is by template
and numbers, ordered by SHA-256: the same numbers in other words never cross it.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Literal, get_args

from tasks.reasoning.verdict import Verdict

Failure = Literal["unfinished", "unparseable", "wrong"]
FAILURES: tuple[Failure, ...] = get_args(Failure)

SPLIT_SALT = "rlflow-arithmetic-1"
HELD_OUT_FRACTION = 0.15
EVALUATION_PER_TEMPLATE = 20
STARTS_PER_TEMPLATE = 5_000
NAMES = ("Ann", "Bob", "Eve", "Tom")
ITEMS = ("pens", "eggs", "cups", "nuts")
# `9*9=81;9*9=81;81+81=162;9*9=81#162/81` and the end of sequence, with room for a sign here and there.
MAX_COMPLETION_TOKENS = 48

# [0-9], not \d: \d also matches digits of other scripts.
_ANSWER = re.compile(r"(-?[0-9]{1,9})(?:/([0-9]{1,9}))?")
_STEP = re.compile(r"(\w+)([-+*])(\w+)")
_RESULTS = "uvwx"


@dataclass(frozen=True)
class Plan:
    """Integer steps over the numbers `a` to `d` with results `u` to `x`; `answer` is one of them or a quotient."""

    steps: tuple[str, ...]
    answer: str

    def results(self, numbers: Mapping[str, int]) -> dict[str, int]:
        """Every number by its letter, those of the steps included."""
        values = dict(numbers)
        for name, step in zip(_RESULTS, self.steps, strict=False):
            left, operator, right = _step(step)
            x, y = _value(left, values), _value(right, values)
            values[name] = x + y if operator == "+" else x - y if operator == "-" else x * y
        return values

    def value(self, numbers: Mapping[str, int]) -> Fraction:
        """What the plan answers."""
        values = self.results(numbers)
        top, _, bottom = self.answer.partition("/")
        return Fraction(_value(top, values), _value(bottom, values) if bottom else 1)

    def write(self, numbers: Mapping[str, int]) -> str:
        """The completion that follows the plan, with true results."""
        values = self.results(numbers)
        lines = []
        for name, step in zip(_RESULTS, self.steps, strict=False):
            left, operator, right = _step(step)
            lines.append(f"{_value(left, values)}{operator}{_value(right, values)}={values[name]}")
        answer = "/".join(str(_value(part, values)) for part in self.answer.split("/"))
        return f"{';'.join(lines)}#{answer}"


@dataclass(frozen=True)
class Template:
    """A form of problem.

    Attributes:
        name: The source under which its score is reported.
        text: With `{a}` to `{d}`, `{n}` for a name and `{i}` for things.
        ranges: Values of each number.
        plan: What solves it.
        mistakes: Plans that a careless reader might follow; some give the right answer by chance.
    """

    name: str
    text: str
    ranges: tuple[range, ...]
    plan: Plan
    mistakes: tuple[Plan, ...]


def _plan(answer: str, *steps: str) -> Plan:
    return Plan(steps, answer)


_SMALL, _FEW, _SHARE, _TWO_DIGIT = range(2, 10), range(2, 14), range(11, 60), range(30, 80)

TEMPLATES = (
    Template(
        "buy", "{n} has {a} {i}, buys {b} packs of {c}>", (range(10, 60), _SMALL, _SMALL),
        _plan("v", "b*c", "a+u"), (_plan("v", "a+b", "u+c"), _plan("u", "b*c"), _plan("v", "b*c", "a-u")),
    ),
    Template(
        "sell", "{b} boxes of {c} {i}, {a} sold>", (range(2, 31), _SMALL, _SMALL),
        _plan("v", "b*c", "u-a"), (_plan("v", "b*c", "u+a"), _plan("v", "b+c", "u+a"), _plan("u", "b*c")),
    ),
    Template(
        "lose", "{n} had {a} {i}, lost {b}, found {c}>", (_TWO_DIGIT, _FEW, _FEW),
        _plan("v", "a-b", "u+c"), (_plan("v", "a-b", "u-c"), _plan("v", "a+b", "u+c"), _plan("u", "a-b")),
    ),
    Template(
        "share", "{a} {i} for {b} boys and {c} girls>", (_SHARE, _SMALL, _SMALL),
        _plan("a/u", "b+c"), (_plan("a/u", "b*c"), _plan("u/c", "a-b"), _plan("u", "b+c")),
    ),
    Template(
        "half", "half of {a} {i} and {b} more>", (range(11, 80), range(2, 40)),
        _plan("v/2", "2*b", "a+u"), (_plan("u/2", "a+b"), _plan("u", "a+b"), _plan("v/2", "2*b", "a-u")),
    ),
    Template(
        "precedence", "{a}+{b}*{c}>", (range(10, 60), _SMALL, _SMALL),
        _plan("v", "b*c", "a+u"), (_plan("v", "a+b", "u+c"), _plan("v", "b*c", "a-u"), _plan("v", "b+c", "a+u")),
    ),
    Template(
        "brackets", "({a}+{b})*{c}>", (range(2, 16), range(2, 16), _SMALL),
        _plan("v", "a+b", "u*c"), (_plan("v", "b*c", "a+u"), _plan("v", "a+b", "u+c"), _plan("u", "b*c")),
    ),
    Template(
        "signs", "{a}-{b}+{c}>", (_TWO_DIGIT, _FEW, _FEW),
        _plan("v", "a-b", "u+c"), (_plan("v", "b+c", "a-u"), _plan("v", "a+b", "u-c"), _plan("v", "a-b", "u-c")),
    ),
    Template(
        "fractions", "{a}/{b}+{c}/{d}>", (range(1, 10), _SMALL, range(1, 10), _SMALL),
        _plan("w/x", "a*d", "c*b", "u+v", "b*d"),
        (_plan("u/v", "a+c", "b+d"), _plan("u/v", "a*c", "b*d"), _plan("u/v", "a+c", "b*d")),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class ArithmeticProblem:
    """An instance of a template in words.

    Attributes:
        template: Index in `TEMPLATES`.
        numbers: `a`, `b` and so on.
        words: Index of the name and the things, 0-15.
    """

    template: int
    numbers: tuple[int, ...]
    words: int = 0

    @property
    def source(self) -> str:
        """Name of the template."""
        return TEMPLATES[self.template].name

    @property
    def named(self) -> dict[str, int]:
        """The numbers by letter."""
        return dict(zip("abcd", self.numbers, strict=False))

    @property
    def prompt(self) -> str:
        """The text that the policy continues."""
        item, name = divmod(self.words, len(NAMES))
        return TEMPLATES[self.template].text.format(n=NAMES[name], i=ITEMS[item], **self.named)

    @property
    def answer(self) -> Fraction:
        """The right answer."""
        return TEMPLATES[self.template].plan.value(self.named)


def verify(problem: ArithmeticProblem, completion: str, finished: bool = True) -> Verdict:
    """Compare the number behind the last `#` exactly; 2/4 is 1/2, and the steps before it are the policy's own affair.

    Failures, in this order: `unfinished` (no end of sequence), `unparseable` (no `#`, or no integer or fraction behind
    it), `wrong`.
    """
    if not finished:
        return Verdict("unfinished")
    _, mark, text = completion.rpartition("#")
    match = _ANSWER.fullmatch(text)
    if not mark or match is None or (match[2] is not None and int(match[2]) == 0):
        return Verdict("unparseable")
    found = Fraction(int(match[1]), int(match[2] or 1))
    return Verdict(None if found == problem.answer else "wrong", answer=str(found))


def instances(held_out: bool) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Numbers of every problem of one side of the split, by template, in the order of their digests."""
    return _sides()[int(held_out)]


@cache
def _sides() -> tuple[tuple[tuple[tuple[int, ...], ...], ...], tuple[tuple[tuple[int, ...], ...], ...]]:
    training, held_out = [], []
    for index, template in enumerate(TEMPLATES):
        natural = [
            ArithmeticProblem(index, numbers)
            for numbers in itertools.product(*template.ranges)
            if _is_natural(template, numbers)
        ]
        every = tuple(problem.numbers for problem in sorted(natural, key=digest))
        cut = round(HELD_OUT_FRACTION * len(every))
        held_out.append(every[:cut])
        training.append(every[cut:])
    return tuple(training), tuple(held_out)


def digest(problem: ArithmeticProblem) -> str:
    """SHA-256 of template and numbers, whatever the words."""
    return hashlib.sha256(f"{SPLIT_SALT}:{problem.source}:{problem.numbers}".encode()).hexdigest()


def training_starts() -> range:
    """Ids of the training prompts; templates take turns, so that each has its share of a batch."""
    return range(STARTS_PER_TEMPLATE * len(TEMPLATES))


def training_problem(start: int) -> ArithmeticProblem:
    """The training prompt of an id; the instances of a template repeat in other words where they are few.

    Raises:
        IndexError: The id is not in `training_starts()`.
    """
    if start not in training_starts():
        raise IndexError(f"training start: expected 0 to {training_starts()[-1]}, found {start}")
    turn, template = divmod(start, len(TEMPLATES))
    own = instances(held_out=False)[template]
    return ArithmeticProblem(template, own[turn % len(own)], turn % (len(NAMES) * len(ITEMS)))


@cache
def evaluation_problems() -> tuple[ArithmeticProblem, ...]:
    """The frozen set: 20 held-out instances of each template, templates in turn, in fixed words."""
    held_out = instances(held_out=True)
    return tuple(
        ArithmeticProblem(template, held_out[template][turn], turn % (len(NAMES) * len(ITEMS)))
        for turn in range(EVALUATION_PER_TEMPLATE)
        for template in range(len(TEMPLATES))
    )


def evaluation_digest() -> str:
    """SHA-256 of the evaluation prompts, one a line: the data digest of the task's version."""
    return hashlib.sha256("\n".join(p.prompt for p in evaluation_problems()).encode()).hexdigest()


def _is_natural(template: Template, numbers: Sequence[int]) -> bool:
    """No negative number on the right way, and no mistake that leads to the right answer."""
    named = dict(zip("abcd", numbers, strict=False))
    right = template.plan.value(named)
    return min(template.plan.results(named).values()) >= 0 and all(m.value(named) != right for m in template.mistakes)


@cache
def _step(step: str) -> tuple[str, str, str]:
    match = _STEP.fullmatch(step)
    assert match is not None, step
    return match[1], match[2], match[3]


def _value(term: str, values: Mapping[str, int]) -> int:
    return values[term] if term in values else int(term)
