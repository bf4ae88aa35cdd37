"""The system calls that an untrusted program may not make, as a classic BPF program for `bwrap --seccomp`.

A denied call fails with EPERM instead of killing the program, so that a harmless use (a library that asks for a socket
and goes on without) does not become a wrong verdict. Without new processes, shared memory and anonymous files the
address space limit bounds the memory of the whole program, which rlimits alone cannot.
"""

from __future__ import annotations

import errno
import platform
import struct

# Numbers of x86_64 and aarch64 (None: the call does not exist there), from the kernel's asm/unistd_64.h and
# asm-generic/unistd.h.
DENIED: dict[str, tuple[int, int | None]] = {
    # Processes, other programs' memory, and the way out of the namespaces.
    "fork": (57, None),
    "vfork": (58, None),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "unshare": (272, 97),
    "setns": (308, 268),
    "personality": (135, 92),
    # Memory that RLIMIT_AS does not count.
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "vmsplice": (278, 75),
    # Network, and the queues that start input and output without these calls.
    "socket": (41, 198),
    "socketpair": (53, 199),
    "io_setup": (206, 0),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # File systems.
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    # Parts of the kernel that a program of a benchmark has no use for.
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "syslog": (103, 116),
    "swapon": (167, 224),
    "reboot": (169, 142),
    "acct": (163, 89),
    "modify_ldt": (154, None),
    "ioperm": (173, None),
    "iopl": (172, None),
}
_CLONE, _CLONE3 = (56, 220), (435, 435)
# AUDIT_ARCH_*; the column of the tables above.
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1), "arm64": (0xC00000B7, 1)}
_CLONE_THREAD = 0x00010000
_X32_BIT = 0x40000000

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
# Offsets in `struct seccomp_data`; the low half of the first argument on these little-endian machines.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16


def seccomp_filter(machine: str | None = None) -> bytes | None:
    """The filter for this machine, or None for a machine whose call numbers are not listed here.

    Args:
        machine: As `platform.machine()` says it.
    """
    known = _MACHINES.get(platform.machine() if machine is None else machine)
    if known is None:
        return None
    architecture, column = known
    refuse = _ERRNO | errno.EPERM
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_AT_LEAST, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _KILL),
        # The flags of clone3 lie in memory that a filter cannot read; libc then falls back to clone.
        *_when(_CLONE3[column], [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]),
        *_when(
            _CLONE[column],
            [
                (_LOAD, 0, 0, _FIRST_ARGUMENT),
                (_JUMP_ANY_BIT, 1, 0, _CLONE_THREAD),
                (_RETURN, 0, 0, refuse),
                (_RETURN, 0, 0, _ALLOW),
            ],
        ),
    ]
    for numbers in DENIED.values():
        number = numbers[column]
        if number is not None:
            program += _when(number, [(_RETURN, 0, 0, refuse)])
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _when(number: int, then: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    return [(_JUMP_EQUAL, 0, len(then), number), *then]
