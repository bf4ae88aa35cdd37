"""Checks of the fields of a suite file; each error says where, what was expected and what was found."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from rlflow.registry import did_you_mean

PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
PLAIN_WORDS = "letters, digits, '.', '_', '+' and '-'"


class SuiteError(ValueError):
    """A suite file that cannot be used; says where, what was expected and what was found."""


def mapping(raw: object, where: str) -> dict[str, Any]:
    """The value as a mapping with text for keys."""
    if not isinstance(raw, Mapping):
        raise SuiteError(f"{where}: expected a mapping, found {type(raw).__name__}")
    return {str(key): value for key, value in raw.items()}


def plain(name: str, where: str) -> str:
    """A name that can be part of a path and of an experiment's name."""
    if not PLAIN_NAME.fullmatch(name):
        raise SuiteError(f"{where}: expected {PLAIN_WORDS}, found {name!r}")
    return name


def known(values: Mapping[str, Any], options: Iterable[str], where: str) -> None:
    """Refuse a key that is not one of `options`."""
    names = list(options)
    for key in values:
        if key not in names:
            raise SuiteError(f"{where}: unknown key {key!r}{did_you_mean(key, names)}")


def positive(raw: object, where: str) -> int:
    """A whole number of at least 1."""
    if not isinstance(raw, int) or raw < 1:
        raise SuiteError(f"{where}: expected a number of at least 1, found {raw!r}")
    return raw


def one_of(raw: Any, options: tuple[Any, ...], where: str) -> Any:
    """One of `options`."""
    if raw not in options:
        raise SuiteError(f"{where}: expected one of {list(options)}, found {raw!r}")
    return raw
