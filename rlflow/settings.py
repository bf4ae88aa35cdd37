"""What a run is made of: the plugin objects, and the settings that belong to no plugin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rlflow.algorithm import Algorithm
    from rlflow.task import Task

SECTIONS = ("algorithm", "task", "update", "trainer")
SHARDED = "fsdp"


class ConfigError(ValueError):
    """A configuration that cannot run; says what was expected, found and how to fix it."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """How one rollout becomes optimiser steps.

    Attributes:
        lr: AdamW step size of the actor. Too high: diversity and then the score collapse; too low: flat curves.
        critic_lr: Step size of the value head; None means `lr`.
        partition_lr: Step size of log Z; None means `lr`. Too low: the balance residual is blamed on the policy.
        lr_schedule: `constant`, or `linear` to `lr_final_fraction * lr` at the end of the budget.
        lr_final_fraction: End of the linear schedule.
        warmup_fraction: Share of the budget over which the step size rises from 0.
        betas: AdamW moments.
        eps: AdamW epsilon.
        weight_decay: AdamW decay.
        grad_clip: Gradient norm limit of each parameter group apart (0 = off). Too low: every step has the same length.
        epochs: Passes over the rollout. Too many: the ratio leaves the clip range.
        updates_per_rollout: Optimiser steps per rollout, all epochs together.
        micro_batch: Rows per forward pass (0 = whole minibatch); changes memory and speed, not the result.
        micro_batch_decisions: Decisions (tokens) per forward pass, padding included (0 = no limit): rows of like length
            go together and are cut to the longest of them. Changes memory and speed, not the result. Too low: many
            small passes.
        refill: Rollouts that an iteration may collect beyond its first, to replace groups whose members all return the
            same (DAPO's dynamic sampling, arXiv 2503.14476, section 3.2; 0 = off). All of them consume budget. Too
            few: groups that teach nothing stay in the batch; too many: late in training most of the budget goes into
            groups that are thrown away.
        ema: Decay of the averaged weights that are evaluated (0 = evaluate the trained weights).
    """

    lr: float = 3e-4
    critic_lr: float | None = None
    partition_lr: float | None = None
    lr_schedule: Literal["constant", "linear"] = "constant"
    lr_final_fraction: float = 0.0
    warmup_fraction: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    epochs: int = 1
    updates_per_rollout: int = 2
    micro_batch: int = 0
    micro_batch_decisions: int = 0
    refill: int = 0
    ema: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Budget, evaluation grid and hardware of one run.

    Attributes:
        seed: Root of every random stream.
        budget: Samples to consume (scored rollouts, or environment steps), rounded up to whole iterations.
        num_evaluations: Points of the evaluation grid; point 0 is the untrained policy.
        accelerator: Lightning's accelerator; `auto` takes CUDA when there is one.
        devices: Number of processes (one device each).
        strategy: `auto`, `ddp` (a copy of the weights per process), `fsdp` (language models: weights, gradients and
            moments sharded over the processes; slower, for models too large for one), or another of Lightning's.
        precision: Lightning's precision, e.g. `32-true`, `bf16-mixed`; log-probs stay float32.
        num_threads: Torch threads per process (0 = torch's choice).
        answer_rows: Answers of each evaluation that the run's table answers.json keeps, where the task has answers
            (0 = no table). Too few: failures go unseen; too many: every evaluation sends megabytes.
        answer_traces: How many of these also become MLflow traces (0 = none). Each costs a request of its own.
    """

    seed: int = 0
    budget: int = 10_000
    num_evaluations: int = 11
    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    num_threads: int = 0
    answer_rows: int = 64
    answer_traces: int = 0


@dataclass(frozen=True, kw_only=True)
class Config:
    """A resolved run: the built plugin objects and the plain values they were built from."""

    algorithm_name: str
    task_name: str
    algorithm: Algorithm
    task: Task
    update: Update
    trainer: TrainerConfig
    resolved: dict[str, Any]

    @property
    def num_iterations(self) -> int:
        """Iterations that consume the budget."""
        return -(-self.trainer.budget // self.task.samples_per_rollout)

    def flat(self) -> dict[str, Any]:
        """The resolved values with dotted keys."""
        return dict(flatten(self.resolved))


def flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings with dotted keys."""
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from flatten(value, f"{prefix}{key}.")
    elif prefix:
        yield prefix[:-1], values
