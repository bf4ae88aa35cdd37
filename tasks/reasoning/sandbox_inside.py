"""What runs inside the sandbox; its text is handed to a bare interpreter, so it imports the standard library alone.

Three roles. `worker` holds the untrusted program: it reads arguments, calls the function and writes the value as plain
data; it never sees an expected value. `judge` holds the tests in a process of its own and asks the worker over a pipe;
values arrive there as numbers, strings and containers of them, never as objects with methods of the program's making.
`stream` runs the program as a script. Nothing that the worker writes can do more than a returned value could.
"""

from __future__ import annotations

import builtins
import copy
import errno
import json
import math
import os
import sys
import types
from collections.abc import Callable, Iterable
from typing import IO, Any

MAX_DETAIL = 300
MAX_EXACT_JSON_INT = 2**53
# A test may catch these; others, such as StopIteration, would end a loop of the test early and skip its asserts.
NEVER_RAISED = (StopIteration, StopAsyncIteration)
RELATIVE_TOLERANCE = 1e-7
FLOAT_TOLERANCE = 1e-6


class Unreadable(Exception):  # noqa: N818
    """A reply that is no plain data."""


class Fault(BaseException):
    """The program cannot go on; no `except Exception` of a test swallows it."""

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(status, detail)
        self.status, self.detail = status, detail


def encode(value: Any) -> Any:
    """Plain data as JSON; containers other than lists carry a tag, large integers are written in hexadecimal."""
    if value is None or isinstance(value, (bool, str)):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, int):
        number = int(value)
        return number if abs(number) < MAX_EXACT_JSON_INT else {"int": hex(number)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    for tag, kind in (("tuple", tuple), ("set", set), ("frozenset", frozenset)):
        if isinstance(value, kind):
            return {tag: [encode(item) for item in value]}
    if type(value).__module__ == "numpy":
        return encode(value.tolist())
    raise Unreadable(f"a {type(value).__name__} is no plain value")


def decode(data: Any) -> Any:
    """The value of `encode`; raises `Unreadable` for anything else."""
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise Unreadable("expected one tag")
    ((tag, body),) = data.items()
    try:
        if tag == "int":
            return int(body, 16)
        if tag == "complex":
            return complex(float(body[0]), float(body[1]))
        if tag == "bytes":
            return bytes.fromhex(body)
        if tag == "dict":
            return {decode(key): decode(item) for key, item in body}
        kinds: dict[str, Callable[[Iterable[Any]], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
        return kinds[tag](decode(item) for item in body)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise Unreadable(f"bad {tag}") from error


def matches(found: Any, expected: Any, tolerance: float) -> bool:
    """Whether plain values are equal; floats within `tolerance` if it is not 0, containers only of the same kind."""
    numbers = (int, float, complex)
    if isinstance(expected, numbers) and isinstance(found, numbers):
        if found == expected or (found != found and expected != expected):
            return True
        if not tolerance or isinstance(found, bool) or isinstance(expected, bool):
            return False
        try:
            bound = tolerance + RELATIVE_TOLERANCE * abs(expected)
            return bool(bound < math.inf and abs(found - expected) <= bound)
        except OverflowError:
            return False
    if type(found) is not type(expected):
        return bool(isinstance(expected, (set, frozenset)) and found == expected)
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(
            matches(a, b, tolerance) for a, b in zip(found, expected, strict=True)
        )
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(matches(found[k], expected[k], tolerance) for k in expected)
    return bool(found == expected)


def describe(error: BaseException) -> str:
    """One line about an exception; its own text may be hostile."""
    try:
        text = str(error)
    except BaseException:
        text = ""
    return f"{type(error).__name__}: {text}"[:MAX_DETAIL]


def private_channels() -> tuple[IO[bytes], IO[bytes]]:
    """Standard input and output moved away, so that what a program reads and prints does not mix with messages."""
    reading, writing = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    return os.fdopen(reading, "rb"), os.fdopen(writing, "wb")


def send(channel: IO[bytes], message: Any) -> None:
    """One JSON line."""
    channel.write(json.dumps(message).encode() + b"\n")
    channel.flush()


def module(name: str) -> dict[str, Any]:
    """The namespace of a new module that classes in it can be looked up in."""
    made = types.ModuleType(name)
    sys.modules[name] = made
    return made.__dict__


def worker() -> None:
    """Define the program, then answer one call a line until the judge goes away."""
    requests, replies = private_channels()
    send(replies, {"ready": True})
    first = json.loads(requests.readline())
    function: Any = None
    failure: dict[str, str] | None = None
    try:
        namespace = module("program")
        exec(compile(first["program"], "<program>", "exec"), namespace)
        owner, _, name = first["entry"].rpartition(".")
        defined = namespace.get(owner or name)
        if defined is None:
            raise NameError(f"the program does not define {owner or name}")
        function = getattr(defined(), name) if owner else defined
    except BaseException as error:
        failure = _raised(error)
    for line in requests:
        if failure is not None:
            send(replies, failure)
            continue
        try:
            arguments, keywords = map(decode, json.loads(line))
            reply = json.dumps({"value": encode(function(*arguments, **keywords))})
        except BaseException as error:
            reply = json.dumps(_raised(error))
        replies.write(reply.encode() + b"\n")
        replies.flush()


def _raised(error: BaseException) -> dict[str, str]:
    kind = type(error).__name__
    if isinstance(error, MemoryError):
        kind = "MemoryError"
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        kind = "output"
    return {"raised": kind, "detail": describe(error)}


class Program:
    """The program as the judge sees it: a function whose every call goes over the pipe."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._requests = os.fdopen(plan["to_worker"], "wb")
        self._replies = os.fdopen(plan["from_worker"], "rb")
        self._most = plan["max_reply"]
        self.fault: Fault | None = None
        self.error: Exception | None = None
        self.num_calls = 0
        if self._receive("infrastructure") != {"ready": True}:
            self._give_up("infrastructure", "the worker did not start")
        send(self._requests, {"program": plan["program"], "entry": plan["entry"]})

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Ask the worker; raise what the program raised."""
        if self.fault is not None:
            raise self.fault
        try:
            send(self._requests, [encode(list(arguments)), encode(keywords)])
        except Unreadable as problem:
            self._give_up("invalid_test", f"an argument of a call: {problem}")
        except OSError:
            self._give_up("died", "the program ended before it answered")
        reply = self._receive("died")
        self.num_calls += 1
        if not isinstance(reply, dict):
            self._give_up("error", "the answer is no message")
        if "value" in reply:
            try:
                return decode(reply["value"])
            except (Unreadable, RecursionError):
                self._give_up("error", "the answer is no plain value")
        kind, detail = str(reply.get("raised"))[:60], str(reply.get("detail"))[:MAX_DETAIL]
        if kind in ("MemoryError", "output"):
            self._give_up("memory" if kind == "MemoryError" else "output", detail)
        found = getattr(builtins, kind, None)
        safe = isinstance(found, type) and issubclass(found, Exception) and not issubclass(found, NEVER_RAISED)
        try:
            self.error = found(detail) if safe and found is not None else RuntimeError(detail)
        except TypeError:
            self.error = RuntimeError(detail)
        raise self.error

    def _receive(self, without: str) -> Any:
        line = self._replies.readline(self._most)
        if not line.endswith(b"\n"):
            if len(line) >= self._most:
                self._give_up("output", f"an answer of more than {self._most} bytes")
            self._give_up(without, "the program ended before it answered")
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            self._give_up("error", "the answer is no message")

    def _give_up(self, status: str, detail: str) -> Any:
        self.fault = Fault(status, detail)
        raise self.fault


def judge() -> None:
    """Run the tests against the worker and write one verdict."""
    requests, verdicts = private_channels()
    # Before the worker hears of the program: what goes wrong from here on may be the program's doing.
    send(verdicts, {"started": True})
    plan = json.loads(requests.read())
    verdict: dict[str, Any] = {"num_passed": 0}
    program: Program | None = None
    try:
        program = Program(plan)
        if plan["mode"] == "calls":
            _judge_calls(plan, program, verdict)
        else:
            _judge_code(plan, program)
        status, detail = ("passed", "") if program.num_calls else ("invalid_test", "the tests made no call")
    except Fault as fault:
        status, detail = fault.status, fault.detail
    except MemoryError:
        status, detail = "output", "an answer that the judge's memory does not hold"
    except BaseException as error:
        by_program = program is not None and error is program.error
        asked = program is not None and program.num_calls > 0
        status = "error" if by_program else "failed" if asked else "invalid_test"
        detail = str(error.args[0]) if by_program else describe(error)
    if program is not None and program.fault is not None:
        status, detail = program.fault.status, program.fault.detail
    send(verdicts, verdict | {"status": status, "detail": detail})


def _judge_calls(plan: dict[str, Any], program: Program, verdict: dict[str, Any]) -> None:
    reference: Any = None
    if plan["reference"]:
        namespace = module("reference")
        exec(compile(plan["preamble"], "<reference>", "exec"), namespace)
        reference = namespace[plan["reference"]]
    for number, (packed, wanted, tolerance) in enumerate(plan["calls"]):
        arguments = decode(packed)
        try:
            expected = decode(wanted) if reference is None else reference(*copy.deepcopy(arguments))
        except Exception as error:
            raise Fault("invalid_test", f"the reference solution: {describe(error)}") from error
        found = program(*arguments)
        if plan["as_json"]:
            found, expected = json.loads(json.dumps(found)), json.loads(json.dumps(expected))
        if not matches(found, expected, tolerance or (FLOAT_TOLERANCE if _is_floats(expected) else 0.0)):
            raise Fault("failed", f"call {number}: the value is not the expected one")
        verdict["num_passed"] += 1


def _judge_code(plan: dict[str, Any], program: Program) -> None:
    namespace = module("tests")
    exec(compile(plan["preamble"], "<preamble>", "exec"), namespace)
    namespace[plan["entry"]] = namespace["candidate"] = program
    exec(compile(plan["code"], "<tests>", "exec"), namespace)


def _is_floats(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def stream(program_fd: str, ready_fd: str) -> None:
    """Run the program as a script on standard input and output."""
    with os.fdopen(int(program_fd), "rb") as file:
        program = file.read()
    with os.fdopen(int(ready_fd), "wb") as file:
        file.write(b"r")
    sys.argv = ["program"]
    # These come from `site`, which is not loaded.
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    exec(compile(program, "<program>", "exec"), module("__main__"))


def checker() -> None:
    """Run a checker of the data set on the files `input`, `expected` and `found`; it prints 1 or 0."""
    plan = json.loads(sys.stdin.buffer.read())
    os.chdir("/tmp")
    for name in ("input", "expected", "found"):
        with open(name, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(plan[name])
    sys.argv = ["checker", "input", "expected", "found"]
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    exec(compile(plan["checker"], "<checker>", "exec"), module("__main__"))


if __name__ == "__main__":
    roles: dict[str, Callable[..., None]] = {"worker": worker, "judge": judge, "stream": stream, "checker": checker}
    roles[sys.argv[1]](*sys.argv[2:])
