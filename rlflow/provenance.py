"""Where a run came from: commit, environment, hardware and process, as flat strings for tags."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
import sys
from email.parser import HeaderParser
from functools import cache
from importlib import metadata
from pathlib import Path


@cache
def git_state() -> tuple[str, bool]:
    """Commit of the source tree and whether it has uncommitted changes; `("unknown", True)` outside a repository."""
    folder = Path(__file__).parent
    try:
        sha = _git(folder, "rev-parse", "HEAD")
        return sha, bool(_git(folder, "status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", True


@cache
def environment() -> str:
    """Python, platform and every installed distribution, one a line, sorted."""
    names = {name for dist in metadata.distributions() if (name := _requirement(dist))}
    return "\n".join([f"python=={platform.python_version()}", f"platform=={platform.platform()}", *sorted(names), ""])


def _requirement(distribution: metadata.Distribution) -> str | None:
    """`name==version` from the headers alone; `name` and `version` would each parse the whole description."""
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    headers = HeaderParser().parsestr(text.partition("\n\n")[0])
    return f"{headers['Name'].lower()}=={headers['Version']}" if headers["Name"] else None


@cache
def environment_digest() -> str:
    """Digest of `environment()`, equal exactly where the installed packages, Python and platform are."""
    return hashlib.sha256(environment().encode()).hexdigest()[:16]


@cache
def hardware() -> str:
    """CPU model, usable cores, and the GPU where torch is loaded and sees one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{_cpu_model()} x {cores}"]
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        parts.append(f"{torch.cuda.get_device_name()} x {torch.cuda.device_count()}")
    return ", ".join(parts)


@cache
def machine() -> str:
    """Names this machine since its last start: host name and boot id, so that process ids can be compared."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    boot_id = boot.read_text().strip()[:8] if boot.exists() else "unknown"
    return f"{socket.gethostname()}-{boot_id}"


def process() -> str:
    """`machine:pid` of this process."""
    return f"{machine()}:{os.getpid()}"


def process_gone(name: str) -> bool:
    """True where `name`, from `process()`, ran on this machine and no longer exists; False where that is unknown."""
    host, _, pid = name.rpartition(":")
    if host != machine() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
