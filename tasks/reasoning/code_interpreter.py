"""A tiny part of Python that is run without Python's evaluator: expressions over lists of small integers.

Expressions are checked node by node and become closures; whatever is not listed here is refused before anything runs.
There are no attributes, no strings, no assignments and no names but the argument, loop variables and seven functions,
so nothing outside can be reached; loops are counted, and only integers are added or multiplied, so nothing grows.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable
from typing import Any

MAX_LENGTH = 64
MAX_STEPS = 2000
MAX_NUMBER = 10**9

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sum": sum,
    "len": len,
    "max": max,
    "min": min,
    "sorted": sorted,
    "list": list,
    "abs": abs,
}
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}

Scope = dict[str, Any]
Compiled = Callable[[Scope], Any]


class Refused(Exception):  # noqa: N818
    """The expression is outside the subset, or uses a value in a way that the subset does not allow."""


class TooLong(Exception):  # noqa: N818
    """The expression takes more steps, or makes larger numbers, than allowed."""


class Generated(list[Any]):
    """The values of a generator expression; like a generator it has no length and cannot be indexed."""


class Steps:
    """Counts loop iterations; each run starts at 0."""

    def __init__(self) -> None:
        self.taken = 0

    def take(self) -> None:
        """One more iteration."""
        self.taken += 1
        if self.taken > MAX_STEPS:
            raise TooLong(f"more than {MAX_STEPS} steps")


def compile_expression(text: str) -> Callable[[list[int]], Any]:
    """A function of the list `a`, from an expression in it.

    Raises:
        SyntaxError: No Python expression.
        Refused: Outside the subset; the function raises it too, where that shows only in the values, and `TooLong`.
    """
    if len(text) > MAX_LENGTH:
        raise Refused(f"more than {MAX_LENGTH} characters")
    steps = Steps()
    body = _compile(parse_expression(text).body, steps)

    def run(values: list[int]) -> Any:
        steps.taken = 0
        return body({"a": list(values)})

    return run


def parse_expression(text: str) -> ast.Expression:
    """The syntax tree; SyntaxError for what is no expression."""
    try:
        with warnings.catch_warnings():
            # `7if` is an expression with a warning.
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return ast.parse(text, mode="eval")
    except (ValueError, RecursionError, MemoryError) as error:
        raise SyntaxError(str(error)) from error


def _compile(node: ast.expr, steps: Steps) -> Compiled:
    match node:
        case ast.Constant(value=value) if type(value) is int and value < MAX_NUMBER:
            return lambda scope: value
        case ast.Name(id=name):
            return lambda scope: _look_up(scope, name)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _arithmetic(_ARITHMETIC[type(op)], _compile(left, steps), _compile(right, steps))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _arithmetic(operator.sub, lambda scope: 0, _compile(operand, steps))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = _compile(operand, steps)
            return lambda scope: not inner(scope)
        case ast.BoolOp(op=op, values=values):
            return _boolean(isinstance(op, ast.And), [_compile(value, steps) for value in values])
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARISONS for op in ops):
            parts = [_compile(part, steps) for part in (left, *others)]
            return _comparison([_COMPARISONS[type(op)] for op in ops], parts)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return _call(name, [_compile(argument, steps) for argument in arguments])
        case ast.Subscript(value=value, slice=index):
            return _subscript(_compile(value, steps), index, steps)
        case ast.ListComp() | ast.GeneratorExp():
            return _comprehension(node, steps)
    raise Refused(f"{type(node).__name__} is not part of the language")


def _look_up(scope: Scope, name: str) -> Any:
    if name not in scope:
        raise NameError(name)
    return scope[name]


def _arithmetic(apply: Callable[[Any, Any], Any], left: Compiled, right: Compiled) -> Compiled:
    def run(scope: Scope) -> Any:
        first, second = left(scope), right(scope)
        if not (isinstance(first, int) and isinstance(second, int)):
            raise Refused("arithmetic of lists is not part of the language")
        value = apply(first, second)
        if abs(value) > MAX_NUMBER:
            raise TooLong(f"a number beyond {MAX_NUMBER}")
        return value

    return run


def _boolean(is_and: bool, parts: list[Compiled]) -> Compiled:
    def run(scope: Scope) -> Any:
        value: Any = is_and
        for part in parts:
            value = part(scope)
            if bool(value) is not is_and:
                return value
        return value

    return run


def _comparison(operators: list[Callable[[Any, Any], Any]], parts: list[Compiled]) -> Compiled:
    def run(scope: Scope) -> bool:
        left = parts[0](scope)
        for compare, part in zip(operators, parts[1:], strict=True):
            right = part(scope)
            if isinstance(left, Generated) or isinstance(right, Generated):
                raise Refused("generators are not compared in the language")
            if not compare(left, right):
                return False
            left = right
        return True

    return run


def _call(name: str, arguments: list[Compiled]) -> Compiled:
    function = FUNCTIONS[name]

    def run(scope: Scope) -> Any:
        # As in Python, a loop variable hides a function of its name.
        if name in scope:
            raise TypeError(f"{name} is not a function here")
        values = [argument(scope) for argument in arguments]
        if any(isinstance(value, Generated) for value in values) and (name in ("len", "abs") or len(values) > 1):
            raise TypeError(f"{name} of a generator")
        return function(*values)

    return run


def _subscript(value: Compiled, index: ast.expr, steps: Steps) -> Compiled:
    parts = [index.lower, index.upper, index.step] if isinstance(index, ast.Slice) else [index]
    compiled = [None if part is None else _compile(part, steps) for part in parts]

    def run(scope: Scope) -> Any:
        items = value(scope)
        places = [None if part is None else part(scope) for part in compiled]
        if not isinstance(items, list) or isinstance(items, Generated):
            raise TypeError("only lists have items")
        at: Any = slice(*places) if isinstance(index, ast.Slice) else places[0]
        return items[at]

    return run


def _comprehension(node: ast.ListComp | ast.GeneratorExp, steps: Steps) -> Compiled:
    loop = node.generators[0]
    if len(node.generators) > 1 or loop.is_async or not isinstance(loop.target, ast.Name):
        raise Refused("one loop over one variable is the language's only comprehension")
    name = loop.target.id
    source, element = _compile(loop.iter, steps), _compile(node.elt, steps)
    conditions = [_compile(condition, steps) for condition in loop.ifs]
    kind = list if isinstance(node, ast.ListComp) else Generated

    def run(scope: Scope) -> Any:
        items = source(scope)
        if not isinstance(items, list):
            raise TypeError("only lists are looped over")
        inner = dict(scope)
        values = []
        for item in items:
            steps.take()
            inner[name] = item
            if all(condition(inner) for condition in conditions):
                values.append(element(inner))
        return kind(values)

    return run
