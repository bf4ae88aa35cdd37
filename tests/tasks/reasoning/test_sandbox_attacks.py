"""Programs that try to pass without the answer, to harm the machine, or to hang; none may succeed."""

from __future__ import annotations

import os
import subprocess
import tempfile
import textwrap
from pathlib import Path

import pytest

from tasks.reasoning.code_tests import Call, CallTests, CodeTests, StreamTests
from tasks.reasoning.sandbox_isolation import Limits, isolation, kill
from tests.sandboxes import QUICK, sandbox

ANSWER = "answer-5d1c0e77a3"
"""What f(7) has to return; no program here is told."""
CALLS = CallTests(entry="f", calls=(Call(arguments=(7,), expected=ANSWER),))
CODE = CodeTests(entry="f", code=f"def check(candidate):\n    assert candidate(7) == {ANSWER!r}\ncheck(f)")
STREAM = StreamTests(cases=(("7\n", ANSWER + "\n"),))
SYSCALL = "import ctypes; syscall = ctypes.CDLL(None, use_errno=True).syscall\n"

FORGERIES = {
    "exit": "import sys; sys.exit(0)",
    "hard exit": "import os; os._exit(0)",
    "exit in the call": "def f(x):\n    raise SystemExit(0)",
    "an object equal to everything": """
        class Any:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 0
        def f(x): return Any()""",
    "a string equal to everything": """
        class Any(str):
            def __eq__(self, other): return True
            __hash__ = str.__hash__
        def f(x): return Any('x')""",
    "a forged array": """
        class Any:
            def tolist(self): return {'value': True}
        Any.__module__ = 'numpy'
        def f(x): return Any()""",
    "replaced builtins": """
        import builtins, json, sys
        builtins.AssertionError = builtins.Fault = ZeroDivisionError
        json.dumps = lambda *a, **k: '{"status": "passed", "detail": "", "num_passed": 1}'
        main = sys.modules['__main__']
        for name in dir(main):
            if callable(getattr(main, name)): setattr(main, name, lambda *a, **k: True)
        def f(x): return True""",
    "a report at exit": """
        import atexit, os
        def report():
            for fd in range(64):
                try: os.write(fd, b'{"status": "passed", "detail": "", "num_passed": 1}\\n')
                except OSError: pass
        atexit.register(report)
        def f(x): raise SystemExit""",
    "a report on every descriptor": """
        import os
        for fd in range(64):
            for text in (b'{"started": true}\\n', b'{"status": "passed", "detail": "", "num_passed": 1}\\n'):
                try: os.write(fd, text)
                except OSError: pass
        def f(x): return 1""",
    "early end of a loop": "def f(x): raise StopIteration",
    "an exception that passes for success": """
        import os
        os.write(4, b'{"raised": "StopIteration", "detail": ""}\\n{"raised": "GeneratorExit", "detail": ""}\\n')
        def f(x): return 1""",
    "the answer in memory": """
        import gc, sys
        def seen():
            frame = sys._getframe()
            while frame:
                yield from list(frame.f_locals.values()) + list(frame.f_globals.values())
                frame = frame.f_back
            for thing in gc.get_objects():
                yield thing
                yield from gc.get_referents(thing)
        def f(x):
            for thing in list(seen()):
                if type(thing) in (str, bytes) and b'answer-' in (thing.encode() if type(thing) is str else thing):
                    if len(thing) < 40: return thing if type(thing) is str else thing.decode()
            return 0""".replace("answer-", "ans' + b'wer-"),
    "the answer in a file or descriptor": """
        import os, re
        def f(x):
            found = b''
            for folder, _, names in list(os.walk('/tmp')) + list(os.walk('/proc')) + list(os.walk('/dev/fd')):
                for name in names: found += open(os.path.join(folder, name), 'rb').read(10000)
            for fd in range(3, 64):
                try: os.set_blocking(fd, False); found += os.read(fd, 100000)
                except (OSError, TypeError): pass
            hits = re.findall(b'ans' + b'wer-[0-9a-f]+', found)
            return hits[0].decode() if hits else 0""",
    "a process that outlives the program": """
        import os
        if os.fork(): os._exit(0)
        def f(x): return 1""",
}

BREAKAGES = {
    "closed descriptors": ("import os; os.closerange(0, 256)\ndef f(x): return 1", {"error"}),
    "endless reply": ("import os\ndef f(x):\n    while True: os.write(4, b'x' * 65536)", {"output", "timeout"}),
    "deep reply": ("import os\ndef f(x):\n    os.write(4, b'[' * 200000 + b'\\n')", {"error"}),
    "deep tags": (
        "import os\ndef f(x):\n    os.write(4, b'{\"value\":' + b'[' * 900 + b']' * 900 + b'}\\n')",
        {"error"},
    ),
    "bad tag": ('import os\ndef f(x):\n    os.write(4, b\'{"value": {"set": [[1]]}}\\n\')', {"error"}),
    "a long integer": ("import os\ndef f(x):\n    os.write(4, b'{\"value\": ' + b'1' * 100000 + b'}\\n')", {"error"}),
    "no message": ("import os\ndef f(x):\n    os.write(4, b'\\xff\\n')", {"error"}),
    "an object": ("def f(x): return object()", {"error"}),
    "a function": ("def f(x): return f", {"error"}),
    "a list in itself": ("def f(x):\n    a = []\n    a.append(a)\n    return a", {"error"}),
    "nan": ("def f(x): return float('nan')", {"failed"}),
    "hostile exception": ("class E(Exception):\n    def __str__(self): raise E\ndef f(x): raise E", {"error"}),
    "colliding hashes": ("def f(x): return [i * (2**61 - 1) for i in range(1, 9000)]", {"failed"}),
    "endless recursion": ("def f(x): return f(x)", {"error"}),
    "endless deep recursion": (
        "import sys; sys.setrecursionlimit(10**9)\ndef f(x): return [f(x)][0]",
        {"killed", "memory", "timeout"},
    ),
    "a signal to itself": ("import os; os.kill(os.getpid(), 11)", {"killed"}),
    "a flood of errors": ("import sys\ndef f(x):\n    while True: sys.stderr.write('x' * 65536)", {"output", "error"}),
}

BOMBS = {
    "loop": ("while True: pass", {"timeout"}),
    "loop deaf to signals": (
        "import signal\nfor s in (15, 24, 2): signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
        {"timeout"},
    ),
    "regular expression": ("import re; re.match('(a+)+$', 'a' * 40 + 'b')", {"timeout"}),
    "power": ("10 ** 10 ** 10", {"timeout", "memory"}),
    "memory": ("a = 'a' * 10**10", {"memory"}),
    "memory in pieces": ("a = []\nwhile True: a.append(bytearray(2**20))", {"memory", "timeout"}),
    "compressed": ("import zlib; zlib.decompress(zlib.compress(bytes(2**27)) , bufsize=2**29)", {"memory", "timeout"}),
    "shared memory": (SYSCALL + "assert syscall(29, 0, 2**28, 0o1666) < 0\na = bytearray(2**30)", {"memory"}),
    "processes": ("import os\nwhile True: os.fork()", {"error"}),
    "full disk": ("for i in range(99): open(f'/tmp/{i}', 'wb').write(bytes(2**19))", {"error"}),
    "long file": ("open('/tmp/a', 'wb').write(bytes(2**23))", {"output", "error"}),
}


def program(text: str) -> str:
    return textwrap.dedent(text)


@pytest.mark.parametrize("tests", [CALLS, CODE], ids=["calls", "code"])
@pytest.mark.parametrize("name", FORGERIES)
def test_no_forgery_passes(name: str, tests: CallTests | CodeTests) -> None:
    verdict = sandbox().verdict(program(FORGERIES[name]), tests)
    assert verdict.status in ("error", "failed"), verdict
    assert ANSWER not in verdict.detail


@pytest.mark.parametrize(
    "code",
    [
        f"for found in map(f, [7, 7]):\n    assert found == {ANSWER!r}",
        f"assert all(map(lambda x: f(x) == {ANSWER!r}, [7]))",
        f"assert [x for x in [f(7)] if x != {ANSWER!r}] == []",
    ],
)
@pytest.mark.parametrize("name", ["early end of a loop", "exit in the call", "an object equal to everything"])
def test_test_code_is_not_cut_short(name: str, code: str) -> None:
    assert not sandbox().verdict(program(FORGERIES[name]), CodeTests(entry="f", code=code)).passed


def test_a_test_that_swallows_every_exception_does_not_pass_a_dead_program() -> None:
    code = "try:\n    f(7)\nexcept Exception:\n    pass"
    assert sandbox().verdict("import os\ndef f(x): os._exit(0)", CodeTests(entry="f", code=code)).status == "error"


@pytest.mark.parametrize(
    "text",
    ["", "import sys; sys.exit(0)", "import os; os._exit(0)", f"print({ANSWER[:6]!r})", "raise SystemExit"],
)
def test_no_script_passes_without_the_answer(text: str) -> None:
    assert sandbox().verdict(text, STREAM).status == "failed"


def test_a_right_output_with_a_failing_exit_is_an_error() -> None:
    assert sandbox().verdict(f"print({ANSWER!r}); raise ValueError", STREAM).status == "error"


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_conversation_has_a_status(name: str) -> None:
    text, expected = BREAKAGES[name]
    assert sandbox().verdict(text, CALLS).status in expected


@pytest.mark.parametrize("name", BOMBS)
def test_no_bomb_outlasts_its_limits(name: str) -> None:
    text, expected = BOMBS[name]
    for tests in (CALLS, STREAM):
        verdict = sandbox().verdict(text, tests)
        assert verdict.status in expected, verdict


def test_threads_are_few_and_do_not_outlast_the_program() -> None:
    text = """
        import threading
        def f(x):
            num_threads = 0
            try:
                while True:
                    threading.Thread(target=threading.Event().wait).start()
                    num_threads += 1
            except RuntimeError:
                return num_threads"""
    few = sandbox(limits=Limits(num_threads=4))
    if isolation().kind != "setuid":
        pytest.skip("started by root, which has no limit of threads, but without an owner of its own for the program")
    for expected, status in ((4, "passed"), (5, "failed")):
        tests = CallTests(entry="f", calls=(Call(arguments=(7,), expected=expected),))
        assert few.verdict(program(text), tests).status == status


@pytest.mark.parametrize("tests", [CALLS, CODE, STREAM], ids=["calls", "code", "stream"])
def test_a_program_that_sleeps_for_ever_times_out(tests: CallTests | CodeTests | StreamTests) -> None:
    verdict = sandbox(limits=Limits(cpu_s=1, wall_s=0.5)).verdict("import time; time.sleep(1000)", tests)
    assert verdict.status == "timeout"


@pytest.mark.parametrize(
    ("what", "expression"),
    [
        ("accounts", "open('/etc/passwd').read()"),
        ("the environment of process 1", "open('/proc/1/environ').read()"),
        ("its own memory map", "open('/proc/self/maps').read()"),
        ("devices", "os.listdir('/sys')"),
        ("keys", f"os.listdir({str(Path.home() / '.ssh')!r})"),
        ("this checkout", f"os.listdir({os.getcwd()!r})"),
        ("a write to the root", "open('/x', 'w')"),
        ("a write to the system", "open('/usr/x', 'w')"),
        ("a write to the interpreter", "open(os.__file__, 'w')"),
        ("a write beside the devices", "open('/dev/x', 'w')"),
        ("a socket", "__import__('socket').socket()"),
        ("a pair of sockets", "__import__('socket').socketpair()"),
        ("a local server", "__import__('socket').create_connection(('127.0.0.1', 80))"),
        ("a command", "__import__('subprocess').run(['/usr/bin/id'])"),
        ("a fork", "os.fork()"),
        ("an anonymous file", "os.memfd_create('x')"),
        ("the first process", "os.kill(1, 9) or time.sleep(0.2) or os.kill(1, 9) or 1 / 0"),
        ("another user", "os.setuid(0)"),
        ("more processor time", "resource.setrlimit(resource.RLIMIT_CPU, (99, 99))"),
        ("a device", "os.mknod('/tmp/x', 0o60666, os.makedev(8, 0)) or open('/tmp/x')"),
    ],
    ids=lambda value: value if " " not in value or len(value) < 40 else None,
)
def test_what_lies_outside_is_out_of_reach(what: str, expression: str) -> None:
    text = f"""
        import os, resource, time
        def f(x):
            try:
                {expression}
            except (OSError, ZeroDivisionError, ValueError) as error:
                return 'refused'
            return 'reached'"""
    tests = CallTests(entry="f", calls=(Call(arguments=(7,), expected="refused"),))
    assert sandbox().verdict(program(text), tests).passed, what


# Numbers of x86_64: ptrace(TRACEME), unshare(NEWUSER), mount, chroot, bpf, io_uring_setup, keyctl, userfaultfd.
@pytest.mark.parametrize("call", ["101, 0", "272, 0x10000000", "165", "161, b'/tmp'", "321", "425, 8", "250", "323, 0"])
def test_a_filtered_system_call_is_refused(call: str) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are those of x86_64")
    text = SYSCALL + f"def f(x): return [syscall({call}), ctypes.get_errno()]"
    tests = CallTests(entry="f", calls=(Call(arguments=(7,), expected=[-1, 1]),))
    assert sandbox().verdict(text, tests).passed


def test_the_environment_of_this_process_is_not_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_OF_THIS_TEST", "secret")
    text = "import os\ndef f(x): return [k for k in os.environ if 'TOKEN' in k]"
    assert sandbox().verdict(text, CallTests(entry="f", calls=(Call(arguments=(7,), expected=[]),))).passed


def test_programs_do_not_meet_in_tmp() -> None:
    text = "import os\ndef f(x):\n    found = os.listdir('/tmp'); open('/tmp/x', 'w').close(); return found"
    tests = CallTests(entry="f", calls=(Call(arguments=(7,), expected=[]),))
    assert [verdict.status for verdict in sandbox().verdicts([(text, tests)] * 4)] == ["passed"] * 4


def test_nothing_inside_survives_the_outermost_process() -> None:
    sandbox()
    text = "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\nprint('up', flush=True)"
    with tempfile.TemporaryFile() as errors:
        process = isolation().start(
            ["-c", text], QUICK, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        )
        assert process.stdout.readline() == b"up\n"
        kill(process)
        # The pipe ends only when no process holds its other end.
        assert process.stdout.read() == b""
        process.stdout.close()


def test_a_bomb_does_not_disturb_its_neighbours() -> None:
    right = f"def f(x): return {ANSWER!r}"
    bombs = [BOMBS[name][0] for name in ("memory", "processes", "loop")]
    roomy = sandbox(workers=2, limits=Limits(cpu_s=1, wall_s=10, memory_mb=256))
    jobs = [(text, CALLS) for pair in zip(bombs, [right] * 3, strict=True) for text in pair]
    assert [verdict.passed for verdict in roomy.verdicts(jobs)] == [False, True] * 3
