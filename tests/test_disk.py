"""Errors of a full disk, bare and wrapped."""

from __future__ import annotations

import errno
import sqlite3

import pytest

from rlflow.disk import out_of_space


def wrapped(cause: Exception, *, explicitly: bool) -> Exception:
    try:
        try:
            raise cause
        except type(cause) as error:
            if explicitly:
                raise RuntimeError("the store has failed") from error
            raise RuntimeError("the store has failed")  # noqa: B904
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (OSError(errno.ENOSPC, "no space"), True),
        (OSError(errno.EDQUOT, "quota"), True),
        (sqlite3.OperationalError("database or disk is full"), True),
        (OSError(errno.EACCES, "denied"), False),
        (sqlite3.OperationalError("database is locked"), False),
        (OSError("no space left on the device, a task says"), False),
    ],
)
def test_a_full_disk_is_recognised_through_other_errors(cause: Exception, expected: bool) -> None:
    for error in (cause, wrapped(cause, explicitly=True), wrapped(cause, explicitly=False)):
        assert out_of_space(error) is expected


def test_errors_that_are_each_others_context_end() -> None:
    first, second = RuntimeError("one"), RuntimeError("two")
    first.__context__, second.__context__ = second, first
    assert not out_of_space(first)
