"""A tracking server that goes away, or a disk that fills up, under a command of many requests: told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rlflow.disk import advice, out_of_space
from rlflow.store import Store, TrackingError, answers, may_pass


@contextmanager
def told(store: Store) -> Iterator[None]:
    """Say what to do where a request of the block failed because the server has gone or the disk is full.

    Raises:
        TrackingError: In place of the request's own error; all other errors stay what they are.
    """
    try:
        yield
    except Exception as error:
        if out_of_space(error):
            raise TrackingError(advice(store.lock_path.parent)) from error
        if not may_pass(error) or answers(store):
            raise
        raise TrackingError(
            f"expected the tracking server at {store.uri} to answer, found it gone; start it and give the same "
            "command again: what it missed is kept and delivered"
        ) from error
