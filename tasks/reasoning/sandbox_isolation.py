"""How a Python process is shut away from this machine: bubblewrap namespaces, a system call filter and rlimits.

Isolation is proven by a probe before it is used: a program inside has to find no network device, no file of this user,
no way to make a process, and an interpreter that runs. Whatever fails is said in the refusal.
"""

from __future__ import annotations

import importlib.util
import math
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Literal

from tasks.reasoning.sandbox_seccomp import seccomp_filter

Kind = Literal["setuid", "user-namespace", "none"]

INSTALL = "install it with `apt-get install bubblewrap` (Debian, Ubuntu) or `dnf install bubblewrap` (Fedora)"
# Far above the ids of accounts: each process gets an owner of its own, so that thread counts do not mix.
_FIRST_USER, _NUM_USERS = 0x60000000, 0x01000000
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
_PACKAGES_AT = "/packages"
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    # The same order of sets in every run, and no pools of threads or arenas that eat the address space.
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}
_PROBE = """
import os, socket, sys
found = [name for name in ("/etc/passwd", "/proc/1", "/sys/class", {home!r}) if os.path.exists(name)]
for name, attempt in (("a socket", socket.socket), ("a process", os.fork)):
    try:
        attempt()
        found.append(name)
    except OSError:
        pass
if os.access("/", os.W_OK):
    found.append("a writable root")
print("isolated" if not found else "not isolated: " + ", ".join(found))
"""


class IsolationUnavailable(RuntimeError):  # noqa: N818 - named for the state
    """Untrusted programs cannot be isolated on this machine, and the user has not allowed to run them without."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use. A program over a limit gets a status of its own, never a plain failure.

    Attributes:
        cpu_s: Seconds of processor time, rounded up to whole ones. Too low: slow but right programs time out.
        wall_s: Seconds on the clock, for programs that sleep. Too low: a busy machine makes programs time out.
        memory_mb: Address space. Too low (under about 64): the interpreter does not start. Too high: `workers` times
            this has to fit the machine.
        output_mb: Size of each file and of what is printed. Too low: right programs with long answers fail as `output`.
        scratch_mb: Size of the private /tmp, which is memory.
        num_threads: Threads of a program; new processes are always refused. 1 refuses every thread.
    """

    cpu_s: float = 10.0
    wall_s: float = 20.0
    memory_mb: int = 512
    output_mb: float = 4.0
    scratch_mb: float = 16.0
    num_threads: int = 8

    def __post_init__(self) -> None:
        """Refuse limits that nothing can run under."""
        for name, least in (("cpu_s", 0), ("wall_s", 0), ("output_mb", 0), ("scratch_mb", 0), ("num_threads", 0)):
            if getattr(self, name) <= least:
                raise ValueError(f"limits.{name}: expected more than {least}, found {getattr(self, name)}")
        if self.memory_mb < 64:
            raise ValueError(f"limits.memory_mb: expected at least 64, found {self.memory_mb}")

    @property
    def output_bytes(self) -> int:
        """The largest file that a program can write."""
        return int(self.output_mb * 2**20)


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """A proven way to shut a process away, or the reasons why there is none.

    Attributes:
        kind: `setuid` (started by root: namespaces, then an owner without rights), `user-namespace`, or `none`.
        problems: What each way tried met.
    """

    kind: Kind
    problems: tuple[str, ...] = field(default=())

    def start(
        self,
        arguments: Sequence[str],
        limits: Limits,
        *,
        stdin: int | IO[bytes],
        stdout: int | IO[bytes],
        stderr: IO[bytes],
        pass_fds: Sequence[int] = (),
        packages: Sequence[str] = (),
    ) -> subprocess.Popen[bytes]:
        """Start the interpreter with `arguments` inside; `packages` can be imported there."""
        python = [os.path.realpath(sys.executable), "-P", "-S", *arguments]
        folders = sorted({_folder_of(name) for name in packages})
        filter_fd = _pipe_holding(seccomp_filter() or b"")
        inside = _ENVIRONMENT | ({"PYTHONPATH": _python_path(self.kind, folders)} if folders else {})
        if self.kind == "none":
            command, environment = [*_prlimit(limits, threads=False), *python], inside
        else:
            command = [*_bubblewrap(self.kind, limits, filter_fd, inside, folders), *_prlimit(limits), *python]
            # /proc is not mounted, but nothing secret should be in the outermost process either.
            environment = {"PATH": _ENVIRONMENT["PATH"]}
        try:
            return subprocess.Popen(
                command,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=environment,
                cwd="/",
                pass_fds=(*pass_fds, filter_fd),
                start_new_session=True,
            )
        finally:
            os.close(filter_fd)


@cache
def isolation() -> Isolation:
    """The first way that passes the probe (once a process, about 0.1 s)."""
    problems = []
    kinds: list[Kind] = ["setuid", "user-namespace"] if os.geteuid() == 0 else ["user-namespace"]
    missing = _missing()
    if missing:
        return Isolation(kind="none", problems=missing)
    for kind in kinds:
        found = Isolation(kind=kind)
        problem = _probe(found)
        if problem is None:
            return found
        problems.append(f"{kind}: {problem}")
    return Isolation(kind="none", problems=tuple(problems))


def require_isolation(allow_unsafe: bool) -> Isolation:
    """A proven isolation, or, where the user allows it, none with a warning (once a process).

    Raises:
        IsolationUnavailable: There is none, with what was tried and how to mend it.
    """
    found = isolation()
    if found.kind != "none":
        return found
    problems = "; ".join(found.problems)
    if not allow_unsafe:
        raise IsolationUnavailable(
            f"untrusted programs cannot be isolated on this machine ({problems}). Expected bubblewrap (`bwrap`) on "
            f"Linux with user namespaces or started by root: {INSTALL}; in a container, allow user namespaces (Docker: "
            "`--security-opt seccomp=unconfined`, or `--cap-add SYS_ADMIN`). `allow_unsafe: true` runs them with "
            "resource limits alone, with this user's files and network in their reach."
        )
    if shutil.which("prlimit") is None:
        raise IsolationUnavailable("`allow_unsafe: true` needs `prlimit` of util-linux, which is not on the PATH")
    _warn(problems)
    return found


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything inside: the namespaces die with it, without them its session does."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, 9)
        except ProcessLookupError:
            process.kill()
    process.wait()


@cache
def _warn(problems: str) -> None:
    warnings.warn(
        f"UNTRUSTED PROGRAMS RUN WITHOUT ISOLATION ({problems}): they can read and write every file of this user, use "
        "the network and start processes. Only resource limits hold. Set `allow_unsafe: false` to refuse instead.",
        RuntimeWarning,
        stacklevel=4,
    )


def _missing() -> tuple[str, ...]:
    missing = []
    if not sys.platform.startswith("linux"):
        missing.append(f"expected Linux, found {sys.platform}")
    elif seccomp_filter() is None:
        missing.append(f"no system call numbers for {os.uname().machine} (known: x86_64, aarch64)")
    if shutil.which("bwrap") is None:
        missing.append(f"`bwrap` is not on the PATH: {INSTALL}")
    missing += [
        f"`{tool}` of util-linux is not on the PATH" for tool in ("prlimit", "setpriv") if not shutil.which(tool)
    ]
    return tuple(missing)


def _probe(found: Isolation) -> str | None:
    """What is wrong with a way of isolation; None if nothing is."""
    program = _PROBE.format(home=str(Path.home() / ".ssh"))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = found.start(["-c", program], Limits(), stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            return "the probe did not end within 20 s"
        finally:
            kill(process)
        out.seek(0)
        err.seek(0)
        said = out.read(500).decode(errors="replace").strip()
        complaint = err.read(2000).decode(errors="replace").strip().rpartition("\n")[2]
    if process.returncode != 0:
        return f"exit {process.returncode}: {complaint}"
    return None if said == "isolated" else said


def _bubblewrap(
    kind: Kind, limits: Limits, filter_fd: int, environment: dict[str, str], folders: Sequence[str]
) -> list[str]:
    command = ["bwrap", "--die-with-parent", "--new-session", "--unshare-ipc", "--unshare-pid", "--unshare-net"]
    command += ["--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox"]
    if kind == "user-namespace":
        command += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    else:
        command += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    command += ["--ro-bind", "/usr", "/usr"]
    for name in ("/lib", "/lib64", "/lib32", "/bin"):
        if os.path.islink(name):
            command += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            command += ["--ro-bind", name, name]
    prefix = os.path.realpath(sys.base_prefix)
    if not Path(prefix).is_relative_to("/usr"):
        command += [*_open_parents(prefix), "--ro-bind", prefix, prefix]
    for position, folder in enumerate(folders):
        command += _open_parents(f"{_PACKAGES_AT}/{position}")
        command += ["--ro-bind", folder, f"{_PACKAGES_AT}/{position}"]
    command += _open_parents(_DEVICES[0])
    for device in _DEVICES:
        command += ["--dev-bind", device, device]
    command += ["--perms", "1777", "--size", str(int(limits.scratch_mb * 2**20)), "--tmpfs", "/tmp"]
    command += ["--remount-ro", "/", "--chdir", "/tmp", "--clearenv"]
    for name, value in environment.items():
        command += ["--setenv", name, value]
    command += ["--seccomp", str(filter_fd), "--"]
    if kind == "setuid":
        owner = str(_FIRST_USER + secrets.randbelow(_NUM_USERS))
        command += ["setpriv", "--reuid", owner, "--regid", owner, "--clear-groups", "--no-new-privs"]
    return command


def _open_parents(path: str) -> list[str]:
    """Parents that another owner may pass; bubblewrap's own are closed to all but the one who started it."""
    parents = reversed(Path(path).parents[:-1])
    return [word for parent in parents for word in ("--perms", "0755", "--dir", str(parent))]


def _prlimit(limits: Limits, threads: bool = True) -> list[str]:
    cpu_s = math.ceil(limits.cpu_s)
    command = ["prlimit", f"--cpu={cpu_s}:{cpu_s + 1}", f"--as={limits.memory_mb * 2**20}", "--core=0", "--nofile=64"]
    command += [f"--fsize={limits.output_bytes}", "--memlock=0"]
    # Without a user of its own the limit would count every process of this user.
    return [*command, f"--nproc={limits.num_threads + 1}"] if threads else command


def _python_path(kind: Kind, folders: Sequence[str]) -> str:
    inside = folders if kind == "none" else [f"{_PACKAGES_AT}/{i}" for i in range(len(folders))]
    return ":".join(inside)


@cache
def _folder_of(package: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"sandbox packages: {package!r} is not installed in this environment")
    return str(Path(spec.origin).parent.parent)


def _pipe_holding(data: bytes) -> int:
    """A file descriptor that reads `data` (under the 64 KiB that a pipe holds)."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(data)
    return reading
