from __future__ import annotations

import base64
import json
import os
import pickle
import zlib
from pathlib import Path

import pytest

from tasks.reasoning.code_problems import CodeData, extract_program, load_problems, program_of
from tasks.reasoning.code_schemas import CodeProblem
from tasks.reasoning.code_tests import Call, CallTests, CodeTests, StreamTests
from tests.sandboxes import sandbox

ASSERTION = """
import numpy as np
from math import inf

def is_floats(x) -> bool:
    if isinstance(x, float):
        return True
    if isinstance(x, (list, tuple)):
        return all(isinstance(i, float) for i in x)
    if isinstance(x, np.ndarray):
        return x.dtype == np.float64 or x.dtype == np.float32
    return False

def assertion(out, exp, atol):
    exact_match = out == exp
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if not exact_match and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert exact_match
"""
CHECK = """
def check(candidate):
    inputs = [[3], [1], [-2]]
    results = [6, inf, [1.5]]
    for i, (inp, exp) in enumerate(zip(inputs, results)):
        assertion(candidate(*inp), exp, 0)
"""
REFERENCE = """
def helper(n):
    return n + n

def ref_func(n):
    return helper(n)

def check(candidate):
    inputs = [[3], [4]]
    for i, inp in enumerate(inputs):
        assertion(candidate(*inp), ref_func(*inp), 0.5)
"""
STUB = 'from typing import List\n\n\ndef double(n: int) -> int:\n    """ Double n\n    >>> double(1)\n    2\n    """\n'
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": STUB,
    "canonical_solution": "    return 2 * n\n",
    "entry_point": "double",
    "test": ASSERTION + REFERENCE,
}
MBPP = {
    "task_id": 2,
    "code": "def similar(a, b):\n    return tuple(set(a) & set(b))",
    "prompt": "Write a function to find the shared elements.",
    "source_file": "x",
    "test_imports": ["import math"],
    "test_list": ["assert set(similar((3, 4), (4, 5))) == set((4,))"],
    "test": ASSERTION + "inputs = [[(3, 4), (4, 5)]]\nresults = [(4,)]\n"
    "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(similar(*inp), exp, 0)\n",
}
PUBLIC = json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}])
PRIVATE = [{"input": "[1, 2]\n5", "output": "[5, 7]", "testtype": "functional"}]
LIVECODEBENCH = {
    "question_id": "abc_a",
    "question_content": "Add two numbers.",
    "starter_code": "",
    "public_test_cases": PUBLIC,
    "private_test_cases": "[]",
    "metadata": "{}",
}
CODEFORCES = {
    "id": "1/A",
    "title": "Theatre",
    "description": "Add.",
    "input_format": "Two numbers.",
    "output_format": "A number.",
    "note": None,
    "interaction_format": None,
    "examples": [{"input": "1 2", "output": "3"}],
    "official_tests": [{"input": "1 2", "output": "3"}, {"input": "4 5", "output": "9"}],
    "official_tests_complete": True,
    "generated_checker": None,
    "time_limit": 1.5,
    "memory_limit": 256.0,
    "input_mode": "stdio",
}


def read(tmp_path: Path, schema: str, *rows: object, **settings: object) -> tuple[CodeProblem, ...]:
    file = tmp_path / f"{schema}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_problems(CodeData(schema=schema, source=str(file), **settings)).problems  # type: ignore[arg-type]


def packed(cases: object) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def test_evalplus_loops_become_calls(tmp_path: Path) -> None:
    (problem,) = read(tmp_path, "humaneval_plus", HUMANEVAL | {"test": ASSERTION + CHECK})
    assert problem.tests == CallTests(
        entry="double",
        calls=(
            Call(arguments=(3,), expected=6),
            Call(arguments=(1,), expected=float("inf")),
            Call(arguments=(-2,), expected=[1.5]),
        ),
    )


def test_a_reference_solution_is_kept_without_numpy(tmp_path: Path) -> None:
    (problem,) = read(tmp_path, "humaneval_plus", HUMANEVAL)
    assert isinstance(problem.tests, CallTests)
    assert (problem.tests.reference, "numpy" in problem.tests.preamble) == ("ref_func", False)
    box = sandbox()
    for completion, status in (
        ("    return n + n", "passed"),
        ("```python\ndef double(n: List):\n    return n * 2.0\n```", "passed"),
        # 0.6 is beyond the tolerance .5 + 1e-7 * 6.
        ("    return 2 * n + 0.6", "failed"),
    ):
        program = program_of(problem, completion)
        assert box.verdict(program, problem.tests).status == status


def test_unknown_test_code_is_kept_whole(tmp_path: Path) -> None:
    strange = ASSERTION.replace("assert exact_match", "assert set(out) == set(exp)")
    rows = [HUMANEVAL | {"test": code} for code in (strange + CHECK, "def check(f):\n    assert f(1) > 1")]
    for problem in read(tmp_path, "humaneval_plus", *rows):
        assert isinstance(problem.tests, CodeTests)
        assert problem.tests.code.endswith("\ncheck(double)\n")
        assert problem.tests.preamble == STUB
    assert sandbox().verdict("def double(n): return 2 * n", problem.tests).passed


def test_mbpp_shows_its_examples_and_finds_the_function(tmp_path: Path) -> None:
    plain = MBPP | {"test": None, "test_list": ["assert similar((1,), (1,)) == (1,)", "assert similar((), ()) == ()"]}
    whole, short = read(tmp_path, "mbpp_plus", MBPP, plain)
    assert (whole.id, whole.entry) == ("2", "similar")
    assert whole.prompt.endswith("\nassert set(similar((3, 4), (4, 5))) == set((4,))")
    assert whole.tests == CallTests(entry="similar", calls=(Call(arguments=((3, 4), (4, 5)), expected=(4,)),))
    assert isinstance(short.tests, CallTests)
    assert [call.expected for call in short.tests.calls] == [(1,), ()]
    asserts = MBPP | {"test": None}
    (kept,) = read(tmp_path, "mbpp_plus", asserts)
    assert isinstance(kept.tests, CodeTests)
    assert sandbox().verdict(MBPP["code"], kept.tests).passed  # type: ignore[arg-type]


def test_livecodebench_has_scripts_and_methods(tmp_path: Path) -> None:
    functional = LIVECODEBENCH | {
        "starter_code": "class Solution:\n    def shift(self, xs: List[int], k: int) -> List[int]:\n        ",
        "public_test_cases": "[]",
        "private_test_cases": packed(PRIVATE),
        "metadata": '{"func_name": "shift"}',
    }
    script, method = read(tmp_path, "livecodebench", LIVECODEBENCH, functional)
    assert script.tests == StreamTests(cases=(("1 2\n", "3\n"),))
    assert method.tests == CallTests(
        entry="Solution.shift", calls=(Call(arguments=([1, 2], 5), expected=[5, 7]),), as_json=True
    )
    assert "Start from:\nclass Solution" in method.prompt


def test_codeforces_keeps_limits_and_checker(tmp_path: Path) -> None:
    (problem,) = read(tmp_path, "codeforces", CODEFORCES | {"generated_checker": "print(1)"})
    assert problem.tests == StreamTests(
        cases=(("1 2", "3"), ("4 5", "9")), checker="print(1)", time_limit_s=1.5, memory_limit_mb=256
    )
    assert "Example input:\n1 2" in problem.prompt


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("exit 7",)


@pytest.mark.parametrize(
    ("schema", "row", "reason"),
    [
        ("humaneval_plus", HUMANEVAL | {"entry_point": None}, "expected text in entry, found None"),
        ("humaneval_plus", HUMANEVAL | {"test": "def check(:"}, "the test is no Python"),
        ("humaneval_plus", HUMANEVAL | {"test": ASSERTION + CHECK.replace("[1], ", "")}, "as many results as inputs"),
        ("humaneval_plus", [1], "expected a row of named columns"),
        ("mbpp_plus", MBPP | {"test_list": ["assert other(1) == 1"]}, "a test that calls a function of the solution"),
        ("mbpp_plus", MBPP | {"test_list": [], "test": None}, "found neither"),
        ("livecodebench", LIVECODEBENCH | {"private_test_cases": "xyz"}, "packed tests cannot be read"),
        (
            "livecodebench",
            LIVECODEBENCH | {"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(Bomb()))).decode()},
            "found a pickle of posix.system",
        ),
        ("livecodebench", LIVECODEBENCH | {"private_test_cases": packed(PRIVATE)}, "stdin or of type functional"),
        ("livecodebench", LIVECODEBENCH | {"public_test_cases": packed(PRIVATE)}, "func_name"),
        ("codeforces", CODEFORCES | {"interaction_format": "Ask."}, "interactive"),
        ("codeforces", CODEFORCES | {"input_mode": "file"}, "found file"),
        ("codeforces", CODEFORCES | {"official_tests": []}, "expected official tests"),
        ("codeforces", CODEFORCES | {"official_tests_complete": False}, "are cut"),
        ("codeforces", CODEFORCES | {"time_limit": "soon"}, "a value of the wrong kind"),
    ],
)
def test_a_malformed_row_is_listed_with_its_line(tmp_path: Path, schema: str, row: object, reason: str) -> None:
    good = {"humaneval_plus": HUMANEVAL, "mbpp_plus": MBPP, "livecodebench": LIVECODEBENCH, "codeforces": CODEFORCES}
    file = tmp_path / "rows.jsonl"
    broken = LIVECODEBENCH | {"private_test_cases": "[]"} if schema == "livecodebench" else good[schema]
    if "func_name" in reason:
        row = dict(row) | {"private_test_cases": "[]"}  # type: ignore[call-overload]
    file.write_text(json.dumps(broken) + "\n\n" + json.dumps(row) + "\nno json\n")
    loaded = load_problems(CodeData(schema=schema, source=str(file)))
    assert len(loaded.problems) == 1
    assert [bad.place for bad in loaded.bad_rows] == ["rows.jsonl:3", "rows.jsonl:4"]
    assert reason in loaded.bad_rows[0].reason
    assert loaded.summary().startswith("1 problems, 2 rows left out\n  rows.jsonl:3: ")


def test_columns_can_be_renamed(tmp_path: Path) -> None:
    row = {key: value for key, value in HUMANEVAL.items() if key != "test"} | {"hidden": HUMANEVAL["test"]}
    (problem,) = read(tmp_path, "humaneval_plus", row, columns={"tests": "hidden"})
    assert problem.entry == "double"
    with pytest.raises(ValueError, match=r"(?s)found 0 problems, 1 rows left out.*no column \['test'\]") as refusal:
        read(tmp_path, "humaneval_plus", row)
    assert "expected text in tests" in str(refusal.value)
    with pytest.raises(ValueError, match=r"data.columns: expected fields of humaneval_plus .*found test"):
        CodeData(schema="humaneval_plus", source="x", columns={"test": "hidden"})
    with pytest.raises(ValueError, match=r"data.schema: expected one of humaneval_plus, .*found 'apps'"):
        CodeData(schema="apps", source="x")


def test_a_folder_of_parquet_is_read(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist([CODEFORCES, CODEFORCES | {"id": "1/B"}]), tmp_path / "test-0.parquet")
    loaded = load_problems(CodeData(schema="codeforces", source=str(tmp_path)))
    assert [problem.id for problem in loaded.problems] == ["1/A", "1/B"]
    read(tmp_path, "codeforces", CODEFORCES | {"id": "2/A"})
    for split, ids in (("test", ["1/A", "1/B"]), ("codeforces", ["2/A"]), ("train", ["2/A", "1/A", "1/B"])):
        loaded = load_problems(CodeData(schema="codeforces", source=str(tmp_path), split=split))
        assert [problem.id for problem in loaded.problems] == ids


def test_a_missing_source_says_what_it_may_be(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a file, a folder or ORGANISATION/DATASET"):
        load_problems(CodeData(schema="codeforces", source=str(tmp_path / "none")))
    with pytest.raises(FileNotFoundError, match=r"expected \.jsonl or \.parquet files"):
        load_problems(CodeData(schema="codeforces", source=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match=r"cannot get nobody/nothing .* from the hub"):
        load_problems(CodeData(schema="codeforces", source="nobody/nothing"))


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("Text\n```python\na = 1\n```\nmore", "a = 1\n"),
        ("```python\na = 1\n```\nBetter:\n```py\na = 2\n```", "a = 2\n"),
        ("```python\na = 1\n```\nRun it:\n```bash\npython a.py\n```", "a = 1\n"),
        ("```\na = 1\n```", "a = 1\n"),
        ("```python\na = 1", "a = 1"),
        ("  ```python\n  a = 1\n  ```", "  a = 1\n"),
        ("def f(x):\n    return x", "def f(x):\n    return x"),
        ("import sys\nprint(1)", "import sys\nprint(1)"),
        ("", None),
        ("The answer is 7.", None),
        ("```bash\nls\n```", None),
        ("```python\n```", None),
        ("I would define f as follows, for each x: return x.", None),
    ],
)
def test_extraction(completion: str, program: str | None) -> None:
    assert extract_program(completion) == program


def test_a_stub_is_continued_or_replaced(tmp_path: Path) -> None:
    (problem,) = read(tmp_path, "humaneval_plus", HUMANEVAL)
    assert program_of(problem, "    return 1") == STUB + "    return 1"
    assert (
        program_of(problem, "```python\ndef double(n):\n    return 1\n```") == STUB + "\ndef double(n):\n    return 1\n"
    )
    assert program_of(problem, "```python\n    return 1\n```") == STUB + "    return 1\n"
    assert program_of(problem, "I do not know.") is None
    assert program_of(problem, "```python\ndef other(n): pass\n```") is None
