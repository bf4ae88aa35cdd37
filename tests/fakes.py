"""A policy that answers with given tensors, a hand-made minibatch, and runs of the loop on the toy task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlflow.config import resolve
from rlflow.launch import CHECKPOINT
from rlflow.policy import Policy
from rlflow.rollout import Minibatch, Rollout
from rlflow.run import build_trainer
from rlflow.trainer import Loop

Answer = Tensor | Callable[[Rollout], Tensor]


class FakePolicy(Policy):
    """Answers each capability with the tensor (or function of the rollout) that it was given."""

    def __init__(self, **answers: Answer) -> None:
        super().__init__(frozenset())
        self.actor = nn.Identity()
        self.answers = answers

    def sample(self, context: dict[str, Tensor], noise: Any, *, train: bool = True) -> dict[str, Tensor]:
        """Not asked by any algorithm."""
        raise NotImplementedError

    def _answer(self, name: str, rollout: Rollout) -> Tensor:
        answer = self.answers[name]
        return answer if isinstance(answer, Tensor) else answer(rollout)

    def log_prob(self, rollout: Rollout) -> Tensor:
        return self._answer("log_prob", rollout)

    def elbo(self, rollout: Rollout) -> Tensor:
        return self._answer("elbo", rollout)

    def value(self, rollout: Rollout) -> Tensor:
        return self._answer("value", rollout)

    def log_partition(self, rollout: Rollout) -> Tensor:
        return self._answer("log_partition", rollout)

    def kl(self, rollout: Rollout) -> Tensor:
        return self._answer("kl", rollout)

    def ref_log_prob(self, rollout: Rollout) -> Tensor:
        return self._answer("ref_log_prob", rollout)

    def entropy(self, rollout: Rollout) -> Tensor:
        return self._answer("entropy", rollout)

    def moments(self, rollout: Rollout) -> Tensor:
        return self._answer("moments", rollout)

    def divergence(self, rollout: Rollout, old_moments: Tensor) -> Tensor:
        return self._answer("divergence", rollout)

    def step_std(self, rollout: Rollout) -> Tensor:
        return self._answer("step_std", rollout)

    def step_length(self, rollout: Rollout) -> Tensor:
        return self._answer("step_length", rollout)


def block(reward: Sequence[Sequence[float]], **changes: Any) -> Rollout:
    """A rollout of dependent decisions whose rows end at their last column; `changes` replace any field."""
    r = torch.tensor(reward, dtype=torch.float32)
    last = torch.zeros(r.shape, dtype=torch.bool)
    last[:, -1] = True
    values: dict[str, Any] = {
        "context": {},
        "action": {},
        "mask": torch.ones(r.shape, dtype=torch.bool),
        "group": torch.zeros(r.shape[0], dtype=torch.int64),
        "reward": r,
        "terminated": last,
        "boundary": last,
    }
    return Rollout(**(values | changes))


def part(targets: dict[str, Tensor], *, mask: Tensor | None = None, **changes: Any) -> Minibatch:
    """A minibatch that is the whole optimiser batch, shaped after its first target."""
    shape = next(iter(targets.values())).shape[:2]
    trainable = torch.ones(shape, dtype=torch.bool) if mask is None else mask
    rollout = block(torch.zeros(shape).tolist(), mask=trainable, **changes)
    fields = {name: getattr(rollout, name) for name in rollout.__dataclass_fields__ if name != "_memo"}
    return Minibatch(
        **fields, targets=targets, global_decisions=float(trainable.sum()), global_rows=float(trainable.shape[0])
    )


class Recorder:
    """Keeps what the loop logs: one list of metrics per call."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, dict[str, float]]] = []
        self.artifacts: list[tuple[str, str]] = []

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.calls.append((step, dict(metrics)))

    def artifact(self, path: Path, folder: str) -> None:
        self.artifacts.append((path.name, folder))

    def answers(self, table: Path, traced: Sequence[Any], step: int) -> None:
        self.artifacts.append((table.name, ""))

    def curve(self, name: str) -> list[tuple[int, float]]:
        """(samples, value) of every call that has the metric."""
        return [(step, metrics[name]) for step, metrics in self.calls if name in metrics]


TOY = (
    "task.groups_per_rollout=4",
    "task.group_size=2",
    "trainer.budget=48",
    "trainer.num_evaluations=3",
    "trainer.accelerator=cpu",
)
"""Six iterations of eight rollouts, evaluated at 0, 24 and 48 samples."""


def toy_loop(algorithm: str, folder: Path, *overrides: str, tracker: Any = None) -> Loop:
    """The loop on the toy task, not yet run."""
    return task_loop(algorithm, "toy", folder, *TOY, *overrides, tracker=tracker)


def task_loop(algorithm: str, task: str, folder: Path, *overrides: str, tracker: Any = None) -> Loop:
    """The loop on a task, not yet run."""
    return Loop(resolve(algorithm, task, list(overrides)), tracker or Recorder(), folder)


def fit(loop: Loop) -> Loop:
    """Run a loop to its end as `rlflow.run` does, without MLflow."""
    build_trainer(loop.config, loop.folder).fit(loop)
    return loop


def weights(loop: Loop) -> dict[str, Tensor]:
    """Copies of all weights of a loop."""
    return {name: value.detach().clone() for name, value in loop.state_dict().items()}


def load(folder: Path) -> dict[str, Any]:
    """The checkpoint of a run's folder."""
    return torch.load(folder / CHECKPOINT, weights_only=True)


def assert_same_weights(found: dict[str, Any], expected: dict[str, Any], *, atol: float) -> None:
    """Two checkpoints hold the same weights and averages, value by value within `atol`."""
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    for name, value in expected["state_dict"].items():
        assert torch.allclose(found["state_dict"][name], value, atol=atol, rtol=0), name
    for ours, theirs in zip(found["rlflow"]["averaged"], expected["rlflow"]["averaged"], strict=True):
        assert torch.allclose(ours, theirs, atol=atol, rtol=0)
