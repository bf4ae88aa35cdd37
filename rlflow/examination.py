"""Builds a registered plugin as a run would and puts it through the public checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from rlflow.algorithm import Algorithm
from rlflow.config import resolve, resolve_task
from rlflow.conformance import Finding, Subject, examine, finding
from rlflow.registry import find
from rlflow.task import Task
from rlflow.testing import algorithm_checks, task_checks, usable_kinds
from rlflow.toy import KINDS

SMALL = {"groups_per_rollout": 3, "group_size": 2}
"""Sizes at which a task is checked where its own are larger: the answers are the same, the time is not."""

MANY = 2520
"""Groups at which an algorithm is configured: rows of 1 to 10 decisions divide them, and none is rolled out."""


def examine_plugin(kind: str, name: str, overrides: Sequence[str] = ()) -> Iterator[Finding]:
    """Findings of a plugin: whether it can be built, then check by check.

    Args:
        kind: `algorithm` or `task`.
        name: Registered name.
        overrides: `key=value` of the plugin's settings; sizes given here are kept.

    Raises:
        UnknownNameError: No such plugin, or its class cannot be imported.
        ConfigError: Overrides that do not fit.
    """
    plugin = find(kind, name).load()
    if kind == "algorithm":
        yield from _examine(plugin, lambda: _algorithm(name, plugin, overrides), algorithm_checks(), bool(overrides))
    else:
        yield from _examine(plugin, lambda: _task(name, overrides), task_checks(), bool(overrides))


def _examine(
    plugin: type[Subject],
    build: Callable[[], Subject],
    checks: Sequence[Callable[[Subject], str | None]],
    overridden: bool,
) -> Iterator[Finding]:
    built: list[Subject] = []

    def check_is_built(_: type[Subject]) -> None:
        """A run builds the plugin from its defaults and its preset."""
        built.append(build())

    if overridden:
        # Settings of the user: what does not fit them is no finding about the plugin.
        built.append(build())
        yield Finding(check=check_is_built.__name__, verdict="pass")
    else:
        yield finding(check_is_built, plugin)
    if built:
        yield from examine(built[0], checks)


def _algorithm(name: str, plugin: type[Algorithm], overrides: Sequence[str]) -> Algorithm:
    kind = (usable_kinds(plugin()) or KINDS)[0]
    return resolve(name, "toy", [f"task.kind={kind}", f"task.groups_per_rollout={MANY}", *overrides]).algorithm


def _task(name: str, overrides: Sequence[str]) -> Task:
    task = resolve_task(name, overrides)
    given = {override.partition("=")[0].removeprefix("task.") for override in overrides}
    smaller = {key: min(size, getattr(task, key)) for key, size in SMALL.items() if key not in given}
    try:
        return replace(task, **smaller)
    except ValueError:
        # A task may refuse sizes that it cannot serve; it is then checked at its own.
        return task
