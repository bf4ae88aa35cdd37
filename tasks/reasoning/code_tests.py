"""The tests of a programming problem, in the three forms that data sets have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of the function: plain values only (numbers, strings, None and containers of them).

    Attributes:
        arguments: Positional arguments.
        expected: The right value; ignored where the tests have a reference solution.
        tolerance: Largest absolute difference of a float. 0: exact, with 1e-6 where only floats are expected.
    """

    arguments: tuple[Any, ...]
    expected: Any = None
    tolerance: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CallTests:
    """Calls whose values are compared outside the program's process; the strongest form.

    Attributes:
        entry: Name of the function, or `Class.method` of a class that is made without arguments.
        calls: What to call it with.
        as_json: Compare as JSON does: a tuple equals a list.
        preamble: Code that defines the reference solution.
        reference: Name of a right solution in `preamble` that gives the expected values; empty where the calls do.
    """

    entry: str
    calls: tuple[Call, ...]
    as_json: bool = False
    preamble: str = ""
    reference: str = ""


@dataclass(frozen=True, kw_only=True)
class CodeTests:
    """Test code of the data set, run in the judge's process on a stand-in that asks the program's process.

    Attributes:
        entry: Name of the function; the code finds the stand-in under this name and as `candidate`.
        code: Python that raises where the program is wrong and ends where it is right.
        preamble: Definitions that the code needs, run before it.
    """

    entry: str
    code: str
    preamble: str = ""


@dataclass(frozen=True, kw_only=True)
class StreamTests:
    """Texts for standard input with the texts that a right script prints.

    Attributes:
        cases: Input and expected output of each run.
        checker: Python script of the data set, called with the names of the files input, expected output and found
            output, that prints 1 for a right answer; empty: outputs are compared word by word.
        time_limit_s: Processor time of a case, if lower than the sandbox's; 0: the sandbox's.
        memory_limit_mb: Memory of a case, if lower than the sandbox's; 0: the sandbox's.
    """

    cases: tuple[tuple[str, str], ...]
    checker: str = ""
    time_limit_s: float = 0.0
    memory_limit_mb: int = 0


Tests = CallTests | CodeTests | StreamTests
