"""One small program to write: the steps that a list goes through, and a strict verifier with hidden tests.

A prompt `*2,>7,sum:` asks for a Python expression in the list `a`: each number doubled, those above 7, their sum. A
completion is such an expression, `sum(x*2 for x in a if x*2>7)`. It is checked by its values on lists that the policy
never sees, so every program that is right counts, however it is written.
"""

from __future__ import annotations

import ast
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from tasks.reasoning.code_interpreter import Generated, Refused, TooLong, compile_expression, parse_expression
from tasks.reasoning.code_tests import Call, CallTests
from tasks.reasoning.verdict import Verdict

FAILURES = ("unfinished", "syntax", "forbidden", "runtime", "steps", "wrong")
FINALS = ("list", "rev", "sort", "sum", "len", "max")
MAX_COMPLETION_TOKENS = 48
LOWEST, HIGHEST = -3, 14
_STEP = re.compile(r"[-+*<>][0-9]+|even|odd")
_FLIPPED = {ast.Gt: ast.Lt, ast.GtE: ast.LtE}
_COLLECTING = ("sum", "max", "min", "sorted", "list")


@dataclass(frozen=True)
class CodeMiniProblem:
    """What happens to the list: steps on each number in turn, then one thing with the whole.

    Attributes:
        steps: `+3`, `-3`, `*3` change a number; `>3`, `<3`, `even`, `odd` keep some.
        final: `list` (as it is), `rev`, `sort`, `sum`, `len` or `max`.
    """

    steps: tuple[str, ...]
    final: str

    def __post_init__(self) -> None:
        """Refuse what is no problem of this task."""
        if not self.steps or not all(map(_STEP.fullmatch, self.steps)) or self.final not in FINALS:
            raise ValueError(f"problem: expected steps such as *2 or >7 and one of {FINALS}, found {self}")

    @property
    def prompt(self) -> str:
        """The text that the policy continues, such as `*2,>7,sum:`."""
        return f"{','.join(self.steps)},{self.final}:"

    @classmethod
    def parse(cls, prompt: str) -> CodeMiniProblem:
        """The problem of a prompt; ValueError for a text that is none."""
        *steps, final = prompt.removesuffix(":").split(",")
        if not prompt.endswith(":"):
            raise ValueError(f"prompt: expected steps, an end and ':' as in '*2,>7,sum:', found {prompt!r}")
        return cls(tuple(steps), final)

    def run(self, values: list[int]) -> list[int] | int:
        """What a right program gives; ValueError for the largest of nothing."""
        kept = list(values)
        for step in self.steps:
            number = int(step[1:]) if step[1:].isdigit() else 0
            match step[0]:
                case "+":
                    kept = [value + number for value in kept]
                case "-":
                    kept = [value - number for value in kept]
                case "*":
                    kept = [value * number for value in kept]
                case ">":
                    kept = [value for value in kept if value > number]
                case "<":
                    kept = [value for value in kept if value < number]
                case _:
                    kept = [value for value in kept if value % 2 == (step == "odd")]
        ends: dict[str, Any] = {"sort": sorted, "sum": sum, "len": len, "max": max, "list": list}
        result: list[int] | int = kept[::-1] if self.final == "rev" else ends[self.final](kept)
        return result


@cache
def hidden_lists() -> tuple[tuple[int, ...], ...]:
    """The same for every problem: nothing, every number from -3 to 14, and a list with each of them as its largest.

    A condition that is one off shows only where the number between matters; for `max` it has to be the largest.
    """
    numbers = range(LOWEST, HIGHEST + 1)
    lists: list[tuple[int, ...]] = [(), tuple(sorted(numbers, key=lambda number: _digest(str(number))))]
    for largest in reversed(numbers):
        digest = _digest(f"list {largest}")
        others = [LOWEST + byte % (largest - LOWEST + 1) for byte in digest[2 : 4 + digest[0] % 5]]
        place = digest[1] % (len(others) + 1)
        lists.append((*others[:place], largest, *others[place:]))
    return tuple(lists)


def _digest(text: str) -> bytes:
    return hashlib.sha256(f"rlflow-code-mini-1:{text}".encode()).digest()


@cache
def expected(problem: CodeMiniProblem) -> tuple[tuple[tuple[int, ...], list[int] | int], ...]:
    """The hidden lists on which the problem has an answer, with the answer."""
    pairs = []
    for values in hidden_lists():
        try:
            pairs.append((values, problem.run(list(values))))
        except ValueError:
            continue
    return tuple(pairs)


def hidden_tests(problem: CodeMiniProblem) -> CallTests:
    """The same tests for a sandbox, of a function `f` of the list."""
    return CallTests(
        entry="f",
        calls=tuple(Call(arguments=(list(values),), expected=answer) for values, answer in expected(problem)),
    )


def as_program(completion: str) -> str:
    """A completion as a program for `hidden_tests`."""
    return f"def f(a): return {completion}"


def verify(problem: CodeMiniProblem, completion: str, finished: bool = True) -> Verdict:
    """Run a completion, without its end-of-sequence symbol, on the hidden lists.

    The first of these is the failure: `unfinished` (no end of sequence), `syntax` (no expression), `forbidden` (outside
    the tiny language), `runtime` (an exception), `steps` (too many, or a huge number), `wrong` (another value).
    """
    if not finished:
        return Verdict("unfinished")
    try:
        program = compile_expression(completion)
        for values, answer in expected(problem):
            found = program(list(values))
            if isinstance(found, Generated) or not _same(found, answer):
                return Verdict("wrong")
    except SyntaxError:
        return Verdict("syntax")
    except Refused:
        return Verdict("forbidden")
    except TooLong:
        return Verdict("steps")
    except (ArithmeticError, LookupError, TypeError, ValueError, NameError):
        return Verdict("runtime")
    return Verdict(None, canonical=canonical(completion))


def canonical(completion: str) -> str:
    """A program, equal for programs that differ by spaces, names of variables or operands that change places.

    `sum([2*y for y in a])` and `sum(x*2 for x in a)` are the same; `x+x` for `2*x`, or `x>=8` for `x>7`, is not.
    """
    return ast.unparse(_Normal().visit(parse_expression(completion)))


def _same(found: Any, answer: Any) -> bool:
    if isinstance(found, list) is not isinstance(answer, list):
        return False
    return bool(found == answer)


class _Normal(ast.NodeTransformer):
    """Puts what a program may be written as into one order."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        """Variables are numbered in the order of their loops."""
        node.iter = self.visit(node.iter)
        if isinstance(node.target, ast.Name):
            self._names[node.target.id] = f"v{len(self._names)}"
        node.target = self.visit(node.target)
        node.ifs = sorted((self.visit(condition) for condition in node.ifs), key=ast.unparse)
        return node

    def visit_ListComp(self, node: ast.ListComp) -> ast.AST:
        """The loop comes before what is written in front of it."""
        node.generators = [self.visit(loop) for loop in node.generators]
        node.elt = self.visit(node.elt)
        return node

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> ast.AST:
        """As a list."""
        node.generators = [self.visit(loop) for loop in node.generators]
        node.elt = self.visit(node.elt)
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """The number of a variable."""
        return ast.Name(self._names.get(node.id, node.id), node.ctx)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """Sums and products in the order of their text."""
        node.left, node.right = self.visit(node.left), self.visit(node.right)
        if isinstance(node.op, (ast.Add, ast.Mult)):
            node.left, node.right = sorted((node.left, node.right), key=ast.unparse)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        """`7<x` for `x>7`."""
        node.left, node.comparators = self.visit(node.left), [self.visit(other) for other in node.comparators]
        if len(node.ops) == 1 and type(node.ops[0]) in _FLIPPED:
            node.left, node.comparators = node.comparators[0], [node.left]
            node.ops = [_FLIPPED[type(node.ops[0])]()]
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """A list that is only collected is a generator."""
        node.args = [self.visit(argument) for argument in node.args]
        only = node.args[0] if len(node.args) == 1 else None
        if isinstance(only, ast.ListComp) and isinstance(node.func, ast.Name) and node.func.id in _COLLECTING:
            node.args = [ast.GeneratorExp(only.elt, only.generators)]
        return node
