"""Verdicts on untrusted Python programs that the program cannot write itself.

The program and its tests never share a process. Functions are called over a pipe by a judge in a second sandbox;
scripts read standard input and print. What comes back is plain data that is compared with the expected values where the
program has no reach: leaving early, replacing builtins, an `__eq__` that is always true, reading memory or forging a
report all give an answer that is compared like any other. docs/code.md has the threat
model.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal, get_args

from tasks.reasoning import sandbox_inside
from tasks.reasoning.code_tests import CallTests, CodeTests, StreamTests, Tests
from tasks.reasoning.sandbox_isolation import Isolation, Limits, kill, require_isolation

Status = Literal["passed", "failed", "error", "timeout", "memory", "output", "killed", "no_code", "invalid_test"]
STATUSES: tuple[Status, ...] = get_args(Status)

# The interpreter needs this much beyond what problems grant to a program.
INTERPRETER_MB = 64
JUDGE_LIMITS = Limits(cpu_s=60, memory_mb=2048, output_mb=64, scratch_mb=64)
_MAX_COMPLAINT = 4000
# A worker whose pipe has closed is about to end; more means that it only closed the pipe.
_LAST_WORDS_S = 2.0


class SandboxFailure(RuntimeError):  # noqa: N818
    """The sandbox itself did not start; says nothing about the program."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is known about one program.

    Attributes:
        status: `passed`; `failed` (a wrong answer); `error` (an exception, or it ended early); `timeout`, `memory`,
            `output` (a limit); `killed` (a signal); `no_code` (the completion holds no program); `invalid_test` (the
            tests are broken, whatever the program does).
        detail: One line for people; written in part by the program, so nothing may depend on it.
        num_passed: Calls or cases that were right before the first that was not; 0 for test code.
    """

    status: Status
    detail: str = ""
    num_passed: int = 0

    @property
    def passed(self) -> bool:
        """Whether the program passed every test."""
        return self.status == "passed"


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """Judges programs, several at a time; each in processes of its own that end with the verdict.

    Attributes:
        limits: What a program may use; for functions all calls together, for scripts each case.
        workers: Programs at the same time. More than the cores: programs time out for want of a core.
        allow_unsafe: Run without isolation where there is none. True: programs can do whatever this user can.
        packages: Installed packages that programs may import besides the standard library, such as `numpy`.
        time_factor: Times the time limit of a problem, which is meant for compiled languages.
    """

    limits: Limits = field(default_factory=Limits)
    workers: int = 2
    allow_unsafe: bool = False
    packages: tuple[str, ...] = ()
    time_factor: float = 1.0

    def __post_init__(self) -> None:
        """Refuse sizes that judge nothing."""
        if self.workers < 1 or self.time_factor <= 0:
            raise ValueError(
                "sandbox: expected workers of at least 1 and a time_factor above 0, found "
                f"{self.workers} and {self.time_factor}"
            )

    def verdicts(self, jobs: Sequence[tuple[str, Tests]]) -> list[Verdict]:
        """The verdict on each pair of program and tests, in order.

        Raises:
            IsolationUnavailable: Programs cannot be isolated here and `allow_unsafe` is off.
            SandboxFailure: A process of the sandbox did not start.
        """
        require_isolation(self.allow_unsafe)
        with ThreadPoolExecutor(max_workers=self.workers, thread_name_prefix="sandbox") as pool:
            return list(pool.map(lambda job: self.verdict(*job), jobs))

    def verdict(self, program: str, tests: Tests) -> Verdict:
        """The verdict on one program; raises as `verdicts` does."""
        shut = require_isolation(self.allow_unsafe)
        if isinstance(tests, StreamTests):
            return self._judge_script(shut, program, tests)
        return self._judge_function(shut, program, tests)

    def _judge_function(self, shut: Isolation, program: str, tests: CallTests | CodeTests) -> Verdict:
        with ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(4)]
            plan_file, verdict_file, worker_errors, judge_errors = files
            (worker_in, to_worker), (from_worker, worker_out) = os.pipe(), os.pipe()
            ends = (worker_in, to_worker, from_worker, worker_out)
            try:
                plan = _plan(tests) | {"program": program, "max_reply": self.limits.output_bytes}
                plan_file.write(json.dumps(plan | {"to_worker": to_worker, "from_worker": from_worker}).encode())
                plan_file.seek(0)
                worker = shut.start(
                    [*_inside(), "worker"],
                    self.limits,
                    stdin=worker_in,
                    stdout=worker_out,
                    stderr=worker_errors,
                    packages=self.packages,
                )
                stack.callback(kill, worker)
                judge = shut.start(
                    [*_inside(), "judge"],
                    JUDGE_LIMITS,
                    stdin=plan_file,
                    stdout=verdict_file,
                    stderr=judge_errors,
                    pass_fds=(to_worker, from_worker),
                    packages=("numpy",) if isinstance(tests, CodeTests) and "numpy" in tests.code else (),
                )
                stack.callback(kill, judge)
            finally:
                for end in ends:
                    os.close(end)
            try:
                judge.wait(timeout=self.limits.wall_s)
            except subprocess.TimeoutExpired:
                return Verdict(status="timeout", detail=f"more than {self.limits.wall_s} s")
            return self._function_verdict(worker, judge, verdict_file, worker_errors, judge_errors)

    def _function_verdict(
        self,
        worker: subprocess.Popen[bytes],
        judge: subprocess.Popen[bytes],
        verdict_file: IO[bytes],
        worker_errors: IO[bytes],
        judge_errors: IO[bytes],
    ) -> Verdict:
        said = _read(verdict_file, JUDGE_LIMITS.output_bytes).splitlines()
        if not said:
            raise SandboxFailure(f"the judge did not start (code {judge.returncode}): {_last_line(judge_errors)}")
        if len(said) != 2 or judge.returncode != 0:
            return _ended(judge.returncode, _last_line(judge_errors), "the judge could not read the answers", 0)
        verdict = json.loads(said[1])
        status, detail, num_passed = verdict["status"], str(verdict["detail"]), int(verdict["num_passed"])
        if status == "infrastructure":
            raise SandboxFailure(f"a program's process did not start: {_last_line(worker_errors)}")
        if status == "died":
            try:
                worker.wait(timeout=_LAST_WORDS_S)
            except subprocess.TimeoutExpired:
                return Verdict(status="error", detail=detail, num_passed=num_passed)
            return _ended(worker.returncode, _last_line(worker_errors), detail, num_passed)
        return Verdict(status=status, detail=detail, num_passed=num_passed)

    def _judge_script(self, shut: Isolation, program: str, tests: StreamTests) -> Verdict:
        cpu_s = tests.time_limit_s * self.time_factor or self.limits.cpu_s
        memory_mb = tests.memory_limit_mb + INTERPRETER_MB if tests.memory_limit_mb else self.limits.memory_mb
        limits = replace(
            self.limits, cpu_s=min(cpu_s, self.limits.cpu_s), memory_mb=min(memory_mb, self.limits.memory_mb)
        )
        if not tests.cases:
            return Verdict(status="invalid_test", detail="no cases")
        for number, (given, expected) in enumerate(tests.cases):
            verdict, found = _run_script(shut, program, given, limits, self.packages)
            if verdict is None:
                verdict = _compare(shut, tests, given, expected, found)
            if not verdict.passed:
                return replace(verdict, detail=f"case {number}: {verdict.detail}", num_passed=number)
        return Verdict(status="passed", num_passed=len(tests.cases))


_TIME_SIGNALS = (24, 9)


def _run_script(
    shut: Isolation, program: str, given: str, limits: Limits, packages: Sequence[str]
) -> tuple[Verdict | None, str]:
    """What the script prints, or why it did not come to an end."""
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(4)]
        source, stdin, stdout, errors = files
        for file, text in ((source, program), (stdin, given)):
            file.write(text.encode("utf-8", "surrogateescape"))
            file.seek(0)
        ready, started = os.pipe()
        stack.callback(os.close, ready)
        try:
            process = shut.start(
                [*_inside(), "stream", str(source.fileno()), str(started)],
                limits,
                stdin=stdin,
                stdout=stdout,
                stderr=errors,
                pass_fds=(source.fileno(), started),
                packages=packages,
            )
        finally:
            os.close(started)
        stack.callback(kill, process)
        try:
            process.wait(timeout=limits.wall_s)
        except subprocess.TimeoutExpired:
            return Verdict(status="timeout", detail=f"more than {limits.wall_s} s"), ""
        if not os.read(ready, 1):
            raise SandboxFailure(f"a program's process did not start (code {process.returncode}): {_last_line(errors)}")
        if os.fstat(stdout.fileno()).st_size >= limits.output_bytes:
            return Verdict(status="output", detail=f"more than {limits.output_mb} MiB printed"), ""
        if process.returncode != 0:
            return _ended(process.returncode, _last_line(errors), "the script failed", 0), ""
        return None, _read(stdout, limits.output_bytes).decode("utf-8", "replace")


def _compare(shut: Isolation, tests: StreamTests, given: str, expected: str, found: str) -> Verdict:
    if not tests.checker:
        right = [line.split() for line in found.split("\n") if line.strip()] == [
            line.split() for line in expected.split("\n") if line.strip()
        ]
        return (
            Verdict(status="passed") if right else Verdict(status="failed", detail="the output is not the expected one")
        )
    plan = {"checker": tests.checker, "input": given, "expected": expected, "found": found}
    with ExitStack() as stack:
        stdin, stdout, errors = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        stdin.write(json.dumps(plan).encode())
        stdin.seek(0)
        process = shut.start([*_inside(), "checker"], JUDGE_LIMITS, stdin=stdin, stdout=stdout, stderr=errors)
        stack.callback(kill, process)
        try:
            process.wait(timeout=JUDGE_LIMITS.wall_s)
        except subprocess.TimeoutExpired:
            return Verdict(status="failed", detail="the checker did not end")
        words = _read(stdout, _MAX_COMPLAINT).decode("utf-8", "replace").split()
        if process.returncode != 0 or not words:
            return Verdict(status="failed", detail=f"the checker refused the output: {_last_line(errors)}")
    return Verdict(status="passed") if words[-1] in ("1", "1.0") else Verdict(status="failed", detail="checker: wrong")


def _plan(tests: CallTests | CodeTests) -> dict[str, Any]:
    if isinstance(tests, CodeTests):
        return {"mode": "code", "entry": tests.entry, "code": tests.code, "preamble": tests.preamble}
    packed = sandbox_inside.encode
    calls = [[packed(list(call.arguments)), packed(call.expected), call.tolerance] for call in tests.calls]
    plan = {"mode": "calls", "entry": tests.entry, "calls": calls, "as_json": tests.as_json}
    return plan | {"preamble": tests.preamble, "reference": tests.reference}


def _ended(code: int, complaint: str, detail: str, num_passed: int) -> Verdict:
    """The verdict on a process that ended by itself, or by a limit, before it was done."""
    signal = -code if code < 0 else code - 128
    status: Status = "error"
    if complaint.startswith("MemoryError"):
        status = "memory"
    elif "[Errno 27]" in complaint or signal == 25:
        status = "output"
    elif signal in _TIME_SIGNALS:
        status = "timeout"
    elif 0 < signal < 65:
        status = "killed"
    text = complaint or (f"signal {signal}" if status == "killed" else f"exit code {code}")
    return Verdict(status=status, detail=f"{detail}: {text}"[: sandbox_inside.MAX_DETAIL], num_passed=num_passed)


@cache
def _inside() -> tuple[str, str]:
    return "-c", Path(sandbox_inside.__file__).read_text(encoding="utf-8")


def _read(file: IO[bytes], most: int) -> bytes:
    file.seek(0)
    return file.read(most)


def _last_line(file: IO[bytes]) -> str:
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - _MAX_COMPLAINT))
    lines = file.read(_MAX_COMPLAINT).decode("utf-8", "replace").strip().splitlines()
    return lines[-1][: sandbox_inside.MAX_DETAIL] if lines else ""
