"""How a conformance check speaks (what is broken, by how much, the fix), and checks run one by one."""

from __future__ import annotations

import inspect
import io
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, TypeVar

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from rlflow.policy import Policy
from rlflow.random import Noise, generator
from rlflow.rollout import Rollout
from rlflow.task import Task

Subject = TypeVar("Subject")
Verdict = Literal["pass", "fail", "not checked"]


class ConformanceError(AssertionError):
    """A plugin breaks the contract.

    Attributes:
        reason: Which rule, where, and by how much.
        fix: What to change.
    """

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(f"{reason}; {fix}")
        self.reason = reason
        self.fix = fix


def demand(ok: bool, reason: str, fix: str) -> None:
    """Raise a `ConformanceError` unless `ok`."""
    if not ok:
        raise ConformanceError(reason, fix)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found; `not checked` is a rule that this plugin gives no means to check."""

    check: str
    verdict: Verdict
    reason: str = ""
    fix: str = ""


def examine(subject: Subject, checks: Sequence[Callable[[Subject], str | None]]) -> Iterator[Finding]:
    """Run checks one by one; whatever a plugin raises is a finding, with its place in the plugin's own files."""
    for check in checks:
        yield finding(check, subject)


def finding(check: Callable[[Subject], str | None], subject: Subject) -> Finding:
    """Outcome of one check; a check that returns text could not be made, and says why."""
    name = check.__name__
    try:
        note = check(subject)
    except ConformanceError as error:
        return Finding(check=name, verdict="fail", reason=error.reason, fix=error.fix)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        fix = f"see {place(error, subject)}; the rule: {(check.__doc__ or name).splitlines()[0]}"
        return Finding(check=name, verdict="fail", reason=reason, fix=fix)
    return Finding(check=name, verdict="not checked" if note else "pass", reason=note or "")


def place(error: BaseException, subject: object) -> str:
    """`FILE:LINE` of the innermost frame in the folder of the subject's class, else of the innermost frame."""
    frames = traceback.extract_tb(error.__traceback__)
    kind = subject if inspect.isclass(subject) else type(subject)
    try:
        home = Path(inspect.getfile(kind)).parent
    except (TypeError, OSError):
        home = Path("/nowhere")
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(home)]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def demand_configuration(plugin: object) -> None:
    """Demand that the constructor of a plugin is its configuration."""
    kind = type(plugin)
    demand(
        "__dataclass_params__" in vars(kind),
        f"{kind.__name__} is not a dataclass of its own: its annotated fields are no settings",
        "decorate it with @dataclass(frozen=True, kw_only=True); a task without frozen",
    )
    try:
        OmegaConf.structured(kind)
    except OmegaConfBaseException as error:
        raise ConformanceError(
            f"the fields of {kind.__name__} cannot be read from a configuration: {str(error).splitlines()[0]}",
            "annotate fields with bool, int, float, str, Literal, tuple, list, dict or a dataclass of these",
        ) from error


@torch.no_grad()
def scored_rollout(task: Task, policy: Policy, seed: int) -> Rollout:
    """One scored rollout of the task's first starts, as the loop makes it."""
    ids = task.starts()
    starts = torch.tensor([ids[i] for i in range(task.groups_per_rollout)])
    rollout = task.rollout(policy, starts, Noise(generator=generator(seed, "rollout")))
    policy.record_behaviour(rollout)
    return task.score(rollout)


def demand_same(first: Rollout, second: Rollout, when: str, fix: str) -> None:
    """Demand that two blocks hold the same decisions, contexts and rewards; `when` ends the sentence."""
    pairs: dict[str, tuple[Tensor | None, Tensor | None]] = {"mask": (first.mask, second.mask)}
    for field in ("action", "context"):
        one, other = getattr(first, field), getattr(second, field)
        pairs |= {f"{field}.{name}": (one.get(name), other.get(name)) for name in sorted(one.keys() | other.keys())}
    pairs["reward"] = (first.reward, second.reward)
    for name, (x, y) in pairs.items():
        demand(x is not None and y is not None and torch.equal(x, y), f"{name} differs {when}", fix)


def through_file(state: dict[str, Any]) -> dict[str, Any]:
    """A state as it comes back from a checkpoint."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    try:
        loaded: dict[str, Any] = torch.load(file, weights_only=True)
    except UnpicklingError as error:
        raise ConformanceError(
            f"state_dict() cannot be read from a checkpoint: {str(error).splitlines()[0]}",
            "keep tensors, numbers, strings, lists and dicts in it",
        ) from error
    return loaded
