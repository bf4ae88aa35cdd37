"""The task contract: where decisions are made, what they earn, how a policy is judged."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from rlflow.policy import Policy
from rlflow.random import Noise
from rlflow.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class Anchors:
    """Fixed scores that normalise this task version on the board.

    Attributes:
        base: Measured score of the untrained policy, in units of `score`.
        reference: Score that counts as 1.
    """

    base: float
    reference: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a policy made of one item, in values that JSON holds: a row of the run's table, or a trace.

    All answers of a task have the same names, no name twice, none of them `step`.

    Attributes:
        inputs: What was asked, by name, e.g. `prompt`.
        outputs: What was made, by name, e.g. `completion`.
        judged: What it earned and what was said of it, by name, e.g. `reward`.
    """

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    judged: Mapping[str, Any]


@dataclass(kw_only=True)
class Evaluation:
    """Result of judging a policy on the frozen set.

    Attributes:
        metrics: Scalars; `score` is the one that the board ranks (higher is better).
        items: One row per evaluated item, written to eval/per_item.csv.
        files: Sample artifacts by file name: a function that writes the file at the path it is given, so that
            nothing is rendered unless it is logged.
        answers: Every answer, where answers are values rather than files; the run keeps `trainer.answer_rows` of them.
    """

    metrics: dict[str, float]
    items: list[dict[str, Any]] = field(default_factory=list)
    files: Mapping[str, SampleWriter] = field(default_factory=dict)
    answers: Sequence[Answer] = ()


HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class ContentError(FileNotFoundError):
    """A file or folder that the configuration names is not there."""


class SampleWriter(ABC):
    """Writes one sample artifact."""

    @abstractmethod
    def __call__(self, path: Path) -> None:
        """Write the file at `path`."""


@dataclass(kw_only=True)
class Task(ABC):
    """A task family member with its sizes; resources (environments, models) open on first use.

    Attributes:
        version: Of the data, the base and the evaluation set; scores of different versions do not compare.
        unit: What a sample is: `rollouts` or `env_steps`.
        guards: Metrics of `evaluate` that are no part of the reward and in which reward hacking would show; the board
            shows them beside the score and does not rank them.
        policies: Policy kind by the task's own name for it.
        name: Registered name, e.g. `image/shapes`.
        groups_per_rollout: Groups (shared starts) per iteration over all ranks. Too few: noisy updates; too many:
            few updates for the same budget of samples.
        group_size: Rollouts per group. Group-relative algorithms need at least 2.
    """

    version: ClassVar[str]
    unit: ClassVar[str] = "rollouts"
    guards: ClassVar[tuple[str, ...]] = ()
    policies: ClassVar[dict[str, str]]
    name_field: ClassVar[str | None] = None

    name: str
    groups_per_rollout: int
    group_size: int

    def content(self) -> Mapping[str, str]:
        """Own files and folders whose content decides the result, by setting, e.g. a base; names of a hub may be among.

        A path that is there counts by its bytes, a name of a hub by itself.
        """
        return {}

    @cached_property
    def revision(self) -> str:
        """`version`, and for each of `content` that is given `+SETTING.DIGEST` of what lies there now.

        Raises:
            ContentError: A path with nothing behind it.
        """
        digests = {name: content_digest(source, f"task.{name}") for name, source in self.content().items() if source}
        return self.version + "".join(f"+{name}.{digest}" for name, digest in digests.items() if digest)

    @property
    @abstractmethod
    def policy_kind(self) -> str:
        """Key of `policies` that this configuration uses."""

    @property
    def samples_per_rollout(self) -> int:
        """Budget that one iteration consumes over all ranks: scored rollouts, or environment steps."""
        return self.groups_per_rollout * self.group_size

    @property
    def rows_per_rollout(self) -> int:
        """Rows that minibatches divide, over all ranks: rollouts, or decisions where those are independent."""
        return self.groups_per_rollout * self.group_size

    @property
    @abstractmethod
    def anchors(self) -> Anchors:
        """Fixed normalisation of this version."""

    @abstractmethod
    def starts(self) -> Sequence[int]:
        """Ids of the training starts (prompt indices, seeds); never overlaps the evaluation set."""

    def evaluation_starts(self) -> Sequence[int] | None:
        """Ids of the evaluation set in the numbering of `starts`; None where it is numbered in another way."""
        return None

    @abstractmethod
    def build_policy(self, requires: frozenset[str]) -> Policy:
        """The policy with exactly the heads that `requires` names; initial weights come from torch's global RNG."""

    @abstractmethod
    def rollout(self, policy: Policy, starts: Tensor, noise: Noise) -> Rollout:
        """Act from `starts [groups]` int64 on this rank, `group_size` rollouts each, group-major; no gradient."""

    @abstractmethod
    def score(self, rollout: Rollout) -> Rollout:
        """Fill `reward [B, T]` and `reward_terms`; raises on a reward that cannot be computed, never a silent 0."""

    @abstractmethod
    def evaluate(self, policy: Policy, noise: Noise) -> Evaluation:
        """Judge on the frozen held-out set, with the task's own fixed seeds (`noise` only carries the device)."""

    def state_dict(self) -> dict[str, Any]:
        """What one iteration leaves to the next (environments, normalisers); tensors and plain data."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        if state:
            raise ValueError(f"task {self.name!r} keeps no state, but the checkpoint has {sorted(state)}")

    def close(self) -> None:  # noqa: B027 - most tasks hold nothing
        """Release resources; called once at the end of a run."""


@dataclass(frozen=True, kw_only=True)
class Acting:
    """A policy as a module of its own.

    Attributes:
        module: Inputs by position to one output.
        inputs: Example of each input by its name, `[n, ...]`.
        output: Name of the output, `[n, ...]`.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    output: str


@runtime_checkable
class Acts(Protocol):
    """A task whose policies are plain functions of tensors, so that they can act outside rlflow (`rlflow export`)."""

    def acting(self, policy: Policy) -> Acting:
        """The policy as it acts in `evaluate`.

        Raises:
            ValueError: This configuration acts by more than its inputs, e.g. noise of its own.
        """
        ...


@runtime_checkable
class Saves(Protocol):
    """A task whose policies have a format of their own, which `rlflow export` writes beside its own files."""

    def save(self, policy: Policy, folder: Path) -> None:
        """Write the policy into the folder, which exists."""
        ...


@runtime_checkable
class Pretrains(Protocol):
    """A task class whose policy starts from a base that the task can make anew (`rlflow pretrain TASK`)."""

    @staticmethod
    def pretrain(out: Path, seed: int) -> dict[str, float]:
        """Make the base in the folder `out` from a seed; returns its scores by name."""
        ...


def content_digest(source: str, setting: str) -> str:
    """12 hex digits of the names and bytes of a file or of all files under a folder; empty for a name of a hub.

    Args:
        source: Path, or `ORGANISATION/NAME` where no such path is here.
        setting: For the error.

    Raises:
        ContentError: Nothing lies at a path.
    """
    path = Path(source)
    files = [path] if path.is_file() else sorted(found for found in path.rglob("*") if found.is_file())
    if not files and not path.exists() and HUB_NAME.fullmatch(source):
        return ""
    if not files:
        raise ContentError(
            f"{setting}: expected a file or a folder with files at {path}, found none; mend the path, or leave the "
            "setting empty for what comes with the task"
        )
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            content = hashlib.file_digest(handle, "sha256").hexdigest()
        digest.update(f"{file.relative_to(path).as_posix()}={content}\n".encode())
    return digest.hexdigest()[:12]
