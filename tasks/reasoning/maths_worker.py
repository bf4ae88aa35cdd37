"""The process that judges one answer at a time with math-verify; whoever started it kills it when it takes too long.

Run by `tasks.reasoning.maths_verify` as `python -m tasks.reasoning.maths_worker FD MEMORY_GB`; imports no torch.
"""

from __future__ import annotations

import logging
import resource
import signal
import sys
from functools import lru_cache
from multiprocessing.connection import Connection
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

READY = "ready"
# math-verify reads its own box first; a bare number or formula is the second choice.
EXTRACTION = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
MAX_VOTE_LENGTH = 200
WARM_UP = ("\\frac{1}{2}", "$x + \\boxed{\\sqrt{2}}$")


def judge(gold: str, text: str) -> tuple[str, str | None]:
    """Status of the answer in `text`, and its vote: equal texts for equal answers as far as sympy writes them alike."""
    target = _parse(text)
    if not target:
        return "unparseable", None
    reference = parse_gold(gold)
    # The parent enforces the limit: math-verify's own is an alarm, which does not interrupt one long multiplication.
    if verify(list(reference), target, timeout_seconds=None, raise_on_error=True):
        return "correct", _vote(reference)
    if all(isinstance(found, str) for found in target):
        return "unparseable", None
    return "wrong", _vote(target)


@lru_cache(maxsize=4096)
def parse_gold(gold: str) -> tuple[Any, ...]:
    """The reference answer, read as it would be in a box of the policy's text."""
    return tuple(_parse(f"\\boxed{{{gold}}}"))


def is_readable(gold: str) -> bool:
    """Whether a reference answer is more to math-verify than a string."""
    return any(not isinstance(found, str) for found in parse_gold(gold))


def serve(connection: Connection) -> None:
    """Answer requests `(gold, text)`, or `(gold, None)` for the reading of a reference, until the other end closes."""
    # The first formula loads the grammar, which is no answer's own time.
    judge(*WARM_UP)
    connection.send((READY, None))
    while True:
        try:
            gold, text, limit_s = connection.recv()
        except EOFError:
            return
        _limit_cpu(limit_s)
        answer = _answer(gold, text)
        _limit_cpu(0.0)
        connection.send(answer)


def _answer(gold: str, text: str | None) -> tuple[str, str | None]:
    try:
        if text is None:
            return ("correct" if is_readable(gold) else "unparseable"), None
        return judge(gold, text)
    except MemoryError:
        return "crashed", None
    except Exception:  # sympy raises anything on what it cannot compare; the status says so and is counted
        return "unparseable", None


def _parse(text: str) -> list[Any]:
    found: list[Any] = parse(text, EXTRACTION, parsing_timeout=None, raise_on_error=True)
    return found


def _vote(parsed: list[Any] | tuple[Any, ...]) -> str:
    try:
        return str(parsed[0])[:MAX_VOTE_LENGTH]
    except ValueError:  # Python refuses to write integers of thousands of digits
        return str(parsed[-1])[:MAX_VOTE_LENGTH]


def _limit_cpu(limit_s: float) -> None:
    """Let the kernel end this process after `limit_s` of CPU time, 0 for never.

    With its default action the signal interrupts one long operation too, and it comes even when the parent is gone.
    """
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, limit_s)


def main() -> None:
    """Serve the connection of an inherited file descriptor."""
    descriptor, memory_gb = int(sys.argv[1]), float(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_gb * 2**30),) * 2)
    logging.disable(logging.CRITICAL)
    serve(Connection(descriptor))


if __name__ == "__main__":
    main()
