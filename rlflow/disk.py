"""A full disk, told from other failures wherever in a chain of errors it hides."""

from __future__ import annotations

import errno
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
# SQLite has an error of its own, which SQLAlchemy and MLflow wrap in theirs.
SQLITE_FULL = "database or disk is full"


def out_of_space(error: BaseException | None) -> bool:
    """Whether `error`, or what it came from, is that something could not be written for want of space."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if (isinstance(error, OSError) and error.errno in FULL) or SQLITE_FULL in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def advice(folder: Path) -> str:
    """What to tell a person whose run in `folder` ended for want of space."""
    return f"no space left to write {folder} or the tracking store: free some and give the same command again"
