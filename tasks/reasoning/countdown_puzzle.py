"""One countdown puzzle, its written solutions, and the strict verifier that names why a completion is wrong.

A prompt `4371:14>` gives a pool of four distinct digits 1-9 (each may be used any number of times) and a target. A
completion is one to three steps `acc op digit=result,gap` joined by `;`, each starting from the previous result, with
`gap = target - result` written out: `4+7=11,3;11+3=14,0`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from tasks.reasoning.verdict import Verdict

Failure = Literal["unfinished", "format", "nsteps", "pool", "chain", "arith", "gap", "target"]
FAILURES: tuple[Failure, ...] = get_args(Failure)

POOL_SIZE = 4
MIN_TARGET, MAX_TARGET = 10, 50
MAX_STEPS = 3
MAX_RESULT = 99
OPERATORS = "+-*"
# Three steps such as `81+9=90,-80` (11), the first `9*9=81,-71` (10), two `;` and the end of sequence.
MAX_COMPLETION_TOKENS = 36

# [0-9], not \d: \d also matches digits of other scripts, which int() would read as numbers.
_NATURAL = r"(?:0|[1-9][0-9]{0,2})"
_SIGNED = r"(?:0|-?[1-9][0-9]{0,2})"
_STEP = re.compile(rf"({_NATURAL})([+*-])({_NATURAL})=({_SIGNED}),({_SIGNED})")
_PROMPT = re.compile(r"([1-9]{4}):([1-9][0-9])>")


@dataclass(frozen=True)
class Puzzle:
    """A pool of digits, in the order of the prompt, and a target.

    Raises:
        ValueError: The pool is not four distinct digits 1-9, or the target lies outside 10-50.
    """

    pool: tuple[int, ...]
    target: int

    def __post_init__(self) -> None:
        """Refuse a puzzle outside the task's domain."""
        distinct = set(self.pool)
        if len(self.pool) != POOL_SIZE or len(distinct) != POOL_SIZE or not distinct <= set(range(1, 10)):
            raise ValueError(f"puzzle pool: expected {POOL_SIZE} distinct digits 1-9, found {self.pool}")
        if not MIN_TARGET <= self.target <= MAX_TARGET:
            raise ValueError(f"puzzle target: expected {MIN_TARGET}-{MAX_TARGET}, found {self.target}")

    @property
    def prompt(self) -> str:
        """The text that the policy continues, such as `4371:14>`."""
        return f"{''.join(map(str, self.pool))}:{self.target}>"

    @classmethod
    def parse(cls, prompt: str) -> Puzzle:
        """The puzzle of a prompt.

        Raises:
            ValueError: The text is not a prompt of this task.
        """
        match = _PROMPT.fullmatch(prompt)
        if match is None:
            raise ValueError(f"prompt: expected four digits, a target and '>' as in '4371:14>', found {prompt!r}")
        return cls(pool=tuple(map(int, match[1])), target=int(match[2]))


def verify(puzzle: Puzzle, completion: str, finished: bool = True) -> Verdict:
    """Check a completion, without its end-of-sequence symbol, character by character.

    Failures are named in this order: `unfinished` (no end of sequence), `format` (not the grammar), `nsteps` (more than
    three steps); then, step by step, `pool` (an operand that is no digit of the pool), `chain` (a step that does not
    start from the previous result), `arith` (a wrong result, or one outside 1-99), `gap`; at last `target`.

    Args:
        puzzle: The question.
        completion: The text after the prompt.
        finished: Whether the policy ended the sequence by itself.
    """
    if not finished:
        return Verdict("unfinished")
    matches = [_STEP.fullmatch(step) for step in completion.split(";")]
    steps = [match.groups() for match in matches if match is not None]
    if len(steps) < len(matches):
        return Verdict("format")
    if len(steps) > MAX_STEPS:
        return Verdict("nsteps")
    result: int | None = None
    for step in steps:
        failure = _step_failure(puzzle, result, *step)
        if failure is not None:
            return Verdict(failure)
        result = int(step[3])
    if result != puzzle.target:
        return Verdict("target")
    return Verdict(None, canonical(int(steps[0][0]), tuple((step[1], int(step[2])) for step in steps)))


def apply(left: int, operator: str, right: int) -> int:
    """The value of `left operator right`."""
    if operator == "+":
        return left + right
    return left - right if operator == "-" else left * right


def write(puzzle: Puzzle, start: int, steps: tuple[tuple[str, int], ...]) -> str:
    """The completion that spells out a chain of operations, with the true results and gaps."""
    texts = []
    acc = start
    for operator, digit in steps:
        result = apply(acc, operator, digit)
        texts.append(f"{acc}{operator}{digit}={result},{puzzle.target - result}")
        acc = result
    return ";".join(texts)


def canonical(start: int, steps: tuple[tuple[str, int], ...]) -> str:
    """The chain as an expression, equal for chains that differ only by commuting or reassociating their operands.

    A run of `+` and `-` becomes one sorted sum, a run of `*` one sorted product: `4+7-3` and `7-3+4` are both
    `+4+7-3`; `3*(4+7)` stays apart from `3*4+3*7`, and `x*1` from `x`.
    """
    is_sum, parts = False, [str(start)]
    for operator, digit in steps:
        if operator == "*":
            parts = [f"({_join_sum(parts)})"] if is_sum else parts
            is_sum = False
            parts.append(str(digit))
        else:
            parts = parts if is_sum else ["+" + "*".join(sorted(parts))]
            is_sum = True
            parts.append(f"{operator}{digit}")
    return _join_sum(parts) if is_sum else "*".join(sorted(parts))


def _join_sum(terms: list[str]) -> str:
    return "".join(sorted(terms))


def _step_failure(
    puzzle: Puzzle, acc: int | None, left: str, operator: str, right: str, result: str, gap: str
) -> Failure | None:
    operands = [right] if acc is not None else [left, right]
    if any(int(operand) not in puzzle.pool for operand in operands):
        return "pool"
    if acc is not None and int(left) != acc:
        return "chain"
    value = apply(int(left), operator, int(right))
    if value != int(result) or not 1 <= value <= MAX_RESULT:
        return "arith"
    return "gap" if int(gap) != puzzle.target - value else None
