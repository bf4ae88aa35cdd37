"""Answers judged by math-verify in processes of their own: one that hangs costs its time limit and nothing else.

math-verify limits its time by an alarm signal, which works in no thread and interrupts no single long operation of
sympy (`9^{9^{9^9}}` in a box is enough). Here every worker is a process that is killed and replaced.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import IO, Literal, cast, get_args

Status = Literal["correct", "wrong", "unparseable", "timeout", "crashed"]
STATUSES: tuple[Status, ...] = get_args(Status)

WORKER_MODULE = "tasks.reasoning.maths_worker"
# Importing sympy takes seconds, more on a busy machine; it is not part of an answer's limit.
START_LIMIT_S = 300.0
MAX_ATTEMPTS = 2
CLOCK_FACTOR = 10
# LaTeX allows white space before the brace, math-verify does not.
_BOX = re.compile(r"\\boxed\s*\{")


@dataclass(frozen=True)
class Check:
    """What became of one answer.

    Attributes:
        status: `correct`; `wrong`; `unparseable`, no answer found, or one that cannot be read or compared; `timeout`,
            still computing at the limit; `crashed`, out of memory, or its process died twice.
        answer: The answer as sympy writes it (the reference where correct), None where none was reached.
    """

    status: Status
    answer: str | None = None


@dataclass(frozen=True)
class _Question:
    gold: str
    text: str | None


class AnswerPool:
    """Worker processes that open on first use, are replaced when they hang or die, and end with `close`.

    Copies and pickles are new pools of the same settings.
    """

    def __init__(self, *, num_workers: int = 2, timeout_s: float = 5.0, memory_gb: float = 4.0) -> None:
        """Keep the settings; nothing starts yet.

        Args:
            num_workers: Processes. Too few: a slow batch waits behind hanging answers.
            timeout_s: CPU seconds of one answer, so that a busy machine loses no honest ones; ten times as many by
                the clock. Too low: hard answers are lost; too high: every hanging one delays the update.
            memory_gb: Address space of a worker; an answer that needs more is `crashed`.

        Raises:
            ValueError: A setting is not positive.
        """
        self._workers: list[_Worker] = []
        if num_workers < 1 or min(timeout_s, memory_gb) <= 0:
            raise ValueError(
                "answer pool: expected num_workers of at least 1 and a positive timeout_s and memory_gb, found "
                f"{num_workers}, {timeout_s} and {memory_gb}"
            )
        self.num_workers, self.timeout_s, self.memory_gb = num_workers, timeout_s, memory_gb

    def __reduce__(self) -> tuple[object, tuple[int, float, float]]:
        return _new_pool, (self.num_workers, self.timeout_s, self.memory_gb)

    def __del__(self) -> None:
        self.close()

    @property
    def process_ids(self) -> list[int]:
        """Of the workers that run."""
        return [worker.process.pid for worker in self._workers]

    def check(self, golds: Sequence[str], texts: Sequence[str], *, boxed: bool = True) -> list[Check]:
        """Judge each text against the reference at its place; equal questions are judged once.

        Args:
            golds: Reference answers, as they would stand in a box.
            texts: Completions; the last box counts.
            boxed: Whether a text without a box is `unparseable`; else its last number or formula counts.
        """
        questions = []
        for gold, text in zip(golds, texts, strict=True):
            *_, last = [None, *_BOX.finditer(text)]
            if last is not None:
                text = "\\boxed{" + text[last.end() :]
            questions.append(_Question(gold, "" if boxed and last is None else text))
        return self._judge(questions)

    def unreadable(self, golds: Sequence[str]) -> list[int]:
        """Indices of the reference answers that math-verify cannot read within the limit."""
        checks = self._judge([_Question(gold, None) for gold in golds])
        return [i for i, check in enumerate(checks) if check.status != "correct"]

    def close(self) -> None:
        """End the workers; the next `check` starts new ones."""
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def _judge(self, questions: Sequence[_Question]) -> list[Check]:
        answers: dict[_Question, Check] = {q: Check("unparseable") for q in questions if not (q.text or q.text is None)}
        waiting = deque(dict.fromkeys(q for q in questions if q not in answers))
        attempts = dict.fromkeys(waiting, 0)
        try:
            while len(answers) < len(set(questions)):
                self._hand_out(waiting, attempts)
                for worker in self._ready():
                    self._receive(worker, answers, waiting, attempts)
        except BaseException:
            # A question that is still in a worker would be answered to the next batch.
            self.close()
            raise
        return [answers[question] for question in questions]

    def _hand_out(self, waiting: deque[_Question], attempts: dict[_Question, int]) -> None:
        wanted = min(self.num_workers, len(waiting) + sum(w.question is not None for w in self._workers))
        while len(self._workers) < wanted:
            self._workers.append(_Worker(self.memory_gb))
        for worker in self._workers:
            if waiting and worker.is_ready and worker.question is None:
                question = waiting.popleft()
                attempts[question] += 1
                worker.ask(question, self.timeout_s)

    def _ready(self) -> list[_Worker]:
        """Workers that answered, died or passed their limit."""
        pending = [w for w in self._workers if w.question is not None or not w.is_ready]
        now = time.monotonic()
        wait([w.connection for w in pending], max(0.0, min(w.deadline for w in pending) - now))
        return [w for w in pending if w.connection.poll() or time.monotonic() >= w.deadline]

    def _receive(
        self,
        worker: _Worker,
        answers: dict[_Question, Check],
        waiting: deque[_Question],
        attempts: dict[_Question, int],
    ) -> None:
        question, reply = worker.question, worker.reply()
        if question is None:
            if reply is None:
                raise RuntimeError(worker.start_failure())
            worker.is_ready = True
            return
        if reply is not None:
            answers[question] = reply
            return
        self._workers.remove(worker)
        worker.kill()
        if worker.is_late or worker.process.returncode == -signal.SIGPROF:
            answers[question] = Check("timeout")
        elif attempts[question] < MAX_ATTEMPTS:
            waiting.append(question)
        else:
            answers[question] = Check("crashed")


@dataclass(eq=False)
class _Worker:
    """One process and the question that it works on."""

    memory_gb: float
    question: _Question | None = None
    is_ready: bool = False
    is_late: bool = False
    deadline: float = 0.0
    process: subprocess.Popen[bytes] = field(init=False)
    connection: Connection = field(init=False)
    errors: IO[bytes] = field(init=False)

    def __post_init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", WORKER_MODULE, str(theirs.fileno()), str(self.memory_gb)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self.connection = Connection(ours.detach())
        self.deadline = time.monotonic() + START_LIMIT_S

    def ask(self, question: _Question, timeout_s: float) -> None:
        """Hand over a question; its time runs from here."""
        self.question, self.deadline = question, time.monotonic() + CLOCK_FACTOR * timeout_s
        # A worker that has died is seen by `reply`, as one that dies while it computes.
        with contextlib.suppress(OSError):
            self.connection.send((question.gold, question.text, timeout_s))

    def reply(self) -> Check | None:
        """What came back; None where the process died or is late (`is_late`)."""
        try:
            if not self.connection.poll():
                self.is_late = True
                return None
            status, answer = self.connection.recv()
        except (EOFError, OSError):
            return None
        self.question = None
        return Check(cast(Status, status), answer)

    def start_failure(self) -> str:
        """Why the process did not come up."""
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace").strip().splitlines()[-3:]
        return (
            f"answer pool: expected a worker within {START_LIMIT_S:.0f} s, found exit code {self.process.poll()} and "
            f"{' | '.join(said) or 'no message'}; is math-verify installed (pip install math-verify)?"
        )

    def kill(self) -> None:
        """End the process and forget it."""
        self.process.kill()
        self.process.wait()
        self.connection.close()
        self.errors.close()


def _new_pool(num_workers: int, timeout_s: float, memory_gb: float) -> AnswerPool:
    return AnswerPool(num_workers=num_workers, timeout_s=timeout_s, memory_gb=memory_gb)
