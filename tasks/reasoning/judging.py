"""A verifier at its word: as many verdicts as completions, of the kinds that it announced, in finite time."""

from __future__ import annotations

import queue
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from tasks.reasoning.verdict import Completion, Verdict

P = TypeVar("P")


class VerifierError(RuntimeError):
    """A verifier that hangs, or whose verdicts cannot be those of the completions."""


def judged(
    verify: Callable[[Sequence[P], Sequence[Completion]], list[Verdict]],
    problems: Sequence[P],
    completions: Sequence[Completion],
    *,
    name: str,
    failures: Collection[str],
    limit_s: float,
) -> list[Verdict]:
    """The verdicts of `verify`, which runs in a thread of its own so that it can be left behind.

    Args:
        verify: Of the task.
        problems: Of each completion.
        completions: To be judged.
        name: Of the task, for errors.
        failures: What may be wrong with a completion.
        limit_s: Seconds to wait.

    Raises:
        VerifierError: No answer in time, another number of verdicts, or a failure that was not announced.
    """
    verdicts = _within(lambda: verify(problems, completions), len(completions), name, limit_s)
    if len(verdicts) != len(completions):
        raise VerifierError(
            f"{name}: expected {len(completions)} verdicts of `verify`, one per completion, found {len(verdicts)}"
        )
    if unknown := {v.failure for v in verdicts if v.failure is not None and v.failure not in failures}:
        raise VerifierError(
            f"{name}: expected wrong completions to have one of the failures {sorted(failures)}, found "
            f"{sorted(unknown)}; add them to `failures` of the task"
        )
    return verdicts


def _within(call: Callable[[], list[Verdict]], number: int, name: str, limit_s: float) -> list[Verdict]:
    answers: queue.Queue[tuple[list[Verdict], BaseException | None]] = queue.Queue()

    def answer() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:
            answers.put(([], error))

    thread = threading.Thread(target=answer, daemon=True, name=f"verify {name}")
    thread.start()
    try:
        verdicts, error = answers.get(timeout=limit_s)
    except queue.Empty:
        frame = sys._current_frames().get(thread.ident or 0)
        place = "".join(traceback.format_stack(frame)[-3:]) if frame else ""
        raise VerifierError(
            f"{name}: expected verdicts on {number} completions within task.verify_limit_s={limit_s:g}, found `verify` "
            f"still at work; give it longer, or a limit of its own, at\n{place}"
        ) from None
    if error is not None:
        error.add_note(f"while {name} verified {number} completions")
        raise error
    return verdicts
