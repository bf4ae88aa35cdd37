from __future__ import annotations

import math
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.reasoning import sandbox as sandbox_module
from tasks.reasoning import sandbox_isolation
from tasks.reasoning.code_tests import Call, CallTests, CodeTests, StreamTests
from tasks.reasoning.sandbox import Sandbox, SandboxFailure
from tasks.reasoning.sandbox_inside import Unreadable, decode, encode, matches
from tasks.reasoning.sandbox_isolation import Isolation, IsolationUnavailable, Limits
from tasks.reasoning.sandbox_seccomp import seccomp_filter
from tests.sandboxes import QUICK, sandbox

ADD = CallTests(
    entry="add", calls=(Call(arguments=(1, 2), expected=3), Call(arguments=([1.5], [2]), expected=[1.5, 2]))
)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
hashable = st.recursive(leaves, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5)
plain = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.sets(hashable, max_size=3)
        | st.dictionaries(hashable, inner, max_size=3)
    ),
    max_leaves=10,
)


@given(plain)
@settings(max_examples=200, deadline=None)
def test_plain_values_survive_the_pipe(value: object) -> None:
    import json

    found = decode(json.loads(json.dumps(encode(value))))
    assert repr(found) == repr(value) or found == value
    assert type(found) is type(value)
    assert matches(found, value, 0.0)


def test_long_integers_do_not_meet_the_digit_limit() -> None:
    assert decode(encode(7 * 10**10000)) == 7 * 10**10000


@pytest.mark.parametrize(
    "data", [{}, {"int": 5}, {"set": [[1]]}, {"dict": [1]}, {"other": 1}, {"int": "g"}, {"a": 1, "b": 2}]
)
def test_malformed_data_is_unreadable(data: object) -> None:
    with pytest.raises(Unreadable):
        decode(data)


@pytest.mark.parametrize(
    ("found", "expected", "tolerance", "right"),
    [
        (3, 3.0, 0, True),
        (True, 1, 0, True),
        ([1, 2], (1, 2), 0, False),
        ({1, 2}, frozenset({1, 2}), 0, True),
        (math.nan, math.nan, 0, True),
        (math.nan, 1.0, 1, False),
        (math.inf, math.inf, 1e-6, True),
        (5.0, math.inf, 1e-6, False),
        (math.inf, 5.0, 1e-6, False),
        # 1e-6 + 1e-7 * 2 = 1.2e-6 is the largest difference from 2.
        (2.0 + 1.1e-6, 2.0, 1e-6, True),
        (2.0 + 1.3e-6, 2.0, 1e-6, False),
        (2.0 + 1e-9, 2.0, 0, False),
        # numpy would broadcast these.
        (5.0, [], 1e-6, False),
        ([1.0], [], 1e-6, False),
        ([1.0], [1.0, 1.0], 1e-6, False),
        ([[1.0]], [[1.0 + 1e-9]], 1e-6, True),
        ({"a": 1.0}, {"a": 1.0 + 1e-9}, 1e-6, True),
        ("a", "b", 1e-6, False),
        (None, 0, 1e-6, False),
        (10**400, 1.5, 1e-6, False),
        ({"a": 1}, {"b": 1}, 0, False),
    ],
)
def test_comparison(found: object, expected: object, tolerance: float, right: bool) -> None:
    assert matches(found, expected, tolerance) is right


def test_programs_are_judged_in_order() -> None:
    programs = ["def add(a, b): return a + b", "def add(a, b): return 3", "def add(a, b): raise KeyError", "def add(:"]
    verdicts = sandbox(workers=2).verdicts([(program, ADD) for program in programs])
    assert [(verdict.status, verdict.num_passed) for verdict in verdicts] == [
        ("passed", 2),
        ("failed", 1),
        ("error", 0),
        ("error", 0),
    ]


def test_errors_are_said_in_one_line() -> None:
    box = sandbox()
    assert box.verdict("def f(a, b): return 1", ADD).detail == "NameError: the program does not define add"
    assert box.verdict("def add(a, b): raise KeyError(a)", ADD).detail == "KeyError: 1"
    assert "invalid syntax" in box.verdict("def add(:", ADD).detail


def test_a_method_is_called_on_a_new_object() -> None:
    tests = CallTests(entry="Solution.twice", calls=(Call(arguments=(4,), expected=[8]),), as_json=True)
    assert sandbox().verdict("class Solution:\n    def twice(self, x): return (2 * x,)", tests).passed
    exact = CallTests(entry=tests.entry, calls=tests.calls)
    assert not sandbox().verdict("class Solution:\n    def twice(self, x): return (2 * x,)", exact).passed


def test_a_reference_gives_the_expected_values_and_keeps_its_arguments() -> None:
    preamble = "def right(xs):\n    xs.sort()\n    return xs[0]"
    calls = (Call(arguments=([3, 1, 2],)),)
    tests = CallTests(entry="f", calls=calls, preamble=preamble, reference="right")
    assert sandbox().verdict("def f(xs): return min(xs) if xs == [3, 1, 2] else 0", tests).passed
    assert sandbox().verdict("def f(xs): return max(xs)", tests).status == "failed"
    broken = CallTests(entry="f", calls=calls, preamble="def right(xs): return 1 / 0", reference="right")
    assert sandbox().verdict("def f(xs): return min(xs)", broken).status == "invalid_test"


def test_test_code_runs_beside_the_program() -> None:
    code = """
try:
    f(0)
    raise RuntimeError("expected an error")
except ZeroDivisionError:
    pass
assert abs(f(4) - helper()) < 1e-9
print("noise")
"""
    tests = CodeTests(entry="f", code=code, preamble="def helper(): return 0.25\ndef f(x): raise SystemError")
    assert sandbox().verdict("def f(x): print('noise'); return 1 / x", tests).passed
    assert sandbox().verdict("def f(x): return 1", tests).detail == "RuntimeError: expected an error"
    assert sandbox().verdict("def f(x): return 1 / (x - 4)", tests).status == "failed"


@pytest.mark.parametrize("code", ["", "import nothing_of_the_kind", "assert (", "f(object())", "1 / 0\nf(1)"])
def test_broken_tests_are_not_the_programs_fault(code: str) -> None:
    tests = CodeTests(entry="f", code=code)
    assert sandbox().verdict("def f(x): return 1", tests).status == "invalid_test"


def test_packages_can_be_lent_to_programs_and_are_there_for_tests() -> None:
    tests = CodeTests(entry="f", code="import numpy as np\nassert np.allclose(f(2), [1.0, 1.0])")
    roomy = Limits(memory_mb=1024)
    lending = sandbox(limits=roomy, packages=("numpy",))
    assert lending.verdict("import numpy\ndef f(n): return numpy.ones(n)", tests).passed
    assert sandbox(limits=roomy).verdict("import numpy\ndef f(n): return numpy.ones(n)", tests).status == "error"
    assert sandbox(limits=roomy).verdict("def f(n): return [1.0] * n", tests).passed


def test_scripts_are_compared_word_by_word() -> None:
    tests = StreamTests(cases=(("1 2\n", "3\n"), ("4 5", "9")))
    box = sandbox()
    assert box.verdict("print(' ', sum(map(int, input().split())), end='  ')", tests).num_passed == 2
    assert box.verdict("import sys\nprint(3); exit()", tests).detail == "case 1: the output is not the expected one"
    assert box.verdict("print('3 9')", StreamTests(cases=(("", "3\n9"),))).status == "failed"
    assert box.verdict("print(1)", StreamTests(cases=())).status == "invalid_test"


def test_a_checker_sees_input_expected_and_found() -> None:
    checker = """
import sys
given, expected, found = (open(name).read().split() for name in sys.argv[1:4])
print(int(sorted(found) == sorted(expected) and len(given) == 2))
"""
    tests = StreamTests(cases=(("1 2", "1 2"),), checker=checker)
    assert sandbox().verdict("print(*reversed(input().split()))", tests).passed
    assert sandbox().verdict("print(1, 1)", tests).detail == "case 0: checker: wrong"


def test_the_time_limit_of_a_problem_is_its_own_times_the_factor() -> None:
    tests = StreamTests(cases=(("", "1"),), time_limit_s=1.0, memory_limit_mb=64)
    slow = "import time\nwhile time.process_time() < 1.6: pass\nprint(1)"
    assert sandbox(limits=Limits(cpu_s=9)).verdict(slow, tests).status == "timeout"
    assert sandbox(limits=Limits(cpu_s=9), time_factor=3.0).verdict(slow, tests).passed
    assert sandbox().verdict("a = bytearray(2**27)\nprint(1)", tests).status == "memory"


@pytest.mark.parametrize("tests", [ADD, StreamTests(cases=(("", ""),))], ids=["function", "script"])
def test_a_sandbox_that_does_not_start_is_no_verdict(monkeypatch: pytest.MonkeyPatch, tests: CallTests) -> None:
    box = sandbox()
    monkeypatch.setattr(sandbox_module, "_inside", lambda: ("-c", "raise SystemExit('no room')"))
    with pytest.raises(SandboxFailure, match=r"did not start \(code 1\): no room"):
        box.verdict("def add(a, b): return a + b", tests)


def test_without_isolation_programs_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_isolation, "isolation", lambda: Isolation(kind="none", problems=("no bwrap",)))
    with pytest.raises(IsolationUnavailable, match=r"no bwrap.*apt-get install bubblewrap.*allow_unsafe") as refusal:
        Sandbox().verdicts([("def add(a, b): return a + b", ADD)])
    assert "SYS_ADMIN" in str(refusal.value)


def test_the_refusal_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = sandbox_isolation.isolation.__wrapped__()
    assert found.kind == "none"
    assert "`bwrap` is not on the PATH" in "; ".join(found.problems)


def test_unsafe_runs_keep_limits_and_warn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_isolation, "isolation", lambda: Isolation(kind="none", problems=("no bwrap",)))
    sandbox_isolation._warn.cache_clear()
    unsafe = Sandbox(limits=QUICK, allow_unsafe=True)
    with pytest.warns(RuntimeWarning, match="WITHOUT ISOLATION"):
        assert unsafe.verdict("def add(a, b): return a + b", ADD).passed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert unsafe.verdict("def add(a, b): return 0", ADD).status == "failed"
        assert unsafe.verdict("a = 'a' * 10**10", ADD).status == "memory"
        assert unsafe.verdict("while True: pass", ADD).status == "timeout"


def test_a_machine_without_known_system_calls_has_no_filter() -> None:
    assert seccomp_filter("riscv64") is None
    # Eight bytes an instruction; the first loads the architecture, which ends up compared with AUDIT_ARCH_X86_64.
    assert seccomp_filter("x86_64")[:16].hex() == "2000000004000000" + "150001003e0000c0"


@pytest.mark.parametrize("limits", [{"cpu_s": 0}, {"memory_mb": 10}, {"num_threads": 0}, {"output_mb": -1}])
def test_impossible_limits_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"limits.{next(iter(limits))}"):
        Limits(**limits)
    with pytest.raises(ValueError, match="workers"):
        Sandbox(workers=0)
