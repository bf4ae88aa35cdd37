"""Rows of public data sets as problems: HumanEval+, MBPP+, LiveCodeBench and CodeForces, each with its column names.

Formats as of evalplus/humanevalplus, evalplus/mbppplus, livecodebench/code_generation_lite and open-r1/codeforces on
the Hugging Face hub.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import pickle
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.reasoning.code_asserts import Malformed, called, parsed, python_tests
from tasks.reasoning.code_tests import Call, CallTests, StreamTests, Tests

# LiveCodeBench packs its private tests; more than this is no set of tests.
MAX_UNPACKED_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class CodeProblem:
    """A programming problem with its tests.

    Attributes:
        id: Name in the data set.
        source: Schema that it was read by.
        prompt: Question, or the start of the code, for a policy.
        tests: What a right program does.
        stub: Code that a program without it does not stand alone: imports and the head of the function; may be empty.
    """

    id: str
    source: str
    prompt: str
    tests: Tests
    stub: str = ""

    @property
    def entry(self) -> str:
        """Name of the function to write; empty for a script."""
        return "" if isinstance(self.tests, StreamTests) else self.tests.entry


Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Schema:
    """How the rows of one data set are read.

    Attributes:
        columns: Column of each field; a data set that renames them is read by `task.data.columns`.
        parse: Makes the problem of a row whose keys are field names.
    """

    columns: Mapping[str, str]
    parse: Callable[[Row], CodeProblem]


def humaneval_plus(row: Row) -> CodeProblem:
    """The prompt is code that the completion continues; its imports and helpers belong to the tests too."""
    prompt, entry = _text(row, "prompt"), _text(row, "entry")
    tests = python_tests(_text(row, "tests"), entry, preamble=prompt)
    return CodeProblem(id=_text(row, "id"), source="humaneval_plus", prompt=prompt, tests=tests, stub=prompt)


def mbpp_plus(row: Row) -> CodeProblem:
    """The question is a sentence; the first asserts show the name and the arguments of the function."""
    examples = [str(line) for line in row.get("examples") or []]
    imports = "\n".join(str(line) for line in row.get("imports") or [])
    code = row.get("tests") or "\n".join(examples)
    if not code:
        raise Malformed("expected a test or a test_list, found neither")
    solution = parsed(_text(row, "solution"), "solution")
    defined = {node.name for node in ast.walk(solution) if isinstance(node, ast.FunctionDef)}
    shown = [name for line in examples or [code] for name in called(parsed(line, "test")) if name in defined]
    if not shown:
        raise Malformed(f"expected a test that calls a function of the solution ({sorted(defined)}), found none")
    prompt = f"{_text(row, 'prompt')}\nThe function has to pass:\n" + "\n".join(examples)
    tests = python_tests(code, shown[0], preamble=imports)
    return CodeProblem(id=_text(row, "id"), source="mbpp_plus", prompt=prompt, tests=tests)


def livecodebench(row: Row) -> CodeProblem:
    """Functional problems call a method with JSON arguments, one a line; the others read standard input."""
    cases = _cases(row.get("public_tests"), "public") + _cases(row.get("private_tests"), "private")
    kinds = {case.get("testtype") for case in cases}
    starter = str(row.get("starter") or "")
    prompt = _text(row, "prompt") + (f"\n\nStart from:\n{starter}" if starter else "\n\nRead stdin, write stdout.")
    tests: Tests
    if kinds == {"stdin"}:
        tests = StreamTests(cases=tuple((_text(case, "input"), str(case["output"])) for case in cases))
    elif kinds == {"functional"}:
        name = _json(row.get("metadata") or "{}", "metadata").get("func_name")
        if not name:
            raise Malformed("expected func_name in the metadata of a functional problem, found none")
        calls = tuple(
            Call(
                arguments=tuple(_json(line, "input") for line in _text(case, "input").split("\n") if line.strip()),
                expected=_json(case["output"], "output"),
            )
            for case in cases
        )
        entry = f"Solution.{name}" if "class Solution" in starter else str(name)
        tests = CallTests(entry=entry, calls=calls, as_json=True)
    else:
        raise Malformed(f"expected tests of type stdin or of type functional, found {sorted(map(str, kinds))}")
    return CodeProblem(id=_text(row, "id"), source="livecodebench", prompt=prompt, tests=tests)


def codeforces(row: Row) -> CodeProblem:
    """Scripts on standard input; a checker of the data set where more than one output is right."""
    if row.get("interaction"):
        raise Malformed("interactive problems cannot be judged here")
    if (row.get("input_mode") or "stdio") != "stdio":
        raise Malformed(f"expected input_mode stdio, found {row['input_mode']}")
    cases = row.get("tests")
    if not cases:
        raise Malformed("expected official tests, found none")
    if row.get("complete") is False:
        raise Malformed("the official tests are cut: a wrong program could pass")
    parts = [str(row.get("title") or ""), _text(row, "description")]
    for name in ("input_format", "output_format", "note"):
        parts += [f"{name.replace('_', ' ').capitalize()}: {row[name]}"] if row.get(name) else []
    parts += [
        f"Example input:\n{case['input']}\nExample output:\n{case['output']}" for case in row.get("examples") or []
    ]
    tests = StreamTests(
        cases=tuple((str(case["input"]), str(case["output"])) for case in cases),
        checker=str(row.get("checker") or ""),
        time_limit_s=float(row.get("time_limit") or 0),
        memory_limit_mb=int(row.get("memory_limit") or 0),
    )
    return CodeProblem(id=_text(row, "id"), source="codeforces", prompt="\n\n".join(filter(None, parts)), tests=tests)


def _text(row: Row, field: str) -> str:
    value = row.get(field)
    if value is None or isinstance(value, (list, dict)) or (value == "" and field != "input"):
        raise Malformed(f"expected text in {field}, found {value!r}")
    return str(value)


def _json(text: Any, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise Malformed(f"the {what} is no JSON: {error}") from error


def _cases(packed: Any, what: str) -> list[Row]:
    cases = packed
    if isinstance(packed, str) and packed.lstrip().startswith("["):
        cases = _json(packed, f"{what} tests")
    elif isinstance(packed, str) and packed:
        cases = _json(_unpacked(packed), f"{what} tests")
    if not isinstance(cases, list) or not all(isinstance(case, dict) and "output" in case for case in cases):
        raise Malformed(f"expected a list of {what} tests with input, output and testtype, found {str(packed)[:60]!r}")
    return list(cases)


class _TextUnpickler(pickle.Unpickler):
    """Reads a pickled text: any pickle that asks for a class or a function is refused, so nothing of it is run."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"expected a text, found a pickle of {module}.{name}")


def _unpacked(packed: str) -> str:
    try:
        engine = zlib.decompressobj()
        data = engine.decompress(base64.b64decode(packed), MAX_UNPACKED_BYTES)
        text = _TextUnpickler(io.BytesIO(data)).load()
    except (ValueError, zlib.error, pickle.UnpicklingError, EOFError, IndexError, KeyError) as error:
        raise Malformed(f"the packed tests cannot be read: {error}") from error
    if not isinstance(text, str):
        raise Malformed(f"expected a packed text, found a {type(text).__name__}")
    return text


SCHEMAS: dict[str, Schema] = {
    "humaneval_plus": Schema(
        columns={"id": "task_id", "prompt": "prompt", "entry": "entry_point", "tests": "test"}, parse=humaneval_plus
    ),
    "mbpp_plus": Schema(
        columns={
            "id": "task_id",
            "prompt": "prompt",
            "solution": "code",
            "tests": "test",
            "examples": "test_list",
            "imports": "test_imports",
        },
        parse=mbpp_plus,
    ),
    "livecodebench": Schema(
        columns={
            "id": "question_id",
            "prompt": "question_content",
            "starter": "starter_code",
            "public_tests": "public_test_cases",
            "private_tests": "private_test_cases",
            "metadata": "metadata",
        },
        parse=livecodebench,
    ),
    "codeforces": Schema(
        columns={
            "id": "id",
            "title": "title",
            "description": "description",
            "input_format": "input_format",
            "output_format": "output_format",
            "note": "note",
            "examples": "examples",
            "tests": "official_tests",
            "complete": "official_tests_complete",
            "checker": "generated_checker",
            "time_limit": "time_limit",
            "memory_limit": "memory_limit",
            "input_mode": "input_mode",
            "interaction": "interaction_format",
        },
        parse=codeforces,
    ),
}
