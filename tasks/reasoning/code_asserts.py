"""Python test code of data sets, turned into calls that the judge compares where it is nothing else.

Calls are the stronger form: EvalPlus's own `assertion` broadcasts, so that `[5.0]` passes where `[]` is expected, and
it needs numpy. Code that does more than compare calls with literals is kept whole.
"""

from __future__ import annotations

import ast
import math
from typing import Any

from tasks.reasoning.code_tests import Call, CallTests, CodeTests

_NAMES = {"inf": math.inf, "nan": math.nan, "True": True, "False": False, "None": None}
_COMPARING_CALLS = {"is_floats", "np.allclose", "np.testing.assert_allclose"}


class Malformed(ValueError):  # noqa: N818
    """A row that is no problem of its schema, or one that cannot be judged here, with the reason."""


def python_tests(code: str, entry: str, preamble: str) -> CallTests | CodeTests:
    """Compared calls where the code is only that, else the code itself, run after `preamble`."""
    tree = parsed(code, "test")
    calls = _asserted_calls(tree, entry)
    if calls:
        return CallTests(entry=entry, calls=calls)
    looped = _looped_calls(tree, entry, code)
    if looped is not None:
        return looped
    defines_check = any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body)
    calls_check = any(isinstance(node, ast.Expr) and "check" in called(node) for node in tree.body)
    ending = f"\ncheck({entry})\n" if defines_check and not calls_check else "\n"
    return CodeTests(entry=entry, code=code + ending, preamble=preamble)


def _asserted_calls(tree: ast.Module, entry: str) -> tuple[Call, ...]:
    """The calls of code that is nothing but `assert entry(literals) == literal`; empty for any other code."""
    calls = []
    for node in tree.body:
        test = node.test if isinstance(node, ast.Assert) else None
        if not (isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq)):
            return ()
        call = test.left
        if not (isinstance(call, ast.Call) and ast.unparse(call.func) == entry and not call.keywords):
            return ()
        try:
            arguments = tuple(_literal(argument) for argument in call.args)
            calls.append(Call(arguments=arguments, expected=_literal(test.comparators[0])))
        except ValueError:
            return ()
    return tuple(calls)


def _looped_calls(tree: ast.Module, entry: str, code: str) -> CallTests | None:
    """The calls of EvalPlus's loop over `inputs` with `results` or a reference solution; None for any other code."""
    body: list[ast.stmt] = list(tree.body)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "check":
            body = node.body
        if isinstance(node, ast.FunctionDef) and node.name == "assertion" and not _only_compares(node):
            return None
    lists = {ast.unparse(n.targets[0]): n.value for n in body if isinstance(n, ast.Assign) and len(n.targets) == 1}
    loops = [node for node in body if isinstance(node, ast.For)]
    if len(loops) != 1 or len(loops[0].body) != 1 or not isinstance(loops[0].body[0], ast.Expr):
        return None
    call = loops[0].body[0].value
    if not (isinstance(call, ast.Call) and ast.unparse(call.func) == "assertion" and len(call.args) == 3):
        return None
    asked, wanted = ast.unparse(call.args[0]), ast.unparse(call.args[1])
    if asked not in ("candidate(*inp)", f"{entry}(*inp)") or wanted not in ("exp", "ref_func(*inp)"):
        return None
    try:
        inputs, tolerance = _literal(lists["inputs"]), float(_literal(call.args[2]))
        results = _literal(lists["results"]) if wanted == "exp" else [None] * len(inputs)
    except (KeyError, ValueError):
        return None
    if len(inputs) != len(results):
        raise Malformed(f"expected as many results as inputs, found {len(results)} and {len(inputs)}")
    calls = tuple(
        Call(arguments=tuple(given), expected=expected, tolerance=tolerance)
        for given, expected in zip(inputs, results, strict=True)
    )
    if wanted == "exp":
        return CallTests(entry=entry, calls=calls)
    definitions = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name == "check")]
    kept = [node for node in definitions if isinstance(node, (ast.FunctionDef, ast.Import, ast.ImportFrom, ast.Assign))]
    plain = "\n".join(ast.unparse(node) for node in kept if "np" not in called(node) and not _imports_numpy(node))
    return CallTests(entry=entry, calls=calls, preamble=plain, reference="ref_func")


def _only_compares(assertion: ast.FunctionDef) -> bool:
    """Whether the data set's comparison is equality with a tolerance, which the judge does more strictly."""
    operators = {type(op) for node in ast.walk(assertion) if isinstance(node, ast.Compare) for op in node.ops}
    functions = {ast.unparse(node.func) for node in ast.walk(assertion) if isinstance(node, ast.Call)}
    return operators <= {ast.Eq, ast.NotEq, ast.Is, ast.IsNot} and functions <= _COMPARING_CALLS


def _imports_numpy(node: ast.stmt) -> bool:
    helper = isinstance(node, ast.FunctionDef) and node.name in ("assertion", "is_floats")
    return helper or (isinstance(node, ast.Import) and any(alias.name == "numpy" for alias in node.names))


def _literal(node: ast.AST) -> Any:
    """The value of a literal in which `inf` and `nan` may stand; ValueError for anything else."""
    if isinstance(node, ast.Name) and node.id in _NAMES:
        return _NAMES[node.id]
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        kind: Any = {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)]
        return kind(_literal(item) for item in node.elts)
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_literal(k): _literal(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Name):
        return -_literal(node.operand)
    if isinstance(node, ast.Call) and ast.unparse(node) == "set()":
        return set()
    return ast.literal_eval(node)


def called(tree: ast.AST) -> list[str]:
    """Names of the functions that a piece of code calls."""
    return [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]


def parsed(code: str, what: str) -> ast.Module:
    """The syntax tree; `Malformed` for what is no Python."""
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Malformed(f"the {what} is no Python: {error}") from error
